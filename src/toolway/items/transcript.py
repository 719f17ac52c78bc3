"""Items of the Responses API -> the messages of a chat completion."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from toolway.errors import InvalidRequest
from toolway.items.content import chat_content, text_in
from toolway.items.request import CUSTOM_INPUT
from toolway.types import JSON, ToolCall

SEALED = "toolway:"
"""What begins the `encrypted_content` that is made here. It is encoded, not encrypted: it is the client's own text."""

_IGNORED = frozenset({"mcp_list_tools", "compaction_trigger", "additional_tools"})


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of the model whose calls are not all answered: what a stored response ends with.

    `results` are the messages with the results that are there, `behind` stands after all of them (pictures), and
    `asks` tells which call each approval request is for.
    """

    assistant: JSON
    results: Sequence[JSON] = ()
    behind: Sequence[JSON] = ()
    asks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Approved:
    """A call that may run now, and the request that was approved."""

    request: str
    call: ToolCall


class Transcript:
    """Takes the items of a conversation in order; `close` gives the messages.

    `messages` and `turn` are what came before them. `expose(label, name)` tells how the model calls a tool of a server.
    Items of one turn (reasoning, text, calls) become one assistant message with the results behind it. Every call
    needs a result: what is wrong with that, or unknown, is an InvalidRequest that names the item.
    """

    def __init__(
        self, expose: Callable[[str, str], str], messages: Iterable[JSON] = (), turn: Turn | None = None
    ) -> None:
        self.messages = list(messages)
        self.listed: set[str] = set()
        """Labels of servers whose tools the conversation has seen."""
        self.own: set[str] = set()
        """Ids of calls whose results are ours, though the client sent them."""
        self.approved: list[Approved] = []
        self.refused: list[str] = []
        """Approval requests that were refused."""
        self._expose = expose
        self._open: JSON | None = None
        self._results: dict[str, JSON] = {}
        self._behind: list[JSON] = []
        self._asks: dict[str, str] = {}
        self._answered: set[str] = set()
        self._is_answered = False
        """Whether the client answered a call of the open turn; calls that follow are of another one."""
        if turn is not None:
            self._open = dict(turn.assistant)
            self._results = {message["tool_call_id"]: message for message in turn.results}
            self._behind = list(turn.behind)
            self._asks = dict(turn.asks)

    def add(self, item: JSON, where: str) -> None:
        """The next item; `where` names it in errors, "input[3]"."""
        kind = item.get("type") or ("message" if "role" in item else None)
        match kind:
            case "message":
                self._message(item, where)
            case "reasoning":
                self._reason(item)
            case "function_call":
                name, arguments = _text(item, "name", where), _text(item, "arguments", where)
                self._call(_text(item, "call_id", where), name, arguments)
            case "custom_tool_call":
                arguments = orjson.dumps({CUSTOM_INPUT: _text(item, "input", where)}).decode()
                self._call(_text(item, "call_id", where), _text(item, "name", where), arguments)
            case "function_call_output" | "custom_tool_call_output":
                self._output(_text(item, "call_id", where), item.get("output"), where)
            case "mcp_call":
                self._mcp_call(item, where)
            case "mcp_approval_request":
                identity = _text(item, "id", where)
                name = self._expose(_text(item, "server_label", where), _text(item, "name", where))
                self._call(identity, name, _text(item, "arguments", where))
                self._asks[identity] = identity
            case "mcp_approval_response":
                self._decide(item, where)
            case "compaction":
                self._compaction(item, where)
            case str() if kind in _IGNORED:
                if isinstance(label := item.get("server_label"), str) and not item.get("error"):
                    self.listed.add(label)
            case _:
                raise InvalidRequest(
                    f"Invalid value: {str(kind)[:50]!r}. Items of this type are not served here.",
                    param=where,
                    code="invalid_value",
                )

    def close(self) -> list[JSON]:
        """The whole conversation. Raises InvalidRequest for calls without a result."""
        self._flush()
        return self.messages

    def _message(self, item: JSON, where: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role == "assistant":
            said = text_in(content)
            if self._open is not None and (self._open["content"] or self._results):
                self._flush()
            self._begin()["content"] = said
            return
        if role not in ("user", "system", "developer"):
            raise InvalidRequest(f"A message cannot have the role {str(role)[:50]!r}.", param=f"{where}.role")
        self._flush()
        # Templates of open models know no developer.
        spoken = "user" if role == "user" else "system"
        self.messages.append({"role": spoken, "content": chat_content(content, f"{where}.content")})

    def _reason(self, item: JSON) -> None:
        thought = _thought(item)
        if self._open is not None and (self._open["content"] or self._open.get("tool_calls")):
            self._flush()
        if thought:
            turn = self._begin()
            turn["reasoning_content"] = turn.get("reasoning_content", "") + thought

    def _call(self, identity: str, name: str, arguments: str) -> None:
        if self._open is not None and self._answers_all():
            self._flush()
        call = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._begin().setdefault("tool_calls", []).append(call)

    def _mcp_call(self, item: JSON, where: str) -> None:
        identity = _text(item, "id", where)
        name = self._expose(_text(item, "server_label", where), _text(item, "name", where))
        request = item.get("approval_request_id")
        if isinstance(request, str) and self._asks.get(request) in self._open_calls():
            # The call stands in the turn already, since it was asked for; now it has run.
            identity = self._asks[request]
            self._answered.add(request)
            self.approved = [approved for approved in self.approved if approved.request != request]
        else:
            if self._is_answered:
                self._flush()
            function = {"name": name, "arguments": item.get("arguments") or "{}"}
            call = {"id": identity, "type": "function", "function": function}
            self._begin().setdefault("tool_calls", []).append(call)
        self._results[identity] = _result(identity, item.get("output") or _failure(item.get("error")))
        self.own.add(identity)

    def _output(self, identity: str, output: Any, where: str) -> None:
        if identity not in self._open_calls():
            raise InvalidRequest(
                f"No tool call found for function call output with call_id {identity[:100]}.", param="input"
            )
        parts = chat_content(output if output is not None else "", f"{where}.output")
        if isinstance(parts, list):
            pictures = [part for part in parts if part["type"] != "text"]
            texts = [part["text"] for part in parts if part["type"] == "text"]
            if pictures:  # a tool message holds text alone
                self._behind.append({"role": "user", "content": pictures})
                texts = texts or ["(see the images)"]
            parts = "\n".join(texts)
        self._results[identity] = _result(identity, parts)
        self._is_answered = True

    def _decide(self, item: JSON, where: str) -> None:
        request = _text(item, "approval_request_id", where)
        if request in self._answered:
            raise answered_before(request)
        call = self._open_calls().get(self._asks.get(request, ""))
        if call is None:
            raise InvalidRequest(
                f"Approval request with id {request[:100]!r} not found.", param=f"{where}.approval_request_id"
            )
        if not isinstance(item.get("approve"), bool):
            raise InvalidRequest("approve must be true or false.", param=f"{where}.approve")
        self._answered.add(request)
        if item["approve"]:
            function = call["function"]
            approved = ToolCall(id=call["id"], name=function["name"], arguments=function["arguments"])
            self.approved.append(Approved(request=request, call=approved))
            self._results[call["id"]] = {"role": "tool", "tool_call_id": call["id"], "content": ""}
        else:
            self.refused.append(request)
            reason = item.get("reason")
            why = f", and said: {reason}" if isinstance(reason, str) and reason else ""
            self._results[call["id"]] = _result(call["id"], f"Error: not run, the user refused it{why}.")

    def _compaction(self, item: JSON, where: str) -> None:
        summary = unsealed(item.get("encrypted_content"))
        if summary is None:
            raise InvalidRequest(
                "This compaction was not made here and cannot be read.", param=f"{where}.encrypted_content"
            )
        self._flush()
        self.messages.append({"role": "user", "content": f"Summary of the conversation so far:\n{summary}"})

    def _begin(self) -> JSON:
        if self._open is None:
            self._open = {"role": "assistant", "content": ""}
        return self._open

    def _open_calls(self) -> dict[str, JSON]:
        calls = self._open.get("tool_calls", ()) if self._open is not None else ()
        return {call["id"]: call for call in calls}

    def _answers_all(self) -> bool:
        """Whether each call of the open turn has a result that came as an item of its own."""
        calls = self._open_calls()
        return bool(calls) and calls.keys() <= self._results.keys()

    def _flush(self) -> None:
        if self._open is None:
            return
        calls = self._open_calls()
        for request, identity in self._asks.items():
            if identity in calls and request not in self._answered:
                self._results.setdefault(
                    identity, _result(identity, "Error: not run, the user did not approve it.")
                )
        for identity in calls:
            if identity not in self._results:
                raise InvalidRequest(
                    f"No tool output found for function call {identity[:100]}.", param="input"
                )
        results = [self._results[identity] for identity in calls]
        self.messages += [self._open, *results, *self._behind]
        self._open, self._results, self._behind, self._is_answered = None, {}, [], False


def answered_before(request: str) -> InvalidRequest:
    """The error for a second answer to one approval request."""
    return InvalidRequest(f"Approval request with id {request[:100]!r} was answered before.", param="input")


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


def _thought(item: JSON) -> str:
    """What a reasoning item says, in full where it does."""
    return (
        text_in(item.get("content"))
        or unsealed(item.get("encrypted_content"))
        or text_in(item.get("summary"))
    )


def _failure(error: Any) -> str:
    if isinstance(error, dict):
        content = error.get("content")
        error = error.get("message") or (text_in(content) if isinstance(content, list) else content)
    return f"Error: {error}" if error else "(the tool returned nothing)"


def _result(identity: str, text: str) -> JSON:
    return {"role": "tool", "tool_call_id": identity, "content": text or "(the tool returned nothing)"}


def _text(item: JSON, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or (not value and name not in ("arguments", "input")):
        raise InvalidRequest(
            f"Missing required parameter: '{where}.{name}'.",
            param=f"{where}.{name}",
            code="missing_required_parameter",
        )
    return value
