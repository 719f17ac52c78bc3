"""JWTs of an identity provider: signature, issuer, audience and time are checked, the claims choose the group."""

from __future__ import annotations

import logging
import math
import string
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import anyio
import orjson

from toolway.access.principal import principal_of_person
from toolway.errors import Busy, Forbidden, Unauthorized
from toolway.net.client import HttpClient, Origin
from toolway.net.errors import HttpError
from toolway.net.proxy import proxy_for
from toolway.settings.access import JWT_PREFIX, AccessConfig, GroupConfig, JwtConfig
from toolway.types import JSON, Principal

if TYPE_CHECKING:
    from jwt import PyJWK

LEEWAY = 60.0
"""Seconds by which the clocks of the provider and this machine may differ."""

FRESH_SECONDS = 600.0
"""Keys are asked for anew when they are older; a key that the provider took away is good for so long at most."""

STALE_SECONDS = 86_400.0
"""While the provider cannot be reached its keys are good for so long."""

PAUSE_SECONDS = 10.0
"""Between two questions for keys, however many tokens come with a key that nobody knows."""

ANSWER_SECONDS = 5.0
MAX_BYTES = 2**20
FOR_EVER = 1e12
MAX_KNOWN = 1_024
"""So many tokens that were checked are remembered, each until its end."""

MAX_CHARACTERS = 16_384
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""With public keys alone: under any other a token could be made with what everybody knows."""

_DISCOVERY = ("/.well-known/openid-configuration", "/.well-known/oauth-authorization-server")

log = logging.getLogger("toolway.access")


def is_token(secret: bytes) -> bool:
    """Whether a credential has the form of a JWT."""
    return secret.startswith(b"eyJ") and secret.count(b".") == 2 and len(secret) <= MAX_CHARACTERS


class TokenVerifier:
    """Finds who comes with a token of the provider in `config`."""

    def __init__(
        self, config: AccessConfig, provider: JwtConfig, before: TokenVerifier | None = None
    ) -> None:
        self._config = config
        self.provider = provider
        is_same = before is not None and before.provider == provider
        self._keys: _ProviderKeys = before._keys if before and is_same else _ProviderKeys(provider)
        self._known: OrderedDict[bytes, tuple[Principal, float, object]] = OrderedDict()

    async def why_not(self) -> str | None:
        """Why the provider's keys cannot be had; None when they can."""
        try:
            await self._keys.current()
        except Busy as error:
            return self._keys.failure or error.message
        return None

    async def find(self, token: bytes) -> Principal:
        """Who it is. Raises Unauthorized, Forbidden for somebody in no group here, Busy without the provider's keys."""
        digest = sha256(token).digest()
        known = self._known.get(digest)
        if known and time.time() < known[1] and known[2] is await self._keys.current():
            return known[0]
        claims = await self._claims(token.decode("latin-1"))
        principal = self._principal(claims)
        self._known[digest] = (principal, min(claims["exp"], FOR_EVER) + LEEWAY, await self._keys.current())
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return principal

    async def _claims(self, token: str) -> Mapping[str, Any]:
        import jwt  # noqa: PLC0415 - takes a while to load

        try:
            head = jwt.get_unverified_header(token)
            if head.get("alg") not in ALGORITHMS:
                raise jwt.InvalidAlgorithmError("its algorithm is not one with a public key")
            key = await self._keys.find(head.get("kid"))
            try:
                return self._checked(token, head["alg"], key)
            except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
                # Providers without names of keys change them too.
                if (other := await self._keys.find(head.get("kid"), not_this=key)) is None:
                    raise
                return self._checked(token, head["alg"], other)
        except jwt.ExpiredSignatureError:
            raise Unauthorized("This token has expired; log in again.", code="expired_token") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
            reason = str(error).rstrip(".")[:200]
            raise Unauthorized(f"This token is not valid here: {reason}.", code="invalid_token") from None

    def _checked(self, token: str, algorithm: str, key: PyJWK | None) -> Mapping[str, Any]:
        import jwt  # noqa: PLC0415 - takes a while to load

        if key is None:
            raise jwt.InvalidTokenError("the provider has no such key")
        issuer = self.provider.issuer.rstrip("/")
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=list(self.provider.audience),
            issuer=[issuer, f"{issuer}/"],
            leeway=LEEWAY,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        group = self._group(_claim(claims, self.provider.groups_claim))
        subject = str(claims["sub"])
        if group is None:
            raise Forbidden("This account is in no group that may use this server.", code="no_group")
        shown = str(_claim(claims, self.provider.name_claim) or subject)
        name = "".join(character if character.isprintable() else "?" for character in shown)
        return principal_of_person(self.provider.issuer, subject, f"{JWT_PREFIX}{name[:100]}", group)

    def _group(self, claim: Any) -> GroupConfig | None:
        """The first group here that one of these names leads to."""
        names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
        wanted = {name for name in [claim, *names] if isinstance(name, str)}
        if self.provider.groups:
            chosen = [group for claim, group in self.provider.groups.items() if claim in wanted]
        else:
            chosen = [group.name for group in self._config.groups if group.name in wanted]
        return self._config.group(chosen[0] if chosen else self.provider.default_group)


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or a member of a member: realm_access.roles."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


class _ProviderKeys:
    """The public keys of a provider, asked for when they are needed, and again when they grow old."""

    def __init__(self, provider: JwtConfig) -> None:
        self._provider = provider
        self.failure = ""
        """Why they could not be read the last time."""
        self._told: JSON = {}
        self._keys: Sequence[PyJWK] = ()
        self._read_at = self._asked_at = -math.inf
        self._asking = anyio.Lock()

    async def current(self) -> Sequence[PyJWK]:
        """The keys, not older than they may be. Raises Busy."""
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            await self._refresh()
        return self._keys

    async def find(self, name: object, not_this: PyJWK | None = None) -> PyJWK | None:
        """The key of this name; without one the only key. The provider is asked anew if it is unknown or `not_this`."""
        key = _pick(await self.current(), name)
        if key is None or key is not_this:
            await self._refresh()
            key = _pick(self._keys, name)
        return None if key is not_this else key

    async def _refresh(self) -> None:
        async with self._asking:
            if time.monotonic() - self._asked_at >= PAUSE_SECONDS:
                self._asked_at = time.monotonic()
                await self._read()
        if time.monotonic() - self._read_at > STALE_SECONDS:
            self._keys = ()
            raise Busy("The identity provider cannot be reached, so that no token can be checked; try again.")

    async def _read(self) -> None:
        from jwt import PyJWKSet  # noqa: PLC0415 - takes a while to load
        from jwt.exceptions import PyJWTError  # noqa: PLC0415

        try:
            found = await _fetch(self._provider.jwks_uri or await self._discovered())
            keys = [key for key in PyJWKSet.from_dict(found).keys if key.key_type != "oct"]
        except (ValueError, KeyError, TypeError, AttributeError, PyJWTError) as error:
            self.failure = f"its keys cannot be read: {error}"
            log.warning("the identity provider %s: %s", self._provider.issuer, self.failure)
            return
        self.failure = ""
        self._read_at = time.monotonic()
        if found != self._told:
            self._told, self._keys = found, keys

    async def _discovered(self) -> str:
        issuer = self._provider.issuer.rstrip("/")
        failure: ValueError | None = None
        for path in _DISCOVERY:
            try:
                found = await _fetch(issuer + path)
            except ValueError as error:
                failure = failure or error
                continue
            if str(found.get("issuer", "")).rstrip("/") != issuer:
                raise ValueError(f"{issuer}{path} tells of another issuer")
            return str(found["jwks_uri"])
        raise failure or ValueError("it tells nothing of itself")


def _pick(keys: Sequence[PyJWK], name: object) -> PyJWK | None:
    usable = [key for key in keys if key.public_key_use in (None, "sig")]
    if name is None:
        return usable[0] if len(usable) == 1 else None
    return next((key for key in usable if key.key_id == name), None)


async def _fetch(url: str) -> JSON:
    """The JSON object at an address. Raises ValueError."""
    client = HttpClient(Origin.of(url), connect=ANSWER_SECONDS, proxy=proxy_for(url))
    parts = urlsplit(url)
    target = quote(parts.path or "/", safe=string.punctuation) + (f"?{parts.query}" if parts.query else "")
    body = b""
    try:
        with anyio.fail_after(ANSWER_SECONDS):
            async with client.request(
                "GET", target.encode(), headers=[(b"accept", b"application/json")]
            ) as connection:
                status = connection.response.status if connection.response else 0
                while (part := await connection.receive()) and len(body) <= MAX_BYTES:
                    body += part
    except TimeoutError:
        raise ValueError(f"{url} does not answer in time") from None
    except (HttpError, OSError) as error:
        raise ValueError(f"{url} cannot be reached: {error}") from None
    finally:
        client.close()
    found = orjson.loads(body) if status == 200 else None
    if not isinstance(found, dict):
        raise ValueError(f"{url} answers {status}, no JSON object")
    return found
