"""One conversation, written in every way that servers have: the calls and the answer are always the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import example, given

from tests.compat.quirks.rendering import Quirks, Turn, conversations, quirks, rendered, usage_of
from tests.support.answers import assert_one_clean_answer, chunks_of, content_of
from tests.support.app_server import AppServer, app_server
from tests.support.fuzz import slow
from tests.support.servers import running
from tests.support.tools import CITY, NOTHING, ToolService, document
from tests.support.upstream import Reply, ScriptedUpstream
from tests.unit.engine.scripted_model import InMemorySource, echo, run_loop
from toolway.conversation.events import Chunks
from toolway.settings.load import load_settings
from toolway.types import JSON, ToolResult
from toolway.upstream.client import Upstream
from toolway.upstream.model_call import streamed_model_call

THREE = [
    Turn(text="a", calls=(("echo", {"city": "x"}), ("echo", {}), ("other", {"note": "y"}))),
    Turn(text="b"),
]


@pytest.fixture(scope="module")
def model() -> Iterator[tuple[ScriptedUpstream, str]]:
    scripted = ScriptedUpstream([])
    with running(scripted, lifespan="off", log_level="critical") as url:
        yield scripted, f"{url}/v1"


class Real:
    """A model behind real HTTP, read by the real call."""

    def __init__(self, upstream: Upstream) -> None:
        self.answer = streamed_model_call(upstream, [(b"content-type", b"application/json")])


def sorted_calls(calls: Iterable[tuple[str, JSON]]) -> list[bytes]:
    """Calls of one turn run side by side: their order is nobody's."""
    return sorted(orjson.dumps(call, option=orjson.OPT_SORT_KEYS) for call in calls)


def expected_calls(conversation: list[Turn]) -> list[bytes]:
    return sorted_calls(call for turn in conversation for call in turn.calls)


async def converse(url: str) -> tuple[Any, list[Any], list[tuple[str, JSON]]]:
    seen: list[tuple[str, JSON]] = []

    def noting(name: str) -> Any:
        async def run(arguments: JSON) -> ToolResult:
            seen.append((name, arguments))
            return await echo(arguments)

        return run

    async with Upstream.connect(load_settings(env={}, dotenv=None, openai_base_url=url).upstream) as upstream:
        source = InMemorySource(echo=noting("echo"), other=noting("other"))
        model: Any = Real(upstream)
        outcome, events = await run_loop(model, source, max_repeats=100, max_similar=100, stream=True)
    return outcome, events, seen


@slow
@example(conversation=THREE, how=Quirks(index="all 0", id="always"))
@example(conversation=THREE, how=Quirks(index="none", id="never", name_alone=False))
@given(conversation=conversations, how=quirks())
def test_the_same_calls_and_the_same_answer_through_the_loop(
    model: Any, conversation: list[Turn], how: Quirks
):
    scripted, url = model
    scripted.replies = [Reply(rendered(turn, how, n)) for n, turn in enumerate(conversation)]
    scripted.seen.clear()
    outcome, events, seen = anyio.run(converse, url)
    assert sorted_calls(seen) == expected_calls(conversation)
    assert outcome.message.fields.get("content", "") == conversation[-1].text
    assert outcome.message.finish_reason == "stop"
    assert len(scripted.seen) == len(conversation)
    items = [item for event in events if type(event) is Chunks for item in event.items]
    chunks = [orjson.loads(raw) if isinstance(chunk, str) else chunk for chunk, raw in items]
    assert content_of(chunks) == "".join(turn.text for turn in conversation)
    assert content_of(chunks, "reasoning_content") == "".join(turn.reasoning for turn in conversation)
    assert not any("tool_calls" in c["choices"][0]["delta"] for c in chunks if c["choices"])
    if how.usage != "none":
        assert outcome.total_usage == {
            "total_tokens": sum(usage_of(turn)["total_tokens"] for turn in conversation)
        }
        assert outcome.usage is not None
        assert outcome.usage["total_tokens"] == usage_of(conversation[-1])["total_tokens"]
    for turn, request in zip(conversation[:-1], scripted.seen[1:], strict=True):
        assert_replayed(turn, request.json["messages"])


def assert_replayed(turn: Turn, messages: list[JSON]) -> None:
    """The newest round stands at the end of the request, whole and in order."""
    replay = [message for message in messages if message["role"] == "assistant"][-1]
    results = messages[messages.index(replay) + 1 :]
    calls = [(c["function"]["name"], orjson.loads(c["function"]["arguments"])) for c in replay["tool_calls"]]
    assert calls == list(turn.calls)
    assert replay["content"] == turn.text
    assert replay.get("reasoning_content", "") == turn.reasoning
    ids = [c["id"] for c in replay["tool_calls"]]
    assert [result["tool_call_id"] for result in results] == ids
    assert len(set(ids)) == len(ids)


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    async def answer(arguments: JSON) -> JSON:
        return arguments

    tools = ToolService(echo=answer, other=answer)
    anything = {**NOTHING, "properties": {"city": CITY["properties"]["city"], "note": {"type": "string"}}}
    tools.document = document({"echo": anything, "other": anything})
    with app_server(tools=tools, max_repeats=100, max_similar=100) as server:
        yield server


@slow
@given(conversation=conversations, how=quirks())
def test_the_same_answer_through_the_whole_house(app: AppServer, conversation: list[Turn], how: Quirks):
    app.upstream.replies = [Reply(rendered(turn, how, n)) for n, turn in enumerate(conversation)]
    app.upstream.seen.clear()
    app.tools.calls.clear()
    chunks = chunks_of(app.ask(stream=True, stream_options={"include_usage": True}).text)
    assert_one_clean_answer(chunks)
    assert sorted_calls(app.tools.calls) == expected_calls(conversation)
    assert content_of(chunks) == "".join(turn.text for turn in conversation)
    assert content_of(chunks, "reasoning_content") == "".join(turn.reasoning for turn in conversation)
