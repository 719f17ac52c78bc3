"""Estimates of how many tokens text has, where no tokenizer is asked."""

from __future__ import annotations

BYTES_PER_TOKEN = 4
"""Of English text and of JSON, with the tokenizers of today."""

MIN_BYTES_PER_TOKEN = 3
"""On the safe side, for what must fit into a context: some code and JSON has no more."""


def estimate_tokens(size: int) -> int:
    """About how many tokens so many bytes of text have."""
    return size // BYTES_PER_TOKEN
