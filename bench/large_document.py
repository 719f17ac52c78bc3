"""How long a client waits while Toolway reads a large OpenAPI document: `python -m bench.large_document FILE.json`.

The client asks for whole answers, one after the other. Its longest wait while the document is read, indexed and defined
stands beside its longest wait in as many seconds after that, for which other programs of the machine are to blame. What
they do not change is the CPU time that Toolway used while the client waited, whichever of its threads did.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.processes import WORK, Program
from bench.targets import build, start_mock, start_toolway

BODY = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "Hello"}]})


Waits = tuple[float, float, float]


class Quiet(SimpleHTTPRequestHandler):
    """Serves the folder of the document and tells nothing of it."""

    def log_message(self, *_: object) -> None: ...


class Client(threading.Thread):
    """Asks until it is told to stop; `waits` has (when it began, seconds, seconds of Toolway's CPU) of each request."""

    def __init__(self, toolway: Program) -> None:
        super().__init__(daemon=True)
        self.waits: list[tuple[float, float, float]] = []
        self.stops = threading.Event()
        self._toolway = toolway
        self._connection = http.client.HTTPConnection("127.0.0.1", toolway.port, timeout=60)

    def run(self) -> None:
        while not self.stops.wait(0.002):
            began, cpu = time.perf_counter(), self._toolway.cpu_seconds()
            self._connection.request(
                "POST", "/v1/chat/completions", BODY, {"Content-Type": "application/json"}
            )
            answer = self._connection.getresponse()
            answer.read()
            assert answer.status == 200
            self.waits.append((began, time.perf_counter() - began, self._toolway.cpu_seconds() - cpu))

    def between(self, begin: float, end: float) -> Waits:
        """Their median, the longest, and the most CPU, in milliseconds."""
        within = [(wait, cpu) for began, wait, cpu in self.waits if began + wait > begin and began < end]
        waits, cpus = ([1000 * value for value in values] for values in zip(*within, strict=True))
        return statistics.median(waits), max(waits), max(cpus)


def state_of(port: int) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/readyz")
    servers: dict[str, str] = json.load(connection.getresponse())["servers"]
    return servers


def measure(mock: Program, url: str) -> tuple[float, Waits, Waits]:
    """Seconds from the edit of the configuration to the tools; waits afterwards, and meanwhile."""
    config = WORK / "large_document.json"
    config.write_text('{"mcpServers": {}}')
    toolway = start_toolway(mock, None, "toolway-document", TOOLWAY_CONFIG=str(config))
    try:
        toolway.wait_until_it_listens()
        client = Client(toolway)
        client.start()
        time.sleep(1)
        config.write_text(json.dumps({"mcpServers": {"large": {"type": "openapi", "url": url}}}))
        edited = time.perf_counter()
        while state_of(toolway.port).get("large") != "ready":
            time.sleep(0.1)
        ready = time.perf_counter()
        time.sleep(2)  # what is done behind it: definitions, the index of the search
        end = time.perf_counter()
        time.sleep(end - edited)
        client.stops.set()
        client.join()
        return ready - edited, client.between(end, 2 * end - edited), client.between(edited, end)
    finally:
        toolway.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("document", type=Path)
    parser.add_argument("--times", type=int, default=5)
    chosen = parser.parse_args()
    build()
    serve = partial(Quiet, directory=str(chosen.document.resolve().parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{chosen.document.name}"
    mock = start_mock("mock-document", 0)
    try:
        mock.wait_until_it_listens()
        rounds = [measure(mock, url) for _ in range(chosen.times)]
    finally:
        mock.stop()
    print(f"{'':24}{'median ms':>10}{'longest':>10}{'CPU':>10}")
    for name, place in (("nothing is read", 1), ("the document is read", 2)):
        medians = (statistics.median(figures) for figures in zip(*(r[place] for r in rounds), strict=True))
        print(f"{name:24}", *(f"{value:9.2f}" for value in medians))
    print(f"{statistics.median(r[0] for r in rounds):.1f} s until its tools are offered")


if __name__ == "__main__":
    main()
