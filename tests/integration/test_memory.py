"""What Toolway remembers between two requests: mixed turns, rounds behind an answer, results that were cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.answers import assert_one_clean_answer, calls_of, chunks_of, content_of
from tests.support.app_server import QUESTION, AppServer, app_server, serving
from tests.support.tools import JSON, ToolService
from tests.support.upstream import Reply, call_stream, chunk, json_reply, sse, text_stream, tool_call, whole
from toolway.conversation.call_ids import original_id, with_original_ids

THEIRS = {"type": "function", "function": {"name": "theirs", "parameters": {"type": "object"}}}
OURS = tool_call(id="ours")


def sent(app: AppServer) -> list[JSON]:
    """The messages that the model server saw last."""
    messages: list[JSON] = app.upstream.seen[-1].json["messages"]
    return messages


def roles(messages: list[JSON]) -> list[str]:
    return [message["role"] for message in messages]


def mixed_turn(app: AppServer, **options: Any) -> list[JSON]:
    """Play a mixed turn; the messages with which the client comes back."""
    app.upstream.replies = [
        whole({"content": "Both.", "tool_calls": [OURS, tool_call("theirs", "{}", "c", 1)]}, "tool_calls")
    ]
    app.upstream.seen.clear()
    message = app.ask(tools=[THEIRS], **options).json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert original_id(call["id"]) == "c" != call["id"]
    return [*QUESTION, message, {"role": "tool", "tool_call_id": call["id"], "content": "done"}]


def test_a_mixed_turn_is_put_together_again(store_url: str):
    with app_server(store=store_url) as app:
        back = mixed_turn(app)
        app.upstream.replies = [whole({"content": "Fine."})]
        app.post({"model": "mock", "messages": back, "tools": [THEIRS]})
        assert [m.get("tool_call_id") for m in sent(app)] == [None, None, "ours", "c"]


def test_another_credential_finds_nothing(store_url: str):
    with app_server(store=store_url) as app:
        back = mixed_turn(app, headers={"authorization": "Bearer one"})
        app.upstream.replies = [whole({"content": "Fine."})]
        body = {"model": "mock", "messages": back, "tools": [THEIRS]}
        app.post(body, headers={"authorization": "Bearer two"})
        assert sent(app) == with_original_ids(back)
        app.post(body, headers={"authorization": "Bearer one"})
        assert len(sent(app)) == len(back) + 1


def test_the_same_request_may_come_many_times_at_once(store_url: str):
    with app_server(store=store_url) as app:
        back = mixed_turn(app)
        app.upstream.replies = [whole({"content": "Fine."})]
        app.upstream.seen.clear()
        with ThreadPoolExecutor(8) as pool:
            body = {"model": "mock", "messages": back, "tools": [THEIRS]}
            answers = list(pool.map(lambda _: app.post(body).status_code, range(16)))
        assert answers == [200] * 16
        assert len({seen.body for seen in app.upstream.seen}) == 1
        assert len(app.tools.calls) == 1


def test_a_file_carries_a_mixed_turn_to_another_process(tmp_path: Path):
    with app_server(store=f"sqlite:///{tmp_path / 'store.db'}") as app:
        back = mixed_turn(app)
        app.upstream.replies = [whole({"content": "Fine."})]
        with serving(app.settings) as url:
            AppServer(url, app.upstream, app.tools, app.settings).post({"model": "mock", "messages": back})
        assert roles(sent(app)) == ["user", "assistant", "tool", "tool"]


def test_rounds_of_ours_before_the_clients_call_are_put_back_too():
    with app_server(
        call_stream(OURS), call_stream(tool_call("theirs", "{}", "c")), text_stream("Fine.")
    ) as app:
        (call,) = calls_of(app.ask(stream=True, tools=[THEIRS]).text)
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        back = [*QUESTION, message, {"role": "tool", "tool_call_id": call["id"], "content": "done"}]
        app.post({"model": "mock", "messages": back, "stream": True, "tools": [THEIRS]})
        assert roles(sent(app)) == ["user", "assistant", "tool", "assistant", "tool"]
        assert sent(app)[:3] == app.upstream.seen[1].json["messages"]


@pytest.fixture
def replaying() -> Iterator[AppServer]:
    with app_server(replay=True) as app:
        yield app


def first_answer(app: AppServer, **more: Any) -> str:
    app.upstream.replies = [
        call_stream(OURS) if "said" not in more else sse_with_text(more["said"]),
        text_stream("It is ", "cloudy."),
    ]
    app.upstream.seen.clear()
    chunks = chunks_of(app.ask(stream=True).text)
    assert_one_clean_answer(chunks)
    return content_of(chunks)


def sse_with_text(text: str) -> Reply:
    return sse(chunk(role="assistant", content=text), chunk(tool_calls=[OURS]), chunk(finish="tool_calls"))


@pytest.mark.parametrize("form", ["text", "parts", "with white space"])
def test_the_rounds_behind_an_answer_come_back_byte_for_byte(replaying: AppServer, form: str):
    text = first_answer(replaying, said="Let me see. ")
    assert text == "Let me see. It is cloudy."
    content: Any = {"text": text, "parts": [{"type": "text", "text": text}], "with white space": f" {text}\n"}
    before = replaying.upstream.seen[1].json["messages"]
    history = [
        *QUESTION,
        {"role": "assistant", "content": content[form]},
        {"role": "user", "content": "And Rome?"},
    ]
    replaying.upstream.replies = [text_stream("Sunny.")]
    replaying.post({"model": "mock", "messages": history, "stream": True})
    assert roles(sent(replaying)) == ["user", "assistant", "tool", "assistant", "user"]
    assert sent(replaying)[3] == {"role": "assistant", "content": "It is cloudy."}
    assert orjson.dumps(before)[:-1] in replaying.upstream.seen[-1].body


def test_an_answer_that_was_changed_or_belongs_elsewhere_stays_as_it_is(replaying: AppServer):
    text = first_answer(replaying)
    replaying.upstream.replies = [text_stream("Fine.")]
    for history in (
        [*QUESTION, {"role": "assistant", "content": text + " Or so."}, {"role": "user", "content": "?"}],
        [
            {"role": "user", "content": "Hm"},
            {"role": "assistant", "content": text},
            {"role": "user", "content": "?"},
        ],
    ):
        replaying.post({"model": "mock", "messages": history, "stream": True})
        assert sent(replaying) == history


def test_a_system_prompt_may_change_meanwhile(replaying: AppServer):
    text = first_answer(replaying)
    history = [
        {"role": "system", "content": "It is Monday."},
        *QUESTION,
        {"role": "assistant", "content": text},
        {"role": "user", "content": "?"},
    ]
    replaying.upstream.replies = [text_stream("Fine.")]
    replaying.post({"model": "mock", "messages": history, "stream": True})
    assert len(sent(replaying)) == len(history) + 2


def test_without_the_setting_nothing_is_put_back():
    with app_server() as app:
        text = first_answer(app)
        history = [*QUESTION, {"role": "assistant", "content": text}, {"role": "user", "content": "?"}]
        app.post({"model": "mock", "messages": history, "stream": True})
        assert sent(app) == history


def test_rounds_put_back_that_are_too_long_are_shortened():
    async def long(_: JSON) -> JSON:
        return {"text": "x" * 5000}

    with app_server(replay=True, tools=ToolService(get_weather=long)) as app:
        app.upstream.models = json_reply({"data": []})
        text = first_answer(app)
        refusal = json_reply({"error": {"code": "context_length_exceeded", "message": "too long"}}, 400)
        app.upstream.seen.clear()
        app.upstream.replies = [refusal, text_stream("Fine.")]
        history = [*QUESTION, {"role": "assistant", "content": text}, {"role": "user", "content": "?"}]
        answer = app.post({"model": "mock", "messages": history, "stream": True})
        assert content_of(chunks_of(answer.text)) == "Fine."
        long_before, short_after = (len(seen.body) for seen in app.upstream.seen)
        assert short_after < long_before * 0.7


def test_what_was_cut_can_be_read_in_a_later_round():
    async def long(_: JSON) -> JSON:
        return {"text": "".join(f"line {n}, " for n in range(2000))}

    def answer(body: JSON) -> Reply:
        results = [m["content"] for m in body["messages"] if m["role"] == "tool"]
        if not results:
            return call_stream(OURS)
        if len(results) == 1:
            found = re.search(r'\{"id": "\w+", "search"', results[0])
            assert found
            arguments = found[0].replace('"search"', '"search": "line 1234"}')
            return call_stream(tool_call("toolway_read_more", arguments, "more"))
        return text_stream(results[1])

    with app_server(tools=ToolService(get_weather=long)) as app:
        app.upstream.models = json_reply({"data": [{"id": "mock", "max_model_len": 2000}]})
        app.upstream.answer = answer
        text = content_of(chunks_of(app.ask(stream=True).text))
        assert "line 1234, line 1235" in text
        names = [[t["function"]["name"] for t in seen.json["tools"]] for seen in app.upstream.seen]
        assert names == [
            ["get_weather", "list_cities"],
            *[["get_weather", "list_cities", "toolway_read_more"]] * 2,
        ]
