"""The stream of events: whom it tells what, and in which order."""

from __future__ import annotations

from toolway.conversation.events import Chunks, Event, EventStream, RoundBegan, TextBegan

SPOKEN = Chunks([({"choices": [{"index": 0, "delta": {"content": "Hi"}}]}, None)])


async def test_subscribers_hear_of_the_text_once_and_a_watcher_of_every_chunk():
    heard: list[Event] = []
    watched: list[Event] = []
    stream = EventStream([heard.append])
    await stream.emit(RoundBegan(number=1))
    await stream.emit(SPOKEN)
    stream.watcher = watched.append
    await stream.emit(SPOKEN)
    stream.watcher = None
    await stream.emit(SPOKEN)
    assert heard == [RoundBegan(number=1), TextBegan()]
    assert watched == [SPOKEN]


def test_what_subscribers_heard_before_they_do_not_hear_again():
    heard: list[Event] = []
    stream = EventStream([heard.append])
    stream.heard = [RoundBegan, TextBegan, TextBegan]
    first, second = RoundBegan(number=1), RoundBegan(number=2)
    stream.notify(first)
    stream.notify(second)
    stream.notify(TextBegan())
    assert heard == [second, TextBegan()]
