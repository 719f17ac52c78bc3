"""What Toolway sends to a tool server to prove who it is reaches no model when it comes back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.servers import running as serving
from tests.unit.tools.mcp.servers.guarded import Guarded
from tests.unit.tools.mcp.support import SERVERS, TIMEOUT
from tests.unit.tools.openapi.service import Service, document, operation
from toolway.settings.load import load_settings
from toolway.tools.catalog import Catalog
from toolway.tools.factory import open_sources
from toolway.tools.source_wrappers import Mask

KEY = 'op"key-7ff3/äö'


async def said_by(tool: str, tmp_path: Path, entry: dict[str, Any] | None = None, **settings: Any) -> str:
    """What a call of the tool of one configured server comes to."""
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"mcpServers": {"s": entry} if entry else {}}))
    loaded = load_settings(settings.pop("env", {}), None, config=str(config), **settings)
    async with open_sources(loaded.tools) as sources, Catalog(sources).running() as catalog:
        await catalog.wait_until_tried(TIMEOUT)
        assert sources[0].status.state == "ready", sources[0].status.error
        with anyio.fail_after(TIMEOUT):
            return (await catalog.snapshot.call(catalog.snapshot.tools[tool], {})).text


PATHS = {"/echo": {"get": operation("echo")}, "/fail": {"get": operation("fail")}}


async def fail(request: Request) -> Response:
    return JSONResponse(dict(request.headers), 500 if request.url.path == "/fail" else 200)


@pytest.mark.parametrize("tool", ["echo", "fail"])
async def test_an_openapi_service_that_repeats_its_headers(tool: str, tmp_path: Path) -> None:
    with serving(Service(document(PATHS), fail)) as url:
        headers = {
            "Authorization": "Bearer operator-key",
            "X-Api-Key": "an-other-one",
            "X-Team": "blue-and-green",
        }
        entry = {"type": "openapi", "url": url, "headers": headers}
        said = await said_by(tool, tmp_path, entry)
    assert "operator-key" not in said
    assert "an-other-one" not in said
    assert "***" in said
    assert "blue-and-green" in said, "what is no secret stays"


async def test_an_endpoint_of_the_environment_that_repeats_its_password(tmp_path: Path) -> None:
    with serving(Service(document(PATHS), fail)) as url:
        place = url.replace("://", "://user:s3cret-word@")
        said = await said_by("echo", tmp_path, env={"MCP_SERVER_ENDPOINTS": place})
    assert "s3cret-word" not in said
    assert base64.b64encode(b"user:s3cret-word").decode() not in said


async def test_an_mcp_server_that_repeats_its_token(tmp_path: Path) -> None:
    guarded = Guarded(echo=True)
    guarded.tokens = {"operator-key"}
    with serving(guarded.app) as base:
        entry = {"type": "http", "url": f"{base}/mcp", "headers": {"Authorization": "Bearer operator-key"}}
        assert await said_by("ok", tmp_path, entry) == "you sent *** and ***"


async def test_a_program_that_prints_its_environment(tmp_path: Path) -> None:
    env = {"API_KEY": "key-of-the-operator", "AUTH_MODE": "disabled", "TOKEN_FILE": "/home/me/token"}
    entry = {"command": "python3", "args": [str(SERVERS / "bad_stdio.py")], "env": env}
    said = json.loads(await said_by("env", tmp_path, entry))
    assert (said["API_KEY"], said["AUTH_MODE"], said["TOKEN_FILE"]) == ("***", "disabled", "/home/me/token")


def test_a_secret_is_masked_however_it_is_written() -> None:
    mask = Mask.of(
        url="http://h/?api_key=from-the-url&page=blue-page", headers={"Authorization": f"Bearer {KEY}"}
    )
    for text in (
        KEY,
        f"Bearer {KEY}",
        json.dumps({"a": KEY}),
        "op%22key-7ff3%2F%C3%A4%C3%B6",
        "a from-the-url b",
    ):
        assert "7ff3" not in mask(text)
        assert "from-the-url" not in mask(text)
    assert mask("blue-page") == "blue-page"


def test_short_words_are_left_alone() -> None:
    assert Mask.of(headers={"Authorization": "Bearer abc"})("abc, the alphabet") == "abc, the alphabet"


@given(st.text(st.characters(exclude_characters="*"), min_size=6), st.text(), st.text())
def test_no_text_holds_a_secret_afterwards(secret: str, before: str, after: str) -> None:
    assert secret not in Mask([secret])(f"{before}{secret}{after}")
