"""JSON values as nobody means them: thousands of levels and digits, halves of characters, what is no number."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import strategies as st


def nested(levels: int, key: str | None = None) -> Any:
    """A value within so many arrays, or objects under `key`."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if key is None else {key: value}
    return value


ODD: tuple[Any, ...] = (
    10**30, -(10**30), 2**64, 10**4200, 10**5000, float("nan"), float("inf"), "\ud83c", "a\udf8cb", "\x00",
    "\U0010ffff", True, None, 0.1, "", [], {}, nested(129), nested(900), nested(3000), nested(300, "a"), {"\ud800": 1},
)  # fmt: skip
"""What breaks JSON writers, and what is close to it."""

VALUES = st.recursive(
    st.integers(0, len(ODD) - 1).map(ODD.__getitem__) | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "\udfff"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def hostile(random: Random, depth: int = 4) -> Any:
    """A value with odd ones in it."""
    if depth <= 0 or random.random() < 0.5:
        return random.choice(ODD)
    if random.random() < 0.5:
        return [hostile(random, depth - 1) for _ in range(random.randint(0, 4))]
    keys = ("a", "b", "type", "items", "properties", "\udfff")
    return {random.choice(keys): hostile(random, depth - 1) for _ in range(random.randint(0, 4))}
