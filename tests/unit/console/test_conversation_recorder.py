"""The recorder of conversations: what is kept of conversations, in which bounds, and what is never shown."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ref

import anyio
import pytest

from tests.support.gate import DEADLINE
from toolway.console import conversation_recorder
from toolway.console.conversation_recorder import (
    WHOLE_BURST,
    WHOLE_RATE,
    ConversationRecorder,
    Recording,
    _Budget,
)
from toolway.console.event_feed import EventFeed
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
    *, shows_contents: bool = True, store: Store | None = None, feed: EventFeed | None = None, **settings: Any
) -> ConversationRecorder:
    return ConversationRecorder(
        ConsoleSettings(**settings),
        feed or EventFeed(),
        store or Store(MemoryEntries()),
        shows_contents=shows_contents,
        mask=lambda text: text.replace(SECRET, "***"),
    )


def began(recording: Recording, *messages: JSON, model: str = "qwen") -> EventStream:
    stream = EventStream([recording])
    body = {"model": model, "messages": list(messages or [USER]), "temperature": 0.5}
    stream.notify(
        ConversationBegan(
            request=ChatRequest.of(body), offered={"get_weather": TOOL}, caller=CALLER, stream=ref(stream)
        )
    )
    return stream


def played(recording: Recording, *, result: str = "cloudy") -> None:
    """A conversation of two rounds, with a call and a refusal in it."""
    stream = began(recording)
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


async def kept(recorder: ConversationRecorder, number: int = 1) -> list[JSON]:
    await until(lambda: len(recorder._store.newest(number)) == number)
    return await recorder.newest(20_000)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(conversation_recorder, "PAUSE", 0.01)
    yield


async def test_a_conversation_is_a_line_and_a_record_with_all_its_steps():
    recorder = opened()
    async with recorder.running():
        played(recorder.subscribe())
        [line] = await kept(recorder)
        record = await recorder.find(line["id"])
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
    recorder = opened(shows_contents=False)
    async with recorder.running():
        played(recorder.subscribe(), result="it rains cats")
        [line] = await kept(recorder)
        record = await recorder.find(line["id"])
    for word in ("Paris", "cloudy", "rains", "half"):
        assert word not in str(line)
        assert word not in str(record)
    assert line["tools"] == ["get_weather"]


async def test_secrets_and_credentials_are_never_kept():
    recorder = opened()
    async with recorder.running():
        stream = began(
            recorder.subscribe(), {"role": "user", "content": f"{'x' * 15_995}{SECRET} and {SECRET}"}
        )
        stream.notify(ConversationFailed(error=InvalidRequest(f"no {SECRET}")))
        [line] = await kept(recorder)
        record = await recorder.find(line["id"])
    assert SECRET not in str(record)
    assert SECRET[:10] not in str(record), "nor the half of one at a cut"
    assert "hidden" not in str(record)


async def test_what_is_long_is_cut_and_images_that_are_large_are_left_out():
    recorder = opened()
    large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 200_000}}
    small = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    async with recorder.running():
        stream = began(
            recorder.subscribe(),
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
        [line] = await kept(recorder)
        record = await recorder.find(line["id"])
    assert record
    assert len(str(record)) < 60_000
    assert "34,000 more characters" in str(record)
    assert record["messages"][0]["content"][1]["image_url"]["url"] == "(image/png, 200,022 characters)"
    assert record["messages"][0]["content"][2] == small
    images = record["steps"][1]["images"]
    assert [image["data"] for image in images] == [None, "BBBB"]
    assert line["state"] == "left"


async def test_the_oldest_records_go_when_there_is_no_room_and_their_lines_stay():
    recorder = opened(max_bytes=20_000)
    async with recorder.running():
        for _ in range(20):
            stream = began(recorder.subscribe(), {"role": "user", "content": "w" * 5000})
            stream.notify(ClientLeft())
        lines = await kept(recorder, 20)
        found = [await recorder.find(line["id"]) for line in lines]
    assert 2 <= sum("steps" in (record or {}) for record in found) <= 4
    assert "steps" in (found[0] or {}), "the newest is there"


async def test_of_too_many_at_once_some_are_lines_and_some_are_only_counted(monkeypatch):
    monkeypatch.setattr(conversation_recorder, "WHOLE_BURST", 3.0)
    monkeypatch.setattr(conversation_recorder, "LISTED_BURST", 10.0)
    monkeypatch.setattr(conversation_recorder, "WHOLE_RATE", 1e-9)
    monkeypatch.setattr(conversation_recorder, "LISTED_RATE", 1e-9)
    recorder = opened()
    async with recorder.running():
        for _ in range(15):
            if (recording := recorder.subscribe()) is not None:
                played(recording)
        lines = await kept(recorder, 10)
        await until(lambda: recorder.left_out == 5)
    assert sum("size" in line for line in lines) == 3


@pytest.mark.parametrize("now", [0.0, 7.3, 1234.5678, 86_400.123_456, 31_536_000.1])
def test_a_budget_has_all_of_its_burst_and_comes_back_with_time(monkeypatch, now):
    monkeypatch.setattr(conversation_recorder, "monotonic", lambda: now)
    budget = _Budget(WHOLE_RATE, WHOLE_BURST)
    assert [budget.spend() for _ in range(102)] == [True] * 100 + [False] * 2
    now += 1.05 * 3 / WHOLE_RATE
    assert [budget.spend() for _ in range(5)] == [True] * 3 + [False] * 2
    now += 1e6
    assert [budget.spend() for _ in range(102)] == [True] * 100 + [False] * 2


async def test_ten_thousand_are_searched_by_text_in_a_moment(monkeypatch):
    monkeypatch.setattr(conversation_recorder, "LISTED_BURST", 20_000.0)
    monkeypatch.setattr(conversation_recorder, "WHOLE_BURST", 0.0)
    monkeypatch.setattr(conversation_recorder, "WHOLE_RATE", 1e-9)
    recorder = opened()
    async with recorder.running():
        for number in range(10_050):
            began(recorder.subscribe(), {"role": "user", "content": f"question {number}"}).notify(
                ClientLeft()
            )
            if number % 1000 == 0:
                await until(lambda: not recorder._ended)
        await until(lambda: not recorder._ended)
        begun = time.process_time()
        found, more = await recorder.search("question 77", lambda _: True, "", 1000)
        assert time.process_time() - begun < 5
    assert len(found) == 1 + 10 + 100
    assert not more
    first, more = await recorder.search("", lambda _: True, "", 100)
    assert len(first) == 100
    assert more
    second, _ = await recorder.search("", lambda _: True, first[-1]["id"], 100)
    assert second[0]["title"] == "question 9949"
    last, more = await recorder.search("", lambda _: True, "", 20_000)
    assert len(last) == 10_000
    assert not more


async def test_what_was_said_is_found_too():
    recorder = opened()
    async with recorder.running():
        played(recorder.subscribe(), result="a Needle in the hay")
        played(recorder.subscribe())
        await kept(recorder, 2)
        found, _ = await recorder.search("needle", lambda _: True, "", 10)
    assert len(found) == 1


async def test_text_is_watched_only_while_a_page_is_open():
    feed = EventFeed()
    recorder = opened(feed=feed)
    chunk = Chunks([({"choices": [{"index": 0, "delta": {"content": "Hello"}}]}, None), (" you", b"")])
    async with recorder.running():
        unseen = began(recorder.subscribe())
        assert unseen.watcher is None
        feed.pages += 1
        stream = began(recorder.subscribe())
        assert stream.watcher
        await stream.emit(chunk)
        newest = max(await recorder.newest(2), key=lambda line: line["began"])
        record = await recorder.find(newest["id"])
        assert record
        assert record["text"] == "Hello you"
        feed.pages -= 1
        await until(lambda: stream.watcher is None)


async def test_a_request_that_ends_without_a_word_leaves_nothing():
    recorder = opened()
    began(recorder.subscribe())
    assert len(await recorder.newest(10)) <= 1
    gc.collect()
    assert await recorder.newest(10) == []


async def test_an_error_before_the_conversation_is_none():
    recorder = opened()
    async with recorder.running():
        recorder.subscribe()(ConversationFailed(error=InvalidRequest("no")))
        played(recorder.subscribe())
        [line] = await kept(recorder)
        assert line["state"] != "failed", "the one after it is the only one"


def test_a_subscriber_costs_a_request_next_to_nothing(monkeypatch):
    monkeypatch.setattr(conversation_recorder, "LISTED_BURST", 10_000.0)
    recorder = opened()

    def seconds(subscribe: Callable[[], Any]) -> float:
        begun = time.process_time()
        for _ in range(500):
            played(subscribe())
            recorder._ended.clear()
        return time.process_time() - begun

    gc.disable()
    try:
        without = min(seconds(lambda: lambda _: None) for _ in range(9))
        assert (min(seconds(recorder.subscribe) for _ in range(9)) - without) / 500 < 60e-6
    finally:
        gc.enable()


async def test_a_conversation_that_is_over_is_there_before_it_is_written_down():
    recorder = opened()
    recording = recorder.subscribe()
    assert recording
    played(recording)
    [line] = await recorder.newest(5)
    assert line["state"] == "done"
    record = await recorder.find(line["id"])
    assert record
    assert record["steps"][-1]["kind"] == "ended"
    async with recorder.running():
        [written] = await kept(recorder)
    assert written == line | {"size": written["size"]}
