"""Vectors of texts, and which of many are nearest to one: their signs are compared first, then the best in full."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from operator import mul

IN_FULL = 300
"""Vectors that are compared number by number; of more these are the ones whose signs agree most."""


class Vector:
    """A vector of length 1. Raises ValueError for numbers that make none."""

    __slots__ = ("signs", "values")

    def __init__(self, values: Sequence[float]) -> None:
        length = math.hypot(*values)
        if not values or not math.isfinite(length) or not length:
            raise ValueError("these numbers make no vector")
        self.values = array("f", [value / length for value in values])
        self.signs = int("".join("1" if value > 0 else "0" for value in values), 2)

    def similarity(self, other: Vector) -> float:
        """The cosine of the angle between two vectors of as many dimensions."""
        return float(sum(map(mul, self.values, other.values)))


def nearest(query: Vector, vectors: Mapping[str, Vector], most: int = 60) -> list[str]:
    """The names of the vectors nearest to `query`, the nearest first; those of other dimensions are passed over."""
    known = {name: v for name, v in vectors.items() if len(v.values) == len(query.values)}
    names = sorted(known, key=lambda name: ((known[name].signs ^ query.signs).bit_count(), name))[:IN_FULL]
    return sorted(names, key=lambda name: (-query.similarity(known[name]), name))[:most]
