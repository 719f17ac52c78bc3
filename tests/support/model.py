"""The embedded model for tests: one llama.cpp server for the whole run, or a skip that says why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from toolway.demo.child import DemoError
from toolway.demo.model import ALIAS, ensure_weights, require_llama, running_model

needs_model = [pytest.mark.model, pytest.mark.timeout(600)]
"""`pytestmark = needs_model` for a module whose tests take `model_server`."""


@dataclass(frozen=True, kw_only=True)
class ModelServer:
    """Where it is, and the name of its model. Ask it at temperature 0, and one question at a time."""

    base_url: str
    model: str


@pytest.fixture(scope="session")
def model_server() -> Iterator[ModelServer]:
    """A real small model behind llama.cpp's own server, one thread, at `http://127.0.0.1:N/v1`."""
    try:
        require_llama()
        weights = ensure_weights()
    except DemoError as error:
        pytest.skip(f"no embedded model: {error}")
    with running_model(weights) as server:
        yield ModelServer(base_url=server.wait_ready(), model=ALIAS)
