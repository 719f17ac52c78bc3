"""The demo's OpenAPI service: a small real HTTP server with an openapi.json."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from toolway.demo.child import Child, OnLine, announce, running_child
from toolway.types import JSON

HOST = "127.0.0.1"

SAMPLE_WEATHER = {
    "Berlin": "partly cloudy at 17 degrees Celsius",
    "Cairo": "sunny at 33 degrees Celsius",
    "Lima": "foggy at 18 degrees Celsius",
    "London": "cloudy at 13 degrees Celsius",
    "Madrid": "sunny at 28 degrees Celsius",
    "New York": "windy at 16 degrees Celsius",
    "Oslo": "light snow at -3 degrees Celsius",
    "Paris": "light rain at 14 degrees Celsius",
    "Sydney": "clear at 23 degrees Celsius",
    "Tokyo": "clear at 21 degrees Celsius",
}
"""Sample data, and said to be in each answer: the demo needs no network."""


async def get_weather(request: Request) -> JSONResponse:
    """`GET /weather?city=Paris`."""
    city = request.query_params.get("city", "").strip()
    known = {name.casefold(): name for name in SAMPLE_WEATHER}
    if city.casefold() not in known:
        cities = ", ".join(SAMPLE_WEATHER)
        return JSONResponse({"error": f"No sample weather for {city!r}. There is some for: {cities}."}, 404)
    city = known[city.casefold()]
    return JSONResponse({"city": city, "weather": SAMPLE_WEATHER[city], "source": "sample data"})


def _schema(**properties: JSON) -> JSON:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _answers(description: str, schema: JSON, *, error: tuple[str, str]) -> JSON:
    status, trouble = error
    failure = _schema(error={"type": "string"})
    return {
        "200": {"description": description, "content": {"application/json": {"schema": schema}}},
        status: {"description": trouble, "content": {"application/json": {"schema": failure}}},
    }


DOCUMENT: JSON = {
    "openapi": "3.1.0",
    "info": {"title": "weather", "version": "1.0.0", "description": "Sample weather of ten cities."},
    "paths": {
        "/weather": {
            "get": {
                "operationId": "get_weather",
                "description": "Get the weather in a city",
                "parameters": [
                    {
                        "name": "city",
                        "in": "query",
                        "required": True,
                        "description": "The name of the city",
                        "schema": {"type": "string"},
                    }
                ],
                "responses": _answers(
                    "The weather there",
                    _schema(
                        city={"type": "string"}, weather={"type": "string"}, source={"const": "sample data"}
                    ),
                    error=("404", "A city that the sample does not know"),
                ),
            }
        }
    },
}


class Telling:
    """Says one line on standard error for each call: the request as it came, the status, the answer."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the app, and keep the answer: it is small here."""
        sent: list[bytes] = []
        status = 0

        async def telling(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            sent.append(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, telling)
        if scope["type"] == "http" and scope["path"] != "/openapi.json":
            _tell(scope, status, b"".join(sent))


def _tell(scope: Scope, status: int, sent: bytes) -> None:
    query = scope["query_string"].decode()
    target = scope["path"] + (f"?{query}" if query else "")
    line = f"{scope['method']} {target} -> {status} {sent.decode(errors='replace')}"
    print(line, file=sys.stderr, flush=True)  # noqa: T201  (its output is what the demo shows)


async def get_document(_: Request) -> JSONResponse:
    """`GET /openapi.json`."""
    return JSONResponse(DOCUMENT)


WEATHER = Telling(Starlette(routes=[Route("/weather", get_weather), Route("/openapi.json", get_document)]))


@contextmanager
def running_weather(*, port: int = 0, on_line: OnLine | None = None) -> Iterator[Child]:
    """Serve WEATHER for as long as the `with` lasts; `wait_ready()` gives its base URL."""
    with running_child("The weather service", __name__, "--port", str(port), on_line=on_line) as child:
        yield child


class _AnnouncingServer(uvicorn.Server):
    """A server that announces its address once it accepts connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        port = (sockets or [])[0].getsockname()[1]
        announce(f"http://{HOST}:{port}")


def main() -> None:
    """Serve until ended: `python -m toolway.demo.weather [--port N]`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    listener = socket.create_server((HOST, options.port))
    config = uvicorn.Config(WEATHER, log_level="warning", access_log=False, ws="none")
    _AnnouncingServer(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
