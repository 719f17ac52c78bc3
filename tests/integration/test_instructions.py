"""What a request costs, counted in instructions of Python, so that it holds on a busy machine: it must not grow.

`python -m tests.integration.test_instructions` shows the counts, and with a name the functions that they come from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import CodeType
from typing import Any

import httpx2
import pytest

from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.gate import Gate
from tests.support.instructions import Instructions
from tests.support.upstream import Reply, call_stream, text_stream, tool_call, whole
from toolway.console import conversation_recorder

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
WORDS = whole({"content": "It is cloudy."})


def at_once(stream: Reply) -> Reply:
    """A stream that comes in one read."""
    return Reply([b"".join(part for part in stream.parts if isinstance(part, bytes))])


ONE, HUNDRED = at_once(text_stream("a")), at_once(text_stream(*["ab"] * 100))
CALLED = at_once(call_stream(tool_call()))
CALL = whole({"tool_calls": [tool_call()]}, finish="tool_calls")
RUNS = 12
"""Of so many requests the cheapest counts: in the others something else may have run in between."""

LIMITS = {
    "a whole answer": (4_100, CHAT, [WORDS], {}),
    "a whole answer without tools": (4_000, CHAT, [WORDS], {}),
    "a whole answer with the search": (4_300, CHAT, [WORDS], {}),
    "a stream": (6_600, CHAT, [ONE], {"stream": True}),
    "a stream of a hundred events": (7_400, CHAT, [HUNDRED], {"stream": True}),
    "a whole tool round": (15_700, CHAT, [CALL, WORDS], {}),
    "a streamed tool round": (20_600, CHAT, [CALLED, ONE], {"stream": True}),
    "a whole response": (15_600, RESPONSES, [WORDS], {}),
    "a streamed response": (17_300, RESPONSES, [ONE], {"stream": True}),
    "a whole message": (13_500, MESSAGES, [WORDS], {}),
    "a streamed message": (15_000, MESSAGES, [ONE], {"stream": True}),
}
"""Instructions that one request may take with Python 3.11, an eighth more than it does when
nothing comes in between, and the request."""


APPS: dict[str, dict[str, Any]] = {
    "a whole answer without tools": {"endpoints": ""},
    "a whole answer with the search": {"tool_search": "on"},
}
"""How the Toolway is started that is asked; the others are one."""


class Counted:
    """A Toolway whose instructions are counted."""

    def __init__(self, app: AppServer, instructions: Instructions) -> None:
        self.app = app
        self.instructions = instructions

    def request(self, path: str, replies: list[Reply], more: dict[str, Any]) -> int:
        """The instructions that such a request takes when all is warm."""
        said = {"input": QUESTION} if path == RESPONSES else {"messages": QUESTION, "max_tokens": 99}
        self.app.set_replies(*replies * (RUNS + 3))
        counts = []
        with httpx2.Client(base_url=self.app.url, timeout=60) as client:
            for _ in range(RUNS + 3):
                before = self.instructions.total
                with self.instructions.counting():
                    answer = client.post(path, json={"model": "mock", **said, **more})
                assert answer.status_code == 200, answer.text
                counts.append(self.instructions.total - before)
        return min(counts[3:])


@contextmanager
def counting(**options: Any) -> Iterator[Counted]:
    """A Toolway that is started like this."""
    instructions = Instructions()
    with pytest.MonkeyPatch.context() as patch, app_server(on_start=instructions.watch, **options) as app:
        # On a slow machine it would fall into each request that the console writes down the one before.
        patch.setattr(conversation_recorder, "PAUSE", 3600.0)
        app.until_ready()
        yield Counted(app, instructions)


@pytest.fixture(scope="module")
def all_counted() -> Iterator[Callable[[str], Counted]]:
    with ExitStack() as stack:

        @cache
        def start(name: str) -> Counted:
            return stack.enter_context(counting(**APPS.get(name, {})))

        yield lambda name: start(name if name in APPS else "")


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="other versions of Python have other instructions"
)
@pytest.mark.parametrize("name", LIMITS)
def test_a_request_costs_no_more_than_it_did(all_counted: Callable[[str], Counted], name: str):
    limit, path, replies, more = LIMITS[name]
    took = all_counted(name).request(path, replies, more)
    assert took <= limit, f"{name} takes {took} instructions; it may take {limit}"
    assert took > 0.8 * limit, f"{name} takes {took} instructions only: lower its limit, {limit}"


def test_a_tool_round_costs_no_more_once_an_answer_was_interrupted():
    """Rounds that ran for a client which left are looked for where they may belong, and nowhere else."""
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION]
    with counting() as counted:
        app = counted.app
        before = counted.request(CHAT, [CALL, WORDS], {"messages": messages})
        gate = Gate()
        app.set_replies(CALLED, Reply([*text_stream("a").parts[:2], gate]))
        body = {"model": "mock", "messages": messages, "stream": True}
        with httpx2.Client() as client, client.stream("POST", app.url + CHAT, json=body) as answer:
            assert any('"a"' in line for line in answer.iter_lines())
        app.upstream.departures.wait()
        gate.open()
        after = counted.request(CHAT, [CALL, WORDS], {"messages": messages})
    assert after <= 1.04 * before, f"it took {before} instructions before, {after} since"


def main(names: list[str]) -> None:
    """Print what each costs, and for those that are named the functions that cost most."""
    for name, (limit, path, replies, more) in LIMITS.items():
        with counting(**APPS.get(name, {})) as counted:
            print(f"{counted.request(path, replies, more):8} of {limit:6} {name}")
            for code, count in counted.instructions.by_function.most_common(60 if name in names else 0):
                print(f"{count / (RUNS + 3):12.1f} {_name(code)}")


def _name(code: CodeType) -> str:
    """Where a function stands; of one that a dataclass made itself, its arguments."""
    made = code.co_filename == "<string>"
    return f"{code.co_qualname} {code.co_varnames[1:5] if made else code.co_filename}:{code.co_firstlineno}"


if __name__ == "__main__":
    main(sys.argv[1:])
