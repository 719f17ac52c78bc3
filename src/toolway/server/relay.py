"""An answer of the model server on its way to the client, byte for byte."""

from __future__ import annotations

from starlette.types import Send

from toolway.upstream.client import Answer


async def relay(answer: Answer, send: Send) -> None:
    """An upstream answer to the client as it comes; what is said of CORS is ours to say."""
    headers = [header for header in answer.headers if not header[0].startswith(b"access-control-")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    while data := await answer.receive():
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
