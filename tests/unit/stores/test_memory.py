"""The store of one process: how much memory it really takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOUND = 16 * 2**20

FILL = f"""
import asyncio, pathlib
from toolway.stores import key_of
from toolway.stores.memory import MemoryEntries
from toolway.stores.store import Store

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1])

async def fill(store, round):
    for number in range(4_000):
        await store.put(key_of("test", "me", f"{{round}}-{{number}}"), {{"text": "x" * (4_000 + number % 3_000)}})

async def main():
    before = resident()
    store = Store(MemoryEntries(max_bytes={BOUND}))
    for round in range(4):
        await fill(store, round)
    print(resident() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the memory of a process is read from Linux's /proc"
)
def test_it_takes_about_the_memory_that_it_was_given():
    pages = int(
        subprocess.run([sys.executable, "-c", FILL], capture_output=True, check=True, text=True).stdout
    )
    assert pages * os.sysconf("SC_PAGE_SIZE") < 1.3 * BOUND
