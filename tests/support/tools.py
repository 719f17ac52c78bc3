"""A small OpenAPI tool service that counts its calls, and can be told to misbehave."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import orjson

from tests.support.gate import Departures

JSON = dict[str, Any]


def document(operations: dict[str, JSON], title: str = "Test tools") -> JSON:
    """An OpenAPI 3.1 document with one POST operation for each name: its JSON Schema is the body."""
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": {
            f"/{name}": {
                "post": {
                    "operationId": name,
                    "summary": f"Runs {name}",
                    "requestBody": {"content": {"application/json": {"schema": schema}}, "required": True},
                    "responses": {"200": {"description": "ok"}},
                }
            }
            for name, schema in operations.items()
        },
    }


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NOTHING: JSON = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Raw:
    """An answer to the byte, where a behaviour returns one in place of a JSON value."""

    body: bytes
    status: int = 200
    kind: bytes = b"application/json"


Behaviour = Callable[[JSON], Awaitable[Any]]


class ToolService:
    """`calls` holds (tool, arguments) in the order they came, `departures` the tools that were not waited for.

    `document` may be changed, also to a Raw answer.
    """

    def __init__(self, **behaviours: Behaviour) -> None:
        self.calls: list[tuple[str, JSON]] = []
        self.departures = Departures()
        self.behaviours: dict[str, Behaviour] = {
            "get_weather": self._weather,
            "list_cities": self._cities,
            **behaviours,
        }
        self.document: Any = document(
            {name: CITY if name != "list_cities" else NOTHING for name in self.behaviours}
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        name = scope["path"].strip("/")
        if name == "openapi.json":
            await self._answer(send, 200, self.document)
        elif name in self.behaviours:
            arguments = json.loads(body) if body else {}
            self.calls.append((name, arguments))
            await self._run(name, arguments, receive, send)
        else:
            await self._answer(send, 404, {"detail": "Not Found"})

    async def _run(self, name: str, arguments: JSON, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.departures.note(name)
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self._answer(send, 200, await self.behaviours[name](arguments))
            group.cancel_scope.cancel()

    @staticmethod
    async def _answer(send: Any, status: int, value: Any) -> None:
        raw = value if isinstance(value, Raw) else Raw(orjson.dumps(value), status)
        headers = [(b"content-type", raw.kind)]
        await send({"type": "http.response.start", "status": raw.status, "headers": headers})
        await send({"type": "http.response.body", "body": raw.body})

    @staticmethod
    async def _weather(arguments: JSON) -> JSON:
        return {"city": arguments["city"], "sky": "cloudy"}

    @staticmethod
    async def _cities(_: JSON) -> list[str]:
        return ["Paris", "Rome"]
