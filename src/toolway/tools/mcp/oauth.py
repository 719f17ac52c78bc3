"""OAuth of remote servers: tokens kept in a private file and renewed when stale, and `toolway login` in a browser."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import anyio
import httpx2
import orjson
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.exceptions import OAuthFlowError
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from pydantic import AnyUrl

from toolway.errors import SourceError
from toolway.tools.autodetect import INITIALIZE
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


PATIENCE = 300.0
"""Seconds that a person has for the browser."""

_PAGE = (
    b"<!doctype html><title>Toolway</title><p>Done. You can close this window and go back to the terminal."
)


class _Memory:
    """The SDK's TokenStorage for one flow."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


class _Callback:
    """Waits on a port of this machine for the browser to come back."""

    def __init__(self) -> None:
        self._result: asyncio.Future[AuthorizationCodeResult] = asyncio.get_running_loop().create_future()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        query = parse_qs(urlsplit(line.split(b" ")[1].decode()).query) if line.count(b" ") == 2 else {}
        found = {key: values[0] for key, values in query.items()}
        if not self._result.done() and "code" in found:
            self._result.set_result(
                AuthorizationCodeResult(code=found["code"], state=found.get("state"), iss=found.get("iss"))
            )
        elif not self._result.done() and "error" in found:
            reason = found.get("error_description") or found["error"]
            self._result.set_exception(OAuthFlowError(f"the server refused: {reason}"))
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        )
        writer.write(head % len(_PAGE) + _PAGE)
        await writer.drain()
        writer.close()

    async def wait(self) -> AuthorizationCodeResult:
        with anyio.fail_after(PATIENCE):
            return await self._result


async def login(url: str, show: Callable[[str], Awaitable[None]]) -> Grant:
    """Have a person allow access to the server at `url`; `show` opens the page that asks.

    Raises:
        SourceError: It was not allowed, nobody answered in time, or the server asks for no login.
    """
    memory, callback = _Memory(), _Callback()
    listener = await asyncio.start_server(callback.answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    wishes = OAuthClientMetadata(
        client_name="Toolway",
        redirect_uris=[AnyUrl(f"http://127.0.0.1:{port}/callback")],
        grant_types=["authorization_code", "refresh_token"],
    )
    provider = OAuthClientProvider(url, wishes, memory, show, callback.wait)
    try:
        async with httpx2.AsyncClient(auth=provider, timeout=30.0) as client:
            await client.post(url, json=INITIALIZE, headers={"accept": "application/json, text/event-stream"})
    except (OAuthFlowError, httpx2.HTTPError, TimeoutError) as error:
        raise SourceError(f"the login failed: {error or type(error).__name__}", stage="login") from error
    finally:
        listener.close()
    return _grant(provider, memory)


def _grant(provider: OAuthClientProvider, memory: _Memory) -> Grant:
    metadata = provider.context.oauth_metadata
    if memory.tokens is None or memory.client is None or memory.client.client_id is None or metadata is None:
        raise SourceError("the server asks for no login", stage="login")
    return Grant(
        token_url=str(metadata.token_endpoint),
        client_id=memory.client.client_id,
        client_secret=memory.client.client_secret,
        scope=memory.tokens.scope,
        resource=provider.context.get_resource_url(),
    ).renewed(memory.tokens.model_dump(exclude_none=True))
