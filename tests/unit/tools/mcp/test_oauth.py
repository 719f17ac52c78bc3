"""Remote servers behind OAuth: client credentials, a login in the browser, and tokens that end."""

from __future__ import annotations

import json
import os
import stat
import sys
from functools import partial
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import anyio
import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.gate import Gate
from tests.support.redis import RedisServer
from tests.support.servers import running as serving
from tests.unit.tools.mcp.servers.guarded import Guarded
from tests.unit.tools.mcp.support import TIMEOUT
from toolway.errors import SourceError
from toolway.settings.load import load_settings
from toolway.tools.catalog import Catalog
from toolway.tools.factory import login_store, open_sources
from toolway.tools.mcp.http import OpenTransport
from toolway.tools.mcp.logins import Login, LoginFile, LoginStore
from toolway.tools.mcp.oauth import TokenAuth, login


async def browse(page: str) -> None:
    """What a person's browser does with the page."""
    async with httpx2.AsyncClient(follow_redirects=True) as browser:
        assert (await browser.get(page)).status_code == 200


def settings_for(tmp_path: Path, entry: dict[str, Any], **more: str) -> Any:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"web": entry}}))
    tokens = str(tmp_path / "tokens" / "tokens.json")
    return load_settings({}, None, config=str(path), token_file=tokens, **more)


def robot(base: str, **secret: str) -> dict[str, str]:
    return {
        "type": "client_credentials",
        "token_url": f"{base}/token",
        "client_id": "robot",
        **secret,
    }


async def used(settings: Any, guarded: Guarded, *, expire: bool = False) -> None:
    """Call a tool, with the token taken away before that if `expire`."""
    async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
        await catalog.wait_until_tried(TIMEOUT)
        assert sources[0].status.state == "ready", sources[0].status.error
        if expire:
            guarded.tokens.clear()
        with anyio.fail_after(TIMEOUT):
            assert (said := (await catalog.snapshot.call(catalog.snapshot.tools["ok"], {})).text) == "fine", (
                said
            )


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


async def test_a_client_may_sign_who_it_is(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    guarded = Guarded()
    with serving(guarded.app) as base:
        auth = {**robot(base), "private_key": pem, "algorithm": "ES256", "audience": base}
        await used(settings_for(tmp_path, {"url": f"{base}/mcp", "auth": auth}), guarded, expire=True)
        for assertion in guarded.assertions:
            claims = jwt.decode(assertion, key.public_key(), algorithms=["ES256"], audience=base)
            assert (claims["iss"], claims["sub"]) == ("robot", "robot")
    assert len(set(guarded.assertions)) == 2


@pytest.mark.parametrize("keys", [{}, {"client_secret": "a", "private_key": "b"}])
async def test_credentials_need_a_secret_or_a_key(tmp_path: Path, keys: dict[str, str]) -> None:
    auth = robot("http://127.0.0.1:1", **keys)
    async with (
        open_sources(
            settings_for(tmp_path, {"url": "http://127.0.0.1:1/mcp", "auth": auth}).tools
        ) as sources,
        Catalog(sources).running() as catalog,
    ):
        await catalog.wait_until_tried(TIMEOUT)
        assert "either a client_secret or a private_key" in (sources[0].status.error or "")


async def test_wrong_credentials_are_a_state(tmp_path: Path) -> None:
    with serving(Guarded().app) as base:
        auth = {
            "type": "client_credentials",
            "token_url": f"{base}/token",
            "client_id": "robot",
            "client_secret": "wrong",
        }
        async with (
            open_sources(settings_for(tmp_path, {"url": f"{base}/mcp", "auth": auth}).tools) as sources,
            Catalog(sources).running() as catalog,
        ):
            await catalog.wait_until_tried(TIMEOUT)
            assert sources[0].status.state == "needs auth"
            assert "toolway login web" in (sources[0].status.error or "")


async def logged_in(settings: Any) -> Login:
    """What `toolway login web` does."""
    with anyio.fail_after(TIMEOUT):
        return await login(settings.tools.servers[0], browse, login_store(settings.tools))


async def test_a_login_is_remembered_and_renewed(tmp_path: Path) -> None:
    guarded = Guarded()
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        await logged_in(settings)
        assert stat.S_IMODE((await anyio.Path(settings.tools.token_file).stat()).st_mode) == 0o600
        await used(settings, guarded)
        await used(settings, guarded, expire=True)
        await used(settings, guarded)
    assert guarded.given == ["authorization_code", "refresh_token"]


async def test_a_server_that_asks_for_no_login_is_no_success(tmp_path: Path) -> None:
    guarded = Guarded()
    guarded.tokens.add("")
    with serving(guarded.app) as base, pytest.raises(SourceError, match="asks for no login"):
        await logged_in(settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"}))


async def refusal(settings: Any) -> str:
    """What a call is told that is not allowed."""
    async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
        await catalog.wait_until_tried(TIMEOUT)
        result = await catalog.snapshot.call(catalog.snapshot.tools["ok"], {})
        assert result.is_error
        return result.text


async def test_many_processes_renew_one_grant_once(tmp_path: Path) -> None:
    guarded = Guarded()
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        await logged_in(settings)
        guarded.tokens.clear()
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(used, settings, guarded)
        await used(settings, guarded)
    assert guarded.given == ["authorization_code", "refresh_token"]
    assert guarded.refused == []


async def test_processes_that_are_refused_at_once_renew_once_and_the_grant_lives(tmp_path: Path) -> None:
    """Two workers of `serve` and one `toolway tools`, at a server that ends a grant whose old token is shown again."""
    guarded = Guarded(strict=True)
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        await logged_in(settings)
        guarded.gather(3)
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env = {**kept, "TOOLWAY_TOKEN_FILE": settings.tools.token_file, "OPENAI_BASE_URL": f"{base}/v1"}
        env |= {"TOOLWAY_PORT": "0", "TOOLWAY_WORKERS": "2", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "toolway"]
        async with await anyio.open_process(
            [*command, "serve"], cwd=tmp_path, env=env, stderr=DEVNULL
        ) as server:
            with anyio.fail_after(TIMEOUT):
                ran = await anyio.run_process([*command, "tools", "--json"], cwd=tmp_path, env=env)
            listed = json.loads(ran.stdout)
            server.terminate()
    assert listed[0]["available"]
    assert guarded.given == ["authorization_code", "refresh_token"]
    assert (guarded.refused, guarded.ended) == ([], False)


PING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


async def test_a_refused_renewal_takes_what_another_machine_was_given(tmp_path: Path) -> None:
    guarded = Guarded()
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        first = await logged_in(settings)
        file = LoginFile(Path(settings.tools.token_file))
        renewed = first.renewed({"access_token": "t2", "refresh_token": "r2"})
        guarded.given.append("refresh_token")
        guarded.tokens = {"t2"}

        async def meanwhile() -> None:
            file.keep(f"{base}/mcp", renewed)

        guarded.at_token = meanwhile
        transport = OpenTransport()
        auth = TokenAuth(f"{base}/mcp", transport, store=LoginStore(file))
        async with httpx2.AsyncClient(transport=transport, auth=auth) as client:
            assert (await client.post(f"{base}/mcp", json=PING)).status_code == 200
    assert guarded.refused == ["refresh_token"]
    assert file.login(f"{base}/mcp") == renewed


async def test_a_renewal_that_nobody_waits_for_any_more_is_kept(tmp_path: Path) -> None:
    """The answer holds the only refresh token that is still good."""
    guarded, gate = Guarded(strict=True), Gate()
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        await logged_in(settings)
        guarded.tokens.clear()
        guarded.at_token = gate
        transport = OpenTransport()
        auth = TokenAuth(f"{base}/mcp", transport, store=login_store(settings.tools))
        async with (
            httpx2.AsyncClient(transport=transport, auth=auth) as client,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(partial(client.post, f"{base}/mcp", json=PING))
            await anyio.to_thread.run_sync(gate.wait_for_arrival)
            tasks.cancel_scope.cancel()
            gate.open()
        await used(settings, guarded)
        await used(settings, guarded, expire=True)
    assert guarded.given == ["authorization_code", *["refresh_token"] * 2]
    assert (guarded.refused, guarded.ended) == ([], False)


async def test_replicas_with_a_redis_renew_one_grant_once_though_each_has_a_file_of_its_own(
    tmp_path: Path, redis: RedisServer
) -> None:
    """Three processes as on three machines: one file is of the login, one of yesterday, one cannot be written."""
    guarded = Guarded(strict=True)
    with serving(guarded.app) as base:
        entry = {"type": "http", "url": f"{base}/mcp"}
        settings = settings_for(tmp_path, entry, store=redis.url)
        await logged_in(settings)
        homes = [tmp_path / name for name in ("login", "yesterday", "read-only")]
        for home in homes:
            home.mkdir()
        written = await anyio.Path(settings.tools.token_file).read_bytes()
        (homes[0] / "tokens.json").write_bytes(written)
        (homes[1] / "tokens.json").write_bytes(written)
        places = [str(home / "tokens.json") for home in homes[:2]] + ["/proc/1/none/tokens.json"]
        for round_ in range(2):
            guarded.gather(len(places))
            async with anyio.create_task_group() as tasks:
                for place in places:
                    tasks.start_soon(use_as_replica, tmp_path, base, redis.url, place)
            assert guarded.given == ["authorization_code", *["refresh_token"] * (round_ + 1)]
    assert (guarded.refused, guarded.ended) == ([], False)


async def use_as_replica(folder: Path, base: str, store: str, token_file: str) -> None:
    """`toolway tools` as another machine would run it."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env = {**kept, "TOOLWAY_TOKEN_FILE": token_file, "OPENAI_BASE_URL": f"{base}/v1", "TOOLWAY_STORE": store}
    command = [sys.executable, "-m", "toolway", "tools", "--json"]
    with anyio.fail_after(2 * TIMEOUT):
        ran = await anyio.run_process(command, cwd=folder, env=env)
    assert json.loads(ran.stdout)[0]["available"], ran.stdout


async def test_a_grant_is_not_renewed_while_nobody_can_know_who_else_renews_it(
    tmp_path: Path, redis: RedisServer
) -> None:
    guarded = Guarded(strict=True)
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"}, store=redis.url)
        await logged_in(settings)
        guarded.tokens.clear()
        redis.stop()
        async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
            await catalog.wait_until_tried(TIMEOUT)
            assert sources[0].status.state == "failed"
            assert "its token cannot be renewed. TOOLWAY_STORE: redis://" in (sources[0].status.error or "")
        assert guarded.given == ["authorization_code"]
        redis.start()
        await used(settings, guarded)
    assert (guarded.given[1:], guarded.refused) == (["refresh_token"], [])


async def test_a_login_is_newer_than_a_grant_that_ended_wherever_that_is_kept(
    tmp_path: Path, redis: RedisServer
) -> None:
    guarded = Guarded()
    with serving(guarded.app) as base:
        entry = {"url": f"{base}/mcp"}
        settings = settings_for(tmp_path, entry, store=redis.url)
        await logged_in(settings)
        guarded.tokens.clear()
        guarded.ended = True
        async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
            await catalog.wait_until_tried(TIMEOUT)
            assert sources[0].status.state == "needs auth"
        guarded.ended = False
        await logged_in(settings_for(tmp_path, entry))
        await used(settings, guarded)
    assert guarded.given == ["authorization_code"] * 2


async def test_a_grant_that_ended_needs_a_login_and_is_not_tried_again(tmp_path: Path) -> None:
    guarded = Guarded()
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"url": f"{base}/mcp"})
        await logged_in(settings)
        guarded.tokens.clear()
        guarded.ended = True
        for _ in range(2):
            async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
                await catalog.wait_until_tried(TIMEOUT)
                assert sources[0].status.state == "needs auth"
                assert "toolway login web" in (sources[0].status.error or "")
    assert guarded.refused == ["refresh_token"]


async def test_an_old_server_without_metadata_can_be_logged_in_to(tmp_path: Path) -> None:
    guarded = Guarded(metadata=False)
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        token = await logged_in(settings)
        assert token.token_url == f"{base}/token"
        await used(settings, guarded)
        await used(settings, guarded, expire=True)
    assert guarded.given == ["authorization_code", "refresh_token"]


@pytest.mark.parametrize("method", ["tools/list", "tools/call"])
async def test_a_server_that_wants_a_login_later_can_be_logged_in_to(tmp_path: Path, method: str) -> None:
    guarded = Guarded(free={"initialize", "notifications/initialized", "tools/list"} - {method})
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp", "era": "legacy"})
        if method == "tools/call":
            assert "toolway login web" in (await refusal(settings))
        await logged_in(settings)
        await used(settings, guarded)
    assert guarded.given == ["authorization_code"]


async def test_a_scope_that_a_call_wants_is_shown_and_asked_for_by_the_next_login(tmp_path: Path) -> None:
    guarded = Guarded(scopes={"tools/call": "files:write"})
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        await logged_in(settings)
        said = await refusal(settings)
        assert "the scope 'files:write'" in said
        assert "toolway login web" in said
        await logged_in(settings)
        assert guarded.asked_scopes[-1] == "files:write"
        await used(settings, guarded)
    assert LoginFile(Path(settings.tools.token_file)).demand(f"{base}/mcp") is None


async def test_a_client_that_is_registered_by_hand_is_used(tmp_path: Path) -> None:
    guarded = Guarded(registers=False)
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        with pytest.raises(SourceError, match=r"the login failed: .*Registration.*client_id"):
            await logged_in(settings)
        oauth = {"clientId": "by-hand", "scopes": ["files:read"]}
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp", "oauth": oauth})
        await logged_in(settings)
        await used(settings, guarded)
    assert guarded.clients == ["by-hand"]
    assert guarded.asked_scopes == ["files:read"]


async def test_what_was_granted_is_masked_in_what_comes_back(tmp_path: Path) -> None:
    guarded = Guarded(echo=True)
    with serving(guarded.app) as base:
        settings = settings_for(tmp_path, {"type": "http", "url": f"{base}/mcp"})
        await logged_in(settings)
        async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
            await catalog.wait_until_tried(TIMEOUT)
            said = (await catalog.snapshot.call(catalog.snapshot.tools["ok"], {})).text
    assert said == "you sent Bearer *** and ***"
