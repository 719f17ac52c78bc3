"""API keys: made, found for a request, and changed in the mcp.json, where all else stays as it is."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import string
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from toolway.access.principal import principal_of_key
from toolway.access.tokens import TokenVerifier
from toolway.errors import ConfigError, Unauthorized
from toolway.settings.access import UNDECLARED, AccessConfig, KeyConfig, Rate, Rights, check_name
from toolway.settings.files import locked, replace_text
from toolway.settings.jsonc import with_member, without_member
from toolway.settings.load import environment
from toolway.settings.mcp_json import parse_config
from toolway.types import JSON, Principal

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


_NEW_FILE = '{\n  "mcpServers": {}\n}\n'

_FILE_MEMBERS = ("where", "hash", "shared")
"""Members of an entry that say nothing about what one key may do."""


def add_key(path: Path, name: str, rights: JSON) -> str:
    """Put a key with these rights into the file, which is made if need be; the secret, of which it keeps a digest.

    Raises ConfigError.
    """
    secret = new_secret()
    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"{name!r}: {error}.") from None

    def change(text: str, known: Collection[str]) -> str:
        if name in known:
            raise ConfigError(f"There is a key {name} already; `toolway keys rotate` gives it a new secret.")
        return with_member(text, ["keys", name], {**rights, "hash": hash_of(secret)})

    _change(path, change, makes_file=True)
    return secret


def rotate_key(path: Path, name: str) -> str:
    """Give a key of the file another secret, and return it; the old one opens nothing any more. Raises ConfigError."""
    secret = new_secret()

    def change(text: str, known: Collection[str]) -> str:
        _need(name, known)
        return with_member(text, ["keys", name, "hash"], hash_of(secret))

    _change(path, change)
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the file. Raises ConfigError."""

    def change(text: str, known: Collection[str]) -> str:
        _need(name, known)
        return without_member(text, ["keys", name])

    _change(path, change)


def described(key: KeyConfig) -> JSON:
    """A key as JSON: what it may do, and until when (`state` in words, `expires` in Unix time); never its digest."""
    return {**rights_of(key), "prefix": PREFIX, "state": state_of(key), "expires": key.expires}


def rights_of(entry: Rights) -> JSON:
    """What the entry of a key or a group says of what may be done, as JSON."""
    rights = {one.name: getattr(entry, one.name) for one in fields(entry) if one.name not in _FILE_MEMBERS}
    return {
        name: str(value) if isinstance(value, Rate) else value
        for name, value in rights.items()
        if value not in (None, ())
    }


def state_of(key: KeyConfig) -> str:
    """Whether a key is valid, and until which day."""
    if key.expires is None:
        return "valid"
    word = "expired" if time.time() >= key.expires else "until"
    return f"{word} {datetime.fromtimestamp(key.expires, UTC):%Y-%m-%d}"


def _change(path: Path, change: Callable[[str, Collection[str]], str], *, makes_file: bool = False) -> None:
    """Change the file's text, if what comes out of it can be used."""
    if path.suffix == ".toml":
        raise ConfigError(f"{path} is TOML, which is not changed here; have the keys in an mcp.json.")
    if not path.exists() and not makes_file:
        raise ConfigError("There is no mcp.json with keys in it; `toolway keys add NAME` makes one.")
    with locked(path):
        text = _read(path) if path.exists() else _NEW_FILE
        env = environment()
        before = parse_config(text, env, path=str(path))
        known = {key.name for key in before.access.keys}
        changed = change(text, known)
        for key in parse_config(changed, env, path=str(path)).access.keys:
            if key.name not in known and state_of(key).startswith("expired"):
                day = state_of(key).removeprefix("expired ")
                raise ConfigError(
                    f"{day} is over: the key {key.name} would open nothing; name a day to come."
                )
        replace_text(path, changed)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _need(name: str, known: Collection[str]) -> None:
    if name not in known:
        raise ConfigError(f"There is no key {name}; those that are: {', '.join(sorted(known)) or 'none'}.")
