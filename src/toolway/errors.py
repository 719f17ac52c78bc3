"""The error tree: what went wrong, whose fault it is, and the HTTP status that says so.

ToolwayError                      500  toolway_error          a bug, or a limit of this process
├── ConfigError                     -  shown by the command line, never sent
├── SourceError                     -  a tool source could not be read; kept in its status
├── StoreError                    503  what was said to be kept or forgotten may not be
│   └── NoRoomInStore             503  it is too large, or others have more right to the room
├── Busy                          503  toolway_error          a limit is reached for now
│   └── QuotasUnknown             503  what a key has used cannot be known
├── Stopping                      503  toolway_error          this process ends
├── ConnectorError                424  external_connector_error  a tool server that the request declares failed
├── InvalidRequest                400  invalid_request_error  the client's fault
│   ├── Unauthorized              401
│   ├── Forbidden                 403
│   ├── NotFound                  404
│   ├── MethodNotAllowed          405
│   ├── TooLarge                  413
│   └── TooMany                   429
│       └── OverQuota             429
└── UpstreamError                 502  upstream_error         the model server's fault
    ├── UpstreamTimeout           504
    └── UpstreamStatus              *  its own answer, relayed as it came if it is JSON

A tool's trouble is not in the tree: it is a `ToolResult` that the model reads.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence

import orjson

from toolway.types import JSON, Header

log = logging.getLogger("toolway.chat")


def sentence(text: str) -> str:
    """`text` with a full stop, unless it ends like a sentence already."""
    return text if text.endswith((".", "?", "!", "…")) else f"{text}."


class ToolwayError(Exception):
    """Base of all errors here. `message` says what happened and what to do, for the person who reads it."""

    status = 500
    type = "toolway_error"
    headers: Sequence[Header] = ()
    """Of the answer that tells it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class ConfigError(ToolwayError):
    """A setting is missing or wrong; the message names the setting."""


class SourceError(ToolwayError):
    """A tool source could not be read. `stage` is where: "connect", "fetch", "parse", ..."""

    def __init__(self, message: str, *, stage: str, rpc_code: int | None = None) -> None:
        super().__init__(message)
        self.stage = stage
        self.rpc_code = rpc_code


class StoreError(ToolwayError):
    """The store cannot say whether it did what it was told; nothing that depends on it may happen."""

    status = 503


class NoRoomInStore(StoreError):
    """The store does not take this value: it is too large, or others have more right to the room."""


class Busy(ToolwayError):
    """A limit is reached that others will free again; the same request may succeed later."""

    status = 503


class QuotasUnknown(Busy):
    """What a key has used so far cannot be known, and it may not be more than its quota."""


class Stopping(ToolwayError):
    """This process was told to stop, and has no more time for the request; another one may serve it."""

    status = 503


SERVER_STOPS = "the server stops"
"""The message of the cancellation by which the work for a request ends then; without it its client has left."""


class ConnectorError(ToolwayError):
    """A tool server that the request itself declares cannot be reached, or refuses. OpenAI answers so, with 424."""

    status = 424
    type = "external_connector_error"


class InvalidRequest(ToolwayError):
    """The client sent something that cannot be served; it should not be sent again unchanged."""

    status = 400
    type = "invalid_request_error"


class Unauthorized(InvalidRequest):
    """No client key, or one that is not known here."""

    status = 401


class Forbidden(InvalidRequest):
    """The request comes from where none may come from."""

    status = 403


class NotFound(InvalidRequest):
    """No such route."""

    status = 404


class MethodNotAllowed(InvalidRequest):
    """There is something at the path, but for other methods."""

    status = 405

    def __init__(self, method: str, path: str, methods: Sequence[str]) -> None:
        allowed = ", ".join(methods)
        super().__init__(f"{method} is not for {path[:200]}; use {' or '.join(methods)}.")
        self.headers = [(b"allow", allowed.encode())]


class TooLarge(InvalidRequest):
    """The body is over the configured size."""

    status = 413


class TooMany(InvalidRequest):
    """There is no room for more of this now; in so many `seconds` there may be, which the answer tells."""

    status = 429

    def __init__(
        self, message: str, *, seconds: float = 60, headers: Sequence[Header] = (), code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.headers = [(b"retry-after", b"%d" % max(1, math.ceil(seconds))), *headers]


class OverQuota(TooMany):
    """A key has used up what it may in a time."""

    def __init__(self, message: str, *, seconds: float, headers: Sequence[Header] = ()) -> None:
        super().__init__(message, seconds=seconds, headers=headers, code="rate_limit_exceeded")


class UpstreamError(ToolwayError):
    """The model server cannot be reached, or what it said is no answer."""

    status = 502
    type = "upstream_error"


class UpstreamTimeout(UpstreamError):
    """The model server was silent for longer than the setting allows."""

    status = 504


class UpstreamStatus(UpstreamError):
    """The model server refused: its status, headers and body.

    A body that `is_json` is relayed as it is. In place of any other (a proxy's web page, a bare redirect, nothing) the
    message is told, which ends with `hint`.
    """

    def __init__(self, status: int, headers: Sequence[Header], body: bytes, hint: str = "") -> None:
        content = _json_object(body)
        self.is_json = content is not None and not (hint and "error" not in content)
        explanation = (
            _in_words(body)
            if content is None
            else f": {(_sentence_in(content) or body.decode(errors='replace'))[:500]}"
        )
        message = f"The model server answered {status}{explanation}"
        super().__init__(f"{sentence(message)} {hint}" if hint else message)
        self.status = status
        self.headers = headers
        self.body = body


def _json_object(body: bytes) -> JSON | None:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def _sentence_in(refusal: JSON) -> str | None:
    """OpenAI's message, FastAPI's detail."""
    error = refusal.get("error", refusal)
    found = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return found if isinstance(found, str) and found else None


def _in_words(body: bytes) -> str:
    """What a body says that is no JSON, as the end of a sentence: of a web page its title."""
    text = body[:20_000].decode(errors="replace")
    if text.lstrip().startswith("<"):
        title = re.search(r"<(title|h1)[^>]*>([^<]{1,200})", text, re.IGNORECASE)
        return f" with a web page: {' '.join(title[2].split())}." if title else " with a web page."
    return f": {' '.join(text[:500].split())}" if text.strip() else " and did not say why."


def to_public_error(error: Exception) -> ToolwayError:
    """The error that a client may see: ours as it is; a bug is logged and shown without its details."""
    if isinstance(error, ToolwayError):
        # Who keeps it in a variable would keep each frame it came through, and what they held.
        return error.with_traceback(None)
    log.error("a bug in Toolway", exc_info=error)
    return ToolwayError("Toolway itself failed at this request; its log says why.")
