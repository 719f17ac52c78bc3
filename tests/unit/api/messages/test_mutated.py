"""Mutated and type-confused requests: a chat completion that model servers take comes out, or the client's fault."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile import hostile
from tests.unit.conversation.test_mutated import mutated
from toolway.api.messages.input_messages import InputMessages
from toolway.api.messages.request import as_functions, read_request, read_tool
from toolway.errors import InvalidRequest
from toolway.server.asgi import parse_object
from toolway.types import JSON
from toolway.wire.lenient_json import dumps

BODY = orjson.dumps(orjson.loads((Path(__file__).parent / "body.json").read_bytes()))


@given(mutated([BODY]))
def test_any_body_is_a_request_or_the_clients_fault(data: bytes):
    assert_body(data)


@given(st.integers(0, 2**32))
def test_a_value_of_another_kind_in_any_place_is_told_in_words(seed: int):
    assert_confused(Random(seed))


def test_the_body_itself_is_served():
    body = parse_object(BODY)
    assert assert_served(body)


def assert_confused(random: Random) -> None:
    """The body with a hostile value in one or two places."""
    body = orjson.loads(BODY)
    for holder, key in random.choices(_places(body), k=random.randint(1, 2)):
        holder[key] = hostile(random)
    assert_body(dumps(body))


def _places(value: Any) -> list[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found: list[tuple[Any, Any]] = []
    for key, member in list(inner):
        found += [(value, key), *_places(member)]
    return found


def assert_body(data: bytes) -> None:
    """A body as it comes from the wire."""
    try:
        assert_served(parse_object(data))
    except InvalidRequest as error:
        assert error.message


def assert_served(body: JSON) -> list[JSON]:
    """The messages of a request: each call has its result right behind it, in order, and nothing is null."""
    request = read_request(body)
    given = InputMessages(lambda server, name: [f"{server}_{name}"], request.deferred, "user")
    messages = given.read(request.messages)
    tools = [*request.tools, *(tool for entry in given.defined if (tool := read_tool(entry, "tool")))]
    for function in as_functions(tools):
        assert isinstance(function["function"]["name"], str)
    waiting: list[str] = []
    for before, message in pairwise([{"role": "user"}, *messages]):
        assert isinstance(message["content"], str | list)
        if message["role"] == "tool":
            assert waiting.pop(0) == message["tool_call_id"]
            assert isinstance(message["content"], str)
            continue
        assert not waiting
        assert message["role"] != "user" or before["role"] != "user" or message is messages[0]
        waiting = [made["id"] for made in message.get("tool_calls", ())]
    assert not waiting
    return messages
