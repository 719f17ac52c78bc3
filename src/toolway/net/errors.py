"""What can go wrong with an HTTP exchange, whoever the server is; each edge says it in words of its own."""

from __future__ import annotations

from enum import Enum, auto


class Fault(Enum):
    """The kinds of failure, in the order in which they can come."""

    UNSENDABLE = auto()
    """The request cannot be written as one; nothing was sent."""
    UNKNOWN_HOST = auto()
    UNTRUSTED = auto()
    """The TLS handshake failed."""
    REFUSED = auto()
    NOT_ACCEPTED = auto()
    """There was no connection in time."""
    UNANSWERED = auto()
    """The server closed the connection without a byte of an answer."""
    CUT_HEAD = auto()
    CUT_BODY = auto()
    NOT_HTTP = auto()
    SILENT = auto()
    """The server neither sent nor took anything for too long."""
    WRONG_LENGTH = auto()
    """The request's own body is longer or shorter than it says."""


class HttpError(Exception):
    """An exchange failed. The text says how, without the server's name, as the end of a sentence."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault
