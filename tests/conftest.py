"""Fixtures for all tests."""

from __future__ import annotations

import signal

import pytest
from httpx2._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis import settings

from tests.support import fuzz
from tests.support.gate import DEADLINE
from tests.support.model import model_server
from tests.support.redis import redis, store_url

__all__ = ["fuzz", "model_server", "redis", "store_url"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


settings.load_profile("toolway")

# The client of the tests would wait five seconds by itself, for an answer that a busy machine may make in ten.
for phase in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, phase, DEADLINE)

# A shell has what it runs in the background ignore Ctrl-C, and whatever that starts: the programs under test too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
