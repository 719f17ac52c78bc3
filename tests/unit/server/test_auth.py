"""Who may use this server: Host, Origin, CORS and client keys, and the headers that go upstream."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.server.auth import AuthMiddleware
from toolway.server.caller import PRINCIPAL_KEY, caller_id, upstream_headers
from toolway.settings.settings import ServerSettings, UpstreamSettings

Header = tuple[bytes, bytes]
LOCAL = (b"host", b"127.0.0.1:8484")


class Heard:
    """What an ASGI app was asked, and what the client got."""

    def __init__(self) -> None:
        self.scope: dict[str, Any] | None = None
        self.status = 0
        self.headers: list[Header] = []
        self.body = b""

    @property
    def code(self) -> str:
        return str(orjson.loads(self.body)["error"]["code"])

    def header(self, name: bytes) -> bytes | None:
        return dict(self.headers).get(name)


def ask(
    settings: ServerSettings, headers: Sequence[Header], *, path: str = "/v1/models", method: str = "GET"
) -> Heard:
    heard = Heard()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.scope = scope
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            heard.status, heard.headers = message["status"], message["headers"]
        else:
            heard.body += message["body"]

    async def receive() -> Any:
        raise AssertionError("nobody needs the body")

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    anyio.run(AuthMiddleware(app, settings), scope, receive, send)
    return heard


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1:8484",
        "[::1]:8484",
        "127.5.5.5",
        "localhost.:8484",
        "x.localhost",
    ],
)
def test_loopback_names_are_this_server(host: str) -> None:
    assert ask(ServerSettings(), [(b"host", host.encode())]).status == 200


@pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example", b"192.168.1.2", b"localhosts"])
def test_another_name_is_refused_on_loopback(host: bytes) -> None:
    heard = ask(ServerSettings(), [(b"host", host)])
    assert (heard.status, heard.code, heard.scope) == (403, "host_not_allowed", None)


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b""],
        [b"a/x?"],
        [b"a b"],
        [b"user@localhost"],
        [b"localhost:port"],
        [b"localhost:"],
        [b"localhost", b"localhost"],
        [b"::1"],
        [b"[::1"],
        [b"\xe9"],
        [b"localhost\n"],
    ],
)
def test_a_host_that_is_none_is_a_bad_request(hosts: list[bytes]) -> None:
    heard = ask(ServerSettings(allowed_hosts=("*",)), [(b"host", host) for host in hosts])
    assert (heard.status, heard.code) == (400, "invalid_host")


def test_listed_names_wildcards_and_ports() -> None:
    settings = ServerSettings(allowed_hosts=("toolway.example.com", "*.lan", "odd:99"))
    for host in (b"toolway.example.com", b"TOOLWAY.example.com:1", b"a.lan", b"a.b.lan:2", b"odd:99"):
        assert ask(settings, [(b"host", host)]).status == 200, host
    for host in (b"example.com", b"xlan", b"lan", b"odd:98", b"a.toolway.example.com"):
        assert ask(settings, [(b"host", host)]).status == 403, host


def test_an_exposed_server_knows_its_addresses_and_its_own_name() -> None:
    settings = ServerSettings(host="0.0.0.0", insecure=True)
    assert ask(settings, [(b"host", b"192.168.1.5:8484")]).status == 200
    assert ask(settings, [(b"host", b"[fd00::5]:8484")]).status == 200
    assert ask(settings, [(b"host", b"evil.example")]).status == 403
    assert ask(ServerSettings(host="box.lan", insecure=True), [(b"host", b"box.lan:8484")]).status == 200


def test_with_keys_an_exposed_server_takes_any_name_until_names_are_listed() -> None:
    key = (b"x-api-key", b"k")
    assert (
        ask(ServerSettings(host="0.0.0.0", api_keys=("k",)), [(b"host", b"any.example"), key]).status == 200
    )
    listed = ServerSettings(host="0.0.0.0", api_keys=("k",), allowed_hosts=("one.example",))
    assert ask(listed, [(b"host", b"any.example"), key]).status == 403


@given(st.binary(max_size=30))
def test_no_host_header_breaks_the_guard(host: bytes) -> None:
    heard = ask(ServerSettings(), [(b"host", host)])
    assert heard.status in {200, 400, 403}
    assert heard.status != 200 or re.match(rb"(?i)localhost|[\w.-]+\.localhost|127\.|\[", host)


@pytest.mark.parametrize(
    "origin", [b"null", b"http://evil.example", b"http://127.0.0.1:3000", b"", b"file://"]
)
def test_web_pages_of_other_origins_are_refused(origin: bytes) -> None:
    heard = ask(ServerSettings(), [LOCAL, (b"origin", origin)], method="POST")
    assert (heard.status, heard.code, heard.scope) == (403, "origin_not_allowed", None)


def test_the_servers_own_pages_are_no_other_origin() -> None:
    heard = ask(ServerSettings(), [LOCAL, (b"origin", b"http://127.0.0.1:8484")])
    assert heard.status == 200
    assert heard.header(b"access-control-allow-origin") is None


def test_a_listed_origin_gets_cors_headers_also_on_errors() -> None:
    settings = ServerSettings(cors_origins=("http://localhost:3000",), api_keys=("k",))
    origin = (b"origin", b"http://localhost:3000")
    for headers, status in (([LOCAL, origin, (b"api-key", b"k")], 200), ([LOCAL, origin], 401)):
        heard = ask(settings, headers)
        assert heard.status == status
        assert heard.header(b"access-control-allow-origin") == b"http://localhost:3000"
        assert heard.header(b"access-control-expose-headers") == b"*"
        assert heard.header(b"vary") == b"Origin"
        assert heard.header(b"access-control-allow-credentials") is None
    assert ask(settings, [LOCAL, (b"origin", b"null")]).status == 403
    assert ask(settings, [LOCAL, origin, origin]).status == 403


def test_a_preflight_needs_no_key_and_allows_what_it_asks_for() -> None:
    settings = ServerSettings(cors_origins=("http://a",), api_keys=("k",))
    asked = b"authorization, content-type, x-stainless-retry-count"
    preflight = [
        LOCAL,
        (b"origin", b"http://a"),
        (b"access-control-request-method", b"POST"),
        (b"access-control-request-headers", asked),
        (b"access-control-request-private-network", b"true"),
    ]
    heard = ask(settings, preflight, method="OPTIONS")
    assert (heard.status, heard.scope) == (204, None)
    assert heard.header(b"access-control-allow-headers") == asked
    assert b"POST" in (heard.header(b"access-control-allow-methods") or b"")
    assert heard.header(b"access-control-allow-private-network") == b"true"
    assert ask(ServerSettings(), preflight, method="OPTIONS").status == 403
    assert ask(settings, [LOCAL, (b"origin", b"http://a")], method="OPTIONS").status == 401


def test_any_origin_is_answered_with_a_star() -> None:
    heard = ask(ServerSettings(cors_origins=("*",)), [LOCAL, (b"origin", b"https://x.example")])
    assert heard.header(b"access-control-allow-origin") == b"*"
    assert ask(ServerSettings(cors_origins=("*",)), [LOCAL, (b"origin", b"null")]).status == 403


KEYED = ServerSettings(api_keys=("first", "second"))
UPSTREAM = UpstreamSettings(api_key="sk-up")


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer second"),
        (b"authorization", b"bearer  first "),
        (b"api-key", b"first"),
        (b"x-api-key", b"second"),
    ],
)
def test_a_key_opens_in_each_of_its_headers_and_goes_no_further(header: Header) -> None:
    heard = ask(KEYED, [LOCAL, header, (b"accept", b"*/*")])
    assert heard.status == 200
    assert heard.scope is not None
    assert header not in heard.scope["headers"]
    assert re.fullmatch("[0-9a-f]{12}", heard.scope[PRINCIPAL_KEY].id)
    assert upstream_headers(heard.scope, UPSTREAM) == [
        (b"accept", b"*/*"),
        (b"authorization", b"Bearer sk-up"),
    ]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer third")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic Zmlyc3Q6")],
        [(b"authorization", b"first\x00")],
        [(b"x-api-key", b"")],
        [(b"cookie", b"api-key=first")],
        [(b"authorization", b"Bearer first second")],
        [(b"authorization", b"Bearer \xff\xfe")],
    ],
)
def test_anything_else_is_unauthorized_on_every_route_but_healthz(headers: list[Header]) -> None:
    for path in ("/v1/models", "/readyz", "/", "/healthz/", "/v1/../healthz", "//healthz"):
        heard = ask(KEYED, [LOCAL, *headers], path=path)
        assert (heard.status, heard.code) == (401, "invalid_api_key")
        assert heard.header(b"www-authenticate") == b"Bearer"
        assert orjson.loads(heard.body)["error"]["type"] == "invalid_request_error"
        assert heard.scope is None
    assert ask(KEYED, [LOCAL, *headers], path="/healthz").status == 200


def test_our_key_in_one_header_and_the_upstreams_in_another() -> None:
    heard = ask(KEYED, [LOCAL, (b"x-api-key", b"first"), (b"authorization", b"Bearer sk-mine")])
    assert heard.scope is not None
    assert upstream_headers(heard.scope, UPSTREAM) == [(b"authorization", b"Bearer sk-mine")]


def test_two_keys_are_two_callers() -> None:
    callers = {
        ask(KEYED, [LOCAL, (b"api-key", key)]).scope[PRINCIPAL_KEY].id for key in (b"first", b"second")
    }  # type: ignore[index]
    assert len(callers) == 2
    assert PRINCIPAL_KEY not in (ask(ServerSettings(), [LOCAL]).scope or {})


def test_one_key_has_one_share_whatever_credentials_come_along() -> None:
    mine = [(b"authorization", b"Bearer sk-mine"), (b"authorization", b"Bearer sk-other")]
    scopes = [ask(KEYED, [LOCAL, (b"x-api-key", b"first"), header]).scope for header in mine]
    ids = [caller_id(scope) for scope in scopes if scope]
    assert len(set(ids)) == 2
    assert len({identity.partition(":")[0] for identity in ids}) == 1


def test_a_websocket_is_closed_before_it_opens_where_no_answer_can_be_given() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    anyio.run(
        AuthMiddleware(lambda *_: pytest.fail(), ServerSettings()),
        {"type": "websocket", "path": "/v1/responses", "headers": []},
        None,
        send,
    )
    assert sent == [{"type": "websocket.close", "code": 1008}]


def up(settings: UpstreamSettings, *headers: Header, same_body: bool = False) -> list[Header]:
    return upstream_headers({"headers": list(headers)}, settings, same_body=same_body)


@pytest.mark.parametrize(
    "header", [(b"authorization", b"Bearer unused"), (b"api-key", b"unused"), (b"x-api-key", b" unused ")]
)
def test_the_placeholder_of_the_documents_is_no_key_where_there_is_one_to_send(header: Header) -> None:
    assert up(UPSTREAM, header) == [(b"authorization", b"Bearer sk-up")]
    assert up(UpstreamSettings(), header) == [header]
    mine = (header[0], header[1].replace(b"unused", b"unused-2"))
    assert up(UPSTREAM, mine) == [mine]


def test_hop_by_hop_headers_stay_here_also_those_that_connection_names() -> None:
    kept = up(
        UpstreamSettings(),
        LOCAL,
        (b"connection", b"Keep-Alive, X-Hop"),
        (b"connection", b"x-other"),
        (b"x-hop", b"1"),
        (b"x-other", b"1"),
        (b"keep-alive", b"5"),
        (b"te", b"trailers"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"proxy-authorization", b"Basic x"),
        (b"expect", b"100-continue"),
        (b"origin", b"http://a"),
        (b"x-stays", b"1"),
        (b"x-stays", b"2"),
    )
    assert kept == [(b"x-stays", b"1"), (b"x-stays", b"2")]


def test_headers_of_the_body_go_along_only_with_the_same_body() -> None:
    body = [(b"content-length", b"2"), (b"content-encoding", b"gzip"), (b"accept-encoding", b"br")]
    assert up(UpstreamSettings(), *body, (b"content-type", b"a/b")) == [(b"content-type", b"a/b")]
    assert up(UpstreamSettings(), *body, same_body=True) == body


def test_the_clients_credential_is_passed_on_and_ours_is_used_without_one() -> None:
    settings = UpstreamSettings(api_key="sk-up")
    ours = (b"authorization", b"Bearer sk-up")
    assert up(settings) == [ours]
    assert up(settings, (b"authorization", b"Bearer ")) == [ours]
    assert up(UpstreamSettings(), (b"authorization", b"Bearer")) == []
    for theirs in ((b"authorization", b"Bearer x"), (b"api-key", b"x"), (b"authorization", b"Basic eDp5")):
        assert up(settings, theirs) == [theirs]
