"""One operation as a call needs it: where each argument goes, and where the endpoint's credentials go.

No security scheme of a document is ever a tool's parameter.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from toolway.schema.dereference import References
from toolway.settings.env_endpoints import Endpoint
from toolway.types import JSON

Location = Literal["path", "query", "header", "cookie"]
BodyKind = Literal["json", "form", "multipart", "text", "binary"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter; `argument` is its name in the flat object of arguments, `name` its name on the wire."""

    argument: str
    name: str
    location: Location
    required: bool = False
    style: str = "simple"
    explode: bool = False
    allow_reserved: bool = False
    as_json: bool = False


@dataclass(frozen=True, kw_only=True)
class BodyField:
    """One property of an object body. A `binary` one is base64 or a data: URI in the arguments."""

    argument: str
    name: str
    binary: bool = False
    media_type: str | None = None
    style: str | None = None
    explode: bool = True


@dataclass(frozen=True, kw_only=True)
class Body:
    """A request body: one `argument` that is all of it, or `fields` (and any argument left over, if `open`)."""

    kind: BodyKind
    media_type: str
    required: bool = False
    argument: str | None = None
    fields: tuple[BodyField, ...] = ()
    open: bool = False


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A place for the endpoint's credentials, without them: they are put in when a request is built."""

    location: Literal["header", "query", "cookie"]
    name: str
    kind: Literal["bearer", "basic", "key"]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """`base` is the absolute URL of its server without a slash at the end; `path` the template below that."""

    method: str
    base: str
    path: str
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    secrets: tuple[Secret, ...] = ()
    reserved: frozenset[tuple[str, str]] = frozenset()
    """(location, lower-case name) of what no argument may set."""


_TEXT = re.compile(r"text/.*|.*[/+](xml|yaml|x-yaml|x-ndjson|ndjson|jsonl|graphql|javascript|csv)", re.DOTALL)


def kind_of(media_type: str) -> BodyKind:
    """How a media type is written. One that is none (`new` in a real document) is taken for JSON."""
    plain = essence(media_type)
    if plain == "application/x-www-form-urlencoded":
        return "form"
    if plain.startswith("multipart/"):
        return "multipart"
    if _TEXT.fullmatch(plain):
        return "text"
    return "json" if "json" in plain or plain in ("*/*", "application/*") or "/" not in plain else "binary"


def essence(media_type: str) -> str:
    """A media type without its parameters, lower case."""
    return media_type.partition(";")[0].strip().lower()


BEARER = Secret(location="header", name="Authorization", kind="bearer")
BASIC = Secret(location="header", name="Authorization", kind="basic")

HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

RESERVED_HEADERS = frozenset(
    "accept accept-encoding authorization connection content-encoding content-length content-type cookie expect host "
    "keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade "
    "user-agent".split()
)
"""What a request says of itself and of its sender; a document may declare these, a model may not set them."""

_KEY_NAMES = frozenset(
    "api_key apikey x_api_key x_apikey access_token x_access_token auth_token x_auth_token".split()
)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What the operator configured for one endpoint."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Credentials:
        return cls(
            username=endpoint.username,
            password=endpoint.password,
            token=endpoint.token,
            headers=endpoint.headers,
        )

    def merge_headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Headers of a request with the configured ones in place of those of the same name."""
        if not self.headers:
            return headers
        ours = {name.lower() for name in self.headers}
        return {name: value for name, value in headers.items() if name.lower() not in ours} | dict(
            self.headers
        )

    def value(self, secret: Secret) -> str | None:
        """What to write in the place of `secret`; None when that kind is not configured."""
        key = self.token or self.password
        if secret.kind == "basic":
            if self.username is None:
                return None
            pair = f"{self.username}:{self.password or ''}".encode()
            return f"Basic {base64.b64encode(pair).decode()}"
        if key is None:
            return None
        return f"Bearer {key}" if secret.kind == "bearer" else key

    def default_secrets(self) -> tuple[Secret, ...]:
        """The place to use when a document names none: Bearer for a token, Basic for user and password."""
        if self.token is not None:
            return (BEARER,)
        return (BASIC,) if self.username is not None or self.password is not None else ()


class Security:
    """The security schemes of one document, and what an operation asks of them."""

    def __init__(self, document: JSON, credentials: Credentials) -> None:
        components = document.get("components")
        schemes = components.get("securitySchemes") if isinstance(components, dict) else None
        if not isinstance(schemes, dict):
            schemes = document.get("securityDefinitions")
        references = References(document)
        self._credentials = credentials
        self._required = document.get("security")
        self._schemes: dict[str, Secret] = {}
        for name, scheme in schemes.items() if isinstance(schemes, dict) else ():
            if (secret := _secret(references.resolve(scheme))) is not None:
                self._schemes[name] = secret
        self.reserved = frozenset((s.location, s.name.lower()) for s in self._schemes.values())

    def secrets(self, operation: JSON, hidden: tuple[Secret, ...] = ()) -> tuple[Secret, ...]:
        """The places to fill for one operation: its first alternative for which there are credentials.

        An operation that asks for nothing gets them too: a gateway in front may guard what the author left open.
        `hidden` are parameters that are keys by their name only; they count when no scheme says better.
        """
        required = operation.get("security", self._required)
        alternatives = [self._places(item) for item in required] if isinstance(required, list) else []
        alternatives += [(secret,) for secret in self._schemes.values()]
        for places in alternatives:
            if places and all(self._credentials.value(secret) is not None for secret in places):
                return places
        known = [secret for secret in hidden if self._credentials.value(secret) is not None]
        return (*known, *self._credentials.default_secrets())

    def hides(self, location: str, parameter: JSON) -> Secret | None:
        """The secret that a declared parameter is, if it is one: a scheme's own place, or a key by its name."""
        name = str(parameter.get("name", ""))
        for secret in self._schemes.values():
            if (secret.location, secret.name.lower()) == (location, name.lower()):
                return secret
        if location in ("header", "query", "cookie") and (_is_key(name) or _is_token(location, parameter)):
            return Secret(location=location, name=name, kind="key")  # type: ignore[arg-type]
        return None

    def _places(self, requirement: Any) -> tuple[Secret, ...]:
        names = list(requirement) if isinstance(requirement, dict) else []
        if not all(name in self._schemes for name in names):
            return ()
        return tuple(self._schemes[name] for name in names)


def is_token_field(name: str, schema: JSON) -> bool:
    """Whether a form field is the caller's own token, as Slack's documents declare it beside OAuth."""
    return name == "token" and _describes_token(schema)


def _is_key(name: str) -> bool:
    return name.lower().replace("-", "_") in _KEY_NAMES


def _is_token(location: str, parameter: JSON) -> bool:
    return str(parameter.get("name")).lower() == "token" and (
        location == "header" or _describes_token(parameter)
    )


def _describes_token(described: JSON) -> bool:
    return str(described.get("description", "")).lower().startswith("authentication token")


def _secret(scheme: Any) -> Secret | None:
    if not isinstance(scheme, dict):
        return None
    kind, name, location = scheme.get("type"), scheme.get("name"), scheme.get("in")
    if kind == "apiKey" and isinstance(name, str) and location in ("header", "query", "cookie"):
        return _key(location, name)
    if kind == "basic" or (kind == "http" and str(scheme.get("scheme")).lower() == "basic"):
        return BASIC
    if kind in ("oauth2", "openIdConnect") or (
        kind == "http" and str(scheme.get("scheme")).lower() == "bearer"
    ):
        return BEARER
    return None


def _key(location: Any, name: str) -> Secret | None:
    if location == "header" and name.lower() == "authorization":
        return BEARER  # an apiKey scheme in this place is how Swagger 2 writes a bearer token
    if location == "header" and (not HEADER_NAME.fullmatch(name) or name.lower() in RESERVED_HEADERS):
        return None
    return Secret(location=location, name=name, kind="key")
