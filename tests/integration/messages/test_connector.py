"""Servers that a request for a message brings along: what is shown of them, their lists of tools, deferred tools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer

from tests.integration.messages.asking import BOTH, QUESTION, ask, post, sent
from tests.support.app_server import AppServer
from tests.support.messages import check_error
from tests.support.model_turns import ModelTurn, set_turns
from tests.support.servers import running
from tests.support.upstream import JSON, tool_call
from tests.unit.tools.mcp.servers.guarded import Guarded

BETA = "interleaved-thinking-2025-05-14, mcp-client-2026-09-15"
WANTED = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
GONE = {"name": "gone", "description": "Was here.", "input_schema": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def notes() -> Iterator[JSON]:
    """The entry of `mcp_servers` for a server with two tools."""
    server = MCPServer("notes")

    @server.tool(description="Keeps a note.")
    def keep(text: str) -> str:
        return f"kept {text}"

    @server.tool(description="Counts the notes.")
    def count() -> str:
        return "three"

    with running(server.streamable_http_app(stateless_http=True)) as url:
        yield {"type": "url", "name": "notes", "url": f"{url.replace('localhost', '127.0.0.1')}/mcp"}


def brought(server: JSON, *tools: JSON, **toolset: Any) -> JSON:
    return {
        "mcp_servers": [server],
        "tools": [*tools, {"type": "mcp_toolset", "mcp_server_name": server["name"], **toolset}],
    }


def offered(app: AppServer, number: int = -1) -> dict[str, JSON]:
    """The tools that the model server was sent, by their names."""
    return {tool["function"]["name"]: tool["function"] for tool in sent(app, number).get("tools", ())}


def added(tool: JSON, kind: str = "tool_addition") -> JSON:
    return {"role": "system", "content": [{"type": kind, "tool": tool}]}


@BOTH
def test_a_server_that_the_request_brings_is_shown_and_pauses_at_the_limit(app: AppServer, streamed: bool):
    server = Guarded()
    server.tokens = {"secret"}
    with running(server.app, lifespan="off") as url:
        brought = {
            "mcp_servers": [
                {
                    "type": "url",
                    "name": "notes",
                    "url": f"{url.replace('localhost', '127.0.0.1')}/mcp",
                    "authorization_token": "secret",
                }
            ],
            "tools": [
                {
                    "type": "mcp_toolset",
                    "mcp_server_name": "notes",
                    "default_config": {"enabled": False},
                    "configs": {"ok": {"enabled": True}},
                }
            ],
        }
        ok = [ModelTurn(text=f"{n}. ", calls=(tool_call("ok", "{}", id="call_0"),)) for n in (1, 2)]
        set_turns(app, *ok, ModelTurn(text="Done."))
        message = ask(app, streamed=streamed, **brought)
        kinds = [block["type"] for block in message["content"]]
        assert kinds == ["text", "mcp_tool_use", "mcp_tool_result"] * 2
        assert message["stop_reason"] == "pause_turn"
        assert message["content"][2]["content"] == [{"type": "text", "text": "fine"}]
        assert [tool["function"]["name"] for tool in sent(app, 0)["tools"]] == ["ok"]
        history = [*QUESTION, {"role": "assistant", "content": message["content"]}]
        last = ask(app, streamed=streamed, messages=history, **brought)
    assert [block["text"] for block in last["content"]] == ["Done."]
    roles = [m["role"] for m in sent(app)["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool"]


def test_a_server_that_may_not_be_used_is_the_clients_fault(app: AppServer):
    servers = [{"type": "url", "name": "moon", "url": "http://169.254.169.254/mcp"}]
    answer = post(app, {"max_tokens": 5, "mcp_servers": servers})
    assert answer.status_code == 400
    assert "may not be used here" in check_error(answer.json())


def test_a_server_that_does_not_answer_is_a_400(app: AppServer):
    servers = [{"type": "url", "name": "moon", "url": "http://127.0.0.1:9/mcp"}]
    answer = post(app, {"max_tokens": 5, "mcp_servers": servers})
    assert answer.status_code == 400
    assert "cannot be listed" in check_error(answer.json())


@BOTH
def test_the_tools_of_each_server_are_listed_first_for_clients_that_know_such_lists(
    app: AppServer, notes: JSON, streamed: bool
):
    keep = ModelTurn(calls=(tool_call("keep", '{"text":"x"}', id="call_0"),))
    set_turns(app, keep, ModelTurn(text="Done."))
    listing, use, result, text = ask(app, streamed=streamed, beta=BETA, **brought(notes))["content"]
    assert listing["mcp_server_name"] == "notes"
    assert {tool["name"]: tool["description"] for tool in listing["tools"]} == {
        "keep": "Keeps a note.",
        "count": "Counts the notes.",
    }
    assert listing["tools"][0]["input_schema"].keys() >= {"type", "properties"}
    assert (use["type"], result["content"][0]["text"], text["text"]) == ("mcp_tool_use", "kept x", "Done.")
    history = [*QUESTION, {"role": "assistant", "content": [listing, use, result, text]}, *QUESTION]
    kinds = [block["type"] for block in ask(app, beta=BETA, messages=history, **brought(notes))["content"]]
    assert kinds == ["text"]


@BOTH
@pytest.mark.parametrize("beta", ["", "mcp-client-2025-11-20"])
def test_other_clients_are_sent_no_block_that_they_do_not_know(
    app: AppServer, notes: JSON, streamed: bool, beta: str
):
    set_turns(app, ModelTurn(text="Done."))
    message = ask(app, streamed=streamed, beta=beta, **brought(notes))
    assert [block["type"] for block in message["content"]] == ["text"]


@BOTH
def test_an_answer_without_a_word_has_a_text_behind_the_list(app: AppServer, notes: JSON, streamed: bool):
    set_turns(app, ModelTurn(text=""))
    content = ask(app, streamed=streamed, beta=BETA, **brought(notes))["content"]
    assert [block["type"] for block in content] == ["mcp_tool_listing", "text"]


@pytest.mark.parametrize("place", ["toolset", "history"])
def test_a_list_that_comes_back_holds_whatever_the_server_has_by_now(app: AppServer, notes: JSON, place: str):
    before = [{"name": "keep", "description": "Old words.", "input_schema": WANTED}, GONE]
    block = {"type": "mcp_tool_listing", "mcp_server_name": "notes", "tools": before}
    calls = [
        ModelTurn(calls=(tool_call(n, a, id="call_0"),))
        for n, a in (("keep", '{"text":"y"}'), ("gone", "{}"))
    ]
    set_turns(app, *calls, ModelTurn(text="Done."))
    request = brought(notes, tools=before) if place == "toolset" else brought(notes)
    past = [] if place == "toolset" else [{"role": "assistant", "content": [block]}, *QUESTION]
    content = ask(app, beta=BETA, messages=[*QUESTION, *past], **request)["content"]
    assert [block["type"] for block in content] == ["mcp_tool_use", "mcp_tool_result"] * 2
    tools = offered(app, 0)
    assert tools.keys() == {"keep", "gone"}
    assert tools["keep"]["description"] == "Old words."
    results = [block for block in content if block["type"] == "mcp_tool_result"]
    assert [result["is_error"] for result in results] == [False, True]
    assert "no tool 'gone' any more" in results[1]["content"][0]["text"]


@BOTH
def test_deferred_tools_of_a_server_are_found_by_the_search(app: AppServer, notes: JSON, streamed: bool):
    search = {"type": "tool_search_tool_bm25_20251119", "name": "tool_search_tool_bm25"}
    find = ModelTurn(calls=(tool_call(search["name"], '{"query":"keep a note"}', id="call_0"),))
    keep = ModelTurn(calls=(tool_call("keep", '{"text":"x"}', id="call_1"),))
    request = brought(
        notes,
        search,
        default_config={"defer_loading": True},
        configs={"count": {"defer_loading": False}},
    )
    set_turns(app, find, keep, ModelTurn(text="Done."))
    message = ask(app, streamed=streamed, **request)
    assert [block["type"] for block in message["content"]] == [
        "server_tool_use", "tool_search_tool_result", "mcp_tool_use", "mcp_tool_result",
    ]  # fmt: skip
    assert message["content"][1]["content"]["tool_references"][0]["tool_name"] == "keep"
    assert [list(offered(app, number)) for number in (0, 1)] == [
        ["count", search["name"]],
        ["count", search["name"], "keep"],
    ]
    history = [*QUESTION, {"role": "assistant", "content": message["content"]}]
    ask(app, streamed=streamed, messages=history, **request)
    assert offered(app).keys() == {"count", "keep"}


def test_a_deferred_tool_that_nobody_looks_for_stays_unseen(app: AppServer, notes: JSON):
    set_turns(app, ModelTurn(text="Done."))
    request = brought(notes, default_config={"defer_loading": True})
    ask(app, **request)
    assert not offered(app)
    reference = {"type": "mcp_tool_reference", "server_name": "notes", "name": "keep"}
    ask(app, messages=[*QUESTION, added(reference)], **request)
    assert offered(app).keys() == {"keep"}
    everything = {"type": "mcp_toolset_reference", "server_name": "notes"}
    ask(app, messages=[*QUESTION, added(everything)], **request)
    assert offered(app).keys() == {"keep", "count"}


def test_a_server_is_added_and_its_tools_are_removed_in_mid_conversation(app: AppServer, notes: JSON):
    set_turns(app, ModelTurn(text="Done."))
    definition = {"type": "mcp_toolset", "mcp_server_name": "notes"}
    joins = added({"type": "tool_definition", "definition": definition})
    message = ask(app, beta=BETA, mcp_servers=[notes], messages=[*QUESTION, joins])
    assert [block["type"] for block in message["content"]] == ["mcp_tool_listing", "text"]
    assert offered(app).keys() == {"keep", "count"}
    one = added({"type": "mcp_tool_reference", "server_name": "notes", "name": "keep"}, "tool_removal")
    ask(app, mcp_servers=[notes], messages=[*QUESTION, joins, one])
    assert offered(app).keys() == {"count"}
    all_of_it = added({"type": "mcp_toolset_reference", "server_name": "notes"}, "tool_removal")
    ask(app, mcp_servers=[notes], messages=[*QUESTION, joins, all_of_it])
    assert not offered(app)
    ask(app, mcp_servers=[notes], messages=[*QUESTION, joins, all_of_it, joins])
    assert offered(app).keys() == {"keep", "count"}


RECORDED = {"role": "assistant", "content": [{"type": "mcp_tool_listing", "mcp_server_name": "n"}]}


def toolset(**members: Any) -> JSON:
    return {"tools": [{"type": "mcp_toolset", "mcp_server_name": "n", **members}]}


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"mcp_servers": [{"type": "stdio", "name": "n", "url": "x"}]}, "mcp_servers[0].type"),
        (toolset(tools=[{"name": 3}]), "tools[0].tools[0].name"),
        (toolset(tools={}), "tools[0].tools"),
        ({"messages": [*QUESTION, RECORDED]}, "messages[1].content[0].tools"),
        (toolset(mcp_server_name="m"), "none of mcp_servers"),
        (toolset(configs={"a": 1}), "tools[0].configs.a"),
    ],
)
def test_what_is_wrong_with_servers_and_lists_is_told_by_its_place(app: AppServer, body: JSON, place: str):
    servers = [{"type": "url", "name": "n", "url": "http://127.0.0.1:9/mcp"}]
    answer = post(app, {"max_tokens": 5, "mcp_servers": servers, **body})
    assert answer.status_code == 400
    assert place in check_error(answer.json())
