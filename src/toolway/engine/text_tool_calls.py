"""Tool calls that a model writes as text: they become calls, and the client never sees the markup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from toolway.conversation.events import Chunks, Emit, Event
from toolway.conversation.message import ChatRequest, Message
from toolway.conversation.text_call_parser import is_cut_call, may_become_calls, read_calls
from toolway.conversation.tool_calls import call_object
from toolway.engine.request_tools import RequestTools
from toolway.errors import UpstreamError
from toolway.types import JSON
from toolway.upstream.model_call import IsClients, ModelCall


def with_text_tool_calls(call_model: ModelCall, *, tools: RequestTools) -> ModelCall:
    """`call_model`, with the calls that its text consists of made real; any other text reaches the client as it comes.

    Text is held back only while it may still become calls of known tools, and only where tools are offered.
    """

    def is_known(name: str) -> bool:
        return name in tools.clients or tools.find(name) is not None

    async def ask(request: ChatRequest, emit: Emit, is_clients: IsClients) -> Message:
        if request.tools is None:
            return await call_model(request, emit, is_clients)
        held = _HeldText(emit, is_known)
        try:
            message = await call_model(request, held, is_clients)
        except UpstreamError:
            await held.release()
            raise
        content = message.fields.get("content")
        is_text = isinstance(content, str) and held.may_hold_calls and not message.tool_calls
        fields = {key: value for key, value in message.fields.items() if key != "content"}
        if is_text and message.cut_short and is_cut_call(str(content), is_known):
            frame = _with_calls(message, []) if _is_whole(message) else message.frame
            return replace(message, fields=fields, frame=frame)
        calls = read_calls(str(content), is_known) if is_text and not message.cut_short else ()
        if not calls:
            await held.release()
            return message
        own = [call_object(call) for call in calls if is_clients(call.name)]
        if own and not _is_whole(message):
            await emit(Chunks([(_chunk([{**call, "index": n} for n, call in enumerate(own)]), None)]))
        frame = _with_calls(message, own) if _is_whole(message) else message.frame
        return replace(message, fields=fields, tool_calls=calls, finish_reason="tool_calls", frame=frame)

    return ask


class _HeldText:
    """Keeps chunks with text back for as long as that text may become calls."""

    def __init__(self, emit: Emit, is_known: Callable[[str], bool]) -> None:
        self._emit = emit
        self._is_known = is_known
        self._text = ""
        self._held: list[tuple[JSON | str, bytes | None]] = []
        self.may_hold_calls = True

    async def __call__(self, event: Event) -> None:
        if type(event) is not Chunks or not self.may_hold_calls:
            await self._emit(event)
            return
        passed: list[tuple[JSON | str, bytes | None]] = []
        for item in event.items:
            text = _text_of(item[0])
            if text is None and not self._held:
                passed.append(item)
                continue
            self._held.append(item)
            if text:
                self._text += text
        if passed:
            await self._emit(Chunks(passed))
        if self._held and not may_become_calls(self._text, self._is_known):
            self.may_hold_calls = False
            await self.release()

    async def release(self) -> None:
        """Let everything go that was held."""
        held, self._held = self._held, []
        if held:
            await self._emit(Chunks(held))


def _text_of(chunk: JSON | str) -> str | None:
    """The text in a chunk; None when it has none, so that it says nothing about what the text becomes."""
    if isinstance(chunk, str):
        return chunk
    for choice in chunk.get("choices") or ():
        content = choice["delta"].get("content")
        if content and isinstance(content, str):
            return content
    return None


def _is_whole(message: Message) -> bool:
    return any("message" in choice for choice in message.frame.get("choices") or ())


def _with_calls(message: Message, own: list[JSON]) -> JSON:
    """The whole answer with the client's calls in place of the text."""
    choice = message.frame["choices"][0]
    fields = {**choice["message"], "content": None, **({"tool_calls": own} if own else {})}
    return {**message.frame, "choices": [{**choice, "message": fields}]}


def _chunk(calls: list[JSON]) -> JSON:
    return {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}
