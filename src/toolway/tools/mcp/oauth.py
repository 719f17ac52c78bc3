"""OAuth of remote servers: tokens kept in a private file and renewed when stale, and `toolway login` in a browser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import parse_qs, quote, urljoin, urlsplit

import anyio
import httpx2
import jwt
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

from toolway.errors import SourceError
from toolway.settings.mcp_server import OAuthClient, RemoteServerConfig
from toolway.tools.mcp.errors import LostError, RefusedError, cause_of
from toolway.tools.mcp.options import ConnectOptions, ServerLog
from toolway.tools.mcp.session import connect, list_tools
from toolway.types import JSON

try:
    import fcntl
except ImportError:  # Windows: there processes are not kept from renewing at the same time
    fcntl = None  # type: ignore[assignment]

EARLY = 30.0
"""Seconds before its end at which a token counts as stale."""

LOOK_EVERY = 0.05
"""Seconds between two looks whether another process has finished renewing."""

_TOKEN_TIMEOUT = {"connect": 10.0, "read": 30.0, "write": 10.0, "pool": 10.0}


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
    secret_in_body: bool = False
    """The client's secret is sent in the form (`client_secret_post`), not as Basic authorization."""
    private_key: str | None = field(default=None, repr=False)
    """PEM, in place of a secret: it signs who the client is (`private_key_jwt`, RFC 7523)."""
    algorithm: str = "RS256"
    audience: str | None = None
    """Whom the signature is for; None: the token endpoint."""

    @property
    def renewable(self) -> bool:
        """Whether the token endpoint may give another one: for a refresh token, or for client credentials."""
        return self.refresh_token is not None or self.by_machine

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
        if self.private_key is not None:
            form |= {"client_id": self.client_id, **self._assertion(self.private_key)}
        elif self.client_secret is None or self.secret_in_body:
            form["client_id"] = self.client_id
            form |= {"client_secret": self.client_secret} if self.client_secret else {}
        else:
            pair = f"{quote(self.client_id, safe='')}:{quote(self.client_secret, safe='')}".encode()
            headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        extensions = {"timeout": _TOKEN_TIMEOUT}
        return httpx2.Request("POST", self.token_url, data=form, headers=headers, extensions=extensions)

    def _assertion(self, key: str) -> dict[str, str]:
        now = int(time.time())
        claims = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self.audience or self.token_url,
            "jti": secrets.token_urlsafe(16),
            "iat": now,
            "exp": now + 300,
        }
        return {
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": jwt.encode(claims, key, self.algorithm),
        }

    def ended(self) -> Grant:
        """Without the tokens that the server takes no more: only another login helps."""
        return replace(self, access_token=None, refresh_token=None, expires_at=None)

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
    """The grants of all servers by their URLs, and what servers asked for that was not granted.

    It is read and written whole, by several processes.
    """

    _DEMANDS = "demands"

    def __init__(self, path: Path) -> None:
        self._path = path

    def grant(self, url: str) -> Grant | None:
        """What was granted for a server, if anything."""
        entry = self._entries().get(url)
        if not isinstance(entry, dict):
            return None
        known = {field.name for field in fields(Grant)}
        try:
            return Grant(**{name: value for name, value in entry.items() if name in known})
        except TypeError:
            return None

    def keep(self, url: str, grant: Grant) -> None:
        """Write it down; others cannot read the file at any moment."""
        self._change(lambda entries: {**entries, url: asdict(grant)})

    def demand(self, url: str) -> str | None:
        """The newest `WWW-Authenticate` with which the server refused a request, for the next login."""
        demands = self._entries().get(self._DEMANDS)
        found = demands.get(url) if isinstance(demands, dict) else None
        return found if isinstance(found, str) else None

    def keep_demand(self, url: str, challenge: str | None) -> None:
        """Write it down, or forget it."""
        if challenge != self.demand(url):
            self._change(
                lambda entries: {**entries, self._DEMANDS: _with(entries.get(self._DEMANDS), url, challenge)}
            )

    @asynccontextmanager
    async def renewing(self, url: str) -> AsyncIterator[None]:
        """While the block lasts, no other process renews the grant of this server: refresh tokens are good once."""
        name = hashlib.sha256(url.encode()).hexdigest()[:12]
        with self._opened(f".{name}.lock") as lock:
            while fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await anyio.sleep(LOOK_EVERY)
            yield

    def _change(self, change: Callable[[JSON], JSON]) -> None:
        with self._opened(".lock") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)  # held for moments
            new = self._path.with_suffix(".new")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(orjson.dumps(change(self._entries()), option=orjson.OPT_INDENT_2))
            new.replace(self._path)

    @contextmanager
    def _opened(self, suffix: str) -> Iterator[int]:
        """A file beside this one, to be locked; closing it is the end of the lock."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._path.with_name(self._path.name + suffix), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield lock
        finally:
            os.close(lock)

    def _entries(self) -> JSON:
        try:
            found = orjson.loads(self._path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}


def _with(demands: object, url: str, challenge: str | None) -> JSON:
    known = {key: value for key, value in demands.items() if key != url} if isinstance(demands, dict) else {}
    return {**known, url: challenge} if challenge else known


class TokenAuth(httpx2.Auth):
    """Puts a fresh bearer token on each request; what cannot be renewed is left to the server to refuse.

    The SDK's own provider holds a lock around each whole request and reads each answer to its end: calls would
    wait for one another, and streams would never begin. A grant of the file is renewed by one process at a time, which
    looks first whether another one has done it. `learned` hears of each token that is sent.
    """

    def __init__(
        self,
        url: str,
        grant: Grant | None,
        file: TokenFile | None = None,
        learned: Callable[[str], None] = lambda token: None,
    ) -> None:
        self._url = url
        self._grant = grant
        self._file = file
        self._learned = learned
        self._lock = anyio.Lock()

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Renew when stale, send, and once more after a 401."""
        used, was_renewed = None, False
        for last in (False, True):
            was_asked = False
            if self._must_renew(used) and not was_renewed:
                async with self._lock, self._alone():
                    self._read_again()
                    if self._must_renew(used) and self._grant is not None:
                        await self._learn((yield self._grant.renewal()))
                        was_renewed = was_asked = True
            token = self._grant.access_token if self._grant else None
            if last and token == used and not was_asked:
                return  # the last answer is the server's own, not that of the token endpoint
            used = token
            if token is not None:
                self._learned(token)
                request.headers["authorization"] = f"Bearer {token}"
            response = yield request
            if _is_refused(response) and self._file is not None:
                self._file.keep_demand(self._url, response.headers.get("www-authenticate") or "Bearer")
            if response.status_code != 401:
                return
            self._read_again()

    def _must_renew(self, used: str | None) -> bool:
        grant = self._grant
        if grant is None or not grant.renewable:
            return False
        return grant.stale() or (used is not None and grant.access_token == used)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._file.renewing(self._url) if self._file else contextlib.nullcontext():
            yield

    def _read_again(self) -> None:
        """What another process was given meanwhile, or a person at a login."""
        if self._file is not None and (found := self._file.grant(self._url)) is not None:
            self._grant = found

    async def _learn(self, response: httpx2.Response) -> None:
        assert self._grant is not None  # noqa: S101
        try:
            said = orjson.loads(await response.aread())
        except (orjson.JSONDecodeError, httpx2.StreamError):
            return
        if not isinstance(said, dict):
            return
        if isinstance(said.get("access_token"), str):
            self._grant = self._grant.renewed(said)
        elif said.get("error") == "invalid_grant" and not self._grant.by_machine:
            refused = self._grant
            self._read_again()
            if self._grant.refresh_token != refused.refresh_token:
                return  # whoever cannot be locked out (another machine, Windows) was faster
            self._grant = refused.ended()
        else:
            return
        if self._file is not None:
            self._file.keep(self._url, self._grant)


PATIENCE = 300.0
"""Seconds that a person has for the browser."""

_PAGE = (
    b"<!doctype html><title>Toolway</title><p>Done. You can close this window and go back to the terminal."
)
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
            with anyio.fail_after(PATIENCE):
                return await self._result
        finally:
            self._expect()


async def login(
    config: RemoteServerConfig,
    show: Callable[[str], Awaitable[None]],
    file: TokenFile,
) -> Grant:
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
    before = file.grant(config.url)
    scopes = f"{before.scope or '' if before else ''} {registration.scope or ''}"
    auth = _LoginAuth(provider, file.demand(config.url), scopes)
    try:
        await _use(config, auth)
    except Exception as error:  # the border of the command: the SDK raises what it likes
        raise SourceError(f"the login failed: {_words(cause_of(error))}", stage="login") from error
    finally:
        listener.close()
    grant = _grant(provider)
    file.keep(config.url, grant)
    file.keep_demand(config.url, None)
    return grant


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
    """Logs in by the SDK's flow when the server refuses a request, or at once for the challenge of an earlier refusal.

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
        response = self._earlier_refusal(request) or (yield request)
        if not _is_refused(response):
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

    def _earlier_refusal(self, request: httpx2.Request) -> httpx2.Response | None:
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


def _is_refused(response: httpx2.Response) -> bool:
    challenge = response.headers.get("www-authenticate", "")
    return response.status_code == 401 or (response.status_code == 403 and "insufficient_scope" in challenge)


async def _use(config: RemoteServerConfig, auth: httpx2.Auth) -> None:
    """Shake hands with the server and list its tools; a refusal that no login mends is none of a login's business."""
    options = ConnectOptions(auth=lambda: auth)
    log = ServerLog(logging.getLogger(f"toolway.server.{config.label}"))
    async with connect(config, "sse" if config.type == "sse" else "http", options, log) as connection:
        for era in ("legacy", "modern"):
            try:
                await connection.session.negotiate(era)
                await list_tools(connection.session, config)
                return
            except (RefusedError, LostError):
                continue


def _words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "what the authorization server says is not what the standard asks for"
    if isinstance(error, OAuthRegistrationError):
        advice = 'register one there by hand and write its "oauth": {"client_id": ...} into the entry of the server'
        return f"{error}; if no client can register itself, {advice}"
    return str(error) or type(error).__name__


def _grant(provider: OAuthClientProvider) -> Grant:
    context = provider.context
    client, tokens, metadata = context.client_info, context.current_tokens, context.oauth_metadata
    if tokens is None or client is None or client.client_id is None:
        raise SourceError("the server asks for no login", stage="login")
    asks_for_resource = context.should_include_resource_param(context.protocol_version)
    return Grant(
        # Servers of before 2025-06 have no metadata; their endpoint is where the first specification put it.
        token_url=str(metadata.token_endpoint) if metadata else urljoin(context.server_url, "/token"),
        client_id=client.client_id,
        client_secret=client.client_secret,
        secret_in_body=client.token_endpoint_auth_method == "client_secret_post",  # noqa: S105
        scope=tokens.scope,
        resource=context.get_resource_url() if asks_for_resource else None,
    ).renewed(tokens.model_dump(exclude_none=True))
