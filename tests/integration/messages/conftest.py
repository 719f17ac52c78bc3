"""Toolway with two aliases of models, a limit of two rounds, and servers of requests on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.app_server import AppServer, app_server
from tests.support.upstream import JSON


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    settings: JSON = {"max_rounds": 2, "dynamic_servers": "127.0.0.1", "keepalive_interval": 0.05}
    with app_server(model_aliases='{"claude-mock": "mock", "claude-*": "small"}', **settings) as server:
        yield server
