"""The digest of a tool: what models and people are told of it, in one value that changes with any of it."""

from __future__ import annotations

import hashlib
from weakref import WeakKeyDictionary

from toolway.types import Tool
from toolway.wire.lenient_json import dumps

_digests: WeakKeyDictionary[Tool, str] = WeakKeyDictionary()


def digest_of(tool: Tool) -> str:
    """SHA-256 over the server's label and the tool's name, description, schema and annotations, in canonical JSON."""
    known = _digests.get(tool)
    if known is None:
        told = [tool.server, tool.name, tool.description, tool.parameters, tool.annotations]
        known = _digests[tool] = hashlib.sha256(dumps(told, sort_keys=True)).hexdigest()
    return known
