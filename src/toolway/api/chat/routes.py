"""POST /v1/chat/completions: OpenAI's chat completions, with our tools in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from toolway.api.chat.chunks import Envelope, failure
from toolway.api.chat.progress import shown
from toolway.api.passthrough import relay
from toolway.conversation.events import CallBegan, Chunks, HeadArrived, Outcome
from toolway.conversation.message import SPOKEN, joined
from toolway.conversation.tool_calls import call_object
from toolway.engine.request_tools import Offer
from toolway.engine.runner import Job, Runner, known, owner_of
from toolway.errors import InvalidRequest, UpstreamError
from toolway.server.disconnect import while_client_listens
from toolway.server.json_response import Header, relayed, send_error, send_failure, send_json
from toolway.server.request_body import ClientGone, parse_object, read_body
from toolway.server.sse_response import Live, stream_live
from toolway.types import JSON
from toolway.upstream.model_call import streamed_turn, whole_turn


class ChatCompletions:
    """The endpoint as an ASGI app."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._settings = runner.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, streamed or whole. Errors go out in OpenAI's envelope."""
        try:
            raw = await read_body(scope, receive, self._settings.server.max_body_bytes)
            body = _checked(parse_object(raw))
            await self._runner.settled()
            with self._runner.catalog.use() as snapshot:
                wishes = self._runner.wishes(scope, body, snapshot)
                job = await self._runner.prepare(wishes, snapshot, owner_of(scope))
                if body.get("n") in (None, 1):
                    await self._serve(scope, receive, send, job, raw)
                else:
                    _refuse_many(job.offer)
                    raw = raw if job.body is body else orjson.dumps(job.body)
                    await while_client_listens(scope, receive, lambda: self._relay(send, job, raw))
        except InvalidRequest as error:
            await send_error(send, error)
        except ClientGone:
            return

    async def _serve(self, scope: Scope, receive: Receive, send: Send, job: Job, raw: bytes) -> None:
        if job.body.get("stream"):
            await stream_live(
                scope,
                receive,
                send,
                lambda live: self._stream(live, job),
                keep_alive=self._settings.server.keepalive_interval,
            )
        else:
            await while_client_listens(scope, receive, lambda: self._answer(send, job, raw))

    async def _stream(self, live: Live, job: Job) -> None:
        """The answer as server-sent events; the 200 goes out when the model server accepted round 1."""
        envelope = Envelope(job.body.get("model"))

        async def emit(event: Any) -> None:
            if type(event) is Chunks:
                await live.write(envelope.write(event.items))
                return
            if type(event) is HeadArrived and not live.started:
                await live.start(relayed(event.headers))
            job.conversation.note(event)
            if chunk := shown(event, self._settings.loop.progress):
                await live.write(envelope.write([(chunk, None)]))

        try:
            outcome = await self._runner.run(job, emit, turn=streamed_turn)
        except Exception as raised:
            error = known(raised)
            job.conversation.failed(error)
            await (live.end(failure(error)) if live.started else live.refuse(error))
            return
        await live.end(envelope.end(outcome.message, outcome.usage if _wants_usage(job.body) else None))

    async def _answer(self, send: Send, job: Job, raw: bytes) -> None:
        """The answer as one JSON object."""
        headers: list[Header] = []
        tools_ran = False

        async def emit(event: Any) -> None:
            nonlocal headers, tools_ran
            if type(event) is HeadArrived:
                headers = headers or relayed(event.headers)
            elif type(event) is not Chunks:
                tools_ran = tools_ran or type(event) is CallBegan
                job.conversation.note(event)

        try:
            outcome = await self._runner.run_again(job, emit, raw, turn=whole_turn)
        except Exception as raised:
            error = known(raised)
            job.conversation.failed(error)
            await send_failure(send, error, tools_ran=tools_ran)
            return
        await send_json(send, 200, _whole(outcome), headers)

    async def _relay(self, send: Send, job: Job, raw: bytes) -> None:
        """Several answers to one request (`n`), which only go without tools of ours: untouched."""
        started = False
        try:
            async with self._runner.upstream.request(
                "POST", "/chat/completions", headers=job.headers, body=raw
            ) as answer:
                started = True
                await relay(answer, send)
        except UpstreamError as error:
            if not started:  # else the missing end tells the client
                await send_error(send, error)


def _wants_usage(body: JSON) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


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
    if outcome.earlier:
        message |= _spoken((*outcome.earlier, message))
    if message.get("tool_calls"):
        message.pop("function_call", None)  # llama-cpp-python says each call twice
        message["tool_calls"] = [call_object(call) for call in outcome.message.tool_calls]
        if not message["tool_calls"]:
            del message["tool_calls"]
    choice = {**choice, "index": 0, "message": message, "finish_reason": outcome.message.finish_reason}
    return {**frame, "choices": [choice], **({"usage": outcome.usage} if outcome.usage else {})}


def _spoken(rounds: Sequence[JSON]) -> JSON:
    """What was said in all these messages, each kind of it in one piece."""
    found: JSON = {}
    for member in SPOKEN:
        pieces = [said.get(member) for said in rounds]
        if said := [piece for piece in pieces if piece and isinstance(piece, str | list)]:
            found[member] = joined(said)
    return found
