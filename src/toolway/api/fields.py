"""The fields of JSON objects, checked by pydantic, and the texts of contents. Errors name the field.

Only fields that mean something here are checked, and null is as good as missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Required, TypeVar

from annotated_types import Ge, MinLen
from pydantic import AfterValidator, AllowInfNan, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, SchemaValidator
from pydantic_core.core_schema import CoreSchema, custom_error_schema
from typing_extensions import TypedDict

from toolway.errors import InvalidRequest
from toolway.types import JSON

T = TypeVar("T")


@dataclass(frozen=True)
class Expected:
    """What a field must be, in words; whatever is wrong inside of it is an error of the field."""

    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The type's own schema, with this one error."""
        return custom_error_schema(handler(source), custom_error_type="kind", custom_error_message=self.words)


def _holds_texts(value: JSON) -> JSON:
    if not all(isinstance(entry, str) for entry in value.values()):
        raise PydanticCustomError("kind", "an object of texts")
    return value


Name = Annotated[str, MinLen(1)]
Number = Annotated[float, AllowInfNan(False)]
Count = Annotated[int, Ge(1), Expected("a whole number from 1 on")]
CountOrZero = Annotated[int, Ge(0), Expected("a whole number from 0 on")]
Texts = Annotated[list[str], Expected("a list of texts")]
NamedTexts = Annotated[JSON, AfterValidator(_holds_texts)]

MAX_ENTRIES = 10_000
"""Items and their parts in one input, tools in one list. Each takes microseconds in which nobody else is served."""

_WORDS = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "list_type": "a list",
    "float_type": "a number",
    "finite_number": "a number",
}
"""What a value must be, by pydantic's error; otherwise it must be a text."""


def object_of(required: Mapping[str, Any] | None = None, /, **optional: Any) -> SchemaValidator:
    """The type of an object with these members and any others, each by its own type."""
    members = {name: Required[kind] for name, kind in (required or {}).items()}
    members |= {name: kind | None for name, kind in optional.items()}
    kind = TypedDict("Members", members, total=False)  # type: ignore[misc]
    # The adapter's own `validate_python` costs a microsecond more, twenty times a request.
    return SchemaValidator(TypeAdapter(kind).core_schema)


def check(kind: SchemaValidator, value: JSON, where: str = "") -> JSON:
    """The value, without members that its type does not name. Raises InvalidRequest for the first one that is wrong.

    `where` is what the value is, as in "tools[0]".
    """
    try:
        checked: JSON = kind.validate_python(value, strict=True)
    except ValidationError as error:
        raise _in_words(error.errors(include_url=False)[0], where) from None
    return checked


def by_type(kinds: Mapping[str, T], value: JSON) -> T | None:
    """What belongs to the `type` of an object."""
    kind = value.get("type")
    return kinds.get(kind) if isinstance(kind, str) else None


def wrong(name: str, kind: str) -> InvalidRequest:
    """The error for a field that is not of its kind."""
    return InvalidRequest(f"{name} must be {kind}.", param=name, code="invalid_type")


def missing(name: str) -> InvalidRequest:
    """The error for a field that must be there."""
    return InvalidRequest(
        f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
    )


def invalid(value: Any, name: str, served: str) -> InvalidRequest:
    """The error for a value that is none of those `served`."""
    message = f"Invalid value: {str(value)[:50]!r}. {served}"
    return InvalidRequest(message, param=name, code="invalid_value")


def check_size(name: str, *sizes: int) -> None:
    """Reject a list before anything is done with it: each entry costs work in which nobody else is served."""
    if (size := sum(sizes)) > MAX_ENTRIES:
        raise InvalidRequest(
            f"{name} is too long: Toolway takes at most {MAX_ENTRIES:,} entries and parts in it, not {size:,}.",
            param=name,
            code="array_above_max_length",
        )


def _in_words(error: ErrorDetails, where: str) -> InvalidRequest:
    path = "".join(f".{key}" if isinstance(key, str) else f"[{key}]" for key in error["loc"])
    name = (where + path).removeprefix(".")
    kind, value = error["type"], error["input"]
    if kind == "kind":
        return wrong(name, error["msg"])
    if value is None or kind in ("missing", "string_too_short"):
        return missing(name)
    if kind == "literal_error" and isinstance(value, str):
        known = re.findall("'(.*?)'", error["ctx"]["expected"])
        return invalid(value, name, f"Supported values are: {', '.join(sorted(known))}.")
    return wrong(name, _WORDS.get(kind, "a text"))


def text_in(content: Any) -> str:
    """All text in a content, whatever kinds its parts are; what is no text is passed over."""
    if isinstance(content, str):
        return content
    return "".join(texts_in(content)) if content else ""


def texts_in(content: Any) -> list[str]:
    """The texts of a content, one for each part that has one."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") or part.get("refusal") for part in parts if isinstance(part, dict))
    return [text for text in texts if isinstance(text, str)]


def reasoning_in(content: Any) -> str:
    """The reasoning in a content that has it as a part (Mistral)."""
    parts = content if isinstance(content, list) else ()
    return "".join(text_in(part.get("thinking")) for part in parts if isinstance(part, dict))
