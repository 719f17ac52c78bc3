"""What clients ask for themselves, beside their users: known by its wording, and asked without tools of ours."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.responses.requests import respond
from tests.support.app_server import AppServer, app_server
from tests.support.logs import logged
from tests.support.upstream import tool_call, whole

JSON = dict[str, Any]

OPENCODE = [
    {
        "role": "system",
        "content": "You are a title generator. You output ONLY a thread title. Nothing else.\n...",
    },
    {"role": "user", "content": "Generate a title for this conversation:\n"},
    {"role": "user", "content": "What is the weather in Paris?"},
]
QWEN_MEMORY = [
    {
        "role": "system",
        "content": "You are now acting as the managed memory extraction subagent for an AI coding ...",
    },
    {"role": "user", "content": "What is the weather in Paris?"},
    {"role": "assistant", "content": "Cloudy."},
    {"role": "user", "content": "Managed memory has TWO directories."},
]
TASK = """### Task:
{}
### Output:
JSON format: {{}}
### Chat History:
<chat_history>
USER: What is the weather?
</chat_history>"""
WEBUI_TITLE = [{"role": "user", "content": TASK.format("Generate a concise, 3-5 word title with an emoji")}]
WEBUI_TAGS = [{"role": "user", "content": [{"type": "text", "text": TASK.format("Generate 1-3 broad tags")}]}]
ZED = [
    {"role": "user", "content": "Hi"},
    {
        "role": "user",
        "content": "Generate a concise 3-7 word title for this conversation, omitting punctuation.",
    },
]
SIDE = {
    "opencode": OPENCODE,
    "Qwen Code": QWEN_MEMORY,
    "Open WebUI title": WEBUI_TITLE,
    "Open WebUI tags": WEBUI_TAGS,
    "Zed": ZED,
}
RAG = """### Task:
Respond to the user query using the provided context.
### Output:
Text.
<context>Paris</context>
What is the weather?"""
ANSWERED = [*ZED, {"role": "assistant", "content": "A title"}, {"role": "user", "content": "Go on"}]
QUESTIONS = {
    "Open WebUI with documents": [{"role": "user", "content": RAG}],
    "about titles": [{"role": "user", "content": "You are a title generator. What is the weather?"}],
    "a task": [{"role": "user", "content": "### Task:\nFind the weather in <chat_history>."}],
    "after a title": ANSWERED,
}
OWN: JSON = {"type": "function", "function": {"name": "read_file", "parameters": {"type": "object"}}}


def offered(app: AppServer) -> list[str]:
    return [tool["function"]["name"] for tool in app.upstream.seen[-1].json.get("tools") or ()]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", SIDE)
def test_a_side_request_is_offered_no_tools(app: AppServer, name: str, stream: bool):
    app.set_replies(whole({"content": "A title"}))
    app.post({"model": "mock", "messages": SIDE[name], "stream": stream})
    assert offered(app) == []
    assert app.upstream.seen[-1].json["messages"] == SIDE[name]


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_keeps_its_tools(app: AppServer, name: str):
    app.set_replies(whole({"content": "Cloudy."}))
    app.post({"model": "mock", "messages": QUESTIONS[name]})
    assert offered(app) == ["get_weather", "list_cities"]


def test_the_clients_own_tools_stay_with_it(app: AppServer):
    app.set_replies(whole({"tool_calls": [tool_call("read_file", "{}")]}, "tool_calls"))
    answer = app.post({"model": "mock", "messages": QWEN_MEMORY, "tools": [OWN]}).json()
    assert offered(app) == ["read_file"]
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "read_file"


def test_responses_know_it_by_their_instructions(app: AppServer):
    app.set_replies(whole({"content": "A title"}))
    answer = respond(app, instructions=OPENCODE[0]["content"], input="What is the weather in Paris?")
    assert answer.status_code == 200
    assert offered(app) == []


def test_a_bound_of_an_entry_must_hold_too(app: AppServer):
    describe = "Given the following... please reply with a title for the chat that is 3-4 words in length.\n\nWeather?"
    app.set_replies(whole({"content": "Paris Weather"}))
    for most, tools in ((16, []), (4000, ["get_weather", "list_cities"])):
        app.post({"model": "mock", "messages": [{"role": "user", "content": describe}], "max_tokens": most})
        assert offered(app) == tools


def test_who_chooses_tools_gets_them(app: AppServer):
    app.set_replies(whole({"content": "A title"}))
    app.post({"model": "mock", "messages": OPENCODE}, headers={"x-toolway-tools": "get_*"})
    assert offered(app) == ["get_weather"]


def test_the_log_says_so_and_a_setting_decides():
    with (
        app_server(whole({"content": "A title"}), debug_output=True) as app,
        logged(app.settings) as log,
    ):
        app.post({"model": "mock", "messages": OPENCODE})
        assert "0 tools: a side request (opencode's title) gets none\n" in log.getvalue()
    with app_server(whole({"content": "A title"}), side_request_tools=True) as app:
        app.post({"model": "mock", "messages": OPENCODE})
        assert offered(app) == ["get_weather", "list_cities"]
