"""Servers that requests declare, over real sockets: shared, bounded, and reached where the operator allows it only."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography import x509

from tests.support.servers import running as serving
from tests.unit.engine.scripted_model import InMemorySource, echo
from tests.unit.net.test_client_tls import Authority
from tests.unit.tools.mcp.servers import good as good_server
from tests.unit.tools.mcp.servers.bad_http import BadHTTP, bad_http, response
from tests.unit.tools.mcp.support import TIMEOUT, until
from toolway.errors import Busy, ConnectorError, InvalidRequest
from toolway.net.ssrf import Resolve, parse_allowed, read_destination
from toolway.settings.settings import ToolSettings
from toolway.tools.catalog import Snapshot
from toolway.tools.client_servers import ClientServers, DeclaredServer, read_declared
from toolway.tools.factory import open_client_servers
from toolway.tools.mcp.logins import Login, LoginFile

Answer = Callable[[bytes], bytes | None]


def book(**names: str | list[str]) -> Resolve:
    """A name server that knows `names`, with `_` for the dot, and nothing else."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        if host.replace(".", "_") not in names:
            raise OSError("unknown")
        found = names[host.replace(".", "_")]
        return [found] if isinstance(found, str) else found

    return resolve


@asynccontextmanager
async def servers_for(
    allowed: str, resolve: Resolve | None = None, **options: Any
) -> AsyncIterator[ClientServers]:
    settings = {name: options.pop(name) for name in ("max_dynamic_servers", "token_file") if name in options}
    chosen = ToolSettings(dynamic_servers=parse_allowed(allowed), **settings)
    with anyio.fail_after(TIMEOUT):
        async with open_client_servers(chosen, resolve=resolve or book(), **options) as servers:
            yield servers


def at(url: str, label: str = "git", **more: Any) -> DeclaredServer:
    server = read_declared({"type": "mcp", "server_label": label, "server_url": url, **more}, ())
    assert server is not None
    return server


async def failure(servers: ClientServers, server: DeclaredServer) -> ConnectorError:
    async with servers.use([server], owner="") as reached:
        assert not reached.sources
        return reached.failures[server.label]


async def refusal(servers: ClientServers, server: DeclaredServer) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        async with servers.use([server], owner=""):
            pass
    assert (caught.value.status, caught.value.param) == (400, "tools")
    return caught.value


async def say(servers: ClientServers, server: DeclaredServer, tool: str = "ok", owner: str = "") -> str:
    """What a tool says, called as a request would."""
    async with servers.use([server], owner=owner) as reached:
        assert not reached.failures, reached.failures
        joined = Snapshot([]).with_sources(reached.sources)
        return (await joined.call(joined.offered[tool], {})).text


@asynccontextmanager
async def listening(
    answer: Answer | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[Any]:
    """A listener that gives each request's head to `answer`; `heads` are those it saw, `made` its connections."""

    class Heard:
        url = ""
        made = 0
        heads: list[bytes]

    heard = Heard()
    heard.heads = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.made += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                heard.heads.append(head)
                said = answer(head) if answer else None
                if said is None:
                    await reader.read()  # until the other side gives up
                    break
                if length := re.search(rb"(?i)content-length: (\d+)", head):
                    await reader.readexactly(int(length[1]))
                writer.write(said)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(handle, host, port)
    heard.url = f"http://{host}:{listener.sockets[0].getsockname()[1]}"
    async with listener:
        yield heard


def port_of(server: BadHTTP) -> int:
    return read_destination(server.url).port


# -- sharing


async def test_a_declared_server_answers_calls() -> None:
    async with bad_http() as server, servers_for("127.0.0.1") as servers:
        assert await say(servers, at(server.url)) == "fine"


@pytest.mark.parametrize("modern", [False, True])
async def test_a_hundred_requests_for_one_server_make_one_connection(modern: bool) -> None:
    said: list[str] = []

    async def request(servers: ClientServers, server: BadHTTP) -> None:
        said.append(await say(servers, at(server.url, authorization="abc")))

    async with bad_http(modern=modern) as server, servers_for("127.0.0.1") as servers:
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(request, servers, server)
        assert said == ["fine"] * 100
        assert servers.count == 1
        assert [method for method, _ in server.seen].count("tools/list") == 1
        assert {headers["authorization"] for _, headers in server.seen} == {"Bearer abc"}


async def test_other_credentials_labels_and_owners_get_connections_of_their_own() -> None:
    async with bad_http() as server, servers_for("127.0.0.1") as servers:
        await say(servers, at(server.url))
        await say(servers, at(server.url, authorization="abc"))
        await say(servers, at(server.url, headers={"x-key": "abc"}))
        await say(servers, at(server.url, label="other"))
        await say(servers, at(server.url), owner="somebody")
        assert servers.count == server.made == 5
        await say(servers, at(server.url), owner="somebody")
        assert servers.count == server.made == 5


async def test_an_old_server_is_spoken_to_in_its_own_way() -> None:
    with serving(good_server.sse_app(path="/events")) as base:
        async with servers_for("127.0.0.1") as servers:
            assert await say(servers, at(f"{base}/events"), "echo") == "None"


async def test_a_redirect_within_the_server_is_followed() -> None:
    inner = good_server.app()

    async def moved(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != "/old":
            await inner(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", b"/mcp")]})
        await send({"type": "http.response.body"})

    with serving(moved) as base:
        async with servers_for("127.0.0.1") as servers:
            assert await say(servers, at(f"{base}/old"), "echo") == "None"


async def test_several_servers_of_one_request_are_reached_and_one_that_is_down_is_told() -> None:
    async with bad_http() as one, bad_http() as two, bad_http() as down, servers_for("127.0.0.1") as servers:
        await down.stop()
        declared = [at(one.url, "one"), at(down.url, "down"), at(two.url, "two")]
        async with servers.use(declared, owner="") as reached:
            assert [source.label for source in reached.sources] == ["one", "two"]
            assert list(reached.failures) == ["down"]
            base = Snapshot([InMemorySource("memory", ok=echo, slow=echo)])
            joined = base.with_sources(reached.sources)
            assert list(base.tools) == ["ok", "slow"]
            assert {"one__ok", "two__ok", "one__drop", "two__drop"} < set(joined.offered)
            assert "drop" not in joined.offered
            assert (await joined.call(joined.tools["ok"], {})).text == "echo {}"
            assert (await joined.call(joined.tools["two__ok"], {})).text == "fine"
            fitted = joined.for_target("llama.cpp")
            assert set(fitted.offered) == set(joined.offered)
            assert (await fitted.call(fitted.tools["one__ok"], {})).text == "fine"
        assert two.seen[-1][0] == "tools/call"


# -- bounds


async def test_what_nobody_uses_is_closed() -> None:
    async with bad_http(with_sessions=True) as server, servers_for("127.0.0.1", idle=0.01) as servers:
        assert await say(servers, at(server.url)) == "fine"
        await until(lambda: servers.count == 0 and not server.connections)
        assert await say(servers, at(server.url)) == "fine"
        assert server.made == 2


async def test_what_is_in_use_is_kept() -> None:
    async with (
        bad_http() as server,
        bad_http() as other,
        servers_for("127.0.0.1", idle=0.01) as servers,
        servers.use([at(server.url)], owner="") as reached,
    ):
        await say(servers, at(other.url))
        await until(lambda: servers.count == 1)
        joined = Snapshot([]).with_sources(reached.sources)
        assert (await joined.call(joined.tools["ok"], {})).text == "fine"


async def test_beyond_the_limit_the_one_unused_for_longest_gives_way() -> None:
    async with AsyncExitStack() as stack:
        one, two, three = [await stack.enter_async_context(bad_http()) for _ in range(3)]
        servers = await stack.enter_async_context(servers_for("127.0.0.1", max_dynamic_servers=2))
        for server in (one, two, one, three, one):
            assert await say(servers, at(server.url)) == "fine"
            assert servers.count <= 2
        assert (one.made, two.made, three.made) == (1, 1, 1)
        await say(servers, at(two.url))
        assert two.made == 2


async def test_when_all_connections_are_in_use_the_client_is_told_to_come_again() -> None:
    async with (
        bad_http() as one,
        bad_http() as two,
        servers_for("127.0.0.1", max_dynamic_servers=1) as servers,
    ):
        async with servers.use([at(one.url)], owner=""):
            with pytest.raises(Busy, match="TOOLWAY_MAX_DYNAMIC_SERVERS") as caught:
                async with servers.use([at(two.url)], owner=""):
                    pass
            assert (caught.value.status, caught.value.code) == (503, "too_many_servers")
        assert await say(servers, at(two.url)) == "fine"
        with pytest.raises(InvalidRequest, match="2 servers; 1 may"):
            async with servers.use([at(one.url, "a"), at(two.url, "b")], owner=""):
                pass


async def test_many_requests_for_many_servers_never_pass_the_limit() -> None:
    most, busy = 0, 0

    async def request(servers: ClientServers, server: BadHTTP, owner: str) -> None:
        nonlocal most, busy
        try:
            await say(servers, at(server.url), owner=owner)
        except Busy:
            busy += 1
        most = max(most, sum(len(server.connections) for server in all_servers))

    async with AsyncExitStack() as stack:
        all_servers = [await stack.enter_async_context(bad_http()) for _ in range(4)]
        servers = await stack.enter_async_context(servers_for("127.0.0.1", max_dynamic_servers=3))
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(request, servers, all_servers[number % 4], str(number % 5))
        assert 0 < busy < 60
        await until(lambda: servers.count <= 3)
        assert await say(servers, at(all_servers[0].url), owner="new") == "fine"


async def test_two_servers_of_one_label_are_a_mistake() -> None:
    async with servers_for("127.0.0.1") as servers:
        with pytest.raises(InvalidRequest, match="Two servers have the server_label 'git'"):
            async with servers.use([at("http://127.0.0.1:1"), at("http://127.0.0.1:2")], owner=""):
                pass


async def test_the_end_leaves_no_task_and_no_socket() -> None:
    before = asyncio.all_tasks()
    async with bad_http(with_sessions=True) as server, bad_http() as busy:
        async with servers_for("127.0.0.1") as servers:
            await say(servers, at(server.url))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(say, servers, at(busy.url), "hang")
                await until(lambda: "tools/call" in [method for method, _ in busy.seen])
                tasks.cancel_scope.cancel()
            assert servers.count == 2
        assert servers.count == 0
        await until(lambda: not server.connections and not busy.connections)
        await until(lambda: asyncio.all_tasks() <= before)


async def test_a_client_that_leaves_while_its_server_is_reached_leaves_nothing_behind() -> None:
    async with listening() as silent, servers_for("127.0.0.1") as servers:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(failure, servers, at(silent.url))
            await until(lambda: bool(silent.heads))
            tasks.cancel_scope.cancel()
        await until(lambda: servers.count == 0)


# -- trouble


async def test_a_slow_server_is_given_up() -> None:
    async with listening() as silent, servers_for("127.0.0.1", connect_timeout=0.3) as servers:
        error = await failure(servers, at(silent.url))
        assert (error.status, error.type, error.param) == (424, "external_connector_error", "tools")
        assert "'git' cannot be listed: no answer within 0.3 s" in error.message
        await until(lambda: servers.count == 0)


async def test_a_server_that_dies_is_told_and_found_again_when_it_returns() -> None:
    async with servers_for("127.0.0.1", connect_timeout=2.0) as servers:
        async with bad_http() as server:
            port = port_of(server)
            assert await say(servers, at(server.url)) == "fine"
        async with servers.use([at(server.url)], owner="") as reached:
            joined = Snapshot([]).with_sources(reached.sources)
            for _ in range(2):  # the first may go out on a connection that is just being closed
                result = await joined.call(joined.tools["ok"], {})
                assert result.is_error and "127.0.0.1" not in result.text
        await anyio.wait_all_tasks_blocked()  # until its owner has noticed
        assert "cannot be listed" in (await failure(servers, at(server.url))).message
        async with bad_http(port=port) as server:
            assert await say(servers, at(server.url)) == "fine"


async def test_a_server_that_wants_credentials_says_so_and_repeats_none() -> None:
    def answer(head: bytes) -> bytes:
        return response(401, b"your token canary is bad; log in at http://10.0.0.1/login", "text/plain")

    async with listening(answer) as server, servers_for("127.0.0.1") as servers:
        error = await failure(servers, at(server.url, authorization="canary"))
        assert error.code == "http_error"
        assert "wants other credentials (HTTP 401)" in error.message
        assert "mcp.json" not in error.message and "canary" not in error.message


async def test_an_error_names_neither_secrets_nor_addresses_behind_the_server() -> None:
    def answer(head: bytes) -> bytes:
        return response(
            500, b"canary-1 canary-2 canary-3 http://10.0.0.1/x http://127.0.0.1:9/canary-4/", "text/plain"
        )

    async with listening(answer) as server, servers_for("127.0.0.1") as servers:
        declared = at(
            f"{server.url}/canary-4/mcp?key=canary-3", headers={"x": "canary-2"}, authorization="canary-1"
        )
        error = await failure(servers, declared)
        assert "HTTP 500" in error.message
        assert "canary" not in error.message and "10.0.0.1" not in error.message


async def test_nothing_of_a_declared_server_is_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    loggers = set(logging.root.manager.loggerDict)
    async with bad_http(token="canary-1") as server, servers_for("127.0.0.1") as servers:
        declared = at(f"{server.url}?key=canary-3", headers={"x": "canary-2"}, authorization="canary-1")
        assert await say(servers, declared) == "fine"
        await say(servers, declared, "s500")
        await failure(servers, at(server.url, authorization="canary-4"))
    assert "connecting to 127.0.0.1, declared by a request" in caplog.text
    assert "canary" not in caplog.text
    assert not any("git" in name for name in set(logging.root.manager.loggerDict) - loggers)


async def test_too_many_tools_are_refused() -> None:
    schema = {"type": "object", "properties": {"x": {"description": "x" * 100_000}}}
    large = [{"name": f"tool{number}", "inputSchema": schema} for number in range(30)]
    many = [{"name": f"tool{number}"} for number in range(1001)]
    async with servers_for("127.0.0.1") as servers:
        async with bad_http(tools=large) as server:
            assert "larger than 2 MiB" in (await failure(servers, at(server.url))).message
        async with bad_http(tools=many) as server:
            assert "offers 1001 tools, and 1000" in (await failure(servers, at(server.url))).message
        async with (
            bad_http(tools=[*large[:15], *many[15:1000]]) as server,
            servers.use([at(server.url)], owner="") as reached,
        ):
            assert len(reached.sources[0].status.tools) == 1000


async def test_a_compressed_answer_is_refused() -> None:
    def answer(head: bytes) -> bytes:
        return response(200, b"\x1f\x8b", extra="content-encoding: gzip\r\n")

    async with listening(answer) as server, servers_for("127.0.0.1") as servers:
        assert "compressed" in (await failure(servers, at(server.url))).message


# -- where it may go


async def test_without_the_setting_nothing_is_reached() -> None:
    async with listening() as sentinel, servers_for("") as servers:
        error = await refusal(servers, at(sentinel.url))
        assert error.code == "server_not_allowed"
        assert "TOOLWAY_DYNAMIC_SERVERS is empty" in error.message
        assert not sentinel.made


@pytest.mark.parametrize(
    "addresses",
    ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", ["1.1.1.1", "127.0.0.1"]],
)
async def test_a_public_name_that_leads_inside_is_refused_without_a_packet(
    addresses: str | list[str],
) -> None:
    async with listening() as sentinel:
        port = read_destination(sentinel.url).port
        async with servers_for("*", book(evil_example=addresses)) as servers:
            error = await refusal(servers, at(f"https://evil.example:{port}/mcp"))
            unknown = await refusal(servers, at(f"https://unknown.example:{port}/mcp"))
        assert error.code == unknown.code == "server_not_allowed"
        assert error.message == unknown.message, "who asks does not learn which names are known inside"
        assert not sentinel.made


async def test_a_listed_name_may_lead_inside_but_not_to_a_clouds_credentials() -> None:
    names = book(tools_corp="127.0.0.1", meta_corp="169.254.169.254")
    async with bad_http() as server, servers_for("tools.corp, meta.corp, gone.corp", names) as servers:
        assert await say(servers, at(f"http://tools.corp:{port_of(server)}/mcp")) == "fine"
        assert server.seen[0][1]["host"] == f"tools.corp:{port_of(server)}"
        assert (await refusal(servers, at("http://meta.corp/latest"))).code == "server_not_allowed"
        assert "its name is not known" in (await failure(servers, at("http://gone.corp/"))).message


async def test_a_name_that_comes_to_lead_elsewhere_is_judged_again() -> None:
    leads_to = ["127.0.0.1"]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        assert host == "evil.example", "the system does not know this name: only this answer can be used"
        return leads_to

    async with bad_http() as server, listening(host="127.0.0.2", port=port_of(server)) as sentinel:
        url = f"http://evil.example:{port_of(server)}/mcp"
        async with servers_for("127.0.0.1", rebinding, connect_timeout=2.0) as servers:
            async with servers.use([at(url)], owner="") as reached:
                joined = Snapshot([]).with_sources(reached.sources)
                assert (await joined.call(joined.tools["ok"], {})).text == "fine"
                leads_to[:] = ["127.0.0.2"]
                await server.stop()
                for _ in range(2):  # the first may go out on a connection that is just being closed
                    assert (await joined.call(joined.tools["ok"], {})).is_error
            await anyio.wait_all_tasks_blocked()  # until its owner has noticed
            await refusal(servers, at(url))
        assert not sentinel.made


@pytest.mark.parametrize(
    "where", ["http://169.254.169.254/latest/meta-data", "{sentinel}", "//127.0.0.1:1/", "//[::1"]
)
@pytest.mark.parametrize("status", [302, 307, 308])
async def test_a_redirect_away_is_not_followed_and_not_repeated(where: str, status: int) -> None:
    async with listening() as sentinel:
        location = where.format(sentinel=sentinel.url)

        def answer(head: bytes) -> bytes:
            return response(status, extra=f"location: {location}\r\n")

        async with listening(answer) as server, servers_for("127.0.0.1") as servers:
            for path in ("/mcp", "/sse"):
                error = await failure(servers, at(f"{server.url}{path}", authorization="canary"))
                assert "redirects to another place" in error.message
                assert "169.254" not in error.message and location not in error.message
        assert not sentinel.made


async def test_an_old_server_cannot_send_the_messages_elsewhere() -> None:
    async with listening() as sentinel:
        event = f"event: endpoint\r\ndata: {sentinel.url}/messages\r\n\r\n"

        def answer(head: bytes) -> bytes:
            return response(200, event.encode(), "text/event-stream")

        async with listening(answer) as server, servers_for("127.0.0.1") as servers:
            error = await failure(servers, at(f"{server.url}/sse", authorization="canary"))
            assert "(another address)" in error.message
        assert not sentinel.made


async def test_the_certificate_must_be_for_the_name_that_was_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    identity = authority.identity(x509.DNSName("mcp.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.bundle))
    names = book(mcp_example="127.0.0.1", other_example="127.0.0.1")
    with serving(good_server.app(), ssl_certfile=str(identity)) as base:
        port = read_destination(base).port
        async with servers_for("127.0.0.1", names, connect_timeout=5.0) as servers:
            assert await say(servers, at(f"https://mcp.example:{port}/mcp"), "echo") == "None"
            error = await failure(servers, at(f"https://other.example:{port}/mcp"))
            assert "its certificate is for another host name" in error.message


async def test_neither_proxies_nor_grants_of_the_operator_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    async with listening() as proxy, bad_http() as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        login = Login(token_url="http://127.0.0.1:1/", client_id="x", access_token="canary")
        LoginFile(file).keep(server.url, login)
        async with servers_for("127.0.0.1", token_file=str(file)) as servers:
            assert await say(servers, at(server.url)) == "fine"
        assert not proxy.made
        assert not any("authorization" in headers for _, headers in server.seen)
