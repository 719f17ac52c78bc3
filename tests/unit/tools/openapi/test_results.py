"""What the model reads of a server's answers, by real answers of a real service."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from tests.support.raw import raw_deflate
from tests.support.servers import free_port, running
from tests.unit.tools.openapi.service import Service, document, operation, reading, serving
from toolway.settings.settings import ToolSettings
from toolway.types import Image, Tool, ToolResult

pytestmark = pytest.mark.anyio

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
SMALL = ToolSettings(max_tool_response_bytes=100_000)


async def result_of(answer: Response, *, method: str = "get", settings: ToolSettings = SMALL) -> ToolResult:
    """Call a tool whose service answers this."""

    async def answers(_: Request) -> Response:
        return answer

    async with serving(document({"/a": {method: operation("a")}}), answers, settings=settings) as watch:
        return await watch.call("a")


@pytest.mark.parametrize(
    ("content", "media_type", "text"),
    [
        (b'{"a": [1,  2]}', "application/json", '{"a": [1,  2]}'),
        (b'{"a":1}', "application/problem+json; charset=utf-8", '{"a":1}'),
        ("grüß".encode("latin-1"), "text/plain; charset=latin-1", "grüß"),
        ("grüß".encode(), "text/plain", "grüß"),
        (b"a\xffb", "text/plain", "a\ufffdb"),
        (b"a", "text/plain; charset=nonsense", "a"),
        ("\ufeffa".encode(), "text/csv", "a"),
        (b"<p>hi</p>", "text/html", "<p>hi</p>"),
        (b"<svg/>", "image/svg+xml", "<svg/>"),
        (b"a: 1", "application/yaml", "a: 1"),
        (b"log line\n", "application/octet-stream", "log line\n"),
        (b"log line\n", None, "log line\n"),
        (b"\x00\x01" * 600, "application/octet-stream", "[application/octet-stream, 1.2 KiB: not shown]"),
        (b"\xff\xfe\x00", None, "[data, 3 bytes: not shown]"),
        (b"%PDF\x00", "application/pdf", "[application/pdf, 5 bytes: not shown]"),
        (b"\x89PNG\x00", "image/tiff", "[image/tiff, 5 bytes: not shown]"),
    ],
)  # fmt: skip
async def test_text_stays_text_and_the_rest_is_a_note(
    content: bytes, media_type: str | None, text: str
) -> None:
    headers = {"content-type": media_type} if media_type else {}
    assert await result_of(Response(content, headers=headers)) == ToolResult(text=text)


async def test_an_image_becomes_one_with_a_note() -> None:
    result = await result_of(Response(base64.b64decode(PNG), media_type="image/png"))
    assert result == ToolResult(
        text="[image/png, 28 bytes: image 1 of this result]",
        images=(Image(media_type="image/png", data=PNG),),
    )


@pytest.mark.parametrize(
    "answer", [Response(status_code=204), Response(b""), Response(b" \n", media_type="text/plain")]
)
async def test_an_empty_answer_says_that_it_was_one(answer: Response) -> None:
    result = await result_of(answer)
    assert not result.is_error
    assert result.text.startswith(f"Done: the server answered {answer.status_code}")


async def test_images_in_mcpos_lists_are_images_and_notes() -> None:
    content = ["Here:", f"data:image/png;base64,{PNG}", {"a": f"data:audio/wav;base64,{PNG}"}]
    result = await result_of(JSONResponse(content))
    assert json.loads(result.text) == [
        "Here:", "[image/png, 28 bytes: image 1 of this result]", {"a": "[audio/wav, 28 bytes: not shown]"},
    ]  # fmt: skip
    assert result.images == (Image(media_type="image/png", data=PNG),)


async def test_a_single_image_of_mcpos_is_an_image() -> None:
    result = await result_of(JSONResponse(f"data:image/png;base64,{PNG}"))
    assert result.text == "[image/png, 28 bytes: image 1 of this result]"
    assert len(result.images) == 1


def mcpo_error(error: str) -> dict[str, Any]:
    return {"detail": {"message": "Unexpected error", "error": error}}


INVALID = {"detail": [{"type": "missing", "loc": ["body", "city"], "msg": "Field required", "input": {}}]}


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (500, mcpo_error("500: {'message': 'no such\\nzone'}"), "500 Internal Server Error: no such\nzone"),
        (500, mcpo_error("500: {'message': \"it's\"}"), "500 Internal Server Error: it's"),
        (
            500,
            mcpo_error("Connection closed"),
            "500 Internal Server Error: Unexpected error: Connection closed",
        ),
        (404, {"detail": {"message": "Unknown tool"}}, "404 Not Found: Unknown tool"),
        (422, INVALID, "422 Unprocessable Entity: body.city: Field required"),
        (403, {"detail": "Not allowed"}, "403 Forbidden: Not allowed"),
        (400, {"title": "Bad", "detail": "worse"}, '400 Bad Request: {"title":"Bad","detail":"worse"}'),
        (500, "plain", "500 Internal Server Error: plain"),
        (500, b"\x00\x01", "500 Internal Server Error without saying why"),
        (503, b"", "503 Service Unavailable without saying why"),
        (599, b"x", "599: x"),
        (304, b"", "304 Not Modified without saying why"),
    ],
)
async def test_an_http_error_is_a_tool_error_with_what_the_server_said(
    status: int, body: Any, text: str
) -> None:
    answer = Response(body, status) if isinstance(body, str | bytes) else JSONResponse(body, status)
    result = await result_of(answer)
    assert result.is_error
    assert result.text.replace("Content", "Entity") == f"The server answered {text}"


async def test_a_long_error_is_cut() -> None:
    result = await result_of(Response("x" * 50_000, 500))
    assert 4000 < len(result.text) < 4200


async def test_an_answer_over_the_limit_is_a_tool_error() -> None:
    result = await result_of(Response(b"x" * 100_001))
    assert result == ToolResult(text="The server shop answered more than 100,000 bytes", is_error=True)


async def test_an_answer_without_end_is_stopped_at_the_limit() -> None:
    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            await anyio.lowlevel.checkpoint()

    assert "more than 100,000 bytes" in (await result_of(StreamingResponse(forever()))).text


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
    ],
)
async def test_a_compressed_answer_is_read(encoding: str, pack: Any) -> None:
    result = await result_of(Response(pack(b"hello " * 100), headers={"content-encoding": encoding}))
    assert result.text == "hello " * 100


async def test_a_compressed_answer_is_bounded_by_what_it_unpacks_to() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    result = await result_of(Response(bomb, headers={"content-encoding": "gzip"}))
    assert result.text == "The server shop answered more than 100,000 bytes"


@pytest.mark.parametrize(
    ("encoding", "words"), [("br", "not asked for"), ("gzip, gzip", "not asked for"), ("gzip", "broken")]
)
async def test_an_answer_that_cannot_be_unpacked_is_a_tool_error(encoding: str, words: str) -> None:
    result = await result_of(Response(b"hello", headers={"content-encoding": encoding}))
    assert result.is_error
    assert words in result.text


async def test_a_redirect_of_a_get_is_followed_on_the_same_origin() -> None:
    async def answer(request: Request) -> Response:
        return (
            RedirectResponse("/b?x=1")
            if request.url.path == "/a"
            else Response(request.scope["query_string"])
        )

    async with serving(document({"/a": {"get": operation("a")}}), answer) as watch:
        assert (await watch.call("a")).text == "x=1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_elsewhere_is_a_tool_error_and_nobody_is_asked(status: int) -> None:
    elsewhere = Service(document())
    with running(elsewhere) as other:
        result = await result_of(RedirectResponse(f"{other}/openapi.json", status))
        post = await result_of(RedirectResponse(f"{other}/b", status), method="post")
    assert "redirect to another host" in result.text
    words = "redirect to another host" if status >= 303 else "followed for GET only"
    assert words in post.text
    assert elsewhere.asked == []


@pytest.mark.parametrize("status", [301, 302])
async def test_a_redirect_that_would_change_a_posts_method_is_a_tool_error(status: int) -> None:
    assert "followed for GET only" in (await result_of(RedirectResponse("/b", status), method="post")).text


@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_that_keeps_method_and_body_is_followed_on_the_same_origin(status: int) -> None:
    async def answer(request: Request) -> Response:
        if request.url.path == "/a":
            return RedirectResponse("/a/", status)
        return Response(f"{request.method} {request.url.path} {(await request.body()).decode()}")

    post = operation("a", requestBody={"content": {"application/json": {"schema": {"type": "object"}}}})
    async with serving(document({"/a": {"post": post}}), answer) as watch:
        assert (await watch.call("a", body={"x": 1})).text == 'POST /a/ {"x":1}'


async def test_a_post_that_says_where_its_result_is_has_it_read_there() -> None:
    async def answer(request: Request) -> Response:
        if request.method == "POST":
            return RedirectResponse("/jobs/1", 303)
        kind = request.headers.get("content-type")
        return Response(f"{request.method} {request.url.path} {kind} {(await request.body()).decode()!r}")

    post = operation("a", requestBody={"content": {"application/json": {"schema": {"type": "object"}}}})
    async with serving(document({"/a": {"post": post}}), answer) as watch:
        assert (await watch.call("a", body={"x": 1})).text == "GET /jobs/1 None ''"


@pytest.mark.parametrize(
    "target", ["http://[::1", "//evil.test/", "ftp://x/", "http://127.0.0.1:1/", "javascript:1"]
)
async def test_a_redirect_to_nowhere_is_a_tool_error(target: str) -> None:
    assert (await result_of(Response(status_code=302, headers={"location": target}))).is_error


async def test_redirects_end() -> None:
    assert "more than 5 times" in (await result_of(RedirectResponse("/a"))).text


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """A server that reads a little of each request, sends these bytes and closes (None: resets). Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                if answer is None:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                else:
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "closed the connection"),
        (None, "closed the connection"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"\x16\x03\x01\x02", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nbad header line\r\n\r\n", "not HTTP"),
        (HEAD + b"Content-Length: 10\r\n\r\nabc", "broke off"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "not HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "broke off"),
        (HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n", "not HTTP"),
    ],
)
async def test_a_server_that_breaks_off_is_a_tool_error_in_plain_words(
    answer: bytes | None, words: str
) -> None:
    with answering(answer) as port:
        known = document({"/a": {"get": operation("a"), "post": operation("b")}})
        async with serving(known) as watch:
            for name in ("a", "b"):
                tool = watch.tools[name]
                moved = _at_origin(tool, port)
                with anyio.fail_after(60):
                    result = await watch.source.call(moved, {})
                assert result.is_error
                assert words in result.text
                assert str(port) not in result.text and "127.0.0.1" not in result.text


async def test_a_server_that_is_down_is_a_tool_error_in_plain_words() -> None:
    async with serving(document({"/a": {"get": operation("a")}})) as watch:
        result = await watch.source.call(_at_origin(watch.tools["a"], free_port()), {})
    assert result == ToolResult(
        text="The server shop cannot be reached: it refuses connections", is_error=True
    )


def _at_origin(tool: Tool, port: int) -> Tool:
    """The tool as if its server had been replaced by what listens on `port`."""
    return replace(tool, handle=replace(tool.handle, base=f"http://127.0.0.1:{port}"))


async def test_a_cancelled_call_closes_its_connection() -> None:
    began, left = threading.Event(), threading.Event()

    async def hang(request: Request) -> Response:
        began.set()
        message = await request.receive()
        while message["type"] != "http.disconnect":
            message = await request.receive()
        left.set()
        return Response()

    service = Service(document({"/a": {"post": operation("a")}}), hang)
    with running(service) as url:
        async with reading(url) as watch, anyio.create_task_group() as tasks:
            tasks.start_soon(watch.source.call, watch.tools["a"], {})
            assert await anyio.to_thread.run_sync(began.wait, 10)
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(left.wait, 10)
