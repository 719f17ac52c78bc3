"""Real clients, unchanged: each says the same text, raises nothing, and shows no tool but its own.

`make clients` installs them and runs this. What was found is told in docs/clients.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.compat.clients.installed import Client, ClientRun, missing
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import Gate
from tests.support.tools import ToolService
from tests.support.upstream import JSON, Reply, chunk, json_reply, sse, tool_call, whole
from toolway.wire.sse import KEEP_ALIVE

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

EVERY = ("none", "own", "never", "approve", "deny")


def over_responses(
    name: str, script: str, *manners: str, tools: tuple[str, ...] = EVERY, another: bool = False
) -> Iterator[Client]:
    """A client of the Responses API in its manners; all cases are tried with the first, unless it is `another`, too."""
    for manner in manners:
        yield Client(
            name=f"{name} {manner}",
            script=script,
            manner=manner,
            apis=("responses",),
            modes=("streamed",) if manner.startswith("stream ") else ("streamed", "whole"),
            tools=tools,
            another=another or manner != manners[0],
        )


FOUR = ("create previous", "create items", "stream previous", "stream items")
CLIENTS = (
    Client(name="openai-python create", script="python_openai.py", manner="create"),
    Client(name="openai-python stream", script="python_openai.py", manner="stream", modes=("streamed",)),
    Client(name="openai-node create", script="node_openai.mjs", manner="create", tools=("none",)),
    Client(name="openai-node runTools", script="node_openai.mjs", manner="runTools", tools=("own",)),
    Client(name="ai-sdk compatible", script="node_ai_sdk.mjs", manner="compatible"),
    Client(name="ai-sdk openai", script="node_ai_sdk.mjs", manner="openai"),
    Client(name="langchain-openai", script="python_langchain.py"),
    Client(name="litellm", script="python_litellm.py", manner="openai"),
    Client(name="llm", script="python_llm.py"),
    Client(name="openai-agents", script="python_agents.py"),
    *over_responses("openai-python", "python_openai_responses.py", *FOUR),
    *over_responses("openai-node", "node_openai_responses.mjs", *FOUR),
    *over_responses("ai-sdk", "node_ai_sdk.mjs", "openai"),
    # It sends no approval request back when nothing is stored, so nobody can tell what was approved.
    *over_responses("ai-sdk", "node_ai_sdk.mjs", "unstored", tools=("none", "own", "never"), another=True),
    *over_responses("langchain-openai", "python_langchain.py", "items", "unstored", "previous"),
    *over_responses("openai-agents", "python_agents.py", "items", "unstored", "previous"),
    *over_responses(
        "openai-agents", "python_agents.py", "interruption", tools=("approve", "deny"), another=True
    ),
)
NAMES = tuple(client.name for client in CLIENTS)
RETRYING = ("ai-sdk compatible", "ai-sdk openai")
"""They repeat a 502 by themselves although they are told not to."""

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
OURS = tool_call("get_weather", '{"city":"Paris"}', id="call_1")
THEIRS = tool_call("double", '{"x":21}', id="call_2", index=1)
QUESTIONS = ("What is the weather in Paris?", "And tomorrow?")
REFUSED = {
    "error": {"message": "no such model", "type": "invalid_request_error", "param": None, "code": None}
}


def each_client(
    *,
    tools: str,
    always: bool = False,
    every: bool = False,
    apis: tuple[str, ...] = ("chat", "responses"),
    modes: tuple[str, ...] = ("streamed", "whole"),
    names: tuple[str, ...] = NAMES,
) -> Any:
    """Each client in each of these modes that it has, with `tools`, or with what it can unless it is `always`.

    With `every`, in all of its manners.
    """
    rows = [
        ClientRun(
            client=client, api=api, mode=mode, tools=tools if tools in client.tools else client.tools[0]
        )
        for client in CLIENTS
        for api in client.apis
        for mode in modes
        if api in apis and mode in client.modes and client.name in names
        if (every or not client.another) and (tools in client.tools or not always)
    ]
    return pytest.mark.parametrize("run", rows, ids=str)


def says(body: JSON, text: str = "", *calls: JSON, reasoning: str = "") -> Reply:
    """A turn of the model, streamed or whole as the request wants it, with usage where it is asked for."""
    finish = "tool_calls" if calls else "stop"
    if not body.get("stream"):
        plain = [{key: value for key, value in call.items() if key != "index"} for call in calls]
        message = {"content": text or None, **({"tool_calls": plain} if calls else {})}
        if reasoning:
            message["reasoning_content"] = reasoning
        return whole(message, finish=finish, usage=USAGE)
    words = [chunk(content=text[:4]), chunk(content=text[4:])] if text else []
    if reasoning:
        words = [chunk(reasoning_content=reasoning[:4]), chunk(reasoning_content=reasoning[4:]), *words]
    pieces = [chunk(tool_calls=[piece]) for call in calls for piece in _in_pieces(call)]
    asks_usage = (body.get("stream_options") or {}).get("include_usage")
    last = [{**chunk(), "choices": [], "usage": USAGE}] if asks_usage else []
    return sse(chunk(role="assistant", content=""), *words, *pieces, chunk(finish=finish), *last)


def _in_pieces(call: JSON) -> Iterator[JSON]:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    yield {**call, "function": {"name": name, "arguments": ""}}
    for piece in (arguments[:5], arguments[5:]):
        yield {"index": call["index"], "function": {"arguments": piece}}


def set_turns(app: AppServer, *turns: Any) -> None:
    """The model's turn is chosen by how many there were before it in the conversation, so a repeated request gets
    the same again. A turn is a tuple of a text and calls, a Reply, or what makes one of the request's body."""

    def answer(body: JSON) -> Reply:
        turn = turns[sum(message["role"] == "assistant" for message in body["messages"])]
        if callable(turn):
            return turn(body)
        return turn if isinstance(turn, Reply) else says(body, *turn)

    app.set_replies()
    app.upstream.answer = answer


def then_rains(body: JSON) -> Reply:
    """The answer behind the result of a tool; to any other message it rains.

    A client that never saw a call tells the turn with it and the answer as one, so turns cannot be counted here.
    """
    return says(body, "It is cloudy." if body["messages"][-1]["role"] == "tool" else "It rains.")


@pytest.fixture(scope="module")
def app():
    with app_server() as server:
        yield server


def assert_told(told: JSON, text: str, *, tools: tuple[str, ...] = (), ran: tuple[int, ...] = ()) -> None:
    assert told["error"] is None
    assert (told["text"], told["tools"], told["ran"]) == (text, [*tools], [*ran])


def streams(app: AppServer) -> set[bool]:
    return {bool(request.json.get("stream")) for request in app.upstream.seen}


@each_client(tools="none")
def test_a_plain_answer(app: AppServer, run: ClientRun):
    set_turns(app, ("It is cloudy.",))
    told = run.told(app)
    assert_told(told, "It is cloudy.")
    assert streams(app) == {run.mode == "streamed"}
    assert app.tools.calls == []


@each_client(tools="own")
def test_a_tool_of_toolways_is_run_unseen(app: AppServer, run: ClientRun):
    set_turns(app, ("Let me look. ", OURS), ("It is cloudy.",))
    told = run.told(app)
    assert_told(told, "Let me look. It is cloudy.")
    assert told["usage"] == 14  # the last prompt, and what both rounds wrote
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]


@each_client(tools="own", always=True, every=True)
def test_a_turn_that_calls_both_tools(app: AppServer, run: ClientRun):
    set_turns(app, ("", OURS, THEIRS), ("", {**OURS, "id": "call_3"}), ("It is cloudy, and 42.",))
    told = run.told(app)
    assert_told(told, "It is cloudy, and 42.", tools=("double",), ran=(21,))
    assert [name for name, _ in app.tools.calls] == ["get_weather", "get_weather"]
    messages = app.upstream.seen[1].json["messages"][-3:]
    assert [call["id"] for call in messages[0]["tool_calls"]] == ["call_1", "call_2"]
    assert [message["tool_call_id"] for message in messages[1:]] == ["call_1", "call_2"]
    assert ("cloudy" in messages[1]["content"], "42" in messages[2]["content"]) == (True, True)


@each_client(tools="never", apis=("responses",), always=True, every=True)
def test_a_declared_server_whose_calls_run_unasked(app: AppServer, run: ClientRun):
    set_turns(app, ("Let me look. ", OURS), then_rains, then_rains)
    told = run.told(app, *QUESTIONS)
    assert_told(told, "Let me look. It is cloudy.It rains.", tools=shown(run, "get_weather"))
    assert told["asked"] == []
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    assert_goes_on(app, run, sees_call=sends_calls(run))


@each_client(tools="approve", apis=("responses",), always=True, every=True)
def test_a_declared_server_whose_calls_the_user_approves(app: AppServer, run: ClientRun):
    set_turns(app, ("Let me look. ", OURS), ("It is cloudy.",), ("It rains.",))
    told = run.told(app, *QUESTIONS)
    tools = shown(run, "get_weather")
    assert_told(told, "Let me look. It is cloudy.It rains.", tools=tools)
    assert tuple(told["asked"]) == tools
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    assert_goes_on(app, run, sees_call=sends_calls(run))


@each_client(tools="deny", apis=("responses",), always=True, every=True)
def test_a_declared_server_whose_calls_the_user_denies(app: AppServer, run: ClientRun):
    set_turns(app, ("Let me look. ", OURS), ("As you wish.",), ("It rains.",))
    told = run.told(app, *QUESTIONS)
    assert_told(told, "Let me look. As you wish.It rains.")
    assert tuple(told["asked"]) == shown(run, "get_weather")
    assert app.tools.calls == []
    assert_goes_on(app, run, sees_call=sends_calls(run))


@each_client(tools="none", apis=("responses",), always=True, every=True)
def test_a_second_question_goes_on_from_the_first(app: AppServer, run: ClientRun):
    def first(body: JSON) -> Reply:
        return says(body, "Let me look. ", OURS, reasoning="Where is Paris?")

    set_turns(app, first, then_rains, then_rains)
    told = run.told(app, *QUESTIONS)
    assert_told(told, "Let me look. It is cloudy.It rains.")
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    assert_goes_on(app, run, sees_call="previous" in run.client.manner)


def sends_calls(run: ClientRun) -> bool:
    """Whether the model sees calls of a declared server again."""
    return run.client.name != "ai-sdk unstored"


def shown(run: ClientRun, name: str) -> tuple[str, ...]:
    """How the client calls a tool of a declared server."""
    return (f"mcp.{name}",) if run.client.name.startswith("ai-sdk") else (name,)


def assert_goes_on(app: AppServer, run: ClientRun, *, sees_call: bool) -> None:
    """The last question stands behind all that the model saw and said before, or all but the call."""
    *_, before, last = (without_ids(request.json["messages"]) for request in app.upstream.seen)
    if sees_call:
        assert last[: len(before)] == before
    else:
        assert [message["role"] for message in last] == ["user", "assistant", "user"]
        assert last[1]["content"] == "Let me look. It is cloudy."
        # LangChain reads no reasoning_text from a stream, and so has nothing to send again but the sealed content.
        lost = (run.client.name, run.mode) == ("langchain-openai items", "streamed")
        assert last[1].get("reasoning_content") == (None if lost else before[1].get("reasoning_content"))
    assert (last[-1]["role"], last[-1]["content"]) == ("user", QUESTIONS[-1])


def without_ids(messages: list[JSON]) -> list[JSON]:
    """Whoever sends items knows calls by the ids of the items."""
    return [
        {
            **{name: value for name, value in message.items() if name != "tool_call_id"},
            "tool_calls": [call["function"] for call in message.get("tool_calls", ())],
        }
        for message in messages
    ]


@each_client(tools="own")
def test_a_refusal_in_round_1(app: AppServer, run: ClientRun):
    set_turns(app, json_reply(REFUSED, 400))
    told = run.told(app)
    assert told["error"]["status"] == 400, told
    assert "no such model" in told["error"]["message"]
    assert len(app.upstream.seen) == 1


@each_client(tools="own")
def test_a_model_server_that_dies_in_round_2(run: ClientRun):
    streamed = run.mode == "streamed"
    half = sse(chunk(role="assistant", content="It is"), done=False).parts
    with app_server() as app:  # of its own: several clients send the same bytes, and would share the results
        set_turns(app, ("Let me look. ", OURS), Reply(half if streamed else [b'{"id":'], cut=True))
        told = run.told(app)
    assert "connection to the model server broke" in told["error"]["message"]
    assert streamed or told["error"]["status"] == 502
    assert (told["text"], told["tools"]) == ("Let me look. It is" if streamed else "", [])
    assert len(app.tools.calls) == 1


@each_client(tools="own", modes=("whole",), names=RETRYING)
def test_a_client_that_asks_again_by_itself_gets_an_answer(run: ClientRun):
    with app_server() as app:
        first, last = says({}, "Let me look. ", OURS), says({}, "It is cloudy.")
        app.set_replies(first, json_reply(REFUSED, 500), last)
        assert_told(run.told(app), "Let me look. It is cloudy.")
    assert len(app.tools.calls) == 1


@each_client(tools="own", modes=("streamed",))
def test_a_slow_tool(run: ClientRun):
    gate = Gate()

    async def slow(_: JSON) -> str:
        await gate()
        return "cloudy"

    with app_server(tools=ToolService(get_weather=slow), keepalive_interval=0.05) as app:
        set_turns(app, ("", OURS), ("It is cloudy.",))
        with run.begun(app) as answer:
            gate.wait_for_arrival()
            hear_comments(app, 20)
            gate.open()
            assert_told(answer.told(), "It is cloudy.")


def hear_comments(app: AppServer, number: int) -> None:
    """Wait with a second request at the same gate, so that the first hears about as many."""
    body = {"model": "mock", "messages": QUESTION, "stream": True}
    heard = b""
    with httpx2.stream("POST", f"{app.url}/v1/chat/completions", json=body) as answer:
        for part in answer.iter_bytes():
            heard += part
            if heard.count(KEEP_ALIVE) >= number:
                return
