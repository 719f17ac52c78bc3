"""Resources as two tools, and servers that ask for a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.app_server import app_server
from tests.support.upstream import call_stream, text_stream, tool_call, whole
from tests.unit.tools.mcp.support import SERVERS, bad, good, running
from toolway.tools.mcp.sampling import chat_body, message_result


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_resources_are_two_tools(era: str) -> None:
    async with running(good(era=era, resources=True)) as server:
        status = await server.ready()
        assert [tool.name for tool in status.tools][-2:] == ["list_resources", "read_resource"]
        assert (await server.call("list_resources")).text == "[one](note://1): a note"
        assert (
            await server.call("read_resource", {"uri": "note://1"})
        ).text == "[note://1]\ntext of note://1"
        assert (await server.call("echo", {"value": 1})).text == "1"


async def test_without_resources_there_are_no_such_tools() -> None:
    async with running(good()) as server:
        assert "list_resources" not in [tool.name for tool in (await server.ready()).tools]
    async with running(bad(resources=True)) as server:
        assert "list_resources" not in [tool.name for tool in (await server.ready()).tools]


def test_a_server_that_asks_for_a_model_gets_the_upstreams(tmp_path: Path) -> None:
    import sys

    entry = {"command": sys.executable, "args": [str(SERVERS / "bad_stdio.py")], "sampling": True}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"s": {**entry, "sampling_max_tokens": 3}}}))
    call = tool_call("sampling", "{}")
    replies = [
        call_stream(call),
        whole({"content": "models are no list here"}),
        whole({"content": "from the model"}),
    ]
    with app_server(*replies, text_stream("done"), endpoints="", config=str(tmp_path / "mcp.json")) as app:
        app.ask(stream=True)
    bodies = [seen.json for seen in app.upstream.seen if seen.path == b"/v1/chat/completions"]
    assert bodies[1]["messages"] == [{"role": "user", "content": "hi"}]
    assert bodies[1]["max_tokens"] == 3
    assert "tools" not in bodies[1]
    assert json.loads(bodies[2]["messages"][-1]["content"])["content"]["text"] == "from the model"


def test_the_chat_request_of_a_sampling_request() -> None:
    image = {"type": "image", "data": "AA==", "mimeType": "image/png"}
    said = {"role": "assistant", "content": {"type": "text", "text": "a"}}
    params = {
        "systemPrompt": "Be brief.", "maxTokens": 5000, "temperature": 0.1, "stopSequences": ["x"],
        "messages": [{"role": "user", "content": image}, said],
    }  # fmt: skip
    assert chat_body(params, "m", 100) == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
            },
            {"role": "assistant", "content": "a"},
        ],
        "max_tokens": 100,
        "stream": False,
        "temperature": 0.1,
        "stop": ["x"],
    }
    assert chat_body({}, "m", 7) == {"model": "m", "messages": [], "max_tokens": 7, "stream": False}


def test_the_answer_to_a_sampling_request() -> None:
    choice = {"message": {"content": "hello"}, "finish_reason": "length"}
    assert message_result({"choices": [choice], "model": "x"}, "m") == {
        "role": "assistant", "content": {"type": "text", "text": "hello"}, "model": "x", "stopReason": "maxTokens",
    }  # fmt: skip
    assert message_result({}, "m")["content"]["text"] == ""
