"""The URL of a store: what it may be, whether it is shared, and what of it may be shown."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

_STORE_FORMS = (
    "memory:, sqlite:///relative/path, sqlite:////absolute/path or redis://user:password@host:6379/0"
)
_REDIS_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_STORE_OPTIONS = {
    "redis": {"db"},
    "rediss": {"db"} | _REDIS_TLS_OPTIONS,
    "unix": {"db", "username", "password"},
}


def store_url(text: str) -> str:
    """The URL of a store as it was given. Raises ValueError with words that show no password."""
    kind, _, path = text.partition(":")
    if text == "memory:" or (kind == "sqlite" and path.startswith("///") and path != "///"):
        return text
    if kind not in _STORE_OPTIONS or not path.startswith("//"):
        raise ValueError(f"write {_STORE_FORMS}")
    try:
        _check_redis(urlsplit(text))
    except ValueError as error:
        raise ValueError(
            f"{error}; write {kind}://user:password@host:6379/0, and in the password %2F for /, %40 for @"
            if kind != "unix"
            else f"{error}; write unix:///path/to/redis.sock?db=0"
        ) from None
    return text


def is_shared(store: str) -> bool:
    """Whether the store at this URL is one of processes on several machines."""
    return store.partition(":")[0] in _STORE_OPTIONS


def store_secrets(url: str) -> tuple[str, ...]:
    """The password in the URL of a store, in the forms in which texts may hold it."""
    parts = urlsplit(url)
    written = parts.password or ""
    return tuple({written, unquote(written), *parse_qs(parts.query).get("password", ())} - {""})


def masked_store(text: str) -> str:
    """What a message may show of something that was meant to be the URL of a store."""
    return text if re.match(r"sqlite|memory", text) else text.partition(":")[0][:20] + ":..."


def _check_redis(url: SplitResult) -> None:
    try:
        port = url.port
    except ValueError:
        raise ValueError("its port is no number up to 65535") from None
    if url.scheme == "unix":
        if len(url.path) < 2:
            raise ValueError("it names no socket")
    elif not url.hostname:
        raise ValueError("it names no host")
    elif port == 0:
        raise ValueError("its port is 0")
    elif not re.fullmatch(r"/?|/\d{1,9}", url.path):
        raise ValueError("what stands behind the host must be the number of a database")
    if url.fragment:
        raise ValueError("it holds a #")
    given = parse_qs(url.query, keep_blank_values=True)
    if unknown := given.keys() - _STORE_OPTIONS[url.scheme]:
        legal = ", ".join(sorted(_STORE_OPTIONS[url.scheme]))
        raise ValueError(f"it has no option {min(unknown)[:40]!r} (there are {legal})")
    if not all(number.isdecimal() for number in given.get("db", ())):
        raise ValueError("db must be a number")
