"""What a Toolway that waits for its first request holds: only the modules that its configuration needs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_commands import TIMEOUT, model_server, serving
from tests.support.app_server import until_ready
from tests.support.paths import ROOT
from tests.support.servers import running
from tests.support.tools import ToolService

SERVE = """
import atexit, pathlib, sys
atexit.register(lambda: pathlib.Path("modules").write_text("\\n".join(sys.modules)))
from toolway.app.cli import main
main()
"""
"""`toolway`, which writes down at its end what it has loaded."""

HEAVY = {
    "rich",
    "jsonschema_rs",
    "yaml",
    "sqlite3",
    "websockets",
    "prometheus_client",
    "redis",
    "opentelemetry.sdk",
}
"""Each takes 1 to 14 MB; nothing here asks for them."""

OF_MCP = {"mcp.client.client", "mcp.server", "mcp_types.methods", "httpx2", "cryptography"}
"""Of the MCP SDK and what comes with it: 25 MB that a server over stdio has no use for."""

STDIO = {"command": sys.executable, "args": ["-m", "tests.unit.tools.mcp.servers.good"], "cwd": str(ROOT)}


def loaded_at_idle(folder: Path, **servers: object) -> set[str]:
    """The modules of `toolway serve` when a document was read and these servers are ready."""
    (folder / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    with running(ToolService(), lifespan="off") as tools, model_server() as model:
        command = [sys.executable, "-c", SERVE, "serve", "--port", "0"]
        variables = {"OPENAI_BASE_URL": model, "MCP_SERVER_ENDPOINTS": tools, "TOOLWAY_CONFIG": "mcp.json"}
        with serving(command, folder, DEBUG_OUTPUT="false", **variables) as (process, url):
            until_ready(url)
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT) == 0
    return set((folder / "modules").read_text().splitlines())


def test_an_idle_server_has_loaded_nothing_that_only_other_configurations_need(tmp_path: Path):
    loaded = loaded_at_idle(tmp_path)
    assert "toolway.tools.openapi.importer" in loaded
    assert not (HEAVY | OF_MCP | {"mcp_types"}) & loaded


def test_a_server_over_stdio_loads_no_more_of_the_mcp_sdk_than_it_uses(tmp_path: Path):
    loaded = loaded_at_idle(tmp_path, good=STDIO)
    assert "mcp.shared.jsonrpc_dispatcher" in loaded
    assert not (HEAVY | OF_MCP) & loaded


NAMES = """
import toolway.tools.mcp.connection
import mcp, mcp.client
from mcp import *
from mcp.client import ClientSession as OfPackage
assert mcp.ClientSession is ClientSession is OfPackage is mcp.client.session.ClientSession
print(sorted(name for name in vars(mcp) if not name.startswith("_")))
"""


@pytest.mark.parametrize("first", ["", "import mcp\n"], ids=["bare", "loaded before"])
def test_the_packages_of_the_sdk_have_all_their_names_when_they_are_asked_for(first: str):
    ran = subprocess.run([sys.executable, "-c", first + NAMES], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    plain = "import mcp; print(sorted(name for name in vars(mcp) if not name.startswith('_')))"
    expected = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True, check=True)
    assert set(json.loads(expected.stdout.replace("'", '"'))) <= set(json.loads(ran.stdout.replace("'", '"')))
