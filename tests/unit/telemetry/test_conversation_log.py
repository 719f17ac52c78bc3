"""What the log says, and what it never says."""

from __future__ import annotations

import base64
import io
import logging
from asyncio import CancelledError
from collections.abc import Iterator
from urllib.parse import quote

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.logs import logged
from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    ConversationBegan,
    ConversationEnded,
    ConversationFailed,
    HeadArrived,
    Outcome,
    RoundBegan,
    TextBegan,
)
from toolway.conversation.message import ChatRequest, Message
from toolway.errors import InvalidRequest, UpstreamError
from toolway.settings.env_endpoints import Endpoint
from toolway.settings.settings import LogSettings, ServerSettings, Settings, ToolSettings, UpstreamSettings
from toolway.telemetry.conversation_log import ConversationLog, log_conversation, log_failure
from toolway.telemetry.logging import (
    SUSPECTS,
    LineFormatter,
    Redactor,
    also_mask,
    configure_logging,
    visible,
)
from toolway.types import Tool, ToolCall, ToolResult

SETTINGS = Settings(
    upstream=UpstreamSettings(api_key="sk-canary-key"),
    server=ServerSettings(api_keys=("canary one", "x7")),
    tools=ToolSettings(
        endpoints=(
            Endpoint(label="a", url="http://a", username="me", password="canary/p%w", token='canary"t'),
        )
    ),
)


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    with logged(SETTINGS) as stream:
        yield stream


def lines(stream: io.StringIO) -> list[str]:
    return [line.split(": ", 1)[1] for line in stream.getvalue().splitlines()]


def talk() -> None:
    note = ConversationLog()
    call = ToolCall(id="1", name="get_weather", arguments='{"city":"Paris"}')
    tool = Tool(name="get_weather", server="weather", description="", parameters={})
    request = ChatRequest.of({"model": "m", "stream": True, "messages": [{}, {}]})
    note(ConversationBegan(request=request, offered={"a": tool, "b": tool, "c": tool}))
    note(RoundBegan(number=1))
    note(CallBegan(call=call, tool=tool))
    note(CallEnded(call=call, tool=tool, result=ToolResult(text="sunny"), seconds=0.5))
    note(CallBegan(call=call, tool=None))
    failure = ToolResult(text="no such tool", is_error=True)
    note(CallEnded(call=call, tool=None, result=failure, seconds=0))
    note(RoundBegan(number=2))
    note(HeadArrived(headers=[]))
    note(TextBegan())
    message = Message(fields={}, finish_reason="stop")
    note(
        ConversationEnded(
            outcome=Outcome(message=message, total_usage={"total_tokens": 9}, rounds=2, calls=2)
        )
    )


def test_a_conversation_is_readable(written: io.StringIO) -> None:
    talk()
    texts = [line.split(" ", 1)[1] for line in lines(written)]
    assert texts[:-1] == [
        "> m, streamed, 2 messages, 3 tools",
        '  call get_weather of weather: {"city":"Paris"}',
        "  done get_weather in 0.50 s, 5 characters",
        '  call get_weather (unknown): {"city":"Paris"}',
        "  failed get_weather in 0.00 s, 12 characters",
        "  because: no such tool",
        "  round 2",
    ]
    assert texts[-1].startswith("< stop, 2 rounds, 2 calls, 9 tokens, 0.")
    assert len({line.split(" ", 1)[0] for line in lines(written)}) == 1


def test_without_debug_output_only_trouble_is_told(written: io.StringIO) -> None:
    configure_logging(Settings(log=LogSettings(debug_output=False)), written)
    assert log_conversation() is None
    log_failure(ConversationFailed(error=InvalidRequest("the client's affair"), seconds=1.25))
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("another.library").info("chatter")
    assert written.getvalue() == ""
    log_failure(ConversationFailed(error=UpstreamError("The model server cannot be reached"), seconds=1.25))
    assert "warning chat: " in written.getvalue()
    assert "502 after 1.25 s" in written.getvalue()


def test_a_failure_is_told_once(written: io.StringIO) -> None:
    failed = ConversationFailed(error=UpstreamError("The model server cannot be reached"), seconds=1.25)
    note = log_conversation()
    assert note
    note(failed)
    log_failure(failed)
    assert len(lines(written)) == 1


def test_configuring_twice_does_not_write_twice(written: io.StringIO) -> None:
    configure_logging(SETTINGS, written)
    logging.getLogger("toolway.catalog").info("once")
    assert lines(written) == ["once"]


def test_long_values_are_cut(written: io.StringIO) -> None:
    call = ToolCall(id="1", name="n" * 1000, arguments="a" * 100_000)
    note = ConversationLog()
    note(ConversationBegan(request=ChatRequest.of({"model": "m" * 5000, "messages": []})))
    note(CallBegan(call=call, tool=None))
    assert all(len(line) < 700 for line in lines(written))
    assert "(100,000 characters)" in written.getvalue()


SECRETS = SETTINGS.secrets


def test_cutting_leaves_no_half_of_a_secret(written: io.StringIO) -> None:
    for offset in range(190, 202):
        logging.getLogger("toolway.x").info("%s", "." * offset + SECRETS[0] + "." * 300)
    assert "canary" not in written.getvalue()
    assert "sk-" not in written.getvalue()


@pytest.mark.parametrize("secret", SECRETS)
def test_configured_secrets_are_masked_in_every_form(secret: str, written: io.StringIO) -> None:
    for level in (logging.DEBUG, logging.INFO, logging.ERROR):
        log = logging.getLogger("toolway.any")
        log.log(level, "%s", secret)
        log.log(level, "%s %s %r", quote(secret, safe=""), orjson.dumps(secret).decode(), secret)
        log.log(level, "%(a)s", {"a": [secret]})
    assert secret not in written.getvalue()
    assert quote(secret, safe="") not in written.getvalue()
    assert written.getvalue().count("***") >= 9


def test_secrets_in_exceptions_are_masked(written: io.StringIO) -> None:
    try:
        try:
            raise ValueError(f"key {SECRETS[0]}")
        except ValueError as inner:
            raise RuntimeError("http://me:hunter2@host/ failed") from inner
    except RuntimeError:
        logging.getLogger("somebody.else").exception("it broke with %s", SECRETS[1])
    text = written.getvalue()
    assert not any(word in text for word in (SECRETS[0], SECRETS[1], "hunter2"))
    assert "RuntimeError: http://***@host/ failed" in text


def test_a_short_secret_is_masked_alone_but_not_inside_words() -> None:
    assert Redactor(["x7"])("key x7, max70, x7!") == "key ***, max70, ***!"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer CANARYCANARY",
        "authorization: bearer CANARYCANARY",
        "{'Authorization': 'Bearer CANARYCANARY'}",
        "(b'authorization', b'Bearer CANARYCANARY')",
        "(b'x-api-key', b'CANARYCANARY')",
        "Authorization: Basic " + base64.b64encode(b"CANARYCANARY:pw").decode(),
        "x-api-key: CANARYCANARY",
        '{"api_key": "CANARYCANARY"}',
        "api-key=CANARYCANARY&x=1",
        "?access_token=CANARYCANARY",
        "password=CANARYCANARY",
        "sk-CANARYCANARY",
        "sk-proj-CANARY_CANARY-1",
        "error at https://CANARY:CANARY@host:1/path",
        "https://CANARY@host/",
        "redis://:CANARY@host/",
        "https://u:p@CANARY@host/",
        "github_pat_CANARYCANARY",
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    redacted = Redactor([])(text)
    assert "CANARY" not in redacted
    assert base64.b64encode(b"CANARYCANARY:pw").decode() not in redacted
    assert "***" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "server weather is ready: 3 tools (OpenAPI 3.1.0)",
        "http://127.0.0.1:8011/openapi.json",
        "mail me@example.com about http://host/a@b",
        "call get_sk of task-list-manager: {}",
        "tokens 12, 300 characters, password reset page",
    ],
)
def test_plain_lines_stay_as_they_are(text: str) -> None:
    assert Redactor(["some-secret"])(text) == text


def test_a_secret_that_comes_later_is_masked_too(written: io.StringIO) -> None:
    log = logging.getLogger("toolway.x")
    also_mask(["later/canary", "x7"])
    log.warning("%s %s %s", "later/canary", quote("later/canary", safe=""), SECRETS[0])
    assert lines(written) == ["*** *** ***"]


@given(st.data())
def test_each_pattern_is_for_texts_that_have_one_of_its_words(data: st.DataObject) -> None:
    words, pattern, _ = data.draw(st.sampled_from(SUSPECTS))
    found = data.draw(st.from_regex(pattern, alphabet=st.characters(codec="ascii")))
    assert any(word in found.lower() for word in words)


def test_what_looks_like_a_secret_is_masked_in_letters_of_others_too() -> None:
    assert Redactor([])("pa\u017f\u017fword=CANARYCANARY") == "pa\u017f\u017fword=***"


@given(st.text(min_size=6), st.text(), st.text())
def test_no_secret_survives_wherever_it_stands(secret: str, before: str, after: str) -> None:
    redacted = Redactor([secret])(before + secret + after)
    assert secret not in redacted or secret in "***" * 3 or secret in before + "***" + after


@given(st.text())
def test_a_record_is_one_line_without_controls(text: str) -> None:
    record = logging.LogRecord("toolway.x", logging.INFO, "", 0, "%s", (text,), None)
    line = LineFormatter(Redactor([])).format(record)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    line.encode()


def test_forged_lines_and_terminal_codes_are_shown_as_escapes(written: io.StringIO) -> None:
    logging.getLogger("toolway.x").info("%s", "a\r\n2026-01-01 00:00:00 info chat: forged\x1b[2J\u202e")
    assert lines(written) == [r"a\r\n2026-01-01 00:00:00 info chat: forged\x1b[2J\u202e"]


def test_the_lines_of_a_traceback_are_set_off(written: io.StringIO) -> None:
    try:
        raise ValueError("first\n2026-01-01 00:00:00 error chat: forged\x1b[31m")
    except ValueError:
        logging.getLogger("toolway.x").exception("bug")
    first, *rest = written.getvalue().splitlines()
    assert first.endswith("error   x: bug")
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert "\x1b" not in written.getvalue()


@given(st.text())
def test_visible_text_keeps_what_can_be_seen(text: str) -> None:
    shown = visible(text)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert visible(shown) == shown


def test_colours_only_on_a_terminal_and_unless_refused(
    monkeypatch: pytest.MonkeyPatch, written: object
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    configure_logging(SETTINGS, coloured)
    logging.getLogger("toolway.x").warning("w")
    monkeypatch.setenv("NO_COLOR", "1")
    configure_logging(SETTINGS, plain)
    logging.getLogger("toolway.x").warning("w")
    assert "\x1b[33m" in coloured.getvalue()
    assert "\x1b" not in plain.getvalue()


def test_a_broken_record_says_nothing(written: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    (handler,) = (h for h in logging.getLogger().handlers if getattr(h, "stream", None) is written)
    handler.handle(logging.LogRecord("toolway.x", logging.INFO, "", 0, "%d", (SECRETS[0],), None))
    assert written.getvalue() + capsys.readouterr().err == ""


def test_what_uvicorn_says_about_cut_connections_is_no_news(written: io.StringIO) -> None:
    server = logging.getLogger("uvicorn.error")
    server.error("ASGI callable returned without completing response.")
    server.error("Cancel %s running task(s), timeout graceful shutdown exceeded", 3)
    server.error("Exception in ASGI application\n", exc_info=CancelledError())
    assert written.getvalue() == ""
    server.error("Exception in ASGI application\n", exc_info=ValueError("a bug"))
    assert "a bug" in written.getvalue()
