"""Two Toolway processes that share one store are one Toolway to a client."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from tests.integration.test_commands import TIMEOUT, serving, toolway
from tests.support.answers import calls_of
from tests.support.app_server import QUESTION, until_ready
from tests.support.servers import running
from tests.support.tools import ToolService
from tests.support.upstream import ScriptedUpstream, call_stream, text_stream, tool_call, whole
from toolway.conversation.call_ids import original_id

THEIRS = {"type": "function", "function": {"name": "theirs", "parameters": {"type": "object"}}}
CALLS = [tool_call(id="ours"), tool_call("theirs", "{}", "c", 1)]


class Replicas:
    """Two processes behind which the same servers are; a request goes to one of them."""

    def __init__(self, urls: list[str], upstream: ScriptedUpstream, tools: ToolService) -> None:
        self.urls, self.upstream, self.tools = urls, upstream, tools

    def post(self, replica: int, **body: object) -> httpx2.Response:
        url = f"{self.urls[replica]}/v1/chat/completions"
        return httpx2.post(url, json={"model": "mock", "tools": [THEIRS], **body}, timeout=TIMEOUT)


@pytest.fixture
def replicas(store_url: str, tmp_path: Path) -> Iterator[Replicas]:
    upstream, tools = ScriptedUpstream([]), ToolService()
    with ExitStack() as stack:
        model = stack.enter_context(running(upstream, lifespan="off", log_level="critical"))
        service = stack.enter_context(running(tools, lifespan="off"))
        urls = [
            stack.enter_context(
                serving(
                    [sys.executable, "-m", "toolway", "serve", "--port", "0"],
                    tmp_path,
                    OPENAI_BASE_URL=f"{model}/v1",
                    MCP_SERVER_ENDPOINTS=service,
                    DEBUG_OUTPUT="false",
                    TOOLWAY_STORE=store_url,
                )
            )[1]
            for _ in range(2)
        ]
        for url in urls:
            until_ready(url)
        yield Replicas(urls, upstream, tools)


shared = pytest.mark.parametrize("store_url", ["sqlite", "redis"], indirect=True)


@shared
@pytest.mark.parametrize("stream", [False, True])
def test_a_mixed_turn_begun_on_one_goes_on_on_the_other(replicas: Replicas, stream: bool):
    replicas.upstream.replies = [
        call_stream(*CALLS) if stream else whole({"content": None, "tool_calls": CALLS}, "tool_calls"),
        text_stream("Fine.") if stream else whole({"content": "Fine."}),
    ]
    answer = replicas.post(0, messages=QUESTION, stream=stream)
    (call,) = calls_of(answer.text) if stream else answer.json()["choices"][0]["message"]["tool_calls"]
    assert (original_id(call["id"]), call["function"]["name"]) == ("c", "theirs")
    back = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "done"},
    ]
    assert "Fine." in replicas.post(1, messages=back, stream=stream).text
    seen = replicas.upstream.seen[-1].json["messages"]
    assert [message.get("tool_call_id") for message in seen] == [None, None, "ours", "c"]
    assert [name for name, _ in replicas.tools.calls] == ["get_weather"]


def test_a_store_that_cannot_be_reached_at_the_start_is_one_sentence(tmp_path: Path):
    ran = toolway("serve", "--port", "0", cwd=tmp_path, TOOLWAY_STORE="redis://:hunter2@127.0.0.1:1/0")
    assert ran.returncode == 1
    assert re.search(r"TOOLWAY_STORE: redis://\*\*\*@127.0.0.1:1/0 cannot be used: \S", ran.stderr)
    assert "hunter2" not in ran.stderr
    assert "Traceback" not in ran.stderr
