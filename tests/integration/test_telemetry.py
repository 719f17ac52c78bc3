"""Metrics and traces, as Prometheus and a collector get them."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.test_commands import TIMEOUT, serving, toolway
from tests.support.app_server import QUESTION, AppServer, app_server
from tests.support.collector import Collector
from tests.support.gate import Gate
from tests.support.logs import logged
from tests.support.servers import running
from tests.support.tools import ToolService
from tests.support.upstream import ScriptedUpstream, call_stream, json_reply, text_stream, tool_call, whole
from tests.unit.tools.mcp.support import SERVERS
from toolway.settings.settings import LogSettings, Settings

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BUSY = {"error": {"message": "busy", "code": "overloaded"}}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}


ENDED = f"toolway_conversations_total{json.dumps({'model': 'm', 'outcome': 'ok', 'streamed': 'false'})}"


def figures(text: str) -> dict[str, float]:
    """`name{label=value,...}` and the figure of each sample; those of buckets are left out."""
    return {
        f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


class Scrape:
    """What was counted since the one before."""

    def __init__(self, app: AppServer) -> None:
        self._app = app
        self._before = figures(self._text())

    def _text(self) -> str:
        answer = httpx2.get(f"{self._app.url}/metrics", timeout=TIMEOUT)
        assert answer.status_code == 200
        return answer.text

    def of(self, name: str, **labels: str) -> float:
        key = f"toolway_{name}{json.dumps(labels, sort_keys=True)}"
        return figures(self._text()).get(key, 0.0) - self._before.get(key, 0.0)


def test_a_conversation_with_a_tool_is_counted():
    replies = call_stream(tool_call()), text_stream("It is cloudy.", usage=USAGE)
    with app_server(*replies, metrics="on") as app:
        scrape = Scrape(app)
        app.ask(stream=True, model="counted")
        assert scrape.of("conversations_total", model="counted", streamed="true", outcome="ok") == 1
        assert scrape.of("rounds_total", model="counted") == 2
        assert scrape.of("model_seconds_count", model="counted") == 2
        assert scrape.of("time_to_first_text_seconds_count", model="counted") == 1
        assert scrape.of("tokens_total", model="counted", kind="input") == 7
        assert scrape.of("tokens_total", model="counted", kind="output") == 3
        assert scrape.of("tokens_total", model="counted", kind="cached") == 4
        assert scrape.of("conversations_open", streamed="true") == 0
        assert scrape.of("tool_calls_open") == 0
        (source,) = app.settings.tools.endpoints
        assert scrape.of("tool_calls_total", server=source.label, tool="get_weather", outcome="ok") == 1
        chat = {"method": "POST", "route": "/v1/chat/completions", "status": "200"}
        assert scrape.of("http_requests_total", **chat) == 1


def test_a_refusal_and_a_failure_are_counted_under_their_codes():
    with app_server(json_reply(BUSY, 503), metrics="on") as app:
        scrape = Scrape(app)
        answer = app.ask(model="failing")
        assert answer.status_code == 503
        assert scrape.of("model_failures_total", model="failing", code="overloaded") == 1
        assert scrape.of("conversations_total", model="failing", streamed="false", outcome="503") == 1


def test_what_ends_without_an_answer_is_under_way_no_more():
    gate = Gate()

    async def slow(_: Any) -> Any:
        await gate()

    with app_server(call_stream(tool_call("slow")), tools=ToolService(slow=slow), metrics="on") as app:
        scrape = Scrape(app)
        assert app.ask(n=3).status_code == 400
        with pytest.raises(httpx2.TimeoutException):
            body = {"model": "left", "messages": QUESTION, "stream": True}
            httpx2.post(
                f"{app.url}/v1/chat/completions", json=body, timeout=httpx2.Timeout(TIMEOUT, read=1.0)
            )
        gate.wait_for_arrival()
        end = time.monotonic() + TIMEOUT
        under_way = [
            ("conversations_open", {"streamed": "true"}),
            ("conversations_open", {"streamed": "false"}),
        ]
        while any(scrape.of(name, **labels) for name, labels in [*under_way, ("tool_calls_open", {})]):
            assert time.monotonic() < end
        assert scrape.of("conversations_total", model="left", streamed="true", outcome="client left") == 1
        gate.open()


def test_names_that_clients_choose_do_not_make_figures_without_end():
    with app_server(*[text_stream("Hi.") for _ in range(60)], metrics="on") as app:
        for number in range(60):
            app.ask(stream=True, model=f"made-up-{number}")
        text = httpx2.get(f"{app.url}/metrics").text
        models = {
            line.partition('model="')[2].partition('"')[0]
            for line in text.splitlines()
            if "rounds_total{" in line
        }
        assert len(models) <= 51
        assert "other" in models


def test_metrics_are_off_unless_asked_for_and_need_the_key_of_the_api():
    with app_server() as app:
        assert httpx2.get(f"{app.url}/metrics").status_code == 404
    with app_server(metrics="on", api_keys=("secret",)) as app:
        assert httpx2.get(f"{app.url}/metrics").status_code == 401
        answer = httpx2.get(f"{app.url}/metrics", headers={"authorization": "Bearer secret"})
        assert answer.status_code == 200
        assert "secret" not in answer.text


def test_several_workers_have_one_sum_at_an_address_of_its_own(tmp_path: Path):
    upstream = ScriptedUpstream([whole({"content": "Hi."}) for _ in range(20)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (
        running(upstream, lifespan="off", log_level="critical") as model,
        serving(
            [sys.executable, "-m", "toolway", "serve", "--port", "0"],
            tmp_path,
            OPENAI_BASE_URL=f"{model}/v1",
            TOOLWAY_WORKERS="2",
            TOOLWAY_METRICS=address,
        ) as (_, url),
    ):
        for _ in range(20):  # each on a connection of its own, so that both workers get some
            body = {"model": "m", "messages": QUESTION}
            assert httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT).status_code == 200
        assert httpx2.get(f"{url}/metrics", timeout=TIMEOUT).status_code == 404
        end = time.monotonic() + TIMEOUT
        while figures(httpx2.get(f"http://{address}/metrics", timeout=TIMEOUT).text).get(ENDED) != 20:
            assert time.monotonic() < end


def test_an_address_that_is_taken_is_told(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = toolway("serve", "--port", "0", cwd=tmp_path, TOOLWAY_METRICS=address)
    assert done.returncode == 1
    assert f"cannot listen on {address}" in done.stderr
    assert "Traceback" not in done.stderr


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch, **env: str) -> Iterator[Collector]:
    collector = Collector()
    with running(collector, lifespan="off") as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        yield collector


def ask_with_tool(tmp_path: Path, **more: Any) -> ScriptedUpstream:
    """A streamed conversation in which the model calls a tool of an MCP server."""
    config = tmp_path / "mcp.json"
    server = {"command": sys.executable, "args": [str(SERVERS / "traced.py")]}
    config.write_text(json.dumps({"mcpServers": {"traced": server}}))
    replies = call_stream(tool_call("trace_context", "{}")), text_stream("Done.", usage=USAGE)
    with app_server(*replies, endpoints="", config=str(config)) as app:
        app.until_servers_are(traced="ready")
        assert app.ask(stream=True, **more).status_code == 200
        return app.upstream


def header(upstream: ScriptedUpstream, number: int, name: bytes = b"traceparent") -> list[str]:
    return [value.decode() for key, value in upstream.seen[number].headers if key == name]


def test_a_conversation_is_one_trace_that_reaches_models_and_servers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with traced(monkeypatch) as collector:
        upstream = ask_with_tool(tmp_path, headers={"traceparent": CALLER})
        root, chat, call = collector.named("invoke_agent toolway", "chat mock", "tools/call trace_context")
    _, trace_id, caller_span, _ = CALLER.split("-")
    assert {span.trace_id for span in collector.spans} == {trace_id}
    assert root.parent == caller_span
    chats = [span for span in collector.spans if span.name == "chat mock"]
    assert len(chats) == 2
    assert {span.parent for span in (*chats, call)} == {root.span_id}
    assert [header(upstream, n) for n in (0, 1)] == [[f"00-{trace_id}-{s.span_id}-01"] for s in chats]
    result = json.loads(upstream.seen[1].json["messages"][-1]["content"])
    assert result["traceparent"] == f"00-{trace_id}-{call.span_id}-01"
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chats[1].attributes["gen_ai.usage.cache_read.input_tokens"] == 4
    assert call.attributes["gen_ai.tool.name"] == "trace_context"
    assert root.attributes["gen_ai.invoke_agent.inference_calls"] == 2
    assert root.attributes["gen_ai.invoke_agent.tool_calls"] == 1
    assert not any(
        "messages" in name or "arguments" in name for s in collector.spans for name in s.attributes
    )


def test_contents_are_in_spans_only_when_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with traced(monkeypatch, OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="SPAN_ONLY") as collector:
        ask_with_tool(tmp_path)
        chat, call = collector.named("chat mock", "tools/call trace_context")
    asked = json.loads(chat.attributes["gen_ai.input.messages"])
    part = {"type": "text", "content": QUESTION[0]["content"]}
    assert asked[0] == {"role": "user", "parts": [part]}
    assert call.attributes["gen_ai.tool.call.arguments"] == "{}"


def test_an_error_of_the_model_server_is_the_status_of_its_spans(monkeypatch: pytest.MonkeyPatch):
    with (
        traced(monkeypatch) as collector,
        app_server(json_reply({"error": {"message": "broken"}}, 500)) as app,
    ):
        app.ask()
        root, chat = collector.named("invoke_agent toolway", "chat mock")
    assert root.is_error
    assert chat.is_error
    assert chat.attributes["error.type"] == "500"


def test_a_trace_that_is_not_sampled_sends_nothing_and_is_handed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    with traced(monkeypatch, OTEL_TRACES_SAMPLER="always_off") as collector:
        upstream = ask_with_tool(tmp_path, headers={"traceparent": CALLER})
    assert collector.spans == []
    assert header(upstream, 0) == [CALLER]


def test_lines_of_the_log_carry_the_trace(monkeypatch: pytest.MonkeyPatch):
    settings = Settings(log=LogSettings(format="json"))
    with (
        traced(monkeypatch),
        app_server(text_stream("Hi.")) as app,
        logged(settings) as stream,
    ):
        app.ask(stream=True, headers={"traceparent": CALLER})
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    about = [line for line in lines if line["logger"] == "toolway.chat"]
    assert about
    assert {line["trace_id"] for line in about} == {CALLER.split("-")[1]}


def test_without_an_exporter_of_that_name_the_start_says_which_there_are(tmp_path: Path):
    done = toolway("serve", "--port", "0", cwd=tmp_path, OTEL_TRACES_EXPORTER="zipkin")
    assert done.returncode != 0
    assert "OTEL_TRACES_EXPORTER: there is no exporter 'zipkin' here; installed:" in done.stderr
    assert "Traceback" not in done.stderr
