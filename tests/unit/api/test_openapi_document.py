"""GET /openapi.json: made beside the event loop, which other requests need."""

from __future__ import annotations

import sys
from types import FrameType

import orjson

from tests.unit.api.direct_apps import DirectApps
from toolway.tools.openapi.document_schemas import document_schema


def test_another_thread_makes_the_document():
    made: list[FrameType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is document_schema.__code__:
            made.append(frame)

    with DirectApps() as apps:
        sys.setprofile(note)  # of this thread, which is the event loop's
        try:
            answer = apps.ask(apps.rest, "GET", "/openapi.json", b"")
        finally:
            sys.setprofile(None)
    assert set(orjson.loads(answer.body)["paths"]) == {"/tools/echo", "/tools/order"}
    assert made == []
