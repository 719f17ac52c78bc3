"""The Messages API with Toolway and a real model in llama.cpp's server."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.compat.model import test_openai_client as chat
from tests.compat.model.test_openai_client import QUESTION, RAIN, Way
from tests.support.messages import check_message, events_of, read_message
from tests.support.model import needs_model

pytestmark = needs_model

app_server, way = chat.app_server, chat.way


def ask(way: Way, path: str = "", **more: Any) -> httpx2.Response:
    question = [{"role": "user", "content": QUESTION}]
    body = {"model": way.model, "max_tokens": 120, "temperature": 0, "messages": question, **more}
    answer = httpx2.post(f"{way.base_url}/messages{path}", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_tool_of_toolway_runs_unseen(way: Way, streamed: bool):
    answer = ask(way, stream=streamed)
    message = read_message(answer.text) if streamed else check_message(answer.json())
    assert way.calls() == ["/weather?city=Paris"]
    (block,) = message["content"]
    assert RAIN in block["text"]
    assert message["usage"]["output_tokens"] > 3
    if streamed:
        assert sum(event["type"] == "content_block_delta" for event in events_of(answer.text)) > 3


def test_tokens_are_counted_as_the_model_server_counts_them(way: Way):
    header = {"tool_choice": {"type": "none"}, "max_tokens": 1}
    counted = ask(way, "/count_tokens", **header).json()["input_tokens"]
    usage = ask(way, **header).json()["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_an_answer_begun_by_the_client_is_gone_on_with(way: Way):
    messages = [
        {"role": "user", "content": "Say: one two three four five"},
        {"role": "assistant", "content": "one two three"},
    ]
    message = ask(way, messages=messages, tool_choice={"type": "none"}).json()
    assert "four" in message["content"][0]["text"]
