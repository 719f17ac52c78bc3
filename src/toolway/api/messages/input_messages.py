"""The turns of the Messages API -> the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from toolway.api import fields
from toolway.api.messages.content import (
    Media,
    blocks_of,
    chat_content,
    parts_of,
    text_and_rest,
    text_part,
    unsealed,
)
from toolway.conversation.call_ids import original_id
from toolway.engine.tool_results import text_of
from toolway.errors import InvalidRequest
from toolway.tools import names
from toolway.types import JSON, ToolResult
from toolway.wire.lenient_json import dumps, dumps_text

_TOOL_USE = fields.object_of({"id": fields.Name, "name": fields.Name, "input": JSON})
_MCP_TOOL_USE = fields.object_of(
    {"id": fields.Name, "name": fields.Name, "server_name": fields.Name, "input": JSON}
)
_RESULT = fields.object_of({"tool_use_id": fields.Name}, is_error=bool)
_TEXT = fields.object_of({"text": str})
_THINKING = fields.object_of(thinking=str, signature=str)
_REFERENCE = fields.object_of({"tool_name": fields.Name})

BILLING = "x-anthropic-billing-header:"
"""How a text of Claude Code begins that is no word to the model, and another one in each version."""

Expose = Callable[[str, str | None], Sequence[str]]
"""`expose(server, name)`: how the model calls a tool of a server that the request names, or all of its tools."""


class InputMessages:
    """Takes the turns of a conversation in order; `close` gives the messages.

    `deferred` are the declarations of tools that stay unseen until a `tool_reference` names them. System messages
    behind others get `late_role`, since many templates take none there. Turns of one role in a row become one.
    """

    def __init__(self, expose: Expose, deferred: Mapping[str, JSON], late_role: str) -> None:
        self.system: list[str] = []
        self.media = Media()
        self.loaded: dict[str, None] = {}
        """Names of tools that were added on the way."""
        self.removed: set[str] = set()
        self.defined: list[JSON] = []
        """Declarations of tools that stand in the conversation itself."""
        self.own: set[str] = set()
        """Ids of calls whose results are ours, though the client sent them."""
        self._messages: list[JSON] = []
        self._expose = expose
        self._deferred = deferred
        self._late_role = late_role
        self._turn: TurnBuilder | None = None
        self._after: list[tuple[str, list[JSON]]] = []
        """Who said what since the open turn of the model."""

    def read(self, messages: Sequence[Any]) -> list[JSON]:
        """The whole conversation. Raises InvalidRequest with the place of what is wrong."""
        last_user = max(
            (n for n, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "user"), default=0
        )
        for number, message in enumerate(messages):
            where = f"messages[{number}]"
            if not isinstance(message, dict):
                raise fields.wrong(where, "an object")
            content = message.get("content")
            blocks = blocks_of("" if content is None else content, f"{where}.content")
            match message.get("role"):
                case "user":
                    self._user(blocks, f"{where}.content")
                case "assistant":
                    self._assistant(blocks, f"{where}.content")
                case "system":
                    is_cleared = message.get("clear_at") == "next_user_message" and number < last_user
                    self._system(blocks, f"{where}.content", is_cleared=is_cleared)
                case role:
                    raise fields.invalid(role, f"{where}.role", "Roles are user, assistant and system.")
        self._end_turn()
        if not self._messages:
            raise InvalidRequest("messages must hold at least one message.", param="messages")
        return self._messages

    @property
    def ends_with_prefill(self) -> bool:
        """Whether the model is to go on with what stands at the end as its own words."""
        return bool(self._messages[-1]["role"] == "assistant")

    def _user(self, blocks: Sequence[JSON], where: str) -> None:
        parts: list[JSON] = []
        for number, block in enumerate(blocks):
            place = f"{where}[{number}]"
            if block.get("type") == "tool_result":
                self._result(block, place)
            elif block.get("type") != "text" or block.get("text") != "" or len(blocks) == 1:
                parts += parts_of(block, place, self.media)
        if parts:
            self._after.append(("user", parts))

    def _system(self, blocks: Sequence[JSON], where: str, *, is_cleared: bool) -> None:
        texts = []
        for number, block in enumerate(blocks):
            match block.get("type"):
                case "tool_addition" | "tool_removal":
                    self._change(block["type"], block.get("tool"), f"{where}[{number}].tool")
                case _:
                    texts.append(str(fields.check(_TEXT, block, f"{where}[{number}]")["text"]))
        if is_cleared or not any(texts):
            return
        if self._turn is None and not self._after:
            self.system += texts
        else:
            self._after.append((self._late_role, [text_part(text) for text in texts]))

    def _change(self, kind: str, tool: Any, where: str) -> None:
        """Tools are offered from here on, or no more."""
        if not isinstance(tool, dict):
            raise fields.wrong(where, "an object")
        definition = tool.get("definition")
        if kind == "tool_addition" and isinstance(definition, dict):
            if definition.get("type") == "mcp_toolset":  # what it defers stays so
                self.removed.difference_update(self._expose(str(definition.get("mcp_server_name")), None))
                return
            self.defined.append(definition)
        for name in self._names(definition if isinstance(definition, dict) else tool):
            if kind == "tool_addition":
                self._load(name)
            else:
                self.loaded.pop(name, None)
                self.removed.add(name)

    def _names(self, tool: JSON) -> Sequence[str]:
        """The names of the tools that a reference or a definition is about."""
        name, server = tool.get("name"), tool.get("server_name")
        if isinstance(server, str):
            return self._expose(server, name if isinstance(name, str) else None)
        return [name] if isinstance(name, str) else []

    def _load(self, name: str) -> None:
        self.loaded[name] = None
        self.removed.discard(name)

    def _result(self, block: JSON, where: str) -> None:
        result = fields.check(_RESULT, block, where)
        identity, turn = result["tool_use_id"], self._turn
        if turn is None or identity not in turn.unanswered:
            raise InvalidRequest(
                f"{where}: unexpected tool_use_id found in tool_result blocks: {identity[:100]}. Each tool_result "
                "block must have a corresponding tool_use block in the previous message.",
                param=where,
            )
        text, rest = text_and_rest(self._result_parts(block.get("content"), f"{where}.content"))
        if rest:
            text = text or "(see below)"
            about = text_part(f"Content of the result of {turn.calls[identity]['function']['name']}:")
            self._after.insert(turn.shown, ("user", [about, *rest]))
            turn.shown += 1
        if result.get("is_error") and not text.lower().startswith("error"):
            text = f"Error: {text}"
        turn.add_result(identity, text or "(the tool returned nothing)")

    def _result_parts(self, content: Any, where: str) -> list[JSON]:
        if content is None:
            return []
        parts: list[JSON] = []
        found = []
        for number, block in enumerate(blocks_of(content, where)):
            if block.get("type") == "tool_reference":
                found.append(str(fields.check(_REFERENCE, block, f"{where}[{number}]")["tool_name"]))
            else:
                parts += parts_of(block, f"{where}[{number}]", self.media)
        return [*parts, *([text_part(self._definitions(found))] if found else [])]

    def _definitions(self, found: Sequence[str]) -> str:
        """Tools that were found, as the model reads of them in the result; from now on they are offered."""
        for name in found:
            self._load(name)
        return definitions_text(found, self._deferred)

    def _assistant(self, blocks: Sequence[JSON], where: str) -> None:
        if self._turn is None or self._after or self._turn.has_results:
            self._end_turn()
            self._turn = TurnBuilder()
        for number, block in enumerate(blocks):
            kind = block.get("type")
            read = _READERS.get(kind) if isinstance(kind, str) else None
            if read:
                read(self, block, f"{where}[{number}]")
            elif not isinstance(kind, str):
                raise fields.wrong(f"{where}[{number}].type", "a text")
        self._turn.answer_own(self.own)

    def _open(self) -> TurnBuilder:
        """The turn that a block is of: a new one behind a turn all of whose calls have their results."""
        turn = self._turn
        if turn is None or turn.has_all_results:
            self._end_turn()
            turn = self._turn = TurnBuilder()
        return turn

    def _text(self, block: JSON, where: str) -> None:
        self._open().add_text(fields.check(_TEXT, block, where)["text"])

    def _compaction(self, block: JSON, where: str) -> None:
        if isinstance(text := block.get("content"), str):
            self._open().add_text(text)

    def _thinking(self, block: JSON, where: str) -> None:
        thinking = fields.check(_THINKING, block, where)
        self._open().add_thinking(thinking.get("thinking") or "", unsealed(thinking.get("signature")))

    def _redacted(self, block: JSON, where: str) -> None:
        self._open().add_thinking("", unsealed(block.get("data")))

    def _tool_use(self, block: JSON, where: str) -> None:
        call = fields.check(_TOOL_USE, block, where)
        self._open().add_call(call["id"], call["name"], call["input"], where)

    def _mcp_tool_use(self, block: JSON, where: str) -> None:
        call = fields.check(_MCP_TOOL_USE, block, where)
        self.own.add(call["id"])
        exposed = self._expose(call["server_name"], call["name"])
        name = exposed[0] if exposed else names.legal(call["name"])
        self._open().add_call(call["id"], name, call["input"], where)

    def _mcp_tool_result(self, block: JSON, where: str) -> None:
        result = fields.check(_RESULT, block, where)
        identity, turn = result["tool_use_id"], self._turn
        if turn is None or identity not in turn.unanswered:
            raise InvalidRequest(
                f"{where}: there is no mcp_tool_use block {identity[:100]} before it.", param=where
            )
        text = "\n".join(fields.texts_in(block.get("content")))
        turn.add_result(identity, text_of(ToolResult(text=text, is_error=bool(result.get("is_error")))))

    def _server_tool_use(self, block: JSON, where: str) -> None:
        if str(block.get("name")).startswith("tool_search_tool"):
            call = fields.check(_TOOL_USE, block, where)
            self.own.add(call["id"])
            self._open().add_call(call["id"], call["name"], call["input"], where)

    def _tool_search_result(self, block: JSON, where: str) -> None:
        turn, identity, content = self._turn, block.get("tool_use_id"), block.get("content")
        if turn is None or not isinstance(identity, str) or not isinstance(content, dict):
            return
        if identity not in turn.unanswered:
            return
        entries = content.get("tool_references")
        references = entries if isinstance(entries, list) else ()
        known = [
            entry["tool_name"]
            for entry in references
            if isinstance(entry, dict) and isinstance(entry.get("tool_name"), str)
        ]
        turn.add_result(identity, self._definitions(known) if known else "No tool fits.")

    def _end_turn(self) -> None:
        """Write down the open turn, and what was said since."""
        if self._turn is not None:
            self._messages += self._turn.close()
            self._turn = None
        for role, group in groupby(self._after, key=lambda spoken: spoken[0]):
            parts = [part for _, more in group for part in more]
            self._messages.append({"role": role, "content": chat_content(parts)})
        self._after = []


_READERS: Mapping[str, Callable[[InputMessages, JSON, str], None]] = {
    "text": InputMessages._text,
    "thinking": InputMessages._thinking,
    "redacted_thinking": InputMessages._redacted,
    "tool_use": InputMessages._tool_use,
    "mcp_tool_use": InputMessages._mcp_tool_use,
    "mcp_tool_result": InputMessages._mcp_tool_result,
    "server_tool_use": InputMessages._server_tool_use,
    "tool_search_tool_result": InputMessages._tool_search_result,
    "compaction": InputMessages._compaction,
}
"""How a block of the model's is read; those of other types, which only Anthropic's own tools write, are left out."""


def definitions_text(found: Sequence[str], tools: Mapping[str, JSON]) -> str:
    """Tools that were found, as the model reads of them."""
    lines = [f"<function>{_described(name, tools.get(name, {}))}</function>" for name in found]
    return "\n".join(["<functions>", *lines, "</functions>"])


def _described(name: str, tool: JSON) -> str:
    known = {"description": tool.get("description"), "name": name, "parameters": tool.get("input_schema")}
    return dumps({key: value for key, value in known.items() if value is not None}).decode()


class TurnBuilder:
    """Takes what blocks tell of one turn of the model; `close` gives its messages."""

    def __init__(self) -> None:
        self.calls: dict[str, JSON] = {}
        self.shown = 0
        """How many results have images or files behind them."""
        self._results: dict[str, JSON] = {}
        self._text = ""
        self._reasoning = ""
        self._state: JSON = {}

    @property
    def unanswered(self) -> set[str]:
        """The ids of the calls without a result."""
        return self.calls.keys() - self._results.keys()

    @property
    def has_results(self) -> bool:
        """Whether any call has its result."""
        return bool(self._results)

    @property
    def has_all_results(self) -> bool:
        """Whether there are calls, and each has its result."""
        return bool(self.calls) and not self.unanswered

    def add_text(self, text: str) -> None:
        """More of the answer, set off from what stands before it."""
        parted = not self._text or not text or self._text[-1].isspace() or text[0].isspace()
        self._text += text if parted else f"\n\n{text}"

    def add_thinking(self, thinking: str, state: JSON) -> None:
        """More of the reasoning, and what the block's signature carries."""
        hidden = state.get("thinking")
        self._reasoning += thinking or (hidden if isinstance(hidden, str) else "")
        for name, value in state.items():
            before = self._state.get(name)
            if isinstance(value, list) and isinstance(before, list):
                self._state[name] = [*before, *value]
            elif isinstance(value, dict) and isinstance(before, dict):
                self._state[name] = {**before, **value}
            else:
                self._state[name] = value

    def add_call(self, identity: str, name: str, arguments: JSON, where: str) -> None:
        """One more call. Raises InvalidRequest for an id that is there."""
        if identity in self.calls:
            raise InvalidRequest(
                f"{where}: there are two tool_use blocks with the id {identity[:100]}.", param=where
            )
        function = {"name": name, "arguments": dumps_text(arguments)}
        self.calls[identity] = {"id": identity, "type": "function", "function": function}

    def add_result(self, identity: str, text: str) -> None:
        """The result of a call."""
        self._results[identity] = {"role": "tool", "tool_call_id": identity, "content": text}

    def answer_own(self, own: set[str]) -> None:
        """Calls of ours that were broken off have no result, and get none any more."""
        for identity in self.unanswered & own:
            self.add_result(identity, "Error: it was broken off before it had a result.")

    def close(self) -> list[JSON]:
        """The whole turn. Raises InvalidRequest for a call without a result."""
        if missing := self.unanswered:
            named = ", ".join(identity[:100] for identity in self.calls if identity in missing)
            raise InvalidRequest(
                f"tool_use ids were found without tool_result blocks immediately after: {named}. Each tool_use block "
                "must have a corresponding tool_result block in the next message.",
                param="messages",
            )
        message: JSON = {"role": "assistant", "content": self._text}
        if self._reasoning:
            member = "reasoning" if self._state.get("member") == "reasoning" else "reasoning_content"
            message[member] = self._reasoning
        if isinstance(details := self._state.get("reasoning_details"), list):
            message["reasoning_details"] = details
        if self.calls:
            message["tool_calls"] = [
                {**self._extra(identity), **call} for identity, call in self.calls.items()
            ]
        return [message, *(self._results[identity] for identity in self.calls)]

    def _extra(self, identity: str) -> JSON:
        extras = self._state.get("calls")
        extra = extras.get(original_id(identity)) if isinstance(extras, dict) else None
        return extra if isinstance(extra, dict) else {}
