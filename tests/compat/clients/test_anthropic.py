"""Clients of Anthropic's API, unchanged: each says the same text, raises nothing, and shows no tool but its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compat.clients.installed import Client, ClientRun, missing
from tests.compat.clients.test_clients import OURS, QUESTIONS, THEIRS, USAGE, says, set_turns
from tests.support.app_server import AppServer, app_server
from tests.support.upstream import JSON, json_reply, tool_call

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def client(name: str, script: str, manner: str, **options: Any) -> Client:
    return Client(name=name, script=script, manner=manner, apis=("messages",), **options)


SDK = "python_anthropic.py"
AGENTS = "python_anthropic_agents.py"
CLIENTS = (
    client("anthropic-python create", SDK, "create"),
    client("anthropic-python stream", SDK, "stream", modes=("streamed",)),
    client("anthropic-python tool_runner", SDK, "tool_runner", tools=("own",)),
    client("anthropic-node create", "node_anthropic.mjs", "create"),
    client("anthropic-node toolRunner", "node_anthropic.mjs", "toolRunner", tools=("own",)),
    client("ai-sdk anthropic", "node_ai_sdk.mjs", "anthropic"),
    client("langchain-anthropic", AGENTS, "langchain"),
    client("litellm", "python_litellm.py", "anthropic"),
    client("pydantic-ai", AGENTS, "pydantic-ai"),
)
CONNECTOR = client("anthropic-python connector", SDK, "connector", tools=("never",))


def runs(tools: str, *clients: Client) -> Any:
    rows = [
        ClientRun(client=each, api="messages", mode=mode, tools=tools)
        for each in clients or CLIENTS
        for mode in each.modes
        if tools in each.tools
    ]
    return pytest.mark.parametrize("run", rows, ids=str)


@pytest.fixture(scope="module")
def app():
    with app_server() as server:
        yield server


@runs("none")
def test_a_plain_answer(app: AppServer, run: ClientRun):
    set_turns(app, ("It is cloudy.",))
    told = run.told(app)
    assert (told["text"], told["error"]) == ("It is cloudy.", None)


@runs("none")
def test_a_tool_of_toolways_is_run_unseen(app: AppServer, run: ClientRun):
    set_turns(app, ("Let me look. ", OURS), ("It is cloudy.",))
    told = run.told(app)
    assert (told["text"], told["tools"], told["error"]) == ("Let me look. It is cloudy.", [], None)
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]


@runs("own")
def test_a_tool_of_the_clients_own(app: AppServer, run: ClientRun):
    set_turns(app, ("", {**THEIRS, "index": 0}), ("Forty-two.",))
    told = run.told(app)
    assert (told["tools"], told["ran"], told["error"]) == (["double"], [21], None)
    assert told["text"].endswith("Forty-two.")
    assert app.upstream.seen[1].json["messages"][-1]["content"] == "42"


@runs("own")
def test_a_turn_that_calls_both_tools(app: AppServer, run: ClientRun):
    set_turns(app, ("Wait. ", OURS, THEIRS), ("Both.",))
    told = run.told(app)
    assert (told["tools"], told["ran"], told["error"]) == (["double"], [21], None)
    assert app.tools.calls == [("get_weather", {"city": "Paris"})]
    *_, turn, ours, theirs = app.upstream.seen[1].json["messages"]
    assert [call["function"]["name"] for call in turn["tool_calls"]] == ["get_weather", "double"]
    assert ("cloudy" in ours["content"], theirs["content"]) == (True, "42")


@runs("none")
def test_a_second_question(app: AppServer, run: ClientRun):
    def thinks(body: JSON) -> Any:
        return says(body, "Cloudy.", reasoning="Where is Paris?")

    set_turns(app, thinks, ("It rains.",))
    told = run.told(app, *QUESTIONS)
    assert (told["text"], told["error"]) == ("Cloudy.It rains.", None)
    said = app.upstream.seen[1].json["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"]
    assert said[1]["content"] == "Cloudy."


@runs("none")
def test_a_refusal(app: AppServer, run: ClientRun):
    error = {"message": "no such model", "type": "invalid_request_error", "param": None, "code": None}
    set_turns(app, json_reply({"error": error}, 404))
    told = run.told(app)
    assert "no such model" in told["error"]["message"]


@runs("never", CONNECTOR)
def test_a_server_that_the_request_names_is_shown(app: AppServer, run: ClientRun):
    rome = tool_call("get_weather", '{"city":"Rome"}', id="call_2", index=1)
    set_turns(app, ("Look. ", OURS, rome), ("Cloudy.",), ("Still.",))
    told = run.told(app, *QUESTIONS)
    assert (told["text"], told["tools"]) == ("Look. Cloudy.Still.", ["get_weather", "get_weather"])
    assert told["error"] is None
    assert told["asked"] == ["get_weather", "list_cities"]  # what is sent back is not listed again
    results = ('{"city":"Rome","sky":"cloudy"}', '{"city":"Paris","sky":"cloudy"}')
    assert sorted(told["ran"]) == [len(result) for result in results]  # a stream has them as they come
    said = app.upstream.seen[2].json["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "tool", "assistant", "user"]
    assert len(app.tools.calls) == 2


@runs("none", *CLIENTS[:2])
def test_the_usage_is_the_model_servers(app: AppServer, run: ClientRun):
    set_turns(app, ("It is cloudy.",))
    assert run.told(app)["usage"] == USAGE["total_tokens"]
