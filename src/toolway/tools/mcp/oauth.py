"""OAuth of remote servers: tokens on requests, renewed when stale, and `toolway login` in a browser."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urljoin, urlsplit

import anyio
import httpx2
import orjson
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.exceptions import OAuthFlowError, OAuthRegistrationError
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthToken,
)
from pydantic import AnyUrl, ValidationError

from toolway.errors import ConfigError, SourceError, StoreError
from toolway.settings.mcp_server import OAuthClient, RemoteServerConfig
from toolway.tools.mcp.connection import connect, list_tools
from toolway.tools.mcp.errors import LostError, RpcError, cause_of
from toolway.tools.mcp.logins import RENEWAL_SECONDS, HeldLogin, Login, LoginStore
from toolway.tools.mcp.options import ConnectOptions, ServerLog
from toolway.types import JSON


class TokenAuth(httpx2.Auth):
    """Puts a fresh bearer token on each request; what cannot be renewed is left to the server to refuse.

    The SDK's own provider holds a lock around each whole request and reads each answer to its end: calls would
    wait for one another, and streams would never begin. A token of a person's (`store`) is renewed by one process at a
    time, which looks first whether another one has done it, by a request over `transport` that nobody cancels: a
    refresh token whose answer was lost is a login that was lost. `learned` hears of each token that is sent.
    """

    def __init__(
        self,
        url: str,
        transport: httpx2.AsyncBaseTransport,
        *,
        login: Login | None = None,
        store: LoginStore | None = None,
        learned: Callable[[str], None] = lambda token: None,
    ) -> None:
        self._url = url
        self._transport = transport
        self._login = login
        self._store = store
        self._learned = learned
        self._lock = anyio.Lock()
        self._is_read = False

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to put on a request."""
        return not self._is_read or self._login is not None

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Renew when stale, send, and once more after a 401."""
        used, was_renewed = None, False
        if not self._is_read:
            await self._read_again()
        for last in (False, True):
            was_asked = False
            if self._must_renew(used) and not was_renewed:
                was_renewed = was_asked = await self._renew(used)
            token = self._login.access_token if self._login else None
            if last and token == used and not was_asked:
                return  # the last answer is the server's own, not that of the token endpoint
            used = token
            if token is not None:
                self._learned(token)
                request.headers["authorization"] = f"Bearer {token}"
            response = yield request
            if _asks_for_login(response) and self._store is not None:
                self._store.keep_demand(self._url, response.headers.get("www-authenticate") or "Bearer")
            if response.status_code != 401:
                return
            await self._read_again()

    def _must_renew(self, used: str | None) -> bool:
        login = self._login
        if login is None or not login.renewable:
            return False
        return login.stale() or (used is not None and login.access_token == used)

    async def _renew(self, used: str | None) -> bool:
        """Get another token than `used`; whether the token endpoint was asked, and not another process faster.

        Raises httpx2.ConnectError when it cannot be known whether another process renews.
        """
        try:
            async with self._lock, self._alone() as held:
                if held is not None:
                    self._take(await held.read())
                if not self._must_renew(used):
                    return False
                with anyio.move_on_after(RENEWAL_SECONDS, shield=True):
                    await self._ask(held)
        except (ConfigError, StoreError) as error:
            raise httpx2.ConnectError(f"its token cannot be renewed. {error.message}") from error
        return True

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[HeldLogin | None]:
        if self._store is None:
            yield None
            return
        async with self._store.renewing(self._url) as held:
            yield held

    async def _read_again(self) -> None:
        """What another process was given meanwhile, or a person at a login."""
        self._is_read = True
        if self._store is not None:
            self._take(await self._store.read(self._url))

    def _take(self, found: Login | None) -> None:
        if found is not None:
            self._login = found.newer(self._login)

    async def _ask(self, held: HeldLogin | None) -> None:
        old = self._login
        assert old is not None  # noqa: S101
        answer = await self._answer_to(old.renewal())
        if isinstance(answer.get("access_token"), str):
            self._login = old.renewed(answer)
        elif answer.get("error") == "invalid_grant" and held is not None:
            found = await held.read()
            if found is not None and found.refresh_token != old.refresh_token:
                self._login = (
                    found  # whoever cannot be locked out (a machine without the store, Windows) was faster
                )
                return
            self._login = old.ended()
        else:
            return
        if held is not None:
            await held.keep(self._login)

    async def _answer_to(self, renewal: httpx2.Request) -> JSON:
        """What the token endpoint says; nothing, when that is no JSON object."""
        response = await self._transport.handle_async_request(renewal)
        try:
            answer = orjson.loads(await response.aread())
        except (orjson.JSONDecodeError, httpx2.StreamError):
            return {}
        finally:
            await response.aclose()
        return answer if isinstance(answer, dict) else {}


LOGIN_TIMEOUT = 300.0
"""Seconds that a person has for the browser."""

_PAGE = b"<!doctype html><title>Toolway</title><p>Done. You can close this window."
_SCOPE = re.compile(r'(?<![\w-])scope="?([^",]*)"?')


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
    """Waits on a port of this machine for the browser to come back, as often as it is sent away."""

    def __init__(self) -> None:
        self._expect()

    def _expect(self) -> None:
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
        try:
            with anyio.fail_after(LOGIN_TIMEOUT):
                return await self._result
        finally:
            self._expect()


async def login(
    config: RemoteServerConfig,
    show: Callable[[str], Awaitable[None]],
    store: LoginStore,
) -> Login:
    """Have a person allow access to a server, and keep what was granted; `show` opens the page that asks.

    The server is used as at any start, so that it may ask at any request of it; what it asked for at a call is asked
    for too.

    Raises:
        SourceError: It was not allowed, nobody answered in time, or the server asks for no login.
    """
    registration = config.oauth or OAuthClient()
    callback = _Callback()
    listener = await _listen(callback, registration.callback_port or 0)
    port = listener.sockets[0].getsockname()[1]
    provider = _provider(config.url, show, callback, port, registration)
    before = await store.read(config.url)
    scopes = f"{before.scope or '' if before else ''} {registration.scope or ''}"
    auth = _LoginAuth(provider, store.file.demand(config.url), scopes)
    try:
        await _use(config, auth)
    except Exception as error:  # the border of the command: the SDK raises what it likes
        raise SourceError(f"the login failed: {_words(cause_of(error))}", stage="login") from error
    finally:
        listener.close()
    granted = _login_of(provider)
    try:
        async with store.renewing(config.url) as held:
            await held.keep(granted)
    except (ConfigError, StoreError, OSError) as error:
        raise SourceError(f"what was granted cannot be kept: {error}", stage="login") from error
    store.keep_demand(config.url, None)
    return granted


async def _listen(callback: _Callback, port: int) -> asyncio.Server:
    try:
        return await asyncio.start_server(callback.answer, "127.0.0.1", port)
    except OSError as error:
        raise SourceError(
            f"the callback's port {port} cannot be used: {error.strerror}", stage="login"
        ) from None


def _provider(
    url: str,
    show: Callable[[str], Awaitable[None]],
    callback: _Callback,
    port: int,
    registration: OAuthClient,
) -> OAuthClientProvider:
    host = "localhost" if registration.callback_port else "127.0.0.1"  # what people register by hand
    redirect = AnyUrl(f"http://{host}:{port}/callback")
    grant_types = ["authorization_code", "refresh_token"]
    memory = _Memory()
    if registration.client_id:
        memory.client = OAuthClientInformationFull(
            client_id=registration.client_id,
            client_secret=registration.client_secret,
            redirect_uris=[redirect],
            grant_types=grant_types,
            token_endpoint_auth_method="client_secret_basic" if registration.client_secret else "none",
        )
    metadata = OAuthClientMetadata(client_name="Toolway", redirect_uris=[redirect], grant_types=grant_types)
    try:
        return OAuthClientProvider(url, metadata, memory, show, callback.wait, registration.metadata_url)
    except ValueError as error:
        raise SourceError(str(error), stage="login") from None


class _LoginAuth(httpx2.Auth):
    """Logs in by the SDK's flow when the server refuses a request, or at once for a challenge of before.

    The SDK's provider would hold its lock during each whole request. `scopes` are asked for beside those that the
    server names.
    """

    def __init__(self, provider: OAuthClientProvider, challenge: str | None, scopes: str) -> None:
        self._provider = provider
        self._challenge = challenge
        self._scopes = scopes.split()
        self._lock = anyio.Lock()

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Send, log in where that is asked for, and send again."""
        used = self._sign(request)
        response = self._earlier_challenge(request) or (yield request)
        if not _asks_for_login(response):
            return
        async with self._lock:
            if self._sign(request) == used:
                flow = self._provider.async_auth_flow(request)
                await flow.__anext__()
                outgoing = await flow.asend(self._with_scopes(response))
                while outgoing is not request:
                    outgoing = await flow.asend((yield outgoing))
                await flow.aclose()
        self._sign(request)
        yield request

    def _sign(self, request: httpx2.Request) -> str | None:
        tokens = self._provider.context.current_tokens
        if tokens is None:
            return None
        request.headers["authorization"] = f"Bearer {tokens.access_token}"
        return tokens.access_token

    def _earlier_challenge(self, request: httpx2.Request) -> httpx2.Response | None:
        challenge, self._challenge = self._challenge, None
        if challenge is None:
            return None
        return httpx2.Response(401, headers={"www-authenticate": challenge}, request=request)

    def _with_scopes(self, response: httpx2.Response) -> httpx2.Response:
        if not self._scopes:
            return response
        challenge = response.headers.get("www-authenticate", "Bearer")
        found = _SCOPE.search(challenge)
        wanted = [*(found[1].split() if found else ()), *self._scopes]
        scope = f'scope="{" ".join(dict.fromkeys(wanted))}"'
        challenge = (
            _SCOPE.sub(scope, challenge)
            if found
            else f"{challenge}{', ' if '=' in challenge else ' '}{scope}"
        )
        response.headers["www-authenticate"] = challenge
        return response


def _asks_for_login(response: httpx2.Response) -> bool:
    challenge = response.headers.get("www-authenticate", "")
    return response.status_code == 401 or (response.status_code == 403 and "insufficient_scope" in challenge)


async def _use(config: RemoteServerConfig, auth: httpx2.Auth) -> None:
    """Shake hands with the server and list its tools; an error that no login mends is none of a login's business."""
    options = ConnectOptions(auth=lambda _: auth)
    log = ServerLog(logging.getLogger(f"toolway.server.{config.label}"))
    async with connect(config, "sse" if config.type == "sse" else "http", options, log) as connection:
        for era in ("legacy", "modern"):
            try:
                await connection.session.negotiate(era)
                await list_tools(connection.session, config)
                return
            except (RpcError, LostError):
                continue


def _words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "what the authorization server says is not what the standard asks for"
    if isinstance(error, OAuthRegistrationError):
        advice = 'register one there by hand and write its "oauth": {"client_id": ...} into the entry of the server'
        return f"{error}; if no client can register itself, {advice}"
    return str(error) or type(error).__name__


def _login_of(provider: OAuthClientProvider) -> Login:
    context = provider.context
    client, tokens, metadata = context.client_info, context.current_tokens, context.oauth_metadata
    if tokens is None or client is None or client.client_id is None:
        raise SourceError("the server asks for no login", stage="login")
    asks_for_resource = context.should_include_resource_param(context.protocol_version)
    return Login(
        # Servers of before 2025-06 have no metadata; their endpoint is where the first specification put it.
        token_url=str(metadata.token_endpoint) if metadata else urljoin(context.server_url, "/token"),
        client_id=client.client_id,
        client_secret=client.client_secret,
        secret_in_body=client.token_endpoint_auth_method == "client_secret_post",  # noqa: S105
        scope=tokens.scope,
        resource=context.get_resource_url() if asks_for_resource else None,
        granted_at=time.time(),
    ).renewed(tokens.model_dump(exclude_none=True))
