"""What a refusal means, in the words of many model servers."""

from __future__ import annotations

import time
from email.utils import formatdate

import orjson
import pytest

from toolway.errors import UpstreamError, UpstreamStatus
from toolway.upstream.refusals import is_of_own_output, is_overflow, is_refusal, seconds_to_wait, sizes_in


def refused(message: str, status: int = 400, *headers: tuple[bytes, bytes], **more: object) -> UpstreamStatus:
    return UpstreamStatus(status, headers, orjson.dumps({"error": {"message": message, **more}}))


SIZES = [
    ("request (9010 tokens) exceeds the available context size (4096 tokens), try increasing it", 9010, 4096),
    ("This model's maximum context length is 8192 tokens. However, you requested 9000 tokens (7000 in the messages, "
     "2000 in the completion). Please reduce the length of the messages or completion.", 9000, 8192),
    ("This endpoint's maximum context length is 204,800 tokens. However, you requested about 220,799 tokens (193,088 "
     "of text input, 7,231 of tool input, 20,480 in the output). Please reduce the length of either one",
     220799, 204800),
    ("prompt is too long: 250000 tokens > 200000 maximum", 250000, 200000),
    ("Trying to keep the first 111490 tokens when context the overflows. However, the model is loaded with context "
     "length of only 4096 tokens, which is not enough.", 111490, 4096),
    ("The input token count (1048999) exceeds the maximum number of tokens allowed (1048576).", 1048999, 1048576),
    ("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100 "
     "`max_new_tokens`", 5000, 4096),
    ("Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
     40000, 32768),
    ("This model's maximum prompt length is 131072 but the request contains 150000 tokens.", 150000, 131072),
    ("Your request exceeded model token limit: 8192 (requested: 9000)", 9000, 8192),
    ("Please reduce the length of the messages or completion. Current length is 9000 while limit is 8192", 9000, 8192),
    ("The input (5120 tokens) is longer than the model's context length (4096 tokens).", 5120, 4096),
    ("Prompt length 5000 is greater than max_seq_len 4096", 5000, 4096),
    ("Prompt too long: 5000 tokens exceeds max 4096", 5000, 4096),
    ("The number of tokens to keep from the initial prompt is greater than the context length. Try to load the model "
     "with a larger context length, or provide a shorter input", 0, 0),
    ("Context length exceeded: 5000 > 4096", 5000, 4096),
    ("the prompt is too long", 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("message", "prompt", "context"), SIZES, ids=[row[0][:40] for row in SIZES])
def test_both_numbers_of_an_overflow_are_read(message: str, prompt: int, context: int):
    for error in (refused(message), UpstreamError(message)):
        assert is_overflow(error)
        assert not is_refusal(error)
        assert sizes_in(error) == (prompt, context)


def test_a_413_is_an_overflow_whatever_it_says():
    assert is_overflow(UpstreamStatus(413, [], b"<html>Request Entity Too Large</html>"))


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (refused("slow", 429, (b"retry-after", b"7")), 7),
        (refused("slow", 429, (b"retry-after", b"1"), (b"retry-after-ms", b"700")), 0.7),
        (refused("Loading model", 503), 0),
        (refused("Rate limit reached. Please try again in 1m2.5s.", 429), 62.5),
        (refused("Please try again in 250ms.", 429), 0.25),
        (refused("no", 429, details=[{"retryDelay": "37s"}]), 37),
        (refused("overloaded", 529, (b"retry-after", b"soon")), 0),
        (UpstreamError("Loading model"), 0),
        (refused("You exceeded your current quota", 429, code="insufficient_quota"), None),
        (refused("broken", 500, (b"retry-after", b"7")), None),
        (UpstreamError("The stream ended after 503 events.", code="upstream_cut"), None),
    ],
)
def test_how_long_to_wait_is_read(error: UpstreamError, seconds: float | None):
    assert seconds_to_wait(error) == seconds


def test_a_date_says_how_long_to_wait_too():
    later = formatdate(time.time() + 30, usegmt=True).encode()
    assert 25 < (seconds_to_wait(refused("later", 503, (b"retry-after", later))) or 0) <= 30
    past = formatdate(time.time() - 30, usegmt=True).encode()
    assert seconds_to_wait(refused("later", 503, (b"retry-after", past))) == 0


@pytest.mark.parametrize(
    ("message", "is_own"),
    [
        ("Failed to call a function. See 'failed_generation' for more details.", True),
        ("Tool call validation failed: attempted to call tool 'x' which was not in request.tools", True),
        ("Failed to parse tool call", True),
        ("Failed to parse input at pos 12", True),
        ("Invalid schema for function 'x'", False),
    ],
)
def test_a_refusal_of_the_models_own_words_is_known(message: str, is_own: bool):
    assert is_of_own_output(refused(message)) == is_own
