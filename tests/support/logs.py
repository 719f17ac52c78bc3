"""What the log of this process says while a test runs."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from toolway.settings.settings import Settings
from toolway.telemetry.logging import configure_logging


@contextmanager
def logged(settings: Settings) -> Iterator[io.StringIO]:
    """A stream that the logging goes to; afterwards it is as it was."""
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in (None, "toolway", "uvicorn.error")]
    before = [(logger, logger.level, list(logger.handlers), list(logger.filters)) for logger in loggers]
    loggers[0].handlers.clear()
    configure_logging(settings, stream)
    try:
        yield stream
    finally:
        for logger, level, handlers, filters in before:
            logger.setLevel(level)
            logger.handlers[:] = handlers
            logger.filters[:] = filters
