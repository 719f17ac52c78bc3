"""Runs the MCP conformance suite; `make conformance` installs it.

Its client mode, a few scenarios at a time: the suite's own way, all of them at once, starts fifty clients side by side,
and most meet its timeouts. Its server mode twice, against a server alone and against /mcp in front of it: what passes
against the server must pass through Toolway.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.compat.conformance.server import app as everything
from tests.support.app_server import app_server
from tests.support.paths import ROOT
from tests.support.servers import running

SUITE = ROOT / ".conformance"
NODE = str(SUITE / "node_modules/node/bin/node")
PROGRAM = str(SUITE / "node_modules/.bin/conformance")
CLIENT = f"env PYTHONPATH={ROOT} {sys.executable} -m tests.compat.conformance.client"
AT_ONCE = max(1, (os.cpu_count() or 2) // 2)

EXPECTED = {
    "elicitation-sep1034-client-defaults": "elicitation is declined: there is nobody to ask",
    "auth/enterprise-managed-authorization": "extension: identity assertions of a company's provider",
    "auth/dpop": "extension: proof of possession",
    "auth/dpop-nonce": "extension: proof of possession",
    "auth/wif-jwt-bearer": "extension: workload identity federation",
}
"""What fails, and why; docs/mcp.md tells it too."""


def scenarios() -> list[str]:
    listed = subprocess.run([NODE, PROGRAM, "list", "--client"], check=True, capture_output=True, text=True)
    return re.findall(r"^\s+- (\S+)", listed.stdout, re.MULTILINE)


def run(scenario: str) -> tuple[str, bool, str]:
    command = [NODE, PROGRAM, "client", "--command", CLIENT, "--scenario", scenario, "--timeout", "120000"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=SUITE)
    said = ran.stdout + ran.stderr
    Path(SUITE, f"{scenario.replace('/', '_')}.log").write_text(said)
    return (
        scenario,
        "OVERALL: PASSED" in said,
        next(iter(re.findall(r"Passed: \S+", said)), "no result").strip(","),
    )


REVISIONS = ("2026-07-28", "2025-11-25")
"""Revisions of the specification whose server scenarios are run; the suite has no newer and no older ones."""


def served(url: str, revision: str) -> dict[str, bool]:
    """Whether each server scenario passes against the server at `url`."""
    command = [NODE, PROGRAM, "server", "--url", url, "--requirements", revision]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=SUITE)
    Path(SUITE, f"server-{url.split(':')[2][:5]}-{revision}.log").write_text(ran.stdout + ran.stderr)
    found = re.findall(r"^([✓✗]) (\S+): (\d+) passed", ran.stdout, re.MULTILINE)
    return {name: mark == "✓" for mark, name, _ in found}


def lost_on_the_way() -> list[str]:
    """Server scenarios that pass against the server and not through Toolway."""
    lost = []
    with running(everything(), lifespan="on") as url, TemporaryDirectory() as folder:
        config = Path(folder, "mcp.json")
        config.write_text(json.dumps({"mcpServers": {"everything": {"url": f"{url}/mcp"}}}))
        with app_server(config=str(config), endpoints="") as app:
            app.until_ready()
            for revision in REVISIONS:
                alone, behind = served(f"{url}/mcp", revision), served(f"{app.url}/mcp", revision)
                for name, passed in behind.items():
                    verdict = "ok    " if passed else "FAILED" if alone[name] else "as is "
                    print(f"{verdict} {revision} {name}", flush=True)
                lost += [f"{revision} {name}" for name in alone if alone[name] and not behind.get(name)]
    return lost


def main() -> None:
    unexpected = lost_on_the_way() if not sys.argv[1:] or sys.argv[1] == "server" else []
    if sys.argv[1:] == ["server"]:
        sys.exit(f"lost on the way: {', '.join(unexpected)}; the logs are in {SUITE}" if unexpected else None)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for scenario, passed, counted in threads.map(run, sys.argv[1:] or scenarios()):
            if passed == (scenario in EXPECTED):
                unexpected.append(scenario)
            print(
                f"{'ok    ' if passed else 'FAILED'} {scenario} ({counted}) {EXPECTED.get(scenario, '')}",
                flush=True,
            )
    if unexpected:
        sys.exit(f"not as expected: {', '.join(unexpected)}; the logs are in {SUITE}")


if __name__ == "__main__":
    main()
