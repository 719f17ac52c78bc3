"""A real service for these tests: it serves a document and answers every call with the request as it came."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.servers import running
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.settings import ToolSettings
from toolway.tools.openapi import OpenAPISource
from toolway.types import SourceStatus, Tool, ToolResult, ToolSource

DEADLINE = 60.0


def document(paths: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A small OpenAPI 3.1 document."""
    return {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": paths or {}, **more}


def operation(name: str, **more: Any) -> dict[str, Any]:
    return {"operationId": name, "responses": {}, **more}


def json_body(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}, "required": True, **more}


async def echo(request: Request) -> Response:
    """The request as it came, as JSON."""
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "path": request.scope["raw_path"].decode("latin-1"),
            "query": request.scope["query_string"].decode("latin-1"),
            "headers": {k.decode("latin-1"): v.decode("latin-1") for k, v in request.scope["headers"]},
            "body": body.decode("latin-1"),
        }
    )


Answer = Callable[[Request], Awaitable[Response]]


class Service:
    """An ASGI app: the document at `/openapi.json` (with an ETag when one is set), everything else to `answer`."""

    def __init__(self, content: Any = None, answer: Answer = echo, *, at: str = "/openapi.json") -> None:
        self.pages: dict[str, Callable[[Request], Response] | Any] = {}
        self.content = content
        self.etag: str | None = None
        self.answer = answer
        self.at = at
        self.asked: list[dict[str, str]] = []
        self._asked = threading.Condition()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        if scope["path"] == self.at and self.content is not None:
            response = self._document(request)
        elif scope["path"] in self.pages:
            page = self.pages[scope["path"]]
            response = page(request) if callable(page) else JSONResponse(page)
        else:
            response = await self.answer(request)
        await response(scope, receive, send)

    def _document(self, request: Request) -> Response:
        with self._asked:
            self.asked.append(dict(request.headers))
            self._asked.notify_all()
        if isinstance(self.content, Response):
            return self.content
        if self.etag is not None and request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304)
        content = self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
        headers = {"etag": self.etag} if self.etag else {}
        return Response(content, media_type="application/json", headers=headers)

    async def asked_again(self, times: int) -> None:
        """Wait until the document has been asked for `times` more."""
        wanted = len(self.asked) + times

        def wait() -> bool:
            with self._asked:
                return self._asked.wait_for(lambda: len(self.asked) >= wanted, DEADLINE)

        assert await anyio.to_thread.run_sync(wait)


class Watch:
    """A source that runs, with a way to wait for what it says."""

    def __init__(self, source: ToolSource) -> None:
        self.source = source
        self.changes = 0
        self._changed = anyio.Event()

    def changed(self) -> None:
        self.changes += 1
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, is_it: Callable[[SourceStatus], bool]) -> SourceStatus:
        with anyio.fail_after(DEADLINE):
            while not is_it(self.source.status):
                await self._changed.wait()
        return self.source.status

    async def settled(self) -> SourceStatus:
        return await self.until(lambda status: status.state != "starting")

    @property
    def tools(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.source.status.tools}

    async def call(self, name: str, /, **arguments: Any) -> ToolResult:
        with anyio.fail_after(DEADLINE):
            return await self.source.call(self.tools[name], arguments)

    async def sent(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        """Call a tool of an echo service: the request that it got."""
        result = await self.call(name, **arguments)
        assert not result.is_error, result.text
        return json.loads(result.text)  # type: ignore[no-any-return]


@asynccontextmanager
async def watched(source: ToolSource) -> AsyncIterator[Watch]:
    """Run a source for as long as the block lasts, once it has settled."""
    watch = Watch(source)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(source.run, watch.changed)
        await watch.settled()
        yield watch
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def reading(url: str, *, settings: ToolSettings | None = None, **endpoint: Any) -> AsyncIterator[Watch]:
    """An OpenAPISource of `url`, running and settled."""
    label = endpoint.pop("label", "shop")
    source = OpenAPISource(Endpoint(label=label, url=url, **endpoint), settings or ToolSettings())
    async with watched(source) as watch:
        yield watch


@asynccontextmanager
async def serving(content: Any, answer: Answer = echo, **endpoint: Any) -> AsyncIterator[Watch]:
    """A service with this document and a source that reads it."""
    with running(Service(content, answer)) as url:
        async with reading(url, **endpoint) as watch:
            yield watch


@contextmanager
def listening(service: Any, *, port: int = 0) -> Iterator[str]:
    with running(service, port=port) as url:
        yield url
