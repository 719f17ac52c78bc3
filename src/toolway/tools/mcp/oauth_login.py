"""The authorization-code flow with PKCE in a browser: what `toolway login SERVER` does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
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
from toolway.tools.mcp.oauth_tokens import Grant

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
