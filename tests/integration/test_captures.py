"""Real exchanges with llama.cpp, llama-cpp-python and transformers, replayed as round 1: no bug, no hang, no mess.

They lie beside the repository, or where TOOLWAY_SHARED says; the most telling ones are in `tests/compat/quirks`.
"""

from __future__ import annotations

from email.parser import BytesParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.answers import assert_error, assert_one_clean_answer, chunks_of, error_of
from tests.support.app_server import AppServer, app_server
from tests.support.paths import SHARED
from tests.support.tools import ToolService
from tests.support.upstream import Reply, json_reply, text_stream, whole

CAPTURES = SHARED / "models" / "captures"


def request_of(case: str) -> dict[str, Any] | None:
    """The recorded request's body, if it is one that gets as far as the model server."""
    _, _, body = (CAPTURES / f"{case}.request.http").read_bytes().partition(b"\r\n\r\n")
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    serves = isinstance(request, dict) and request.get("messages") and request.get("n") in (None, 1)
    return request if serves else None


CASES = sorted(
    case
    for path in CAPTURES.rglob("*.response.http")
    if path.name.startswith(("chat", "tool", "followup", "err")) and path.stat().st_size
    if request_of(case := path.relative_to(CAPTURES).as_posix().removesuffix(".response.http"))
)

pytestmark = pytest.mark.skipif(not CASES, reason=f"no captures in {CAPTURES}")


async def anything(arguments: Any) -> Any:
    return arguments


@pytest.fixture(scope="module")
def app():
    names = ("get_weather", "add", "get_time", "weather_lookup", "list_files")
    with app_server(tools=ToolService(**dict.fromkeys(names, anything))) as server:
        yield server


def read_reply(path: Path) -> Reply:
    """The recorded answer, its chunks as they were."""
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    status_line, _, lines = head.partition(b"\r\n")
    headers = [
        (name.lower().encode(), value.encode()) for name, value in BytesParser().parsebytes(lines).items()
    ]
    framing = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive"}
    chunked = (b"transfer-encoding", b"chunked") in headers
    parts = list(unchunked(body)) if chunked else [body]
    return Reply(parts, int(status_line.split()[1]), [h for h in headers if h[0] not in framing])


def unchunked(body: bytes) -> Any:
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            return
        yield body[:length]
        body = body[length + 2 :]


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_answer_becomes_a_clean_answer_or_a_clear_error(app: AppServer, case: str):
    request = request_of(case)
    assert request
    streamed = bool(request.get("stream"))
    reply = read_reply(CAPTURES / f"{case}.response.http")
    last = text_stream("Done.") if streamed else whole({"content": "Done."})
    # A server that refuses is asked again where that may help, and refuses again.
    more = [last] * 3 if reply.status == 200 else [reply] * 3
    app.upstream.replies = [reply, *more, json_reply({"error": "too many rounds"}, 500)]
    app.upstream.seen.clear()
    body = {key: value for key, value in request.items() if key != "tools"}
    answer = app.post(body)
    recorded = b"".join(part for part in reply.parts if isinstance(part, bytes))
    if reply.status != 200:
        assert answer.status_code == reply.status
        if recorded.startswith(b"{"):
            assert answer.content == recorded
        else:
            assert_error(answer.json())
    elif not streamed:
        assert answer.status_code == 200
        message = answer.json()["choices"][0]["message"]
        assert "tool_calls" not in message or message["tool_calls"] in (None, [])
    else:
        assert_stream(answer.status_code, answer.text, recorded)
    assert "toolway_error" not in answer.text


def assert_stream(status: int, text: str, recorded: bytes) -> None:
    assert status == 200
    chunks = chunks_of(text)
    if "error" in chunks[-1] or not recorded:
        error_of(chunks)
        assert_error(chunks[-1])
    else:
        assert_one_clean_answer(chunks)
        assert '"tool_calls":[{' not in text
