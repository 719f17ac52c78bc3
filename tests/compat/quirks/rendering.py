"""A clean conversation, and the many ways in which model servers write it down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

JSON = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What the model says and calls in one turn: (name, arguments) in order."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, JSON], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """How a server writes a stream; the defaults are OpenAI's way."""

    index: str = "from 0"
    id: str = "once"
    name: str = "once"
    type: str = "once"
    arguments: str = "fragments"
    name_alone: bool = True
    interleaved: bool = False
    empty_content: Any = "absent"
    roles: str = "first"
    finish: str = "tool_calls"
    finish_in_last: bool = False
    usage: str = "none"
    newline: str = "\n"
    colon: str = ": "
    noise: str = ""
    bom: bool = False
    done: bool = True
    size: int = 1000


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
arguments = st.dictionaries(
    st.sampled_from(["city", "note"]),
    st.one_of(texts, st.sampled_from(['"', "\\", "{}", "[1]", "é😀"])),
    max_size=2,
)
calls = st.tuples(st.sampled_from(["echo", "other"]), arguments)
turns = st.builds(
    Turn, text=texts, reasoning=texts, calls=st.lists(calls, min_size=1, max_size=3).map(tuple)
)  # fmt: skip
conversations = st.tuples(
    st.lists(turns, max_size=2), st.builds(Turn, text=texts.filter(bool), reasoning=texts)
).map(lambda parts: [*parts[0], parts[1]])


@st.composite
def quirks(draw: st.DrawFn) -> Quirks:
    """Every combination that leaves it clear which fragment belongs to which call."""
    pick = lambda *options: draw(st.sampled_from(options))  # noqa: E731
    index = pick("from 0", "from 1", "gaps", "none", "all 0", "null")
    ids = pick("once", "always", "then null", "then empty", "never", "another each time")
    told_apart = index in ("from 0", "from 1", "gaps")
    return Quirks(
        index=index,
        id=ids,
        name=pick("once", "then null", "then empty", *(["always"] if ids != "another each time" else [])),
        type=pick("once", "always", "never"),
        arguments=pick("whole", "fragments", "object", "twice"),
        name_alone=draw(st.booleans()) and (told_apart or ids != "never"),
        interleaved=draw(st.booleans()) and (told_apart or (index in ("none", "null") and ids == "always")),
        empty_content=pick("absent", None, ""),
        roles=pick("first", "always", "never", "null"),
        finish=pick("tool_calls", "stop", "TOOL_CALLS", "function_call"),
        finish_in_last=draw(st.booleans()),
        usage=pick("none", "last", "with finish", "always"),
        newline=pick("\n", "\r\n", "\r"),
        colon=pick(": ", ":"),
        noise=pick("", ": ping", "event: message", "id: 7\nretry: 10", ": a\n: b"),
        bom=draw(st.booleans()),
        done=draw(st.booleans()),
        size=pick(1, 7, 64, 100_000),
    )


def rendered(turn: Turn, how: Quirks, number: int) -> list[bytes]:
    """The stream of one turn, in parts as the network cuts it; `number` makes its ids unique."""
    deltas = list(_deltas(turn, how, number))
    chunks = [_chunk(delta, how, first=n == 0) for n, delta in enumerate(deltas)]
    finish = how.finish if turn.calls else "stop"
    if how.finish_in_last and chunks:
        chunks[-1]["choices"][0]["finish_reason"] = finish
    else:
        chunks.append({**_chunk({}, how, first=not chunks)})
        chunks[-1]["choices"][0]["finish_reason"] = finish
    if how.usage == "with finish":
        chunks[-1]["usage"] = usage_of(turn)
    if how.usage == "always":
        chunks = [{**chunk, "usage": usage_of(turn, n + 1 == len(chunks))} for n, chunk in enumerate(chunks)]
    if how.usage == "last":
        chunks.append({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
                       "usage": usage_of(turn)})  # fmt: skip
    return _cut(_written(chunks, how), how.size)


def usage_of(turn: Turn, final: bool = True) -> JSON:
    """What a turn costs; a running total is less before its end."""
    return {"total_tokens": 10 + len(turn.text) if final else 1}


def _deltas(turn: Turn, how: Quirks, number: int) -> Iterator[JSON]:
    for piece in _pieces(turn.reasoning):
        yield {"reasoning_content": piece}
    for piece in _pieces(turn.text):
        yield {"content": piece}
    queues = [list(_fragments(position, call, how, number)) for position, call in enumerate(turn.calls)]
    order = _zipped(queues) if how.interleaved else [f for queue in queues for f in queue]
    empty = {} if how.empty_content == "absent" else {"content": how.empty_content}
    for fragment in order:
        yield {**empty, "tool_calls": [fragment]}


def _fragments(position: int, call: tuple[str, JSON], how: Quirks, number: int) -> Iterator[JSON]:
    name, values = call
    for n, piece in enumerate(_argument_pieces(values, how)):
        fragment: JSON = {"function": {}}
        match how.index:
            case "from 0" | "from 1" | "gaps":
                fragment["index"] = {"from 0": position, "from 1": position + 1, "gaps": position * 3}[
                    how.index
                ]
            case "all 0":
                fragment["index"] = 0
            case "null":
                fragment["index"] = None
        own = f"id{number}x{position}"
        if how.id == "another each time":
            fragment["id"] = f"{own}x{n}"
        fragment |= _once(how.id, n, "id", own)
        fragment["function"] |= _once(how.name, n, "name", name)
        fragment |= _once(how.type, n, "type", "function")
        if piece is not None:
            fragment["function"]["arguments"] = piece
        yield fragment


def _once(style: str, n: int, key: str, value: str) -> JSON:
    if style == "never":
        return {}
    if n == 0 or style == "always":
        return {key: value}
    return {"then null": {key: None}, "then empty": {key: ""}}.get(style, {})


def _argument_pieces(values: JSON, how: Quirks) -> list[Any]:
    text = json.dumps(values, ensure_ascii=False)
    match how.arguments:
        case "object":
            pieces: list[Any] = [values]
        case "twice":
            pieces = [json.dumps(text)]
        case "whole":
            pieces = [text]
        case _:
            pieces = _pieces(text)
    return [None, *pieces] if how.name_alone else pieces


def _pieces(text: str) -> list[str]:
    return [text[n : n + 4] for n in range(0, len(text), 4)]


def _zipped(queues: list[list[JSON]]) -> list[JSON]:
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[n] for n in range(longest) for queue in queues if n < len(queue)]


def _chunk(delta: JSON, how: Quirks, *, first: bool) -> JSON:
    if how.roles == "always" or (how.roles == "first" and first):
        delta = {"role": "assistant", **delta}
    elif how.roles == "null":
        delta = {"role": None, **delta}
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def _written(chunks: list[JSON], how: Quirks) -> bytes:
    payloads = [json.dumps(chunk) for chunk in chunks] + (["[DONE]"] if how.done else [])
    noise = f"{how.noise}\n\n" if how.noise.startswith(":") else f"{how.noise}\n" if how.noise else ""
    text = "".join(f"{noise}data{how.colon}{payload}\n\n" for payload in payloads)
    return (b"\xef\xbb\xbf" if how.bom else b"") + text.replace("\n", how.newline).encode()


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[n : n + size] for n in range(0, len(data), size)]
