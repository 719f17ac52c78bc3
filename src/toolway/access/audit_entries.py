"""Reads the audit log: its entries from either end, with the files that were set aside, and those that fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

import orjson

from toolway.types import JSON

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
