"""The life of a source: found, refreshed, lost, found again, and what it says of itself meanwhile."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from tests.support.servers import free_port, running
from tests.unit.tools.openapi.service import (
    DEADLINE,
    Service,
    Watch,
    document,
    operation,
    reading,
    serving,
)
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.settings import ToolSettings
from toolway.tools.openapi import OpenAPISource, source

pytestmark = pytest.mark.anyio

ONE = document({"/a": {"get": operation("a")}})
TWO = document({"/a": {"get": operation("a")}, "/b": {"get": operation("b")}})
FAST = ToolSettings(refresh_interval=0.02)
NEVER = ToolSettings(refresh_interval=3600)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FIRST_RETRY", 0.02)


# where the document is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "/", "/openapi.json", "/docs/openapi.json#x"])
async def test_a_document_is_found_below_a_base_url_or_where_it_is_said_to_be(where: str) -> None:
    service = Service(ONE, at="/docs/openapi.json" if "docs" in where else "/openapi.json")
    with running(service) as url:
        async with reading(url + where) as watch:
            assert watch.source.status.state == "ready"
            assert (await watch.sent("a"))["path"] == "/a"


async def test_a_url_that_answers_with_a_document_itself_is_one() -> None:
    with running(Service(ONE, at="/api-docs")) as url:
        for where in ("/api-docs", "/api-docs?format=openapi"):
            async with reading(url + where) as watch:
                assert list(watch.tools) == ["a"]


async def test_a_service_below_a_path_is_called_below_it() -> None:
    with running(Service(ONE, at="/time/openapi.json")) as url:
        async with reading(f"{url}/time") as watch:
            assert (await watch.sent("a"))["path"] == "/time/a"


async def test_yaml_and_redirects_on_the_same_origin_are_fine() -> None:
    service = Service(b"openapi: 3.1.0\npaths: {/a: {get: {operationId: a}}}", at="/spec.yaml")
    service.pages["/openapi.json"] = lambda _: RedirectResponse("/spec.yaml")
    with running(service) as url:
        async with reading(url) as watch:
            assert list(watch.tools) == ["a"]


async def test_a_document_on_disk_is_called_at_the_server_it_names(tmp_path: Path) -> None:
    with running(Service()) as url:
        path = tmp_path / "shop.json"
        path.write_text(json.dumps({**ONE, "servers": [{"url": f"{url}/v1"}]}))
        async with reading(str(path), settings=FAST) as watch:
            assert (await watch.sent("a"))["path"] == "/v1/a"
            path.write_text(json.dumps({**TWO, "servers": [{"url": f"{url}/v1"}]}))
            await watch.until(lambda status: len(status.tools) == 2)
            path.unlink()
            status = await watch.until(lambda status: status.state == "failed")
            assert (status.error_stage, len(status.tools)) == ("fetch", 2)


# what is said when there is none --------------------------------------------------------------------------------------


def page(content: str | bytes, status: int = 200, media_type: str = "application/json") -> Service:
    async def answer(_: Request) -> Response:
        return Response(content, status, media_type=media_type)

    return Service(None, answer)


@pytest.mark.parametrize(
    ("service", "stage", "words"),
    [
        (page("<html></html>", media_type="text/html"), "parse", "answered HTML, not an OpenAPI document; is this"),
        (page("<html></html>", media_type="text/html"), "parse", "the right port? (tried /openapi.json, /)"),
        (page("<html></html>"), "parse", "is HTML or XML"),
        (page("{}", 404), "fetch", "answered 404, not an OpenAPI document (tried /openapi.json, /)"),
        (page("{}", 401), "fetch", "answered 401: it wants a key"),
        (page("{}", 500), "fetch", "answered 500"),
        (page('{"error": "Unexpected endpoint"}'), "parse", 'neither "openapi" nor "swagger"'),
        (page('{"openapi": "3.1.0", '), "parse", "is broken JSON"),
        (page('{"openapi": "5.0"}'), "parse", "2.0 and 3.x can be read"),
        (page(""), "parse", "no object at its top"),
        (page('{"openapi": "3.1.0", "x": "' + "y" * 9999 + '"}'), "fetch", "000 bytes (TOOLWAY_MAX_DOCUMENT_BYTES)"),
    ],
)  # fmt: skip
async def test_an_endpoint_without_a_document_is_failed_with_the_reason(
    service: Service, stage: str, words: str
) -> None:
    with running(service) as url:
        async with reading(url, settings=ToolSettings(max_document_bytes=5000)) as watch:
            status = watch.source.status
    assert (status.state, status.error_stage, status.tools) == ("failed", stage, ())
    assert words in (status.error or "")
    assert url in (status.error or "")
    assert abs((status.error_at or 0) - time.time()) < 60


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}", "http://no-such-host.invalid:{port}", "http://127.0.0.1:99999"]
)
async def test_an_endpoint_that_cannot_be_reached_is_failed(url: str) -> None:
    async with reading(url.format(port=free_port())) as watch:
        assert watch.source.status.state == "failed"
        assert watch.source.status.error_stage == "connect"


@pytest.mark.parametrize("path", ["/no/such/file.json", "/", "~/no-such-file.yaml"])
async def test_a_document_that_is_not_on_disk_is_failed(path: str) -> None:
    async with reading(path) as watch:
        assert watch.source.status.error_stage == "fetch"


async def test_a_document_that_redirects_to_another_host_is_failed_and_nobody_is_asked() -> None:
    elsewhere = Service(ONE)
    with running(elsewhere) as other:
        service = Service()
        service.pages["/openapi.json"] = lambda _: RedirectResponse(f"{other}/openapi.json")
        with running(service) as url:
            async with reading(url, token="t") as watch:
                assert "redirect to another host" in (watch.source.status.error or "")
    assert elsewhere.asked == []


async def test_a_document_without_operations_is_ready_with_a_warning() -> None:
    async with serving(document()) as watch:
        assert watch.source.status.state == "ready"
        assert watch.source.status.warnings == ("The document lists no operations",)


async def test_the_status_names_the_protocol() -> None:
    async with serving(ONE) as watch:
        assert watch.source.status.protocol == "OpenAPI 3.1.0"
    async with serving({"swagger": "2.0", "paths": {}}) as watch:
        assert watch.source.status.protocol == "Swagger 2.0"


# credentials ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ({}, None),
        ({"token": "t"}, "Bearer t"),
        ({"username": "u", "password": "p"}, "Basic dTpw"),
    ],
)
async def test_the_document_is_asked_for_with_the_credentials(endpoint: Any, expected: str | None) -> None:
    service = Service(ONE)
    with running(service) as url:
        async with reading(url, **endpoint):
            assert service.asked[0].get("authorization") == expected


async def test_a_server_that_takes_no_basic_is_given_the_password_as_a_key() -> None:
    def guarded(request: Request) -> Response:
        ok = request.headers.get("authorization") == "Bearer p"
        return JSONResponse(ONE) if ok else PlainTextResponse("no", 403)

    service = Service()
    service.pages["/openapi.json"] = guarded
    with running(service) as url:
        async with reading(url, username="u", password="p") as watch:
            assert list(watch.tools) == ["a"]


async def test_credentials_that_no_header_can_hold_are_a_failure() -> None:
    with running(Service(ONE)) as url:
        async with reading(url, token="a\r\nb") as watch:
            assert "header is not valid" in (watch.source.status.error or "")


# refreshed, lost, found again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("etag", [None, '"v1"'])
async def test_an_unchanged_document_changes_nothing(etag: str | None) -> None:
    service = Service(ONE)
    service.etag = etag
    with running(service) as url:
        async with reading(url, settings=FAST) as watch:
            status = watch.source.status
            await service.asked_again(3)
            assert watch.source.status is status
            assert watch.changes == 1
            assert service.asked[-1].get("if-none-match") == etag


async def test_a_changed_document_brings_new_tools() -> None:
    service = Service(ONE)
    service.etag = '"v1"'
    with running(service) as url:
        async with reading(url, settings=FAST) as watch:
            service.content, service.etag = TWO, '"v2"'
            await watch.until(lambda status: len(status.tools) == 2)
            assert watch.changes == 2


async def test_a_document_that_breaks_later_keeps_the_last_good_tools_as_unavailable() -> None:
    service = Service(ONE)
    with running(service) as url:
        async with reading(url, settings=FAST) as watch:
            (good,) = watch.source.status.tools
            service.content = b"<oops>"
            status = await watch.until(lambda status: status.state == "failed")
            assert [(tool.name, tool.available) for tool in status.tools] == [("a", False)]
            await service.asked_again(3)
            assert watch.source.status is status, "the same failure is told once"
            service.content = ONE
            status = await watch.until(lambda status: status.state == "ready")
            assert status.tools == (good,)
            assert status.error is None


async def test_a_server_that_comes_up_late_joins() -> None:
    port = free_port()
    async with reading(f"http://127.0.0.1:{port}", settings=NEVER) as watch:
        assert watch.source.status.state == "failed"
        with running(Service(ONE), port=port):
            await watch.until(lambda status: status.state == "ready")
            assert (await watch.sent("a"))["path"] == "/a"


async def test_a_call_that_cannot_connect_has_the_document_read_at_once() -> None:
    port = free_port()
    async with reading(f"http://127.0.0.1:{port}", settings=NEVER) as watch:
        with running(Service(ONE), port=port):
            await watch.until(lambda status: status.state == "ready")
            tool = watch.tools["a"]
        assert (await watch.source.call(tool, {})).is_error
        status = await watch.until(lambda status: status.state == "failed")
        assert [tool.available for tool in status.tools] == [False]
        with running(Service(ONE), port=port):
            await watch.until(lambda status: status.state == "ready")


async def test_a_cancelled_source_leaves_nothing_open() -> None:
    asked, over = threading.Event(), threading.Event()

    def hang(_: Request) -> Response:
        asked.set()
        over.wait(DEADLINE)
        return JSONResponse(ONE)

    service = Service()
    service.pages["/openapi.json"] = hang
    with running(service) as url:
        known = OpenAPISource(Endpoint(label="x", url=url), ToolSettings())
        with anyio.fail_after(DEADLINE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(known.run, lambda: None)
                assert await anyio.to_thread.run_sync(asked.wait, 10)
                tasks.cancel_scope.cancel()
        assert known.status.state == "stopped"
        over.set()


async def test_a_fault_in_reading_does_not_end_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [RuntimeError("a bug")]

    async def faulty(self: Any) -> None:
        if faults:
            raise faults.pop()
        await real(self)

    real = source.DocumentReader.read
    monkeypatch.setattr(source.DocumentReader, "read", faulty)
    async with serving(ONE) as watch:
        status = await watch.until(lambda status: status.state == "ready")
    assert status.error is None


# mcpo's list of servers -----------------------------------------------------------------------------------------------

LINKS = "Automatically generated\n\n- **available tools**：\n    - [time](/time/docs)\n    - [git](/git/docs)"
ROOT = document(info={"title": "MCP OpenAPI Proxy", "description": LINKS, "version": "1"})


def child(name: str, tool: str) -> dict[str, Any]:
    return document({f"/{tool}": {"post": operation(f"tool_{tool}_post")}}, servers=[{"url": f"/{name}"}])


def mcpo(*, below: str = "") -> Service:
    service = Service(ROOT, at=f"{below}/openapi.json")
    service.pages[f"{below}/time/openapi.json"] = child(f"{below}/time".strip("/"), "now")
    service.pages[f"{below}/git/openapi.json"] = child(f"{below}/git".strip("/"), "log")
    return service


def servers(watch: Watch) -> dict[str, tuple[str, bool]]:
    return {tool.server: (tool.name, tool.available) for tool in watch.source.status.tools}


@pytest.mark.parametrize("below", ["", "/tools"])
async def test_mcpos_root_leads_to_its_servers(below: str) -> None:
    with running(mcpo(below=below)) as url:
        async with reading(url + below, label="mcpo") as watch:
            assert servers(watch) == {"time": ("tool_now_post", True), "git": ("tool_log_post", True)}
            assert (await watch.sent("tool_now_post"))["path"] == f"{below}/time/now"
            assert watch.source.status.protocol == "OpenAPI 3.1.0"


async def test_one_dead_child_does_not_hurt_the_others_and_comes_back() -> None:
    service = mcpo()
    dead = {"/git/openapi.json": lambda _: HTMLResponse("no", 502)}
    alive = service.pages["/git/openapi.json"]
    service.pages |= dead
    with running(service) as url:
        async with reading(url, settings=FAST) as watch:
            assert watch.source.status.state == "ready"
            assert servers(watch) == {"time": ("tool_now_post", True)}
            assert "/git/openapi.json answered 502" in watch.source.status.warnings[0]
            service.pages["/git/openapi.json"] = alive
            await watch.until(lambda status: len(status.tools) == 2 and not status.warnings)
            service.pages |= dead
            await watch.until(lambda status: any(not tool.available for tool in status.tools))
            assert servers(watch) == {"time": ("tool_now_post", True), "git": ("tool_log_post", False)}


async def test_a_lost_root_takes_its_children_along() -> None:
    port = free_port()
    async with reading(f"http://127.0.0.1:{port}", settings=FAST) as watch:
        with running(mcpo(), port=port):
            await watch.until(lambda status: len(status.tools) == 2)
        await watch.until(lambda status: status.state == "failed")
        assert servers(watch) == {"time": ("tool_now_post", False), "git": ("tool_log_post", False)}
        with running(mcpo(), port=port):
            await watch.until(lambda status: status.state == "ready")
            assert servers(watch)["git"] == ("tool_log_post", True)


async def test_a_child_that_is_no_longer_listed_goes() -> None:
    service = mcpo()
    with running(service) as url:
        async with reading(url, settings=FAST) as watch:
            service.content = document(info={"description": "- [git](/git/docs)"})
            await watch.until(lambda status: len(status.tools) == 1)
            assert list(servers(watch)) == ["git"]


async def test_a_large_document_does_not_stop_the_loop() -> None:
    paths = {f"/p{i}": {"get": operation(f"op{i}", description="x" * 500)} for i in range(8000)}
    with running(Service(document(paths))) as url:
        known = OpenAPISource(Endpoint(label="x", url=url), ToolSettings())
        watch = Watch(known)
        longest = 0.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(known.run, watch.changed)
            with anyio.fail_after(DEADLINE):
                while known.status.state == "starting":
                    began = time.thread_time()
                    await anyio.lowlevel.checkpoint()
                    longest = max(longest, time.thread_time() - began)
            tasks.cancel_scope.cancel()
        assert len(known.status.tools) == 8000
    assert longest < 1
