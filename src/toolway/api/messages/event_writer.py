"""The Messages API's streaming events and the message itself, written from what happens in one conversation."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from toolway.api.deferred_tools import SERVER, DeferredTools
from toolway.api.fields import reasoning_in, text_in
from toolway.api.messages.content import sealed
from toolway.api.messages.request import Thinking
from toolway.conversation.call_ids import original_id
from toolway.conversation.chunk_template import TextRun
from toolway.conversation.events import Outcome
from toolway.conversation.message import Ending, cached_tokens, token_count, unfinished_answer
from toolway.conversation.tool_calls import read_arguments
from toolway.errors import ToolwayError
from toolway.server.envelopes import ANTHROPIC
from toolway.types import JSON, Tool, ToolCall, ToolResult
from toolway.wire.lenient_json import JsonText, dumps, dumps_text, fix_surrogates, harmless

Items = Iterable[tuple[JSON | str, bytes | None]] | TextRun

PING = b'event: ping\ndata: {"type": "ping"}\n\n'

_STOP_REASONS: dict[Ending, str] = {"length": "max_tokens", "content_filter": "refusal"}
_BLANK: Mapping[str, JSON] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
_DELTAS: Mapping[str, tuple[bytes, bytes]] = {
    "text": (b"text_delta", b"text"),
    "thinking": (b"thinking_delta", b"thinking"),
    "tool_use": (b"input_json_delta", b"partial_json"),
}
"""By the kind of a block: the type of its deltas, and the member that holds the text."""
_CALL_MEMBERS = frozenset({"index", "id", "type", "function", "custom"})


class MessageWriter:
    """Writes one message. Each method returns the events of what it was told, as bytes; `message` is all of it.

    The blocks of `listings` come first. One block is open at a time. Calls of the client that come at once are written
    one after the other. Of calls of ours there is no trace, but for those of the servers `shown`, which the request
    brought along.
    """

    def __init__(
        self,
        model: str,
        *,
        input_tokens: int,
        thinking: Thinking = "off",
        shown: Collection[str] = (),
        searched: DeferredTools | None = None,
        searches: Collection[str] = (),
        stop_sequences: Collection[str] = (),
        listings: Sequence[JSON] = (),
    ) -> None:
        self.started = False
        """Whether any event was told."""
        self._thinking = thinking
        self._shown = shown
        self._searched = searched
        self._searches = searches
        self._stop_sequences = stop_sequences
        self._listings = listings
        self._content: list[JSON] = []
        self._block: _OpenBlock | None = None
        self._calls: dict[int, _ClientCall] = {}
        self._written: set[int] = set()
        """The calls of this turn that are at their ends."""
        self._behind: list[tuple[str, str]] = []
        """Text that came while a call was written."""
        self._ids: dict[str, str] = {}
        """The ids that the client has for calls that it is shown."""
        self._details: list[Any] = []
        self._member = "reasoning_content"
        self._frame: JSON = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**_usage({"prompt_tokens": input_tokens}), "output_tokens": 1},
        }

    @property
    def message(self) -> JSON:
        """The message as it is now."""
        return {**self._frame, "content": self._content}

    def began(self) -> bytes:
        """The model server works at the message."""
        self.started = True
        start = _event("message_start", message=self.message)
        return b"".join([start, *(event for block in self._listings for event in self._whole_block(block))])

    def chunks(self, items: Items) -> bytes:
        """What one read from the model server brought for the client (`Chunks.items`)."""
        if isinstance(items, TextRun) and not self._calls:
            text, opened = self._block_of("text")
            return b"".join([*opened, text.run(items)])
        events: list[bytes] = []
        for item, _ in items:
            if isinstance(item, str):
                block = self._block
                if block is not None and block.kind == "text":
                    events.append(block.delta(item))  # nearly all there is
                else:
                    events += self._say("text", item)
            elif item.get("choices"):
                events += self._delta(item["choices"][0]["delta"])
        return b"".join(events)

    def rounds_resumed(self, messages: Iterable[JSON]) -> bytes:
        """What the model said in rounds of an earlier attempt at this request, which are not run again."""
        turns = [message for message in messages if message["role"] == "assistant"]
        fields = [{name: value for name, value in one.items() if name != "tool_calls"} for one in turns]
        return b"".join(event for delta in fields for event in self._delta(delta))

    def turn_ended(self) -> bytes:
        """A turn of the model is over: its reasoning and calls are whole."""
        events = self._end_turn()
        if self._block is not None and self._block.kind == "thinking":
            events += self._close()
        return b"".join(events)

    def call_began(self, call: ToolCall, tool: Tool | None) -> bytes:
        """A call of ours is about to run."""
        if self._is_search(tool):
            return self._search_began(call)
        if tool is None or tool.server not in self._shown:
            return PING
        self._ids[call.id] = f"mcptoolu_{secrets.token_hex(12)}"
        block = {
            "type": "mcp_tool_use",
            "id": self._ids[call.id],
            "name": tool.name,
            "server_name": tool.server,
            "input": read_arguments(call.arguments) or {},
        }
        # Claude Code throws a stream away in which the input of such a block comes in deltas.
        return b"".join([*self._end_turn(), *self._whole_block(harmless(block))])

    def call_ended(self, call: ToolCall, tool: Tool | None, result: ToolResult) -> bytes:
        """A call of ours has its result."""
        if self._searched and self._is_search(tool):
            return self._search_ended(call, self._searched.found(result))
        if tool is None or tool.server not in self._shown:
            return b""
        content = [{"type": "text", "text": fix_surrogates(result.text)}]
        block = {
            "type": "mcp_tool_result",
            "tool_use_id": self._ids.pop(call.id),
            "is_error": result.is_error,
            "content": content,
        }
        return b"".join(self._whole_block(block))

    def _is_search(self, tool: Tool | None) -> bool:
        return tool is not None and tool.server == SERVER and tool.name in self._searches

    def _search_began(self, call: ToolCall) -> bytes:
        self._ids[call.id] = f"srvtoolu_{secrets.token_hex(12)}"
        given = harmless(read_arguments(call.arguments) or {})
        block = {"type": "server_tool_use", "id": self._ids[call.id], "name": call.name, "input": given}
        return b"".join([*self._end_turn(), *self._whole_block(block)])

    def _search_ended(self, call: ToolCall, names: Collection[str]) -> bytes:
        references = [{"type": "tool_reference", "tool_name": name} for name in names]
        found = {"type": "tool_search_tool_search_result", "tool_references": references}
        block = {"type": "tool_search_tool_result", "tool_use_id": self._ids.pop(call.id), "content": found}
        return b"".join(self._whole_block(block))

    def ended(self, outcome: Outcome) -> bytes:
        """The answer is whole, cut or paused. Raises UpstreamError when the model server gave it up."""
        message = outcome.message
        if message.ending == "failed":
            raise unfinished_answer(message)
        events = self._end_turn()
        if len(self._content) == len(self._listings):
            events += self._block_of("text")[1]
        events += self._close()
        reason, sequence = self._stop_reason(outcome)
        self._frame |= {
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(outcome.usage or {}),
        }
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        events += [_event("message_delta", delta=delta, usage=self._frame["usage"]), _event("message_stop")]
        return b"".join(events)

    def failed(self, error: ToolwayError) -> bytes:
        """The answer will never be whole."""
        return b"event: error\ndata: " + dumps(ANTHROPIC.body(error)) + b"\n\n"

    def _stop_reason(self, outcome: Outcome) -> tuple[str, str | None]:
        """Why the message ends, by what is in it; and the stop sequence, from servers that name it (vLLM, SGLang)."""
        if reason := _STOP_REASONS.get(outcome.message.ending):
            return reason, None
        if outcome.is_paused:
            return "pause_turn", None
        if any(block["type"] == "tool_use" for block in self._content):
            return "tool_use", None
        choices: Any = outcome.message.frame.get("choices") or ({},)
        for name in ("stop_reason", "matched_stop", "stopping_word"):
            sequence = choices[0].get(name)
            if isinstance(sequence, str) and sequence in self._stop_sequences:
                return "stop_sequence", sequence
        return "end_turn", None

    def _delta(self, delta: JSON) -> list[bytes]:
        content = delta.get("content")
        if len(delta) == 1 and isinstance(content, str) and content:
            return self._say("text", content)  # nearly all chunks are so
        events: list[bytes] = []
        reasoning = text_in(delta.get("reasoning_content"))
        if not reasoning and (reasoning := text_in(delta.get("reasoning"))):
            self._member = "reasoning"
        if isinstance(details := delta.get("reasoning_details"), list):
            self._details += details
        if self._thinking != "off" and (reasoning := reasoning or reasoning_in(content)):
            events += self._say("thinking", reasoning)
        if text := text_in(content) + text_in(delta.get("refusal")):
            events += self._say("text", text)
        for fragment in delta.get("tool_calls") or ():
            events += self._fragment(fragment)
        return events

    def _say(self, kind: str, text: str) -> list[bytes]:
        if self._calls:
            self._behind.append((kind, text))
            return []
        block, events = self._block_of(kind)
        if kind == "thinking" and self._thinking == "sealed":
            block.text.quoted(text)
            return events
        return [*events, block.delta(text)]

    def _block_of(self, kind: str) -> tuple[_OpenBlock, list[bytes]]:
        """The open block, or a new one if that is of another kind."""
        block, events = self._block, list[bytes]()
        if block is None or block.kind != kind:
            block, events = self._open(kind, _BLANK[kind])
        return block, events

    def _open(self, kind: str, block: JSON) -> tuple[_OpenBlock, list[bytes]]:
        events = self._close()
        index = len(self._content)
        self._content.append({**block})
        self._block = _OpenBlock(kind, index)
        return self._block, [*events, _event("content_block_start", index=index, content_block=block)]

    def _close(self) -> list[bytes]:
        """End the block that is open."""
        block = self._block
        if block is None:
            return []
        events = [block.delta(rest)] if (rest := block.text.flush()) else []
        text, whole = block.text.whole(), self._content[block.index]
        if block.kind == "thinking":
            hidden = text if self._thinking == "sealed" else ""
            signature = self._signature(hidden)
            whole |= {"thinking": "" if hidden else text, "signature": signature}
            events.append(block.event("signature_delta", signature=signature))
        elif block.kind == "text":
            whole["text"] = text
        else:
            whole["input"] = harmless(read_arguments(text) or {})
        self._block = None
        return [*events, _event("content_block_stop", index=block.index)]

    def _signature(self, reasoning: str) -> str:
        state: JSON = {"member": self._member}
        if reasoning:
            state["thinking"] = reasoning
        if self._details:
            state["reasoning_details"], self._details = self._details, []
        return sealed(state)

    def _whole_block(self, block: JSON) -> list[bytes]:
        opened, events = self._open(block["type"], block)
        self._block = None
        return [*events, _event("content_block_stop", index=opened.index)]

    def _fragment(self, fragment: JSON) -> list[bytes]:
        """A piece of a call of the client's; of calls that come mixed, all but the first wait for its end."""
        inner = fragment.get("function") or fragment.get("custom") or {}
        number = fragment["index"]
        if number in self._written:
            return []  # white space
        events: list[bytes] = []
        call = self._calls.get(number)
        if call is None:
            events = self._end_whole_call()
            extra = {key: value for key, value in fragment.items() if key not in _CALL_MEMBERS}
            call = self._calls[number] = _ClientCall(fragment["id"], inner["name"], extra)
        call.waiting += inner.get("arguments") or inner.get("input") or ""
        if call.block is None and len(self._calls) == 1:
            events += self._open_call(call)
        return [*events, *self._write_arguments(call)]

    def _open_call(self, call: _ClientCall) -> list[bytes]:
        events = self._close()
        if call.extra:  # Gemini refuses a call that comes back without its signature
            extra = sealed({"calls": {original_id(call.id): call.extra}})
            events += self._whole_block({"type": "redacted_thinking", "data": extra})
        use = {"type": "tool_use", "id": fix_surrogates(call.id), "name": call.name, "input": {}}
        call.block, opened = self._open("tool_use", use)
        return [*events, *opened]

    def _write_arguments(self, call: _ClientCall, *, is_whole: bool = False) -> list[bytes]:
        """What is there of the arguments; what does not begin like an object waits until it can be made one."""
        block, text = call.block, call.waiting
        if block is None or not text:
            return []
        if not block.has_deltas and not text.lstrip().startswith("{"):
            if not is_whole or not text.strip():
                return []
            text = dumps_text(read_arguments(text) or {})
        call.waiting = ""
        return [block.delta(text)]

    def _end_whole_call(self) -> list[bytes]:
        """Write the open call to its end, if its arguments are whole: nothing more will come of it."""
        number, call = next(iter(self._calls.items()), (0, None))
        if call is None or call.block is None or not _is_object(call.block.text.whole()):
            return []
        del self._calls[number]
        self._written.add(number)
        return self._close()

    def _end_turn(self) -> list[bytes]:
        """Write the calls of a turn to their ends, and behind them what was said meanwhile."""
        events: list[bytes] = []
        for call in self._calls.values():
            if call.block is None:
                events += self._open_call(call)
            events += [*self._write_arguments(call, is_whole=True), *self._close()]
        behind, self._behind = self._behind, []
        self._calls, self._written = {}, set()
        return [*events, *(event for kind, text in behind for event in self._say(kind, text))]


class _ClientCall:
    """A call of the client's that is not at its end; `waiting` are arguments that are not written yet."""

    def __init__(self, identity: str, name: str, extra: JSON) -> None:
        self.id = identity
        self.name = name
        self.extra = extra
        self.waiting = ""
        self.block: _OpenBlock | None = None


class _OpenBlock:
    """The block that is being written; its text comes in deltas."""

    def __init__(self, kind: str, index: int) -> None:
        self.kind = kind
        self.index = index
        self.text = JsonText()
        self.has_deltas = False
        self._head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"%b","%b":' % (index, *_DELTAS.get(kind, (b"", b"")))
        )

    def delta(self, text: str) -> bytes:
        """One more piece of the text."""
        self.has_deltas = True
        return self._head + self.text.quoted(text) + b"}}\n\n"

    def run(self, run: TextRun) -> bytes:
        """The deltas of many pieces that need no escape."""
        if self.text.waits:
            return b"".join(self.delta(text) for text, _ in run)
        self.text.append(run.text)
        head = self._head + b'"'
        return head + (b'"}}\n\n' + head).join(run.quoted) + b'"}}\n\n'

    def event(self, kind: str, **delta: str) -> bytes:
        """A delta of another kind."""
        return _event("content_block_delta", index=self.index, delta={"type": kind, **delta})


def _event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), dumps({"type": kind, **members}))


def _is_object(text: str) -> bool:
    return bool(text.strip()) and read_arguments(text) is not None


def _usage(usage: JSON) -> JSON:
    """The usage of chat completions in Anthropic's names: what came from a cache is told apart."""
    prompt = token_count(usage, "prompt_tokens")
    cached = cached_tokens(usage)
    written = token_count(usage, "prompt_tokens_details", "cache_write_tokens")
    return {
        "input_tokens": max(0, prompt - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": token_count(usage, "completion_tokens"),
    }
