"""The OpenAPI document of the console's API, made from its routes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from toolway import __version__
from toolway.console.access import CHANGES, COOKIE
from toolway.console.routes import API, ConsoleRequest, Route
from toolway.types import JSON

_ERROR = {
    "description": "What is wrong, and what to do.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_TOKEN = {
    "name": CHANGES.decode(),
    "in": "header",
    "required": True,
    "description": "The token that GET /session tells; without it nothing is changed.",
    "schema": {"type": "string"},
}


def openapi_document(routes: Sequence[Route]) -> JSON:
    """OpenAPI 3.1 of these routes."""
    paths: JSON = {}
    for route in routes:
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "The console of Toolway",
            "version": __version__,
            "description": "What the page at / uses. On this machine without keys it is open to its user; else the "
            "cookie of a session is needed, which POST /session gives for a key of the console.",
        },
        "servers": [{"url": API}],
        "paths": paths,
        "components": {
            "securitySchemes": {"session": {"type": "apiKey", "in": "cookie", "name": COOKIE.decode()}},
            "schemas": {
                "Error": {
                    "type": "object",
                    "properties": {
                        "error": {
                            "type": "object",
                            "properties": {
                                "message": {"type": "string"},
                                "type": {"type": "string"},
                                "param": {"type": ["string", "null"]},
                                "code": {"type": ["string", "null"]},
                            },
                            "required": ["message", "type"],
                        }
                    },
                    "required": ["error"],
                }
            },
        },
        "security": [{}, {"session": []}],
    }


def document_route(routes: Sequence[Route]) -> Route:
    """The route that answers with the document of these routes, and of itself."""
    every: list[Route] = [*routes]

    async def answer(_: ConsoleRequest) -> JSON:
        return openapi_document(every)

    route = Route(method="GET", path="/openapi.json", handler=answer, summary="This document.")
    every.append(route)
    return route


def _path(route: Route) -> str:
    return route.path.replace("{}", "{name}")


def _operation(route: Route) -> JSON:
    parameters: list[JSON] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", _path(route))
    ]
    parameters += [
        {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}
        for name, description in route.query.items()
    ]
    if route.method != "GET":
        parameters.append(_TOKEN)
    kind = "text/event-stream" if route.streamer else "application/json"
    schema: JSON = {"type": "string"} if route.streamer else {"type": "object"}
    operation: JSON = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}".replace("{}", "one")).strip(
            "_"
        ),
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": route.answer or "The answer.", "content": {kind: {"schema": schema}}},
            "default": _ERROR,
        },
    }
    if route.body:
        content = {"application/json": {"schema": {"type": "object", "properties": route.body}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation
