"""The fast lane's end at the HTTP protocol: chat completions that never become ASGI.

`server/lane.py` offers it whole requests, `engine/fast_lane.py` decides which of them it takes, and asks.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from toolway.api.chat.routes import check_body, whole_answer
from toolway.conversation.message import Message
from toolway.dialects import CHAT
from toolway.engine.engine import Engine
from toolway.engine.fast_lane import Handover, ModelExchange
from toolway.errors import InvalidRequest
from toolway.server.admission import passes_uncounted
from toolway.server.asgi import parse_object, relayed
from toolway.server.caller import caller_of
from toolway.server.door import Door, Entry
from toolway.server.lane import LaneClient
from toolway.types import JSON, JSON_TYPE, Caller, Header, record
from toolway.wire.lenient_json import dumps


@record
class Sender:
    """Who sends requests with one head."""

    entry: Entry
    caller: Caller


class ChatLane:
    """Whole answers of chat completions, for all whom nothing in front of the route would treat in a way of its own."""

    path = CHAT.path

    def __init__(self, engine: Engine, door: Door, count: Callable[[], None] | None = None) -> None:
        """`count` is called for each request that is answered here."""
        self._lane = engine.fast_lane
        self._upstream = engine.settings.upstream
        self.max_bytes = engine.settings.server.max_body_bytes
        self._door = door
        self._count = count

    def admit(self, scope: Scope) -> Sender | None:
        """Who sends requests with this head, if the door and the admission only let them pass."""
        entry = self._door.admit(scope)
        if entry is None or not passes_uncounted(entry.scope):
            return None
        return Sender(entry=entry, caller=caller_of(entry.scope, self._upstream))

    def begin(self, sender: Sender, raw: bytes, client: LaneClient) -> ModelExchange | JSON | None:
        """Ask the model server, if the lane is for this request; errors are told by the ordinary way."""
        if raw.find(b'"stream":true') >= 0 or raw.find(b'"stream": true') >= 0:
            return None  # before it is parsed, since it will be parsed again
        if len(raw) > self.max_bytes or not self._door.is_open_for(sender.entry):
            return None
        try:
            body = check_body(parse_object(raw))
        except InvalidRequest:
            return None
        request = self._lane.request_for(body, raw, sender.caller)
        exchange = self._lane.ask(request, _Client(client, self._count)) if request else None
        return exchange or body


@dataclass(slots=True)
class _Client:
    """The client of one request, to whom a message is the JSON of a chat completion."""

    http: LaneClient
    count: Callable[[], None] | None

    def answer(self, message: Message, headers: Sequence[Header]) -> None:
        body = dumps(whole_answer(message, message.usage))
        if self.count is not None:
            self.count()
        self.http.answer([JSON_TYPE, *relayed(headers)], body)

    def go_on(self, handover: Handover) -> None:
        self.http.go_on(handover)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.http.run(work)
