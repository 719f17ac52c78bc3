"""POST /v1/chat/completions: OpenAI's chat completions, with our tools in them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import anyio
import orjson
from starlette.types import Receive, Scope, Send

from toolway import mixed, replay
from toolway.attempt import Attempt
from toolway.auth import CALLER, CREDENTIALS, upstream_headers
from toolway.backend import Backend
from toolway.calls import call_object
from toolway.catalog import Catalog, Snapshot
from toolway.config import Settings
from toolway.content import Budget
from toolway.deltas import SPOKEN, joined
from toolway.departure import while_client_listens
from toolway.envelope import Envelope, failure
from toolway.errors import InvalidRequest, ToolwayError, UpstreamError
from toolway.governor import Bounds, Governor
from toolway.live import Live, stream_live
from toolway.loop import CallBegan, Limits, Outcome, RoundBegan, run_tool_loop
from toolway.modelinfo import ModelInfos
from toolway.observe import Conversation
from toolway.offer import Offer, named_tool
from toolway.passthrough import relay
from toolway.progress import shown
from toolway.quarantine import careful_turn
from toolway.request import ClientGone, parse_object, read_body
from toolway.respond import JSON_TYPE, Header, relayed, send_error, send_json
from toolway.results import Results, Rules
from toolway.spoken import listening_turn
from toolway.stores import Store
from toolway.turn import Chunks, HeadArrived, Turn, streamed_turn, whole_turn
from toolway.types import JSON, Emit
from toolway.upstream import Upstream
from toolway.wishes import bounds_of, read_wishes

log = logging.getLogger("toolway.chat")

DO_NOT_RETRY: Header = (b"x-should-retry", b"false")
"""The OpenAI SDKs repeat a 5xx twice; after a tool ran that would run its side effects again."""

STARTUP_WAIT = 2.0
"""Seconds after the start in which a request waits for tool servers that were not tried yet."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    raw: bytes
    body: JSON
    offer: Offer
    results: Results
    bounds: Bounds
    headers: Sequence[Header]
    owner: str
    conversation: Conversation

    @property
    def wants_usage(self) -> bool:
        options = self.body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))


class ChatCompletions:
    """The endpoint as an ASGI app."""

    def __init__(
        self,
        upstream: Upstream,
        catalog: Catalog,
        store: Store,
        settings: Settings,
        backend: Backend,
    ) -> None:
        self._upstream = upstream
        self._backend = backend
        self._catalog = catalog
        self._store = store
        self._settings = settings
        self._bounds = bounds_of(settings)
        self._infos = ModelInfos(upstream)
        self._limits = Limits(tool_timeout=settings.tool_timeout, relays_progress=settings.progress != "off")
        self._rules = Rules(
            most=Budget(result=settings.max_result_chars, round=settings.max_round_chars),
            keeps=settings.read_more,
            sees={"on": True, "off": False}.get(settings.vision),
            max_image_bytes=settings.max_image_bytes,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, streamed or whole. Errors go out in OpenAI's envelope."""
        try:
            raw = await read_body(scope, receive, self._settings.max_body_bytes)
            body = _checked(parse_object(raw))
            await self._catalog.settled(STARTUP_WAIT)
            await self._backend.settled(STARTUP_WAIT)
            with self._catalog.use() as snapshot:
                request = await self._request(scope, raw, body, snapshot)
                await self._serve(scope, receive, send, request)
        except InvalidRequest as error:
            await send_error(send, error)
        except ClientGone:
            return

    async def _request(self, scope: Scope, raw: bytes, sent: JSON, snapshot: Snapshot) -> _Request:
        headers = upstream_headers(scope, self._settings)
        wishes = read_wishes(
            sent,
            headers,
            bounds=self._bounds,
            profiles=self._settings.profiles,
            servers=(source.label for source in snapshot.sources),
        )
        headers, body, owner = [*wishes.headers, JSON_TYPE], wishes.body, _owner(scope)
        ask = partial(self._infos.get, body.get("model"), headers)
        # Only a choice of one tool is worth the question before the first round.
        enforce = bool(named_tool(body.get("tool_choice"))) and (await ask()).ignores_choice
        offer = Offer(body, self._backend.fit(snapshot), wishes.selection, enforce_choice=enforce)
        return _Request(
            raw=raw if body is sent else orjson.dumps(body),
            body=body,
            offer=offer,
            results=Results(rules=self._rules, store=self._store, owner=owner, ask=ask),
            bounds=wishes.bounds,
            headers=headers,
            owner=owner,
            conversation=Conversation(body, tools=len(offer.tools)),
        )

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request: _Request) -> None:
        if request.body.get("n") not in (None, 1):
            _refuse_many(request.offer)
            await while_client_listens(scope, receive, lambda: self._relay(send, request))
        elif request.body.get("stream"):
            await stream_live(
                scope,
                receive,
                send,
                lambda live: self._stream(live, request),
                keep_alive=self._settings.keepalive_interval,
            )
        else:
            await while_client_listens(scope, receive, lambda: self._answer(send, request))

    async def _stream(self, live: Live, request: _Request) -> None:
        """The answer as server-sent events; the 200 goes out when the model server accepted round 1."""
        envelope = Envelope(request.body.get("model"))

        async def emit(event: Any) -> None:
            if type(event) is Chunks:
                await live.write(envelope.write(event.items))
                return
            if type(event) is HeadArrived and not live.started:
                await live.start(relayed(event.headers))
            request.conversation.note(event)
            if chunk := shown(event, self._settings.progress):
                await live.write(envelope.write([(chunk, None)]))

        try:
            outcome = await self._run(request, streamed_turn(self._upstream, request.headers), emit)
        except Exception as raised:
            error = _known(raised)
            request.conversation.failed(error)
            await (live.end(failure(error)) if live.started else live.refuse(error))
            return
        usage = outcome.usage if request.wants_usage else None
        await live.end(envelope.end(outcome.message, usage))

    async def _answer(self, send: Send, request: _Request) -> None:
        """The answer as one JSON object."""
        attempt = Attempt(self._store, request.owner, request.raw)
        headers: list[Header] = []
        tools_ran = False

        async def emit(event: Any) -> None:
            nonlocal headers, tools_ran
            if type(event) is HeadArrived:
                headers = headers or relayed(event.headers)
            elif type(event) is not Chunks:
                tools_ran = tools_ran or type(event) is CallBegan
                attempt.rounds = event.between if type(event) is RoundBegan else attempt.rounds
                request.conversation.note(event)

        try:
            turn = whole_turn(self._upstream, request.headers)
            async with attempt:
                outcome = await self._run(request, turn, emit, attempt.rounds)
        except Exception as raised:
            error = _known(raised)
            request.conversation.failed(error)
            if tools_ran:
                status = 502 if isinstance(error, UpstreamError) else 500
                await send_json(send, status, error.envelope(), [DO_NOT_RETRY])
            else:
                await send_error(send, error)
            return
        await send_json(send, 200, _whole(outcome), headers)

    async def _run(self, request: _Request, turn: Turn, emit: Emit, resumed: Sequence[JSON] = ()) -> Outcome:
        sent = request.body["messages"]
        messages = await self._put_back(request, sent)
        if resumed:
            request.results.adopt(resumed, sent)
        try:
            outcome = await run_tool_loop(
                {**request.body, "messages": messages},
                turn=self._careful(turn, request),
                offer=request.offer,
                governor=Governor(request.bounds),
                results=request.results,
                limits=self._limits,
                emit=emit,
                resumed=resumed,
            )
        except anyio.get_cancelled_exc_class():
            request.conversation.left()
            raise
        await self._keep(request, sent, outcome)
        request.conversation.ended(outcome)
        return outcome

    def _careful(self, turn: Turn, request: _Request) -> Turn:
        probe = whole_turn(self._upstream, request.headers)
        turn = careful_turn(turn, offer=request.offer, backend=self._backend, probe=probe)
        return listening_turn(turn, offer=request.offer) if self._settings.text_tool_calls else turn

    async def _put_back(self, request: _Request, sent: list[Any]) -> list[Any]:
        """The client's messages, with what it never saw of earlier rounds in its places."""
        messages = sent
        if self._settings.replay:
            messages = await replay.recall(self._store, request.owner, messages)
        messages = await mixed.restore(self._store, request.owner, messages)
        if len(messages) > len(sent):
            request.results.adopt(messages, sent)
        return messages

    async def _keep(self, request: _Request, sent: list[Any], outcome: Outcome) -> None:
        """What the client does not see of this answer, for when it comes back."""
        if outcome.held:
            calls = outcome.message.tool_calls
            await mixed.hold(self._store, request.owner, calls, outcome.held, outcome.between)
        elif self._settings.replay:
            await replay.remember(self._store, request.owner, sent, outcome)

    async def _relay(self, send: Send, request: _Request) -> None:
        """Several answers to one request (`n`), which only go without tools of ours: untouched."""
        started = False
        try:
            async with self._upstream.request(
                "POST", "/chat/completions", headers=request.headers, body=request.raw
            ) as answer:
                started = True
                await relay(answer, send)
        except UpstreamError as error:
            if not started:  # else the missing end tells the client
                await send_error(send, error)


def _checked(body: JSON) -> JSON:
    """The fields that Toolway itself acts on; all others are the model server's to judge."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message.", param="messages")
    if body.get("stream") not in (None, True, False):
        raise InvalidRequest("stream must be true or false.", param="stream")
    for name in ("tools", "functions"):
        if not isinstance(body.get(name), list | None):
            raise InvalidRequest(f"{name} must be a list.", param=name)
    return body


def _refuse_many(offer: Offer) -> None:
    if offer.tools:
        raise InvalidRequest(
            "n must be 1 here: Toolway runs tools for this request, and several answers cannot share their "
            'results. Send n=1, or tool_choice="none".',
            param="n",
        )


def _whole(outcome: Outcome) -> JSON:
    """The last round's answer with the text of all rounds in it, our calls gone and usage summed."""
    frame = outcome.message.frame
    choice = frame["choices"][0]
    message = {**choice["message"], **outcome.message.said}
    for member in SPOKEN:
        pieces = [said.get(member) for said in (*outcome.earlier, message)]
        if said := [piece for piece in pieces if piece and isinstance(piece, str | list)]:
            message[member] = joined(said)
    if message.get("tool_calls"):
        message.pop("function_call", None)  # llama-cpp-python says each call twice
        message["tool_calls"] = [call_object(call) for call in outcome.message.tool_calls]
        if not message["tool_calls"]:
            del message["tool_calls"]
    choice = {**choice, "index": 0, "message": message, "finish_reason": outcome.message.finish_reason}
    return {**frame, "choices": [choice], **({"usage": outcome.usage} if outcome.usage else {})}


def _known(error: Exception) -> ToolwayError:
    """The error to show: ours as it is; a bug is logged and shown without its details."""
    if isinstance(error, ToolwayError):
        return error
    log.error("a bug in Toolway", exc_info=error)
    return ToolwayError("Toolway itself failed at this request; its log says why.")


def _owner(scope: Scope) -> str:
    """Whose conversations these are: a digest of the credentials."""
    credentials = (value for name, value in scope["headers"] if name in CREDENTIALS)
    return _digest(scope.get(CALLER, ""), *credentials)


@lru_cache(maxsize=1024)
def _digest(caller: str, *credentials: bytes) -> str:
    return hashlib.sha256(b"\0".join([caller.encode(), *credentials])).hexdigest()
