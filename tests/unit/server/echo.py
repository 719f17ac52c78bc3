"""An app for processes of their own: it echoes a body part by part, and tells its process."""

from __future__ import annotations

import os
import sys
from typing import Any

from toolway.server.process import run
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings


async def app(scope: Any, receive: Any, send: Any) -> None:
    """POST: each part of the body as it comes; anything else: the process id."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = scope["method"] == "POST"
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        await send({"type": "http.response.body", "body": event["body"], "more_body": True})
        more = event["more_body"]
    await send({"type": "http.response.body", "body": f"{os.getpid()}".encode()})


def create_app(settings: Settings) -> Any:
    return app


def create_broken_app(settings: Settings) -> Any:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "not today"})

    return broken


if __name__ == "__main__":
    run(
        load_settings(dotenv=None),
        create_broken_app if "broken" in sys.argv else create_app,
        on_listening=lambda url: print(url, flush=True),
    )
