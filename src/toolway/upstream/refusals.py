"""Error responses of model servers, classified by status and words: too long, too many, retry later, its own output."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from toolway.conversation.message import error_in
from toolway.errors import UpstreamError, UpstreamStatus

_OVERFLOW = re.compile(
    r"exceed_context_size|context_(?:length|window)_exceeded|context the overflows|prompt_tokens_exceeded"
    r"|max_model_len|context (?:length|size|window|limit)[^.]{0,60}exceed"
    r"|exceed[^.]{0,60}context (?:length|size|window|limit)|(?:prompt|input|request) (?:is )?too (?:long|large)"
    r"|(?:greater|longer|larger|more) than (?:the )?[^.]{0,30}(?:max_seq_len|context (?:length|size|window))"
    r"|maximum (?:context|prompt) length|model's (?:maximum )?context length|too large for model with"
    r"|reduce the length of (?:the )?(?:messages|input|prompt|either)|too many (?:input |prompt )?tokens"
    r"|(?:input|prompt) (?:token count|length)[^.]{0,60}exceed|exceeds? the maximum number of tokens"
    r"|(?:less than|at most|<=) \d+(?: tokens|\. given)|model token limit|length is \d+ while limit is",
    re.IGNORECASE,
)
"""The wordings of llama.cpp, OpenAI, vLLM, llama-cpp-python, LM Studio, Anthropic, Gemini, TGI, Mistral and others."""

_STATUSES = frozenset({400, 413, 422, 500})
_REQUEST_STATUSES = frozenset({400, 422, 501})
_BUSY_STATUSES = frozenset({429, 503, 529})
_BUSY_WORDS = re.compile(
    r"\b(?:429|503|529)\b|rate_limit|overloaded|unavailable_error|loading model", re.IGNORECASE
)
_NO_CREDIT = re.compile(r"insufficient_quota|billing|credit balance", re.IGNORECASE)
_TRY_AGAIN = re.compile(
    r'(?:try again in|retryDelay"?:\s*"?)\s*(?:(\d+)m(?!s))?\s*(\d+(?:\.\d+)?)\s*(ms|s)', re.IGNORECASE
)
_OWN_OUTPUT = re.compile(
    r"tool_use_failed|failed_generation|output_parse_failed|malformed_(?:function|tool)_call"
    r"|(?:failed|unable) to parse (?:the )?(?:tool|function|model|output|input at pos)"
    r"|tool call validation failed|not in request\.tools",
    re.IGNORECASE,
)
_ABOUT_TOOLS = re.compile(r"\b(?:tools?|functions?|toolconfig|tool_\w+|function_\w+)\b", re.IGNORECASE)
_TOO_MANY = re.compile(
    r"too (?:many|long)|max(?:imum|_length)?\b|at most|no more than|limit(?:ed)?\b|up to|exceed|must not have more",
    re.IGNORECASE,
)
_LIMIT_OF_TOOLS = re.compile(
    r"(?:max\w*|at most|no more than|limit\w*|up to)\D{0,30}?(\d+)\D{0,3}(?:tools|functions?|items)"
    r"|(?:tools|functions?)\W.{0,30}?(?:max\w*|at most|no more than|limit\w*|up to)\D{0,25}?(\d+)"
    r"|max\w* number of (?:tools|functions?)\D{0,10}(\d+)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?![\w])")


def text_of_error(error: UpstreamError) -> str:
    """All the words of an error."""
    if isinstance(error, UpstreamStatus):
        return error.body.decode(errors="replace")
    return f"{error.type} {error.code} {error.message}"


def is_refusal(error: UpstreamError) -> bool:
    """Whether the model server says that the request is wrong, and not too long, nor anybody's who may not ask."""
    if is_overflow(error):
        return False
    if isinstance(error, UpstreamStatus):
        about_tools = error.status == 500 and bool(_ABOUT_TOOLS.search(text_of_error(error)))
        return error.status in _REQUEST_STATUSES or about_tools
    return error.code in ("400", "422") or "invalid_request" in error.type


def is_overflow(error: UpstreamError) -> bool:
    """Whether the model server refused because the conversation is too long.

    A stream that is empty means it too: llama-cpp-python and some builds of LM Studio say no more than that.
    """
    if isinstance(error, UpstreamStatus):
        return error.status == 413 or (
            error.status in _STATUSES and bool(_OVERFLOW.search(text_of_error(error)))
        )
    if error.code == "upstream_cut":
        return "without" in error.message
    return bool(_OVERFLOW.search(text_of_error(error)))


def is_of_own_output(error: UpstreamError) -> bool:
    """Whether the model server could not read what its own model wrote (Groq's `tool_use_failed`)."""
    if isinstance(error, UpstreamStatus) and error.status not in _STATUSES:
        return False
    return bool(_OWN_OUTPUT.search(text_of_error(error)))


def own_output(error: UpstreamError) -> str:
    """The words of its model that the server could not read; empty when it does not show them."""
    text = _error_object(error).get("failed_generation") if isinstance(error, UpstreamStatus) else None
    return text if isinstance(text, str) else ""


def most_tools(error: UpstreamError, count: int) -> int | None:
    """How many tools the model server takes, by a refusal of `count` that says that these are too many; else None."""
    text = _message(error)
    if isinstance(error, UpstreamStatus) and error.status not in _STATUSES:
        return None
    if not (_ABOUT_TOOLS.search(text) and _TOO_MANY.search(text)) or is_overflow(error):
        return None
    numbers = _numbers_in(text)
    if count in numbers and (smaller := [number for number in numbers if 1 < number < count]):
        return max(smaller)
    limits = [int("".join(found)) for found in _LIMIT_OF_TOOLS.findall(text)]
    return max((limit for limit in limits if 1 < limit < count), default=None)


def refusal_code(error: UpstreamError) -> str | None:
    """The code by which clients know an error: its own word, or OpenAI's where it has a number or none."""
    inner = (_error_in_body(error) or error) if isinstance(error, UpstreamStatus) else error
    if inner.code and not inner.code.isdigit():
        return inner.code
    if is_overflow(error):
        return "context_length_exceeded"
    return "rate_limit_exceeded" if error.status == 429 or "rate_limit" in inner.type else inner.code


def seconds_to_wait(error: UpstreamError) -> float | None:
    """How long to wait before asking again, 0 when the server does not say; None when waiting is of no use.

    Read are `retry-after-ms`, `retry-after` (seconds or an HTTP date), and what OpenAI and Gemini write in the body.
    """
    text = text_of_error(error)
    passes = (
        error.status in _BUSY_STATUSES
        if isinstance(error, UpstreamStatus)
        else bool(_BUSY_WORDS.search(text))
    )
    if not passes or (error.code or "").startswith("upstream_") or _NO_CREDIT.search(text):
        return None
    headers = dict(error.headers) if isinstance(error, UpstreamStatus) else {}
    if (milliseconds := _positive(headers.get(b"retry-after-ms"))) is not None:
        return milliseconds / 1000
    if value := headers.get(b"retry-after"):
        seconds = _positive(value)
        return seconds if seconds is not None else _seconds_until(value)
    if match := _TRY_AGAIN.search(text):
        minutes, amount, unit = match.groups()
        return 60 * float(minutes or 0) + float(amount) / (1000 if unit.lower() == "ms" else 1)
    return 0.0


def with_hint(error: UpstreamError, hint: str) -> UpstreamError:
    """The same error with a sentence behind its message."""
    if not hint:
        return error
    if not isinstance(error, UpstreamStatus):
        error.message = f"{error.message} {hint}"
        return error
    body = _body(error)
    inner = body.get("error") if isinstance(body, dict) else None
    if isinstance(inner, dict):
        body = {**body, "error": {**inner, "message": f"{inner.get('message') or ''} {hint}".strip()}}
    elif isinstance(inner, str):
        body = {**body, "error": f"{inner} {hint}"}
    else:
        return error
    changed = UpstreamStatus(error.status, error.headers, orjson.dumps(body))
    changed.code = error.code
    return changed


def _positive(value: bytes | None) -> float | None:
    try:
        number = float(value or b"x")
    except ValueError:
        return None
    return number if 0 <= number < 1e9 else None


def _seconds_until(date: bytes) -> float:
    try:
        return max(0.0, parsedate_to_datetime(date.decode("latin-1")).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _error_in_body(error: UpstreamStatus) -> UpstreamError | None:
    """The error that the body of a refusal holds."""
    body = _body(error)
    return error_in(body) if isinstance(body, dict) else None


def _body(error: UpstreamStatus) -> Any:
    try:
        body: Any = orjson.loads(error.body)
    except orjson.JSONDecodeError:
        return None
    return body[0] if isinstance(body, list) and len(body) == 1 else body  # Gemini's


def _error_object(error: UpstreamStatus) -> dict[str, Any]:
    body = _body(error)
    found = body.get("error") if isinstance(body, dict) else None
    return found if isinstance(found, dict) else {}


def _message(error: UpstreamError) -> str:
    if not isinstance(error, UpstreamStatus):
        return error.message
    inner = _error_in_body(error)
    return inner.message if inner else text_of_error(error)


def excess_of(error: UpstreamError) -> float:
    """The share of the prompt that must go, with some room for an answer: 0.5 when the server names no numbers."""
    prompt, context = sizes_in(error)
    if not prompt or not context:
        return 0.5
    return min(0.95, max(0.1, 1 - 0.75 * context / prompt))


def sizes_in(error: UpstreamError) -> tuple[int, int]:
    """The tokens of the prompt and of the model's context, as a refusal names them; zeros where it does not.

    llama.cpp has members for them. All others write sentences, in which the two largest numbers are these: what was
    asked for is more than what there is, and parts of it are less than the whole.
    """
    if isinstance(error, UpstreamStatus):
        found = _error_object(error)
        prompt, context = found.get("n_prompt_tokens"), found.get("n_ctx")
        if type(prompt) is int and type(context) is int:
            return prompt, context
    numbers = sorted({number for number in _numbers_in(_message(error)) if 100 <= number < 10**8})
    return (numbers[-1], numbers[-2]) if len(numbers) > 1 else (0, 0)


def _numbers_in(text: str) -> list[int]:
    return [int(digits) for found in _NUMBER.findall(text) if len(digits := found.replace(",", "")) < 12]
