"""Tool calls that a model wrote as text, in the markups that are common, as calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from toolway.conversation.tool_calls import new_id
from toolway.types import JSON, ToolCall

MAX_CHARS = 200_000
"""A longer text is nobody's call."""

Known = Callable[[str], bool]
"""Whether there is a tool of this name."""

_Found = tuple[list[tuple[str, Any]], str]
"""Names and arguments of the calls at the beginning of a text, and what comes behind them."""

_OPENERS = {
    "<tool_call>": "</tool_call>",
    "<function=": "</function>",
    "[TOOL_CALLS]": "</s>",
    "[TOOL_REQUEST]": "[END_TOOL_REQUEST]",
    "<|python_tag|>": "<|eom_id|>",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>": "<｜tool▁call▁end｜>",
    "<|start|>assistant<|channel|>commentary": "<|call|>",
    "<|channel|>commentary": "<|call|>",
}
"""How a call begins, and how it ends where the server shows it."""
CLOSERS = (*_OPENERS.values(), "<|eot_id|>", "<|im_end|>", "</s>", "```")
_FENCES = ("```json", "```tool_call", "```tool_code")
_FENCE = re.compile(r"```(?:json|tool_call|tool_code)?[ \t]*\n?")
_KEYS = ("name", "function", "type", "id")
"""What the JSON of a call may begin with."""
_JSON_START = re.compile(r"(?:\[\s*)?\{\s*\"(?:name|function|type|id)\"\s*:")
_NAMED = re.compile(r"\"name\"\s*:\s*\"(?P<name>[^\"\\]*)\"")
_NAMED_WITHIN = 300
"""Characters of JSON in which the tool's name must have come."""

_HERMES = re.compile(r"<tool_call>\s*(?P<inner>.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=(?P<name>[^>\s]+)>(?P<inner>.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=(?P<name>[^>\s]+)>\n?(?P<value>.*?)\n?</parameter>\s*", re.DOTALL)
_MISTRAL = re.compile(
    r"(?:\[TOOL_CALLS\])?\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\w*)?\s*(?:\[ARGS\])?\s*(?=\{)"
)
_DEEPSEEK = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[\w.-]+)(?:<｜tool▁sep｜>)?\s*(?:```json\s*)?"
    r"(?P<inner>\{.*?\})\s*(?:```\s*)?<｜tool▁call▁end｜>\s*",
    re.DOTALL,
)
_HARMONY = re.compile(
    r"(?:<\|start\|>assistant)?<\|channel\|>commentary\s+to=(?:functions\.)?(?P<name>[\w-]+)"
    r"\s*(?:<\|constrain\|>)?\s*(?:json)?\s*<\|message\|>\s*(?=\{)"
)
_ENDS = re.compile(r"(?:<\|(?:call|eom_id|eot_id|im_end)\|>|</s>|\[END_TOOL_REQUEST\]|[;,]|\s)*")


def may_become_calls(text: str, known: Known) -> bool:
    """Whether `text`, the beginning of an answer, may still turn out to be nothing but calls of known tools."""
    text = text.lstrip()
    if len(text) > MAX_CHARS:
        return False
    if not text or any(opener.startswith(text) for opener in (*_OPENERS, *_FENCES)):
        return True
    for opener, closer in _OPENERS.items():
        if text.startswith(opener):
            closed = text.rfind(closer)
            return closed < 0 or _may_go_on(text[closed + len(closer) :], known)
    if fence := _FENCE.match(text):
        return _may_become_fenced(text[fence.end() :].lstrip(), known)
    return _may_become_json(text, known)


def _may_become_fenced(inner: str, known: Known) -> bool:
    if "```" not in inner:
        return not inner or _may_become_json(inner, known)
    try:
        behind = _value(inner)[1]
    except json.JSONDecodeError as error:  # a fence in a text of the JSON is no end of it
        within = error.pos > inner.rindex("```") or error.msg.startswith("Unterminated string")
        return within and _may_become_json(inner, known)
    except (ValueError, RecursionError):
        return False
    return "```".startswith(behind) or (behind.startswith("```") and _may_go_on(behind[3:], known))


def _may_go_on(text: str, known: Known) -> bool:
    """Whether what stands behind a call may still become calls, or marks of the end."""
    text = _behind_ends(text)
    return may_become_calls(text, known) or any(closer.startswith(text) for closer in CLOSERS)


def _behind_ends(text: str) -> str:
    """The text without the marks of an end that it begins with."""
    return text[_length(_ENDS.match(text)) :]


def _may_become_json(text: str, known: Known) -> bool:
    text = text.lstrip()
    if not _JSON_START.match(text):
        squeezed = re.sub(r"\s+", "", text)
        return any(form.startswith(squeezed) for key in _KEYS for form in (f'{{"{key}":', f'[{{"{key}":'))
    named = _NAMED.search(text[:_NAMED_WITHIN])
    return known(named["name"]) if named else len(text) < _NAMED_WITHIN


def read_calls(text: str, known: Known) -> tuple[ToolCall, ...]:
    """The calls that `text` consists of; none when it holds anything else or names an unknown tool."""
    if len(text) > MAX_CHARS:
        return ()
    text = text.strip()
    found = _try_all_calls(text) or _try_all_calls(_without_cut_closer(text))
    if not found or not all(known(name) and isinstance(arguments, dict) for name, arguments in found):
        return ()
    return tuple(
        ToolCall(id=new_id(), name=name, arguments=json.dumps(arguments, ensure_ascii=False))
        for name, arguments in found
    )


def is_cut_call(text: str, known: Known) -> bool:
    """Whether an answer that the server cut is nothing but the beginning of calls of known tools."""
    text = text.lstrip()
    if text.startswith(tuple(_OPENERS)):
        return True
    named = _NAMED.search(text[:_NAMED_WITHIN])
    return named is not None and known(named["name"]) and may_become_calls(text, known)


def _without_cut_closer(text: str) -> str:
    """The text without the mark of an end of which it has only a beginning, since the server cut it."""
    starts = (closer[:size] for closer in CLOSERS for size in range(len(closer) - 1, 0, -1))
    cut = max((start for start in starts if text.endswith(start)), key=len, default="")
    return text.removesuffix(cut).rstrip() if cut else ""


def _try_all_calls(text: str) -> list[tuple[str, Any]]:
    try:
        return _all_calls(text)
    except (ValueError, RecursionError):
        return []


def _all_calls(text: str) -> list[tuple[str, Any]]:
    calls: list[tuple[str, Any]] = []
    while text:
        for form in _FORMS:
            found = form(text)
            if found is not None:
                more, text = found
                calls += more
                text = _behind_ends(text)
                break
        else:
            return []
    return calls


def _length(match: re.Match[str] | None) -> int:
    return match.end() if match else 0


def _hermes(text: str) -> _Found | None:
    if not (match := _HERMES.match(text)):
        return None
    calls = _all_calls(match["inner"])
    return (calls, text[match.end() :]) if calls or not match["inner"] else None


def _function(text: str) -> _Found | None:
    """Qwen3-Coder's parameters as elements, or Llama's as JSON."""
    if not (match := _FUNCTION.match(text)):
        return None
    inner, arguments = match["inner"].strip(), {}
    if inner.startswith("{"):
        return [(match["name"], json.loads(inner))], text[match.end() :]
    while inner:
        if not (parameter := _PARAMETER.match(inner)):
            return None
        arguments[parameter["name"]] = parameter["value"]
        inner = inner[parameter.end() :]
    return [(match["name"], arguments)], text[match.end() :]


def _mistral(text: str) -> _Found | None:
    if not text.startswith("[TOOL_CALLS]"):
        return None
    rest = text.removeprefix("[TOOL_CALLS]").lstrip()
    if rest.startswith(("[", "{")):
        return _json(rest)
    calls = []
    while match := _MISTRAL.match(rest):
        arguments, rest = _value(rest[match.end() :])
        calls.append((match["name"], arguments))
    return (calls, rest) if calls else None


def _lm_studio(text: str) -> _Found | None:
    if not text.startswith("[TOOL_REQUEST]"):
        return None
    return _json(text.removeprefix("[TOOL_REQUEST]").lstrip())


def _llama(text: str) -> _Found | None:
    return _json(text.removeprefix("<|python_tag|>").lstrip()) if text.startswith("<|python_tag|>") else None


def _deepseek(text: str) -> _Found | None:
    rest, calls = text.removeprefix("<｜tool▁calls▁begin｜>").lstrip(), []
    while match := _DEEPSEEK.match(rest):
        calls.append((match["name"], json.loads(match["inner"])))
        rest = rest[match.end() :]
    return (calls, rest.removeprefix("<｜tool▁calls▁end｜>")) if calls else None


def _harmony(text: str) -> _Found | None:
    if not (match := _HARMONY.match(text)):
        return None
    arguments, rest = _value(text[match.end() :])
    return [(match["name"], arguments)], rest


def _fenced(text: str) -> _Found | None:
    if not (fence := _FENCE.match(text)):
        return None
    found = _json(text[fence.end() :].lstrip())
    if found is None or (found[1] and not found[1].startswith("```")):
        return None
    return found[0], found[1].removeprefix("```")


def _json(text: str) -> _Found | None:
    """One call as an object, or a list of them."""
    if not text.startswith(("{", "[")):
        return None
    value, rest = _value(text)
    calls = [_call(item) for item in (value if isinstance(value, list) else [value])]
    return None if None in calls else ([call for call in calls if call], rest)


def _call(value: Any) -> tuple[str, Any] | None:
    """A call in any of the shapes of its JSON; None for an object that is something else."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or set(value) - {"name", "arguments", "parameters", "type", "id"}:
        return None
    arguments: JSON | str | None = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    name = value.get("name")
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def _value(text: str) -> tuple[Any, str]:
    """The JSON value that `text` begins with, and what comes behind it; raises ValueError."""
    value, end = _DECODER.raw_decode(text)
    return value, text[end:].lstrip()


_DECODER = json.JSONDecoder(strict=False)
_FORMS: Sequence[Callable[[str], _Found | None]] = (
    _hermes,
    _function,
    _mistral,
    _lm_studio,
    _llama,
    _deepseek,
    _harmony,
    _fenced,
    _json,
)
