"""A model server that answers what the test says, to the byte, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson

from tests.support.gate import Departures

JSON = dict[str, Any]


@dataclass
class Reply:
    """One answer. `parts` are written one by one, each flushed; a callable is awaited between two of them."""

    parts: Sequence[bytes | Callable[[], Awaitable[None]]] = ()
    status: int = 200
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"text/event-stream"),)
    cut: bool = False
    """Break the connection in place of ending the body."""
    reset: bool = False
    """Break the connection in place of answering at all."""


@dataclass
class Seen:
    """A request as it arrived."""

    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def json(self) -> JSON:
        body: JSON = orjson.loads(self.body)
        return body

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


ASIDES = frozenset({"/props", "/api/v0/models", "/api/show", "/api/ps"})
"""What Toolway may ask about a model at any time; a server that does not know it answers 404."""


@dataclass
class ScriptedUpstream:
    """An ASGI app: its n-th request gets the n-th reply, the last one again and again.

    With `answer` set, that function makes the reply from the request's body.
    """

    replies: list[Reply]
    answer: Callable[[JSON], Reply] | None = None
    before: Callable[[], Awaitable[None]] | None = None
    """Awaited when a request has come, before anything is answered."""
    models: Reply | None = None
    """The answer to GET /v1/models; it is then no reply among the others, and such a request is not in `seen`."""
    asides: dict[str, Reply] = field(default_factory=dict)
    """The answers to what Toolway asks about the models, by path; 404 where there is none."""
    seen: list[Seen] = field(default_factory=list)
    departures: Departures = field(default_factory=Departures)
    """Paths of requests whose client left before the answer was whole."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        if (
            scope["path"] in ASIDES
            or is_toolways_own(scope)
            or (self.models and scope["path"] == "/v1/models")
        ):
            models = self.models if scope["path"] == "/v1/models" else None
            await _write(models or self.asides.get(scope["path"]) or Reply(status=404), send)
            return
        reply = self._reply(body)
        self.seen.append(
            Seen(scope["method"], scope["raw_path"], scope["query_string"], list(scope["headers"]), body)
        )
        if reply.reset:
            send.__self__.transport.abort()
            return
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                if not send.__self__.response_complete:
                    self.departures.note(scope["path"])
                group.cancel_scope.cancel()

            group.start_soon(watch)
            if self.before:
                await self.before()
            await _write(reply, send)
            group.cancel_scope.cancel()
        if reply.cut:
            raise ConnectionAbortedError("as the test wants it")

    def _reply(self, body: bytes) -> Reply:
        if self.answer:
            return self.answer(orjson.loads(body))
        return self.replies[min(len(self.seen), len(self.replies) - 1)]


def is_toolways_own(scope: Any) -> bool:
    """Whether Toolway asks for itself what this server is: such a request is in nobody's script."""
    agent = next((value for name, value in scope["headers"] if name == b"user-agent"), b"")
    return scope["method"] == "GET" and agent.startswith(b"toolway/")


async def _write(reply: Reply, send: Any) -> None:
    await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers)})
    for part in reply.parts:
        if callable(part):
            await part()
        else:
            await send({"type": "http.response.body", "body": part, "more_body": True})
    if not reply.cut:
        await send({"type": "http.response.body", "body": b""})


def sse(*payloads: JSON | bytes, done: bool = True) -> Reply:
    """A stream of these chunks, `[DONE]` behind them."""
    parts = [b"data: " + (p if isinstance(p, bytes) else orjson.dumps(p)) + b"\n\n" for p in payloads]
    return Reply(parts=[*parts, *([b"data: [DONE]\n\n"] if done else [])])


def whole(message: JSON, finish: str = "stop", **more: Any) -> Reply:
    """A whole answer with this message."""
    return json_reply(
        {
            "id": "chatcmpl-w",
            "object": "chat.completion",
            "created": 1,
            "model": "mock",
            "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}],
            **more,
        }
    )


def json_reply(body: Any, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Reply:
    """Any JSON answer."""
    return Reply([orjson.dumps(body)], status, [(b"content-type", b"application/json"), *headers])


OUT_OF_MEMORY = json_reply({"error": {"message": "out of memory"}}, 500)
"""What a model server says that cannot go on."""


def chunk(finish: str | None = None, id: str = "chatcmpl-s", **delta: Any) -> JSON:
    """A chunk as OpenAI writes it."""
    return {
        "id": id,
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "mock",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def tool_call(
    name: str = "get_weather", arguments: str = '{"city":"Paris"}', id: str = "call_1", index: int = 0
) -> JSON:
    """A whole tool call as it stands in a delta."""
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def text_stream(*texts: str, usage: JSON | None = None) -> Reply:
    """A plain streamed answer."""
    last = [{**chunk(), "choices": [], "usage": usage}] if usage else []
    return sse(
        chunk(role="assistant", content=""), *(chunk(content=t) for t in texts), chunk(finish="stop"), *last
    )


def call_stream(*calls: JSON, usage: JSON | None = None) -> Reply:
    """A streamed turn that makes these calls."""
    last = [{**chunk(), "choices": [], "usage": usage}] if usage else []
    first = chunk(role="assistant", content=None)
    return sse(first, *(chunk(tool_calls=[c]) for c in calls), chunk(finish="tool_calls"), *last)
