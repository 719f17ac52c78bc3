"""Tools that are too many for a model: it searches them, and every one of them can be called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.answers import chunks_of, content_of
from tests.support.app_server import AppServer, app_server
from tests.support.servers import running
from tests.support.tools import CITY, ToolService, document
from tests.support.upstream import Reply, call_stream, json_reply, text_stream, tool_call, whole
from toolway.access.keys import hash_of

JSON = dict[str, Any]
SUBJECTS = [
    "invoice",
    "customer",
    "ticket",
    "repository",
    "picture",
    "song",
    "route",
    "contract",
    "flight",
    "recipe",
]
VERBS = {"create": "Creates", "list": "Lists", "delete": "Deletes", "export": "Exports", "share": "Shares"}


def many_tools(copies: int = 4) -> ToolService:
    """Some hundred tools, each with a long description; `get_weather` is one of them."""
    service = ToolService()
    operations: dict[str, JSON] = {"get_weather": CITY, "list_cities": {"type": "object", "properties": {}}}
    for subject in SUBJECTS:
        for verb in VERBS:
            for copy in range(copies):
                operations[f"{verb}_{subject}_{copy}"] = {
                    "type": "object",
                    "properties": {"id": {"type": "integer", "description": f"The {subject}"}},
                    "required": ["id"],
                }
                service.behaviours[f"{verb}_{subject}_{copy}"] = _echo
    service.document = document(operations)
    for path, item in service.document["paths"].items():
        verb, _, rest = path.strip("/").partition("_")
        item["post"]["description"] = (
            f"{VERBS.get(verb, 'Reads')} {rest}. " + "It has many more details. " * 10
        )
    service.document["paths"]["/get_weather"]["post"]["description"] = (
        "The weather of a city, and its forecast."
    )
    return service


async def _echo(arguments: JSON) -> JSON:
    return {"done": arguments}


@contextmanager
def searching(*replies: Reply, copies: int = 4, **settings: Any) -> Iterator[AppServer]:
    with app_server(*replies, tools=many_tools(copies), **{"tool_search": "on", **settings}) as app:
        yield app


def names(body: JSON) -> list[str]:
    return [tool["function"]["name"] for tool in body.get("tools", ())]


def offers(app: AppServer) -> list[list[str]]:
    return [names(seen.json) for seen in app.upstream.seen]


def results(body: JSON) -> list[str]:
    return [message["content"] for message in body["messages"] if message["role"] == "tool"]


def search(query: str, id: str = "call_s") -> JSON:
    return tool_call("search_tools", json.dumps({"query": query}), id=id)


def through(name: str, arguments: Any, id: str = "call_t") -> JSON:
    return tool_call("call_tool", json.dumps({"name": name, "arguments": arguments}), id=id)


META = ["search_tools", "call_tool"]


@pytest.mark.parametrize("way", ["append", "call"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_model_searches_and_calls_what_it_found(way: str, stream: bool):
    def script(body: JSON) -> Reply:
        turn = len(results(body))
        call = (
            [search("weather forecast"), through("get_weather", {"city": "Paris"})][turn]
            if turn < 2
            else None
        )
        if call is None:
            return text_stream("Cloudy.") if stream else whole({"content": "Cloudy."})
        return call_stream(call) if stream else whole({"tool_calls": [call]}, finish="tool_calls")

    with searching(tool_search_way=way) as app:
        app.upstream.answer = script
        answer = app.ask(stream=stream)
        text = (
            content_of(chunks_of(answer.text))
            if stream
            else answer.json()["choices"][0]["message"]["content"]
        )
        assert text == "Cloudy."
        assert app.tools.calls == [("get_weather", {"city": "Paris"})]
        found, ran = results(app.upstream.seen[-1].json)
        assert '"name":"get_weather"' in found and '"city"' in found
        assert "cloudy" in ran
        first, second, third = offers(app)
        assert first == META
        assert second == third
        assert second == ([*META, "get_weather"] if way == "append" else META)
        replayed = app.upstream.seen[-1].json["messages"][-2]["tool_calls"][0]["function"]
        assert replayed["name"] == "call_tool", "the model reads what it wrote"


def test_a_tool_that_was_not_loaded_runs_when_it_is_called_by_its_name():
    with searching(call_stream(tool_call("get_weather", '{"city": "Rome"}')), text_stream("Done.")) as app:
        app.ask(stream=True)
        assert app.tools.calls == [("get_weather", {"city": "Rome"})]
        assert offers(app) == [META, [*META, "get_weather"]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "delete_song_1", "arguments": {"id": "7"}}, "7"),
        ({"name": "delete_song_1", "arguments": '{"id": 7}'}, "7"),
        ({"tool": "delete_song_1", "parameters": {"id": 7}}, "7"),
        ({"name": "delete_song_1", "id": 7}, "7"),
        ({"name": "functions.delete_song_1", "arguments": {"id": 7}}, "7"),
        ({"name": "other__delete_song_1", "arguments": {"id": 7}}, "no tool named"),
        ({"name": "delete_song_1", "arguments": {"id": "x"}}, "Error"),
        ({"name": "delete_song_1", "arguments": "{"}, "Error"),
        ({"name": "delete_sonng_1", "arguments": {"id": 7}}, "Did you mean delete_song_1"),
        ({"name": "call_tool", "arguments": {}}, "Error"),
        ({"arguments": {"id": 7}}, "Error"),
        ({}, "Error"),
    ],
)  # fmt: skip
def test_arguments_through_call_tool_are_those_of_the_tool(arguments: JSON, expected: str):
    with searching(call_stream(tool_call("call_tool", json.dumps(arguments))), text_stream("Done.")) as app:
        app.ask(stream=True)
        (text,) = results(app.upstream.seen[-1].json)
        assert expected in text
        assert app.tools.calls == ([("delete_song_1", {"id": 7})] if expected == "7" else [])


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_tool_is_called_by_its_name_on_mcp_if_the_request_may_use_it(mode: str):
    public = {"city": "Rome"}
    calls = [
        through("api__get_weather", public)
        if mode == "on"
        else tool_call("api__get_weather", json.dumps(public)),
        tool_call("api__list_cities", "{}", id="c2"),
    ]
    service = ToolService()
    with (
        running(service, lifespan="off") as url,
        app_server(
            call_stream(*calls), text_stream("Done."), endpoints=f"api={url}", tool_search=mode
        ) as app,
    ):
        app.ask(stream=True, headers={"X-Toolway-Tools": "get_weather"})
        assert service.calls == [("get_weather", public)]
        assert "no tool named" in results(app.upstream.seen[-1].json)[1]


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_tools_that_fit_are_offered_as_ever(mode: str):
    bodies = []
    for settings in ({"tool_search": mode}, {"tool_search": "off", "tool_search_way": "call"}):
        with app_server(text_stream("Done."), **settings) as app:
            app.ask(stream=True)
            bodies.append([seen.body for seen in app.upstream.seen])
    assert bodies[0] == bodies[1]
    assert b"search_tools" not in bodies[0][0]


def models(**entry: Any) -> Reply:
    return json_reply({"object": "list", "data": [{"id": "mock", "object": "model", **entry}]})


CONTEXTS: dict[str, JSON] = {
    "llama.cpp with 4096": {"owned_by": "llamacpp", "meta": {"n_ctx": 4096}},
    "vLLM with 8192": {"owned_by": "vllm", "max_model_len": 8192},
    "Ollama": {"owned_by": "library"},
}


@pytest.mark.parametrize("server", CONTEXTS)
def test_tools_that_overflow_a_known_context_are_searched_from_the_start(server: str):
    with app_server(text_stream("Done."), tools=many_tools()) as app:
        app.upstream.models = models(**CONTEXTS[server])
        app.upstream.asides = {"/api/show": json_reply({"model_info": {"llama.context_length": 131_072}})}
        app.ask(stream=True)
        assert offers(app) == [META]
        assert len(app.upstream.seen[0].body) < 4096


def test_a_large_context_has_all_tools():
    with app_server(text_stream("Done."), tools=many_tools()) as app:
        app.upstream.models = models(owned_by="vllm", max_model_len=131_072)
        app.ask(stream=True)
        assert offers(app) == [sorted(names(app.upstream.seen[0].json))]
        assert len(offers(app)[0]) == 202


def answers(text: str, body: JSON) -> Reply:
    return text_stream(text) if body.get("stream") else whole({"content": text})


def refuses(message: str) -> Reply:
    return json_reply({"error": {"message": message, "type": "invalid_request_error"}}, 400)


def at_most_128(body: JSON) -> Reply:
    count = len(body.get("tools", ()))
    if count <= 128:
        return answers("Enough.", body)
    return refuses(f"Invalid 'tools': array too long. Expected maximum length 128, but got {count} tools.")


def within_4096(body: JSON) -> Reply:
    tokens = len(json.dumps(body)) // 4
    if tokens <= 4096:
        return answers("It fits.", body)
    return refuses(f"request ({tokens} tokens) exceeds the available context size (4096 tokens)")


@pytest.mark.parametrize("refusal", [at_most_128, within_4096], ids=["too many", "too long"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_tools_that_are_refused_are_searched_in_the_same_request_and_from_then_on(
    refusal: Callable[[JSON], Reply], stream: bool, caplog: pytest.LogCaptureFixture
):
    with app_server(tools=many_tools()) as app:
        app.upstream.answer = refusal
        assert app.ask(stream=stream).status_code == 200
        assert [len(offer) for offer in offers(app)] == [202, 2]
        assert "202 tools are too many" in caplog.text
        app.upstream.seen.clear()
        assert app.ask(stream=stream).status_code == 200
        assert offers(app) == [META], "what was learned is remembered"


@pytest.mark.parametrize(
    ("entry", "refused"),
    [({"owned_by": "llamacpp", "meta": {"n_ctx": 4096}}, 0), ({"owned_by": "me"}, 1)],
    ids=["a context that is known", "one that is not"],
)
def test_without_search_what_cannot_fit_is_shortened_before_it_is_refused_or_once_after_it(
    entry: JSON, refused: int, caplog: pytest.LogCaptureFixture
):
    with app_server(tools=many_tools(), tool_search="off") as app:
        app.upstream.models = models(**entry)
        app.upstream.answer = within_4096
        for _ in range(3):
            assert app.ask().json()["choices"][0]["message"]["content"] == "It fits."
        assert len(app.upstream.seen) == 3 + refused
        assert 20 < len(offers(app)[-1]) < 202
        assert "share_ticket_3" in caplog.text, "the operator reads which tools are left out"
        assert caplog.text.count("described in their first sentences") == 1


def test_only_what_the_request_may_use_is_found_or_named():
    replies = (
        call_stream(search("delete a song, list songs")),
        call_stream(through("delete_song_1", {"id": 1})),
    )
    with searching(*replies, text_stream("Done.")) as app:
        app.ask(stream=True, headers={"X-Toolway-Tools": "get_weather,list_*"})
        body = app.upstream.seen[-1].json
        found, refused = results(body)
        assert '"name":"list_song_0"' in found
        assert "delete_song" not in found + json.dumps(body["tools"])
        assert "there is no tool named 'delete_song_1'. Did you mean list_song_1" in refused
        assert app.tools.calls == []


def test_tools_that_are_always_offered_stay():
    with searching(text_stream("Done."), tool_search_always="get_*, *.list_cities") as app:
        app.ask(stream=True)
        assert offers(app) == [["get_weather", "list_cities", *META]]


def test_a_tool_that_tool_choice_names_is_offered():
    choice = {"type": "function", "function": {"name": "get_weather"}}
    with searching(text_stream("Done.")) as app:
        app.ask(stream=True, tool_choice=choice)
        assert offers(app) == [["get_weather", *META]]


def test_a_client_s_tools_and_names_are_its_own():
    mine = [{"type": "function", "function": {"name": name}} for name in ("search_tools", "mine")]
    with searching(call_stream(tool_call("search_tools", "{}"))) as app:
        answer = app.ask(stream=True, tools=mine)
        assert offers(app) == [["search_tools", "mine", "toolway_search_tools", "call_tool"]]
        assert '"name":"search_tools"' in answer.text


@pytest.mark.parametrize(("header", "searched"), [("on", True), ("off", False), ("AUTO", False)])
def test_a_request_may_choose(header: str, searched: bool):
    with app_server(text_stream("Done.")) as app:
        app.ask(stream=True, headers={"X-Toolway-Tool-Search": header})
        assert (offers(app) == [META]) is searched
        assert app.ask(headers={"X-Toolway-Tool-Search": "perhaps"}).status_code == 400


def test_a_profile_may_choose():
    profiles = {"all": {"tools": ["*"], "tool_search": "on"}, "few": ["get_*"]}
    with app_server(text_stream("Done."), profiles=json.dumps(profiles)) as app:
        for model in ("mock@all", "mock@few", "mock"):
            app.ask(stream=True, model=model)
        assert [len(offer) for offer in offers(app)] == [2, 1, 2]
        assert offers(app)[0] == META


@contextmanager
def labelled(*replies: Reply) -> Iterator[AppServer]:
    """Toolway with two servers of known labels."""
    service = ToolService()
    with (
        running(service, lifespan="off") as one,
        running(ToolService(), lifespan="off") as other,
        app_server(*replies, endpoints=f"tools={one},other={other}") as app,
    ):
        app.tools = service
        yield app


def test_servers_whose_loading_is_deferred_are_searched():
    entry = {"type": "mcp", "server_label": "tools", "require_approval": "never"}
    with labelled(text_stream("Done.")) as app:
        for more in ({}, {"defer_loading": True}):
            app.ask(stream=True, tools=[{**entry, "allowed_tools": ["get_weather"], **more}])
        both = [{**entry, "server_label": "other"}, {**entry, "defer_loading": True}]
        app.ask(stream=True, tools=both)
        assert offers(app) == [
            ["tools__get_weather"],
            META,
            ["other__get_weather", "other__list_cities", *META],
        ]


@pytest.mark.parametrize("approval", ["never", "always"])
def test_responses_search_what_is_deferred_and_ask_for_the_tool_that_is_meant(approval: str):
    entry = {"type": "mcp", "server_label": "tools", "defer_loading": True, "require_approval": approval}
    body: JSON = {"model": "mock", "tools": [entry, {"type": "tool_search"}], "input": "Weather in Paris?"}
    replies = [
        {"tool_calls": [search("weather")]},
        {"tool_calls": [through("tools__get_weather", {"city": "Paris"})]},
    ]
    with labelled(*(whole(m, finish="tool_calls") for m in replies), whole({"content": "Cloudy."})) as app:
        first = httpx2.post(f"{app.url}/v1/responses", json=body, timeout=60).json()
        if approval == "always":
            (request,) = [item for item in first["output"] if item["type"] == "mcp_approval_request"]
            assert (request["name"], json.loads(request["arguments"])) == ("get_weather", {"city": "Paris"})
            assert app.tools.calls == []
            answer = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
            body |= {"tools": [], "input": [answer], "previous_response_id": first["id"]}
            first = httpx2.post(f"{app.url}/v1/responses", json=body, timeout=60).json()
        assert first["output"][-1]["content"][0]["text"] == "Cloudy."
        assert app.tools.calls == [("get_weather", {"city": "Paris"})]
        assert offers(app)[0] == META


def test_a_key_may_choose(tmp_path: Path):
    keys = {"all": {"hash": hash_of("all"), "tool_search": "on"}, "few": {"hash": hash_of("few")}}
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"keys": keys}))
    with app_server(text_stream("Done."), config=str(config)) as app:
        for key, header in (("all", {}), ("few", {}), ("all", {"X-Toolway-Tool-Search": "off"})):
            app.ask(stream=True, headers={"Authorization": f"Bearer {key}", **header})
        assert [len(offer) for offer in offers(app)] == [2, 2, 2]
        assert [offer == META for offer in offers(app)] == [True, False, False]


QUERIES = ["weather", "delete songs", "share a recipe", "export contracts", "list flights"]


@pytest.mark.parametrize("way", ["append", "call"])
def test_ten_turns_of_a_conversation_begin_with_the_same_bytes(way: str):
    """The prompt of each request begins with the whole of the one before, but for tools that join at the end."""

    def script(body: JSON) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "user" and int(last["content"].split()[-1]) % 2:
            return call_stream(search(QUERIES[int(last["content"].split()[-1]) // 2]))
        return text_stream(f"Answer {len(body['messages'])}.")

    with searching(tool_search_way=way, replay="true") as app:
        app.upstream.answer = script
        messages: list[JSON] = [{"role": "system", "content": "Be kind."}]
        for turn in range(10):
            messages.append({"role": "user", "content": f"Question {turn}"})
            answer = app.ask(stream=True, messages=messages, headers={"Authorization": "Bearer me"})
            messages.append({"role": "assistant", "content": content_of(chunks_of(answer.text))})
        requests = [seen.json for seen in app.upstream.seen]
        assert len(requests) == 15
        for earlier, later in pairwise(requests):
            assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
            assert later["tools"][: len(earlier["tools"])] == earlier["tools"]
        assert len({json.dumps(request["tools"]) for request in requests}) == (1 if way == "call" else 6)


def test_what_one_caller_found_is_not_offered_to_another():
    with searching(call_stream(search("weather")), text_stream("Found."), tool_search_way="append") as app:
        talk = [{"role": "user", "content": "Hello"}]
        app.ask(stream=True, messages=talk, headers={"Authorization": "Bearer me"})
        talk += [{"role": "assistant", "content": "Found."}, {"role": "user", "content": "And now?"}]
        for key in ("me", "you"):
            app.ask(stream=True, messages=talk, headers={"Authorization": f"Bearer {key}"})
        assert [len(offer) for offer in offers(app)] == [2, 3, 3, 2]


def test_a_server_that_caches_prompts_keeps_its_list_of_tools():
    usage = {"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 90}}
    with searching() as app:
        app.set_replies(
            text_stream("Done.", usage=usage), call_stream(search("weather")), text_stream("Done.")
        )
        app.ask(stream=True)
        app.ask(stream=True)
        assert offers(app) == [META, META, META]


def test_the_catalogue_names_servers_and_tools_within_a_bound():
    with searching(text_stream("Done.")) as app:
        app.ask(stream=True)
        finder = app.upstream.seen[0].json["tools"][0]["function"]["description"]
        assert "(202): " in finder
        assert "create_invoice_0" in finder
        assert len(finder) < 6_500


def test_results_that_say_nothing_or_cannot_be_read_are_told_to_the_model():
    replies = [
        call_stream(search("xyzzy")),
        call_stream(tool_call("search_tools", "{}")),
        call_stream(tool_call("search_tools", '{"query": ["weather"], "limit": 99}')),
        text_stream("Done."),
    ]
    with searching(*replies) as app:
        app.ask(stream=True)
        nothing, missing, odd = results(app.upstream.seen[-1].json)
        assert "No tool fits 'xyzzy'" in nothing
        assert missing.startswith("Error")
        assert odd.startswith("Error")
