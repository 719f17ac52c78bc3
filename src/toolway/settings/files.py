"""Configuration files: how one state is told from another, and writing by one program at a time, never half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolway.errors import ConfigError

FileStamp = tuple[int, int, int]
"""Tells one state of a file from another."""


def stamp_of(path: Path) -> FileStamp | None:
    """The state of the file; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let no two programs change the files of one folder at once."""
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:
        yield
        return
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def replace_text(path: Path, text: str) -> None:
    """`write_at_once`. Raises ConfigError."""
    try:
        write_at_once(path, text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def write_at_once(path: Path, text: str) -> None:
    """Put `text` into the file, so that no reader ever sees half of it; rights and a link stay. Raises OSError."""
    target = path.resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        _put(Path(name), target, text)
    finally:
        with suppress(OSError):
            Path(name).unlink()


def _put(file: Path, target: Path, text: str) -> None:
    try:
        file.replace(target)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV):
            raise
        target.write_text(text, encoding="utf-8", newline="")  # a file that is mounted by itself
