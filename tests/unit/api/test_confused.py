"""Whatever comes to /mcp or the REST service, the answer is in its envelope, and no fault of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.confused import PATHS, confused, confused_arguments, modern_headers
from tests.support.fuzz import slow
from tests.unit.api.direct_apps import JSON_BODY, Answer, DirectApps


@pytest.fixture(scope="module")
def apps() -> Iterator[DirectApps]:
    with DirectApps() as apps:
        yield apps


@slow
@given(st.integers(0, 2**32))
def test_mcp(apps: DirectApps, seed: int):
    assert_mcp(apps, Random(seed))


@slow
@given(st.integers(0, 2**32))
def test_rest(apps: DirectApps, seed: int):
    assert_rest(apps, Random(seed))


def test_a_right_request_is_served(apps: DirectApps):
    answer = apps.ask(apps.rest, "POST", "/tools/order", b'{"count": 3}')
    assert (answer.status, answer.body) == (200, b'{"count":3}')


def assert_mcp(apps: DirectApps, chance: Random) -> None:
    """A request of the newest version, in a session or in a batch: JSON-RPC comes back, by itself or as an event."""
    body = confused(chance)
    headers = apps.session if chance.random() < 0.3 else {**JSON_BODY, **modern_headers(body)}
    if is_batch := chance.random() < 0.1:
        body = b"[%b]" % b",".join([body, *(confused(chance) for _ in range(chance.randint(0, 2)))])
        headers = {**JSON_BODY, "mcp-session-id": apps.session["mcp-session-id"]}
    answer = apps.ask(apps.mcp, "POST", "/mcp", body, headers)
    assert answer.status < 500, (body, answer)
    if answer.status in (202, 406):
        assert not answer.body
        return
    told = _told(answer)
    assert is_batch or not isinstance(told, list)
    for message in told if isinstance(told, list) else [told]:
        assert message["jsonrpc"] == "2.0"
        assert ("result" in message) != ("error" in message)
        if "error" in message:
            assert isinstance(message["error"]["code"], int)
            assert message["error"]["message"]


def _told(answer: Answer) -> Any:
    last = answer.body
    if answer.headers["content-type"].startswith("text/event-stream"):
        *_, last = [line for line in answer.body.split(b"\r\n") if line.startswith(b"data: ")]
    return json.loads(last.removeprefix(b"data: "))


def assert_rest(apps: DirectApps, chance: Random) -> None:
    """A call: its result, or a problem whose status is that of the answer."""
    body, path = confused_arguments(chance), chance.choice(PATHS)
    method = "POST" if chance.random() < 0.9 else chance.choice(["GET", "PUT", "DELETE"])
    answer = apps.ask(apps.rest, method, f"/tools/{path}", body)
    if answer.status == 200:
        return
    assert answer.status in (400, 404, 405, 413, 422), (path, body, answer)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status
    assert problem["detail"]
