"""Responses that are made in the background: polled, streamed again, cancelled, and never left in progress."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.integration.responses.replica import QUICK
from tests.integration.responses.requests import (
    QUESTION,
    approval_tool,
    ask,
    decision,
    delete,
    error_of,
    events_of,
    get,
    kinds,
    post,
    respond,
    sent,
    server,
    text_of,
    turn,
    types,
)
from tests.integration.test_commands import ROOT
from tests.integration.test_commands import serving as process_of
from tests.support.app_server import AppServer, app_server, serving
from tests.support.gate import DEADLINE, Gate
from tests.support.redis import RedisServer
from tests.support.responses import check_events, check_response
from tests.support.tools import ToolService
from tests.support.upstream import OUT_OF_MEMORY, Reply, tool_call

JSON = dict[str, Any]
OURS = tool_call(id="ours")
BODY: JSON = {"model": "mock", "input": QUESTION, "background": True}


@pytest.fixture(scope="module")
def app():
    with app_server(pace=QUICK) as server:
        yield server


def held(gate: Gate) -> Reply:
    """A streamed answer that stops at a gate in the middle."""
    first, *rest = turn("Hello there", streamed=True).parts
    begin, *end = rest
    return Reply([first, begin, gate, *end])


def until(app: AppServer | str, identity: str, *statuses: str, key: str | None = None) -> JSON:
    """The response as soon as it has one of these states."""
    deadline = time.monotonic() + DEADLINE
    while True:
        response: JSON = get(app, identity, key=key).json()
        if response["status"] in statuses:
            return response
        assert time.monotonic() < deadline, response
        time.sleep(0.02)


def begun(app: AppServer | str, **more: Any) -> JSON:
    """A background response that was just created."""
    answer = respond(app, {**BODY, **more})
    assert answer.status_code == 200, answer.text
    created: JSON = answer.json()
    assert created["status"] in ("queued", "in_progress")
    assert created["background"] is True
    return created


def streamed_again(app: AppServer | str, identity: str, after: int | None = None) -> list[JSON]:
    """All events of a response from behind one on, to the end of the stream."""
    query: JSON = {} if after is None else {"starting_after": after}
    answer = get(app, identity, stream="true", **query)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text, begin=0 if after is None else after + 1)


@contextmanager
def left_in_the_middle(app: AppServer | str, gate: Gate, **more: Any) -> Iterator[list[JSON]]:
    """What a client saw of a stream that it left while the model server was waiting."""
    url = app if isinstance(app, str) else app.url
    body = {**BODY, "stream": True, **more}
    seen = ""
    with httpx2.stream("POST", f"{url}/v1/responses", json=body, timeout=60) as stream:
        assert stream.status_code == 200
        for part in stream.iter_text():
            seen += part
            if "output_text.delta" in seen and seen.endswith("\n\n"):
                break
    gate.wait_for_arrival()
    yield events_of(seen + "data: [DONE]\n\n")


def test_a_response_is_polled_until_it_is_complete(app: AppServer):
    gate = Gate()
    app.set_replies(held(gate))
    created = begun(app)
    gate.wait_for_arrival()
    current = until(app, created["id"], "in_progress")
    assert current["completed_at"] is None
    gate.open()
    response = until(app, created["id"], "completed")
    check_response(response)
    assert text_of(response) == "Hello there"
    assert response["usage"]["total_tokens"] == 12


def test_the_official_client_polls(app: AppServer):
    app.set_replies(turn("Hello there", streamed=True))
    with app.client() as client:
        response = client.responses.create(model="mock", input="Hi", background=True)
        deadline = time.monotonic() + DEADLINE
        while response.status in ("queued", "in_progress"):
            assert time.monotonic() < deadline
            response = client.responses.retrieve(response.id)
    assert (response.status, response.output_text) == ("completed", "Hello there")


def test_tools_run_in_the_background_too(app: AppServer):
    app.set_replies(turn("", OURS, streamed=True), turn("Cloudy.", streamed=True))
    response = until(app, begun(app, tools=[server(app)])["id"], "completed")
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    app.set_replies(turn("Bye.", streamed=True))
    second = begun(app, input="And?", previous_response_id=response["id"])
    until(app, second["id"], "completed")
    assert [message["role"] for message in sent(app)] == ["user", "assistant", "tool", "assistant", "user"]


def test_an_approval_is_given_in_the_background(app: AppServer):
    entry = approval_tool(app)
    app.set_replies(turn("", OURS, streamed=True), turn("Fine.", streamed=True))
    first = until(app, begun(app, tools=[entry])["id"], "completed")
    approval = decision(first["output"][-1])
    body = {"tools": [entry], "input": [approval], "previous_response_id": first["id"]}
    assert kinds(until(app, begun(app, **body)["id"], "completed")) == ["mcp_call", "message"]
    assert "was answered before" in error_of(respond(app, {**BODY, **body}), 400)["message"]
    assert len(app.tools.calls) == 1


def test_one_that_is_not_complete_cannot_be_gone_on_from(app: AppServer):
    gate = Gate()
    app.set_replies(held(gate))
    identity = begun(app)["id"]
    gate.wait_for_arrival()
    until(app, identity, "in_progress")
    refused = respond(app, input="And?", previous_response_id=identity)
    assert "is in_progress" in error_of(refused, 400)["message"]
    gate.open()
    until(app, identity, "completed")


def test_a_streamed_one_is_told_from_the_beginning_to_the_end(app: AppServer):
    app.set_replies(turn("Hello there", reasoning="Hm", streamed=True))
    events = events_of(respond(app, {**BODY, "stream": True}).text)
    assert types(events)[:3] == ["response.created", "response.queued", "response.in_progress"]
    response = check_events(events)
    assert get(app, response["id"]).json() == response


def test_a_stream_goes_on_where_it_was_left_while_it_is_made(app: AppServer):
    gate = Gate()
    app.set_replies(held(gate))
    with left_in_the_middle(app, gate) as seen, ThreadPoolExecutor() as pool:
        identity = seen[0]["response"]["id"]
        last = seen[-1]["sequence_number"]
        rest = [pool.submit(streamed_again, app, identity, after) for after in (last, 0, None)]
        gate.open()
        behind, all_but_first, whole = (future.result() for future in rest)
    assert seen + behind == whole
    assert whole[1:] == all_but_first
    assert text_of(check_events(whole)) == "Hello there"


def test_a_stream_can_be_read_again_when_it_is_over(app: AppServer):
    gate = Gate()
    app.set_replies(held(gate))
    with left_in_the_middle(app, gate) as seen:
        gate.open()
    identity = seen[0]["response"]["id"]
    until(app, identity, "completed")
    whole = streamed_again(app, identity)
    assert seen + streamed_again(app, identity, seen[-1]["sequence_number"]) == whole
    check_events(whole)
    assert streamed_again(app, identity, len(whole) - 1) == []
    assert streamed_again(app, identity, len(whole) + 5) == []


def test_the_official_client_goes_on_with_a_stream(app: AppServer):
    gate = Gate()
    app.set_replies(held(gate))
    with app.client() as client:
        stream = client.responses.create(model="mock", input="Hi", background=True, stream=True)
        with stream:
            seen = []
            for event in stream:
                seen.append(event)
                if event.type == "response.output_text.delta":
                    break
        gate.open()
        identity = seen[0].response.id
        rest = client.responses.retrieve(identity, stream=True, starting_after=seen[-1].sequence_number)
        with rest:
            seen += list(rest)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[-1].type == "response.completed"
    assert seen[-1].response.output_text == "Hello there"


def test_a_client_that_leaves_ends_nothing(app: AppServer):
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "done"

    with app_server(tools=ToolService(get_weather=slow), pace=QUICK) as app:
        app.set_replies(turn("", OURS, streamed=True), turn("Fine.", streamed=True))
        with httpx2.stream(
            "POST", f"{app.url}/v1/responses", json={**BODY, "stream": True}, timeout=60
        ) as stream:
            first = next(stream.iter_text())
            gate.wait_for_arrival()
        gate.open()
        identity = events_of(first[: first.index("\n\n")] + "\n\ndata: [DONE]\n\n")[0]["response"]["id"]
        assert text_of(until(app, identity, "completed")) == "Fine."


def test_a_cancelled_one_stops_the_model_server_and_says_so(app: AppServer):
    gate = Gate()
    app.set_replies(held(gate))
    with left_in_the_middle(app, gate) as seen, ThreadPoolExecutor() as pool:
        identity = seen[0]["response"]["id"]
        rest = pool.submit(streamed_again, app, identity, seen[-1]["sequence_number"])
        with app.client() as client:
            client.api_key = "other"
            with pytest.raises(openai.NotFoundError):
                client.responses.cancel(identity)
        cancelled = post(app, f"{identity}/cancel").json()
        app.upstream.departures.wait()
        gate.open()
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", None)
    assert text_of(cancelled) == "Hello"
    assert get(app, identity).json() == cancelled
    assert not any(event["type"] in ("response.completed", "response.failed") for event in rest.result())
    assert post(app, f"{identity}/cancel").json() == cancelled
    refused = respond(app, input="And?", previous_response_id=identity)
    assert "is cancelled" in error_of(refused, 400)["message"]


def test_a_cancelled_one_stops_the_tool():
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "late"

    with app_server(tools=ToolService(get_weather=slow), pace=QUICK) as app:
        app.set_replies(turn("", OURS, streamed=True))
        identity = begun(app)["id"]
        gate.wait_for_arrival()
        assert post(app, f"{identity}/cancel").json()["status"] == "cancelled"
        app.tools.departures.wait()
        gate.open()
        assert len(app.upstream.seen) == 1


def test_what_is_complete_stays_so_when_it_is_cancelled(app: AppServer):
    app.set_replies(turn("Hello", streamed=True))
    response = until(app, begun(app)["id"], "completed")
    assert post(app, f"{response['id']}/cancel").json() == response


@pytest.mark.parametrize("path", ["{id}/cancel", "{id}?stream=true"])
def test_only_background_ones_are_cancelled_or_streamed_again(app: AppServer, path: str):
    app.set_replies(turn("Hello", streamed=False))
    identity = ask(app)["id"]
    answer = post(app, f"{identity}/cancel") if "cancel" in path else get(app, identity, stream="true")
    assert "background=true" in error_of(answer, 400)["message"]


def test_one_that_is_deleted_while_it_is_made_stays_away(app: AppServer):
    gate = Gate()
    app.set_replies(held(gate))
    identity = begun(app)["id"]
    gate.wait_for_arrival()
    assert delete(app, identity).status_code == 200
    app.upstream.departures.wait()
    gate.open()
    assert error_of(get(app, identity), 404)
    assert error_of(get(app, identity, stream="true"), 404)
    assert error_of(post(app, f"{identity}/cancel"), 404)


@pytest.mark.parametrize("refusal", [OUT_OF_MEMORY, Reply(reset=True)])
def test_a_model_server_that_fails_makes_it_fail(app: AppServer, refusal: Reply):
    app.set_replies(refusal)
    identity = begun(app)["id"]
    response = until(app, identity, "failed")
    check_response(response)
    assert response["error"]["code"] == "server_error"
    events = streamed_again(app, identity)
    assert types(events)[-2:] == ["error", "response.failed"]
    assert check_events(events) == response


def test_a_request_that_cannot_be_served_is_refused_at_once(app: AppServer):
    assert error_of(respond(app, {**BODY, "input": 5}), 400)["param"] == "input"
    assert error_of(respond(app, {**BODY, "store": False}), 400)["param"] == "background"
    assert error_of(respond(app, {**BODY, "background": "yes"}), 400)["param"] == "background"
    assert error_of(respond(app, {**BODY, "background": 1}), 400)["param"] == "background"
    assert error_of(respond(app, {**BODY, "previous_response_id": "resp_x"}), 400)["code"]


def test_more_than_the_allowed_number_are_refused():
    gate = Gate()
    with app_server(max_background=2, pace=QUICK) as app:
        app.set_replies(held(gate))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: respond(app, BODY), range(8)))
        made = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        assert len(made) == 2
        refused = next(answer for answer in answers if answer.status_code != 200)
        assert "2 responses" in error_of(refused, 429)["message"]
        assert refused.headers["retry-after"] == "5"
        # A request that is refused takes no place, and neither does what is over.
        post(app, f"{made[0]}/cancel")
        for _ in range(3):
            error_of(respond(app, {**BODY, "input": 5}), 400)
        third = begun(app)
        error_of(respond(app, BODY), 429)
        gate.open()
        for identity in (made[1], third["id"]):
            until(app, identity, "completed")
        until(app, begun(app)["id"], "completed")


def test_one_client_leaves_room_for_the_others():
    gate = Gate()
    with app_server(max_background=10, pace=QUICK) as app:
        app.set_replies(held(gate))

        def statuses(number: int, key: str) -> list[int]:
            return [
                respond(app, BODY, headers={"authorization": f"Bearer {key}"}).status_code
                for _ in range(number)
            ]

        assert statuses(10, "bob") == [200] * 8 + [429] * 2
        refused = respond(app, BODY, headers={"authorization": "Bearer bob"})
        assert "for you" in error_of(refused, 429)["message"]
        assert refused.headers["retry-after"] == "5"
        assert statuses(1, "alice") == [200]
        gate.open()


def test_one_that_is_larger_than_the_store_fails_and_says_why():
    with app_server(store_max_bytes=20_000, pace=QUICK) as app:
        app.set_replies(turn("Hello there. " * 2_000, streamed=True))
        response = until(app, begun(app)["id"], "failed")
        check_response(response)
        assert "TOOLWAY_STORE_MAX_BYTES" in response["error"]["message"]
        assert response["output"] == []
        app.set_replies(turn("Hello there. " * 2_000, streamed=True))
        told = events_of(respond(app, {**BODY, "stream": True}).text)
        assert types(told)[-2:] == ["error", "response.failed"]
        assert "response.completed" not in types(told)


def test_what_is_stored_is_not_called_gone_while_the_store_is_away(redis: RedisServer):
    with app_server(store=redis.url, pace=QUICK) as app:
        app.set_replies(turn("Hello", streamed=False))
        identity = ask(app)["id"]
        redis.stop()
        for answer in (
            get(app, identity),
            get(app, identity, stream="true"),
            get(app, f"{identity}/input_items"),
            delete(app, identity),
            post(app, f"{identity}/cancel"),
            respond(app, input="And?", previous_response_id=identity),
            respond(
                app, input=[{"type": "item_reference", "id": f"msg_{identity.removeprefix('resp_')}0000"}]
            ),
        ):
            assert error_of(answer, 503)["type"] == "toolway_error"
        readiness = httpx2.get(f"{app.url}/readyz", timeout=DEADLINE)
        assert (readiness.status_code, readiness.json()["status"]) == (200, "degraded")
        assert readiness.json()["store"] == "unreachable"
        redis.start()
        assert error_of(get(app, identity), 404)  # this one keeps nothing on disk
        assert "store" not in httpx2.get(f"{app.url}/readyz", timeout=DEADLINE).json()


def test_what_cannot_be_kept_is_not_begun(redis: RedisServer):
    with app_server(store=redis.url, pace=QUICK) as app:
        app.set_replies(turn("Hello", streamed=True))
        redis.stop()
        error_of(respond(app, BODY), 503)
        error_of(respond(app, {**BODY, "stream": True}), 503)
        assert app.upstream.seen == []
        for streamed in (True, False):
            app.set_replies(turn("Hello", streamed=streamed))
            told = ask(app, streamed=streamed)  # whoever waits for it gets it all the same, and is told
            assert (text_of(told), told["store"]) == ("Hello", False)
        app.set_replies(turn("Hello", streamed=True))
        redis.start()
        until(app, begun(app)["id"], "completed")


def test_one_that_ends_while_the_store_is_away_is_kept_when_it_is_back(redis: RedisServer):
    gate = Gate()
    with app_server(store=redis.url, pace=QUICK) as app:
        app.set_replies(held(gate))
        identity = begun(app)["id"]
        gate.wait_for_arrival()
        until(app, identity, "in_progress")
        redis.stop()
        gate.open()
        redis.start()
        assert text_of(until(app, identity, "completed")) == "Hello there"


class Replicas:
    """Two Toolways with one store."""

    def __init__(self, one: str, other: str) -> None:
        self.one, self.other = one, other


@pytest.fixture(params=["sqlite", "redis"])
def replicas(request: pytest.FixtureRequest, tmp_path: Path, app: AppServer) -> Iterator[Replicas]:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    if request.param == "redis":
        store = request.getfixturevalue("redis").url
    settings = app.settings_with_store(store)
    with serving(settings, pace=QUICK) as one, serving(settings, pace=QUICK) as other:
        yield Replicas(one, other)


def test_another_replica_polls(app: AppServer, replicas: Replicas):
    gate = Gate()
    app.set_replies(held(gate))
    identity = begun(replicas.one)["id"]
    gate.wait_for_arrival()
    until(replicas.other, identity, "in_progress")
    gate.open()
    response = until(replicas.other, identity, "completed")
    assert get(replicas.one, identity).json() == response


def test_another_replica_streams_on(app: AppServer, replicas: Replicas):
    gate = Gate()
    app.set_replies(held(gate))
    with left_in_the_middle(replicas.one, gate) as seen, ThreadPoolExecutor() as pool:
        identity = seen[0]["response"]["id"]
        rest = pool.submit(streamed_again, replicas.other, identity, seen[-1]["sequence_number"])
        again = pool.submit(streamed_again, replicas.other, identity)
        gate.open()
        whole = again.result()
        assert seen + rest.result() == whole
    check_events(whole)
    assert streamed_again(replicas.one, identity) == whole


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_another_replica_ends_it(app: AppServer, replicas: Replicas, how: str):
    gate = Gate()
    app.set_replies(held(gate))
    identity = begun(replicas.one)["id"]
    gate.wait_for_arrival()
    if how == "cancel":
        assert post(replicas.other, f"{identity}/cancel").json()["status"] == "cancelled"
    else:
        assert delete(replicas.other, identity).status_code == 200
    app.upstream.departures.wait()
    gate.open()
    for url in (replicas.one, replicas.other):
        answer = get(url, identity)
        assert answer.json().get("status") == "cancelled" if how == "cancel" else answer.status_code == 404


def test_a_server_that_is_stopped_keeps_that_it_failed(app: AppServer, tmp_path: Path):
    gate = Gate()
    app.set_replies(held(gate))
    settings = app.settings_with_store(f"sqlite:///{tmp_path / 'store.db'}")
    with serving(settings) as url, left_in_the_middle(url, gate) as seen:
        identity = seen[0]["response"]["id"]
    gate.open()
    with serving(settings) as url:
        response = get(url, identity).json()
        assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
        assert "was stopped" in response["error"]["message"]
        assert text_of(response) == "Hello"
        events = streamed_again(url, identity, seen[-1]["sequence_number"])
        assert check_events([*seen, *events]) == response


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_ends_leaves_nothing_in_progress(
    app: AppServer, tmp_path: Path, number: signal.Signals
):
    gate = Gate()
    app.set_replies(held(gate))
    store = f"sqlite:///{tmp_path / 'store.db'}"
    variables = {
        "OPENAI_BASE_URL": app.settings.upstream.base_url,
        "MCP_SERVER_ENDPOINTS": app.settings.tools.endpoints[0].url,
        "DEBUG_OUTPUT": "false",
        "TOOLWAY_STORE": store,
        "TOOLWAY_PORT": "0",
        "TOOLWAY_SHUTDOWN_GRACE": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.integration.responses.replica"]
    with process_of(command, tmp_path, **variables) as (process, url):
        with left_in_the_middle(url, gate) as seen:
            identity = seen[0]["response"]["id"]
        process.send_signal(number)
        assert process.wait(DEADLINE) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    gate.open()
    with serving(app.settings_with_store(store), pace=QUICK) as url:
        after = seen[-1]["sequence_number"]
        events = streamed_again(url, identity, after)
        response = until(url, identity, "failed")
        reason = "was stopped" if number == signal.SIGTERM else "is gone"
        assert reason in response["error"]["message"]
        check_response(response)
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"] == response
        assert post(url, f"{identity}/cancel").json() == response
