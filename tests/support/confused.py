"""Requests to /mcp and to the REST service with values of wrong types in some of their places."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import orjson

from tests.support.hostile import hostile
from toolway.wire.lenient_json import dumps

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}

METHODS = [
    "tools/call", "tools/list", "prompts/get", "prompts/list", "resources/read", "resources/list",
    "resources/templates/list", "completion/complete", "logging/setLevel", "server/discover", "ping", "initialize",
]  # fmt: skip
GOOD: dict[str, Any] = {
    "name": "echo", "arguments": {"value": 1}, "uri": "toolway://rich/note://rich/1", "cursor": "after:a",
    "ref": {"type": "ref/prompt", "name": "rich__write"}, "argument": {"name": "topic", "value": "t"},
    "level": "info", "requestState": "s", "inputResponses": {"q": {}}, "_meta": {"progressToken": 1},
}  # fmt: skip


def confused(chance: Random) -> bytes:
    """A request with values of wrong types in some of its places."""
    params = {key: value for key, value in GOOD.items() if chance.random() < 0.5}
    for key in list(params):
        if chance.random() < 0.4:
            params[key] = hostile(chance, 3)
    meta = params.get("_meta")
    params["_meta"] = {**(meta if isinstance(meta, dict) else {}), **MODERN}
    body: Any = {
        "jsonrpc": "2.0",
        "id": chance.randint(1, 99),
        "method": chance.choice(METHODS),
        "params": params,
    }
    if chance.random() < 0.2:
        body[chance.choice(list(body))] = hostile(chance, 3)
    try:
        return json.dumps(body).encode()
    except (ValueError, RecursionError):
        return orjson.dumps(MODERN)


def read_again(body: bytes) -> dict[str, Any]:
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return read if isinstance(read, dict) else {}


def legal(value: Any) -> str:
    """As a header, if that can be."""
    fits = isinstance(value, str) and value.strip() and value.isascii() and value.isprintable()
    return value.strip()[:100].rstrip() if fits else "x"


def modern_headers(body: bytes) -> dict[str, str]:
    """The headers of 2026-07-28 that go with a body, as far as they can."""
    read = read_again(body)
    method, params = read.get("method"), read.get("params")
    name = params.get("name", params.get("uri")) if isinstance(params, dict) else None
    return {"mcp-protocol-version": "2026-07-28", "mcp-method": legal(method), "mcp-name": legal(name)}


PATHS = (
    "echo", "order", "nobody", "a/b", "a/b/c", "", "..", "%2e%2e", "openapi.json", "plain/echo", "other/echo",
)  # fmt: skip
ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "kind": {"enum": ["new", "used", None]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "uniqueItems": True},
        "note": {"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, {"type": "null"}]},
    },
    "required": ["count"],
    "additionalProperties": False,
    "$defs": {"item": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
}
"""Arguments with something of everything in them."""

_ARGUMENTS: dict[str, Any] = {"count": 3, "kind": "new", "items": [{"name": "a"}], "note": "x"}


def confused_arguments(chance: Random) -> bytes:
    """The body of a call over REST."""
    arguments = {name: value for name, value in _ARGUMENTS.items() if chance.random() < 0.7}
    for name in [*arguments, "more"]:
        if chance.random() < 0.3:
            arguments[name] = hostile(chance, 3)
    whole = hostile(chance, 2) if chance.random() < 0.1 else arguments
    body = dumps(whole)
    if chance.random() < 0.2:
        cut = chance.randint(0, len(body))
        body = body[:cut] + chance.choice([b"", b"\x00", b"\xff", b"}", b'"', b"1e999", b"\\ud800"])
    return body
