"""Responses that are made in the background: polled, streamed again, cancelled, and never left in progress."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.integration.responses.asking import (
    QUESTION,
    ask,
    asking,
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
from tests.integration.responses.replica import QUICK
from tests.integration.test_commands import ROOT
from tests.integration.test_commands import serving as process_of
from tests.support.gate import DEADLINE, Gate
from tests.support.house import House, house, serving
from tests.support.responses import check_events, check_response
from tests.support.tools import ToolService
from tests.support.upstream import OUT_OF_MEMORY, Reply, tool_call

JSON = dict[str, Any]
OURS = tool_call(id="ours")
BODY: JSON = {"model": "mock", "input": QUESTION, "background": True}


@pytest.fixture(scope="module")
def room():
    with house(pace=QUICK) as opened:
        yield opened


def held(gate: Gate) -> Reply:
    """A streamed answer that stops at a gate in the middle."""
    first, *rest = turn("Hello there", streamed=True).parts
    begin, *end = rest
    return Reply([first, begin, gate, *end])


def until(room: House | str, identity: str, *statuses: str, key: str | None = None) -> JSON:
    """The response as soon as it has one of these states."""
    deadline = time.monotonic() + DEADLINE
    while True:
        response: JSON = get(room, identity, key=key).json()
        if response["status"] in statuses:
            return response
        assert time.monotonic() < deadline, response
        time.sleep(0.02)


def begun(room: House | str, **more: Any) -> JSON:
    """A background response that was just created."""
    answer = respond(room, {**BODY, **more})
    assert answer.status_code == 200, answer.text
    created: JSON = answer.json()
    assert created["status"] in ("queued", "in_progress")
    assert created["background"] is True
    return created


def streamed_again(room: House | str, identity: str, after: int | None = None) -> list[JSON]:
    """All events of a response from behind one on, to the end of the stream."""
    query: JSON = {} if after is None else {"starting_after": after}
    answer = get(room, identity, stream="true", **query)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text, begin=0 if after is None else after + 1)


@contextmanager
def left_in_the_middle(room: House | str, gate: Gate, **more: Any) -> Iterator[list[JSON]]:
    """What a client saw of a stream that it left while the model server was waiting."""
    url = room if isinstance(room, str) else room.url
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


def test_a_response_is_polled_until_it_is_complete(room: House):
    gate = Gate()
    room.script(held(gate))
    created = begun(room)
    gate.wait_for_arrival()
    current = until(room, created["id"], "in_progress")
    assert current["completed_at"] is None
    gate.open()
    response = until(room, created["id"], "completed")
    check_response(response)
    assert text_of(response) == "Hello there"
    assert response["usage"]["total_tokens"] == 12


def test_the_official_client_polls(room: House):
    room.script(turn("Hello there", streamed=True))
    with room.client() as client:
        response = client.responses.create(model="mock", input="Hi", background=True)
        deadline = time.monotonic() + DEADLINE
        while response.status in ("queued", "in_progress"):
            assert time.monotonic() < deadline
            response = client.responses.retrieve(response.id)
    assert (response.status, response.output_text) == ("completed", "Hello there")


def test_tools_run_in_the_background_too(room: House):
    room.script(turn("", OURS, streamed=True), turn("Cloudy.", streamed=True))
    response = until(room, begun(room, tools=[server(room)])["id"], "completed")
    assert kinds(response) == ["mcp_list_tools", "mcp_call", "message"]
    room.script(turn("Bye.", streamed=True))
    second = begun(room, input="And?", previous_response_id=response["id"])
    until(room, second["id"], "completed")
    assert [message["role"] for message in sent(room)] == ["user", "assistant", "tool", "assistant", "user"]


def test_an_approval_is_given_in_the_background(room: House):
    entry = asking(room)
    room.script(turn("", OURS, streamed=True), turn("Fine.", streamed=True))
    first = until(room, begun(room, tools=[entry])["id"], "completed")
    approval = decision(first["output"][-1])
    body = {"tools": [entry], "input": [approval], "previous_response_id": first["id"]}
    assert kinds(until(room, begun(room, **body)["id"], "completed")) == ["mcp_call", "message"]
    assert "was answered before" in error_of(respond(room, {**BODY, **body}), 400)["message"]
    assert len(room.tools.calls) == 1


def test_one_that_is_not_complete_cannot_be_gone_on_from(room: House):
    gate = Gate()
    room.script(held(gate))
    identity = begun(room)["id"]
    gate.wait_for_arrival()
    until(room, identity, "in_progress")
    refused = respond(room, input="And?", previous_response_id=identity)
    assert "is in_progress" in error_of(refused, 400)["message"]
    gate.open()
    until(room, identity, "completed")


def test_a_streamed_one_is_told_from_the_beginning_to_the_end(room: House):
    room.script(turn("Hello there", thought="Hm", streamed=True))
    events = events_of(respond(room, {**BODY, "stream": True}).text)
    assert types(events)[:3] == ["response.created", "response.queued", "response.in_progress"]
    response = check_events(events)
    assert get(room, response["id"]).json() == response


def test_a_stream_goes_on_where_it_was_left_while_it_is_made(room: House):
    gate = Gate()
    room.script(held(gate))
    with left_in_the_middle(room, gate) as seen, ThreadPoolExecutor() as pool:
        identity = seen[0]["response"]["id"]
        last = seen[-1]["sequence_number"]
        rest = [pool.submit(streamed_again, room, identity, after) for after in (last, 0, None)]
        gate.open()
        behind, all_but_first, whole = (future.result() for future in rest)
    assert seen + behind == whole
    assert whole[1:] == all_but_first
    assert text_of(check_events(whole)) == "Hello there"


def test_a_stream_can_be_read_again_when_it_is_over(room: House):
    gate = Gate()
    room.script(held(gate))
    with left_in_the_middle(room, gate) as seen:
        gate.open()
    identity = seen[0]["response"]["id"]
    until(room, identity, "completed")
    whole = streamed_again(room, identity)
    assert seen + streamed_again(room, identity, seen[-1]["sequence_number"]) == whole
    check_events(whole)
    assert streamed_again(room, identity, len(whole) - 1) == []
    assert streamed_again(room, identity, len(whole) + 5) == []


def test_the_official_client_goes_on_with_a_stream(room: House):
    gate = Gate()
    room.script(held(gate))
    with room.client() as client:
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


def test_a_client_that_leaves_ends_nothing(room: House):
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "done"

    with house(tools=ToolService(get_weather=slow), pace=QUICK) as room:
        room.script(turn("", OURS, streamed=True), turn("Fine.", streamed=True))
        with httpx2.stream(
            "POST", f"{room.url}/v1/responses", json={**BODY, "stream": True}, timeout=60
        ) as stream:
            first = next(stream.iter_text())
            gate.wait_for_arrival()
        gate.open()
        identity = events_of(first[: first.index("\n\n")] + "\n\ndata: [DONE]\n\n")[0]["response"]["id"]
        assert text_of(until(room, identity, "completed")) == "Fine."


def test_a_cancelled_one_stops_the_model_server_and_says_so(room: House):
    gate = Gate()
    room.script(held(gate))
    with left_in_the_middle(room, gate) as seen, ThreadPoolExecutor() as pool:
        identity = seen[0]["response"]["id"]
        rest = pool.submit(streamed_again, room, identity, seen[-1]["sequence_number"])
        with room.client() as client:
            client.api_key = "other"
            with pytest.raises(openai.NotFoundError):
                client.responses.cancel(identity)
        cancelled = post(room, f"{identity}/cancel").json()
        room.upstream.departures.wait()
        gate.open()
    assert (cancelled["status"], cancelled["error"]) == ("cancelled", None)
    assert text_of(cancelled) == "Hello"
    assert get(room, identity).json() == cancelled
    assert not any(event["type"] in ("response.completed", "response.failed") for event in rest.result())
    assert post(room, f"{identity}/cancel").json() == cancelled
    refused = respond(room, input="And?", previous_response_id=identity)
    assert "is cancelled" in error_of(refused, 400)["message"]


def test_a_cancelled_one_stops_the_tool():
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "late"

    with house(tools=ToolService(get_weather=slow), pace=QUICK) as room:
        room.script(turn("", OURS, streamed=True))
        identity = begun(room)["id"]
        gate.wait_for_arrival()
        assert post(room, f"{identity}/cancel").json()["status"] == "cancelled"
        room.tools.departures.wait()
        gate.open()
        assert len(room.upstream.seen) == 1


def test_what_is_complete_stays_so_when_it_is_cancelled(room: House):
    room.script(turn("Hello", streamed=True))
    response = until(room, begun(room)["id"], "completed")
    assert post(room, f"{response['id']}/cancel").json() == response


@pytest.mark.parametrize("path", ["{id}/cancel", "{id}?stream=true"])
def test_only_background_ones_are_cancelled_or_streamed_again(room: House, path: str):
    room.script(turn("Hello", streamed=False))
    identity = ask(room)["id"]
    answer = post(room, f"{identity}/cancel") if "cancel" in path else get(room, identity, stream="true")
    assert "background=true" in error_of(answer, 400)["message"]


def test_one_that_is_deleted_while_it_is_made_stays_away(room: House):
    gate = Gate()
    room.script(held(gate))
    identity = begun(room)["id"]
    gate.wait_for_arrival()
    assert delete(room, identity).status_code == 200
    room.upstream.departures.wait()
    gate.open()
    assert error_of(get(room, identity), 404)
    assert error_of(get(room, identity, stream="true"), 404)
    assert error_of(post(room, f"{identity}/cancel"), 404)


@pytest.mark.parametrize("refusal", [OUT_OF_MEMORY, Reply(reset=True)])
def test_a_model_server_that_fails_makes_it_fail(room: House, refusal: Reply):
    room.script(refusal)
    identity = begun(room)["id"]
    response = until(room, identity, "failed")
    check_response(response)
    assert response["error"]["code"] == "server_error"
    events = streamed_again(room, identity)
    assert types(events)[-2:] == ["error", "response.failed"]
    assert check_events(events) == response


def test_a_request_that_cannot_be_served_is_refused_at_once(room: House):
    assert error_of(respond(room, {**BODY, "input": 5}), 400)["param"] == "input"
    assert error_of(respond(room, {**BODY, "store": False}), 400)["param"] == "background"
    assert error_of(respond(room, {**BODY, "background": "yes"}), 400)["param"] == "background"
    assert error_of(respond(room, {**BODY, "background": 1}), 400)["param"] == "background"
    assert error_of(respond(room, {**BODY, "previous_response_id": "resp_x"}), 400)["code"]


def test_more_than_the_allowed_number_are_refused():
    gate = Gate()
    with house(max_background=2, pace=QUICK) as room:
        room.script(held(gate))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: respond(room, BODY), range(8)))
        made = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        assert len(made) == 2
        refused = next(answer for answer in answers if answer.status_code != 200)
        assert "2 responses" in error_of(refused, 429)["message"]
        # A request that is refused takes no place, and neither does what is over.
        post(room, f"{made[0]}/cancel")
        for _ in range(3):
            error_of(respond(room, {**BODY, "input": 5}), 400)
        third = begun(room)
        error_of(respond(room, BODY), 429)
        gate.open()
        for identity in (made[1], third["id"]):
            until(room, identity, "completed")
        until(room, begun(room)["id"], "completed")


class Replicas:
    """Two Toolways with one store."""

    def __init__(self, one: str, other: str) -> None:
        self.one, self.other = one, other


@pytest.fixture(params=["sqlite", "redis"])
def replicas(request: pytest.FixtureRequest, tmp_path: Path, room: House) -> Iterator[Replicas]:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    if request.param == "redis":
        store = request.getfixturevalue("redis").url
    settings = replace(room.settings, store=store)
    with serving(settings, pace=QUICK) as one, serving(settings, pace=QUICK) as other:
        yield Replicas(one, other)


def test_another_replica_polls(room: House, replicas: Replicas):
    gate = Gate()
    room.script(held(gate))
    identity = begun(replicas.one)["id"]
    gate.wait_for_arrival()
    until(replicas.other, identity, "in_progress")
    gate.open()
    response = until(replicas.other, identity, "completed")
    assert get(replicas.one, identity).json() == response


def test_another_replica_streams_on(room: House, replicas: Replicas):
    gate = Gate()
    room.script(held(gate))
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
def test_another_replica_ends_it(room: House, replicas: Replicas, how: str):
    gate = Gate()
    room.script(held(gate))
    identity = begun(replicas.one)["id"]
    gate.wait_for_arrival()
    if how == "cancel":
        assert post(replicas.other, f"{identity}/cancel").json()["status"] == "cancelled"
    else:
        assert delete(replicas.other, identity).status_code == 200
    room.upstream.departures.wait()
    gate.open()
    for url in (replicas.one, replicas.other):
        answer = get(url, identity)
        assert answer.json().get("status") == "cancelled" if how == "cancel" else answer.status_code == 404


def test_a_server_that_is_stopped_keeps_that_it_failed(room: House, tmp_path: Path):
    gate = Gate()
    room.script(held(gate))
    settings = replace(room.settings, store=f"sqlite:///{tmp_path / 'store.db'}")
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
def test_a_process_that_ends_leaves_nothing_in_progress(room: House, tmp_path: Path, number: signal.Signals):
    gate = Gate()
    room.script(held(gate))
    store = f"sqlite:///{tmp_path / 'store.db'}"
    variables = {
        "OPENAI_BASE_URL": room.settings.openai_base_url,
        "MCP_SERVER_ENDPOINTS": room.settings.endpoints[0].url,
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
    with serving(replace(room.settings, store=store), pace=QUICK) as url:
        after = seen[-1]["sequence_number"]
        events = streamed_again(url, identity, after)
        response = until(url, identity, "failed")
        reason = "was stopped" if number == signal.SIGTERM else "is gone"
        assert reason in response["error"]["message"]
        check_response(response)
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"] == response
        assert post(url, f"{identity}/cancel").json() == response
