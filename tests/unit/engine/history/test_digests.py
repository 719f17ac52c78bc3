"""The digests by which the messages of a client are known again."""

from __future__ import annotations

from typing import Any

import pytest

from toolway.engine.history.digests import digests, essences

QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {"name": "f"}}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "It is\n\nsunny."}


def digest(*messages: Any) -> str:
    *_, whole = digests(essences(messages))
    return whole


def test_a_conversation_has_the_digest_under_which_earlier_versions_kept_it():
    assert digest(QUESTION, CALL, RESULT, ANSWER)[:16] == "f3e56d6b2a04d637"


@pytest.mark.parametrize(
    "same",
    [
        [{"role": "system", "content": "The time is 12:00."}, QUESTION, ANSWER],
        [QUESTION, {"role": "developer", "content": "Be brief."}, ANSWER],
        [QUESTION, {"role": "assistant", "content": "It is sunny."}],
        [
            QUESTION,
            {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"text": "sunny."}]},
        ],
        [{**QUESTION, "name": "ann"}, {**ANSWER, "refusal": None}],
    ],
)
def test_what_clients_change_when_they_send_a_message_again_changes_no_digest(same: list[Any]):
    assert digest(*same) == digest(QUESTION, ANSWER)


@pytest.mark.parametrize(
    "other",
    [
        [ANSWER, QUESTION],
        [QUESTION],
        [QUESTION, {"role": "user", "content": ANSWER["content"]}],
        [QUESTION, {**ANSWER, "tool_calls": CALL["tool_calls"]}],
        [
            QUESTION,
            {"role": "assistant", "content": [{"type": "image_url", "text": "It is sunny."}, {"type": "x"}]},
        ],
    ],
)
def test_another_conversation_has_another_digest(other: list[Any]):
    assert digest(*other) != digest(QUESTION, ANSWER)


def test_each_beginning_of_a_conversation_has_its_digest():
    system = {"role": "system", "content": "x"}
    empty, first, second, third = digests(essences([system, QUESTION, ANSWER]))
    assert empty == first == digest()
    assert second == digest(QUESTION)
    assert third == digest(QUESTION, ANSWER)
