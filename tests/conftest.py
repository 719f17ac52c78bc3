"""Fixtures for every room of the tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.support import fuzz
from tests.support.model import model_server

__all__ = ["fuzz", "model_server"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


settings.load_profile("house")
