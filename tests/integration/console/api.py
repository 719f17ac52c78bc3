"""The API of the console without a browser."""

from __future__ import annotations

from typing import Any

import httpx2

from tests.support.app_server import AppServer

CHANGE = {"x-toolway-console": "open"}


def api(app: AppServer, method: str, path: str, **options: Any) -> httpx2.Response:
    """Ask as the page does where no key is needed."""
    return httpx2.request(method, f"{app.url}/console/api/{path}", headers=CHANGE, timeout=60, **options)
