"""The audit log: one JSON line for each decision and each call, written by a thread that nobody waits for; and read."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import orjson

from toolway.access.approvals import Approval, Verdict
from toolway.access.rules import Decision
from toolway.errors import ToolwayError
from toolway.telemetry.logging import Redactor
from toolway.types import JSON, Tool, ToolCall, ToolResult
from toolway.wire.lenient_json import dumps

try:
    import fcntl
except ImportError:  # Windows: there several processes must not share one file
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("toolway.access")

WAITING = 10_000
"""Lines that may wait for a slow disk; what comes then is lost, and counted."""

REPEAT_SECONDS = 10.0
"""One line tells of all denials of a kind in so many seconds, or who is denied could fill the log as it likes."""

MAX_KINDS = 1_000
"""Of so many kinds it is remembered when they were told."""

BATCH = 500
"""Lines that are written at once."""

MAX_TEXT = 20_000
"""Characters of arguments in a line."""

FLUSH_SECONDS = 2.0

GATHER_SECONDS = 0.1

QUIET_SECONDS = 60.0
"""A log that cannot be written fails at every line; one line of the process's own log for so long says it."""

_FREE_TEXT = frozenset({"gen_ai.tool.call.arguments", "toolway.reason"})
"""Members that may hold a secret."""


class AuditLog:
    """Takes lines from requests, and writes them when there is time.

    `file` is a path, or "-" for the standard output. At `max_bytes` the file is set aside as `file.1`, and so on up to
    `files` of them; several processes may write to one file. Arguments are told by their digest, or with `arguments`
    as text, without what looks secret.
    """

    def __init__(
        self,
        file: str,
        *,
        max_bytes: int,
        files: int,
        arguments: bool = False,
        redact: Redactor | None = None,
    ) -> None:
        self._sink: _Sink = (
            _Stdout(sys.stdout) if file == "-" else _RotatingFile(Path(file), max_bytes, files)
        )
        self._arguments = arguments
        self._redact = redact or Redactor(())
        self._lines: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        self._taken = self._written = 0
        """How many lines requests gave, and how many of them the thread has written, or given up."""
        self._lost = 0
        self._counting = threading.Lock()
        self._silent_until = float("-inf")
        self._thread = threading.Thread(target=self._write_all, name="toolway-audit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many lines are not written yet."""
        return self._taken - self._written

    def close(self) -> None:
        """Write what waits, for a moment at most, and end."""
        self._lines.put(None)
        self._thread.join(FLUSH_SECONDS)

    def call(
        self,
        who: Mapping[str, Any],
        call: ToolCall,
        tool: Tool,
        *,
        arguments: JSON | None,
        result: ToolResult,
        seconds: float,
        decision: Decision,
    ) -> None:
        """A call ended, or was not let run; `arguments` None: they could not be used."""
        line = {
            "time": time.time(),
            "event": "call",
            **who,
            **_of_tool(call.name, tool.name, tool.server),
            "gen_ai.tool.call.id": call.id,
            **self._arguments_shown(call.arguments if arguments is None else arguments),
            "toolway.decision": decision.effect,
            "toolway.rule": decision.rule,
            "toolway.reason": decision.reason,
            "duration": round(seconds, 4),
            "result.bytes": len(result.text.encode(errors="replace")),
        }
        if result.is_error:
            line["error.type"] = _failure(decision, result)
        self._note(line)

    def approval_asked(self, who: Mapping[str, Any], approval: Approval) -> None:
        """A call waits for a person."""
        self._note(
            {
                **self._of(approval, "approval.asked", who),
                "toolway.decision": "ask",
                "toolway.reason": approval.reason,
            }
        )

    def approval_answered(self, who: Mapping[str, Any], approval: Approval, verdict: Verdict) -> None:
        """A person answered, and the request went on."""
        self._note(
            {
                **self._of(approval, "approval.answered", who),
                "toolway.approval.by": verdict.by,
                "toolway.approval.always": verdict.always,
                "toolway.decision": "allow" if verdict.approve else "deny",
                "toolway.reason": verdict.reason,
            }
        )

    def denied(self, key: str, error: ToolwayError, where: Mapping[str, Any]) -> None:
        """Who has this key, or no known one, was denied before anything was done."""
        self._note(
            {
                "time": time.time(),
                "event": "refused",
                "toolway.key.name": key,
                **where,
                "toolway.decision": "deny",
                "toolway.reason": error.message,
                "error.type": error.code or error.type,
                "http.response.status_code": error.status,
            }
        )

    def _of(self, approval: Approval, event: str, who: Mapping[str, Any]) -> JSON:
        return {
            "time": time.time(),
            "event": event,
            **who,
            **_of_tool(approval.name, approval.tool, approval.server),
            "toolway.approval.id": approval.id,
            **self._arguments_shown(approval.arguments),
            "toolway.rule": approval.rule,
        }

    def changed(self, event: str, by: str, what: str) -> None:
        """A person changed what is allowed here: `by` is the name of their key, `what` of that which they changed."""
        self._note({"time": time.time(), "event": event, "toolway.changed": what, "toolway.by": by})

    def _arguments_shown(self, arguments: JSON | str) -> JSON:
        """Arguments as a digest, the same for the same arguments, or as text."""
        text = dumps(arguments, sort_keys=True)
        shown_arguments: JSON = {"toolway.arguments.sha256": hashlib.sha256(text).hexdigest()}
        if self._arguments:
            shown_arguments["gen_ai.tool.call.arguments"] = text[:MAX_TEXT].decode(errors="replace")
        return shown_arguments

    def _note(self, line: Mapping[str, Any]) -> None:
        if self._lines.qsize() < WAITING:
            self._taken += 1
            self._lines.put(line)
        else:
            with self._counting:
                self._lost += 1

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            lines = [self._lines.get()]
            if lines[0] is not None and self._lines.qsize() < BATCH:
                time.sleep(GATHER_SECONDS)  # one write for many lines costs the requests least
            with suppress(queue.Empty):
                while len(lines) < BATCH:
                    lines.append(self._lines.get_nowait())
            is_open = None not in lines
            self._write([line for line in lines if line is not None])
            self._written += len(lines) - lines.count(None)
        self._sink.close()

    def _write(self, lines: list[Mapping[str, Any]]) -> None:
        with self._counting:
            lost, self._lost = self._lost, 0
        if lost:
            lines.append({"time": time.time(), "event": "lost", "lines": lost})
        try:
            self._sink.write(b"".join(map(self._encoded, lines)))
        except OSError as error:
            with self._counting:
                self._lost += lost + len(lines) - bool(lost)
            if time.monotonic() >= self._silent_until:
                self._silent_until = time.monotonic() + QUIET_SECONDS
                log.error("the audit log cannot be written, %d lines are lost so far: %s", self._lost, error)

    def _encoded(self, line: Mapping[str, Any]) -> bytes:
        when = datetime.fromtimestamp(line["time"], UTC).isoformat(timespec="milliseconds")
        kept = {key: value for key, value in line.items() if value not in ("", None)}
        for key in _FREE_TEXT & kept.keys():
            kept[key] = self._redact(kept[key])
        return dumps({**kept, "time": when}) + b"\n"


def _failure(decision: Decision, result: ToolResult) -> str:
    if decision.effect == "deny":
        return "denied"
    return "asked" if decision.effect == "ask" and result.failure == "denied" else "tool_error"


def _of_tool(name: str, tool: str, server: str) -> JSON:
    own = {"toolway.tool.name": tool} if tool != name else {}
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "toolway.server": server,
        **own,
    }


class _Sink:
    def write(self, lines: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        return


class _Stdout(_Sink):
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, lines: bytes) -> None:
        self._stream.write(lines.decode())
        self._stream.flush()


class _RotatingFile(_Sink):
    """A file that is set aside when it is full. A lock beside it keeps several processes from doing so at once."""

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._lock: int | None = None
        self._file: int | None = None

    def write(self, lines: bytes) -> None:
        with self._locked():
            size = self._open()
            if size and size + len(lines) > self._max_bytes:
                self._rotate()
                self._open()
            while lines and self._file is not None:
                lines = lines[os.write(self._file, lines) :]

    def close(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._lock = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(f"{self._path}.lock", os.O_WRONLY | os.O_CREAT, 0o600)
        if fcntl is None:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _open(self) -> int:
        """Have the file open that is there now, which another process may have set aside; its size."""
        if self._file is not None and not self._is_there(self._file):
            os.close(self._file)
            self._file = None
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fstat(self._file).st_size

    def _is_there(self, descriptor: int) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(descriptor).st_ino
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        if not self._files:
            self._path.unlink()
            return
        for number in range(self._files, 1, -1):
            older = Path(f"{self._path}.{number - 1}")
            if older.exists():
                older.replace(f"{self._path}.{number}")
        self._path.replace(f"{self._path}.1")


class Denials:
    """Tells the audit log of denials, once there is one; who has the same key or address is told of together."""

    def __init__(self) -> None:
        self.audit: AuditLog | None = None
        self._told: OrderedDict[tuple[str, str, str], tuple[float, int]] = OrderedDict()
        """When a kind was told, and how many there were since."""

    def note(self, error: ToolwayError, key: str = "", where: Mapping[str, Any] | None = None) -> None:
        """Somebody was denied with this error: `key` is the name of the key, `where` what else is known."""
        if self.audit is None:
            return
        where = where or {}
        kind = (key, str(where.get("client.address", "")), error.message.partition(";")[0])
        now = time.monotonic()
        last, more = self._told.pop(kind, (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS:
            self._told[kind] = (last, more + 1)
            return
        self._told[kind] = (now, 0)
        if len(self._told) > MAX_KINDS:
            self._told.popitem(last=False)
        self.audit.denied(key, error, {**where, **({"toolway.repeats": more} if more else {})})


BLOCK = 64 * 2**10
"""Bytes that are read at once from the end."""

MAX_LINE = 2**20
"""A longer line is no entry."""

_TIME = re.compile(r"\d{4}(-\d\d(-\d\d([T ][\d:.]*(Z|\+00:00)?)?)?)?", re.ASCII)
_PLACE = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


def is_time(text: str) -> bool:
    """Whether it is a time as entries have it, or the beginning of one."""
    return _TIME.fullmatch(text) is not None


def is_place(text: str) -> bool:
    """Whether it can be a place of `newest_first`."""
    return _PLACE.fullmatch(text) is not None


def oldest_first(path: Path, files: int) -> Iterator[JSON]:
    """The entries of an audit log, those of the `files` that were set aside too; what is no entry is passed over."""
    for part in reversed(_parts(path, files)):
        if part.exists():
            with part.open("rb") as file:
                yield from filter(None, map(_entry, file))


def newest_first(path: Path, files: int, before: str = "") -> Iterator[tuple[str, JSON]]:
    """The entries from the end, each with its place. `before`: a place; only what is older than it comes.

    A place stays what it is while lines are added, and while the file is set aside.
    """
    wanted, _, offset = before.partition("-")
    seen: set[int] = set()
    for part in _parts(path, files):
        try:
            file = part.open("rb")
        except FileNotFoundError:
            continue
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode in seen or (wanted and wanted != str(inode)):
                continue
            seen.add(inode)
            end = file.seek(0, os.SEEK_END)
            if wanted and offset.isdecimal():
                end = min(end, int(offset))
            wanted = ""
            for start, line in _lines_back(file, end):
                if entry := _entry(line):
                    yield f"{inode}-{start}", entry


def matches(entry: JSON, wanted: Mapping[str, str]) -> bool:
    """Whether the members of an entry are as wanted, by shell patterns."""
    return all(fnmatchcase(str(entry.get(key, "")), pattern) for key, pattern in wanted.items())


def _parts(path: Path, files: int) -> Sequence[Path]:
    """The file and those that were set aside, the newest first."""
    return [path, *(Path(f"{path}.{number}") for number in range(1, files + 1))]


def _lines_back(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines that end at or before a place, from the last to the first, each with where it begins."""
    rest = b""
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        first, *lines = (file.read(end - start) + rest).split(b"\n")
        place = end + len(rest)
        for line in reversed(lines):
            place -= len(line)
            yield place, line
            place -= 1
        rest, end = (first if len(first) < MAX_LINE else b""), start
    yield 0, rest


def _entry(line: bytes) -> JSON | None:
    try:
        entry = orjson.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
