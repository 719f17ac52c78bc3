"""Runs the client mode of the MCP conformance suite, a few scenarios at a time; `make conformance` installs it.

The suite's own way, all of them at once, starts fifty clients side by side, and most meet its timeouts.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.paths import ROOT

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


def main() -> None:
    unexpected = []
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
