"""OAuth tokens of remote servers: kept in a file that only its user can read, and renewed when they are stale."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx2
import orjson

from toolway.types import JSON

EARLY = 30.0
"""Seconds before its end at which a token counts as stale."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A token, and what it takes to get the next one. `expires_at` is Unix time in seconds."""

    token_url: str
    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    scope: str | None = None
    resource: str | None = None
    access_token: str | None = field(default=None, repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    expires_at: float | None = None
    by_machine: bool = False
    """Client credentials: there is no person who could log in."""

    @property
    def renewable(self) -> bool:
        """Whether the token endpoint may give another one: for a refresh token, or for client credentials."""
        return self.refresh_token is not None or (self.by_machine and self.client_secret is not None)

    def stale(self) -> bool:
        """Whether there is no token that would still be good on arrival."""
        late = self.expires_at is not None and time.time() > self.expires_at - EARLY
        return self.access_token is None or late

    def renewal(self) -> httpx2.Request:
        """The request to the token endpoint (RFC 6749, 4.4 and 6)."""
        form = {"grant_type": "client_credentials"}
        if self.refresh_token is not None:
            form = {"grant_type": "refresh_token", "refresh_token": self.refresh_token}
        optional = {"scope": self.scope, "resource": self.resource}
        form |= {name: value for name, value in optional.items() if value}
        headers = {"accept": "application/json"}
        if self.client_secret is None:
            form["client_id"] = self.client_id
            return httpx2.Request("POST", self.token_url, data=form, headers=headers)
        pair = f"{quote(self.client_id, safe='')}:{quote(self.client_secret, safe='')}".encode()
        headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return httpx2.Request("POST", self.token_url, data=form, headers=headers)

    def renewed(self, said: JSON) -> Grant:
        """With the tokens of a token endpoint's answer."""
        seconds = said.get("expires_in")
        return replace(
            self,
            access_token=str(said["access_token"]),
            refresh_token=said.get("refresh_token") or self.refresh_token,
            expires_at=time.time() + seconds if isinstance(seconds, int | float) else None,
        )


class TokenFile:
    """The grants of all servers by their URLs. It is read and written whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def grant(self, url: str) -> Grant | None:
        """What was granted for a server, if anything."""
        entry = self._entries().get(url)
        return Grant(**entry) if isinstance(entry, dict) else None

    def keep(self, url: str, grant: Grant) -> None:
        """Write it down; others cannot read the file at any moment."""
        entries = {**self._entries(), url: asdict(grant)}
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
        new.replace(self._path)

    def _entries(self) -> JSON:
        try:
            found = orjson.loads(self._path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}


class TokenAuth(httpx2.Auth):
    """Puts a fresh bearer token on each request; what cannot be renewed is left to the server to refuse.

    The SDK's own provider holds a lock around each whole request and reads each answer to its end: calls would
    wait for one another, and streams would never begin.
    """

    def __init__(self, url: str, grant: Grant, file: TokenFile | None = None) -> None:
        self._url = url
        self._grant = grant
        self._file = file
        self._lock = anyio.Lock()

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Renew when stale, send, and once more after a 401."""
        used = None
        for last in (False, True):
            async with self._lock:
                if (self._grant.stale() or self._grant.access_token == used) and self._grant.renewable:
                    await self._learn((yield self._grant.renewal()))
            if last and self._grant.access_token == used:
                return
            used = self._grant.access_token
            if used is not None:
                request.headers["authorization"] = f"Bearer {used}"
            response = yield request
            if response.status_code != 401:
                return

    async def _learn(self, response: httpx2.Response) -> None:
        try:
            said = orjson.loads(await response.aread())
            self._grant = self._grant.renewed(said)
        except (orjson.JSONDecodeError, httpx2.StreamError, KeyError, TypeError):
            return
        if self._file is not None:
            self._file.keep(self._url, self._grant)
