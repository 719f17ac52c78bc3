"""The journal: what is kept of conversations, in which bounds, and what is never shown."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import anyio
import pytest

from tests.support.gate import DEADLINE
from toolway.console import journal as journals
from toolway.console.feed import Feed
from toolway.console.journal import Journal, Recorder
from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    CallProgressed,
    Chunks,
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    ConversationFailed,
    EventStream,
    ModelAnswered,
    ModelAsked,
    ModelFailed,
    Outcome,
    RoundBegan,
)
from toolway.conversation.message import ChatRequest, Message
from toolway.errors import InvalidRequest, UpstreamError
from toolway.settings.settings import ConsoleSettings
from toolway.stores import Store
from toolway.stores.memory import MemoryEntries
from toolway.types import JSON, Caller, Image, Progress, Tool, ToolCall, ToolResult

USER: JSON = {"role": "user", "content": "What is the weather in Paris?"}
CALL = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Paris"}')
TOOL = Tool(name="get_weather", server="weather", description="", parameters={})
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
CALLER = Caller(
    id="digest", name="ann", headers=[(b"user-agent", b"test/1"), (b"authorization", b"Bearer hidden")]
)
SECRET = "the-secret-of-the-operator"


def opened(
    *, shows_contents: bool = True, store: Store | None = None, feed: Feed | None = None, **settings: Any
) -> Journal:
    return Journal(
        ConsoleSettings(**settings),
        feed or Feed(),
        store or Store(MemoryEntries()),
        shows_contents=shows_contents,
        mask=lambda text: text.replace(SECRET, "***"),
    )


def began(recorder: Recorder, *messages: JSON, model: str = "qwen") -> EventStream:
    stream = EventStream([recorder])
    body = {"model": model, "messages": list(messages or [USER]), "temperature": 0.5}
    stream.notify(
        ConversationBegan(
            request=ChatRequest.of(body), offered={"get_weather": TOOL}, caller=CALLER, stream=ref(stream)
        )
    )
    return stream


def played(recorder: Recorder, *, result: str = "cloudy") -> None:
    """A conversation of two rounds, with a call and a refusal in it."""
    stream = began(recorder)
    request = ChatRequest.of({"model": "qwen", "messages": [USER]})
    answer = Message(
        fields={"role": "assistant", "content": ""},
        tool_calls=(CALL,),
        finish_reason="tool_calls",
        usage=USAGE,
    )
    behind = [
        USER,
        {"role": "assistant", "tool_calls": []},
        {"role": "tool", "tool_call_id": "call_1", "content": result[:3]},
    ]
    last = Message(fields={"role": "assistant", "content": "It is cloudy."}, finish_reason="stop")
    for event in (
        RoundBegan(number=1),
        ModelAsked(request=request),
        ModelFailed(error=UpstreamError("too many tools")),
        ModelAsked(request=request),
        ModelAnswered(message=answer),
        CallBegan(call=CALL, tool=TOOL),
        CallProgressed(call=CALL, tool=TOOL, progress=Progress(progress=1, total=2, message="half")),
        CallEnded(call=CALL, tool=TOOL, result=ToolResult(text=result), seconds=0.5),
        RoundBegan(number=2),
        ModelAsked(request=ChatRequest.of({"model": "qwen", "messages": behind})),
        ModelAnswered(message=last),
        ConversationEnded(outcome=Outcome(message=last, rounds=2, calls=1)),
    ):
        stream.notify(event)


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(DEADLINE):
        while not holds():  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def kept(journal: Journal, number: int = 1) -> list[JSON]:
    await until(lambda: len(journal._store.newest(number)) == number)
    return await journal.newest(20_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(journals, "PAUSE", 0.01)
    yield


async def test_a_conversation_is_a_line_and_a_record_with_all_its_steps():
    journal = opened()
    async with journal.running():
        played(journal.subscribe())
        [line] = await kept(journal)
        record = await journal.find(line["id"])
    assert line["state"] == "done"
    assert line["title"] == USER["content"]
    assert (line["rounds"], line["calls"], line["asked_again"], line["tools"]) == (2, 1, 1, ["get_weather"])
    assert line["usage"] == {"prompt": 10, "completion": 5, "cached": 4}
    assert (line["caller"], line["client"]) == ("ann", "test/1")
    assert record
    kinds = [step["kind"] for step in record["steps"]]
    assert kinds == [
        "round",
        "asked",
        "failed",
        "asked",
        "answered",
        "call",
        "result",
        "round",
        "asked",
        "answered",
        "ended",
    ]
    assert [message["origin"] for message in record["messages"]] == ["client", "toolway", "toolway"]
    assert record["steps"][8]["messages"] == [0, 1, 2], "each message is kept once"
    assert record["steps"][5]["progress"] == {"progress": 1, "total": 2, "message": "half"}
    assert record["messages"][2]["length"] == 3
    assert record["options"] == {"model": "qwen", "temperature": 0.5}


async def test_without_contents_nothing_that_was_said_is_kept():
    journal = opened(shows_contents=False)
    async with journal.running():
        played(journal.subscribe(), result="it rains cats")
        [line] = await kept(journal)
        record = await journal.find(line["id"])
    for word in ("Paris", "cloudy", "rains", "half"):
        assert word not in str(line)
        assert word not in str(record)
    assert line["tools"] == ["get_weather"]


async def test_secrets_and_credentials_are_never_kept():
    journal = opened()
    async with journal.running():
        stream = began(
            journal.subscribe(), {"role": "user", "content": f"{'x' * 15_995}{SECRET} and {SECRET}"}
        )
        stream.notify(ConversationFailed(error=InvalidRequest(f"no {SECRET}")))
        [line] = await kept(journal)
        record = await journal.find(line["id"])
    assert SECRET not in str(record)
    assert SECRET[:10] not in str(record), "nor the half of one at a cut"
    assert "hidden" not in str(record)


async def test_what_is_long_is_cut_and_images_that_are_large_are_left_out():
    journal = opened()
    large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 200_000}}
    small = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    async with journal.running():
        stream = began(
            journal.subscribe(),
            {"role": "user", "content": [{"type": "text", "text": "y" * 50_000}, large, small]},
        )
        images = (
            Image(media_type="image/png", data="B" * 200_000),
            Image(media_type="image/png", data="BBBB"),
        )
        stream.notify(CallBegan(call=CALL, tool=None))
        stream.notify(
            CallEnded(call=CALL, tool=None, result=ToolResult(text="z" * 9_000_000, images=images), seconds=1)
        )
        stream.notify(ClientLeft())
        [line] = await kept(journal)
        record = await journal.find(line["id"])
    assert record
    assert len(str(record)) < 60_000
    assert "34,000 more characters" in str(record)
    assert record["messages"][0]["content"][1]["image_url"]["url"] == "(image/png, 200,022 characters)"
    assert record["messages"][0]["content"][2] == small
    images = record["steps"][1]["images"]
    assert [image["data"] for image in images] == [None, "BBBB"]
    assert line["state"] == "left"


async def test_the_oldest_records_go_when_there_is_no_room_and_their_lines_stay():
    journal = opened(max_bytes=20_000)
    async with journal.running():
        for _ in range(20):
            stream = began(journal.subscribe(), {"role": "user", "content": "w" * 5000})
            stream.notify(ClientLeft())
        lines = await kept(journal, 20)
        found = [await journal.find(line["id"]) for line in lines]
    assert 2 <= sum("steps" in (record or {}) for record in found) <= 4
    assert "steps" in (found[0] or {}), "the newest is there"


async def test_of_too_many_at_once_some_are_lines_and_some_are_only_counted(monkeypatch):
    monkeypatch.setattr(journals, "WHOLE_BURST", 3.0)
    monkeypatch.setattr(journals, "LISTED_BURST", 10.0)
    monkeypatch.setattr(journals, "WHOLE_RATE", 0.0)
    monkeypatch.setattr(journals, "LISTED_RATE", 0.0)
    journal = opened()
    async with journal.running():
        for _ in range(15):
            if (recorder := journal.subscribe()) is not None:
                played(recorder)
        lines = await kept(journal, 10)
        await until(lambda: journal.left_out == 5)
    assert sum("size" in line for line in lines) == 3


async def test_ten_thousand_are_searched_by_text_in_a_moment(monkeypatch):
    monkeypatch.setattr(journals, "LISTED_BURST", 20_000.0)
    monkeypatch.setattr(journals, "WHOLE_BURST", 0.0)
    monkeypatch.setattr(journals, "WHOLE_RATE", 0.0)
    journal = opened()
    async with journal.running():
        for number in range(10_050):
            began(journal.subscribe(), {"role": "user", "content": f"question {number}"}).notify(ClientLeft())
            if number % 1000 == 0:
                await until(lambda: not journal._ended)
        await until(lambda: not journal._ended)
        begun = time.process_time()
        found, more = await journal.search("question 77", lambda _: True, "", 1000)
        assert time.process_time() - begun < 5
    assert len(found) == 1 + 10 + 100
    assert not more
    first, more = await journal.search("", lambda _: True, "", 100)
    assert len(first) == 100
    assert more
    second, _ = await journal.search("", lambda _: True, first[-1]["id"], 100)
    assert second[0]["title"] == "question 9949"
    last, more = await journal.search("", lambda _: True, "", 20_000)
    assert len(last) == 10_000
    assert not more


async def test_what_was_said_is_found_too():
    journal = opened()
    async with journal.running():
        played(journal.subscribe(), result="a Needle in the hay")
        played(journal.subscribe())
        await kept(journal, 2)
        found, _ = await journal.search("needle", lambda _: True, "", 10)
    assert len(found) == 1


async def test_text_is_watched_only_while_a_page_is_open():
    feed = Feed()
    journal = opened(feed=feed)
    chunk = Chunks([({"choices": [{"index": 0, "delta": {"content": "Hello"}}]}, None), (" you", b"")])
    async with journal.running():
        unseen = began(journal.subscribe())
        assert unseen.watcher is None
        feed.pages += 1
        stream = began(journal.subscribe())
        assert stream.watcher
        await stream.emit(chunk)
        newest = max(await journal.newest(2), key=lambda line: line["began"])
        record = await journal.find(newest["id"])
        assert record
        assert record["text"] == "Hello you"
        feed.pages -= 1
        await until(lambda: stream.watcher is None)


async def test_a_request_that_ends_without_a_word_leaves_nothing():
    journal = opened()
    began(journal.subscribe())
    assert len(await journal.newest(10)) <= 1
    gc.collect()
    assert await journal.newest(10) == []


async def test_an_error_before_the_conversation_is_none():
    journal = opened()
    async with journal.running():
        journal.subscribe()(ConversationFailed(error=InvalidRequest("no")))
        played(journal.subscribe())
        [line] = await kept(journal)
        assert line["state"] != "failed", "the one after it is the only one"


def test_a_subscriber_costs_a_request_next_to_nothing(monkeypatch):
    monkeypatch.setattr(journals, "LISTED_BURST", 10_000.0)
    journal = opened()

    def seconds(subscribe: Callable[[], Any]) -> float:
        begun = time.process_time()
        for _ in range(500):
            played(subscribe())
            journal._ended.clear()
        return time.process_time() - begun

    gc.disable()
    try:
        without = min(seconds(lambda: lambda _: None) for _ in range(9))
        assert (min(seconds(journal.subscribe) for _ in range(9)) - without) / 500 < 60e-6
    finally:
        gc.enable()


async def test_a_conversation_that_is_over_is_there_before_it_is_written_down():
    journal = opened()
    recorder = journal.subscribe()
    assert recorder
    played(recorder)
    [line] = await journal.newest(5)
    assert line["state"] == "done"
    record = await journal.find(line["id"])
    assert record
    assert record["steps"][-1]["kind"] == "ended"
    async with journal.running():
        [written] = await kept(journal)
    assert written == line | {"size": written["size"]}
