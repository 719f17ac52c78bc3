"""Who may use the console: this machine's user while no keys are set, else who has a key of the console.

A key is exchanged for a session: a cookie that no script can read and no other site can send. It is signed with the
key, so that every process knows it and it ends with the key; one that its user ended is remembered in the store.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import socket
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from starlette.types import Scope

from toolway.access.keys import KeyRing
from toolway.errors import Forbidden, ToolwayError, TooMany, Unauthorized
from toolway.net.hosts import is_loopback, is_same_origin
from toolway.server.caller import CREDENTIALS
from toolway.settings.settings import Settings
from toolway.stores import EntryKind, Key, Store
from toolway.types import Header

COOKIE = b"toolway_console"
SESSION_SECONDS = 8 * 3600
CHANGES = b"x-toolway-console"
"""The header without which nothing is changed: no form and no page of another origin can send it."""

CONSOLE = "console"
"""Who changes something, for the audit log, where no key of the file says it."""

OPEN = "open"
"""The value of that header where there is no session."""

_TRIES, _TRIES_SECONDS = 10, 60.0
"""So many wrong keys in so many seconds."""
_PEERS, _PEER_SECONDS = 1000, 30.0
"""Connections of which it is remembered for a while whose they are."""
_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"})
_NEEDS_SESSION = (
    "The console's API takes no key in a header, but a session: POST /console/api/session with the key as "
    '{"key": "..."} and the header X-Toolway-Console: open; then send the cookie that it sets, and with each change '
    "the token that it answers, in X-Toolway-Console."
)  # the same for a wrong key, or keys could be tried here without end
_TABLES = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}
_ENDED = EntryKind("console.ended", bool)


@dataclass(frozen=True, kw_only=True)
class Session:
    """One use of a key. `token` must come with each change; `until` is Unix time; `by` is the name of the key."""

    id: str
    token: str
    until: float
    by: str = CONSOLE


NO_SESSION = Session(id="", token=OPEN, until=0.0)
"""That of this machine's user where no key is asked for."""


_MAKE_A_KEY = (
    "`toolway keys add op --routes console`, or set TOOLWAY_CONSOLE_KEYS to one of your choice, "
    "and start Toolway anew"
)


class Access:
    """Access to the console. `check` lets a request in, `sign_in` and `sign_out` begin and end a session."""

    def __init__(self, settings: Settings, store: Store, keys: KeyRing) -> None:
        self._own_keys = [sha256(key.encode()).digest() for key in settings.console.keys]
        self._is_exposed = settings.server.is_exposed
        self.ring = keys
        self._store = store
        self._wrong: list[float] = []
        self._peers: OrderedDict[tuple[str, int], tuple[float, bool]] = OrderedDict()

    @property
    def _keys(self) -> dict[bytes, str]:
        """The digests of the keys that open the console, its own and those of the file that name it; their names."""
        return dict.fromkeys(self._own_keys, CONSOLE) | self.ring.digests("console")

    @property
    def needs_key(self) -> bool:
        """Whether nobody gets in without a key."""
        return bool(self._own_keys) or self.ring.is_closed or self._is_exposed

    @property
    def can_sign_in(self) -> bool:
        """Whether there is a key that opens it."""
        return bool(self._keys)

    async def check(self, scope: Scope) -> Session:
        """The session of a request. Raises Unauthorized and Forbidden."""
        headers = _headers(scope)
        _check_site(headers)
        session = await self._session(headers)
        if session is None:
            if self.needs_key:
                has_key = not CREDENTIALS.isdisjoint(headers)
                raise Unauthorized(self._how_to_enter(*[_NEEDS_SESSION] * has_key), code="console_key_needed")
            self._check_peer(scope, headers)
            session = NO_SESSION
        if scope["method"] not in ("GET", "HEAD"):
            token = headers.get(CHANGES, b"").decode("latin-1")
            if not hmac.compare_digest(token.encode(), session.token.encode()):
                raise Forbidden("A change needs the token of the session.", code="console_token_needed")
        return session

    async def is_still(self, scope: Scope, session: Session) -> bool:
        """Whether what a request opened with this session may still be open."""
        try:
            return (await self.check(scope)).id == session.id
        except ToolwayError:
            return False

    def sign_in(self, scope: Scope, key: str) -> tuple[Session, Header]:
        """Exchange a key for a session; also the header that sets its cookie. Raises Unauthorized, TooMany."""
        headers = _headers(scope)
        _check_site(headers)
        if CHANGES not in headers:
            raise Forbidden("Signing in is for the page of the console.", code="console_token_needed")
        now = time.monotonic()
        self._wrong = [at for at in self._wrong if now - at < _TRIES_SECONDS]
        if len(self._wrong) >= _TRIES:
            raise TooMany(
                "Too many wrong keys; wait a minute.", seconds=self._wrong[0] + _TRIES_SECONDS - now
            )
        digest = sha256(key.encode(errors="surrogatepass")).digest()
        found = [known for known in self._keys if hmac.compare_digest(known, digest)]
        if not found:
            self._wrong.append(now)
            raise Unauthorized(self._how_to_enter("This is no key of the console."), code="invalid_api_key")
        self.ring.note_use(found[0])
        identity, until = secrets.token_urlsafe(12), int(time.time()) + SESSION_SECONDS
        value = f"{until}.{identity}.{_signed(found[0], 'session', until, identity)}"
        is_secure = scope.get("scheme") == "https" or headers.get(b"origin", b"").startswith(b"https://")
        token = _signed(found[0], "token", until, identity)
        session = Session(id=identity, token=token, until=until, by=self._keys[found[0]])
        return session, _cookie(value, SESSION_SECONDS, is_secure=is_secure)

    async def sign_out(self, session: Session) -> Header:
        """End a session for good; the header that takes its cookie away. Raises StoreError."""
        if session.id:
            await self._store.put(_ended(session.id), True, ttl=SESSION_SECONDS, certain=True)
            self.ring.tell_change()
        return _cookie("", 0, is_secure=False)

    async def _session(self, headers: dict[bytes, bytes]) -> Session | None:
        for value in _cookies(headers.get(b"cookie", b"")):
            until, identity, signature = (*value.split("."), "", "")[:3]
            if not until.isdecimal() or len(until) > 12 or int(until) < time.time():
                continue
            for key, name in self._keys.items():
                if hmac.compare_digest(
                    _signed(key, "session", int(until), identity).encode(), signature.encode()
                ):
                    if await self._store.get(_ended(identity), certain=True):
                        return None
                    self.ring.note_use(key)
                    token = _signed(key, "token", int(until), identity)
                    return Session(id=identity, token=token, until=float(until), by=name)
        return None

    def _check_peer(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Only this machine's user, and not what a proxy on this machine lets in. Raises Forbidden."""
        host = headers.get(b"host", b"").decode("latin-1").rpartition(":")
        name = host[0] if host[2].isdecimal() else "".join(host)
        if not is_loopback(name) or not _FORWARDED.isdisjoint(headers):
            raise Forbidden(
                f"From outside, the console opens with a key: {_MAKE_A_KEY}.", code="console_closed"
            )
        client, server = scope.get("client"), scope.get("server")
        if client and server and server[1] and not self._is_own(tuple(client), tuple(server)):
            raise Forbidden(
                "Another user of this machine runs this Toolway; a key opens its console, which its user makes: "
                f"{_MAKE_A_KEY}.",
                code="console_closed",
            )

    def _is_own(self, client: tuple[str, int], server: tuple[str, int]) -> bool:
        now = time.monotonic()
        until, own = self._peers.pop(client, (0.0, False))
        if until < now:
            until, own = now + _PEER_SECONDS, is_own_user(client, server)
        self._peers[client] = until, own
        while len(self._peers) > _PEERS:
            self._peers.popitem(last=False)
        return own

    def _how_to_enter(self, first: str = "The console opens with a key.") -> str:
        if self.can_sign_in:
            return first
        return f"The console is closed: no key opens it yet. Make one: {_MAKE_A_KEY}."


def _check_site(headers: dict[bytes, bytes]) -> None:
    """Only the console's own page may ask, whatever origins may use the API. Raises Forbidden."""
    origin = headers.get(b"origin")
    is_own = origin is None or is_same_origin(origin, headers.get(b"host", b""))
    if not is_own or headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        raise Forbidden("Only the console's own page may ask this.", code="origin_not_allowed")


def _headers(scope: Scope) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        found[name] = found[name] + b"; " + value if name == b"cookie" and name in found else value
    return found


def _cookies(header: bytes) -> Iterable[str]:
    for part in header.split(b";"):
        name, _, value = part.strip().partition(b"=")
        if name == COOKIE:
            yield value.decode("latin-1")


def _cookie(value: str, seconds: int, *, is_secure: bool) -> Header:
    kept = f"{COOKIE.decode()}={value}; Path=/console/; Max-Age={seconds}; HttpOnly; SameSite=Strict"
    return b"set-cookie", (kept + ("; Secure" if is_secure else "")).encode()


def _signed(key: bytes, purpose: str, until: int, identity: str) -> str:
    text = f"toolway console {purpose}\0{until}\0{identity}"
    return (
        base64.urlsafe_b64encode(hmac.digest(key, text.encode(errors="replace"), "sha256"))
        .decode()
        .rstrip("=")
    )


def _ended(identity: str) -> Key[bool]:
    return _ENDED.key("console sessions", identity)


def is_own_user(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Whether this process's user, or root, opened the connection. True where the system does not tell."""
    uid = _user_of(client, server)
    return uid is None or uid in (0, os.getuid())


def _user_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    try:
        ends = f"{_kernel_address(family, *client)} {_kernel_address(family, *server)} "
        with _TABLES[family].open() as table:
            for line in table:
                if ends in line:
                    return int(line.split()[7])
    except (OSError, ValueError, IndexError):
        return None
    return None


def _kernel_address(family: socket.AddressFamily, host: str, port: int) -> str:
    """An address as the kernel writes it there: words of four bytes in the order of this machine."""
    packed = socket.inet_pton(family, host.partition("%")[0])
    order = "<" if sys.byteorder == "little" else ">"
    words = struct.unpack(f"{order}{len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
