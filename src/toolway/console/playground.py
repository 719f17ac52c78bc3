"""The playground: a chat with the model through Toolway, of which each call is seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from toolway.access.approvals import Approval
from toolway.console.approvals import approval_json
from toolway.console.context import ConsoleContext
from toolway.console.event_feed import progress_json
from toolway.console.routes import ConsoleRequest, Route
from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    CallProgressed,
    Chunks,
    Event,
    HeadArrived,
    RoundBegan,
)
from toolway.conversation.message import ChatRequest
from toolway.engine.conversation import ConversationRequest
from toolway.engine.engine import ToolsAtHand
from toolway.engine.request_options import RequestOptions
from toolway.errors import InvalidRequest, ToolwayError
from toolway.server.asgi import EventStreamResponse
from toolway.types import JSON, Caller
from toolway.upstream.client import credential
from toolway.upstream.model_call import streamed_model_call
from toolway.wire.lenient_json import dumps

OPTIONS = ("model", "messages", "temperature", "max_tokens", "tool_choice")
"""Members of a request that the page may send."""
MAX_NOTES = 2000
"""Characters at the end of a result in which notes of ours can be."""
_REASONING_FIELDS = ("reasoning_content", "reasoning")


class Playground:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext) -> None:
        self._engine = context.engine
        self._wait = context.settings.approvals.approval_ttl
        self._api_key = context.settings.upstream.api_key

    def routes(self) -> list[Route]:
        """The routes of the playground."""
        return [
            Route(method="POST", path="/chat", streamer=self._chat,
                  summary="Ask the model, with the tools: text, calls and results as server-sent events.",
                  body={"model": {"type": "string"}, "messages": {"type": "array"}}),
        ]  # fmt: skip

    async def _chat(self, request: ConsoleRequest, response: EventStreamResponse) -> None:
        body = {key: request.given[key] for key in OPTIONS if request.given.get(key) is not None}
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            raise InvalidRequest("messages must be a list of at least one message.", param="messages")
        chat = {**body, "stream": True, "stream_options": {"include_usage": True}}

        async def ask(approval: Approval) -> None:
            """Show it in the chat; the answer comes over the routes of the approvals."""
            await response.write(_event({"approval": approval_json(approval)}))

        def read(_: ToolsAtHand) -> ConversationRequest:
            return ConversationRequest(
                chat=ChatRequest.of(chat),
                options=RequestOptions(),
                approval_wait=self._wait,
                elicit=ask,
                shows_progress=True,
            )

        async def deliver(event: Event) -> None:
            if isinstance(event, HeadArrived) and not response.started:
                await response.start([])
            for value in _page_events(event):
                await response.write(_event(value))

        headers = [*credential(self._api_key), (b"user-agent", b"toolway-console")]
        async with self._engine.open(read, caller=Caller(id="console", headers=headers)) as conversation:
            try:
                outcome = await conversation.run(streamed_model_call, deliver)
            except Exception as raised:
                await _fail(response, conversation.failed(raised))
                return
            waiting = [call.name for call in outcome.pending_approvals]
            end = {"finish": outcome.message.finish_reason, "usage": outcome.usage, "waiting": waiting}
            await response.end(_event({"end": end}))


async def _fail(response: EventStreamResponse, error: ToolwayError) -> None:
    if not response.started:
        await response.start([])
    await response.end(_event({"error": error.message}))


def _page_events(event: Event) -> list[JSON]:
    """What the page hears of an event."""
    match event:
        case Chunks():
            return [{kind: text} for chunk, _ in event.items for kind, text in _texts_in(chunk)]
        case RoundBegan(hidden=hidden) if hidden:
            return [{"read": _read_by_model(hidden)}]
        case CallBegan(call=call, tool=tool):
            server = tool.server if tool else None
            began = {"id": call.id, "name": call.name, "arguments": call.arguments, "server": server}
            return [{"call": began}]
        case CallProgressed(call=call, progress=progress):
            return [{"progress": {"id": call.id, **progress_json(progress)}}]
        case CallEnded(call=call, result=result):
            images = [{"media_type": image.media_type, "data": image.data} for image in result.images]
            ended = {"id": call.id, "is_error": result.is_error, "text": result.text, "images": images}
            return [{"result": {**ended, "size": len(result.text), "seconds": event.seconds}}]
    return []


def _read_by_model(hidden: Sequence[JSON]) -> list[JSON]:
    """What the model reads of the results of the last round: the length of each, and its end, where notes stand."""
    results = []
    for message in takewhile(lambda one: one.get("role") != "assistant", reversed(hidden)):
        content = message.get("content")
        if message.get("role") == "tool" and isinstance(content, str):
            read = {"length": len(content), "content": content[-MAX_NOTES:]}
            results.append({"id": message.get("tool_call_id"), **read})
    return results


def _texts_in(chunk: Any) -> list[tuple[str, str]]:
    if isinstance(chunk, str):
        return [("text", chunk)]
    choices = chunk.get("choices")
    delta = (choices[0].get("delta") or {}) if choices else {}
    reasoning = next((delta[name] for name in _REASONING_FIELDS if isinstance(delta.get(name), str)), "")
    text = delta.get("content")
    return [
        (kind, part)
        for kind, part in (("thought", reasoning), ("text", text))
        if isinstance(part, str) and part
    ]


def _event(value: JSON) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"
