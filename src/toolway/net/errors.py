"""The errors of an HTTP exchange, whoever the server is, and the words for each."""

from __future__ import annotations

import errno
import re
import socket
import ssl
from enum import Enum, auto


class Fault(Enum):
    """The kinds of failure, in the order in which they can come."""

    UNSENDABLE = auto()
    """The request cannot be written as one; nothing was sent."""
    PROXY = auto()
    """The proxy on the way is not there, or refuses."""
    UNKNOWN_HOST = auto()
    UNTRUSTED = auto()
    """The TLS handshake failed."""
    REFUSED = auto()
    NO_FILES = auto()
    """This process, or the system, may not open one more file or socket."""
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


_WORDS = {
    Fault.UNSENDABLE: "cannot be asked: its URL or a header is not valid",
    Fault.UNKNOWN_HOST: "cannot be found: its host name is unknown",
    Fault.REFUSED: "cannot be reached: it refuses connections",
    Fault.UNANSWERED: "closed the connection before it had answered",
    Fault.CUT_HEAD: "closed the connection before it had answered",
    Fault.CUT_BODY: "broke off in the middle of its answer",
    Fault.NOT_HTTP: "sent something that is not HTTP",
}
"""The rest of a sentence that begins with the server's name. Of other faults the error's own text is that."""


class HttpError(Exception):
    """An exchange failed. The text says how, without the server's name, as the end of a sentence."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault

    @property
    def words(self) -> str:
        """What happened, as the rest of a sentence that begins with the server's name."""
        return _WORDS.get(self.fault) or str(self)


def connect_error(error: Exception) -> HttpError | None:
    """Why a connection could not be made; None for an exception that says nothing of that."""
    if isinstance(error, socket.gaierror | UnicodeError):
        return HttpError(Fault.UNKNOWN_HOST, "its host name is unknown")
    if isinstance(error, ssl.SSLError):
        return HttpError(Fault.UNTRUSTED, _tls_words(error))
    if isinstance(error, OSError):
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return HttpError(
                Fault.NO_FILES,
                "cannot be asked: no more files and sockets may be open here; raise that limit (`ulimit -n`)",
            )
        return HttpError(Fault.REFUSED, "the server refuses it")
    return None


def connect_error_behind(error: BaseException) -> HttpError | None:
    """The same for an error of another library, which hides what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError | socket.gaierror):
            return connect_error(cause)
        cause = cause.__cause__ or cause.__context__
    return None


_CERTIFICATE = {
    9: "its certificate is not valid yet; is this machine's clock right?",
    10: "its certificate has expired",
    62: "its certificate is for another host name",
    64: "its certificate is for another address",
}
"""By OpenSSL's X509_V_ERR_*."""
_NO_TLS = re.compile("WRONG_VERSION|HTTP_REQUEST|RECORD_LAYER|PACKET_LENGTH")
_REFUSED_BY_SERVER = re.compile("CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE|BAD_CERTIFICATE|UNKNOWN_CA")


def _tls_words(error: ssl.SSLError) -> str:
    reason = str(error.reason or error)
    if isinstance(error, ssl.SSLCertVerificationError):
        unknown = (
            f"nobody known here has signed its certificate ({error.verify_message}); "
            "SSL_CERT_FILE can name a file with its authority"
        )
        return f"cannot be trusted: {_CERTIFICATE.get(error.verify_code, unknown)}"
    if _NO_TLS.search(reason):
        return "does not speak TLS at this port; try http:// in place of https://"
    if _REFUSED_BY_SERVER.search(reason):
        return f"refused the TLS connection ({reason}); perhaps it asks for a client certificate"
    return f"cannot be trusted: the TLS connection failed ({reason})"
