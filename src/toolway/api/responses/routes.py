"""The routes of the Responses API: POST and WebSocket /v1/responses, and what stands below it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from urllib.parse import parse_qs, unquote

from starlette.types import Receive, Scope, Send

from toolway.api.answers import answer_errors, answer_stream, answer_whole
from toolway.api.responses.background import Background, encoded
from toolway.api.responses.creation import ResponseCreator, compact, count_tokens
from toolway.api.responses.items.response_object import Event
from toolway.api.responses.request_reader import ResponseJob
from toolway.api.responses.stored_responses import StoredResponse, StoredResponses
from toolway.dialects import RESPONSES
from toolway.errors import InvalidRequest, MethodNotAllowed, NotFound, ToolwayError, to_public_error
from toolway.server.admission import request_slot
from toolway.server.asgi import ClientGone, EventStreamResponse, parse_object, read_body, send_json
from toolway.server.caller import caller_id
from toolway.server.cancellation import cancel_on_disconnect, error_at_stop
from toolway.server.envelopes import openai_envelope
from toolway.server.websocket import WebSocket, serve_websocket
from toolway.types import JSON
from toolway.upstream.model_call import streamed_model_call, unstreamed_model_call
from toolway.wire.lenient_json import dumps
from toolway.wire.sse import STREAM_END

ROOT = RESPONSES.path

JobRoute = Callable[[ResponseJob], Awaitable[JSON]]

_JOB_ROUTES: dict[tuple[str, str], JobRoute] = {
    ("POST", f"{ROOT}/input_tokens"): count_tokens,
    ("POST", f"{ROOT}/compact"): compact,
}


class Responses:
    """The API as an ASGI app: everything at and below /v1/responses."""

    def __init__(self, creator: ResponseCreator, background: Background) -> None:
        self._settings = creator.settings
        self._background = background
        self._creator = creator
        self._stored = StoredResponseRoutes(creator.records, background)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Errors go out in OpenAI's envelope."""
        await answer_errors(scope, send, self._respond(scope, receive, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["method"], scope["path"]
        if asked == ("POST", ROOT):
            await self._create(scope, receive, send)
        elif route := _JOB_ROUTES.get(asked):
            await self._answer_job(scope, receive, send, route)
        else:
            await self._stored(scope, receive, send)

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(scope, receive, self._settings.server.max_body_bytes)
        body = parse_object(raw)
        if body.get("background") is True:
            await self._background.create(self._creator, scope, receive, send, body)
            return
        async with self._creator.reader.open(scope, body) as job:
            await self._creator.claim(job)
            if job.request.stream:
                await self._stream(scope, receive, send, job)
            else:
                await self._answer(scope, receive, send, job, raw)

    async def _answer_job(self, scope: Scope, receive: Receive, send: Send, route: JobRoute) -> None:
        body = parse_object(await read_body(scope, receive, self._settings.server.max_body_bytes))
        whole = {key: value for key, value in body.items() if key not in ("stream", "background")}
        async with self._creator.reader.open(scope, whole) as job:

            async def answer() -> None:
                with error_at_stop(scope):
                    body = await route(job)
                await send_json(send, 200, body)

            await cancel_on_disconnect(scope, receive, answer)

    async def _stream(self, scope: Scope, receive: Receive, send: Send, job: ResponseJob) -> None:
        """The response as events; the 200 goes out when the model server accepted round 1, or a call begins."""

        async def produce(stream: EventStreamResponse) -> bytes:
            async def deliver(events: list[Event]) -> None:
                await stream.write(b"".join(map(encoded, events)))

            await self._creator.make(job, streamed_model_call, deliver, stream.start)
            return STREAM_END

        async def fail(error: ToolwayError) -> bytes:
            return b"".join(map(encoded, await self._creator.fail(job, error))) + STREAM_END

        keep_alive = self._settings.server.keepalive_interval
        await answer_stream(
            scope,
            receive,
            send,
            conversation=job.conversation,
            produce=produce,
            fail=fail,
            keep_alive=keep_alive,
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send, job: ResponseJob, raw: bytes) -> None:
        """The response as one JSON object."""

        async def deliver(_: list[Event]) -> None:
            pass

        async def produce() -> JSON:
            await self._creator.make(job, unstreamed_model_call, deliver, raw=raw)
            return job.writer.resource

        await answer_whole(scope, receive, send, conversation=job.conversation, produce=produce)


MAX_LIMIT = 100

_METHODS = {"": ("GET", "HEAD", "DELETE"), "cancel": ("POST",), "input_items": ("GET", "HEAD")}


class StoredResponseRoutes:
    """An ASGI app for the routes of one response."""

    def __init__(self, records: StoredResponses, background: Background) -> None:
        self._records = records
        self._background = background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises InvalidRequest."""
        identity, _, what = unquote(scope["path"]).removeprefix(f"{ROOT}/").partition("/")
        owner, query = caller_id(scope), _query(scope)
        match scope["method"], what:
            case "GET" | "HEAD", "":
                await self._get(scope, receive, send, owner, identity)
            case "DELETE", "":
                await self._background.delete(owner, identity)
                await send_json(send, 200, {"id": identity, "object": "response", "deleted": True})
            case "POST", "cancel":
                await send_json(send, 200, await self._background.cancel(owner, identity))
            case "GET" | "HEAD", "input_items":
                record = await self._records.get(owner, identity)
                await send_json(send, 200, _page(list(record.items), query))
            case method, "" | "cancel" | "input_items":
                raise MethodNotAllowed(method, scope["path"], _METHODS[what])
            case method, _:
                raise NotFound(f"There is no {method} {scope['path'][:200]} here.")

    async def _get(self, scope: Scope, receive: Receive, send: Send, owner: str, identity: str) -> None:
        query = _query(scope)
        if query.get("stream", "").lower() not in ("true", "1"):
            await send_json(send, 200, await self._background.current(owner, identity))
            return
        after = _number(query, "starting_after", -1)
        events = await self._background.events(owner, identity, after + 1)
        await self._background.stream(scope, receive, send, events)


def _page(items: list[JSON], query: Mapping[str, str]) -> JSON:
    """One page of a list, as OpenAI cuts it: newest first unless `order` is asc, `limit` of them behind `after`."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc.", param="order")
    limit = _number(query, "limit", 20)
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be a whole number from 1 to {MAX_LIMIT}.", param="limit")
    listed = items if order == "asc" else items[::-1]
    if after := query.get("after"):
        known = [item["id"] for item in listed]
        if after not in known:
            raise InvalidRequest(f"There is no item with the id {after[:100]!r} in this list.", param="after")
        listed = listed[known.index(after) + 1 :]
    page = listed[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(listed) > limit,
    }


def _query(scope: Scope) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidRequest(f"{name} must be a whole number from 0 on.", param=name)
    return int(text)


class Socket:
    """The endpoint as an ASGI app.

    Each message is a `response.create` with the fields of a request, each event a message. The last response of a
    connection can be gone on from even if it was not stored.
    """

    def __init__(self, creator: ResponseCreator) -> None:
        self._creator = creator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection until its client leaves."""
        await serve_websocket(scope, receive, send, self._creator.settings.server, partial(self._talk, scope))

    async def _talk(self, scope: Scope, socket: WebSocket) -> None:
        last: StoredResponse | None = None
        async for text in socket:
            last = await socket.while_open(partial(self._respond, socket, scope, text.encode(), last))

    async def _respond(
        self, socket: WebSocket, scope: Scope, text: bytes, last: StoredResponse | None
    ) -> StoredResponse | None:
        """Make one response, or tell the client of an error; returns what can be gone on from next.

        That is the response. After an error it is `last`, but not if that was gone on from.
        """
        stream_id: JSON = {}
        goes_on = False
        try:
            sent = parse_object(text)
            stream_id = {"stream_id": sent["stream_id"]} if isinstance(sent.get("stream_id"), str) else {}
            goes_on = last is not None and last.resource["id"] == sent.get("previous_response_id")
            async with request_slot(scope):
                record = await self._make(socket, scope, _request(sent), last if goes_on else None, stream_id)
        except Exception as raised:
            error = to_public_error(raised)
            event = {"type": "error", "status": error.status, **openai_envelope(error), **stream_id}
            with suppress(ClientGone):
                await socket.send_text(dumps(event))
            record = None
        return record or (None if goes_on else last)

    async def _make(
        self, socket: WebSocket, scope: Scope, body: JSON, previous: StoredResponse | None, more: JSON
    ) -> StoredResponse | None:
        end = b"," + dumps(more)[1:] if more else b"}"

        async def deliver(events: list[Event]) -> None:
            with suppress(ClientGone):  # `while_open` ends all of this
                for _, event in events:
                    await socket.send_text(event[:-1] + end)

        async with self._creator.reader.open(scope, body, previous) as job:
            if body.get("generate") is False:
                return await self._creator.warm_up(job, deliver)
            await self._creator.claim(job)
            try:
                return await self._creator.make(job, streamed_model_call, deliver)
            except Exception as raised:
                if not job.writer.started:
                    raise job.conversation.failed(raised) from raised
                await deliver(await self._creator.fail(job, job.conversation.failed(raised)))
                return None


def _request(sent: JSON) -> JSON:
    """The body of a request, from a message. Raises InvalidRequest."""
    if sent.get("type") != "response.create":
        raise InvalidRequest(
            f"Messages of the type {str(sent.get('type'))[:50]!r} are not served here; send response.create.",
            param="type",
        )
    if sent.get("background"):
        raise InvalidRequest("background does not go over a WebSocket; POST the request.", param="background")
    body = {key: value for key, value in sent.items() if key not in ("type", "stream_id", "background")}
    return {**body, "stream": True}
