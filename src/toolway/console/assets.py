"""The files of the page, read once: the page itself with its Content-Security-Policy, scripts, styles."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from toolway.types import Header

TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "mjs": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
    "txt": b"text/plain; charset=utf-8",
}
PAGE = "index.html"

HARMLESS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
"""What every answer of the console says, so that no other page can use it."""

_IMPORT_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One file as it is answered."""

    body: bytes
    headers: tuple[Header, ...]
    etag: bytes


@cache
def assets() -> dict[str, Asset]:
    """Every file by its path below `static/`."""
    folder = resources.files("toolway.console") / "static"
    return {path: _asset(path, file.read_bytes()) for path, file in _walk(folder, "")}


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _walk(entry, f"{path}/")
        elif entry.name.rpartition(".")[2] in TYPES:
            found.append((path, entry))
    return found


def _asset(path: str, body: bytes) -> Asset:
    etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:20].encode()
    kind: Header = (b"content-type", TYPES[path.rpartition(".")[2]])
    # The browser asks each time whether its copy is the newest, and is told without the body.
    headers = (kind, (b"cache-control", b"no-cache"), (b"etag", etag), *HARMLESS)
    if path == PAGE:
        headers += ((b"content-security-policy", policy(body.decode()).encode()), (b"vary", b"Accept"))
    return Asset(body=body, headers=headers, etag=etag)


def policy(page: str) -> str:
    """The Content-Security-Policy of the page: what it consists of comes from here, and its import map is this one."""
    found = _IMPORT_MAP.search(page)
    digest = base64.b64encode(hashlib.sha256((found[1] if found else "").encode()).digest()).decode()
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' 'sha256-{digest}'",
            "style-src 'self'",
            "img-src 'self' data: blob:",
            "media-src data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
