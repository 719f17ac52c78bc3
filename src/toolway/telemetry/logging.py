"""The logging of this process: one handler, secrets redacted, control characters made visible."""

from __future__ import annotations

import logging
import os
import re
import sys
from asyncio import CancelledError
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TextIO
from urllib.parse import quote

import orjson

from toolway.settings.settings import Settings
from toolway.wire.lenient_json import fix_surrogates_in

MASK = "***"
MAX_SHOWN = 200
"""Characters of each value that a line may hold; the words around the values are our own."""


def configure_logging(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all log records of this process to `stream` (stderr), one line an event.

    With `debug_output` that is what happens in conversations; without, warnings and errors only. Calling it
    again replaces what it did before.
    """
    stream = stream or sys.stderr
    handler = _Handler(stream)
    redact = Redactor(settings.secrets)
    as_json = settings.log.format == "json"
    handler.setFormatter(
        JsonFormatter(redact) if as_json else LineFormatter(redact, colours=_wants_colours(stream))
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("toolway").setLevel(logging.DEBUG if settings.log.debug_output else logging.WARNING)
    server = logging.getLogger("uvicorn.error")
    # Its warnings are about broken requests, which anybody can send in any number.
    server.setLevel(logging.ERROR)
    server.addFilter(_is_news)


def also_mask(secrets: Iterable[str]) -> None:
    """Have the log mask these too, besides what it masks already."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler) and isinstance(handler.formatter, LineFormatter):
            handler.formatter.redact.learn(secrets)


class Redactor:
    """Masks the configured secrets, in the forms in which texts hold them, and whatever looks like one."""

    def __init__(self, known: Iterable[str]) -> None:
        self._forms: frozenset[str] = frozenset()
        self._known: re.Pattern[str] | None = None
        self.learn(known)

    def learn(self, secrets: Iterable[str]) -> None:
        """Mask these too. None is ever forgotten: a request under way may still use it."""
        forms = self._forms.union(*map(_forms, secrets))
        if forms != self._forms:
            self._forms = forms
            patterns = [_guarded(form) for form in sorted(forms, key=len, reverse=True)]
            self._known = re.compile("|".join(patterns))

    def __call__(self, text: str) -> str:
        """The text with each secret replaced by `***`."""
        if self._known:
            text = self._known.sub(MASK, text)
        folded = text.lower() if text.isascii() else None
        for words, pattern, replacement in SUSPECTS:
            # A word is found in a tenth of a pattern's time; beyond ASCII letters fold in ways of their own.
            if folded is None or any(map(folded.__contains__, words)):
                text = pattern.sub(replacement, text)
        return text


class LineFormatter(logging.Formatter):
    """`2026-01-01 12:00:00 info chat: message` on one line; a traceback follows, each of its lines set off by a bar.

    A record can neither begin a line of its own nor steer the terminal (CWE-117, CWE-150).
    """

    def __init__(self, redact: Redactor, *, colours: bool = False) -> None:
        super().__init__()
        self.redact = redact
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%H:%M:%S" if self._colours else "%Y-%m-%d %H:%M:%S")
        where = record.name.removeprefix("toolway.")
        line = f"{when} {record.levelname.lower():<7} {where}: {visible(self.redact(self._message(record)))}"
        if self._colours:
            line = _in_colour(line, record.levelno, len(when))
        return "\n".join([line, *self._traceback(record)])

    def _message(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple) and record.args:
            return str(record.msg) % tuple(self._cut(value) for value in record.args)
        return record.getMessage()

    def _cut(self, value: object) -> object:
        """A long text among a record's values, shortened; masked before, or half a secret would be left."""
        if not isinstance(value, str) or len(value) <= MAX_SHOWN:
            return value
        return f"{self.redact(value[: 20 * MAX_SHOWN])[:MAX_SHOWN]}... ({len(value):,} characters)"

    def _traceback(self, record: logging.LogRecord) -> Iterator[str]:
        texts = []
        if record.exc_info:
            texts.append(self.formatException(record.exc_info))
        if record.stack_info:
            texts.append(record.stack_info)
        for text in texts:
            for line in re.split(r"[\r\n]+", self.redact(text)):
                yield "  | " + visible(line)


class JsonFormatter(LineFormatter):
    """One JSON object a line: `time` (ISO 8601, UTC), `level`, `logger`, `message`; where there are any `traceback`,
    `trace_id` and `span_id`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.redact(self._message(record)),
            **trace_ids(),
        }
        if trace := list(self._traceback(record)):
            line["traceback"] = "\n".join(part.removeprefix("  | ") for part in trace)
        return orjson.dumps(fix_surrogates_in(line)).decode()


def trace_ids() -> dict[str, str]:
    """`trace_id` and `span_id` (hexadecimal) of the present task, when it is traced."""
    opentelemetry = sys.modules.get("opentelemetry.trace")
    found = opentelemetry.get_current_span().get_span_context() if opentelemetry else None
    if found is None or not found.is_valid:
        return {}
    return {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}


def visible(text: str) -> str:
    """The text with all that is not printable written as escapes: line breaks, terminal codes, direction marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Silent: the default prints the record's arguments, unmasked."""


SUSPECTS = [
    (("bearer", "basic"), re.compile(r"(?i)\b(bearer|basic)(\s+|%20)[\w.~+/=-]{4,}"), rf"\1 {MASK}"),
    (
        ("sk", "pk", "rk", "xai", "hf", "ghp", "gho", "github_pat", "glpat", "xoxb", "akia"),
        re.compile(r"\b(sk|pk|rk|xai|gsk|hf|ghp|gho|github_pat|glpat|xoxb|AKIA)[-_][\w-]{8,}"),
        MASK,
    ),
    (
        ("://",),
        re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#@\"'<>]*(?:@[^\s/?#@\"'<>]*)*@"),
        rf"\1{MASK}@",
    ),
    (
        ("authorization", "key", "token", "password", "secret"),
        re.compile(
            r"(?i)([\"']?(?:authorization|proxy-authorization|x-api-key|api[-_]?key|access[-_]?token|password"
            r"|client[-_]?secret)[\"']?\s*[:=,]\s*b?)([\"']?)(?!\*\*\*)(?!(?:bearer|basic) \*\*\*)[^\s\"',;&}\])]+"
        ),
        rf"\1\2{MASK}",
    ),
]
"""Words without any of which an ASCII text has nothing for the pattern, in lower case; the pattern; its replacement."""


def _forms(secret: str) -> set[str]:
    return {
        secret,
        quote(secret, safe=""),
        orjson.dumps(secret).decode()[1:-1],
        repr(secret)[1:-1],
    }


def _guarded(secret: str) -> str:
    """A very short secret is masked only where it stands alone, or every line would be full of masks."""
    return re.escape(secret) if len(secret) >= 6 else rf"(?<!\w){re.escape(secret)}(?!\w)"


def _wants_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _in_colour(line: str, level: int, time_width: int) -> str:
    colour = "31" if level >= logging.ERROR else "33" if level >= logging.WARNING else ""
    rest = line[time_width:]
    return f"\x1b[2m{line[:time_width]}\x1b[0m" + (f"\x1b[{colour}m{rest}\x1b[0m" if colour else rest)


_MEANT = ("ASGI callable returned without", "Cancel %s running task", "Invalid UTF-8 sequence")


def _is_news(record: logging.LogRecord) -> bool:
    """False for what uvicorn reports although it was meant, or the client's fault."""
    if record.exc_info and isinstance(record.exc_info[1], CancelledError):
        return False
    message = str(record.msg)
    return not message.startswith(_MEANT)
