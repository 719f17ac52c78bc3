"""What a request may ask of Toolway itself: which tools, which limits; what /v1/models shows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.upstream import Reply, call_stream, json_reply, text_stream, tool_call, whole
from toolway.access.keys import hash_of

MODELS = {"object": "list", "data": [{"id": "qwen3", "object": "model", "owned_by": "llamacpp"}]}
PROFILES = '{"towns": ["list_*"], "none": []}'
THEIRS = {"type": "function", "function": {"name": "theirs", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def app():
    with app_server(endpoints=None, profiles=PROFILES) as server:
        yield server


def ask(app: AppServer, *replies: Reply, headers: dict[str, str] | None = None, **body: Any) -> list[Any]:
    """The requests that the model server saw."""
    app.upstream.replies = list(replies) or [whole({"content": "Hi"})]
    app.upstream.seen.clear()
    answer = app.ask(headers=headers, **body)
    assert answer.status_code == 200, answer.text
    return [seen for seen in app.upstream.seen if seen.method == "POST"]


def names(seen: Any) -> list[str]:
    return [tool["function"]["name"] for tool in seen.json.get("tools", ())]


def label(app: AppServer) -> str:
    return app.settings.tools.endpoints[0].label


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("none", []),
        ("get_weather", ["get_weather"]),
        ("get_*, nothing", ["get_weather"]),
        ("*", ["get_weather", "list_cities"]),
        ("{label}.list_*", ["list_cities"]),
        ("other.*", []),
    ],
)
def test_a_header_chooses_tools(app: AppServer, wanted: str, offered: list[str]):
    (seen,) = ask(app, headers={"X-Toolway-Tools": wanted.format(label=label(app))})
    assert names(seen) == offered
    assert seen.header(b"x-toolway-tools") is None
    assert ("tools" in seen.json) is bool(offered)


def test_mcp_entries_choose_servers_and_tools_and_stay_here(app: AppServer):
    entry = {"type": "mcp", "server_label": label(app), "allowed_tools": ["list_cities"]}
    (seen,) = ask(app, tools=[THEIRS, entry])
    assert names(seen) == ["theirs", "list_cities"]
    (seen,) = ask(app, tools=[{**entry, "allowed_tools": {"tool_names": ["get_weather"]}}])
    assert names(seen) == ["get_weather"]
    (seen,) = ask(app, tools=[{"type": "mcp", "server_label": label(app)}])
    assert names(seen) == ["get_weather", "list_cities"]


def test_an_mcp_entry_of_an_unknown_server_is_refused_with_the_known_ones(app: AppServer):
    answer = app.ask(tools=[{"type": "mcp", "server_label": "moon"}])
    assert answer.status_code == 400
    assert f"'moon' here; those that are: {label(app)}" in answer.json()["error"]["message"]


def test_a_profile_is_taken_by_the_models_name(app: AppServer):
    (seen,) = ask(app, model="qwen3@towns")
    assert (seen.json["model"], names(seen)) == ("qwen3", ["list_cities"])
    (seen,) = ask(app, model="qwen3@none")
    assert names(seen) == []


@pytest.mark.parametrize("model", ["qwen3@town", "qwen3@", "qwen3@towns@none2", "qwen3@Towns"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_profile_that_is_not_there_is_told_and_opens_no_tools(app: AppServer, model: str, stream: bool):
    app.set_replies(whole({"content": "Hi"}))
    for path, error in dialect_errors(app, model, stream):
        assert "those that are: none, towns." in error["message"], path
    assert [seen for seen in app.upstream.seen if seen.method == "POST"] == []


def dialect_errors(app: AppServer, model: str, stream: bool) -> list[tuple[str, Any]]:
    """What each dialect answers to a question to this model, which must be a 404 in its envelope."""
    question = [{"role": "user", "content": "Hi"}]
    found = []
    for path, body in (
        ("/v1/chat/completions", {"messages": question}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": question, "max_tokens": 9}),
    ):
        answer = httpx2.post(f"{app.url}{path}", json={"model": model, "stream": stream, **body})
        assert answer.status_code == 404, (path, answer.text)
        found.append((path, answer.json()["error"]))
    return found


def test_a_key_is_told_of_the_profiles_that_have_tools_for_it(tmp_path: Path):
    keys = {"anna": {"hash": hash_of("anna"), "tools": ["get_*"]}}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {}, "keys": keys}))
    with app_server(config=str(file), profiles='{"towns": ["list_*"], "sky": ["*weather"]}') as app:
        headers = {"Authorization": "Bearer anna"}
        told = [app.ask(model="m@town", headers=headers)]
        told += [
            httpx2.post(f"{app.url}{path}", json={}, headers=headers)
            for path in ("/mcp/town", "/tools/town/x")
        ]
        assert [answer.status_code for answer in told] == [404] * 3
        assert all("There is no profile 'town' here; those that are: sky." in answer.text for answer in told)


def test_a_profile_behind_one_of_several_models_is_refused(app: AppServer):
    answer = app.ask(models=["qwen3", "qwen3@towns"])
    assert answer.status_code == 400
    assert "only the name in model can have" in answer.json()["error"]["message"]


def test_a_models_own_name_may_look_as_if_it_had_a_profile():
    listed = json_reply({"object": "list", "data": [{"id": "claude@20240229"}, {"id": "qwen3"}]})
    for options in ({"profiles": PROFILES}, {}):
        with app_server(whole({"content": "Hi"}), model_aliases='{"user@own": "x@y"}', **options) as app:
            app.upstream.models = listed
            for model, sent in (("claude@20240229", "claude@20240229"), ("user@own", "x@y")):
                (seen,) = ask(app, model=model)
                assert seen.json["model"] == sent
            assert app.ask(model="qwen3@lost").status_code == 404
            assert app.ask(model="gone@20250101").status_code == (404 if options else 200)


def test_without_profiles_a_suffix_at_a_known_model_is_told():
    with app_server(whole({"content": "Hi"})) as app:
        app.upstream.models = json_reply(MODELS)
        answer = app.ask(model="qwen3@towns")
        assert "There is no profile 'towns' here; those that are: none." in answer.json()["error"]["message"]
        assert app.ask(model="@cf/meta/llama").status_code == 200


def test_a_misspelt_header_is_told_and_each_of_several_narrows(app: AppServer):
    answer = app.ask(headers={"X-Toolway-Tool": "none"})
    assert answer.status_code == 400
    assert "no header x-toolway-tool; those that are: " in answer.json()["error"]["message"]
    app.set_replies(whole({"content": "Hi"}))
    twice = [("X-Toolway-Tools", "get_*"), ("X-Toolway-Tools", "*")]
    httpx2.post(f"{app.url}/v1/chat/completions", json={"model": "m", "messages": QUESTION}, headers=twice)
    assert names(app.upstream.seen[-1]) == ["get_weather"]


def test_all_choices_narrow_and_none_widens(app: AppServer):
    (seen,) = ask(app, model="qwen3@towns", headers={"X-Toolway-Tools": "get_*"})
    assert names(seen) == []


def test_profiles_appear_among_the_models(app: AppServer):
    app.upstream.replies = [json_reply(MODELS)]
    listed = app.client().models.list()
    assert [model.id for model in listed] == ["qwen3", "qwen3@towns", "qwen3@none"]
    app.upstream.replies = [json_reply({"error": {"message": "no"}}, 401)]
    with pytest.raises(openai.AuthenticationError):
        app.client().models.list()


def test_without_profiles_the_list_is_passed_on_as_it_is():
    with app_server(json_reply(MODELS)) as app:
        assert httpx2.get(f"{app.url}/v1/models").json() == MODELS


def test_headers_lower_the_limits_and_never_raise_them():
    calls = [call_stream(tool_call(id=f"c{n}", arguments=f'{{"city":"{n}"}}')) for n in range(9)]
    for limit, ran in [("1", 1), ("99", 3), ("0", 0)]:
        with app_server(*calls[: ran + 1], text_stream("So far."), max_rounds=3) as app:
            app.ask(stream=True, headers={"X-Toolway-Max-Rounds": limit})
            assert len(app.tools.calls) == ran
            assert "tools" not in app.upstream.seen[-1].json
            assert app.upstream.seen[-1].header(b"x-toolway-max-rounds") is None


@pytest.mark.parametrize("value", ["", "many", "-1", "1e9", "nan"])
def test_a_limit_that_is_no_number_is_refused(app: AppServer, value: str):
    answer = app.ask(headers={"X-Toolway-Max-Calls": value})
    assert answer.status_code == 400
    assert "x-toolway-max-calls must be a number" in answer.json()["error"]["message"]


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(
    ("owner", "first", "choice"),
    [
        ("llamacpp", ["get_weather"], "required"),
        ("vllm", ["theirs", "get_weather", "list_cities"], NAMED),
        ("somebody", ["theirs", "get_weather", "list_cities"], NAMED),
    ],
)
def test_a_named_tool_is_alone_in_round_1_where_the_server_does_not_obey(
    owner: str, first: list[str], choice: Any
):
    def answer(body: Any) -> Reply:
        done = any(m["role"] == "tool" for m in body["messages"])
        return whole({"content": "Cloudy."}) if done else whole({"tool_calls": [tool_call()]}, "tool_calls")

    with app_server() as app:
        app.upstream.models = json_reply({"data": [{"id": "mock", "owned_by": owner}]})
        app.upstream.answer = answer
        app.ask(tools=[THEIRS], tool_choice=NAMED)
        seen = [s for s in app.upstream.seen if s.method == "POST"]
        assert (names(seen[0]), seen[0].json["tool_choice"]) == (first, choice)
        assert (names(seen[1]), seen[1].json["tool_choice"]) == (
            ["theirs", "get_weather", "list_cities"],
            "auto",
        )


def test_a_clients_named_tool_is_enforced_too():
    with app_server(whole({"tool_calls": [tool_call("theirs", "{}")]}, "tool_calls")) as app:
        app.upstream.models = json_reply({"data": [{"id": "mock", "owned_by": "llamacpp"}]})
        choice = {"type": "function", "function": {"name": "theirs"}}
        answer = app.ask(tools=[THEIRS], tool_choice=choice).json()
        (seen,) = [s for s in app.upstream.seen if s.method == "POST"]
        assert (names(seen), seen.json["tool_choice"]) == (["theirs"], "required")
        assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_an_unknown_named_tool_is_the_model_servers_to_judge():
    with app_server(whole({"content": "?"})) as app:
        choice = {"type": "function", "function": {"name": "nowhere"}}
        app.ask(tool_choice=choice)
        (seen,) = [s for s in app.upstream.seen if s.method == "POST"]
        assert seen.json["tool_choice"] == choice


def test_a_header_of_tools_that_says_nothing_is_refused(app: AppServer):
    assert app.ask(headers={"X-Toolway-Tools": ","}).status_code == 400
