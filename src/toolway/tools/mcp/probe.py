"""Does an MCP server answer at a URL? Asked without the SDK, which is not loaded before somebody needs it."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

SECONDS = 5.0
QUESTION = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "toolway", "version": "0"},
    },
}


async def speaks_mcp(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> bool:
    """Whether the server at `url` answers in JSON-RPC, or opens the stream of events of older servers."""
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    accept = {**headers, "Accept": "application/json, text/event-stream"}
    try:
        async with session.post(
            url, json=QUESTION, headers=accept, timeout=timeout, allow_redirects=False
        ) as answer:
            said = await answer.content.read(4096)
            if b'"jsonrpc"' in said or (answer.status == 200 and _is_stream(answer)):
                return True
        async with session.get(url, headers=accept, timeout=timeout, allow_redirects=False) as answer:
            return answer.status == 200 and _is_stream(answer)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return False


def _is_stream(answer: aiohttp.ClientResponse) -> bool:
    return answer.content_type == "text/event-stream"
