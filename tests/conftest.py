"""Fixtures for every room of the tests."""

from __future__ import annotations

import pytest

from tests.support.model import model_server

__all__ = ["model_server"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
