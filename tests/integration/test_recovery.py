"""Model servers that refuse what Toolway added: they are asked in another way, and the client has its answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest

from tests.support.answers import chunks_of, content_of, error_of
from tests.support.app_server import AppServer, app_server, serving
from tests.support.tools import CITY, Raw, ToolService, document
from tests.support.upstream import Reply, call_stream, chunk, json_reply, sse, text_stream, tool_call, whole
from toolway.engine import recovery

JSON = dict[str, Any]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)
BOTH = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


async def _long(_: JSON) -> str:
    return "word " * 10_000


async def _picture(_: JSON) -> Raw:
    return Raw(PNG, kind=b"image/png")


@pytest.fixture(scope="module")
def server() -> Iterator[AppServer]:
    service = ToolService(long=_long, picture=_picture)
    with app_server(tools=service, max_rounds=2, vision="on", retry_wait=5) as app:
        yield app


def calls(name: str, body: JSON, number: int = 0) -> Reply:
    made = tool_call(name, '{"city":"Paris"}', id=f"call_{number}")
    return call_stream(made) if body.get("stream") else whole({"tool_calls": [made]}, finish="tool_calls")


def answers(text: str, body: JSON) -> Reply:
    return text_stream(text) if body.get("stream") else whole({"content": text})


def refuses(message: str, status: int = 400, **more: Any) -> Reply:
    return json_reply({"error": {"message": message, "type": "invalid_request_error", **more}}, status)


def results_in(body: JSON) -> list[str]:
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]


def ask(app: AppServer, answer: Callable[[JSON], Reply], *, stream: bool, **more: Any) -> str:
    """What the client reads; `model` keeps what is learned of one server apart from the others."""
    app.set_replies()
    app.upstream.answer = answer
    reply = app.ask(stream=stream, **more)
    assert reply.status_code == 200, reply.text
    return content_of(chunks_of(reply.text)) if stream else reply.json()["choices"][0]["message"]["content"]


def last_body(app: AppServer) -> JSON:
    return app.upstream.seen[-1].json


NEEDS_TOOLS = "Requests which have `tool_use` or `tool_result` blocks must define tools"


def needs_tools(body: JSON) -> Reply:
    if results_in(body) and not body.get("tools"):
        return refuses(NEEDS_TOOLS)
    if body.get("tools") and body.get("tool_choice") != "none":
        return calls("get_weather", body, len(body["messages"]))
    return answers("What I know.", body)


@BOTH
def test_a_server_that_wants_tools_beside_calls_gets_them_in_the_last_round(server: AppServer, stream: bool):
    model = f"bedrock {stream}"
    assert ask(server, needs_tools, stream=stream, model=model) == "What I know."
    assert (last_body(server)["tool_choice"], len(last_body(server)["tools"])) == ("none", 4)
    asked = len(server.upstream.seen)
    assert ask(server, needs_tools, stream=stream, model=model) == "What I know."
    assert len(server.upstream.seen) == asked - 1, "what worked is remembered"


@BOTH
def test_a_server_that_takes_neither_way_still_gets_the_client_an_answer(server: AppServer, stream: bool):
    def never(body: JSON) -> Reply:
        if len(results_in(body)) > 2:
            return refuses(NEEDS_TOOLS)
        return calls("get_weather", body, len(body["messages"]))

    assert "limit of 2 rounds" in ask(server, never, stream=stream, model="never")


NARROW = {
    "numbers": lambda: refuses(
        "This model's maximum context length is 4096 tokens. However, you requested 16000 tokens"
    ),
    "no numbers": lambda: refuses("the prompt is too long"),
    "413": lambda: Reply([b"<html>Too Large</html>"], 413, [(b"content-type", b"text/html")]),
    "in the stream": lambda: sse(
        {"error": {"code": 400, "message": "context size has been exceeded"}}, done=False
    ),
    "an empty answer": lambda: sse(chunk(role="assistant"), chunk(finish="stop")),
    "a 200": lambda: json_reply({"error": "the request exceeds the available context size"}),
}


@pytest.mark.parametrize("name", NARROW)
def test_results_are_shortened_until_they_fit(server: AppServer, name: str):
    def narrow(body: JSON) -> Reply:
        if not results_in(body):
            return calls("long", body)
        return NARROW[name]() if len(results_in(body)[0]) > 8000 else answers("It fits.", body)

    assert ask(server, narrow, stream=True) == "It fits."


def test_what_the_server_said_reaches_the_client_when_nothing_is_left_to_shorten(server: AppServer):
    def hopeless(body: JSON) -> Reply:
        return refuses("the prompt is too long, says the moon") if results_in(body) else calls("long", body)

    server.set_replies()
    server.upstream.answer = hopeless
    assert "says the moon" in error_of(chunks_of(server.ask(stream=True).text))["message"]
    assert len(server.upstream.seen) < 15
    assert len(server.tools.calls) == 1


@BOTH
def test_images_are_left_out_where_the_server_takes_none_behind_results(server: AppServer, stream: bool):
    def mistral(body: JSON) -> Reply:
        roles = [message["role"] for message in body["messages"]]
        if ("tool", "user") in pairwise(roles):
            return refuses("Unexpected role 'user' after role 'tool'")
        return answers("I see.", body) if "tool" in roles else calls("picture", body)

    model = f"mistral {stream}"
    assert ask(server, mistral, stream=stream, model=model) == "I see."
    assert "not shown" in results_in(last_body(server))[0]
    assert "attached" not in results_in(last_body(server))[0]
    ask(server, mistral, stream=stream, model=model)
    assert len(server.upstream.seen) == 2, "what the server does not take is remembered"


LATER = {
    "told in seconds": lambda: json_reply({"error": {"message": "slow"}}, 429, [(b"retry-after", b"1")]),
    "told in milliseconds": lambda: json_reply(
        {"error": {"message": "slow"}}, 429, [(b"retry-after-ms", b"300")]
    ),
    "loading": lambda: refuses("Loading model", 503),
}


@BOTH
@pytest.mark.parametrize("name", LATER)
def test_a_server_that_says_later_is_waited_for_once_tools_ran(server: AppServer, stream: bool, name: str):
    def busy(body: JSON) -> Reply:
        if not results_in(body):
            return calls("get_weather", body)
        return LATER[name]() if len(server.upstream.seen) < 2 else answers("At last.", body)

    before = time.monotonic()
    assert ask(server, busy, stream=stream) == "At last."
    assert time.monotonic() - before > 0.25
    assert len(server.tools.calls) == 1


def test_a_server_that_names_no_time_is_asked_a_few_times(server: AppServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recovery, "_PAUSES", (0.01, 0.02))
    slow = json_reply({"error": {"message": "slow"}}, 429)
    server.set_replies()
    server.upstream.answer = lambda body: slow if results_in(body) else calls("get_weather", body)
    assert server.ask().status_code == 502
    assert len(server.upstream.seen) == 4


def test_a_wait_that_is_too_long_fails_at_once_and_says_when_to_come_back(server: AppServer):
    later = json_reply(
        {"error": {"message": "slow", "code": "rate_limit_exceeded"}}, 429, [(b"retry-after", b"600")]
    )
    server.set_replies()
    server.upstream.answer = lambda body: later if results_in(body) else calls("get_weather", body)
    answer = server.ask()
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "600")
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert len(server.upstream.seen) == 2


@BOTH
@pytest.mark.parametrize("failures", [1, 2])
def test_a_call_that_the_server_cannot_read_is_asked_for_again(
    server: AppServer, stream: bool, failures: int
):
    def groq(body: JSON) -> Reply:
        if len(server.upstream.seen) < failures:
            return refuses(
                "Failed to call a function.", code="tool_use_failed", failed_generation="<function=x>"
            )
        return answers("In words.", body)

    assert ask(server, groq, stream=stream, model="groq") == "In words."
    told = [message["content"] for message in last_body(server)["messages"][1:]]
    assert told[:1] == (["<function=x>"] if failures == 2 else [])
    assert len(last_body(server)["tools"]) == 4, "no tool is left out for it"


def test_what_the_model_can_never_write_is_told_to_the_client(server: AppServer):
    server.set_replies(refuses("Failed to call a function.", code="tool_use_failed"))
    server.upstream.answer = None
    answer = server.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "tool_use_failed")
    assert len(server.upstream.seen) == 3


def crowd(count: int) -> ToolService:
    service = ToolService()
    service.document = document({f"tool_{n:03}": CITY for n in range(count)})
    for path in service.document["paths"].values():
        path["post"]["description"] = "Says something short. " + "And goes on for very long. " * 20
    return service


TOO_MANY = [
    "Invalid 'tools': array too long. Expected an array with maximum length 128, but got one with length {count}.",
    "Too many tools: at most 128 functions may be given",
    "List should have at most 128 items after validation, not {count} (tools)",
    "The maximum number of tools is 128.",
]  # fmt: skip


@pytest.mark.parametrize("message", TOO_MANY, ids=range(len(TOO_MANY)))
def test_as_many_tools_are_sent_as_the_server_says_that_it_takes(message: str):
    theirs = [{"type": "function", "function": {"name": f"theirs_{n}"}} for n in range(3)]

    def limited(body: JSON) -> Reply:
        count = len(body.get("tools", ()))
        return refuses(message.format(count=count)) if count > 128 else answers("Enough.", body)

    with app_server(tools=crowd(200), tool_search="off") as app:
        assert ask(app, limited, stream=False, tools=theirs) == "Enough."
        assert [len(seen.json["tools"]) for seen in app.upstream.seen] == [203, 128]
        names = [tool["function"]["name"] for tool in last_body(app)["tools"]]
        assert names[:4] == ["theirs_0", "theirs_1", "theirs_2", "tool_000"]
        ask(app, limited, stream=True)
        assert [len(seen.json["tools"]) for seen in app.upstream.seen] == [128], "the limit is remembered"


def tokens(body: JSON) -> int:
    return len(orjson.dumps(body)) // 4


def of_4096(body: JSON) -> Reply:
    if (count := tokens(body)) > 4096:
        return refuses(
            f"request ({count} tokens) exceeds the available context size (4096 tokens), try increasing it"
        )
    return answers("It fits.", body)


@pytest.mark.parametrize(("count", "left"), [(30, 30), (150, 60)], ids=["shorter", "fewer"])
def test_definitions_that_fill_the_context_are_shortened_then_left_out(count: int, left: int):
    with app_server(tools=crowd(count), tool_search="off") as app:
        assert ask(app, of_4096, stream=False) == "It fits."
        sent = last_body(app)["tools"]
        assert left <= len(sent) <= count
        assert any(tool["function"]["description"].endswith("short.") for tool in sent)
        assert len(app.upstream.seen) <= 3


def test_a_conversation_that_is_too_long_by_itself_says_what_the_tools_take():
    with app_server(tools=crowd(30), tool_search="off") as app:
        app.upstream.answer = of_4096
        answer = app.ask(messages=[{"role": "user", "content": "x" * 40_000}])
        assert answer.status_code == 400
        assert "exceeds the available context size" in answer.json()["error"]["message"]
        assert "the definitions of 30 tools take about" in answer.json()["error"]["message"]
        assert "`include` or a profile" in answer.json()["error"]["message"]


@pytest.mark.parametrize("count", [30, 150], ids=["shorter", "fewer"])
def test_what_fitted_a_small_context_is_remembered(count: int):
    with app_server(tools=crowd(count)) as app:
        ask(app, of_4096, stream=False)
        prefixes = []
        for words in ("Hi", "And in London?", "And so on."):
            ask(app, of_4096, stream=True, messages=[{"role": "user", "content": words}])
            prefixes += [orjson.dumps(seen.json["tools"]) for seen in app.upstream.seen]
        assert len(prefixes) == 3, "none of them is refused"
        assert len(set(prefixes)) == 1
        ask(app, lambda body: answers("Large.", body), stream=False, model="another")
        assert len(last_body(app)["tools"]) == count


def test_a_room_that_is_known_keeps_some_tools_in_a_long_conversation():
    with app_server(tools=crowd(60)) as app:
        ask(app, of_4096, stream=False)
        app.set_replies().upstream.answer = of_4096
        app.ask(messages=[{"role": "user", "content": "x" * 9_000}])
        assert 0 < len(app.upstream.seen[0].json["tools"]) < 60


def ollama(body: JSON) -> Reply:
    """Forgets what does not fit, without a word."""
    return answers("As far as I remember.", body)


def test_definitions_fit_the_context_of_a_server_that_forgets_the_rest():
    about = {
        "/api/show": {"model_info": {"llama.context_length": 131072}},
        "/api/ps": {"models": [{"name": "mock:latest", "context_length": 4096}]},
    }
    with app_server(tools=crowd(60), tool_search="off") as app:
        app.upstream.models = json_reply({"data": [{"id": "mock", "owned_by": "library"}]})
        app.upstream.asides = {path: json_reply(answer) for path, answer in about.items()}
        with serving(app.settings) as app.url:
            assert ask(app, ollama, stream=False) == "As far as I remember."
            assert tokens(last_body(app)) < 4096
            assert len(last_body(app)["tools"]) > 20
