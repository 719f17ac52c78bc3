"""What /mcp adds to a call over the server behind it: one client asks both in turn, and the pairs are compared.

`.venv/bin/python -m bench.mcp_calls [--calls 300]`. Times are milliseconds; Toolway's own CPU for a call stands beside
them, since on a busy machine a time is mostly other programs'.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import httpx2
from mcp.client import Client
from tests.support.paths import ROOT
from tests.support.servers import free_port

SERVER = "tests.unit.tools.mcp.servers.good"
SERVE = f"import uvicorn, {SERVER} as s, sys; uvicorn.run(s.app(), port=int(sys.argv[1]), log_level='error')"
TICK = os.sysconf("SC_CLK_TCK")


@contextmanager
def program(*command: str) -> Iterator[int]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DEBUG_OUTPUT": "false"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_ms(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * 1000 / TICK


async def until_ready(url: str) -> None:
    async with httpx2.AsyncClient() as client:
        while True:
            try:
                servers = (await client.get(f"{url}/readyz")).json()["servers"]
            except httpx2.TransportError:
                servers = {}
            if set(servers.values()) == {"ready"}:
                return
            await anyio.sleep(0.2)


async def call(client: Client, tool: str) -> float:
    began = time.perf_counter()
    await client.call_tool(tool, {"value": 1})
    return (time.perf_counter() - began) * 1000


async def compare(server: str, toolway: str, pid: int, calls: int) -> None:
    print(f"{'client speaks':14} {'alone':>7} {'through':>8} {'adds':>6} {'Toolway CPU':>12}")
    for mode in ("2026-07-28", "legacy"):
        async with (
            Client(f"{server}/mcp", mode=mode) as alone,
            Client(f"{toolway}/mcp", mode=mode) as through,
        ):
            for _ in range(20):
                await call(alone, "echo")
                await call(through, "echo")
            before = cpu_ms(pid)
            pairs = [(await call(alone, "echo"), await call(through, "echo")) for _ in range(calls)]
            cpu = (cpu_ms(pid) - before) / calls
        direct, relayed = (statistics.median(times) for times in zip(*pairs, strict=True))
        added = statistics.median(relayed - direct for direct, relayed in pairs)
        print(f"{mode:14} {direct:7.2f} {relayed:8.2f} {added:6.2f} {cpu:12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300)
    calls = parser.parse_args().calls
    ports = free_port(), free_port()
    with TemporaryDirectory() as folder:
        config = Path(folder, "mcp.json")
        config.write_text(json.dumps({"mcpServers": {"good": {"url": f"http://127.0.0.1:{ports[0]}/mcp"}}}))
        toolway = [sys.executable, "-m", "toolway", "serve", "--port", str(ports[1]), "--config", str(config)]
        with program(sys.executable, "-c", SERVE, str(ports[0])), program(*toolway) as pid:
            server, front = (f"http://127.0.0.1:{port}" for port in ports)
            anyio.run(until_ready, front)
            anyio.run(compare, server, front, pid, calls)
    print(f"the client itself: {resource.getrusage(resource.RUSAGE_SELF).ru_utime:.1f} s of CPU")


if __name__ == "__main__":
    main()
