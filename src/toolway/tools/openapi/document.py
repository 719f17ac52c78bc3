"""The bytes of an OpenAPI document -> a JSON object, bounded in depth and size, or a SourceError that says why not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from toolway.errors import SourceError
from toolway.types import JSON
from toolway.wire.large_json import STEP, loads_in_steps
from toolway.wire.lenient_json import loads_harmless

MAX_PARTS = 2_000_000
"""Values in a JSON document."""


def parse_document(content: bytes) -> JSON:
    """The document as a JSON object: JSON, or YAML by the rules of YAML 1.2 (`no` and `2024-01-01` are strings).

    Raises SourceError (stage "parse") for anything else: HTML, another format, another kind of JSON.
    """
    content = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if content[:1] in (b"{", b"["):
        document = _parse_json(content)
    elif content[:1] == b"<":
        raise SourceError("is HTML or XML, not an OpenAPI document", stage="parse")
    else:
        document = _parse_yaml(content)
    version_of(document)
    assert isinstance(document, dict)  # noqa: S101
    return document


def version_of(document: Any) -> str:
    """`3.1.0`, `2.0`, ... Raises SourceError when this is no OpenAPI document, or one of a version unknown here."""
    if not isinstance(document, dict):
        raise SourceError("is not an OpenAPI document: no object at its top", stage="parse")
    version = str(document.get("openapi") or document.get("swagger") or "")
    if not version:
        raise SourceError('is not an OpenAPI document: neither "openapi" nor "swagger" in it', stage="parse")
    if not version.startswith(("2.", "3.")):
        raise SourceError(f"is OpenAPI {version[:20]}; 2.0 and 3.x can be read", stage="parse")
    return version


def _parse_json(content: bytes) -> Any:
    try:
        if len(content) > STEP:
            with suppress(ValueError):
                return loads_in_steps(content, loads=loads_harmless)  # an example may hold twenty digits
        return loads_harmless(content, max_parts=MAX_PARTS)
    except ValueError as error:
        try:
            return _parse_yaml(content)  # flow-style YAML starts like JSON
        except SourceError:
            raise SourceError(f"is broken JSON: {error}", stage="parse") from error


def _parse_yaml(content: bytes) -> Any:
    from toolway.tools.openapi.yaml_document import parse_yaml  # noqa: PLC0415 - 4 MB, where a document is YAML

    return parse_yaml(content)
