"""Input items of the Responses API -> the messages of a chat completion."""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from toolway.api import fields
from toolway.api.fields import text_in
from toolway.api.responses.items.content import chat_content
from toolway.api.responses.items.request import CUSTOM_INPUT
from toolway.api.responses.items.tool_search import found_text
from toolway.conversation.call_ids import original_id
from toolway.conversation.message import joined
from toolway.engine.tool_results import text_of
from toolway.errors import InvalidRequest
from toolway.types import JSON, ToolCall, ToolResult
from toolway.wire.lenient_json import dumps_text

log = logging.getLogger("toolway.responses")

SEALED = "toolway:"
"""What begins the `encrypted_content` that is made here. It is encoded, not encrypted: it is the client's own text."""


_ROUND_ID = re.compile(r"mcpr?_([0-9a-f]+)[0-9a-f]{4}(r[0-9a-f]+)")

_FUNCTION_CALL = fields.object_of({"call_id": fields.Name, "name": fields.Name, "arguments": str})
_CUSTOM_TOOL_CALL = fields.object_of({"call_id": fields.Name, "name": fields.Name, "input": str})
_CALL_OUTPUT = fields.object_of({"call_id": fields.Name})
_SEARCH_CALL = fields.object_of(call_id=fields.Name, id=fields.Name, arguments=JSON)
_SEARCH_OUTPUT = fields.object_of(
    call_id=fields.Name, tools=Annotated[list[JSON], fields.Expected("a list of tools")]
)
_MCP_CALL = fields.object_of(output=str, approval_request_id=str, arguments=str)
_MCP_TOOL = fields.object_of(dict.fromkeys(("id", "server_label", "name"), fields.Name))
_APPROVAL_REQUEST = fields.object_of({"arguments": str})
_APPROVAL_RESPONSE = fields.object_of({"approval_request_id": fields.Name}, reason=str)


@dataclass(frozen=True, kw_only=True)
class OpenTurn:
    """A turn of the model whose calls are not all answered: what a stored response ends with.

    `results` are the messages with the results that are there, `behind` stands after all of them (images), and
    `asks` tells which call each approval request is for.
    """

    assistant: JSON
    results: Sequence[JSON] = ()
    behind: Sequence[JSON] = ()
    asks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ApprovedCall:
    """A call that may run now, and the request that was approved."""

    request: str
    call: ToolCall


class InputItems:
    """Takes the items of a conversation in order; `close` gives the messages.

    `messages` and `turn` are what came before them. `expose(label, name)` tells how the model calls a tool of a server,
    `client_name(name, namespace)` how it calls one of the client's, and `search` is how it calls OpenAI's tool search.
    Items of one turn (reasoning, texts, calls) become one assistant message with the results behind it, wherever in
    the conversation these are given. Every call needs a result: what is wrong with that is an InvalidRequest that names
    the item. Items of a type that is not served here are left out.
    """

    def __init__(
        self,
        expose: Callable[[str, str], str],
        messages: Iterable[JSON] = (),
        turn: OpenTurn | None = None,
        *,
        client_name: Callable[[str, Any], str] = lambda name, _: name,
        search: str | None = None,
    ) -> None:
        self.messages = list(messages)
        self.shown_servers: set[str] = set()
        """Labels of servers whose tools the conversation has seen."""
        self.own: set[str] = set()
        """Ids of calls whose results are ours, though the client sent them."""
        self.denied: list[str] = []
        """Approval requests that were denied."""
        self.kept = len(self.messages)
        """How many messages of the conversation came before the items; `close` counts those of `turn`."""
        self._expose = expose
        self._client_name = client_name
        self._search = search
        self._parts: list[JSON | TurnBuilder] = []
        """The messages behind `messages`, and the turns that are messages only when all is read."""
        self._unserved: InvalidRequest | None = None
        """The error for the first item that was left out."""
        self._open: TurnBuilder | None = None
        self._unanswered: dict[str, list[TurnBuilder]] = {}
        """The turns with a call of the client's that has no result yet, by the id of the call."""
        self._searches: list[str] = []
        self._asks: dict[str, str] = {}
        self._answered: set[str] = set()
        self._approved: dict[str, ApprovedCall] = {}
        self._waiting: dict[str, JSON] = {}
        """The empty results of approved calls, each under its request."""
        self._kept_turn: TurnBuilder | None = None
        if turn is not None:
            kept = self._kept_turn = self._begin(TurnBuilder(turn.assistant, turn.results, turn.behind))
            self._asks = dict(turn.asks)
            for identity in kept.unanswered - set(self._asks.values()):
                self._unanswered[identity] = [kept]

    @property
    def approved(self) -> list[ApprovedCall]:
        """The calls that may run now: their empty results wait in the messages."""
        return list(self._approved.values())

    def add(self, item: JSON, where: str) -> None:
        """The next item; `where` names it in errors, "input[3]"."""
        kind = item.get("type") or ("message" if "role" in item else None)
        read = _READERS.get(kind) if isinstance(kind, str) else None
        if read and (self._search or kind != "tool_search_call"):
            read(self, item, where)
            return
        unserved = fields.invalid(kind, where, "Items of this type are not served here.")
        if not isinstance(kind, str):
            raise unserved
        self._unserved = self._unserved or unserved
        log.info("an item of type %s is left out of the conversation", kind[:50])

    def close(self) -> list[JSON]:
        """The whole conversation. Raises InvalidRequest for calls without a result, and when nothing is left of it."""
        self._end_turn()
        for part in self._parts:
            self.messages += part.close() if isinstance(part, TurnBuilder) else [part]
            if part is self._kept_turn:
                self.kept = len(self.messages)
        if self._unserved and all(message is UNREADABLE for message in self.messages):
            raise self._unserved
        return self.messages

    def _message(self, item: JSON, where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role == "assistant":
            if not isinstance(content, str | list | None):
                raise fields.wrong(f"{where}.content", "a text or a list of parts")
            self._turn_for_text().add_text(text_in(content))
            return
        if role not in ("user", "system", "developer"):
            raise InvalidRequest(f"A message cannot have the role {str(role)[:50]!r}.", param=f"{where}.role")
        self._end_turn()
        # Templates of open models know no developer.
        spoken = "user" if role == "user" else "system"
        self._parts.append({"role": spoken, "content": chat_content(content, f"{where}.content")})

    def _reasoning(self, item: JSON, where: str) -> None:
        if reasoning := _reasoning_text(item):
            self._turn_for_text().add_reasoning(reasoning)

    def _nothing(self, item: JSON, where: str) -> None:
        """It is about the request, not of the conversation."""

    def _list_tools(self, item: JSON, where: str) -> None:
        if isinstance(label := item.get("server_label"), str) and not item.get("error"):
            self.shown_servers.add(label)

    def _call(self, item: JSON, where: str) -> None:
        if item["type"] == "function_call":
            call = fields.check(_FUNCTION_CALL, item, where)
            arguments = call["arguments"]
        else:
            call = fields.check(_CUSTOM_TOOL_CALL, item, where)
            arguments = dumps_text({CUSTOM_INPUT: call["input"]})
        turn, identity = self._turn_for_call(), call["call_id"]
        name, is_cut = (
            self._client_name(call["name"], item.get("namespace")),
            item.get("status") == "incomplete",
        )
        turn.add_call(identity, name, arguments, where=where, is_cut=is_cut)
        self._unanswered.setdefault(identity, []).append(turn)

    def _output(self, item: JSON, where: str) -> None:
        identity = fields.check(_CALL_OUTPUT, item, where)["call_id"]
        if identity not in self._unanswered:  # those of a stored turn are the model server's own
            identity = original_id(identity)
        turns = self._unanswered.get(identity)
        if not turns and self._open is not None and identity in self._open.results:
            raise InvalidRequest(f"There are two outputs for the call {identity[:100]}.", param=where)
        if not turns:
            raise InvalidRequest(
                f"No tool call found for function call output with call_id {identity[:100]}.", param="input"
            )
        parts = chat_content(_output_of(item), f"{where}.output")
        behind: list[JSON] = []
        if isinstance(parts, list):  # a tool message holds text alone
            shown = [part for part in parts if part["type"] != "text"]
            behind = [{"role": "user", "content": shown}] if shown else []
            parts = "\n".join(part["text"] for part in parts if part["type"] == "text")
            parts = parts or "(see the images)" if shown else parts
        turns.pop(0).add_result(identity, parts or "(the tool returned nothing)", behind)

    def _search_call(self, item: JSON, where: str) -> None:
        call = fields.check(_SEARCH_CALL, item, where)
        identity = call.get("call_id") or call.get("id") or f"search_{len(self._searches)}"
        turn, is_cut = self._turn_for_call(), item.get("status") == "incomplete"
        turn.add_call(
            identity, self._search or "", dumps_text(call.get("arguments") or {}), where=where, is_cut=is_cut
        )
        self._unanswered.setdefault(identity, []).append(turn)
        self._searches.append(identity)

    def _search_output(self, item: JSON, where: str) -> None:
        """Its tools are declared too, whether there is a call for it or not."""
        identity = fields.check(_SEARCH_OUTPUT, item, where).get("call_id")
        if identity is None:
            identity = next((known for known in self._searches if self._unanswered.get(known)), "")
        elif identity not in self._unanswered:
            identity = original_id(identity)
        if turns := self._unanswered.get(identity):
            turns.pop(0).add_result(identity, found_text(item.get("tools") or (), self._client_name))

    def _mcp_call(self, item: JSON, where: str) -> None:
        call = fields.check(_MCP_CALL, item, where)
        output, request = call.get("output"), call.get("approval_request_id")
        is_error = output is None and bool(item.get("error"))
        result = text_of(
            ToolResult(text=_failure(item["error"]) if is_error else output or "", is_error=is_error)
        )
        if request and self._has_run(request, result):
            return
        identity, name = self._tool(item, where)
        turn = self._turn_for_call(round_of(identity))
        turn.add_call(identity, name, call.get("arguments") or "{}", where=where)
        turn.add_result(identity, result)
        self.own.add(identity)

    def _has_run(self, request: str, result: str) -> bool:
        """Give the call that a request asked for its result, where it stands; False when there is none."""
        turn, identity = self._open, self._asks.get(request, "")
        if waiting := self._waiting.pop(request, None):
            waiting["content"] = result
            identity = waiting["tool_call_id"]
            del self._approved[request]
        elif turn is not None and identity in turn.calls:
            turn.add_result(identity, result)
            self._answered.add(request)
        else:
            return False
        self.own.add(identity)
        return True

    def _ask(self, item: JSON, where: str) -> None:
        identity, name = self._tool(item, where)
        arguments = fields.check(_APPROVAL_REQUEST, item, where)["arguments"] or "{}"
        self._turn_for_call(round_of(identity)).add_call(identity, name, arguments, where=where)
        self._asks[identity] = identity

    def _decide(self, item: JSON, where: str) -> None:
        answer = fields.check(_APPROVAL_RESPONSE, item, where)
        request = answer["approval_request_id"]
        if request in self._answered:
            raise answered_before(request)
        identity, turn = self._asks.get(request, ""), self._open
        if turn is None or identity not in turn.calls:
            raise InvalidRequest(
                f"Approval request with id {request[:100]!r} not found.", param=f"{where}.approval_request_id"
            )
        if not isinstance(item.get("approve"), bool):
            raise fields.wrong(f"{where}.approve", "true or false")
        self._answered.add(request)
        if not item["approve"]:
            self.denied.append(request)
            why = f", and said: {reason}" if (reason := answer.get("reason")) else ""
            turn.add_result(identity, f"Error: not run, the user refused it{why}.")
            return
        function = turn.calls[identity]["function"]
        call = ToolCall(id=identity, name=function["name"], arguments=function["arguments"])
        self._approved[request] = ApprovedCall(request=request, call=call)
        self._waiting[request] = turn.add_result(identity, "")

    def _compaction(self, item: JSON, where: str) -> None:
        summary = unsealed(item.get("encrypted_content"))
        if summary is None:
            log.info("a compaction that was not made here is left out of the conversation")
            self._unserved = self._unserved or InvalidRequest(
                "This compaction was not made here and cannot be read.", param=f"{where}.encrypted_content"
            )
        self._end_turn()
        self._parts.append(UNREADABLE if summary is None else summary_message(summary))

    def _tool(self, item: JSON, where: str) -> tuple[str, str]:
        """The id of a call, and how the model names its tool."""
        call = fields.check(_MCP_TOOL, item, where)
        return call["id"], self._expose(call["server_label"], call["name"])

    def _turn_for_text(self) -> TurnBuilder:
        if self._open is not None and self._open.has_all_results:
            self._end_turn()
        return self._open or self._begin(TurnBuilder())

    def _turn_for_call(self, made_in: str | None = None) -> TurnBuilder:
        """The turn of the next call: the open one while a call in it waits, or when both were made in one round."""
        turn = self._open
        if turn is not None and turn.has_all_results and not (made_in and made_in == turn.round):
            self._end_turn()
        turn = self._open or self._begin(TurnBuilder())
        turn.round = turn.round or made_in
        return turn

    def _begin(self, turn: TurnBuilder) -> TurnBuilder:
        self._open = turn
        self._parts.append(turn)
        return turn

    def _end_turn(self) -> None:
        """What comes next is not of the open turn; only outputs for it may."""
        turn = self._open
        if turn is None:
            return
        for request, identity in self._asks.items():
            if identity in turn.calls and request not in self._answered and identity not in turn.results:
                turn.add_result(identity, "Error: not run, the user did not approve it.")
        self._open, self._asks = None, {}


_READERS: Mapping[str, Callable[[InputItems, JSON, str], None]] = {
    "message": InputItems._message,
    "reasoning": InputItems._reasoning,
    "function_call": InputItems._call,
    "custom_tool_call": InputItems._call,
    "function_call_output": InputItems._output,
    "custom_tool_call_output": InputItems._output,
    "tool_search_call": InputItems._search_call,
    "tool_search_output": InputItems._search_output,
    "mcp_list_tools": InputItems._list_tools,
    "mcp_call": InputItems._mcp_call,
    "mcp_approval_request": InputItems._ask,
    "mcp_approval_response": InputItems._decide,
    "compaction": InputItems._compaction,
    **dict.fromkeys(("additional_tools", "compaction_trigger"), InputItems._nothing),
}
"""How an item is read, by its type; those of other types are left out, as tools that only OpenAI runs are."""


def answered_before(request: str) -> InvalidRequest:
    """The error for a second answer to one approval request."""
    return InvalidRequest(f"Approval request with id {request[:100]!r} was answered before.", param="input")


def summary_message(summary: str) -> JSON:
    """What the model reads in place of a conversation that was compacted."""
    return {"role": "user", "content": f"Summary of the conversation so far:\n{summary}"}


UNREADABLE: JSON = {
    "role": "user",
    "content": "(What was said earlier was summarised by another program; the summary cannot be read here.)",
}
"""What the model reads in place of a compaction that was made elsewhere."""


def sealed(text: str) -> str:
    """`text` as `encrypted_content`, which clients carry unread."""
    return SEALED + base64.urlsafe_b64encode(text.encode(errors="replace")).decode()


def unsealed(content: Any) -> str | None:
    """The text in what `sealed` made; None for anything else."""
    if not isinstance(content, str) or not content.startswith(SEALED):
        return None
    try:
        return base64.b64decode(content.removeprefix(SEALED), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None


def _reasoning_text(item: JSON) -> str:
    """What a reasoning item says, in full where it does."""
    return (
        text_in(item.get("content"))
        or unsealed(item.get("encrypted_content"))
        or text_in(item.get("summary"))
    )


def _output_of(item: JSON) -> Any:
    """The text or the parts of an output; older agents send objects: Codex `{content, success}`, others results."""
    output = item.get("output")
    if not isinstance(output, dict):
        return "" if output is None else output
    content = output.get("content")
    return content if isinstance(content, str | list) else dumps_text(output)


def _failure(error: Any) -> str:
    if isinstance(error, dict):
        content = error.get("content")
        error = error.get("message") or (text_in(content) if isinstance(content, list) else content)
    return str(error or "")


class TurnBuilder:
    """Takes what items tell of one turn; `close` gives its messages. It can begin as one that was kept."""

    def __init__(
        self, assistant: JSON | None = None, results: Sequence[JSON] = (), behind: Sequence[JSON] = ()
    ) -> None:
        before = assistant or {"role": "assistant", "content": ""}
        self._before = {key: value for key, value in before.items() if key != "tool_calls"}
        self._texts: list[str | list[Any]] = [before["content"]] if before.get("content") else []
        reasoning = before.get("reasoning_content")
        self._reasoning: list[str | list[Any]] = [reasoning] if reasoning else []
        self.calls: dict[str, JSON] = {call["id"]: call for call in before.get("tool_calls", ())}
        self.results = {message["tool_call_id"]: message for message in results}
        self._behind = list(behind)
        self._cut: set[str] = set()
        self.unanswered = self.calls.keys() - self.results.keys()
        """The ids of the calls without a result."""
        self.round: str | None = None
        """The round in which the calls of ours were made, if their ids tell it (`round_of`)."""

    @property
    def has_all_results(self) -> bool:
        """Whether each call has its result, so that calls of the client's that follow are of another turn."""
        return bool(self.calls) and not self.unanswered

    def add_text(self, text: str) -> None:
        """More of the answer, which may have come as several items."""
        self._texts.append(text if self.calls else _set_off(text, self._texts))

    def add_reasoning(self, reasoning: str) -> None:
        """More of the reasoning."""
        self._reasoning.append(_set_off(reasoning, self._reasoning))

    def add_call(self, identity: str, name: str, arguments: str, *, where: str, is_cut: bool = False) -> None:
        """One more call; one that `is_cut` needs no result. Raises InvalidRequest for an id that is there."""
        if identity in self.calls:
            raise InvalidRequest(f"There are two calls with the id {identity[:100]!r}.", param=where)
        function = {"name": name, "arguments": arguments}
        self.calls[identity] = {"id": identity, "type": "function", "function": function}
        self.unanswered.add(identity)
        if is_cut:
            self._cut.add(identity)

    def add_result(self, identity: str, text: str, behind: Sequence[JSON] = ()) -> JSON:
        """The message with the result of a call; `behind` are messages that stand after all results."""
        message = {"role": "tool", "tool_call_id": identity, "content": text}
        self.results[identity] = message
        self.unanswered.discard(identity)
        self._behind += behind
        return message

    def close(self) -> list[JSON]:
        """The whole turn. Raises InvalidRequest for a call without a result."""
        for identity in self.unanswered & self._cut:
            del self.calls[identity]
        for identity in self.calls:
            if identity not in self.results:
                raise InvalidRequest(
                    f"No tool output found for function call {identity[:100]}.", param="input"
                )
        message: JSON = {**self._before, "content": joined(self._texts)}
        if self._reasoning:
            message["reasoning_content"] = joined(self._reasoning)
        if self.calls:
            message["tool_calls"] = list(self.calls.values())
        return [message, *(self.results[identity] for identity in self.calls), *self._behind]


def _set_off(text: str, before: Sequence[str | list[Any]]) -> str:
    """The text, parted from the one before it unless one of them has white space there."""
    last = before[-1] if before else ""
    is_parted = not last or not text or not isinstance(last, str) or last[-1].isspace() or text[0].isspace()
    return text if is_parted else f"\n\n{text}"


def round_mark(number: int) -> str:
    """What stands at the end of the id of a call that was made in this round of a response."""
    return f"r{number:02x}"


def round_of(identity: str) -> str | None:
    """The same text for all calls of ours that were made at once, by their ids; None for other ids.

    A client that keeps the conversation itself sends them one after the other, whichever rounds they are of.
    """
    match = _ROUND_ID.fullmatch(identity)
    return "".join(match.groups()) if match else None
