"""POST /v1/responses and what stands below it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.types import Receive, Scope, Send

from toolway.api.responses.background import Background
from toolway.api.responses.compaction import compact, count_tokens
from toolway.api.responses.creation import ResponseCreator
from toolway.api.responses.event_log import encoded
from toolway.api.responses.items.response_object import Event
from toolway.api.responses.preparation import Draft
from toolway.api.responses.stored import Stored
from toolway.errors import NotFound, ToolwayError, to_public_error
from toolway.server.disconnect import cancel_on_disconnect
from toolway.server.json_response import relayed, send_error, send_failure, send_json
from toolway.server.request_body import ClientGone, parse_object, read_body
from toolway.server.sse_response import EventStreamResponse, stream_events
from toolway.types import JSON
from toolway.upstream.model_call import streamed_turn, unstreamed_turn
from toolway.wire.sse import STREAM_END

ROOT = "/v1/responses"

Aside = Callable[[Draft], Awaitable[JSON]]

_ASIDES: dict[tuple[str, str], Aside] = {
    ("POST", f"{ROOT}/input_tokens"): count_tokens,
    ("POST", f"{ROOT}/compact"): compact,
}


class Responses:
    """The API as an ASGI app: everything at and below /v1/responses."""

    def __init__(self, creator: ResponseCreator, background: Background) -> None:
        self._settings = creator.settings
        self._background = background
        self._creator = creator
        self._stored = Stored(creator.records, background)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Errors go out in OpenAI's envelope."""
        try:
            asked = scope["method"], scope["path"]
            if asked == ("POST", ROOT):
                await self._create(scope, receive, send)
            elif aside := _ASIDES.get(asked):
                await self._tell(scope, receive, send, aside)
            elif scope["path"] != ROOT:
                await self._stored(scope, receive, send)
            else:
                raise NotFound(f"There is no {scope['method']} {ROOT} here; POST creates a response.")
        except ToolwayError as error:
            await send_error(send, error)
        except ClientGone:
            return
        except Exception as raised:
            await send_error(send, to_public_error(raised))

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(scope, receive, self._settings.server.max_body_bytes)
        body = parse_object(raw)
        if body.get("background") is True:
            await self._background.create(self._creator, scope, receive, send, body)
            return
        async with self._creator.reader.open(scope, body) as draft:
            await self._creator.claim(draft)
            if draft.asked.stream:
                await stream_events(
                    scope,
                    receive,
                    send,
                    lambda stream: self._stream(stream, draft),
                    keep_alive=self._settings.server.keepalive_interval,
                )
            else:
                await cancel_on_disconnect(scope, receive, lambda: self._answer(send, draft, raw))

    async def _tell(self, scope: Scope, receive: Receive, send: Send, aside: Aside) -> None:
        body = parse_object(await read_body(scope, receive, self._settings.server.max_body_bytes))
        whole = {key: value for key, value in body.items() if key not in ("stream", "background")}
        async with self._creator.reader.open(scope, whole) as draft:

            async def answer() -> None:
                await send_json(send, 200, await aside(draft))

            await cancel_on_disconnect(scope, receive, answer)

    async def _stream(self, stream: EventStreamResponse, draft: Draft) -> None:
        """The response as events; the 200 goes out when the model server accepted round 1, or a call begins."""

        async def tell(events: list[Event]) -> None:
            await stream.write(b"".join(map(encoded, events)))

        try:
            await self._creator.make(draft, streamed_turn, tell, stream.start)
        except Exception as raised:
            if not stream.started:
                await stream.refuse(draft.conversation.failed(raised))
                return
            await tell(await self._creator.fail(draft, raised))
        await stream.end(STREAM_END)

    async def _answer(self, send: Send, draft: Draft, raw: bytes) -> None:
        """The response as one JSON object."""

        async def tell(_: list[Event]) -> None:
            pass

        try:
            await self._creator.make(draft, unstreamed_turn, tell, raw=raw)
        except Exception as raised:
            error = draft.conversation.failed(raised)
            await send_failure(send, error, tools_ran=draft.conversation.events.tools_ran)
            return
        await send_json(send, 200, draft.narrator.resource, relayed(draft.conversation.events.head or ()))
