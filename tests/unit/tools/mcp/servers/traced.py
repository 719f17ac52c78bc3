"""A stdio MCP server, bytes by hand, whose one tool answers with the `_meta` that it was called with."""

from __future__ import annotations

import json
import sys
from typing import Any

TOOL = {"name": "trace_context", "inputSchema": {"type": "object"}}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    params = request.get("params") or {}
    if request["method"] == "initialize":
        server = {"name": "traced", "version": "1"}
        version = params["protocolVersion"]
        return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}}
    if request["method"] == "tools/list":
        return {"result": {"tools": [TOOL]}}
    if request["method"] == "tools/call":
        return {"result": {"content": [{"type": "text", "text": json.dumps(params.get("_meta", {}))}]}}
    return {"error": {"code": -32601, "message": "no such method"}}


for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], **answer(request)}), flush=True)
