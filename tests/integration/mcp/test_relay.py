"""Questions and log lines of a server behind reach the client that waits, whatever versions the two speak."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mcp.client import Client
from mcp_types import CreateMessageResult, ElicitResult, TextContent

from tests.integration.mcp.conftest import RICH, Connect
from tests.support.app_server import AppServer, app_server
from tests.support.servers import running
from tests.unit.tools.mcp.servers import rich

pytestmark = pytest.mark.anyio


def text_of(result: Any) -> str:
    text: str = result.content[0].text
    return text


async def answer_form(_: Any, params: Any) -> ElicitResult:
    assert params.message == "Who are you?"
    return ElicitResult(action="accept", content={"name": "Ada"})


async def answer_as_model(_: Any, params: Any) -> CreateMessageResult:
    assert params.messages[0].content.text == "Say hi"
    return CreateMessageResult(role="assistant", content=TextContent(type="text", text="hi"), model="mine")


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """One server over stdio and HTTP, of either era."""
    path = tmp_path_factory.mktemp("relay") / "mcp.json"
    with running(rich.app(), lifespan="on") as url:
        servers = {
            f"{kind}_{era}": {**place, "era": era, "sampling": True}
            for kind, place in {"pipe": RICH, "http": {"url": f"{url}/mcp"}}.items()
            for era in ("legacy", "modern")
        }
        path.write_text(json.dumps({"mcpServers": servers}))
        with app_server(config=str(path), endpoints="") as app:
            app.until_ready()
            yield app


@pytest.mark.parametrize("front", ["2026-07-28", "legacy"])
@pytest.mark.parametrize("back", ["pipe_legacy", "pipe_modern", "http_legacy", "http_modern"])
async def test_a_question_reaches_the_user_and_the_answer_the_server(
    behind: AppServer, front: str, back: str
):
    options = {"elicitation_callback": answer_form, "sampling_callback": answer_as_model}
    async with Client(f"{behind.url}/mcp", mode=front, **options) as client:
        asked = await client.call_tool(f"{back}__ask", {})
        thought = await client.call_tool(f"{back}__think", {})
    assert "'accept'" in text_of(asked)
    assert "Ada" in text_of(asked)
    assert "'hi'" in text_of(thought)


@pytest.mark.parametrize("front", ["2026-07-28", "legacy"])
@pytest.mark.parametrize("back", ["pipe_legacy", "pipe_modern", "http_legacy", "http_modern"])
async def test_who_cannot_be_asked_is_not(behind: AppServer, front: str, back: str):
    async with Client(f"{behind.url}/mcp", mode=front) as client:
        asked = await client.call_tool(f"{back}__ask", {})
    assert "'decline'" in text_of(asked)


async def test_log_lines_of_the_server_reach_the_client(connect: Connect):
    heard: list[Any] = []

    async def note(params: Any) -> None:
        heard.append((params.level, params.logger, params.data))

    async with connect(logging_callback=note, log_level="info") as client:
        assert text_of(await client.call_tool("tell", {})) == "told"
    assert heard == [("warning", "ruler", "it is bent")]
