"""OAuth logins at remote servers, with their tokens: in a private file, and in a Redis that several machines share."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import quote

import anyio
import httpx2
import jwt
import orjson

from toolway.errors import ConfigError, StoreError
from toolway.stores import EntryKind, Store, open_store
from toolway.types import JSON

try:
    import fcntl
except ImportError:  # Windows: there processes are not kept from renewing at the same time
    fcntl = None  # type: ignore[assignment]

EARLY = 30.0
"""Seconds before its end at which a token counts as stale."""

POLL_SECONDS = 0.05
"""Seconds between two looks whether another process has finished renewing."""

_TOKEN_TIMEOUT = {"connect": 10.0, "read": 30.0, "write": 10.0, "pool": 10.0}


@dataclass(frozen=True, kw_only=True)
class Login:
    """The tokens that a server granted, and what it takes to get the next ones. `expires_at` is in Unix time."""

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
    granted_at: float = 0.0
    """When a person allowed it, in Unix time."""
    renewals: int = 0
    """How often its tokens were replaced since; of the same login the one with more is the newer."""

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

    def ended(self) -> Login:
        """Without the tokens that the server takes no more: only another login helps."""
        more = self.renewals + 1
        return replace(self, access_token=None, refresh_token=None, expires_at=None, renewals=more)

    def newer(self, other: Login | None) -> Login:
        """The newer one of two: of the later login, or of the same one after more renewals."""
        if other is None or (self.granted_at, self.renewals) >= (other.granted_at, other.renewals):
            return self
        return other

    def renewed(self, answer: JSON) -> Login:
        """With the tokens of a token endpoint's answer."""
        seconds = answer.get("expires_in")
        return replace(
            self,
            access_token=str(answer["access_token"]),
            refresh_token=answer.get("refresh_token") or self.refresh_token,
            expires_at=time.time() + seconds if isinstance(seconds, int | float) else None,
            renewals=self.renewals + 1,
        )


class LoginFile:
    """The logins at all servers by their URLs, and what servers asked for that was not granted.

    It is read and written whole, by several processes.
    """

    _DEMANDS = "demands"

    def __init__(self, path: Path) -> None:
        self._path = path

    def login(self, url: str) -> Login | None:
        """What was granted for a server, if anything."""
        entry = self._entries().get(url)
        if not isinstance(entry, dict):
            return None
        known = {field.name for field in fields(Login)}
        try:
            return Login(**{name: value for name, value in entry.items() if name in known})
        except TypeError:
            return None

    def keep(self, url: str, login: Login) -> None:
        """Write it down; others cannot read the file at any moment."""
        self._change(lambda entries: {**entries, url: asdict(login)})

    def demand(self, url: str) -> str | None:
        """The newest `WWW-Authenticate` with which the server rejected a request, for the next login."""
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
        """While the block lasts, no other process renews the tokens of this server: refresh tokens are good once."""
        name = hashlib.sha256(url.encode()).hexdigest()[:12]
        with self._opened(f".{name}.lock") as lock:
            while fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await anyio.sleep(POLL_SECONDS)
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


LOCK_SECONDS = 60.0
"""After so long a renewal that never ended keeps nobody waiting any more."""

RENEWAL_SECONDS = 45.0
"""What a renewal may take, with all that is kept of it; less than its lock lasts."""

_OWNER = "grants"
_FOREVER = 10 * 365 * 86_400.0
_MAX_BYTES = 16 * 2**20
_LOGIN = EntryKind("grant", Login)
_RENEWAL = EntryKind("renewal of a grant", bool)


class HeldLogin:
    """The login at one server, while nobody else renews its tokens."""

    def __init__(self, url: str, file: LoginFile, store: Store | None = None) -> None:
        self._url = url
        self._file = file
        self._store = store
        self._key = _LOGIN.key(_OWNER, url)

    async def read(self) -> Login | None:
        """The newest one. Raises StoreError."""
        own = self._file.login(self._url)
        if self._store is None:
            return own
        shared = await self._store.get(self._key, certain=True)
        return own.newer(shared) if own else shared

    async def keep(self, login: Login) -> None:
        """Keep it in place of the one that was there. Raises StoreError, and OSError where there is only the file."""
        try:
            self._file.keep(self._url, login)
        except OSError:  # a container's file system may be read-only
            if self._store is None:
                raise
        if self._store is not None:
            await self._store.put(self._key, login, ttl=_FOREVER, certain=True)


class LoginStore:
    """All OAuth logins of this Toolway: in its file, and in the Redis that it shares with others, if it has one.

    Each look at the Redis opens a connection of its own: there is one at the start of a server, and one for a renewal.
    """

    def __init__(self, file: LoginFile, store_url: str | None = None) -> None:
        self.file = file
        self._store_url = store_url

    async def read(self, url: str) -> Login | None:
        """The newest login that can be read; a store that is away is passed over, as who renews must not do."""
        if self._store_url is not None:
            with suppress(ConfigError, StoreError):
                async with self._opened(self._store_url) as store:
                    return await HeldLogin(url, self.file, store).read()
        return self.file.login(url)

    @asynccontextmanager
    async def renewing(self, url: str) -> AsyncIterator[HeldLogin]:
        """While the block lasts, nobody else renews its tokens: refresh tokens are good once.

        Raises StoreError or ConfigError when that cannot be known.
        """
        if self._store_url is None:
            async with self.file.renewing(url):
                yield HeldLogin(url, self.file)
            return
        async with self._opened(self._store_url) as store, _locked(store, url):
            yield HeldLogin(url, self.file, store)

    def keep_demand(self, url: str, challenge: str | None) -> None:
        """What a server asks for that was not granted, for the next login on this machine."""
        with suppress(OSError):  # then that login asks the server again
            self.file.keep_demand(url, challenge)

    @staticmethod
    def _opened(store_url: str) -> AbstractAsyncContextManager[Store]:
        return open_store(store_url, ttl=_FOREVER, max_bytes=_MAX_BYTES)


@asynccontextmanager
async def _locked(store: Store, url: str) -> AsyncIterator[None]:
    key = _RENEWAL.key(_OWNER, url)
    while not await store.add(key, True, ttl=LOCK_SECONDS):  # noqa: ASYNC110 - another machine holds it
        await anyio.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True), suppress(StoreError):
            await store.delete(key)
