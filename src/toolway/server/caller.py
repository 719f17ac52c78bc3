"""The caller of a request, made of its ASGI scope once; nothing behind it reads credentials again."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from starlette.types import Scope

from toolway.settings.settings import UpstreamSettings
from toolway.types import ANYBODY, Caller, Header, Principal
from toolway.upstream.client import HOP_BY_HOP, credential

PRINCIPAL_KEY = "toolway.principal"
"""The scope's key for the `Principal` whose credential came, absent when no keys are configured."""

OPTION_PREFIX = b"x-toolway-"
"""What begins the names of headers that are for Toolway itself."""

CREDENTIALS = frozenset({b"authorization", b"api-key", b"x-api-key"})

PLACEHOLDER = b"unused"
"""What clients whose library insists on a key are told to give as one: no key where Toolway has one to send."""

_HANDSHAKE = {b"sec-websocket-" + name for name in (b"key", b"version", b"protocol", b"extensions")}
_NOT_FORWARDED = HOP_BY_HOP | _HANDSHAKE | {b"host", b"expect", b"origin"}
_BODY_HEADERS = frozenset({b"content-length", b"content-encoding", b"accept-encoding"})


_LAST = "toolway.last_caller"
"""Where a connection keeps its last caller, in `scope["extensions"]`: clients send one head again and again."""


def caller_of(scope: Scope, settings: UpstreamSettings) -> Caller:
    """The caller of this request."""
    return _last_or_new(scope, settings, _caller)


def openai_caller_of(scope: Scope, settings: UpstreamSettings) -> Caller:
    """The caller of this request in Anthropic's API, as `as_openai_caller` makes it."""
    return _last_or_new(scope, settings, _openai_caller)


def _last_or_new(
    scope: Scope, settings: UpstreamSettings, make: Callable[[Scope, UpstreamSettings], Caller]
) -> Caller:
    head = (make, scope.get(PRINCIPAL_KEY), scope.get("query_string"), _without_body(scope["headers"]))
    connection = scope.get("extensions") or {}
    last = connection.get(_LAST)
    if last is None or last[0] != head:
        last = connection[_LAST] = (head, make(scope, settings))
    caller: Caller = last[1]
    return caller


def _without_body(headers: Sequence[Header]) -> object:
    """The headers to compare: without those of the body, which differ from request to request."""
    named = dict(headers)
    if len(named) < len(headers):  # there are two of one name
        return headers
    for name in _BODY_HEADERS:
        named.pop(name, None)
    return named


def _caller(scope: Scope, settings: UpstreamSettings) -> Caller:
    """What the head of a request and its connection say, and nothing else."""
    headers = upstream_headers(scope, settings)
    identity, is_known = caller_id(scope), _is_known(scope)
    principal = principal_of(scope)
    return Caller(
        id=identity,
        name=principal.name,
        headers=[header for header in headers if not header[0].startswith(OPTION_PREFIX)],
        option_headers=[header for header in scope["headers"] if header[0].startswith(OPTION_PREFIX)],
        retry_id=identity if is_known else f"{identity}:{_digest(identity, _origin_of(scope))}",
        is_known=is_known,
        query=scope.get("query_string", b""),
        selection=principal.selection,
        principal=principal,
    )


def principal_of(scope: Scope) -> Principal:
    """Whose credential came with the request."""
    found: Principal = scope.get(PRINCIPAL_KEY, ANYBODY)
    return found


def place_of(scope: Scope) -> dict[str, str]:
    """From where a request came and what it asked for, in the words of OpenTelemetry."""
    peer = scope.get("client")
    return {
        "client.address": peer[0] if peer else "",
        "http.request.method": scope.get("method", "GET"),
        "url.path": scope["path"][:200],
    }


def _is_known(scope: Scope) -> bool:
    return PRINCIPAL_KEY in scope or any(name in CREDENTIALS for name, _ in scope["headers"])


def _origin_of(scope: Scope) -> bytes:
    """What tells a client without a credential from all others: a key that it made up, else its connection."""
    for name, value in scope["headers"]:
        if name == b"idempotency-key" and value:
            return b"key %b" % value
    peer = scope.get("client")
    return repr(peer).encode() if peer and peer[1] else secrets.token_bytes(16)


def caller_id(scope: Scope) -> str:
    """A digest of the credentials: whose conversations these are. The id of a principal stands before it.

    What a caller may take is counted for all that is before the colon: one key is one caller, whatever credentials for
    the model server come along.
    """
    key = principal_of(scope).id
    digest = _digest(key, *(value for name, value in scope["headers"] if name in CREDENTIALS))
    return f"{key}:{digest}" if key else digest


@lru_cache(maxsize=1024)
def _digest(name: str, *credentials: bytes) -> str:
    return hashlib.sha256(b"\0".join([name.encode(), *credentials])).hexdigest()


def upstream_headers(scope: Scope, settings: UpstreamSettings, *, same_body: bool = False) -> list[Header]:
    """The request headers for the model server.

    Left out: what belongs to this connection (also what Connection names), Host, and Origin, since CORS ends
    here. Unless the body goes on as it came (`same_body`), also what describes it, and Accept-Encoding.
    OPENAI_API_KEY is added when the client sent no credential of its own, or the placeholder for one;
    `AuthMiddleware` took out the key that it gave to us.
    """
    headers: list[Header] = scope["headers"]
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    kept: list[Header] = []
    none = (b"", PLACEHOLDER) if settings.api_key else (b"",)
    has_credential = False
    for header in headers:
        name = header[0]
        if name in _NOT_FORWARDED or name in named or (name in _BODY_HEADERS and not same_body):
            continue
        if name in CREDENTIALS:
            if key_in(header) in none:
                continue
            has_credential = True
        kept.append(header)
    if not has_credential:
        kept += credential(settings.api_key)
    return kept


def key_in(header: Header) -> bytes:
    """The one reader of credentials, whatever header they come in."""
    name, value = header
    if name == b"authorization":
        scheme, _, token = value.strip().partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else value
    return value.strip()


def as_openai_caller(caller: Caller) -> Caller:
    """A caller of Anthropic's API as a model server of OpenAI's kind knows callers: its key is a bearer."""
    query = b"&".join(pair for pair in caller.query.split(b"&") if pair != b"beta=true")
    headers = [_as_bearer(header) for header in caller.headers if not header[0].startswith(b"anthropic-")]
    bearers = [header for header in headers if header[0] == b"authorization"]
    headers = [header for header in headers if header[0] != b"authorization"] + bearers[:1]
    return replace(caller, query=query, headers=headers)


def _openai_caller(scope: Scope, settings: UpstreamSettings) -> Caller:
    return as_openai_caller(_caller(scope, settings))


def _as_bearer(header: Header) -> Header:
    return (b"authorization", b"Bearer " + key_in(header)) if header[0] == b"x-api-key" else header
