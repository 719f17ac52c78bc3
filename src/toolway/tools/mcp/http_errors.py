"""What HTTP says in place of an answer, as the error of the request; its `data` tells what `RpcError.http` is."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import orjson
from mcp_types import ErrorData

from toolway.tools.mcp.errors import HTTP_TROUBLE
from toolway.types import JSON

MAX_ERROR_BODY = 64 * 2**10
"""Bytes of an error's body that are read."""


def http_error(status: int, headers: Mapping[str, str], body: bytes, *, in_session: bool) -> ErrorData:
    """The error for an answer with a status from 400 on."""
    rpc_error = _jsonrpc_error(body)
    seen = {**what_was_seen(status, headers, in_session=in_session), "data": rpc_error.get("data")}
    message = rpc_error.get("message") or describe(status, headers, body)
    return ErrorData(code=rpc_error.get("code", -32000), message=str(message), data={HTTP_TROUBLE: seen})


def request_failed(words: str, *, is_unsent: bool, is_down: bool) -> ErrorData:
    """The error for a request that has no answer; the words follow "the server"."""
    trouble = {"unsent": is_unsent, "down": is_down}
    return ErrorData(code=-32000, message=f"the server {words}", data={HTTP_TROUBLE: trouble})


def what_was_seen(status: int, headers: Mapping[str, str], *, in_session: bool) -> JSON:
    """What the HTTP layer knows of an error."""
    return {
        "status": status,
        "session": in_session,
        "retry_after": headers.get("retry-after"),
        "authenticate": headers.get("www-authenticate"),
    }


def describe(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """An error in words."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    text = f"the server answered HTTP {status} {phrase}".rstrip()
    if retry_after := headers.get("retry-after"):
        text += f", to be tried again after {retry_after}"
    plain = "html" not in headers.get("content-type", "")
    excerpt = body[:300].decode(errors="replace").strip() if plain else ""
    return f"{text}: {excerpt}" if excerpt else text


def _jsonrpc_error(body: bytes) -> JSON:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("code"), int) else {}
