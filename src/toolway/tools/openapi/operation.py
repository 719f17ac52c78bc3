"""One operation as a call needs it: where it lives, where each argument goes, which secrets it wants."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

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
