"""GET /v1/responses as a WebSocket: one response after the other over one connection."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import orjson
from starlette.types import Receive, Scope, Send

from toolway.api.responses.creation import ResponseCreator
from toolway.api.responses.items.response_object import Event
from toolway.api.responses.records import Record
from toolway.errors import InvalidRequest, to_public_error
from toolway.server.error_envelope import openai_envelope
from toolway.server.request_body import ClientGone, parse_object
from toolway.server.websocket import WebSocket, serve_websocket
from toolway.types import JSON
from toolway.upstream.model_call import streamed_turn


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
        last: Record | None = None
        async for text in socket:
            last = await socket.while_open(partial(self._respond, socket, scope, text.encode(), last))

    async def _respond(
        self, socket: WebSocket, scope: Scope, text: bytes, last: Record | None
    ) -> Record | None:
        """Make one response, or tell the client of an error; returns what can be gone on from next.

        That is the response. After an error it is `last`, but not if that was gone on from.
        """
        told: JSON = {}
        goes_on = False
        try:
            sent = parse_object(text)
            told = {"stream_id": sent["stream_id"]} if isinstance(sent.get("stream_id"), str) else {}
            goes_on = last is not None and last.resource["id"] == sent.get("previous_response_id")
            record = await self._make(socket, scope, _request(sent), last if goes_on else None, told)
        except Exception as raised:
            error = to_public_error(raised)
            event = {"type": "error", "status": error.status, **openai_envelope(error), **told}
            with suppress(ClientGone):
                await socket.send_text(orjson.dumps(event))
            record = None
        return record or (None if goes_on else last)

    async def _make(
        self, socket: WebSocket, scope: Scope, body: JSON, previous: Record | None, told: JSON
    ) -> Record | None:
        end = b"," + orjson.dumps(told)[1:] if told else b"}"

        async def tell(events: list[Event]) -> None:
            with suppress(ClientGone):  # `while_open` ends all of this
                for _, event in events:
                    await socket.send_text(event[:-1] + end)

        async with self._creator.reader.open(scope, body, previous) as draft:
            if body.get("generate") is False:
                return await self._creator.warm_up(draft, tell)
            await self._creator.claim(draft)
            try:
                return await self._creator.make(draft, streamed_turn, tell)
            except Exception as raised:
                if not draft.narrator.started:
                    raise draft.conversation.failed(raised) from raised
                await tell(await self._creator.fail(draft, raised))
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
