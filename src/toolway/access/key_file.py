"""Changes of the keys in the mcp.json: one is added, gets another secret, is taken away; all else stays as it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from toolway.access.keys import PREFIX, hash_of, new_secret
from toolway.errors import ConfigError
from toolway.settings.access import KeyConfig, Rate, Rights, check_name
from toolway.settings.files import locked, replace_text
from toolway.settings.jsonc import with_member, without_member
from toolway.settings.mcp_json import parse_config
from toolway.settings.settings import environment
from toolway.types import JSON

EMPTY = '{\n  "mcpServers": {}\n}\n'

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
        text = _read(path) if path.exists() else EMPTY
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
