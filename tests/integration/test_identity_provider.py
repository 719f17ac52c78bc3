"""People who log in with a real identity provider: their tokens open Toolway, and MCP clients find the login."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.app_server import app_server
from tests.support.oidc import OidcProvider, oidc_provider
from tests.support.servers import free_port
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
