"""The whole server for a test: Toolway on a real port, a scripted model server and tool services behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import httpx2
import openai
import pytest

from tests.support.gate import DEADLINE
from tests.support.servers import UseLoop, running, running_server
from tests.support.tools import ToolService
from tests.support.upstream import Reply, ScriptedUpstream
from toolway.api.responses import DEFAULT_PACE, Pace
from toolway.app.asgi import create_app
from toolway.engine import engine
from toolway.server.http_protocol import HttpProtocol
from toolway.server.process import server_config
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings
from toolway.tools.direct_tools import DirectTools

POLL_SECONDS = 0.02
"""Between two questions about a state: who asks without a pause takes the processor from what it waits for."""
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


def until_ready(url: str, key: str = "any") -> None:
    """Ask /readyz until each tool server is ready; where there are keys it tells so to who has one."""
    end = time.monotonic() + DEADLINE
    headers = {"Authorization": f"Bearer {key}"}
    while True:
        answer = httpx2.get(f"{url}/readyz", headers=headers).json()
        if {"ready"}.issuperset(answer["servers"].values()):
            return
        assert time.monotonic() < end, answer
        time.sleep(POLL_SECONDS)


@dataclass
class AppServer:
    """`url` is Toolway's, without /v1."""

    url: str
    upstream: ScriptedUpstream
    tools: ToolService
    settings: Settings

    def set_replies(self, *replies: Reply) -> AppServer:
        """Begin anew, with these answers of the model server."""
        self.upstream.replies = list(replies)
        self.upstream.seen.clear()
        self.tools.calls.clear()
        return self

    def settings_with_store(self, url: str) -> Settings:
        """The settings of this Toolway for another one, that keeps its things at `url`."""
        return replace(self.settings, store=replace(self.settings.store, url=url))

    def until_servers_are(self, **states: str) -> httpx2.Response:
        """Ask /readyz until each tool server is in its state; what it answered then."""
        end = time.monotonic() + DEADLINE
        while (answer := httpx2.get(f"{self.url}/readyz", timeout=DEADLINE)).json()["servers"] != states:
            assert time.monotonic() < end, answer.text
            time.sleep(POLL_SECONDS)
        return answer

    def until_ready(self, key: str = "any") -> None:
        """Wait until each tool server is ready."""
        until_ready(self.url, key)

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="test", max_retries=0, **options)

    def async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="test", max_retries=0, **options)

    def post(self, body: Any, **options: Any) -> httpx2.Response:
        """POST /v1/chat/completions, without any SDK."""
        kind = {"content": body} if isinstance(body, bytes) else {"json": body}
        return httpx2.post(f"{self.url}/v1/chat/completions", timeout=60, **kind, **options)

    def ask(self, *, headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
        return self.post({"model": "mock", "messages": QUESTION, **more}, headers=headers)


@contextmanager
def waiting_for_servers(seconds: float) -> Iterator[None]:
    """First requests wait so long for tool servers that were not tried yet, in every Toolway of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "STARTUP_WAIT", seconds)
        defaults = DirectTools.__init__.__kwdefaults__
        assert defaults
        patch.setitem(defaults, "startup_wait", seconds)
        yield


@contextmanager
def app_server(
    *replies: Reply,
    tools: ToolService | None = None,
    endpoints: str | None = None,
    models: Reply | None = None,
    pace: Pace = DEFAULT_PACE,
    on_start: UseLoop | None = None,
    has_lane: bool = True,
    startup_wait: float = DEADLINE,
    **settings: Any,
) -> Iterator[AppServer]:
    """Start everything; `endpoints` in place of the one tool service, `settings` as load_settings takes them.

    `models` is what the model server says of its models from the start on.

    `on_start` is given the event loop of this Toolway; without `has_lane` its HTTP protocol has no fast lane.

    The first requests wait `startup_wait` seconds for tool servers that were not tried yet: with the seconds that
    Toolway waits they would go without tools on a busy machine.
    """
    upstream = ScriptedUpstream(list(replies), models=models)
    service = tools or ToolService()
    with ExitStack() as stack:
        stack.enter_context(waiting_for_servers(startup_wait))
        upstream_url = stack.enter_context(running(upstream, lifespan="off", log_level="critical"))
        tools_url = stack.enter_context(running(service, lifespan="off"))
        chosen = load_settings(
            env={},
            dotenv=None,
            **{
                "openai_base_url": f"{upstream_url}/v1",
                "endpoints": tools_url if endpoints is None else endpoints,
                "debug_output": False,
                **settings,
            },
        )
        url = stack.enter_context(serving(chosen, pace=pace, on_start=on_start, has_lane=has_lane))
        yield AppServer(url, upstream, service, chosen)


@contextmanager
def serving(
    settings: Settings,
    *,
    pace: Pace = DEFAULT_PACE,
    on_start: UseLoop | None = None,
    has_lane: bool = True,
) -> Iterator[str]:
    """Toolway alone, as `toolway serve` configures it; yields its URL."""
    server = settings.server
    protocol = (
        {} if has_lane else {"http": partial(HttpProtocol, server.receive_timeout, server.send_timeout)}
    )
    config = server_config(create_app(settings, pace=pace), server, timeout_graceful_shutdown=1, **protocol)
    with running_server(config, on_start=on_start) as url:
        yield url
