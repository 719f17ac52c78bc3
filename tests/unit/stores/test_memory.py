"""The store of one process: how much memory it really takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOUND = 16 * 2**20

FILL = f"""
import asyncio, pathlib, sys
from toolway.stores import EntryKind
from toolway.stores.memory import MemoryEntries
from toolway.stores.store import Store

size, owners = map(int, sys.argv[1:])

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1])

async def main():
    before = resident()
    test = EntryKind("test", dict)
    store = Store(MemoryEntries(max_bytes={BOUND}))
    for number in range(min(80_000, 4 * {BOUND} // size)):
        key = test.key(f"{{number % owners:064}}", str(number))
        await store.put(key, {{"text": "x" * (size + number % size)}})
    print(resident() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the memory of a process is read from Linux's /proc"
)
@pytest.mark.parametrize("size", [5, 4_000])
@pytest.mark.parametrize("owners", [1, 100_000])
def test_it_takes_about_the_memory_that_it_was_given(size: int, owners: int):
    command = [sys.executable, "-c", FILL, str(size), str(owners)]
    pages = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert pages * os.sysconf("SC_PAGE_SIZE") < 1.3 * BOUND
