"""The fast lane's end at the HTTP protocol: chat completions that never become ASGI, or only from their first call on.

`server/lane_protocol.py` offers it whole requests, `engine/fast_lane.py` decides which of them it takes, and asks.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Scope

from toolway.api.chat.chunks import ChunkWriter
from toolway.api.chat.routes import ChatHandover, check_body, wants_usage, whole_answer
from toolway.conversation.events import Chunks
from toolway.conversation.message import Message
from toolway.dialects import CHAT
from toolway.engine.engine import Engine
from toolway.engine.lane_exchange import ExchangeHandover, LaneCaller, LaneRequest, ModelExchange
from toolway.errors import InvalidRequest
from toolway.server.admission import may_skip_admission
from toolway.server.asgi import STREAM_HEADERS, parse_object, relayed
from toolway.server.auth import AuthenticatedHead, Authenticator
from toolway.server.caller import caller_of
from toolway.server.lane_protocol import HttpResponder, header_lines
from toolway.types import JSON, JSON_TYPE, record
from toolway.upstream.client import AnswerHead
from toolway.wire.lenient_json import dumps


@record
class ChatSender:
    """Who sends chat completions with one head: as authentication sees it, and as the lane does."""

    head: AuthenticatedHead
    lane_caller: LaneCaller


class ChatLane:
    """Answers of chat completions, for all whom nothing in front of the route would treat in a way of its own."""

    path = CHAT.path

    def __init__(
        self,
        engine: Engine,
        authenticator: Authenticator,
        app: ASGIApp,
        count: Callable[[], None] | None = None,
        counted: ASGIApp | None = None,
    ) -> None:
        """`app` is the route of those that are not answered here.

        Where requests are counted, `count` is called for each whose answer begins here, and `counted` is the route of
        all others.
        """
        self._app, self._counted_app = app, counted or app
        self._lane = engine.fast_lane
        self._upstream = engine.settings.upstream
        self.max_bytes = engine.settings.server.max_body_bytes
        self._authenticator = authenticator
        self._count = count

    def find_sender(self, scope: Scope) -> ChatSender | None:
        """Who sends requests with this head, if authentication and admission do nothing but let them pass."""
        head = self._authenticator.authenticate_head(scope)
        if head is None or not may_skip_admission(head.scope):
            return None
        lane_caller = self._lane.prepare_caller(caller_of(head.scope, self._upstream))
        return None if lane_caller is None else ChatSender(head=head, lane_caller=lane_caller)

    def begin(self, sender: ChatSender, raw: bytes, responder: HttpResponder) -> ModelExchange | JSON | None:
        """Ask the model server, if the lane is for this request; errors are told by the ordinary way."""
        if len(raw) > self.max_bytes or not self._authenticator.is_still_valid(sender.head):
            return None
        try:
            body = check_body(parse_object(raw))
        except InvalidRequest:
            return None
        request = self._lane.request_for(body, raw, sender.lane_caller)
        if request is None or (started := self._lane.send(request)) is None:
            return body
        # It is on its way by now: what follows costs a client who is alone no time.
        return self._lane.follow(request, started, _ChatResponder(responder, request, raw, self._count))

    def route(self, sender: ChatSender, *, begun: bool) -> tuple[ASGIApp, Scope]:
        """As `Lane`."""
        return self._app if begun else self._counted_app, sender.head.scope


@dataclass(slots=True)
class _ChatResponder:
    """The chat side of an answer: makes a message a chat completion, as JSON or as the chunks of a stream."""

    http: HttpResponder
    request: LaneRequest
    raw: bytes
    count: Callable[[], None] | None
    writer: ChunkWriter | None = None

    @property
    def is_blocked(self) -> bool:
        return self.http.is_blocked

    def answer(self, message: Message, head: AnswerHead) -> None:
        body = dumps(whole_answer(message, message.usage))
        if (lines := head.relayed) is None:
            lines = head.relayed = header_lines([JSON_TYPE, *relayed(head.headers)])
        self._count_answer()
        self.http.answer(lines, body)

    def start(self, head: AnswerHead) -> None:
        self._count_answer()
        self.writer = ChunkWriter(self.request.chat.options.get("model"))
        self.http.start(header_lines([*STREAM_HEADERS, *relayed(head.headers)]))

    def write(self, chunks: Chunks) -> None:
        assert self.writer  # noqa: S101 - it was started
        self.http.write(self.writer.write(chunks.items))

    def end(self, message: Message) -> None:
        assert self.writer  # noqa: S101
        usage = message.usage if wants_usage(self.request.chat) else None
        self.http.end(self.writer.end(message, usage))

    def take_over(self, handover: ExchangeHandover) -> None:
        caller = self.request.caller
        self.http.take_over(ChatHandover(handover=handover, raw=self.raw, caller=caller, writer=self.writer))

    def run_detached(self, work: Coroutine[Any, Any, None]) -> None:
        self.http.run_detached(work)

    def _count_answer(self) -> None:
        if self.count is not None:
            self.count()
