"""The OpenAPI 3.1 document of the catalog: each tool an operation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from orjson import Fragment

from toolway import __version__
from toolway.tools.forwarding_loops import passed_on
from toolway.tools.openapi.document_schemas import document_schema
from toolway.types import JSON, Tool
from toolway.wire.lenient_json import dumps

_ERRORS = {
    "400": "The body is not a JSON object.",
    "404": "There is no such tool.",
    "422": "The arguments do not fit; `errors` names the members that are wrong.",
    "502": "The tool failed; `detail` has its words.",
    "504": "The tool did not answer in time.",
}

PROBLEM: JSON = {
    "type": "object",
    "title": "Problem",
    "description": "An error, as RFC 9457 has it.",
    "required": ["title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, in words."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "A JSON pointer to the member."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class _PathItem:
    """The path item of a tool, and the schemas that it refers to by their names; both are JSON already."""

    item: Fragment
    schemas: Mapping[str, Fragment]


_path_items: WeakKeyDictionary[Tool, dict[str, _PathItem]] = WeakKeyDictionary()


def openapi_document(
    tools: Mapping[str, Tool], *, profile: str, root: str, paths: str, has_keys: bool, toolway: str
) -> bytes:
    """The document for `tools` by name, which are all or a profile's. Its paths begin with `paths`, below `root`.

    Clients show its title as the name of a server. `toolway` is the name of this Toolway in the paths that tools take.
    A tool that was in none before takes up to some milliseconds.
    """
    title, whose = (
        (f"Toolway: {profile}", f"the profile {profile}") if profile else ("Toolway", "all servers")
    )
    made = {name: _path_item(name, tool, toolway) for name, tool in tools.items()}
    schemas = {name: schema for one in made.values() for name, schema in one.schemas.items()}
    components: JSON = {"schemas": {**schemas, "toolway.problem": PROBLEM}}
    document: JSON = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": __version__,
            "description": f"The tools of {whose} behind this Toolway.",
        },
        "paths": {f"{paths}/{name}": one.item for name, one in made.items()},
        "components": components,
    }
    if root:
        document["servers"] = [{"url": root}]
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return dumps(document)


def _path_item(name: str, tool: Tool, toolway: str) -> _PathItem:
    made = _path_items.setdefault(tool, {})
    if name not in made:
        made[name] = _new_path_item(name, tool, passed_on(tool, toolway))
    return made[name]


def _new_path_item(name: str, tool: Tool, extra: JSON) -> _PathItem:
    schemas = {name: document_schema(tool.parameters, _at(name))}
    answer: JSON = {}
    output = tool.extra.get("outputSchema")
    if isinstance(output, dict):
        # The name of no tool has a full stop in it.
        schemas[f"{name}.result"] = document_schema(output, _at(f"{name}.result"))
        answer = {"$ref": _at(f"{name}.result")}
    title = tool.extra.get("title")
    body = {"content": {"application/json": {"schema": {"$ref": _at(name)}}}}
    operation: JSON = {
        "operationId": name,
        "summary": title if isinstance(title, str) and title else _words(tool.name),
        "tags": [tool.server],
        "requestBody": {**body, "required": bool(tool.parameters.get("required"))},
        "responses": {
            "200": {
                "description": "What the tool returned.",
                "content": {"application/json": {"schema": answer}},
            },
            **{status: _problem(text) for status, text in _ERRORS.items()},
        },
        "x-mcp": {**extra, **({"annotations": tool.annotations} if tool.annotations else {})},
    }
    if tool.description:
        operation["description"] = tool.description
    return _PathItem(
        item=Fragment(dumps({"post": operation})),
        schemas={name: Fragment(dumps(schema)) for name, schema in schemas.items()},
    )


def _at(component: str) -> str:
    return f"#/components/schemas/{component}"


def _problem(description: str) -> JSON:
    schema: Any = {"$ref": _at("toolway.problem")}
    return {"description": description, "content": {"application/problem+json": {"schema": schema}}}


def _words(name: str) -> str:
    """`get_weather` and `getWeather` -> `Get weather`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\W]+", " ", name).split()
    return " ".join(words).capitalize() or name
