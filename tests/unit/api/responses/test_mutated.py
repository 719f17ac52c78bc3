"""Mutated requests and streams: a chat completion and valid events come out, or an error that is declared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.support.responses import check_events, check_response
from tests.unit.api.responses.golden_runner import TOOL, call, writer_of
from tests.unit.conversation.test_mutated import SAMPLES, chunk_of, decoded, mutated
from toolway.api.responses.items.event_writer import EventWriter
from toolway.api.responses.items.input_items import InputItems
from toolway.api.responses.items.request import ResponseRequest, choice_of, needs_approval, read_request
from toolway.api.responses.items.response_object import Event
from toolway.conversation.message import MessageBuilder
from toolway.errors import InvalidRequest, ToolwayError, UpstreamError
from toolway.server.asgi import parse_object
from toolway.types import JSON, ToolResult
from toolway.wire.lenient_json import dumps

BODY = orjson.dumps(orjson.loads((Path(__file__).parent / "body.json").read_bytes()))
THEIRS = {"tools": [{"type": "function", "name": "get_weather"}, {"type": "custom", "name": "client_tool"}]}
KEPT = {"include": ["reasoning.encrypted_content"], "tools": [{"type": "mcp", "server_label": "calc"}]}


@given(mutated([BODY]))
def test_any_body_is_a_request_or_the_clients_fault(data: bytes):
    assert_body(data, is_checked=True)


@given(mutated(SAMPLES), st.booleans(), st.booleans())
def test_any_stream_is_told_in_valid_events(data: bytes, theirs: bool, cut: bool):
    assert_written(data, theirs=theirs, cut=cut, is_checked=True)


def assert_body(data: bytes, *, is_checked: bool) -> None:
    """With `is_checked` the response object is held against OpenAI's types, which takes long."""
    try:
        body = parse_object(data)
        request = read_request(body)
        choice_of(request, lambda label, name: [f"{label}_{name}"])
        assert_messages(messages_of(request.items, request.model_name))
    except InvalidRequest as error:
        assert error.message
        return
    assert_served(request, is_checked=is_checked)


def assert_served(request: ResponseRequest, *, is_checked: bool) -> None:
    for entry in request.mcp:
        assert needs_approval(entry, "add") in (True, False)
    resource = EventWriter(request, "resp_0").resource
    dumps([resource, request.chat])
    if is_checked:
        check_response(resource)


def messages_of(
    items: Sequence[JSON], client_name: Callable[[str, Any], str] = lambda name, _: name
) -> list[JSON]:
    made = InputItems(lambda label, name: name, client_name=client_name)
    for number, item in enumerate(items):
        made.add(item, f"input[{number}]")
    return made.close()


def assert_messages(messages: list[JSON]) -> None:
    """A conversation that model servers take.

    Each call has its result behind it, in order, no assistant message follows another one, and nothing is null.
    """
    waiting: list[str] = []
    for before, message in pairwise([{"role": "user"}, *messages]):
        assert (before["role"], message["role"]) != ("assistant", "assistant")
        assert isinstance(message["content"], str | list)
        if message["role"] == "tool":
            assert waiting.pop(0) == message["tool_call_id"]
            assert isinstance(message["content"], str)
            continue
        assert not waiting
        waiting = [made["id"] for made in message.get("tool_calls", ())]
    assert not waiting
    dumps(messages)


def assert_written(data: bytes, *, theirs: bool, cut: bool, is_checked: bool) -> None:
    """A stream of a model server, told whole; as it is, or as one that breaks off."""
    writer = writer_of({"input": "Hi", **(THEIRS if theirs else KEPT)})
    builder = MessageBuilder(lambda name: theirs and name in ("get_weather", "client_tool"))
    events = writer.began()
    failure: ToolwayError | None = UpstreamError("It broke off.") if cut else None
    try:
        for payload in decoded(data, []) or ():
            chunk = chunk_of(payload)
            if chunk is not None and (visible := builder.feed(chunk)) is not None:
                events += writer.chunks([(visible, None)])
    except UpstreamError as error:
        failure = error
    events += writer.failed(failure) if failure else _end(writer, builder)
    for _, body in events:
        orjson.loads(body)
    if is_checked:
        assert check_events(events) == writer.resource


def _end(writer: EventWriter, builder: MessageBuilder) -> list[Event]:
    """The model's calls of ours run before the answer ends."""
    message, events = builder.message(), []
    for made in message.tool_calls:
        events += writer.call_began(made, TOOL)
    for made in reversed(message.tool_calls):
        events += writer.call_ended(made, ToolResult(text=made.arguments, is_error=len(made.name) % 2 == 0))
    if message.tool_calls and not message.cut_short:
        events += writer.approval_requested(call(), TOOL)[1]
    return [*events, *writer.ended(message, message.usage)]
