"""The least a Python relay can do: raw ASGI in front, aiohttp behind, no tools.

What Toolway costs beyond this is the price of its own work.
"""

import os
from typing import Any

import aiohttp

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:9000")
NOT_FORWARDED = {
    b"connection",
    b"content-length",
    b"date",
    b"host",
    b"keep-alive",
    b"server",
    b"transfer-encoding",
}

session: aiohttp.ClientSession


async def lifespan(receive: Any, send: Any) -> None:
    global session  # noqa: PLW0603
    await receive()
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await session.close()
    await send({"type": "lifespan.shutdown.complete"})


async def read_body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    headers = [(k.decode(), v.decode("latin-1")) for k, v in scope["headers"] if k not in NOT_FORWARDED]
    body = await read_body(receive)
    async with session.request(
        scope["method"], UPSTREAM + scope["path"], headers=headers, data=body
    ) as answer:
        kept = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in NOT_FORWARDED]
        start = {"type": "http.response.start", "status": answer.status, "headers": kept}
        if answer.content_type == "text/event-stream":
            await send(start)
            async for data in answer.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            whole = await answer.read()
            kept.append((b"content-length", b"%d" % len(whole)))
            await send(start)
            await send({"type": "http.response.body", "body": whole})
