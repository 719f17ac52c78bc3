"""A tool source of which only a URL is known: whether it speaks MCP or OpenAPI is detected by asking it."""

from __future__ import annotations

import logging
import re
import string
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import anyio
import orjson

from toolway.net.client import HttpClient, Origin
from toolway.net.connection import Connection
from toolway.net.errors import HttpError
from toolway.net.hosts import masked
from toolway.net.proxy import proxy_for
from toolway.tools.openapi.source import candidate_places
from toolway.tools.source_wrappers import SourceWrapper
from toolway.types import SourceStatus, ToolSource

log = logging.getLogger("toolway.catalog")

PROBE_SECONDS = 5.0
MAX_START = 4096
"""Bytes of an answer that are looked at."""

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "toolway", "version": "0"},
    },
}
"""The question of the probe, asked without the SDK, which is not loaded before somebody needs it."""

_DOCUMENT = re.compile(rb"""["']?(openapi|swagger)["']?\s*:""")


Find = Callable[[], Awaitable[ToolSource | None]]


class AutodetectSource(SourceWrapper):
    """Is `first` until that fails and the server turns out to be another; `find` asks it, and makes the source.

    A server that is not there is asked again when `first` has looked for it again.
    """

    def __init__(self, first: ToolSource, find: Find) -> None:
        super().__init__(first)
        self._first = first
        self._find = find
        self._failed = anyio.Event()
        self._is_decided = False

    @property
    def status(self) -> SourceStatus:
        """The chosen source's; as long as the question is open, a failure is none."""
        status = self.inner.status
        return SourceStatus() if status.state == "failed" and not self._is_decided else status

    async def run(self, changed: Callable[[], None]) -> None:
        """Run the first source, and the other in its place if that is the right one."""
        await self._try_first(changed)
        if self.inner is not self._first:
            await self.inner.run(changed)

    async def _try_first(self, changed: Callable[[], None]) -> None:
        async with anyio.create_task_group() as tasks:

            def notice() -> None:
                if self._first.status.state == "failed":
                    self._failed.set()
                changed()

            tasks.start_soon(self._first.run, notice)
            while self.inner is self._first:
                await self._failed.wait()
                self._failed = anyio.Event()
                if self._first.status.tools:
                    continue  # it has been what it seems, and is only gone for now
                if other := await self._find():
                    self.inner, self.kind = other, other.kind
                self._is_decided = True
                changed()
            tasks.cancel_scope.cancel()


async def find_mcp(url: str, headers: Mapping[str, str]) -> str | None:
    """The URL at or below `url` at which a server speaks MCP: many people leave out the last part of the path."""
    if await speaks_mcp(url, headers):
        return url
    base, question, query = url.partition("?")
    for path in ("/mcp", "/sse"):
        below = f"{base.rstrip('/')}{path}{question}{query}"
        if await speaks_mcp(below, headers, wants_login=path == "/mcp"):
            log.warning(
                "%s is no MCP endpoint, but %s is, and is used; write that", masked(url), masked(below)
            )
            return below
    return None


async def has_document(url: str, headers: Mapping[str, str]) -> bool:
    """Whether one of the places where the OpenAPI document of an endpoint may be holds one."""
    for place in candidate_places(url):
        answer = await _probe("GET", place.url, headers)
        if answer is not None and answer.status == 200 and _DOCUMENT.search(answer.start):
            return True
    return False


async def speaks_mcp(url: str, headers: Mapping[str, str], *, wants_login: bool = False) -> bool:
    """Whether the server at `url` answers in JSON-RPC, or opens the stream of events of older servers.

    `wants_login`: whether a 401 counts.
    """
    accept = {**headers, "Accept": "application/json, text/event-stream"}
    posted = {**accept, "Content-Type": "application/json"}
    answer = await _probe("POST", url, posted, orjson.dumps(INITIALIZE))
    if answer is None:
        return False
    if answer.is_stream or b'"jsonrpc"' in answer.start or (wants_login and answer.status == 401):
        return True
    answer = await _probe("GET", url, accept)
    return answer is not None and answer.is_stream


@dataclass(frozen=True, kw_only=True)
class _ProbeAnswer:
    """What a probe has to go by: `start` is the beginning of the body, empty for an event stream."""

    status: int
    is_stream: bool
    start: bytes


async def _probe(
    method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
) -> _ProbeAnswer | None:
    """Send one request, without following redirects; None if there is no answer in time."""
    try:
        client = HttpClient(Origin.of(url), connect=PROBE_SECONDS, proxy=proxy_for(url))
    except ValueError:
        return None
    parts = urlsplit(url)
    target = quote(parts.path or "/", safe=string.punctuation) + (f"?{parts.query}" if parts.query else "")
    lines = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    try:
        with anyio.fail_after(PROBE_SECONDS):
            async with client.request(method, target.encode(), headers=lines, body=body) as connection:
                return await _read(connection)
    except (HttpError, TimeoutError, OSError, ValueError):
        return None
    finally:
        client.close()


async def _read(connection: Connection) -> _ProbeAnswer:
    response = connection.response
    assert response is not None, "the exchange has an answer"  # noqa: S101
    kind = next((value for name, value in response.headers if name == b"content-type"), b"")
    is_stream = response.status == 200 and kind.lower().startswith(b"text/event-stream")
    start = b"" if is_stream else (await connection.receive())[:MAX_START]
    return _ProbeAnswer(status=response.status, is_stream=is_stream, start=start)
