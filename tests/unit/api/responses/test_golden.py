"""Items and messages, case by case. `python -m tests.unit.api.responses.test_golden` writes what comes out anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.golden import Work, cases, regenerate
from tests.support.responses import check_events, check_response
from tests.unit.api.responses.golden_runner import run_steps, writer_of
from toolway.api.responses.items.input_items import InputItems, OpenTurn
from toolway.api.responses.items.request import choice_of, read_request
from toolway.errors import InvalidRequest
from toolway.server.envelopes import openai_envelope
from toolway.types import JSON

GOLDEN = Path(__file__).parent / "golden"


def request(case: JSON) -> JSON:
    """`body` of a request -> the chat completion, without messages, and its items."""
    try:
        request = read_request(case["body"])
        choice, allowed = choice_of(
            request, lambda label, name: [f"{label}_{name}"] if name else [f"{label}_x"]
        )
    except InvalidRequest as error:
        return {"error": openai_envelope(error)["error"]}
    out: JSON = {"chat": request.chat, "items": request.items}
    if choice is not None:
        out["choice"] = [choice, None if allowed is None else sorted(allowed)]
    return out


def input_items(case: JSON) -> JSON:
    """`items`, perhaps behind `before` and an open `turn` -> messages, and the calls that may run now."""
    turn = OpenTurn(**case["turn"]) if "turn" in case else None
    made = InputItems(lambda label, name: f"{label}__{name}", case.get("before", ()), turn)
    try:
        for number, item in enumerate(case["items"]):
            made.add(item, f"input[{number}]")
        messages = made.close()
    except InvalidRequest as error:
        return {"error": openai_envelope(error)["error"]}
    out: JSON = {"messages": messages}
    if made.approved:
        out["approved"] = [
            [one.request, one.call.id, one.call.name, one.call.arguments] for one in made.approved
        ]
    if made.denied:
        out["denied"] = made.denied
    if made.own:
        out["own"] = sorted(made.own)
    if made.shown_servers:
        out["listed"] = sorted(made.shown_servers)
    return out


def response(case: JSON) -> JSON:
    """What `happens` after a request's `body` -> events as [type, output_index, the rest], and how it ends.

    Ids, numbers and the response inside of events are left out, and so is the final output, which is the items told:
    `check_events` looks at all of that.
    """
    writer = writer_of({"model": "m", "input": "Hi", **case.get("body", {})})
    events = run_steps(writer, case["happens"])
    final = check_events(events)
    assert final == writer.resource
    end = {key: final[key] for key in ("status", "incomplete_details", "error", "usage") if final[key]}
    return {"events": [_told(orjson.loads(body)) for _, body in events], "end": end}


def _told(event: JSON) -> list[Any]:
    kind = event.pop("type").removeprefix("response.")
    for name in ("sequence_number", "response", "item_id"):
        event.pop(name, None)
    index = event.pop("output_index", None)
    return [kind, *([] if index is None else [index]), *([event.pop("item", event)] if event else [])]


def resource(case: JSON) -> JSON:
    """`body` of a request -> the response object as it begins, or how it differs from that of an empty one."""
    made, usual = (
        check_response(writer_of({"model": "m", "input": "Hi", **body}).resource)
        for body in (case["body"], {})
    )
    return {"response": {key: value for key, value in made.items() if value != usual[key]} or usual}


WORKS: dict[str, tuple[Work, frozenset[str]]] = {
    "requests": (request, frozenset({"name", "body"})),
    "input_items": (input_items, frozenset({"name", "items", "before", "turn"})),
    "responses": (response, frozenset({"name", "body", "happens"})),
    "resources": (resource, frozenset({"name", "body"})),
}
FILES = sorted(GOLDEN.glob("*/*.json"))
CASES = [
    pytest.param(file.parent.name, case, id=f"{file.stem}: {case['name']}")
    for file in FILES
    for case in cases(file)
]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_golden(kind: str, case: JSON):
    work, inputs = WORKS[kind]
    expected = {key: value for key, value in case.items() if key not in inputs}
    assert work(case) == expected


if __name__ == "__main__":
    for file in FILES:
        work, inputs = WORKS[file.parent.name]
        regenerate(file, inputs, work)
