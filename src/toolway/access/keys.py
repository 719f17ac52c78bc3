"""API keys: makes them, and finds whose key it is that came with a request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import string
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from toolway.access.principal import principal_of_key
from toolway.access.tokens import TokenVerifier
from toolway.errors import Unauthorized
from toolway.settings.access import UNDECLARED, AccessConfig
from toolway.types import Principal

PREFIX = "sk-toolway-"
"""What each key begins with, so that scanners for leaked secrets, logs and people can tell one."""

LENGTH = 43
"""Letters and digits behind the prefix, drawn at random: 256 bits."""

_ALPHABET = string.ascii_letters + string.digits

log = logging.getLogger("toolway.access")


def new_secret() -> str:
    """A new key. Nobody can guess 256 random bits, so its digest needs no slow hash."""
    return PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(LENGTH))


def hash_of(secret: str) -> str:
    """What is kept of a key."""
    return f"sha256:{sha256(secret.encode()).hexdigest()}"


class _Entry(NamedTuple):
    digest: bytes
    principal: Principal
    expires: float | None


class KeyRing:
    """The keys of the environment (`api_keys`, which may do everything) and of the file, as it is now.

    Once there were keys there is no way in without one, whatever the file says later, until the process ends.
    """

    def __init__(self, api_keys: Sequence[str] = (), config: AccessConfig = UNDECLARED) -> None:
        self._of_environment = [
            _Entry(digest, Principal(id=digest.hex()[:12], name=digest.hex()[:12]), None)
            for digest in (sha256(key.encode()).digest() for key in api_keys)
        ]
        self._entries: dict[bytes, _Entry] = {}
        self.used_at: dict[str, float] = {}
        """When this process last saw each key (Unix time), by the id of its principal."""
        self._ended: set[str] = set()
        """The ids of principals that had a key and have none now."""
        self.is_closed = bool(api_keys)
        self.changed = asyncio.Event()
        """Set when a key, or a session that was opened by one, may have ended; another one takes its place then."""
        self.tokens: TokenVerifier | None = None
        """Finds who comes with a token of an identity provider, where there is one."""
        self.replace(config)

    def replace(self, config: AccessConfig) -> None:
        """Have these keys in the file from now on."""
        entries = list(self._of_environment)
        for key in config.keys:
            digest = bytes.fromhex(key.hash)
            entries.append(_Entry(digest, principal_of_key(key, config), key.expires))
        self.tokens = TokenVerifier(config, config.jwt, self.tokens) if config.jwt else None
        before = {entry.principal.id for entry in self._entries.values()}
        # Where both have a key, the one in the file says what it may do.
        self._entries = {entry.digest: entry for entry in entries}
        known = {entry.principal.id for entry in entries}
        self._ended = (self._ended | before) - known
        self.used_at = {identity: at for identity, at in self.used_at.items() if identity in known}
        if self.is_closed and not config.is_declared and not self._of_environment:
            log.warning("there are no keys any more; nobody may do anything until there are, or a restart")
        self.is_closed = self.is_closed or config.is_declared
        self.tell_change()

    def tell_change(self) -> None:
        """Have whatever is open for longer than a request look whether it still may be."""
        self.changed.set()
        self.changed = asyncio.Event()

    def find(self, secret: bytes) -> Principal | None:
        """Whose key this is; None: nobody's. Raises Unauthorized for one whose time is over.

        The entry is looked up by a digest, which an attacker cannot steer, and compared in constant time.
        """
        digest = sha256(secret).digest()
        entry = self._entries.get(digest)
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            return None
        now = time.time()
        if entry.expires is not None and now >= entry.expires:
            raise Unauthorized("This API key has expired; ask for a new one.", code="expired_api_key")
        self.used_at[entry.principal.id] = now
        return entry.principal

    def check(self, principal: Principal) -> None:
        """Raise Unauthorized for a principal whose key was taken away since its request came in."""
        if principal.id in self._ended:
            raise Unauthorized(
                "This API key was taken away; no more calls are run with it.", code="invalid_api_key"
            )

    def note_use(self, digest: bytes) -> None:
        """Somebody came in by the key of this digest, where no secret was sent."""
        if entry := self._entries.get(digest):
            self.used_at[entry.principal.id] = time.time()

    def digests(self, route: str) -> dict[bytes, str]:
        """The digests of the keys that name this route among theirs and whose time is not over, and their names."""
        now = time.time()
        return {
            entry.digest: entry.principal.name
            for entry in self._entries.values()
            if route in (entry.principal.routes or ()) and (entry.expires is None or now < entry.expires)
        }
