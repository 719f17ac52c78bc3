"""Toolway as `toolway serve` has it, that tells how many tasks it has and what its garbage collector sees.

`python -m bench.soak.target PORT SOCKET`: who connects to the UNIX socket gets one JSON object.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from toolway.app.asgi import create_app
from toolway.server.process import run
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings

TYPES = 40


def create_watched(settings: Settings) -> ASGIApp:
    """The app, once the insides of its event loop can be asked for."""
    args = asyncio.get_running_loop(), Path(sys.argv[2])
    threading.Thread(target=serve_insides, args=args, daemon=True).start()
    return create_app(settings)


def serve_insides(loop: asyncio.AbstractEventLoop, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(json.dumps(insides(loop)).encode())


def insides(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    names = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.get_objects())
    return {
        "tasks": len(asyncio.all_tasks(loop)),
        "objects": names.total(),
        "types": dict(names.most_common(TYPES)),
    }


if __name__ == "__main__":
    run(load_settings(port=int(sys.argv[1]), env=os.environ), create_watched)
