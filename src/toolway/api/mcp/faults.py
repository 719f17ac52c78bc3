"""Why a body that was sent to /mcp is no message of JSON-RPC, or opens no session: in words, and with the right code.

The SDK's transport tells pydantic's findings as invalid params, and hands out the id of a session that it refuses.
"""

from __future__ import annotations

import json
from typing import Any

from mcp_types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    ErrorData,
    InitializeRequestParams,
    JSONRPCError,
    JSONRPCRequest,
)
from mcp_types.jsonrpc import jsonrpc_message_adapter
from pydantic import ValidationError

_SHOWN = 100
"""Characters of a finding's place and words."""


def fault_of(body: bytes) -> JSONRPCError | None:
    """The error to answer in place of the transport, with status 400; None for what it can read or says well itself."""
    try:
        decoded = json.loads(body)
        message = jsonrpc_message_adapter.validate_python(decoded, by_name=False)
    except ValidationError:
        return _error(decoded, INVALID_REQUEST, f"This is no message of JSON-RPC 2.0: {_why(decoded)}.")
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, JSONRPCRequest) or message.method != "initialize":
        return None
    try:
        InitializeRequestParams.model_validate(message.params or {}, by_name=False)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:_SHOWN]
        told = f"The params of initialize cannot be used: {place}: {first['msg'][:_SHOWN]}."
        return _error(decoded, INVALID_PARAMS, told)
    return None


def _error(decoded: Any, code: int, message: str) -> JSONRPCError:
    identity = decoded.get("id") if isinstance(decoded, dict) else None
    known = identity if isinstance(identity, int | str) and not isinstance(identity, bool) else None
    return JSONRPCError(jsonrpc="2.0", id=known, error=ErrorData(code=code, message=message))


def _why(decoded: Any) -> str:
    if isinstance(decoded, list):
        return "this version has no batches, send each message by itself"
    if not isinstance(decoded, dict):
        return "it must be an object"
    found = {
        '`jsonrpc` must be "2.0"': decoded.get("jsonrpc") != "2.0",
        "it has no `method`": not decoded.keys() & {"method", "result", "error"},
        "`method` must be a string": not isinstance(decoded.get("method", ""), str),
        "`params` must be an object": not isinstance(decoded.get("params", {}), dict),
        "a member has a value of a wrong type": True,
    }
    return next(why for why, holds in found.items() if holds)
