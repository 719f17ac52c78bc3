"""/v1/messages over HTTP: what the model server is asked, errors, repeated requests, servers that requests name."""

from __future__ import annotations

import httpx2
import pytest

from tests.integration.messages.asking import BOTH, KEY, QUESTION, ask, post, sent
from tests.support.app_server import AppServer, app_server
from tests.support.messages import check_error, check_message, events_of, read_message
from tests.support.model_turns import ModelTurn, set_turns
from tests.support.upstream import OUT_OF_MEMORY, Reply, chunk, json_reply, sse, tool_call

PARIS = tool_call("get_weather", '{"city":"Paris"}', id="call_a")
OVERFLOW = {
    "message": "This model's maximum context length is 32768 tokens. However, your messages resulted in 40000 tokens.",
    "type": "invalid_request_error",
    "code": "context_length_exceeded",
}


@BOTH
def test_what_the_model_server_is_asked(app: AppServer, streamed: bool):
    set_turns(app, ModelTurn(text="Cloudy."))
    ask(
        app,
        streamed=streamed,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        tools=[
            {"name": "theirs", "description": "Theirs.", "input_schema": {"type": "object"}, "strict": True},
            {"name": "hidden", "input_schema": {"type": "object"}, "defer_loading": True},
            {"type": "bash_20250124", "name": "bash"},
            {"type": "web_search_20260318", "name": "web_search"},
        ],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        temperature=0.5,
        top_k=3,
        thinking={"type": "adaptive"},
        output_config={
            "effort": "max",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
            "task_budget": 3,
        },
        metadata={"user_id": "x" * 65},
        context_management={"edits": []},
        service_tier="auto",
        something_of_next_year=[1],
    )
    body = sent(app)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    names = [tool["function"]["name"] for tool in body["tools"]]
    assert names == ["theirs", "bash", "get_weather", "list_cities"]
    assert body["tools"][0]["function"]["strict"] is True
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert (body["stop"], body["temperature"], body["top_k"]) == (["END"], 0.5, 3)
    assert body["reasoning_effort"] == "high"
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert len(body["user"]) == 64
    assert body.keys() <= {
        "model", "messages", "tools", "tool_choice", "parallel_tool_calls", "stop", "temperature", "top_k",
        "max_tokens", "reasoning_effort", "response_format", "user", "stream", "stream_options",
    }  # fmt: skip


def test_a_key_goes_to_the_model_server_as_a_bearer(app: AppServer):
    set_turns(app, ModelTurn(text="Hi."))
    headers = {"x-api-key": "sk-x", "anthropic-beta": "what-2030-01-01", "anthropic-version": "2026-10-21"}
    assert post(app, {"max_tokens": 5}, "?beta=true", **headers).status_code == 200
    seen = app.upstream.seen[-1]
    assert seen.header(b"authorization") == b"Bearer sk-x"
    assert (seen.header(b"x-api-key"), seen.header(b"anthropic-beta"), seen.query) == (None, None, b"")


def test_dialects_on_one_connection_have_each_their_own_caller(app: AppServer):
    set_turns(app, *[ModelTurn(text="Hi.")] * 4)
    body = {"model": "mock", "input": "Hi", "messages": QUESTION, "max_tokens": 5}
    with httpx2.Client(base_url=app.url, headers={"x-api-key": "sk-x"}, timeout=60) as client:
        for path in ("responses", "messages", "messages", "responses"):
            assert client.post(f"/v1/{path}", json=body).status_code == 200
    seen = [(one.header(b"authorization"), one.header(b"x-api-key")) for one in app.upstream.seen]
    theirs, ours = (None, b"sk-x"), (b"Bearer sk-x", None)
    assert seen == [theirs, ours, ours, theirs]


def test_a_tool_that_a_reference_names_is_offered_behind_all_others(app: AppServer):
    set_turns(app, ModelTurn(text="Found."))
    tools = [
        {"name": "late", "input_schema": {"type": "object"}, "defer_loading": True},
        {"name": "placeholder", "input_schema": {"type": "object"}, "defer_loading": True},
        {"name": "search", "input_schema": {"type": "object"}},
    ]
    use = {"type": "tool_use", "id": "a", "name": "search", "input": {}}
    found = {
        "type": "tool_result",
        "tool_use_id": "a",
        "content": [{"type": "tool_reference", "tool_name": "late"}],
    }
    ask(
        app,
        tools=tools,
        messages=[
            *QUESTION,
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [found]},
        ],
    )
    names = [tool["function"]["name"] for tool in sent(app)["tools"]]
    assert names == ["search", "late", "get_weather", "list_cities"]
    assert '"name":"late"' in sent(app)["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_a_refusal_of_the_model_server_in_anthropics_words(app: AppServer, status: int, kind: str):
    set_turns(app, json_reply({"error": {"message": "not today"}}, status, [(b"retry-after", b"7")]))
    answer = post(app, {"max_tokens": 5})
    assert answer.status_code == (529 if status == 503 else status)
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["request-id"] == answer.json()["request_id"]
    assert "not today" in check_error(answer.json())
    assert answer.json()["error"]["type"] == kind


@BOTH
def test_a_conversation_that_is_too_long_is_told_as_claude_code_knows_it(app: AppServer, streamed: bool):
    set_turns(app, json_reply({"error": OVERFLOW}, 400))
    answer = post(app, {"max_tokens": 5, "stream": streamed, "tool_choice": {"type": "none"}})
    assert answer.status_code == 400
    assert check_error(answer.json()) == "prompt is too long: 40000 tokens > 32768 maximum"


def test_a_document_that_the_model_server_does_not_take(app: AppServer):
    set_turns(app, json_reply({"error": {"message": "unsupported content[].type"}}, 400))
    source = {"type": "base64", "media_type": "application/pdf", "data": "aaaa"}
    content = [{"type": "document", "source": source}]
    answer = post(app, {"max_tokens": 5, "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert "send its text instead" in check_error(answer.json())
    part = sent(app)["messages"][-1]["content"][0]
    assert part["file"]["file_data"] == "data:application/pdf;base64,aaaa"


def test_an_option_that_the_model_server_does_not_know_is_left_out_from_then_on(app: AppServer):
    unknown = json_reply({"error": {"message": "Unrecognized request argument: reasoning_effort"}}, 400)
    set_turns(app, unknown, ModelTurn(text="Hi."))
    assert ask(app, model="no-effort", output_config={"effort": "high"})["stop_reason"] == "end_turn"
    assert ["reasoning_effort" in sent(app, number) for number in (0, 1)] == [True, False]
    ask(app, model="no-effort", output_config={"effort": "high"})
    assert len(app.upstream.seen) == 3
    assert "reasoning_effort" not in sent(app)


def test_more_tokens_than_the_model_has_are_no_reason_to_fail(app: AppServer):
    words = "'max_tokens' is too large: 32000. This model's maximum context length is 32768 tokens"
    set_turns(app, json_reply({"error": {"message": words}}, 400), ModelTurn(text="Hi."))
    assert ask(app, max_tokens=32000, model="narrow")["stop_reason"] == "end_turn"
    assert "max_tokens" not in sent(app)


def test_a_stream_that_breaks_behind_a_tool_goes_on_as_a_whole_answer(app: AppServer):
    set_turns(app, ModelTurn(text="Look. ", calls=(PARIS,)), OUT_OF_MEMORY, ModelTurn(text="Cloudy."))
    question = [{"role": "user", "content": "What breaks?"}]
    answer = post(app, {"max_tokens": 5, "stream": True, "messages": question}, **KEY)
    *_, last = events_of(answer.text)
    assert "out of memory" in check_error(last)
    assert b"ping" in answer.content
    message = ask(app, messages=question, max_tokens=5)
    assert message["content"] == [{"type": "text", "text": "Look. Cloudy."}]
    assert len(app.tools.calls) == 1
    ask(app, messages=question, max_tokens=5)
    assert len(app.upstream.seen) == 4


def test_an_error_inside_a_stream(app: AppServer):
    set_turns(app, sse(chunk(content="Hal"), {"error": {"message": "CUDA error", "code": 500}}, done=False))
    answer = post(app, {"max_tokens": 5, "stream": True})
    message = read_message(answer.text)
    assert message["content"] == [{"type": "text", "text": "Hal"}]
    assert "CUDA error" in check_error(message["error"])


@BOTH
def test_a_web_page_in_place_of_an_answer(app: AppServer, streamed: bool):
    page = Reply([b"<html><title>Bad gateway</title></html>"], 502, [(b"content-type", b"text/html")])
    set_turns(app, page)
    answer = post(app, {"max_tokens": 5, "stream": streamed})
    assert answer.status_code == 502
    assert "web page: Bad gateway" in check_error(answer.json())


@BOTH
def test_an_answer_of_reasoning_alone(app: AppServer, streamed: bool):
    set_turns(app, ModelTurn(reasoning="Hm."))
    message = ask(app, streamed=streamed, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [block["type"] for block in message["content"]] == ["thinking"]
    assert ask(app, streamed=streamed)["content"] == [{"type": "text", "text": ""}]


@BOTH
def test_rounds_that_the_client_was_shown_are_not_put_back_again(streamed: bool):
    with app_server(replay=True) as app:
        label = app.settings.tools.endpoints[0].label
        named = {"mcp_servers": [{"type": "url", "name": label, "url": "toolway:"}]}
        set_turns(
            app, ModelTurn(text="Look. ", calls=(PARIS,)), ModelTurn(text="Cloudy."), ModelTurn(text="Yes.")
        )
        message = ask(app, streamed=streamed, **named)
        history = [*QUESTION, {"role": "assistant", "content": message["content"]}, *QUESTION]
        ask(app, streamed=streamed, messages=history, **named)
        roles = [m["role"] for m in sent(app)["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_ids_of_calls_come_once_whatever_the_model_calls_them(app: AppServer):
    theirs = tool_call("theirs", "{}", id="call_0")
    tools = [{"name": "theirs", "input_schema": {"type": "object"}}]
    header = {"x-toolway-tools": "none"}
    ids = set()
    for streamed in (True, False):
        set_turns(app, ModelTurn(calls=(theirs,)))
        answer = post(app, {"max_tokens": 5, "tools": tools, "stream": streamed}, **header)
        message = read_message(answer.text) if streamed else check_message(answer.json())
        ids.add(message["content"][0]["id"])
    assert len(ids) == 2


SEARCHES = {
    "tool_search_tool_bm25": '{"query":"send a letter by mail"}',
    "tool_search_tool_regex": '{"pattern":"weather_on|send.*letter"}',
}


@BOTH
@pytest.mark.parametrize("name", SEARCHES)
def test_the_model_searches_deferred_tools(app: AppServer, streamed: bool, name: str):
    tools = [
        {"type": f"{name}_20251119", "name": name},
        {"name": "send_letter", "description": "Sends a letter.", "input_schema": {}, "defer_loading": True},
        {"name": "bake_bread", "description": "Bakes bread.", "input_schema": {}, "defer_loading": True},
    ]
    find = ModelTurn(calls=(tool_call(name, SEARCHES[name], id="call_0"),))
    send = ModelTurn(calls=(tool_call("send_letter", "{}", id="call_0"),))
    set_turns(app, find, send, ModelTurn(text="Sent."))
    message = ask(app, streamed=streamed, tools=tools)
    search, found, use = message["content"]
    assert (search["type"], search["name"]) == ("server_tool_use", name)
    assert found["tool_use_id"] == search["id"]
    assert found["content"]["tool_references"] == [{"type": "tool_reference", "tool_name": "send_letter"}]
    assert (use["type"], use["name"]) == ("tool_use", "send_letter")
    names = [[tool["function"]["name"] for tool in sent(app, n)["tools"]] for n in (0, 1)]
    assert names[0] == ["get_weather", "list_cities", name]
    assert names[1] == ["send_letter", "get_weather", "list_cities", name]
    history = [
        *QUESTION,
        {"role": "assistant", "content": message["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use["id"], "content": "ok"}]},
    ]
    assert ask(app, streamed=streamed, tools=tools, messages=history)["stop_reason"] == "end_turn"
    roles = [m["role"] for m in sent(app)["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]
    assert '"name":"send_letter"' in sent(app)["messages"][2]["content"]
    assert "send_letter" in [tool["function"]["name"] for tool in sent(app)["tools"]]


def test_tokens_are_counted_with_our_tools(app: AppServer):
    counts = [
        post(app, {"tools": tools}, "/count_tokens").json()["input_tokens"]
        for tools in ([], [{"name": "theirs", "input_schema": {"type": "object"}}])
    ]
    assert 0 < counts[0] < counts[1]


def test_models_as_anthropics_clients_expect_them(app: AppServer):
    listed = {
        "object": "list",
        "data": [{"id": "mock", "object": "model", "created": 0, "max_model_len": 4096}],
    }
    app.upstream.models = json_reply(listed)
    version = {"anthropic-version": "2023-06-01"}
    page = httpx2.get(f"{app.url}/v1/models?limit=1", headers=version).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, "mock", "mock")
    (model,) = page["data"]
    assert (model["type"], model["display_name"], model["max_input_tokens"]) == ("model", "mock", 4096)
    assert model["created_at"] == "1970-01-01T00:00:00Z"
    rest = httpx2.get(f"{app.url}/v1/models?after_id=mock", headers=version).json()
    assert [model["id"] for model in rest["data"]] == ["claude-mock"]
    assert httpx2.get(f"{app.url}/v1/models/claude-mock", headers=version).json()["id"] == "claude-mock"
    missing = httpx2.get(f"{app.url}/v1/models/moon", headers=version)
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
    plain = httpx2.get(f"{app.url}/v1/models").json()
    assert [model["id"] for model in plain["data"]] == ["mock", "claude-mock"]
    app.upstream.models = None


@pytest.mark.parametrize(
    ("asked", "given"), [("claude-mock", "mock"), ("claude-haiku-9", "small"), ("mock", "mock")]
)
def test_an_alias_stands_for_a_model(app: AppServer, asked: str, given: str):
    set_turns(app, ModelTurn(text="Hi."))
    assert ask(app, model=asked)["model"] == asked
    assert sent(app)["model"] == given


def test_without_a_key_the_error_is_anthropics():
    with app_server(api_keys="right") as app:
        answer = post(app, {"max_tokens": 5}, **{"x-api-key": "wrong"})
        assert answer.status_code == 401
        check_error(answer.json())
        assert answer.json()["error"]["type"] == "authentication_error"
        set_turns(app, ModelTurn(text="Hi."))
        assert post(app, {"max_tokens": 5}, **{"x-api-key": "right"}).status_code == 200
        assert app.upstream.seen[-1].header(b"authorization") is None


BAD = {
    "not valid JSON": b"{",
    "must be a JSON object": b"[]",
    "nested deeper": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
    "Missing required parameter: 'model'": {"model": None},
    "Missing required parameter: 'max_tokens'": {},
    "messages must be a list": {"max_tokens": 5, "messages": "Hi"},
    "stream must be true or false": {"max_tokens": 5, "stream": "yes"},
    "max_tokens must be a whole number": {"max_tokens": "5"},
    "system must be": {"max_tokens": 5, "system": 3},
    "tools[0].input_schema must be": {"max_tokens": 5, "tools": [{"name": "f", "input_schema": 3}]},
    "need a model of Anthropic's": {"max_tokens": 5, "tools": [{"type": "computer_20251124", "name": "c"}]},
    "Supported values are": {"max_tokens": 5, "tool_choice": {"type": "maybe"}},
    "tool_choice.name": {"max_tokens": 5, "tool_choice": {"type": "tool"}},
    "must be of the type json_schema": {"max_tokens": 5, "output_config": {"format": {"type": "xml"}}},
    "none of mcp_servers": {"max_tokens": 5, "tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]},
    "stop_sequences must be": {"max_tokens": 5, "stop_sequences": "END"},
}


@pytest.mark.parametrize("words", BAD)
def test_a_body_that_is_wrong_is_told_in_words(app: AppServer, words: str):
    given = BAD[words]
    raw = given if isinstance(given, bytes) else None
    answer = httpx2.post(f"{app.url}/v1/messages", content=raw) if raw else post(app, given)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert words in check_error(answer.json())


@pytest.mark.parametrize("path", ["/v1/v1/messages", "/messages", "/v1//messages/", "/V1/Messages"])
def test_a_path_that_is_spelled_otherwise(app: AppServer, path: str):
    set_turns(app, ModelTurn(text="Hi."))
    body = {"model": "mock", "max_tokens": 5, "messages": QUESTION}
    check_message(httpx2.post(app.url + path, json=body).json())
    check_error(httpx2.post(app.url + path, json={}).json())


def test_other_methods_are_not_allowed_and_routes_below_are_not_found(app: AppServer):
    not_allowed = httpx2.get(f"{app.url}/v1/messages")
    assert (not_allowed.status_code, not_allowed.headers["allow"]) == (405, "POST")
    missing = httpx2.post(f"{app.url}/v1/messages/batches")
    assert missing.status_code == 404
    for answer in (not_allowed, missing):
        check_error(answer.json())
