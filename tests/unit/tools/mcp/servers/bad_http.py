"""A streamable HTTP MCP server that misbehaves on demand: the name of the tool is the fault of its call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

TOOLS = [
    *(
        "ok",
        "slow",
        "drop",
        "hang",
        "s400",
        "s401",
        "s403",
        "s404",
        "s429",
        "s500",
        "s503",
        "redirect",
        "bad_json",
    ),
    *("html", "empty", "accepted", "sse_big", "sse_truncated", "sse_bad_json", "json_big", "rpc_error"),
    *(
        "bad_result",
        "unknown_content",
        "nulls",
        "input",
        "flood",
        "null_id",
        "foreign_error",
        "foreign_result",
    ),
    *("plain", "no_type", "array", "unannounced", "surrogate", "deep"),
]
JSON = dict[str, Any]


@dataclass
class BadHTTP:
    """What the server does and has seen. `sessions` are the ids that it knows."""

    modern: bool = False
    with_sessions: bool = False
    sessions: set[str] = field(default_factory=set)
    token: str | None = None
    tools: list[JSON] | None = None
    only_at: str = ""
    only_version: str = ""
    seen: list[tuple[str, JSON]] = field(default_factory=list)
    bodies: list[tuple[str, JSON]] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    made: int = 0
    url: str = ""
    listener: asyncio.Server | None = None
    connections: set[asyncio.StreamWriter] = field(default_factory=set)

    async def stop(self) -> None:
        """Be gone, as after kill -9: no port, every connection reset."""
        assert self.listener is not None
        self.listener.close()
        for writer in list(self.connections):
            writer.transport.abort()
        await self.listener.wait_closed()

    def result(self, request: JSON, **result: Any) -> JSON:
        era = {"resultType": "complete"} if self.modern else {}
        return {"jsonrpc": "2.0", "id": request["id"], "result": {**era, **result}}


def response(status: int | str, body: Any = b"", kind: str = "application/json", extra: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
    return head.encode() + data


def events(*messages: JSON | str) -> bytes:
    said = [message if isinstance(message, str) else json.dumps(message) for message in messages]
    chunks = [f"event: message\ndata: {text}\n\n".encode() for text in said]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


def answer(server: BadHTTP, request: JSON, headers: dict[str, str]) -> bytes:
    """What the server says to anything but a tool call."""
    match request["method"]:
        case _ if server.token and headers.get("authorization") != f"Bearer {server.token}":
            return response(401, {"error": "no"}, extra='www-authenticate: Bearer realm="x"\r\n')
        case "initialize" if server.only_version not in ("", request["params"]["protocolVersion"]):
            data = {"supported": ["2024-11-05", server.only_version, "1999-01-01"]}
            error = {"code": -32602, "message": "Unsupported protocol version", "data": data}
            return response(400, {"jsonrpc": "2.0", "id": request["id"], "error": error})
        case "initialize":
            server.made += 1
            server.sessions.add(f"S{server.made}")
            extra = f"mcp-session-id: S{server.made}\r\n" if server.with_sessions else ""
            info = {"serverInfo": {"name": "bad", "version": "1"}, "capabilities": {"tools": {}}}
            return response(
                200,
                server.result(request, protocolVersion=server.only_version or "2025-11-25", **info),
                extra=extra,
            )
        case "server/discover" if server.modern:
            offer = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            return response(200, server.result(request, **offer, ttlMs=0, cacheScope="private"))
        case _ if server.with_sessions and headers.get("mcp-session-id") not in server.sessions:
            return response(404, b"unknown session", "text/plain")
        case _ if "id" not in request:
            return response(202)
        case "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object", "properties": {}}} for name in TOOLS]
            return response(
                200, server.result(request, tools=tools if server.tools is None else server.tools)
            )
        case method:
            error = {"code": -32601, "message": f"no {method}"}
            return response(400, {"jsonrpc": "2.0", "id": request["id"], "error": error})


def call(server: BadHTTP, request: JSON) -> bytes | None:
    """The bytes that a tool call is answered with; None: the connection is dropped."""
    said = {"content": [{"type": "text", "text": "fine"}]}
    good = server.result(request, **said)
    progress = {"progressToken": request["id"], "progress": 1}
    trouble = 'retry-after: 1\r\nwww-authenticate: Bearer realm="x"\r\n'
    match request["params"]["name"]:
        case "drop":
            return None
        case str(name) if name[0] == "s" and name[1:].isdigit():
            return response(name[1:], {"error": "x"}, extra=trouble)
        case "redirect":
            return response(302, extra="location: http://127.0.0.1:1/elsewhere\r\n")
        case "bad_json":
            return response(200, b"{not json")
        case "html":
            return response(200, b"<html>login</html>", "text/html")
        case "empty":
            return response(200)
        case "accepted":
            return response(202)
        case "sse_big":
            return events(server.result(request, content=[{"type": "text", "text": "x" * 1_500_000}]))
        case "sse_truncated":
            return events({"jsonrpc": "2.0", "method": "notifications/progress", "params": progress})
        case "flood":
            asked = [{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(5000)]
            return events(*asked, good)
        case "null_id":
            return response(
                200, {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "no session"}}
            )
        case "foreign_error":
            return response(
                200, {"jsonrpc": "2.0", "id": "x", "error": {"code": -32001, "message": "no session"}}
            )
        case "foreign_result":
            return response(200, {**good, "id": 987654})
        case "plain":
            return response(200, good, "text/plain")
        case "no_type":
            return response(200, good).replace(b"content-type: application/json\r\n", b"")
        case "array":
            return response(200, [good])
        case "unannounced":
            return response(200, f"data: {json.dumps(good)}\n\n".encode(), "text/plain")
        case "surrogate":
            return response(200, json.dumps(good).replace("fine", "a\\ud83cb").encode())
        case "deep":
            return response(200, json.dumps(good).replace('"fine"', "[" * 3000 + "]" * 3000).encode())
        case "sse_bad_json":
            return events("{oops")
        case "json_big":
            return response(200, server.result(request, content=[{"type": "text", "text": "x" * 20_000_000}]))
        case "rpc_error":
            error = {"code": -32603, "message": "oops", "data": {"a": 1}}
            return response(200, {"jsonrpc": "2.0", "id": request["id"], "error": error})
        case "bad_result":
            return response(200, server.result(request, content="not a list"))
        case "unknown_content":
            video = {"type": "video", "data": "AA==", "mimeType": "video/mp4"}
            return response(200, server.result(request, content=[video, {"type": "text", "text": "t"}]))
        case "nulls":
            block = {"type": "text", "text": "t", "annotations": None}
            return response(
                200, server.result(request, content=[block], structuredContent=None, isError=None)
            )
        case "input":
            return response(200, ask_back(server, request))
    return response(200, good)


def ask_back(server: BadHTTP, request: JSON) -> JSON:
    """Ask for input (2026-07-28) until there is some, then say what came."""
    given = request["params"].get("inputResponses")
    if given is not None:
        said = json.dumps([given, request["params"]["requestState"]])
        return server.result(request, content=[{"type": "text", "text": said}])
    question = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
    asked = {"q": {"method": "elicitation/create", "params": question}}
    return server.result(request, resultType="input_required", inputRequests=asked, requestState="s1")


async def converse(server: BadHTTP, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])}
        body = await reader.readexactly(int(headers.get("content-length") or 0))
        if server.only_at and head[0].split(" ")[1] != server.only_at:
            writer.write(response(404, b"404 page not found", "text/plain"))
            continue
        if not head[0].startswith("POST"):
            writer.write(response(405))
            continue
        request = json.loads(body)
        if "method" not in request:  # an answer to a question of ours
            writer.write(response(202))
            continue
        server.seen.append((request["method"], headers))
        server.bodies.append((request["method"], request))
        name = request["params"].get("name") if request["method"] == "tools/call" else None
        if name == "slow":
            await server.released.wait()
        if name == "hang":
            await reader.read()
            server.hung_up.set()
            return
        known = not server.with_sessions or headers.get("mcp-session-id") in server.sessions
        answered = call(server, request) if name and known else answer(server, request, headers)
        if answered is None:
            writer.transport.abort()
            return
        writer.write(answered)
        await writer.drain()


@asynccontextmanager
async def bad_http(port: int = 0, **how: Any) -> AsyncIterator[BadHTTP]:
    """Serve on 127.0.0.1 for as long as the `async with` lasts; every connection ends with it."""
    server = BadHTTP(**how)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections.add(writer)
        try:
            await converse(server, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            server.connections.discard(writer)
            writer.close()

    server.listener = await asyncio.start_server(handle, "127.0.0.1", port)
    server.url = f"http://127.0.0.1:{server.listener.sockets[0].getsockname()[1]}/mcp"
    try:
        yield server
    finally:
        await server.stop()
