"""A million random and mutated inputs into all that reads from outside: `python -m tests.fuzz_long`.

The promises of `test_mutated.py` in `tests/unit/conversation` and below `tests/unit/api`, of `test_confused.py` there,
and of `test_compile.py`, a hundred times as fast, since nothing is shrunk.
Each input comes from a number of its own: what fails is told by the command that repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import sys
import time
from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

from tests.support.hostile import hostile
from tests.support.schemas import KEYWORDS, WORDS, assert_compiled
from tests.unit.api import test_confused as direct
from tests.unit.api.direct_apps import DirectApps
from tests.unit.api.messages import test_mutated as messages
from tests.unit.api.responses.test_mutated import BODY, assert_body, assert_written
from tests.unit.conversation.test_mutated import (
    ANSWER,
    BITS,
    REQUEST,
    SAMPLES,
    assert_answer,
    assert_cuts_change_nothing,
    assert_request,
    assert_stream,
)
from tests.unit.tools.test_invoke import assert_result
from toolway.schema.compile import MAX_BYTES, TERSEST, CannotCompile, compile_schema
from toolway.schema.targets import RULES
from toolway.wire.lenient_json import dumps

LOOP = asyncio.new_event_loop()

CHECKED = 0.01
"""How many responses are held against OpenAI's types: that takes fifty times as long as to write them."""


def mutated(random: Random, data: bytes) -> bytes:
    """`data` with up to four places overwritten, taken out, doubled or put in."""
    for _ in range(random.randint(0, 4)):
        start = random.randint(0, len(data))
        end = min(len(data), start + random.randint(0, 30))
        bits = [random.choice(BITS), random.randbytes(random.randint(0, 4)), data[start:end] * 2]
        data = data[:start] + random.choice(bits) + data[end:]
    return data


def anything(random: Random, depth: int) -> Any:
    """A JSON value made of a schema's words."""
    kind = random.random()
    if depth <= 0 or kind < 0.5:
        number = random.randint(-9, 10 ** random.randint(1, 22))
        return random.choice([None, True, False, number, random.random() * 1e9, "\ud800", *WORDS])
    if kind < 0.7:
        return [anything(random, depth - 1) for _ in range(random.randint(0, 3))]
    keys = KEYWORDS if random.random() < 0.8 else WORDS
    return {random.choice(keys): anything(random, depth - 1) for _ in range(random.randint(0, 5))}


def decode(random: Random) -> None:
    """The SSE decoder."""
    cuts = [random.randint(0, 9999) for _ in range(3)]
    assert_cuts_change_nothing(mutated(random, random.choice(SAMPLES)), cuts)


def build(random: Random) -> None:
    """The builder of messages, streamed and whole, and what the client would get."""
    assert_stream(mutated(random, random.choice(SAMPLES)))
    assert_answer(mutated(random, ANSWER))


def parse(random: Random) -> None:
    """The body of a request."""
    assert_request(mutated(random, REQUEST))


def compile_any(random: Random) -> None:
    """The schema compiler."""
    schema = {random.choice(KEYWORDS): anything(random, 5) for _ in range(random.randint(0, 8))}
    target = random.choice([*RULES])
    try:
        compiled = compile_schema(schema, target, terse=random.randint(0, TERSEST))
    except CannotCompile:
        return
    assert_compiled(compiled, target)
    assert len(dumps(compiled)) <= MAX_BYTES


def respond(random: Random) -> None:
    """The body of a request to the Responses API, with a conversation in it."""
    assert_body(mutated(random, BODY), is_checked=random.random() < CHECKED)


def converse(random: Random) -> None:
    """The body of a request to the Messages API, mutated or with values of other kinds in it."""
    if random.random() < 0.5:
        messages.assert_body(mutated(random, messages.BODY))
    else:
        messages.assert_confused(random)


def narrate(random: Random) -> None:
    """The events of a response."""
    theirs, cut = random.random() < 0.5, random.random() < 0.1
    data = mutated(random, random.choice(SAMPLES))
    assert_written(data, theirs=theirs, cut=cut, is_checked=random.random() < CHECKED)


def call(random: Random) -> None:
    """The call of a tool: hostile arguments, schema, result."""
    schema = {random.choice(KEYWORDS): hostile(random) for _ in range(random.randint(0, 3))}
    LOOP.run_until_complete(assert_result(hostile(random), schema, random.choice(["", "\ud800", "\x00"])))


def ask_mcp(random: Random) -> None:
    """A request to /mcp with values of other kinds in it."""
    direct.assert_mcp(_apps(), random)


def ask_rest(random: Random) -> None:
    """A call over REST with values of other kinds in it."""
    direct.assert_rest(_apps(), random)


@cache
def _apps() -> DirectApps:
    apps = DirectApps().__enter__()
    atexit.register(apps.__exit__)
    return apps


TARGETS: tuple[Callable[[Random], None], ...] = (
    decode,
    build,
    parse,
    compile_any,
    respond,
    converse,
    narrate,
    call,
    ask_mcp,
    ask_rest,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Random and mutated inputs into all that reads from outside."
    )
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--only", nargs="+", choices=[target.__name__ for target in TARGETS])
    options = parser.parse_args()
    targets = [target for target in TARGETS if not options.only or target.__name__ in options.only]
    each = max(1, options.inputs // len(targets))
    for target in targets:
        started = time.monotonic()
        for number in range(options.seed, options.seed + each):
            try:
                target(Random(number))
            except Exception:
                print(
                    f"python -m tests.fuzz_long --inputs 1 --seed {number} --only {target.__name__}",
                    file=sys.stderr,
                )
                raise
        print(
            f"{target.__name__}: {each:,} inputs in {time.monotonic() - started:.0f} s, first seed {options.seed}"
        )


if __name__ == "__main__":
    main()
