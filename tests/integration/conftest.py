"""The server that most of these tests ask: Toolway as it is without settings, in front of one tool service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.app_server import AppServer, app_server


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    """One for each module; a module that needs another one has a fixture of this name."""
    with app_server() as server:
        yield server
