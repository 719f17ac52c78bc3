"""Runs schemathesis over our own OpenAPI document; `make schemathesis` starts it. Nothing may be answered with a 5xx.

The tools answer whatever comes, so that each 5xx would be Toolway's own.
"""

from __future__ import annotations

import subprocess
import sys

from tests.support.app_server import app_server
from tests.support.paths import ROOT

VERSION = "4.32.5"
EXAMPLES = 500


def main() -> int:
    uv = str(ROOT / ".venv/bin/uv")
    with app_server() as app:
        app.until_ready()
        checks = ["--checks", "not_a_server_error", "--max-examples", str(EXAMPLES)]
        command = [uv, "tool", "run", f"schemathesis=={VERSION}", "run", f"{app.url}/openapi.json", *checks]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
