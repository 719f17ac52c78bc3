"""POST /v1/messages, streamed or whole, and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from toolway.api.answers import answer_errors, answer_stream, answer_whole, start_stream
from toolway.api.messages.event_writer import PING, MessageWriter
from toolway.api.messages.request import read_request
from toolway.api.messages.request_reader import MessageJob, RequestReader
from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    Chunks,
    Emit,
    Event,
    HeadArrived,
    Outcome,
    RoundBegan,
)
from toolway.dialects import MESSAGES
from toolway.engine.engine import Engine
from toolway.errors import InvalidRequest, MethodNotAllowed, NotFound, ToolwayError, UpstreamError
from toolway.server.asgi import EventStreamResponse, parse_object, read_body, send_json
from toolway.server.cancellation import cancel_on_disconnect, error_at_stop
from toolway.server.envelopes import request_id
from toolway.types import JSON, Header
from toolway.upstream.client import Upstream
from toolway.upstream.model_call import ModelCallFactory, streamed_model_call, unstreamed_model_call
from toolway.upstream.refusals import is_overflow, is_refusal
from toolway.wire.lenient_json import dumps, harmless
from toolway.wire.token_estimate import estimate_tokens

ROOT = MESSAGES.path


class Messages:
    """The API as an ASGI app: everything at and below /v1/messages."""

    def __init__(self, engine: Engine) -> None:
        self._settings = engine.settings
        self._reader = RequestReader(engine)
        self._counter = TokenCounter(engine.upstream)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Errors go out in Anthropic's envelope."""
        await answer_errors(scope, send, self._respond(scope, receive, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) == ("POST", f"{ROOT}/count_tokens"):
            await self._count(scope, receive, send)
        elif (method, path) == ("POST", ROOT):
            await self._create(scope, receive, send)
        elif path == f"{ROOT}/count_tokens":
            raise MethodNotAllowed(method, path, ["POST"])
        else:
            raise NotFound(f"There is no {method} {path[:200]} here; POST {ROOT} creates a message.")

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = parse_object(await read_body(scope, receive, self._settings.server.max_body_bytes))
        request = read_request(body)
        # The same request, streamed or not: Claude Code repeats a stream that broke as a whole answer.
        raw = dumps({name: value for name, value in body.items() if name != "stream"})
        async with self._reader.open(scope, request) as job:
            size = len(raw) - job.media.chars
            message = _MessageAnswer(job, raw, estimate=max(1, estimate_tokens(size)))
            if request.stream:
                await self._stream(scope, receive, send, message)
            else:
                headers = (_request_id(),)
                await answer_whole(
                    scope,
                    receive,
                    send,
                    conversation=job.conversation,
                    produce=message.whole,
                    headers=headers,
                )

    async def _stream(self, scope: Scope, receive: Receive, send: Send, message: _MessageAnswer) -> None:
        await answer_stream(
            scope,
            receive,
            send,
            conversation=message.job.conversation,
            produce=message.events,
            fail=message.fail,
            keep_alive=self._settings.server.keepalive_interval,
            pulse=PING,
        )

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = parse_object(await read_body(scope, receive, self._settings.server.max_body_bytes))
        request = read_request({**body, "stream": False}, counts_only=True)
        async with self._reader.open(scope, request) as job:

            async def answer() -> None:
                with error_at_stop(scope):
                    count = await self._counter.count(job)
                await send_json(send, 200, {"input_tokens": count}, [_request_id()])

            await cancel_on_disconnect(scope, receive, answer)


def _request_id() -> Header:
    return b"request-id", request_id().encode()


class _MessageAnswer:
    """One message, told to its client as it is made."""

    def __init__(self, job: MessageJob, raw: bytes, *, estimate: int) -> None:
        self.job = job
        self._raw = raw
        request = job.request
        self._writer = MessageWriter(
            request.model,
            input_tokens=estimate,
            thinking=request.thinking,
            shown=frozenset(entry["server_label"] for entry in request.mcp),
            searched=job.searched,
            searches=request.searches if job.searched else (),
            stop_sequences=frozenset(request.stop_sequences),
            listings=[harmless(listing) for listing in job.listings],
        )

    async def whole(self) -> JSON:
        """The message as one object."""

        async def deliver(event: Event) -> None:
            self._events_of(event)

        self._writer.ended(await self._run(unstreamed_model_call, deliver))
        return self._writer.message

    async def events(self, stream: EventStreamResponse) -> bytes:
        """Write the message as events; the 200 goes out when the model server accepted round 1."""

        async def deliver(event: Event) -> None:
            if type(event) is Chunks:
                await stream.write(self._writer.chunks(event.items))
                return
            await start_stream(stream, event, (_request_id(),))
            await stream.write(self._events_of(event))

        return self._writer.ended(await self._run(streamed_model_call, deliver))

    async def fail(self, error: ToolwayError) -> bytes:
        """The end of a stream that broke."""
        return self._writer.failed(error)

    def _events_of(self, event: Event) -> bytes:
        writer = self._writer
        match event:
            case Chunks(items=items):
                return writer.chunks(items)
            case HeadArrived() if not writer.started:
                return writer.began() + writer.rounds_resumed(self.job.conversation.events.rounds)
            case RoundBegan() if writer.started:
                return writer.turn_ended()
            case CallBegan(call=call, tool=tool):
                return writer.call_began(call, tool)
            case CallEnded(call=call, tool=tool, result=result):
                return writer.call_ended(call, tool, result)
        return b""

    async def _run(self, factory: ModelCallFactory, deliver: Emit) -> Outcome:
        """Run the conversation. Tells of documents where the model server takes none."""
        raw = None if self.job.request.mcp else self._raw
        try:
            return await self.job.conversation.run(factory, deliver, raw=raw)
        except UpstreamError as error:
            if self.job.media.has_documents and is_refusal(error) and not is_overflow(error):
                raise InvalidRequest(
                    f"{error.message} The request holds a document as a file, which this model server may not take: "
                    "send its text instead."
                ) from error
            raise


IMAGE_TOKENS = 1000
"""What an image is taken for."""

_MAX_BYTES = 16 * 2**20


class TokenCounter:
    """Counts at one model server, and remembers which of its ways it has."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._ways: list[Callable[[MessageJob, JSON], Awaitable[int | None]]] = [
            self._by_template,
            self._by_messages,
        ]

    async def count(self, job: MessageJob) -> int:
        """The tokens of a request's input, our tools included."""
        conversation = job.conversation
        body = conversation.tools.put_into(conversation.chat).body()
        for way in list(self._ways):
            count = await way(job, body)
            if count is not None:
                self._ways = [way]
                return count
        return self._estimated(job, body)

    async def _by_template(self, job: MessageJob, body: JSON) -> int | None:
        """llama.cpp: the prompt as its template writes it, then that text in tokens."""
        asked: JSON = {name: body[name] for name in ("messages", "tools", "tool_choice") if name in body}
        prompt = (await self._post(job, "/apply-template", asked)).get("prompt")
        if not isinstance(prompt, str):
            return None
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        tokens = (await self._post(job, "/tokenize", asked)).get("tokens")
        return len(tokens) if isinstance(tokens, list) and tokens else None

    async def _by_messages(self, job: MessageJob, body: JSON) -> int | None:
        """vLLM: the messages in tokens."""
        asked: JSON = {name: body[name] for name in ("model", "messages", "tools") if name in body}
        count = (await self._post(job, "/tokenize", asked)).get("count")
        return count if type(count) is int and count > 0 else None

    async def _post(self, job: MessageJob, path: str, body: JSON) -> JSON:
        headers = job.conversation.headers
        try:
            async with self._upstream.request(
                "POST", path, headers=headers, body=dumps(body), root=True
            ) as answer:
                parsed: Any = orjson.loads(await answer.read(_MAX_BYTES)) if answer.is_success else {}
        except (UpstreamError, orjson.JSONDecodeError):
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @staticmethod
    def _estimated(job: MessageJob, body: JSON) -> int:
        counted = {name: body[name] for name in ("messages", "tools") if name in body}
        text = len(dumps(counted)) - job.media.chars
        return max(1, estimate_tokens(text) + job.media.count * IMAGE_TOKENS)
