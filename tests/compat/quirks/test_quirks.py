"""Recorded behaviour of model servers, byte for byte, through the whole server, streamed and whole.

Each `.sse` or `.json` file is the body of round 1; a request that holds a tool result is answered with text.
EXPECT.json says what must come of it: the calls that the tool server sees, what is replayed, who gets an error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.answers import assert_one_clean_answer, chunks_of, content_of, error_of
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.upstream import Reply, text_stream

HERE = Path(__file__).parent
EXPECT: dict[str, Any] = json.loads((HERE / "EXPECT.json").read_text())
CLIENT_TOOL = {
    "type": "function",
    "function": {
        "name": "client_tool",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
STREAMS = sorted(name for name in EXPECT if name.endswith(".sse"))


def test_every_sample_has_an_expectation():
    samples = {path.name for path in HERE.iterdir() if path.suffix in {".sse", ".json"}} - {"EXPECT.json"}
    assert samples == set(EXPECT)


@pytest.fixture(scope="module")
def app():
    with app_server() as server:
        yield server


def stream_sample(app: AppServer, name: str, *, size: int | None = None) -> tuple[list[Any], str]:
    """Stream the sample through Toolway, in parts of `size` bytes; the client's events and raw text."""
    body = (HERE / name).read_bytes()
    parts = [body] if size is None else [body[i : i + size] for i in range(0, len(body), size)]
    app.upstream.replies = [Reply(parts), text_stream("It is ", "cloudy.")]
    app.upstream.seen.clear()
    app.tools.calls.clear()
    answer = app.ask(stream=True, stream_options={"include_usage": True}, tools=[CLIENT_TOOL])
    assert answer.status_code == 200
    return chunks_of(answer.text), answer.text


def pick(value: Any, path: str) -> Any:
    for key in path.replace("]", "").replace("[", ".").split("."):
        value = value[int(key)] if key.isdigit() else value[key]
    return value


@pytest.mark.parametrize("size", [None, 3], ids=["at once", "three bytes at a time"])
@pytest.mark.parametrize("name", STREAMS)
def test_a_streamed_quirk(app: AppServer, name: str, size: int | None):
    expect = EXPECT[name]
    chunks, raw = stream_sample(app, name, size=size)
    if "optin" in expect:
        assert app.tools.calls == []
        assert "<tool_call>" in content_of(chunks)
        return
    assert [list(call) for call in app.tools.calls] == expect["tool_calls"]
    if expect.get("client_error"):
        error_of(chunks)
        return
    assert_one_clean_answer(chunks)
    assert expect.get("never", "[DONE] twice") not in raw
    if "finish" in expect:
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == expect["finish"]
        assert content_of(chunks).startswith(expect.get("content", ""))
        assert len(app.upstream.seen) == 1
        return
    if "client_calls" in expect:
        assert_clients_calls(chunks, expect["client_calls"])
        return
    text = content_of(chunks)
    assert text.startswith(expect.get("content_prefix", ""))
    assert text.endswith("It is cloudy.")
    assert "tool_calls" not in raw
    assert "get_weather" not in raw
    second = app.upstream.seen[1].json["messages"]
    for path, value in expect.get("replay", {}).items():
        assert pick(second[1], path) == value
    if expect.get("tool_error"):
        assert second[-1]["content"].startswith("Error:")
    if "unique_ids" in expect:
        assert len({call["id"] for call in second[1]["tool_calls"]}) == expect["unique_ids"]
    if "usage_total" in expect:
        assert [c["usage"]["total_tokens"] for c in chunks if c.get("usage")] == [expect["usage_total"]]


def assert_clients_calls(chunks: list[Any], calls: list[Any]) -> None:
    seen: dict[int, list[str]] = {}
    for chunk in chunks:
        for fragment in chunk["choices"][0]["delta"].get("tool_calls") or () if chunk["choices"] else ():
            entry = seen.setdefault(fragment["index"], ["", ""])
            entry[0] += fragment["function"].get("name") or ""
            entry[1] += fragment["function"].get("arguments") or ""
    assert [[name, orjson.loads(text)] for _, (name, text) in sorted(seen.items())] == calls
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("name", [name for name in STREAMS if "optin" in EXPECT[name]])
def test_a_call_written_as_text_is_run_when_that_is_switched_on(name: str):
    with app_server(text_tool_calls=True) as app:
        chunks, raw = stream_sample(app, name)
        assert [list(call) for call in app.tools.calls] == EXPECT[name]["tool_calls"]
        assert_one_clean_answer(chunks)
        assert content_of(chunks) == "It is cloudy."
        assert "tool_call" not in raw
        assert app.upstream.seen[1].json["messages"][1]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_a_whole_quirk_answer(app: AppServer):
    name = "i03_empty_tool_calls_array.json"
    app.upstream.replies = [
        Reply([b"\n\n", (HERE / name).read_bytes()], headers=[(b"content-type", b"application/json")])
    ]
    app.upstream.seen.clear()
    answer = app.ask().json()
    assert answer["choices"][0]["message"]["content"] == EXPECT[name]["content"]
    assert app.upstream.seen[0].json["messages"] == QUESTION


def test_a_mixed_turn_is_whole_again_when_the_client_returns(app: AppServer):
    chunks, _ = stream_sample(app, "h01_mixed_owner.sse")
    call = next(
        fragment
        for chunk in chunks
        for fragment in chunk["choices"][0]["delta"].get("tool_calls", ())
        if fragment.get("id")
    )
    app.upstream.replies = [text_stream("Done.")]
    app.upstream.seen.clear()
    followup = [
        *QUESTION,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{k: v for k, v in call.items() if k != "index"}],
        },
        {"role": "tool", "tool_call_id": call["id"], "content": "the client's result"},
    ]
    app.post({"model": "mock", "messages": followup, "stream": True, "tools": [CLIENT_TOOL]})
    sent = app.upstream.seen[0].json["messages"]
    assert [c["id"] for c in sent[1]["tool_calls"]] == ["call_p", "call_c"]
    assert [m["tool_call_id"] for m in sent[2:]] == ["call_p", "call_c"]
    assert "cloudy" in sent[2]["content"]
    assert sent[3]["content"] == "the client's result"
