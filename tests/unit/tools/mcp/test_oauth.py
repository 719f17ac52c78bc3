"""Remote servers behind OAuth: client credentials, a login in the browser, and tokens that end."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.servers import running as serving
from tests.unit.tools.mcp.servers.guarded import Guarded
from tests.unit.tools.mcp.support import PATIENCE
from toolway.errors import SourceError
from toolway.settings.settings import load_settings
from toolway.tools.catalog import Catalog
from toolway.tools.factory import open_sources
from toolway.tools.mcp.oauth import TokenFile, login


async def browse(page: str) -> None:
    """What a person's browser does with the page."""
    async with httpx2.AsyncClient(follow_redirects=True) as browser:
        assert (await browser.get(page)).status_code == 200


def settings_for(tmp_path: Path, entry: dict[str, Any]) -> Any:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"web": entry}}))
    return load_settings({}, None, config=str(path), token_file=str(tmp_path / "tokens" / "tokens.json"))


def robot(base: str, secret: str) -> dict[str, str]:
    return {
        "type": "client_credentials",
        "token_url": f"{base}/token",
        "client_id": "robot",
        "client_secret": secret,
    }


async def used(settings: Any, guarded: Guarded, *, expire: bool = False) -> None:
    """Call a tool, with the token taken away before that if `expire`."""
    async with open_sources(settings) as sources, Catalog(sources).running() as catalog:
        await catalog.wait_until_tried(PATIENCE)
        assert sources[0].status.state == "ready", sources[0].status.error
        if expire:
            guarded.tokens.clear()
        with anyio.fail_after(PATIENCE):
            assert (await catalog.snapshot.call(catalog.snapshot.tools["ok"], {})).text == "fine"


async def test_client_credentials_are_exchanged_and_renewed(tmp_path: Path) -> None:
    guarded = Guarded()
    with serving(guarded.app) as base:
        auth = {
            "type": "client_credentials",
            "token_url": f"{base}/token",
            "client_id": "robot",
            "client_secret": "s3cret",
        }
        await used(settings_for(tmp_path, {"url": f"{base}/mcp", "auth": auth}), guarded, expire=True)
    assert guarded.given == ["client_credentials"] * 2


async def test_wrong_credentials_are_a_state(tmp_path: Path) -> None:
    with serving(Guarded().app) as base:
        auth = {
            "type": "client_credentials",
            "token_url": f"{base}/token",
            "client_id": "robot",
            "client_secret": "wrong",
        }
        async with (
            open_sources(settings_for(tmp_path, {"url": f"{base}/mcp", "auth": auth})) as sources,
            Catalog(sources).running() as catalog,
        ):
            await catalog.wait_until_tried(PATIENCE)
            assert sources[0].status.state == "needs auth"
            assert "toolway login web" in (sources[0].status.error or "")


async def test_a_login_is_remembered_and_renewed(tmp_path: Path) -> None:
    guarded = Guarded()
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        with anyio.fail_after(PATIENCE):
            grant = await login(f"{base}/mcp", browse)
        TokenFile(Path(settings.tools.token_file)).keep(f"{base}/mcp", grant)
        assert stat.S_IMODE((await anyio.Path(settings.tools.token_file).stat()).st_mode) == 0o600
        await used(settings, guarded)
        await used(settings, guarded, expire=True)
        await used(settings, guarded)
    assert guarded.given == ["authorization_code", "refresh_token"]


async def test_a_server_that_asks_for_no_login_is_no_success() -> None:
    guarded = Guarded()
    guarded.tokens.add("")
    with serving(guarded.app) as base, pytest.raises(SourceError, match="asks for no login"):
        await login(f"{base}/mcp", browse)
