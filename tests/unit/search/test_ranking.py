"""Rankings by meaning: vectors, and which are nearest."""

from __future__ import annotations

import math
import random
import time

import pytest

from toolway.search.ranking import Vector, nearest


@pytest.mark.parametrize("numbers", [[], [0.0, 0.0], [math.nan, 1.0], [math.inf], [1.7e308, 1.7e308]])
def test_numbers_that_make_no_vector_are_refused(numbers: list[float]):
    with pytest.raises(ValueError, match="no vector"):
        Vector(numbers)


def test_the_nearest_come_first_and_other_dimensions_are_passed_over():
    vectors = {
        "north": Vector([0, 1]),
        "east": Vector([2, 0]),
        "northeast": Vector([1, 1]),
        "odd": Vector([1, 1, 1]),
    }
    assert nearest(Vector([1, 0.1]), vectors) == ["east", "northeast", "north"]
    assert nearest(Vector([1, 0.1]), vectors, most=1) == ["east"]


def test_among_ten_thousand_the_nearest_are_found_by_their_signs_in_milliseconds():
    chance = random.Random(3)
    made = [Vector([chance.gauss(0, 1) for _ in range(64)]) for _ in range(200)]
    vectors = {str(n): made[n % 200] if n >= 200 else made[n] for n in range(10_000)}
    query = Vector([value + chance.gauss(0, 0.02) for value in made[7].values])
    began = time.process_time()
    found = nearest(query, vectors)
    assert time.process_time() - began < 0.2
    assert {int(name) % 200 for name in found[:50]} == {7}
