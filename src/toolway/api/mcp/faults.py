"""Why a body that was sent to /mcp is no message of JSON-RPC, or opens no session: in words, and with the right code.

The SDK takes a request whose id is of a wrong type for a notification, tells pydantic's findings as invalid params, and
hands out the id of a session that it rejects.
"""

from __future__ import annotations

import json
from typing import Any

from mcp_types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PROTOCOL_VERSION_META_KEY,
    UNSUPPORTED_PROTOCOL_VERSION,
    ErrorData,
    InitializeRequestParams,
    JSONRPCError,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

VERSIONS = (*reversed(MODERN_PROTOCOL_VERSIONS), *reversed(HANDSHAKE_PROTOCOL_VERSIONS))
"""All that are spoken, the newest first."""

BATCH_VERSION = "2025-03-26"
"""The only one that has batches; a version that is not told is this one, says the specification."""

_SHOWN = 100
"""Characters of a finding's place and words, and of a version that nobody knows."""


def fault_of(body: bytes, version: str | None) -> JSONRPCError | None:
    """The error to answer in place of the SDK, with status 400; None for what it can read or says well itself.

    `version` is what the header tells.
    """
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if why := _why(decoded, version):
        return _error(decoded, INVALID_REQUEST, f"This is no message of JSON-RPC 2.0: {why}.")
    if version is not None and version not in VERSIONS:
        return _unsupported(decoded, version)
    is_handshake = version not in MODERN_PROTOCOL_VERSIONS
    if not is_handshake or decoded.get("method") != "initialize" or "id" not in decoded:
        return None
    try:
        InitializeRequestParams.model_validate(decoded.get("params") or {}, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:_SHOWN]
        message = f"The params of initialize cannot be used: {place}: {first['msg'][:_SHOWN]}."
        return _error(decoded, INVALID_PARAMS, message)
    return None


def is_response(decoded: Any) -> bool:
    """Whether a message answers one of ours."""
    return isinstance(decoded, dict) and not decoded.keys().isdisjoint(("result", "error"))


def _error(decoded: Any, code: int, message: str, data: Any = None) -> JSONRPCError:
    identity = decoded.get("id") if isinstance(decoded, dict) else None
    error = ErrorData(code=code, message=message, **({} if data is None else {"data": data}))
    return JSONRPCError(jsonrpc="2.0", id=identity if _is_id(identity) else None, error=error)


def _unsupported(decoded: Any, version: str) -> JSONRPCError | None:
    params = decoded.get("params")
    meta = params.get("_meta") if isinstance(params, dict) else None
    if isinstance(meta, dict) and PROTOCOL_VERSION_META_KEY in meta:
        return None  # the SDK compares the two
    return _error(
        decoded,
        UNSUPPORTED_PROTOCOL_VERSION,
        f"Unsupported protocol version {version[:_SHOWN]!r}; those that are: {', '.join(VERSIONS)}.",
        {"supported": list(VERSIONS), "requested": version[:_SHOWN]},
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _why(decoded: Any, version: str | None) -> str:
    """What is wrong with the envelope of a message; empty if nothing is."""
    if isinstance(decoded, list):
        return (
            "a batch holds no batch"
            if version in (None, BATCH_VERSION)
            else "this version has no batches, send each message by itself"
        )
    if not isinstance(decoded, dict):
        return "it must be an object"
    if decoded.get("jsonrpc") != "2.0":
        return '`jsonrpc` must be "2.0"'
    return _why_no_response(decoded) if is_response(decoded) else _why_no_request(decoded)


def _why_no_request(message: dict[str, Any]) -> str:
    if "method" not in message:
        return "it has no `method`"
    if not isinstance(message["method"], str):
        return "`method` must be a string"
    if "id" in message and not _is_id(message["id"]):
        return "`id` must be a string or an integer, and not be there in a notification"
    if not isinstance(message.get("params"), dict | None):
        return "`params` must be an object"
    return ""


def _why_no_response(message: dict[str, Any]) -> str:
    if "method" in message or message.keys() >= {"result", "error"}:
        return "it can have only one of `method`, `result` and `error`"
    if "id" not in message or not (_is_id(message["id"]) or ("error" in message and message["id"] is None)):
        return "the `id` of a response is that of its request"
    if "result" in message:
        return "" if isinstance(message["result"], dict) else "`result` must be an object"
    error = message["error"]
    is_error = (
        isinstance(error, dict)
        and isinstance(error.get("code"), int)
        and not isinstance(error["code"], bool)
        and isinstance(error.get("message"), str)
    )
    return "" if is_error else "`error` must be an object with the integer `code` and the string `message`"
