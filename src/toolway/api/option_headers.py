"""The headers `X-Toolway-*`, by which a request of any dialect asks something of Toolway itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from toolway.engine.request_options import RequestOptions
from toolway.errors import InvalidRequest
from toolway.settings.profiles import SearchMode
from toolway.types import Choice, Header

TOOLS = b"x-toolway-tools"
TOOL_SEARCH = b"x-toolway-tool-search"
MAX_ROUNDS = b"x-toolway-max-rounds"
MAX_CALLS = b"x-toolway-max-calls"
MAX_SECONDS = b"x-toolway-max-seconds"

NO_OPTIONS = RequestOptions()

_KNOWN = frozenset({TOOLS, TOOL_SEARCH, MAX_ROUNDS, MAX_CALLS, MAX_SECONDS})


def read_option_headers(headers: Sequence[Header]) -> RequestOptions:
    """What `Caller.option_headers` ask. Raises InvalidRequest for one that says nothing."""
    if not headers:
        return NO_OPTIONS
    found = dict(headers)
    if unknown := found.keys() - _KNOWN:
        # Not read, it would leave open what was to be closed.
        known = ", ".join(sorted(name.decode() for name in _KNOWN))
        raise InvalidRequest(
            f"There is no header {min(unknown).decode('latin-1')[:100]}; those that are: {known}."
        )
    return RequestOptions(
        selection=[_choices(value) for name, value in headers if name == TOOLS],
        tool_search=_mode(found),
        max_rounds=_number(found, MAX_ROUNDS),
        max_calls=_number(found, MAX_CALLS),
        max_seconds=_number(found, MAX_SECONDS),
    )


def _number(headers: dict[bytes, bytes], name: bytes) -> float | None:
    if name not in headers:
        return None
    text = headers[name].decode("latin-1").strip()
    if not text.isascii() or not text.replace(".", "", 1).isdigit() or len(text) > 20:
        raise InvalidRequest(f"The header {name.decode()} must be a number from 0 on, not {text[:50]!r}.")
    return float(text)


def _mode(headers: dict[bytes, bytes]) -> SearchMode | None:
    text = headers.get(TOOL_SEARCH, b"").decode("latin-1").strip().lower()
    mode = next((mode for mode in get_args(SearchMode) if mode == text), None)
    if mode is None and TOOL_SEARCH in headers:
        raise InvalidRequest(f"The header {TOOL_SEARCH.decode()} must be auto, on or off, not {text[:50]!r}.")
    return mode


def _choices(value: bytes) -> list[Choice]:
    """`none`, or patterns separated by commas."""
    patterns = [part.strip() for part in value.decode("latin-1").split(",") if part.strip()]
    if not patterns:
        raise InvalidRequest("The header x-toolway-tools must be none or patterns like weather,git.*")
    return [] if patterns == ["none"] else [Choice(patterns=tuple(patterns))]
