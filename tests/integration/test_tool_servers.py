"""Tool servers that clash, fail, vanish and come: the model is told, the client gets its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import orjson
import pytest

from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE, Gate
from tests.support.servers import free_port, running
from tests.support.tools import CITY, Raw, ToolService, document
from tests.support.upstream import call_stream, text_stream, tool_call, whole
from toolway.tools.catalog import STARTUP_WAIT

HTML = Raw(b"<html><body>Welcome</body></html>", kind=b"text/html")


def names_in(request: dict[str, Any]) -> list[str]:
    return [tool["function"]["name"] for tool in request.get("tools", ())]


def result_in(app: AppServer) -> str:
    """What the model read of the last call."""
    text: str = app.upstream.seen[-1].json["messages"][-1]["content"]
    return text


def offered(app: AppServer) -> list[str]:
    """The tools that a request carries now."""
    app.ask()
    return names_in(app.upstream.seen[-1].json)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it holds: each try is a real request, so this is no busy loop."""
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, "it never came true"


def test_two_servers_with_one_name_both_get_prefixes_and_calls_reach_the_right_one():
    async def first(_: Any) -> str:
        return "from the first"

    async def second(_: Any) -> str:
        return "from the second"

    one, two = ToolService(look_up=first), ToolService(look_up=second)
    with running(one, lifespan="off") as url_1, running(two, lifespan="off") as url_2:
        endpoints = f"alpha={url_1}, beta={url_2}"
        calls = [
            tool_call("beta__look_up", id="1"),
            tool_call("alpha__look_up", id="2", index=1),
        ]
        with app_server(call_stream(*calls), text_stream("Done."), endpoints=endpoints) as app:
            answer = app.ask(stream=True)
            request = app.upstream.seen[0].json
            results = [message["content"] for message in app.upstream.seen[1].json["messages"][2:]]
    assert_one_clean_answer(chunks_of(answer.text))
    assert [name for name in names_in(request) if "look_up" in name] == ["alpha__look_up", "beta__look_up"]
    assert "look_up" not in names_in(request)
    assert results == ['"from the second"', '"from the first"']
    assert [name for name, _ in one.calls] == [name for name, _ in two.calls] == ["look_up"]


def test_a_name_that_the_client_uses_is_the_clients():
    own = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    with app_server(call_stream(tool_call())) as app:
        chunks = chunks_of(app.ask(stream=True, tools=[own]).text)
        assert names_in(app.upstream.seen[0].json) == ["get_weather", "list_cities"]
        assert app.tools.calls == []
        assert len(app.upstream.seen) == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [c["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] for c in chunks[1:-1]] == [
        "get_weather"
    ]


FAULTS: dict[str, tuple[Any, str]] = {
    "500": (Raw(b'{"detail":"database is gone"}', 500), "500 Internal Server Error: database is gone"),
    "500 of mcpo": (
        Raw(b'{"detail":{"message":"Unexpected error","error":"500: {\'message\': \'no such zone\'}"}}', 500),
        "no such zone",
    ),
    "422": (
        Raw(b'{"detail":[{"type":"missing","loc":["body","city"],"msg":"Field required"}]}', 422),
        "body.city: Field required",
    ),
    "404 html": (Raw(b"<h1>Not Found</h1>", 404, b"text/html"), "404 Not Found"),
    "50 MB": (Raw(b"x" * 50 * 2**20, kind=b"text/plain"), "more than 10,485,760 bytes"),
    "nothing": (Raw(b""), "without content"),
    "binary": (Raw(bytes(range(256)), kind=b"application/octet-stream"), "256 bytes"),
    "a huge text": (Raw(b"y" * 200_000, kind=b"text/plain"), "characters left out"),
    "html": (HTML, "Welcome"),
}


@pytest.fixture(scope="module")
def faulty():
    """A service whose tool does what `fault` holds."""
    fault: dict[str, Any] = {}

    async def odd(_: Any) -> Any:
        return fault["answer"]

    with app_server(tools=ToolService(odd=odd)) as app:
        yield app, fault


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_tool_server_does_wrong_is_read_by_the_model(faulty: Any, name: str):
    app, fault = faulty
    fault["answer"], words = FAULTS[name]
    app.upstream.seen.clear()
    app.upstream.replies = [call_stream(tool_call("odd")), text_stream("I see.")]
    chunks = chunks_of(app.ask(stream=True).text)
    assert_one_clean_answer(chunks)
    assert content_of(chunks) == "I see."
    assert words in result_in(app)
    assert "127.0.0.1" not in result_in(app)


def test_a_tool_that_never_answers_is_given_up():
    gate = Gate()

    async def mute(_: Any) -> None:
        await gate()

    with app_server(
        call_stream(tool_call("mute")), text_stream("I see."), tools=ToolService(mute=mute), tool_timeout=0.2
    ) as app:
        assert content_of(chunks_of(app.ask(stream=True).text)) == "I see."
        assert result_in(app) == "Error: mute did not answer in time and was given up"
        app.tools.departures.wait()
        gate.open()


def test_arguments_that_do_not_fit_are_not_sent_to_the_server():
    with app_server(call_stream(tool_call(arguments='{"town":"Paris"}')), text_stream("Sorry.")) as app:
        chunks_of(app.ask(stream=True).text)
        assert app.tools.calls == []
        assert "`city` is required" in result_in(app)


def test_a_server_that_is_down_costs_nobody_its_answer_and_joins_when_it_comes():
    port = free_port()
    with app_server(
        whole({"content": "Hi"}), endpoints=f"late=http://127.0.0.1:{port}", refresh_interval=0.1
    ) as app:
        assert app.ask().status_code == 200
        assert offered(app) == []
        ready = httpx2.get(f"{app.url}/readyz").json()
        assert ready["servers"] == {"late": "failed"}
        with running(ToolService(), port=port, lifespan="off"):
            eventually(lambda: offered(app) == ["get_weather", "list_cities"])
        app.upstream.seen.clear()
        eventually(lambda: offered(app) == [])
        assert httpx2.get(f"{app.url}/readyz").json()["servers"] == {"late": "failed"}
        with running(ToolService(), port=port, lifespan="off"):
            eventually(lambda: offered(app) == ["get_weather", "list_cities"])


def test_a_call_to_a_server_that_has_gone_is_told_to_the_model():
    port = free_port()
    with app_server(
        call_stream(tool_call()),
        text_stream("I see."),
        endpoints=f"http://127.0.0.1:{port}",
        refresh_interval=60.0,
    ) as app:
        with running(ToolService(), port=port, lifespan="off"):
            eventually(lambda: offered(app) != [])
        app.upstream.seen.clear()
        assert content_of(chunks_of(app.ask(stream=True).text)) == "I see."
        assert "cannot be reached" in result_in(app)


@pytest.mark.parametrize(
    "broken",
    [
        Raw(b"{oops"),
        Raw(b"[1, 2]"),
        Raw(b'{"openapi": "3.1.0"}'),
        HTML,
        Raw(b"no", 404),
        Raw(b"no", 500),
        Raw(b"", 204),
        Raw(b"[" * 100_000),
        Raw(b'{"openapi":"3.1.0","info":{},"paths":{"/x":' + b" " * 40 * 2**20 + b"}}"),
    ],
    ids=["broken", "a list", "no paths", "html", "404", "500", "empty", "deep", "huge"],
)
def test_a_broken_document_takes_nothing_from_the_other_servers(broken: Raw):
    bad = ToolService()
    bad.document = broken
    with (
        running(bad, lifespan="off") as bad_url,
        running(ToolService(), lifespan="off") as good_url,
        app_server(whole({"content": "Hi"}), endpoints=f"bad={bad_url}, good={good_url}") as app,
    ):
        assert offered(app) == ["get_weather", "list_cities"]
        states = httpx2.get(f"{app.url}/readyz").json()["servers"]
    assert states["good"] == "ready"


def test_a_server_whose_document_never_comes_delays_nobody_for_long():
    gate = Gate()

    async def mute(scope: Any, receive: Any, send: Any) -> None:
        await gate()

    with (
        running(mute, lifespan="off", log_level="critical") as mute_url,
        running(ToolService(), lifespan="off") as good_url,
        app_server(
            whole({"content": "Hi"}),
            endpoints=f"mute={mute_url}, good={good_url}",
            startup_wait=STARTUP_WAIT,
        ) as app,
    ):
        assert offered(app) == ["get_weather", "list_cities"]
        ready = httpx2.get(f"{app.url}/readyz")
        over_rest = httpx2.post(f"{app.url}/tools/look_up")
        app.set_replies(call_stream(tool_call("look_up", "{}")), text_stream("Done.")).ask(stream=True)
        gate.open()
    assert (ready.status_code, ready.json()["servers"]["mute"]) == (503, "starting")
    assert over_rest.status_code == 503
    for told in (over_rest.json()["detail"], result_in(app)):
        assert told.endswith("The tool server mute is still starting; try again.")


def test_a_request_keeps_the_tools_that_it_began_with():
    gate = Gate()

    async def slow(_: Any) -> str:
        await gate()
        return "slow but well"

    service = ToolService(slow=slow)
    calls = call_stream(tool_call("slow")), call_stream(tool_call("list_cities", "{}")), text_stream("Done.")
    with app_server(*calls, tools=service, refresh_interval=0.1) as app:
        answers: list[str] = []
        talk = threading.Thread(target=lambda: answers.append(app.ask(stream=True).text))
        talk.start()
        gate.wait_for_arrival()
        service.document = document({"other": CITY})
        app.upstream.answer = lambda request: whole({"content": "Hi"})
        eventually(lambda: offered(app) == ["other"])
        app.upstream.answer = lambda request: calls[sum(m["role"] == "tool" for m in request["messages"])]
        gate.open()
        talk.join(DEADLINE)
        assert not talk.is_alive()
    assert content_of(chunks_of(answers[0])) == "Done."
    assert [name for name, _ in service.calls] == ["slow", "list_cities"]
    last = orjson.loads(app.upstream.seen[-1].body)
    assert names_in(last) == ["get_weather", "list_cities", "slow"]
