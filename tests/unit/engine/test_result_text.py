"""How much of a result the model gets, and how it learns that there is more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.engine.tool_results import Budget, id_in, shorten
from toolway.errors import UpstreamError, UpstreamStatus
from toolway.upstream.refusals import excess_of, is_overflow

MOST = Budget(result=60_000, round=120_000)


@pytest.mark.parametrize(
    ("context", "result", "round"),
    [
        (None, 60_000, 120_000),
        (4096, 3072, 6144),
        (131_072, 60_000, 120_000),
        (512, 2000, 2000),
    ],
)
def test_a_budget_follows_the_context_of_the_model(context: int | None, result: int, round: int):
    assert MOST.within(context) == Budget(result=result, round=round)


@pytest.mark.parametrize(
    ("lengths", "shares"),
    [
        ([], []),
        ([10], [10]),
        ([500], [100]),
        ([10, 500, 500], [10, 95, 95]),
        ([500, 500, 500, 500], [50, 50, 50, 50]),
    ],
)
def test_short_results_stay_whole_and_long_ones_share_the_rest(lengths: list[int], shares: list[int]):
    assert Budget(result=100, round=200).shares(lengths) == shares


@given(st.lists(st.integers(0, 10_000), max_size=20), st.integers(1, 5000), st.integers(1, 5000))
def test_shares_keep_within_the_budget(lengths: list[int], result: int, round: int):
    shares = Budget(result=result, round=round).shares(lengths)
    assert sum(shares) <= round
    assert all(share <= min(length, result) for share, length in zip(shares, lengths, strict=True))


def test_a_cut_shows_both_ends_and_tells_how_to_see_more():
    cut = shorten("a" * 900 + "b" * 100, 300, "f00d")
    assert cut.startswith("a" * 200 + "\n")
    assert cut.endswith("\n" + "b" * 100)
    assert "700 of 1,000 characters left out" in cut
    assert '{"id": "f00d", "offset": 200}' in cut
    assert id_in(cut) == "f00d"
    assert id_in(shorten("a" * 900, 300)) is None


def refused(body: str, status: int = 400) -> UpstreamStatus:
    return UpstreamStatus(status, [], body.encode())


OVERFLOWS = [
    refused(
        '{"error":{"code":400,"message":"request (9010 tokens) exceeds the available context size (4096 tokens), '
        'try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9010,"n_ctx":4096}}'
    ),
    refused('{"error":{"message":"too long","code":"context_length_exceeded"}}'),
    refused(
        '{"error":{"message":"You passed 1015 input tokens and requested 10 output tokens. However, the model\'s '
        "context length is only 1024 tokens, resulting in a maximum input length of 1014 tokens. Please reduce the "
        'length of the input prompt.","type":"BadRequestError","code":400}}'
    ),
    refused('{"error":{"message":"This model\'s maximum context length is 4096 tokens. However, ..."}}'),
    refused('{"error":"Context size has been exceeded."}', 500),
    refused('{"error":"the prompt is too long: 300 tokens > 200 maximum"}'),
    refused('{"error":{"message":"Requested tokens (9010) exceed context window of 4096"}}', 500),
    UpstreamError("Trying to keep the first 111490 tokens when context the overflows."),
    UpstreamError("The model server's stream ended without an answer in it.", code="upstream_cut"),
]
OTHERS = [
    refused('{"error":{"message":"failed to parse grammar"}}'),
    refused('{"error":{"message":"Invalid API key"}}', 401),
    refused('{"error":{"message":"Rate limit: reduce the length of the messages or wait"}}', 429),
    refused('{"error":{"message":"model not found in this context"}}', 404),
    UpstreamError("The model server's stream ended before it was complete.", code="upstream_cut"),
    UpstreamError("The model server cannot be reached"),
]


@pytest.mark.parametrize("error", OVERFLOWS, ids=lambda error: error.message[-60:])
def test_a_conversation_that_is_too_long_is_known_by_what_servers_say(error: UpstreamError):
    assert is_overflow(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: error.message[-60:])
def test_other_errors_are_not_taken_for_it(error: UpstreamError):
    assert not is_overflow(error)


def test_the_excess_is_reckoned_where_the_server_gives_numbers():
    assert excess_of(OVERFLOWS[0]) == pytest.approx(1 - 0.75 * 4096 / 9010)
    assert excess_of(OVERFLOWS[1]) == 0.5
