"""The logprobs of chat completions, as responses have them."""

from __future__ import annotations

import math
from typing import Any

from toolway.types import JSON
from toolway.wire.lenient_json import mended

UNLIKELY = -9999.0
"""How OpenAI writes the logprob of a token that is too unlikely; model servers write null or infinity."""


def read_logprobs(logprobs: Any) -> list[JSON]:
    """Those of the content in a choice's `logprobs`; what is no entry is passed over."""
    entries = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [{**_own(entry), "top_logprobs": _top(entry)} for entry in _objects(entries)]


def _top(entry: JSON) -> list[JSON]:
    return [_own(other) for other in _objects(entry.get("top_logprobs"))]


def _own(entry: JSON) -> JSON:
    token, logprob = entry.get("token"), entry.get("logprob")
    token = mended(token) if isinstance(token, str) else ""
    if not isinstance(logprob, int | float) or not math.isfinite(logprob):
        logprob = UNLIKELY
    return {"token": token, "logprob": float(logprob), "bytes": _bytes(entry, token)}


def _bytes(entry: JSON, token: str) -> list[int]:
    given = entry.get("bytes")
    if isinstance(given, list) and all(type(number) is int for number in given):
        return given
    return list(token.encode())


def _objects(value: Any) -> list[JSON]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
