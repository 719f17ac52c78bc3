"""The stdio server of the contract: `echo`, `fail`, `hang`; its process id is in the file `pid` beside it."""

import json
import os
import sys
from pathlib import Path

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOLS = [
    {"name": "echo", "description": "Say it again", "inputSchema": TEXT},
    {"name": "fail", "inputSchema": {"type": "object"}},
    {"name": "hang", "inputSchema": {"type": "object"}},
]


def result_of(method: str, params: dict) -> dict | None:
    if method == "initialize":
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
    if method == "tools/list":
        return {"tools": TOOLS}
    if params.get("name") == "echo":
        return {"content": [{"type": "text", "text": params["arguments"]["text"]}]}
    if params.get("name") == "fail":
        return {"content": [{"type": "text", "text": "it failed"}], "isError": True}
    return None


Path(__file__).with_name("pid").write_text(str(os.getpid()))
for line in sys.stdin:
    message = json.loads(line)
    reply = {"jsonrpc": "2.0", "id": message.get("id")}
    if message["method"] == "server/discover":
        print(json.dumps({**reply, "error": {"code": -32601, "message": "no"}}), flush=True)
    elif (
        "id" in message and (result := result_of(message["method"], message.get("params") or {})) is not None
    ):
        print(json.dumps({**reply, "result": result}), flush=True)
