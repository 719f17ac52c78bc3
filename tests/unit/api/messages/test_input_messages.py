"""Turns of the Messages API become messages of a chat completion, or an error that names the place."""

from __future__ import annotations

from typing import Any

import pytest

from toolway.api.messages.content import sealed
from toolway.api.messages.input_messages import InputMessages
from toolway.errors import InvalidRequest
from toolway.types import JSON

PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}
SHOWN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}


def reader(late_role: str = "user", **deferred: JSON) -> InputMessages:
    return InputMessages(lambda server, name: [f"{server}_{name}"], deferred, late_role)


def read(*messages: JSON, late_role: str = "user") -> list[JSON]:
    return reader(late_role).read(messages)


def user(*content: Any) -> JSON:
    return {"role": "user", "content": [text(c) if isinstance(c, str) else c for c in content]}


def assistant(*content: Any) -> JSON:
    return {"role": "assistant", "content": [text(c) if isinstance(c, str) else c for c in content]}


def text(said: str) -> JSON:
    return {"type": "text", "text": said, "cache_control": {"type": "ephemeral"}}


def use(id: str, name: str = "theirs", **input: Any) -> JSON:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def result(id: str, content: Any = "42", **more: Any) -> JSON:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def call(id: str, name: str = "theirs", arguments: str = "{}") -> JSON:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(id: str, content: str = "42") -> JSON:
    return {"role": "tool", "tool_call_id": id, "content": content}


def said(content: Any, *calls: JSON, role: str = "assistant") -> JSON:
    return {"role": role, "content": content, **({"tool_calls": list(calls)} if calls else {})}


CASES = {
    "a text": ([{"role": "user", "content": "Hi"}], [said("Hi", role="user")]),
    "texts of one turn": ([user("One", "Two")], [said("One\n\nTwo", role="user")]),
    "two turns of the user": ([user("One"), user("Two")], [said("One\n\nTwo", role="user")]),
    "an image": (
        [user("What?", PIXEL)],
        [said([{"type": "text", "text": "What?"}, SHOWN], role="user")],
    ),
    "an image by its URL": (
        [user({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}})],
        [said([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}], role="user")],
    ),
    "a document as text": (
        [
            user(
                {
                    "type": "document",
                    "title": 'A "b"',
                    "context": "Old.",
                    "source": {"type": "text", "media_type": "text/plain", "data": "All of it."},
                }
            )
        ],
        [said("<document title='A \"b\"'>\nOld.\n\nAll of it.\n</document>", role="user")],
    ),
    "a document in blocks": (
        [user({"type": "document", "source": {"type": "content", "content": [text("All."), PIXEL]}})],
        [said([{"type": "text", "text": "<document>\nAll.\n</document>"}, SHOWN], role="user")],
    ),
    "a PDF": (
        [
            user(
                {
                    "type": "document",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": "bbbb"},
                }
            )
        ],
        [
            said(
                [
                    {
                        "type": "file",
                        "file": {
                            "filename": "document.pdf",
                            "file_data": "data:application/pdf;base64,bbbb",
                        },
                    }
                ],
                role="user",
            )
        ],
    ),
    "a search result": (
        [user({"type": "search_result", "title": "T", "source": "http://s", "content": [text("Found.")]})],
        [said('<search_result title="T" source="http://s">\nFound.\n</search_result>', role="user")],
    ),
    "calls and results in another order, then words": (
        [
            user("Go"),
            assistant("Wait.", use("a"), use("b", x=1)),
            user(result("b", [text("1"), text("2")]), result("a"), "On"),
        ],
        [
            said("Go", role="user"),
            said("Wait.", call("a"), call("b", arguments='{"x":1}')),
            tool("a"),
            tool("b", "1\n2"),
            said("On", role="user"),
        ],
    ),
    "a result that is an error, and one that is nothing": (
        [
            user("Go"),
            assistant(use("a"), use("b")),
            user(result("a", "no", is_error=True), result("b", None)),
        ],
        [
            said("Go", role="user"),
            said("", call("a"), call("b")),
            tool("a", "Error: no"),
            tool("b", "(the tool returned nothing)"),
        ],
    ),
    "results with images stand before the words behind them": (
        [user("Go"), assistant(use("a"), use("b")), user(result("a", [PIXEL]), result("b", [PIXEL]), "On")],
        [
            said("Go", role="user"),
            said("", call("a"), call("b")),
            tool("a", "(see below)"),
            tool("b", "(see below)"),
            said(
                [
                    {"type": "text", "text": "Content of the result of theirs:"},
                    SHOWN,
                    {"type": "text", "text": "Content of the result of theirs:"},
                    SHOWN,
                    {"type": "text", "text": "On"},
                ],
                role="user",
            ),
        ],
    ),
    "thinking, in a block of somebody else's": (
        [user("Go"), assistant({"type": "thinking", "thinking": "Hm.", "signature": "EqQB"}, "Yes.")],
        [said("Go", role="user"), {**said("Yes."), "reasoning_content": "Hm."}],
    ),
    "thinking that the client never saw": (
        [
            user("Go"),
            assistant(
                {
                    "type": "thinking",
                    "thinking": "",
                    "signature": sealed({"member": "reasoning", "thinking": "Hm.", "reasoning_details": [1]}),
                },
                "Yes.",
            ),
        ],
        [said("Go", role="user"), {**said("Yes."), "reasoning": "Hm.", "reasoning_details": [1]}],
    ),
    "what came with a call comes back with it": (
        [
            user("Go"),
            assistant(
                {"type": "redacted_thinking", "data": sealed({"calls": {"a": {"extra_content": {"g": 1}}}})},
                use("a-tw-" + "0" * 20),
            ),
            user(result("a-tw-" + "0" * 20)),
        ],
        [
            said("Go", role="user"),
            said("", {"extra_content": {"g": 1}, **call("a-tw-" + "0" * 20)}),
            tool("a-tw-" + "0" * 20),
        ],
    ),
    "calls of a server that the request names, in two rounds": (
        [
            user("Go"),
            assistant(
                "Look.",
                {"type": "mcp_tool_use", "id": "m1", "server_name": "s", "name": "f", "input": {}},
                {"type": "mcp_tool_use", "id": "m2", "server_name": "s", "name": "f", "input": {}},
                {"type": "mcp_tool_result", "tool_use_id": "m2", "is_error": False, "content": "two"},
                {"type": "mcp_tool_result", "tool_use_id": "m1", "is_error": True, "content": [text("one")]},
                {"type": "mcp_tool_use", "id": "m3", "server_name": "s", "name": "f", "input": {}},
                {"type": "mcp_tool_result", "tool_use_id": "m3", "content": []},
                "Done.",
            ),
        ],
        [
            said("Go", role="user"),
            said("Look.", call("m1", "s_f"), call("m2", "s_f")),
            tool("m1", "Error: one"),
            tool("m2", "two"),
            said("", call("m3", "s_f")),
            tool("m3", "(the tool returned nothing)"),
            said("Done."),
        ],
    ),
    "a call of ours that was broken off": (
        [
            user("Go"),
            assistant({"type": "mcp_tool_use", "id": "m1", "server_name": "s", "name": "f", "input": {}}),
            user("And?"),
        ],
        [
            said("Go", role="user"),
            said("", call("m1", "s_f")),
            tool("m1", "Error: it was broken off before it had a result."),
            said("And?", role="user"),
        ],
    ),
    "blocks that only Anthropic's own tools write": (
        [user("Go"), assistant({"type": "server_tool_use", "id": "s", "name": "web_search"}, "Yes.")],
        [said("Go", role="user"), said("Yes.")],
    ),
    "a system message in the middle": (
        [user("Go"), {"role": "system", "content": "Be brief."}, assistant("Yes.")],
        [said("Go\n\nBe brief.", role="user"), said("Yes.")],
    ),
    "a system message between a call and its result": (
        [
            user("Go"),
            assistant(use("a")),
            {"role": "system", "content": [text("Be brief.")]},
            user(result("a")),
        ],
        [said("Go", role="user"), said("", call("a")), tool("a"), said("Be brief.", role="user")],
    ),
    "a system message for one turn": (
        [
            user("Go"),
            {"role": "system", "content": "Now only.", "clear_at": "next_user_message"},
            assistant("Yes."),
            user("On"),
        ],
        [said("Go", role="user"), said("Yes."), said("On", role="user")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_conversation_is_read(case: str):
    sent, expected = CASES[case]
    assert read(*sent) == expected


def test_system_messages_at_the_beginning_are_told_apart():
    given = reader()
    assert given.read([{"role": "system", "content": "Be brief."}, user("Go")]) == [said("Go", role="user")]
    assert given.system == ["Be brief."]


def test_where_the_model_server_takes_system_messages_anywhere_they_stay_such():
    sent = [user("Go"), {"role": "system", "content": "Be brief."}]
    assert [m["role"] for m in read(*sent, late_role="system")] == ["user", "system"]


def test_an_answer_begun_by_the_client_is_known():
    given = reader()
    given.read([user("Go"), assistant("{")])
    assert given.ends_with_prefill
    other = reader()
    other.read([user("Go"), assistant(use("a")), user(result("a"))])
    assert not other.ends_with_prefill


def test_a_reference_shows_a_deferred_tool():
    find = {"name": "find", "description": "Finds.", "input_schema": {"type": "object"}}
    given = reader(find=find)
    *_, found = given.read(
        [
            user("Go"),
            assistant(use("a")),
            user(result("a", [{"type": "tool_reference", "tool_name": "find"}])),
        ]
    )
    assert found["content"] == (
        '<functions>\n<function>{"description":"Finds.","name":"find","parameters":{"type":"object"}}</function>\n'
        "</functions>"
    )
    assert list(given.loaded) == ["find"]


def test_tools_that_the_conversation_adds_and_removes():
    given = reader()
    changes = [
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "a"}},
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"name": "b"}}},
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "c"}},
        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "c"}},
    ]
    given.read([user("Go"), {"role": "system", "content": changes}])
    assert (list(given.loaded), given.removed, given.defined) == (["a", "b"], {"c"}, [{"name": "b"}])


WRONG = {
    "messages[0] must be an object": ["Hi"],
    "messages[0].content must be": [{"role": "user", "content": 3}],
    "messages[0].content must be a text or a list": [{"role": "user", "content": ["Hi"]}],
    "Roles are user, assistant and system": [{"role": "tool", "content": "Hi"}],
    "messages[0].content[0].text must be a text": [user({"type": "text", "text": 3})],
    "Missing required parameter: 'messages[0].content[0].source'": [user({"type": "image"})],
    "Sources of pictures are base64 and url": [user({"type": "image", "source": {"type": "x"}})],
    "Files are not kept here": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})],
    "Documents are not fetched here": [
        user({"type": "document", "source": {"type": "url", "url": "http://x"}})
    ],
    "Blocks served here": [user({"type": "hologram"})],
    "without tool_result blocks immediately after: a": [user("Go"), assistant(use("a")), user("And?")],
    "unexpected tool_use_id found in tool_result blocks: b": [
        user("Go"),
        assistant(use("a")),
        user(result("b")),
    ],
    "two tool_use blocks with the id a": [user("Go"), assistant(use("a"), use("a"))],
    "input must be an object": [user("Go"), assistant({**use("a"), "input": "x"})],
    "there is no mcp_tool_use block m": [
        user("Go"),
        assistant({"type": "mcp_tool_result", "tool_use_id": "m"}),
    ],
    "must hold at least one message": [],
}


@pytest.mark.parametrize("words", WRONG)
def test_what_is_wrong_is_told_with_its_place(words: str):
    with pytest.raises(InvalidRequest) as caught:
        read(*WRONG[words])
    assert words in caught.value.message
