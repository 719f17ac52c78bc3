"""Proxies of the environment: which one a URL goes through, and that it does, by CONNECT or with the whole URL."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from tests.support.proxy import forward_proxy
from tests.support.raw import raw_server, request_head
from tests.unit.net.test_client_tls import Authority
from toolway.errors import ConfigError, SourceError, UpstreamError
from toolway.net.proxy import proxy_for
from toolway.settings.load import load_settings
from toolway.tools.openapi.build_request import Request
from toolway.tools.openapi.transport import Connections
from toolway.upstream.client import Upstream

P = "http://proxy.corp:3128"
CHOICES = [
    ({"HTTPS_PROXY": P}, "https://api.example.com/v1", P),
    ({"https_proxy": P, "HTTPS_PROXY": "http://other:1"}, "https://api.example.com/v1", P),
    ({"HTTPS_PROXY": P}, "http://api.example.com/v1", None),
    ({"HTTP_PROXY": P}, "http://api.example.com/v1", P),
    ({"http_proxy": "proxy.corp:3128"}, "http://api.example.com/v1", P),
    ({"HTTP_PROXY": P, "REQUEST_METHOD": "GET"}, "http://api.example.com/v1", None),
    ({"http_proxy": P, "REQUEST_METHOD": "GET"}, "http://api.example.com/v1", P),
    ({"ALL_PROXY": P}, "https://api.example.com/v1", P),
    ({"HTTPS_PROXY": P}, "https://localhost/v1", None),
    ({"HTTPS_PROXY": P}, "https://127.0.0.1:8443/v1", None),
    ({"HTTPS_PROXY": P, "NO_PROXY": "example.com"}, "https://api.example.com/v1", None),
    ({"HTTPS_PROXY": P, "no_proxy": " a.b, .Example.com"}, "https://api.example.com/v1", None),
    ({"HTTPS_PROXY": P, "NO_PROXY": "*.example.com"}, "https://api.example.com./v1", None),
    ({"HTTPS_PROXY": P, "NO_PROXY": "ample.com"}, "https://api.example.com/v1", P),
    ({"HTTPS_PROXY": P, "NO_PROXY": "example.com:8443"}, "https://api.example.com/v1", P),
    ({"HTTPS_PROXY": P, "NO_PROXY": "example.com:443"}, "https://api.example.com/v1", None),
    ({"HTTPS_PROXY": P, "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3/v1", None),
    ({"HTTPS_PROXY": P, "NO_PROXY": "10.0.0.0/8,fd00::/8"}, "https://[fd00::1]/v1", None),
    ({"HTTPS_PROXY": P, "NO_PROXY": "10.1.2.3"}, "https://10.1.2.4/v1", P),
    ({"HTTPS_PROXY": P, "NO_PROXY": "*"}, "https://api.example.com/v1", None),
    ({"HTTPS_PROXY": "  "}, "https://api.example.com/v1", None),
]


@pytest.mark.parametrize(("env", "url", "expected"), CHOICES)
def test_the_environment_says_which_proxy_leads_to_a_server(
    env: dict[str, str], url: str, expected: str | None
):
    proxy = proxy_for(url, env)
    assert (str(proxy) if proxy else None) == expected


def test_a_proxy_shows_no_credentials():
    proxy = proxy_for("https://a.example", {"HTTPS_PROXY": "http://me:p%40ss@proxy.corp:3128"})
    assert proxy is not None
    assert proxy.credentials == ("me", "p@ss")
    assert "p@ss" not in f"{proxy} {proxy!r}"


@given(st.text(max_size=30))
def test_no_proxy_of_any_text_is_harmless(text: str):
    assert str(proxy_for("https://a.example", {"HTTPS_PROXY": P, "NO_PROXY": text})) in (P, "None")


def test_a_proxy_of_another_kind_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTPS_PROXY", "socks5://me:secret@proxy.corp:1080")
    upstream = Upstream.connect(load_settings({}, None, openai_base_url="https://a.example/v1").upstream)
    with pytest.raises(ConfigError, match="must be an http:// URL, not socks5://") as raised:
        asyncio.run(upstream.__aenter__())
    assert "secret" not in str(raised.value)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await request_head(reader):
        target = head.split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(target), target))


async def ask(base_url: str, query: bytes = b"") -> bytes:
    settings = load_settings({}, None, openai_base_url=base_url).upstream
    async with Upstream.connect(settings) as upstream:
        for _ in range(2):
            async with upstream.request("GET", "/models", query=query) as found:
                said = await found.read()
        return said


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.bundle))
    return made


@pytest.mark.parametrize("user", [None, "me:p"])
async def test_a_model_server_over_tls_is_reached_by_connect(
    authority: Authority, user: str | None, monkeypatch: pytest.MonkeyPatch
):
    tls = authority.server(x509.DNSName("llm.corp.test"))
    async with (
        raw_server(answer, tls=tls) as port,
        forward_proxy({"llm.corp.test": port}, user=user) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert await ask("https://llm.corp.test/v1") == b"/v1/models"
    assert proxy.requests == [b"CONNECT llm.corp.test:443 HTTP/1.1"]


async def test_a_model_server_without_tls_is_asked_for_with_its_whole_url(monkeypatch: pytest.MonkeyPatch):
    async with (
        raw_server(answer) as port,
        forward_proxy({"llm.corp.test": port}, user="me:p", connect_only=False) as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        whole = b"http://llm.corp.test:8080/v1/models?a=1"
        assert await ask("http://llm.corp.test:8080/v1", b"a=1") == whole
    assert proxy.requests == [b"GET http://llm.corp.test:8080/v1/models?a=1 HTTP/1.1"]


async def test_a_proxy_that_refuses_or_is_not_there_is_told(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    async with forward_proxy({}, user="me:p") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("me:p", "you:q"))
        with pytest.raises(UpstreamError, match=r"its proxy .* answered .*407.*; put a user name") as raised:
            await ask("https://llm.corp.test/v1")
    assert "you:q" not in raised.value.message
    with pytest.raises(UpstreamError, match=f"its proxy http://127.0.0.1:{proxy.port} does not answer"):
        await ask("https://llm.corp.test/v1")


async def test_an_openapi_service_is_reached_through_the_proxy(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    tls = authority.server(x509.DNSName("tools.corp.test"))
    async with raw_server(answer, tls=tls) as port, forward_proxy({"tools.corp.test": port}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        connections = Connections()
        request = Request(
            method="GET", url=URL("https://tools.corp.test/openapi.json"), headers={}, body=None
        )
        assert (await connections.exchange(request, max_bytes=1000)).body == b"/openapi.json"
        connections.close()
        monkeypatch.setenv("NO_PROXY", "corp.test")
        with pytest.raises(SourceError, match="its host name is unknown"):
            await connections.exchange(request, max_bytes=1000)
    assert len(proxy.requests) == 1
