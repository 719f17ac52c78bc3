"""The body of POST /v1/responses -> the chat completion it asks for, and what it asks of this server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from toolway.api.responses.items import fields
from toolway.api.responses.items.tools import as_function, read_tools
from toolway.errors import InvalidRequest
from toolway.types import JSON

_OWN = frozenset(
    {
        "access_programs",
        "background",
        "background_options",
        "client_metadata",
        "context_management",
        "conversation",
        "function_call",
        "functions",
        "generate",
        "image",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "messages",
        "metadata",
        "moderation",
        "n",
        "previous_response_id",
        "prompt",
        "reasoning",
        "store",
        "stream",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "truncation",
        "type",
    }
)
"""Fields that have another name, or none, in a chat completion, or no place here. All others go along as they are."""

_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
_TEXTS = ("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "user")

CHOICES = ("auto", "none", "required")
"""What `tool_choice` may be besides an object."""

_UNSERVED = {
    "conversation": "Conversations are not kept here; use previous_response_id.",
    "prompt": "There are no stored prompts here; send instructions and input.",
}


@dataclass(frozen=True, kw_only=True)
class ResponseRequest:
    """A request to create a response. `chat` is the body of a chat completion, without messages.

    `given` is the body as it came, checked; `items` is its input as a list, `tools` are the declarations served,
    `custom` the names of custom tools among them and `mcp` the entries that name tool servers.
    """

    given: JSON
    chat: JSON
    items: Sequence[JSON]
    tools: Sequence[JSON]
    instructions: str | None
    custom: frozenset[str]
    mcp: Sequence[JSON]
    previous: str | None
    stream: bool
    store: bool
    background: bool
    max_tool_calls: int | None
    include: frozenset[str]


def read_request(body: JSON) -> ResponseRequest:
    """Raises InvalidRequest with the name of the first wrong field."""
    for name, why in _UNSERVED.items():
        if body.get(name) is not None:
            raise InvalidRequest(why, param=name, code="unsupported_parameter")
    _check(body)
    tools = read_tools(body.get("tools"))
    store, background = fields.flag(body, "store") is not False, bool(fields.flag(body, "background"))
    if background and not store:
        raise InvalidRequest("background needs store to be true.", param="background")
    request = ResponseRequest(
        given=body,
        chat=_chat(body, tools),
        items=_items(body),
        instructions=fields.text(body, "instructions"),
        tools=tools,
        custom=frozenset(tool["name"] for tool in tools if tool["type"] == "custom"),
        mcp=[tool for tool in tools if tool["type"] == "mcp"],
        previous=fields.text(body, "previous_response_id"),
        stream=bool(fields.flag(body, "stream")),
        store=store,
        background=background,
        max_tool_calls=fields.whole(body, "max_tool_calls"),
        include=frozenset(fields.texts(body, "include")),
    )
    if not request.items and not request.previous and request.instructions is None:
        raise fields.missing("input")
    return request


def _check(body: JSON) -> None:
    """What is only repeated or passed on: a client gets back what it sent, so it must be of the right kind."""
    for name in _NUMBERS:
        fields.number(body, name)
    for name in _TEXTS:
        fields.text(body, name)
    fields.flag(body, "parallel_tool_calls")
    fields.whole(body, "top_logprobs", least=0)
    fields.one_of(body, "truncation", {"auto", "disabled"})
    fields.named_texts(body, "metadata")
    reasoning = fields.member(body, "reasoning")
    fields.text(reasoning, "effort", "reasoning.")
    fields.one_of(reasoning, "summary", {"auto", "concise", "detailed"}, "reasoning.")
    _check_choice(body.get("tool_choice"))


def _check_choice(choice: Any) -> None:
    if choice is None or choice in CHOICES:
        return
    if not isinstance(choice, dict):
        raise InvalidRequest("tool_choice must be auto, none, required or an object.", param="tool_choice")
    where = "tool_choice."
    match choice.get("type"):
        case "function" | "custom":
            fields.required(choice, "name", where)
        case "mcp":
            fields.required(choice, "server_label", where)
            fields.text(choice, "name", where)
        case "allowed_tools":
            fields.one_of(choice, "mode", {"auto", "required"}, where)
            listed = choice.get("tools")
            if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
                raise fields.wrong(f"{where}tools", "a list of tools")


def _chat(body: JSON, tools: Sequence[JSON]) -> JSON:
    chat = {key: value for key, value in body.items() if key not in _OWN and value is not None}
    fields.text(body, "model")
    if (most := fields.whole(body, "max_output_tokens")) is not None:
        chat["max_tokens"] = most
    if functions := [as_function(tool) for tool in tools if tool["type"] != "mcp"]:
        chat["tools"] = functions
    if effort := fields.member(body, "reasoning").get("effort"):
        chat["reasoning_effort"] = effort
    said = fields.member(body, "text")
    if verbosity := fields.text(said, "verbosity", "text."):
        chat["verbosity"] = verbosity
    if form := _response_format(fields.member(said, "format", "text.")):
        chat["response_format"] = form
    if "message.output_text.logprobs" in fields.texts(body, "include") or body.get("top_logprobs"):
        chat |= {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}
    return chat


def choice_of(
    request: ResponseRequest, expose: Callable[[str, str | None], Sequence[str]]
) -> tuple[Any, frozenset[str] | None]:
    """The chat completion's `tool_choice`, and the names of all tools that may be used (None: no limit).

    `expose(label, name)` tells under which names the model sees a tool of a server, or all of its tools.
    """
    choice = request.given.get("tool_choice")
    if not isinstance(choice, dict):
        return choice, None
    if choice.get("type") == "allowed_tools":
        names = frozenset(name for tool in choice["tools"] for name in _chosen(tool, expose))
        return choice.get("mode") or "auto", names
    names = frozenset(_chosen(choice, expose))
    if len(names) == 1:
        return {"type": "function", "function": {"name": next(iter(names))}}, None
    return "required", names


def _chosen(tool: JSON, expose: Callable[[str, str | None], Sequence[str]]) -> Sequence[str]:
    name = tool.get("name")
    match tool.get("type"):
        case "function" | "custom" if isinstance(name, str):
            return [name]
        case "mcp" if isinstance(label := tool.get("server_label"), str):
            found = expose(label, name if isinstance(name, str) else None)
            if found:
                return found
            raise InvalidRequest(
                f"tool_choice names no tool of the server {label[:100]!r}.", param="tool_choice"
            )
    raise InvalidRequest(
        f"tool_choice of the type {str(tool.get('type'))[:50]!r} is not served here.", param="tool_choice"
    )


def _items(body: JSON) -> list[JSON]:
    given = body.get("input")
    if given is None:
        return []
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise InvalidRequest("input must be a text or a list of items.", param="input")
    return given


def _response_format(form: JSON) -> JSON | None:
    match form.get("type"):
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            fields.required(form, "name", "text.format.")
            fields.text(form, "description", "text.format.")
            fields.flag(form, "strict", "text.format.")
            fields.member(form, "schema", "text.format.")
            if form.get("schema") is None:
                raise fields.missing("text.format.schema")
            schema = {key: value for key, value in form.items() if key != "type" and value is not None}
            return {"type": "json_schema", "json_schema": schema}
        case kind if form and kind != "text":
            raise InvalidRequest(
                "text.format must be of type text, json_object or json_schema.", param="text.format"
            )
    return None
