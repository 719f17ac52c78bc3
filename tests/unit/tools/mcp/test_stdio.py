"""MCP servers over stdio: the good ones of both eras, and each fault that a bad one can have."""

from __future__ import annotations

import json
import time
import tracemalloc

import anyio
import pytest

from tests.unit.tools.mcp.support import TIMEOUT, bad, good, running, until
from toolway.tools.catalog import Catalog
from toolway.tools.mcp import MCPSource, ReconnectPolicy, inbound, options, stdio
from toolway.types import Progress


async def test_a_modern_server_is_ready_with_its_tools() -> None:
    async with running(good()) as server:
        status = await server.ready()
        assert status.protocol == "MCP 2026-07-28"
        assert [tool.name for tool in status.tools][:2] == ["echo", "pid"]
        assert status.tools[0].server == "good"
        assert status.tools[0].parameters["properties"]["seconds"] == {"type": "number"}


async def test_the_older_era_can_be_asked_for() -> None:
    async with running(good(era="legacy")) as server:
        assert (await server.ready()).protocol == "MCP 2025-11-25"
        assert (await server.call("echo", {"value": 1})).text == "1"


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_arguments_keep_their_types(era: str) -> None:
    value = {
        "n": 1,
        "f": 1.5,
        "b": True,
        "none": None,
        "s": "é",
        "list": [1, "2"],
        "deep": {"a": {"b": 2**53}},
    }
    async with running(good(era=era)) as server:
        await server.ready()
        assert (await server.call("echo", {"value": value})).text == repr(value)


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_results_of_every_kind_reach_the_model(era: str) -> None:
    async with running(good(era=era)) as server:
        await server.ready()
        failed = await server.call("fail")
        assert (failed.text, failed.is_error) == ("this did not work", True)
        image = await server.call("image")
        assert image.images[0].media_type == "image/png"
        assert image.text == "The tool returned 1 image."
        assert json.loads((await server.call("structured")).text) == {"degrees": 21}
        mixed = await server.call("everything")
        assert mixed.text == (
            "words\n\n[audio, audio/wav, 3 bytes: not shown]\n\n[a](file:///a.txt): a file\n\n[note://1]\ninside"
        )
        assert len(mixed.images) == 1


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_progress_is_reported_to_the_caller(era: str) -> None:
    heard: list[Progress] = []
    async with running(good(era=era)) as server:
        await server.ready()
        assert (await server.call("slow", {"seconds": 0.01}, on_progress=heard.append)).text == "slept"
    assert heard == [Progress(progress=1, total=2, message="half way")]


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_cancelled_call_is_cancelled_at_the_server(era: str) -> None:
    async with running(good(era=era)) as server:
        await server.ready()
        started = anyio.Event()
        async with anyio.create_task_group() as tasks:

            async def call() -> None:
                await server.call("slow", {"seconds": 1000}, on_progress=lambda _: started.set())

            tasks.start_soon(call)
            with anyio.fail_after(TIMEOUT):
                await started.wait()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(TIMEOUT):
            while (await server.call("events")).text != "started cancelled":
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_changed_list_is_read_again(era: str) -> None:
    async with running(good(era=era)) as server:
        await server.ready()
        grown = (await server.call("grow")).text
        await server.until(lambda status: grown in [tool.name for tool in status.tools])


async def test_other_tools_of_a_server_that_was_restarted_are_none_that_it_told_of() -> None:
    async with running(good(era="legacy")) as server:
        await server.ready()
        grown = (await server.call("grow")).text
        told = await server.until(lambda status: grown in [tool.name for tool in status.tools])
        await server.call("crash")
        again = await server.until(
            lambda status: status.state == "ready" and grown not in [tool.name for tool in status.tools]
        )
        assert again.announced == told.announced == 1


async def test_a_server_that_ends_at_the_question_for_its_era_is_asked_the_old_way() -> None:
    async with running(bad("discover_kills")) as server:
        assert (await server.ready()).protocol == "MCP 2025-06-18"
        assert (await server.call("ok")).text == "fine"


async def test_a_server_that_is_silent_at_the_question_for_its_era_is_asked_the_old_way() -> None:
    async with running(bad("discover_hangs")) as server:
        assert (await server.ready()).protocol == "MCP 2025-06-18"


async def test_the_era_is_remembered_over_a_restart() -> None:
    heard: list[str] = []
    async with running(bad("discover_hangs"), on_line=heard.append) as server:
        await server.ready()
        assert (await server.call("exit")).is_error
        await server.until(lambda status: status.state == "starting")
        await server.ready()
        assert heard.count("asked for its era") == 1


async def test_a_version_that_nobody_speaks_is_a_failure_that_says_so() -> None:
    async with running(bad("bad_version")) as server:
        status = await server.until(lambda status: status.state == "failed")
        assert "'1999-01-01'" in (status.error or "")
        assert status.error_stage == "initialize"


async def test_a_server_that_never_answers_initialize_fails_after_its_time() -> None:
    async with running(bad("initialize_hangs"), policy=ReconnectPolicy(connect_timeout=1.0)) as server:
        status = await server.until(lambda status: status.state == "failed")
        assert status.error == "no answer within 1 s"
        assert status.error_stage == "initialize"


async def test_a_server_that_dies_at_start_fails_with_its_last_words() -> None:
    async with running(bad("dies")) as server:
        status = await server.until(lambda status: status.state == "failed")
        assert status.error == "the server ended with exit status 1. It last wrote: no configuration given"


async def test_the_line_that_tells_what_went_wrong_is_kept_before_a_long_stack() -> None:
    async with running(bad("dies_like_node")) as server:
        status = await server.until(lambda status: status.state == "failed")
        assert "Error: Cannot find module '/srv/index.js' | ..." in (status.error or "")
        assert (status.error or "").endswith("Node.js v22.11.0")


NO_SERVER = """
import sys
for line in ("Hello I am no JSON", "", "[INFO] and a log", '{"level": "info"}'):
    print(line, flush=True)
if "stays" in sys.argv:
    sys.stdin.read()
else:
    sys.exit(print("no end", end=""))
"""


async def test_a_program_that_prints_text_is_told_of_at_once_and_in_the_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "toolway.server.bad")
    heard: list[str] = []
    said = 'it wrote on its standard output: Hello I am no JSON | [INFO] and a log | {"level": "info"}'
    policy = ReconnectPolicy(connect_timeout=3.0, first_delay=60)
    async with running(bad(args=("-c", NO_SERVER, "stays")), policy=policy, on_line=heard.append) as server:
        status = await server.until(lambda status: status.warnings == (said,))
        assert status.is_untried
        status = await server.until(lambda status: status.state == "failed")
    assert status.error == f"no answer within 3 s; {said}"
    assert status.warnings == ()
    assert heard[:3] == ["Hello I am no JSON", "[INFO] and a log", '{"level": "info"}']
    assert "Hello I am no JSON" in [record.getMessage() for record in caplog.records]


async def test_a_program_that_prints_text_and_ends_fails_with_it() -> None:
    async with running(bad(args=("-c", NO_SERVER))) as server:
        status = await server.until(lambda status: status.state == "failed")
    assert (status.error or "").startswith(
        "the server ended with exit status 0; it wrote on its standard out"
    )
    assert (status.error or "").endswith('{"level": "info"} | no end')


async def test_a_banner_is_no_warning_of_a_server_that_is_ready() -> None:
    async with running(bad("banner")) as server:
        assert (await server.ready()).warnings == ()
        assert any("Welcome to FooServer" in status.warnings[0] for status in server.seen if status.warnings)


async def test_a_command_that_is_not_there_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    source = MCPSource(
        bad(command="no-such-command", where="mcp.json:3"), policy=ReconnectPolicy(first_delay=0.02)
    )
    async with Catalog([source]).running():
        times: set[float | None] = set()

        def has_failed_often() -> bool:
            times.add(source.status.error_at)
            return len(times) > 4

        await until(has_failed_often)
    assert caplog.text.count("no-such-command") == 1
    assert (source.status.error or "").startswith("mcp.json:3: ")
    assert "'no-such-command' was not found" in (source.status.error or "")
    assert source.status.error_stage == "start"


@pytest.mark.parametrize("fault", ["banner", "no_info", "stderr_flood", "weird_name"])
async def test_a_sloppy_start_does_no_harm(fault: str) -> None:
    async with running(bad(fault)) as server:
        await server.ready()
        assert (await server.call("ok")).text == "fine"


@pytest.mark.parametrize(
    ("fault", "warning"),
    [
        ("empty_schema", None),
        ("null_schema", "'broken' has no usable input schema"),
        ("nulls", None),
        ("bad_output_schema", None),
        ("double_tool", "'ok' is listed twice"),
        ("nameless", "item 1 of the tool list has no name"),
    ],
)
async def test_one_bad_tool_does_not_cost_the_others(fault: str, warning: str | None) -> None:
    async with running(bad(fault)) as server:
        status = await server.ready()
        assert {"ok", "pid", "hold"} <= {tool.name for tool in status.tools}
        assert [warning in said for said in status.warnings] == ([True] if warning else [])
        assert (await server.call("ok")).text == "fine"


async def test_every_page_of_a_list_is_read() -> None:
    async with running(bad("pages")) as server:
        status = await server.ready()
        assert [tool.name for tool in status.tools] == [f"page{p}_{n}" for p in range(5) for n in range(3)]


async def test_a_cursor_that_comes_back_ends_the_list() -> None:
    async with running(bad("cursor_loop")) as server:
        assert "ok" in [tool.name for tool in (await server.ready()).tools]
        assert (await server.call("listed")).text == "2", (
            "the loop is seen when it comes back, not at the limit"
        )


@pytest.mark.parametrize("tool", ["noise", "unknown_notification", "double", "crlf", "batch", "big_stderr"])
async def test_noise_around_an_answer_is_skipped(tool: str) -> None:
    async with running(bad()) as server:
        await server.ready()
        assert (await server.call(tool)).text == "fine"
        assert (await server.call("ok")).text == "fine"


async def test_bytes_that_are_no_utf8_do_not_deafen_the_reader() -> None:
    async with running(bad()) as server:
        await server.ready()
        assert (await server.call("bad_utf8")).text == "\N{REPLACEMENT CHARACTER}"
        assert (await server.call("ok")).text == "fine"


@pytest.mark.parametrize(
    ("tool", "said"), [("malformed", "not valid JSON-RPC"), ("nameless_error", "went wrong")]
)
async def test_an_answer_that_is_no_jsonrpc_ends_its_call(tool: str, said: str) -> None:
    async with running(bad()) as server:
        await server.ready()
        result = await server.call(tool)
        assert result.is_error
        assert said in result.text


async def test_twenty_megabytes_arrive_in_linear_time() -> None:
    async with running(bad()) as server:
        await server.ready()
        began = time.process_time()
        result = await server.call("huge", {"bytes": 20_000_000})
        assert len(result.text) == 20_000_000
        assert time.process_time() - began < 2, "20 MB cost the SDK's reader 4.8 s of CPU"


async def test_an_answer_over_the_limit_ends_its_call_and_no_other() -> None:
    async with running(bad(), max_result_bytes=1_000_000) as server:
        await server.ready()
        tracemalloc.start()
        result = await server.call("huge", {"bytes": 20_000_000})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (result.text, result.is_error) == (
            "the answer of 19 MiB is over the limit (code -32603)",
            True,
        )
        assert peak < 5_000_000
        assert (await server.call("ok")).text == "fine"


async def test_a_storm_of_changes_starves_no_call_and_costs_one_list() -> None:
    async with running(bad()) as server:
        await server.ready()
        began = time.process_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(server.call, "ok")
            assert (await server.call("storm", {"times": 20_000})).text == "fine"
        assert (await server.call("ok")).text == "fine"
        assert time.process_time() - began < 1.5, "20,000 changes cost 20,000 tasks"
        assert int((await server.call("listed")).text) < 10


async def test_the_new_list_comes_after_a_change() -> None:
    async with running(bad()) as server:
        await server.ready()
        before = server.source.status.tools
        await server.call("grow")
        assert "grown" in [tool.name for tool in server.source.status.tools], "before the result is there"
        assert before is not server.source.status.tools


@pytest.mark.parametrize(
    ("tool", "answer"),
    [("sampling", "lacks"), ("elicitation", '{"action": "decline"}'), ("roots", '{"roots": []}')],
)
async def test_a_server_that_asks_back_is_answered(tool: str, answer: str) -> None:
    async with running(bad()) as server:
        await server.ready()
        assert answer in (await server.call(tool)).text


async def test_sampling_is_answered_where_it_is_allowed() -> None:
    async def sampler(params: dict[str, object]) -> dict[str, object]:
        return {
            "role": "assistant",
            "content": {"type": "text", "text": str(params["maxTokens"])},
            "model": "m",
        }

    async with running(bad(), sampler=sampler) as server:
        await server.ready()
        assert json.loads((await server.call("sampling")).text)["content"]["text"] == "5"


async def test_a_server_sees_its_own_environment_and_none_of_our_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    async with running(bad(env={"TOKEN": "t"})) as server:
        await server.ready()
        seen = json.loads((await server.call("env")).text)
    assert seen["TOKEN"] == "t"
    assert "PATH" in seen
    assert "sk-secret" not in json.dumps(seen)


async def test_standard_error_goes_to_the_log_under_the_servers_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "toolway.server.good")
    async with running(good()) as server:
        await server.ready()
    assert ("toolway.server.good", "ready to serve") in [(r.name, r.getMessage()) for r in caplog.records]


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("deep", "nested too deeply"),
        ("digits", "too many digits"),
        ("bad_json", "not valid JSON"),
        ("null_id", "no idea who asked"),
        ("foreign_error", "no idea who asked"),
        ("foreign_result", "under another id"),
    ],
)
async def test_an_answer_that_cannot_be_used_ends_its_call_at_once(tool: str, said: str) -> None:
    async with running(bad()) as server:
        await server.ready()
        result = await server.call(tool)
        assert result.is_error
        assert said in result.text
        assert (await server.call("ok")).text == "fine"


async def test_half_a_character_is_replaced_and_the_rest_read() -> None:
    async with running(bad()) as server:
        await server.ready()
        assert (await server.call("surrogate")).text == "a\ufffdb"
        assert (await server.call("pretty")).text == "fine"


async def test_half_a_character_in_a_description_costs_no_server() -> None:
    async with running(bad("surrogate_tool")) as server:
        tools = (await server.ready()).tools
        assert [tool.description for tool in tools] == ["a\ufffdb", ""]


async def test_an_unmatched_error_while_two_calls_are_open_ends_neither() -> None:
    async with running(bad()) as server:
        await server.ready()
        with anyio.move_on_after(2) as scope:
            async with anyio.create_task_group() as tasks:
                held = anyio.Event()

                async def hold() -> None:
                    await server.call("hold", on_progress=lambda _: held.set())

                tasks.start_soon(hold)
                await held.wait()
                await server.call("null_id")
        assert scope.cancelled_caught
        assert (await server.call("ok")).text == "fine"


@pytest.mark.parametrize("of", ["stderr", "output", "log", "changes", "answers", "late"])
async def test_a_server_that_floods_is_read_slowly_and_costs_little(
    of: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdio, "NOISE_BURST", 2**20)
    monkeypatch.setattr(inbound, "CHANGES_BURST", 1000)
    monkeypatch.setattr(options, "REPORT_EVERY", 0.5)
    caplog.set_level("INFO", "toolway.server.bad")

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "toolway.server.bad"]

    async with running(bad()) as server:
        await server.ready()
        assert (await server.call("flood", {"of": of})).text == "fine"
        began = time.process_time()
        await anyio.sleep(1.5)
        assert time.process_time() - began < 0.5
        assert len(lines()) < options.BURST + 1.5 * options.RATE + 50
        await until(lambda: of == "output" or any("were left out" in line for line in lines()))
