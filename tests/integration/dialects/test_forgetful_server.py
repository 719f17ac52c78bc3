"""A model server that forgets what does not fit (Ollama): long conversations keep their beginning, in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.dialects.dialects import DIALECTS, Client
from tests.support.app_server import app_server
from tests.support.tools import CITY, ToolService, document
from tests.support.upstream import Reply, call_stream, json_reply, text_stream, tool_call, whole

JSON = dict[str, Any]

CONTEXT = 4096
ROWS = "".join(f'{{"id":{number},"ok":true}},' for number in range(2_000))


class Ollama:
    """Reads as much of a conversation as its context holds: the system prompt, and the newest messages."""

    def __init__(self) -> None:
        self.forgotten: list[JSON] = []

    def __call__(self, body: JSON) -> Reply:
        read = self._as_read(body)
        asked = read[-1]["role"] == "user"
        call = tool_call("read_table", '{"city":"Paris"}', id=f"call_{len(body['messages'])}")
        calls = [call] if asked else []
        if body.get("stream"):
            return call_stream(*calls) if calls else text_stream("Read.")
        return whole({"tool_calls": calls}, finish="tool_calls") if calls else whole({"content": "Read."})

    def _as_read(self, body: JSON) -> list[JSON]:
        tools = len(json.dumps(body.get("tools", [])))
        messages = list(body["messages"])
        while tools + sum(map(_length, messages)) > CONTEXT * 3:
            oldest = next(n for n, message in enumerate(messages) if message["role"] != "system")
            self.forgotten.append(messages.pop(oldest))
        return messages


def _length(message: JSON) -> int:
    content = message["content"]
    text = content if isinstance(content, str) else json.dumps(content)
    return len(text) + len(json.dumps(message.get("tool_calls", [])))


async def _table(_: JSON) -> str:
    return ROWS


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_ten_turns_of_long_results_keep_their_questions_and_tools(
    dialect: type[Client], caplog: pytest.LogCaptureFixture
):
    service = ToolService(read_table=_table)
    service.document = document({"read_table": CITY, "get_weather": CITY})
    with app_server(tools=service, replay="true") as app:
        app.upstream.models = json_reply({"data": [{"id": "mock", "owned_by": "library"}]})
        app.upstream.asides = {"/api/show": json_reply({"model_info": {"llama.context_length": 131_072}})}
        app.upstream.answer = ollama = Ollama()
        client = dialect(app, dialect.modes[0])
        for turn in range(10):
            assert client.ask(f"Question {turn}?").text == "Read."
        sent = [seen.json for seen in app.upstream.seen]
    assert ollama.forgotten == []
    assert len(service.calls) == 10
    texts = json.dumps(sent[-1]["messages"])
    assert all(f"Question {turn}?" in texts for turn in range(10))
    assert all(
        [tool["function"]["name"] for tool in body["tools"]][:2] == ["get_weather", "read_table"]
        for body in sent
    )
    *earlier, newest = [
        str(message["content"]) for message in sent[-1]["messages"] if message["role"] == "tool"
    ]
    assert len(newest) > 2 * max(map(len, earlier), default=0)
    if len(earlier) > 5:
        assert "earlier results are shortened" in caplog.text, "the operator reads why"
