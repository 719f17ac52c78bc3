"""What the narrator writes is what OpenAI's client reads."""

from __future__ import annotations

from tests.support.responses import check_events
from toolway.errors import UpstreamError
from toolway.items.narrator import Narrator
from toolway.items.request import read_request


def test_an_error_has_the_shape_of_the_documents_and_that_of_the_server():
    narrator = Narrator(read_request({"model": "m", "input": "Hi"}), "resp_1")
    events = [*narrator.began(), *narrator.failed(UpstreamError("It broke", code="upstream_cut"))]
    assert check_events(events)["error"] == {"code": "server_error", "message": "It broke"}
    assert b'"code":"upstream_cut","message":"It broke","param":null,"error":{' in events[2][1]
