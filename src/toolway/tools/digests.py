"""The digest of a tool: what models and people are told of it, in one value that changes with any of it."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

from toolway.types import JSON, Tool
from toolway.wire.lenient_json import dumps

_digests: WeakKeyDictionary[Tool, str] = WeakKeyDictionary()


def definition_of(tool: Tool) -> JSON:
    """What its server tells of a tool: description, schemas, annotations, title; what is empty is left out."""
    definition = {
        "title": tool.extra.get("title"),
        "description": tool.description,
        "parameters": tool.parameters,
        "outputSchema": tool.extra.get("outputSchema"),
        "annotations": tool.annotations,
    }
    return {name: value for name, value in definition.items() if value}


def digest(server: str, name: str, definition: JSON) -> str:
    """SHA-256 over the server's label, the tool's name and its definition, in canonical JSON."""
    return hashlib.sha256(dumps([server, name, definition], sort_keys=True)).hexdigest()


def digest_of(tool: Tool) -> str:
    """The digest of a tool as its server tells of it now."""
    known = _digests.get(tool)
    if known is None:
        known = _digests[tool] = digest(tool.server, tool.name, definition_of(tool))
    return known
