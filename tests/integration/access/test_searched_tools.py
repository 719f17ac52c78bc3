"""What a request may not use cannot be found, named or called where tools are searched, whyever it may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from tests.integration.access.chat import Chat, write_config
from tests.integration.access.test_pins import POISON, pin
from tests.support.app_server import AppServer, app_server
from tests.support.gate import DEADLINE
from tests.support.servers import running
from tests.support.tools import CITY, ToolService, document
from tests.support.upstream import Reply, tool_call, whole
from toolway.access.keys import hash_of

JSON = dict[str, Any]

NAMES = ("open_vault", "open_window", "close_door")
BARRED = (
    "changed",
    "new and suspicious",
    "excluded",
    "not in the header",
    "not in the profile",
    "not the key's",
)
PATHS: dict[str, JSON] = {
    "chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "responses": {"input": "Hello"},
    "messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100},
}
CALLS = [
    tool_call("search_tools", '{"query": "open the vault", "limit": 10}', id="a"),
    tool_call("search_tools", '{"query": "open_vault"}', id="b"),
    tool_call("call_tool", '{"name": "open_vault", "arguments": {"city": "Rome"}}', id="c"),
    tool_call("open_vault", '{"city": "Rome"}', id="d"),
    tool_call("call_tool", '{"name": "open_window", "arguments": {"city": "Rome"}}', id="e"),
]


async def _done(_: Any) -> str:
    return "done"


@contextmanager
def barring(folder: Path, why: str) -> Iterator[tuple[AppServer, ToolService]]:
    """Toolway with three tools, of which open_vault may not be used, and the service that has them."""
    service = ToolService(**dict.fromkeys(NAMES, _done))
    with_vault = document(dict.fromkeys(NAMES, CITY))
    service.document = document({name: CITY for name in NAMES if name != "open_vault"})
    keys = {"few": {"hash": hash_of("few"), "tools": ["open_window", "close_*"]}}
    more: JSON = {"keys": keys} if why == "not the key's" else {}
    entry: JSON = {"type": "openapi"}
    if why == "excluded":
        entry["exclude"] = ["open_vault"]
    if why != "new and suspicious":
        service.document = with_vault
    with running(service, lifespan="off") as url:
        config = write_config(folder, [], mcpServers={"s": {**entry, "url": url}}, **more)
        pins = why in ("changed", "new and suspicious")
        if pins:
            assert pin(folder, "--yes").returncode == 0
            service.document = with_vault
            text = POISON if why == "new and suspicious" else "Opens every vault there is"
            service.document["paths"]["/open_vault"]["post"]["summary"] = text
        few = {"tools": ["open_window", "close_*"], "tool_search": "on"}
        profiles = {"few": few, "every": {"tools": ["*"], "tool_search": "on"}}
        with app_server(
            endpoints="", config=config, pins=pins, tool_search="on", max_rounds=9, profiles=profiles
        ) as app:
            if "keys" not in more:  # whose servers are nobody else's business
                app.until_ready()
            yield app, service


def script(body: JSON) -> Reply:
    turn = sum(message["role"] == "tool" for message in body["messages"])
    if turn < len(CALLS):
        return whole({"content": None, "tool_calls": [CALLS[turn]]}, "tool_calls")
    return whole({"content": "Done."})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("why", BARRED)
def test_a_tool_that_may_not_be_used_is_not_found_named_or_run(tmp_path: Path, why: str, path: str):
    with barring(tmp_path, why) as (app, service):
        app.upstream.answer = script
        headers = {"Authorization": "Bearer few"}
        if why == "not in the header":
            headers["X-Toolway-Tools"] = "open_window,close_*"
        model = "mock@few" if why == "not in the profile" else "mock"
        body = {"model": model, **PATHS[path]}
        answer = httpx2.post(f"{app.url}/v1/{path}", json=body, headers=headers, timeout=DEADLINE)
        assert answer.status_code == 200, answer.text
        last = app.upstream.seen[-1].json
    found, again, *told = [m["content"] for m in last["messages"] if m["role"] == "tool"]
    assert "vault" not in json.dumps(last["tools"])
    assert '"name":"open_window"' in found
    assert "open_vault" not in found
    assert '"open_vault"' not in again
    assert all("there is no tool" in text for text in told[:2])
    assert [name for name, _ in service.calls] == ["open_window"]


@pytest.mark.parametrize("why", ["changed", "new and suspicious", "not in the profile", "not the key's"])
async def test_nor_by_a_client_of_mcp(tmp_path: Path, why: str):
    with barring(tmp_path, why) as (app, service):
        http = httpx2.AsyncClient(headers={"Authorization": "Bearer few"})
        profile = "few" if why == "not in the profile" else "every"
        async with (
            http,
            Client(streamable_http_client(f"{app.url}/mcp/{profile}", http_client=http)) as client,
        ):
            listed = (await client.list_tools()).tools
            assert {tool.name for tool in listed} == {"search_tools", "call_tool"}
            assert "vault" not in str(listed)
            found = await client.call_tool("search_tools", {"query": "open vault"})
            assert "open_window" in str(found)
            assert "open_vault" not in str(found)
            inner = {"name": "open_vault", "arguments": {"city": "Rome"}}
            assert (await client.call_tool("call_tool", inner)).is_error
            with pytest.raises(MCPError, match="open_vault"):
                await client.call_tool("open_vault", {"city": "Rome"})
    assert service.calls == []


def test_a_call_through_call_tool_waits_for_the_person_who_is_asked_in_chat(tmp_path: Path):
    rule = {"tools": ["get_weather"], "effect": "ask"}
    through = tool_call("call_tool", '{"name": "get_weather", "arguments": {"city": "Rome"}}', id="a")

    def calls_once(body: JSON) -> Reply:
        asked = str(body["messages"][-1]["content"]) == "What is the weather in Rome?"
        return (
            whole({"content": None, "tool_calls": [through]}, "tool_calls")
            if asked
            else whole({"content": "Hot."})
        )

    with app_server(config=write_config(tmp_path, [rule]), tool_search="on") as app:
        chat = Chat(app)
        app.upstream.answer = calls_once
        question = chat.say("What is the weather in Rome?")
        assert "get_weather" in question
        assert "call_tool" not in question
        assert app.tools.calls == []
        assert chat.say("yes") == "Hot."
        assert app.tools.calls == [("get_weather", {"city": "Rome"})]
