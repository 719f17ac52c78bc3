"""Errors as HTTP answers: each API has its own envelope, and the path of a request says which API it is for."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from starlette.types import Scope, Send

from toolway.dialects import DIALECTS, ErrorFormat, is_below
from toolway.errors import (
    ConnectorError,
    InvalidRequest,
    ToolwayError,
    Unauthorized,
    UpstreamError,
    UpstreamStatus,
)
from toolway.server.asgi import relayed, send_whole
from toolway.types import JSON, JSON_TYPE, Header
from toolway.upstream.refusals import is_overflow, sizes_in
from toolway.wire.lenient_json import dumps

DO_NOT_RETRY: Header = (b"x-should-retry", b"false")
"""The SDKs of OpenAI and Anthropic repeat a 5xx twice; after a tool ran that would run its side effects again."""


class Envelope(ABC):
    """How one API tells an error."""

    content_type: Header = JSON_TYPE
    relays = False
    """Whether a refusal of the model server that is JSON goes out as it came."""

    @abstractmethod
    def body(self, error: ToolwayError) -> JSON:
        """The JSON object around the error."""

    def status(self, error: ToolwayError) -> int:
        """The HTTP status that this API has for it."""
        return error.status

    def headers(self, body: JSON) -> list[Header]:
        """Headers that stand beside such a body."""
        return []


class OpenAIEnvelope(Envelope):
    """`{"error": {"message", "type", "param", "code"}}`."""

    relays = True

    def body(self, error: ToolwayError) -> JSON:
        return openai_envelope(error)


def openai_envelope(error: ToolwayError) -> JSON:
    """OpenAI's error object."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


NO_THREADS = "thread_unsupported_request"
"""The code at which Anthropic's SDKs go on without a thread, and send the whole conversation each time."""


class AnthropicEnvelope(Envelope):
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`, the id in the header `request-id` too.

    A conversation that is too long is told in the words by which Anthropic's clients know it, to shorten it.
    """

    def body(self, error: ToolwayError) -> JSON:
        kind = _ANTHROPIC_TYPES.get(status := self.status(error))
        kind = kind or ("invalid_request_error" if status < 500 else "api_error")
        fields: JSON = {"type": kind, "message": _overflow(error) or _with_place(error)}
        if error.code == NO_THREADS:
            fields["details"] = {"error_code": error.code, "unsupported": [error.param]}
        return {"type": "error", "error": fields, "request_id": request_id()}

    def status(self, error: ToolwayError) -> int:
        if _overflow(error) or isinstance(error, ConnectorError):
            return 400
        return 529 if error.status == 503 else error.status

    def headers(self, body: JSON) -> list[Header]:
        return [(b"request-id", body["request_id"].encode())]


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def request_id() -> str:
    """A new id of a request, as Anthropic writes them."""
    return f"req_{secrets.token_hex(12)}"


def _with_place(error: ToolwayError) -> str:
    """The message, behind the place of what is wrong: this envelope has no member for that."""
    if not isinstance(error, InvalidRequest) or not error.param or error.param in error.message:
        return error.message
    return f"{error.param}: {error.message}"


def _overflow(error: ToolwayError) -> str:
    """The sentence that Claude Code shortens a conversation at; empty for any other error."""
    if not isinstance(error, UpstreamError) or error.code == "upstream_cut" or not is_overflow(error):
        return ""
    prompt, context = sizes_in(error)
    if prompt > context > 0:
        return f"prompt is too long: {prompt} tokens > {context} maximum"
    return f"The prompt exceeds the context window: {error.message}"


class ProblemEnvelope(Envelope):
    """`{"type", "title", "status", "detail"}` (RFC 9457)."""

    content_type = (b"content-type", b"application/problem+json")

    def body(self, error: ToolwayError) -> JSON:
        return problem(error.status, error.message)


def problem(status: int, detail: str, **more: Any) -> JSON:
    """The object of RFC 9457."""
    title = HTTPStatus(status).phrase
    return {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}


class JsonRpcEnvelope(Envelope):
    """JSON-RPC's error of a request whose id is not known."""

    def body(self, error: ToolwayError) -> JSON:
        return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": error.message}}


OPENAI, ANTHROPIC, PROBLEM = OpenAIEnvelope(), AnthropicEnvelope(), ProblemEnvelope()

ENVELOPES: Mapping[ErrorFormat, Envelope] = {
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "json-rpc": JsonRpcEnvelope(),
    "problem": PROBLEM,
}
_ROOTS = {path: ENVELOPES[dialect.errors] for dialect in DIALECTS for path in dialect.paths}
"""By the path at and below which a dialect stands; all others are OpenAI's."""


def envelope_of(scope: Scope) -> Envelope:
    """The envelope for errors of this request."""
    path = plain_path(scope["path"])
    found = next((envelope for root, envelope in _ROOTS.items() if is_below(path, root)), None)
    return found or (ANTHROPIC if path.startswith("/v1/models") and is_anthropic(scope) else OPENAI)


def is_anthropic(scope: Scope) -> bool:
    """Whether a request of a path that two APIs have comes from a client of Anthropic's."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


_WITHOUT_V1 = frozenset(dialect.path.split("/")[2] for dialect in DIALECTS if dialect.asks_models)
"""Routes of the API that clients ask for without /v1 when their base URL lacks it."""


_BLANKS = "".join(map(chr, range(33))) + "\x7f"
"""Blanks and control characters, which some servers pass over at the ends of a segment."""


def plain_path(path: str) -> str:
    """How a path is meant that clients spell otherwise: `/v1//chat/completions/`, `/v1/v1/...`, `/chat/completions`.

    Single slashes, none at the end, one `/v1` in front of the API's routes, nothing percent-encoded.
    """
    parts = (part.strip(_BLANKS) for part in unquote(path).replace("\\", "/").split("/"))
    segments = [part for part in parts if part]
    while [part.lower() for part in segments[:2]] == ["v1", "v1"]:
        del segments[0]
    if segments and segments[0].lower() in _WITHOUT_V1:
        segments.insert(0, "v1")
    return "/" + "/".join(segments)


async def send_error(scope: Scope, send: Send, error: ToolwayError, headers: Sequence[Header] = ()) -> None:
    """The error in the envelope of the request's API."""
    envelope = envelope_of(scope)
    if not isinstance(error, UpstreamStatus):
        await _send(send, envelope, error, [*headers, *error.headers])
    elif error.is_json and envelope.relays:
        kind = [header for header in error.headers if header[0] == b"content-type"]
        await send_whole(send, error.status, error.body, [*kind, *relayed(error.headers)])
    else:
        await _send(send, envelope, error, relayed(error.headers))


async def send_failure(scope: Scope, send: Send, error: ToolwayError, *, tools_ran: bool) -> None:
    """The error in place of a whole answer. After a tool ran no status may make an SDK ask again by itself."""
    if not tools_ran or isinstance(error, Unauthorized):  # nobody asks again with a key that is gone
        await send_error(scope, send, error)
        return
    envelope = envelope_of(scope)
    status = 502 if isinstance(error, UpstreamError) else max(error.status, 500)
    later = error.headers if isinstance(error, UpstreamStatus) else ()
    kept = [header for header in later if header[0] in (b"retry-after", b"retry-after-ms")]
    await _send(send, envelope, error, [DO_NOT_RETRY, *kept], status)


async def _send(
    send: Send, envelope: Envelope, error: ToolwayError, headers: Sequence[Header], status: int | None = None
) -> None:
    body: Any = envelope.body(error)
    whole = [envelope.content_type, *headers, *envelope.headers(body)]
    await send_whole(send, status or envelope.status(error), dumps(body), whole)
