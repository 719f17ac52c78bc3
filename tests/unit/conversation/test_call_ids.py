"""Ids of calls that leave: the model server's own id comes back out of them, and nobody can guess the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.conversation.call_ids import (
    new_token,
    original_id,
    public_id,
    token_in,
    with_original_ids,
    with_public_ids,
)
from toolway.conversation.events import Chunks
from toolway.types import JSON


@given(st.text(max_size=60))
def test_the_original_comes_back(identity: str):
    token = new_token()
    made = public_id(identity, token)
    assert (original_id(made), token_in(made)) == (identity, token)


@pytest.mark.parametrize(
    "identity", ["call_0", "functions.mine:0", "a1B2c3D4e", "", "x-tw-short", "-tw-" + "é" * 20]
)
def test_other_ids_stay_as_they_are(identity: str):
    assert original_id(identity) == identity
    assert token_in(identity) is None


def test_tokens_differ():
    assert len({new_token() for _ in range(1000)}) == 1000


def test_only_the_first_fragment_of_a_call_holds_an_id():
    def chunk(call: JSON) -> JSON:
        return {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}

    first, more = (
        {"index": 0, "id": "call_0", "function": {"name": "x"}},
        {"index": 0, "function": {"arguments": "{}"}},
    )
    raw = b'{"choices":[]}'
    made = with_public_ids(Chunks([(chunk(first), None), (chunk(more), None), ("text", raw)]), "0f" * 10)
    assert made.items[0][0] == chunk({**first, "id": "call_0-tw-" + "0f" * 10})
    assert made.items[1:] == [(chunk(more), None), ("text", raw)]
    assert first["id"] == "call_0"


SCALARS = st.none() | st.booleans() | st.integers() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
CALL = st.fixed_dictionaries({}, optional={"id": VALUES, "function": VALUES})
ROLES = st.sampled_from(["assistant", "tool", "user"])
MESSAGES = st.fixed_dictionaries(
    {},
    optional={"role": ROLES | VALUES, "tool_calls": st.lists(CALL | VALUES) | VALUES, "tool_call_id": VALUES},
)


@given(st.lists(MESSAGES | VALUES))
def test_whatever_a_client_sends_is_left_alone_without_our_ids(messages: list[object]):
    assert with_original_ids(messages) == messages
