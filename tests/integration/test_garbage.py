"""What a request leaves when it is over: nothing that only the garbage collector could take away.

A cycle keeps all that hangs on it, an answer of megabytes or a connection, until the collector comes, which is seldom.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import httpx2
import pytest

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.upstream import OUT_OF_MEMORY, Reply, call_stream, text_stream, tool_call, whole

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
WORDS, STREAM = whole({"content": "Cloudy."}), text_stream("Clou", "dy.")
CALL, CALLED = whole({"tool_calls": [tool_call()]}, finish="tool_calls"), call_stream(tool_call())
RESET = Reply(reset=True)
NOT_JSON = Reply([b"<html>"], headers=((b"content-type", b"text/html"),))
STREAMED, ORDINARY = {"stream": True}, {"tool_choice": "auto"}

REQUESTS: dict[str, tuple[str, dict[str, Any], list[Reply]]] = {
    "whole": (CHAT, {}, [WORDS]),
    "streamed": (CHAT, STREAMED, [STREAM]),
    "beside the lane": (CHAT, ORDINARY, [WORDS]),
    "streamed, beside the lane": (CHAT, {**STREAMED, **ORDINARY}, [STREAM]),
    "a tool": (CHAT, {}, [CALL, WORDS]),
    "a tool, streamed": (CHAT, STREAMED, [CALLED, STREAM]),
    "a response": (RESPONSES, {}, [WORDS]),
    "a response, streamed": (RESPONSES, STREAMED, [STREAM]),
    "a message": (MESSAGES, {}, [WORDS]),
    "a message, streamed": (MESSAGES, STREAMED, [STREAM]),
    "no answer": (CHAT, {}, [RESET]),
    "no answer behind a tool": (CHAT, {}, [CALL, RESET]),
    "a refusal": (CHAT, STREAMED, [OUT_OF_MEMORY]),
    "no JSON": (CHAT, {}, [NOT_JSON]),
    "a bad request": (CHAT, {"messages": 3}, [WORDS]),
    "another route": ("/v1/embeddings", {"input": "x"}, [WORDS]),
    "no route": ("GET /nothing", {}, [WORDS]),
    "a list": ("GET /v1/models", {}, [WORDS]),
}
TIMES = 5


@pytest.fixture(scope="module")
def app() -> Iterator[AppServer]:
    with app_server(WORDS) as running:
        yield running


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_leaves_nothing_to_the_garbage_collector(app: AppServer, name: str):
    route, more, replies = REQUESTS[name]
    *method, path = route.split()
    body = {"model": "mock", "messages": QUESTION, "input": QUESTION, "max_tokens": 9, **more}
    with httpx2.Client(base_url=app.url, timeout=60) as client:
        app.set_replies(*replies * (TIMES + 1))
        ask = partial(client.get, path) if method else partial(client.post, path, json=body)
        assert not left_often(ask)


def test_a_response_in_the_background_leaves_nothing(app: AppServer):
    body = {"model": "mock", "input": QUESTION, "background": True, "stream": True}
    with httpx2.Client(base_url=app.url, timeout=60) as client:
        app.set_replies(STREAM)
        assert not left_often(partial(client.post, RESPONSES, json=body))


def left_often(ask: Callable[[], Any]) -> dict[str, int]:
    """What of ours is left each time that something is asked."""
    ask()
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            ask()
        return {what: count for what, count in our_garbage().items() if count >= TIMES - 1}
    finally:
        gc.enable()


def our_garbage() -> Counter[str]:
    """What of ours cycles keep, and how many of each."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return Counter(filter(None, map(name_of, gc.garbage)))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


def name_of(thing: Any) -> str:
    """What of ours it is; nothing for what is not."""
    if isinstance(thing, FrameType):
        return thing.f_code.co_qualname if "/toolway/" in thing.f_code.co_filename else ""
    own = thing if isinstance(getattr(thing, "__module__", None), str) else type(thing)
    named = f"{own.__module__}.{getattr(own, '__qualname__', type(own).__qualname__)}"
    return named if named.startswith("toolway.") else ""
