"""What putting the rounds of an answer back is worth, in tokens that llama.cpp takes from its prompt cache."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import httpx2
import pytest

from tests.compat.model.test_openai_client import wait_until_ready
from tests.support.app_server import serving
from tests.support.model import needs_model
from tests.support.paths import ROOT
from tests.support.servers import running
from toolway.demo.child import DemoError, running_child
from toolway.demo.model import ensure_weights, require_llama
from toolway.demo.weather import WEATHER
from toolway.settings.load import load_settings

pytestmark = needs_model


@pytest.fixture(scope="module")
def flat_server():
    try:
        require_llama()
        weights = ensure_weights()
    except DemoError as error:
        pytest.skip(f"no embedded model: {error}")
    options = ["--weights", str(weights), "--port", "0"]
    with running_child("The model server", "tests.compat.model.flat_server", *options, cwd=ROOT) as child:
        yield child.wait_ready(300)


def talk(base_url: str, *, replay: bool) -> dict[str, Any]:
    """A question that needs a tool, then another one; llama.cpp's figures of the second one's first prompt."""
    with ExitStack() as stack:
        service = stack.enter_context(running(WEATHER))
        settings = load_settings({}, None, openai_base_url=base_url, endpoints=service, replay=replay)
        url = stack.enter_context(serving(settings))
        wait_until_ready(url)

        def ask(messages: list[Any], max_tokens: int, headers: dict[str, str]) -> dict[str, Any]:
            body = {"model": "m", "messages": messages, "temperature": 0, "max_tokens": max_tokens}
            answer = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=300)
            assert answer.status_code == 200, answer.text
            whole: dict[str, Any] = answer.json()
            return whole

        question = {"role": "user", "content": "What is the weather in Paris?"}
        # So small a model calls again and again: its answer comes when the tools are withdrawn. Without them it
        # goes on, or the prompt would begin with the tools again, which are not in the cache at that moment.
        first = ask([question], 60, {"X-Toolway-Max-Rounds": "1"})
        said = first["choices"][0]["message"]["content"]
        again = [
            question,
            {"role": "assistant", "content": said},
            {"role": "user", "content": "And in Rome?"},
        ]
        # One token: the figures are those of the prompt, whatever the model would like to say.
        timings: dict[str, Any] = ask(again, 1, {"X-Toolway-Tools": "none"})["timings"]
        return timings


def test_rounds_that_are_put_back_are_found_in_the_prompt_cache(flat_server: str):
    without = talk(flat_server, replay=False)
    replayed = talk(flat_server, replay=True)
    print("without:", without, "\nwith replay:", replayed)
    assert replayed["cache_n"] > without["cache_n"] + 100
    # New are the end of the answer and the new question, with or without the rounds before them.
    assert replayed["prompt_n"] <= without["prompt_n"] + 10
