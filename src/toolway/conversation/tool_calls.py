"""Tool calls: put together from fragments, their arguments read, written back as OpenAI writes them."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field
from typing import Any

import orjson

from toolway.types import JSON, ToolCall
from toolway.wire.lenient_json import dumps_text, fix_surrogates, loads_exact

NOT_AN_OBJECT = "it is not a JSON object"

_ALPHABET = string.ascii_letters + string.digits

_Marks = tuple[str | None, str, Any]
"""Id, name and arguments of a fragment."""


@dataclass(kw_only=True, slots=True)
class _CallParts:
    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    extra: JSON = field(default_factory=dict)
    is_custom: bool = False
    """A call of one of OpenAI's custom tools: `custom: {name, input}` in place of `function`."""
    public_id: str = ""
    """The id that others see: set once, when the name is known."""

    def is_blank(self) -> bool:
        return not any(map(str.strip, self.arguments))

    def is_whole(self) -> bool:
        """Whether the arguments have come to their end."""
        if self.arguments and self.arguments[0][:1] == "{" and self.arguments[-1].rstrip()[-1:] != "}":
            return False  # told without another look at all that has come
        text = "".join(self.arguments)
        return bool(text.strip()) and _is_json(text)


class CallAssembler:
    """Fragments of tool calls -> calls. Which call a fragment belongs to is the whole difficulty."""

    def __init__(self) -> None:
        self._calls: list[_CallParts] = []
        self._at_index: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no fragment of a call came."""
        return not self._calls

    def feed(self, fragments: Any) -> list[tuple[int, JSON]]:
        """(position of its call, the same fragment as OpenAI would send it) where the name is known by now."""
        clean = []
        for fragment in fragments if isinstance(fragments, list) else [fragments]:
            if isinstance(fragment, dict):
                position, text, extra = self._take(fragment)
                if named := self._clean(self._calls[position], text, extra):
                    clean.append((position, named))
        return clean

    def _take(self, fragment: JSON) -> tuple[int, str, JSON]:
        """Put a fragment into its call: its position, and what of arguments and unknown members it brought."""
        index = fragment.get("index")
        if type(index) is int and index in self._at_index and (text := _text_alone(fragment)):
            position = self._at_index[index]
            self._calls[position].arguments.append(text)
            return position, text, {}
        marks = _marks(fragment)
        position = self._position(_whole_number(index), marks)
        return position, *_add(self._calls[position], fragment, marks)

    def add_whole(self, call: JSON) -> None:
        """Take a call that comes in one piece."""
        whole, marks = _CallParts(), _marks(call)
        self._calls.append(whole)
        _add(whole, call, marks)
        if whole.name:
            whole.public_id = self._unique_id(whole)

    def name(self, position: int) -> str:
        """The name of a call that `feed` returned."""
        return self._calls[position].name

    def finished(self) -> tuple[ToolCall, ...]:
        """All calls; an id is made only where it is missing or was used before in this turn."""
        return tuple(self._finish(call) for call in self._calls if call.name or not call.is_blank())

    def _finish(self, call: _CallParts) -> ToolCall:
        arguments = fix_surrogates("".join(call.arguments))
        custom = (
            {"type": "custom", "custom": {"name": call.name, "input": arguments}} if call.is_custom else {}
        )
        return ToolCall(
            id=call.public_id or self._unique_id(call),
            name=call.name,
            arguments=arguments,
            extra=call.extra | custom,
        )

    def _position(self, index: int | None, marks: _Marks) -> int:
        identity, name, arguments = marks
        known = self._begun(index, identity, name)
        if known is not None and not _begins_anew(self._calls[known], identity, name, arguments):
            return known
        self._calls.append(_CallParts())
        if index is not None:
            self._at_index[index] = len(self._calls) - 1
        return len(self._calls) - 1

    def _begun(self, index: int | None, identity: str | None, name: str) -> int | None:
        """The call that a fragment may go on with: at its index; without one at its id, else the newest.

        The id tells too where it is another than at the index and there is no name, as when all have one index.
        """
        known = len(self._calls) - 1 if self._calls else None
        if index is not None:
            known = self._at_index.get(index)
            if known is None or name or self._calls[known].id is None:
                return known
        if identity is None or known is None or self._calls[known].id == identity:
            return known
        return next((position for position, call in enumerate(self._calls) if call.id == identity), known)

    def _clean(self, call: _CallParts, text: str, extra: JSON) -> JSON | None:
        kind, member = ("custom", "input") if call.is_custom else ("function", "arguments")
        if call.public_id:
            return {**extra, kind: {member: text}} if text or extra else None
        if not call.name:
            return None
        call.public_id = self._unique_id(call)
        inner = {"name": call.name, member: "".join(call.arguments)}
        return {**call.extra, "id": call.public_id, "type": kind, kind: inner}

    def _unique_id(self, call: _CallParts) -> str:
        taken = any(other.public_id == call.id for other in self._calls if other is not call)
        return call.id if call.id and not taken else new_id()


def _begins_anew(call: _CallParts, identity: str | None, name: str, arguments: Any) -> bool:
    """Whether a fragment that seems to continue `call` is the first of another one."""
    if identity and call.id:
        # Servers that make up an id for each fragment tell the name in the first one alone.
        return identity != call.id and (bool(name) or call.is_whole())
    if not (name and call.name):
        return False
    return name != call.name or (arguments not in (None, "") and call.is_whole())


def _add(call: _CallParts, fragment: JSON, marks: _Marks) -> tuple[str, JSON]:
    """Put a fragment into its call; returns the text of arguments and the unknown members it brought."""
    identity, name, arguments = marks
    call.id = call.id or identity
    call.name = call.name or name
    call.is_custom = call.is_custom or "custom" in fragment
    if isinstance(arguments, str):
        text = arguments
    elif arguments is None or call.arguments:
        text = ""
    else:  # an object instead of its text (Ollama)
        text = dumps_text(arguments)
    if text:
        call.arguments.append(text)
    extra = {
        key: value
        for key, value in fragment.items()
        if key not in ("index", "id", "type", "function", "custom") and value is not None
    }
    call.extra |= extra
    return text, extra


def _text_alone(fragment: JSON) -> str | None:
    """The text of arguments, where a fragment has nothing else, as nearly all have."""
    function = fragment.get("function")
    if len(fragment) == 2 and isinstance(function, dict) and len(function) == 1:
        text = function.get("arguments")
        return text if isinstance(text, str) else None
    return None


def _marks(fragment: JSON) -> _Marks:
    """Null and empty ones mean nothing."""
    identity = fragment.get("id")
    function = fragment.get("function") or fragment.get("custom")
    if not isinstance(function, dict):
        function = {}
    name = function.get("name")
    return (
        str(identity) if identity not in (None, "") else None,
        name if isinstance(name, str) else "",
        function.get("arguments", function.get("input")),
    )


def _whole_number(value: Any) -> int | None:
    """An index, also one that is written as a text or with a decimal point."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return int(value)
    except (ValueError, OverflowError):
        return None


def call_object(call: ToolCall) -> JSON:
    """A call as it stands in the `tool_calls` of a message."""
    if "custom" in call.extra:
        return {**call.extra, "id": call.id}
    function = {"name": call.name, "arguments": call.arguments}
    return {**call.extra, "id": call.id, "type": "function", "function": function}


def new_id() -> str:
    """An id that every backend takes: Mistral wants exactly nine letters or digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


def read_arguments(text: str) -> JSON | None:
    """The arguments object in a call's text; None when `parse_arguments` finds none."""
    try:
        return parse_arguments(text)
    except ValueError:
        return None


def parse_arguments(text: str) -> JSON:
    """The arguments object in a call's text, its integers exact. Raises ValueError, in words, when there is none.

    Missing, empty and null arguments are `{}`; JSON inside a JSON string is decoded once more.
    """
    for _ in range(2):
        value = loads_exact(text) if text.strip() else None
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        if not isinstance(value, str):
            break
        text = value
    raise ValueError(NOT_AN_OBJECT)


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
