"""Fixtures for every room of the tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.support import fuzz
from tests.support.model import model_server
from tests.support.redis import redis, store_url

__all__ = ["fuzz", "model_server", "redis", "store_url"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


settings.load_profile("house")
