"""People who log in with a real identity provider: their tokens open Toolway, and MCP clients find the login."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from mcp.client import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from tests.support.app_server import app_server
from tests.support.gate import DEADLINE
from tests.support.oauth import AuthorizationServer
from tests.support.oidc import OidcProvider, oidc_provider
from tests.support.servers import free_port, running
from tests.support.upstream import whole
from toolway.access.keys import hash_of

ANN = {"sub": "ann", "groups": ["engineering"]}
TOM = {"sub": "tom", "groups": ["sales"]}


def config(folder: Path, provider: OidcProvider, **more: Any) -> str:
    file = folder / "mcp.json"
    jwt = {"issuer": provider.issuer, "audience": "toolway", "groups": {"engineering": "developers"}, **more}
    groups = {"developers": {"tools": ["get_weather"], "routes": ["chat", "mcp"]}}
    keys = {"program": {"hash": hash_of("program")}}
    file.write_text(json.dumps({"mcpServers": {}, "keys": keys, "groups": groups, "jwt": jwt}))
    return str(file)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_who_logs_in_may_do_what_the_group_may(tmp_path: Path):
    with oidc_provider(ANN, TOM) as provider, app_server(config=config(tmp_path, provider)) as app:
        app.set_replies(whole({"content": "Hi"}))
        token = provider.log_in("ann", "toolway")
        assert app.ask(headers=bearer(token)).status_code == 200
        (seen,) = (seen for seen in app.upstream.seen if seen.method == "POST")
        assert [tool["function"]["name"] for tool in seen.json["tools"]] == ["get_weather"]
        assert token.encode() not in b"".join(value for _, value in seen.headers)
        assert httpx2.post(f"{app.url}/v1/embeddings", json={}, headers=bearer(token)).status_code == 403
        assert app.ask(headers={"x-api-key": "program"}).status_code == 200
        assert app.ask(headers=bearer(provider.log_in("tom", "toolway"))).status_code == 403
        assert app.ask(headers=bearer(provider.log_in("ann", "another-service"))).status_code == 401
        assert app.ask(headers=bearer(token[:-4] + "AAAA")).status_code == 401


def test_keys_that_change_under_a_running_toolway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("toolway.access.tokens.PAUSE_SECONDS", 0.0)
    port = free_port()
    issuer = OidcProvider(f"http://127.0.0.1:{port}")
    with app_server(config=config(tmp_path, issuer)) as app:
        with oidc_provider(ANN, port=port) as provider:
            old = provider.log_in("ann", "toolway")
            assert httpx2.get(app.url, headers=bearer(old)).status_code == 200
        with oidc_provider(ANN, port=port) as provider:
            new = provider.log_in("ann", "toolway")
            assert httpx2.get(app.url, headers=bearer(new)).status_code == 200
            assert httpx2.get(app.url, headers=bearer(old)).status_code == 401


def test_a_client_without_a_token_is_told_where_the_login_is(tmp_path: Path):
    issuer = OidcProvider("https://login.example.com")
    with app_server(config=config(tmp_path, issuer, scopes=["openid"])) as app:
        for path in ("/mcp", "/mcp/research", "/v1/models"):
            refused = httpx2.post(app.url + path, json={})
            assert refused.status_code == 401
            behind = path if path.startswith("/mcp") else ""
            url = f"{app.url}/.well-known/oauth-protected-resource{behind}"
            assert refused.headers["www-authenticate"] == f'Bearer resource_metadata="{url}"'
            assert httpx2.get(url).json() == {
                "resource": f"{app.url}{behind or '/mcp'}",
                "authorization_servers": ["https://login.example.com"],
                "bearer_methods_supported": ["header"],
                "resource_name": "Toolway",
                "scopes_supported": ["openid"],
            }


def test_the_address_is_the_one_that_is_set_whatever_the_host_says(tmp_path: Path):
    issuer = OidcProvider("https://login.example.com")
    resource = "https://tools.example.com/mcp"
    with app_server(config=config(tmp_path, issuer, resource=resource)) as app:
        refused = httpx2.post(f"{app.url}/mcp", json={}, headers=bearer("eyJ.a.b"))
        url = "https://tools.example.com/.well-known/oauth-protected-resource/mcp"
        assert f'resource_metadata="{url}"' in refused.headers["www-authenticate"]
        assert httpx2.get(f"{app.url}/.well-known/oauth-protected-resource").json()["resource"] == resource


def test_without_a_provider_there_is_no_such_document(tmp_path: Path):
    with app_server() as app:
        assert httpx2.get(f"{app.url}/.well-known/oauth-protected-resource").status_code == 404


class _Memory:
    """Where a client of the SDK's keeps its tokens."""

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None
        self._client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._client = client_info


def login(url: str) -> OAuthClientProvider:
    """How a client of the SDK's logs in, whose user says yes to everything."""
    sent: list[str] = []

    async def redirect(address: str) -> None:
        async with httpx2.AsyncClient() as browser:
            sent.append((await browser.get(address)).headers["location"])

    async def callback() -> AuthorizationCodeResult:
        answer = parse_qs(urlsplit(sent[-1]).query)
        return AuthorizationCodeResult(code=answer["code"][0], state=answer["state"][0], iss=answer["iss"][0])

    metadata = OAuthClientMetadata(
        client_name="test",
        redirect_uris=["http://127.0.0.1:1/callback"],
        grant_types=["authorization_code"],
        response_types=["code"],
        token_endpoint_auth_method="none",
    )
    return OAuthClientProvider(url, metadata, _Memory(), redirect, callback)


@pytest.mark.anyio
@pytest.mark.parametrize("group", ["engineering", "sales"])
async def test_a_client_of_the_mcp_sdk_finds_the_login_and_has_the_tools_of_its_group(
    tmp_path: Path, group: str
):
    server = AuthorizationServer("toolway", sub="ann", groups=[group])
    with (
        running(server.app, lifespan="off") as server.issuer,
        app_server(config=config(tmp_path, OidcProvider(server.issuer))) as app,
    ):
        auth = login(f"{app.url}/mcp")
        async with httpx2.AsyncClient(auth=auth, timeout=DEADLINE) as http:
            transport = streamable_http_client(f"{app.url}/mcp", http_client=http)
            if group == "sales":
                with pytest.raises(Exception, match="TaskGroup"):
                    async with Client(transport) as client:
                        await client.list_tools()
                tokens = auth.context.current_tokens
                assert tokens
                refused = httpx2.post(f"{app.url}/mcp", json={}, headers=bearer(tokens.access_token))
                assert refused.status_code == 403
                assert app.tools.calls == []
            else:
                async with Client(transport) as client:
                    names = [tool.name for tool in (await client.list_tools()).tools]
                    assert names == ["get_weather"]
                    assert not (await client.call_tool("get_weather", {"city": "Paris"})).is_error
                assert app.tools.calls == [("get_weather", {"city": "Paris"})]
        assert server.resources == [f"{app.url}/mcp"]
