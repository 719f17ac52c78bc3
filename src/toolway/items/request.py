"""The body of POST /v1/responses -> the chat completion it asks for, and what it asks of this server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from toolway.errors import InvalidRequest
from toolway.items.approval import needs_approval
from toolway.types import JSON

log = logging.getLogger("toolway.responses")

CUSTOM_INPUT = "input"
"""The one argument of the function that stands for a custom tool."""

HOSTED = frozenset(
    {
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "file_search",
        "image_generation",
        "local_shell",
        "namespace",
        "programmatic_tool_calling",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    }
)
"""Tools that only OpenAI runs. Clients declare some of them always (Codex), so they are left out, not refused."""

_OWN = frozenset(
    {
        "access_programs",
        "background",
        "background_options",
        "client_metadata",
        "context_management",
        "conversation",
        "generate",
        "image",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "moderation",
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
"""Fields that have another name, or none, in a chat completion. All others go along as they are."""

_UNSERVED = {
    "conversation": "Conversations are not kept here; use previous_response_id.",
    "prompt": "There are no stored prompts here; send instructions and input.",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request to create a response. `chat` is the body of a chat completion, without messages.

    `given` is the body as it came, `items` is its input as a list, `custom` are the names of custom tools and `mcp`
    the entries that name tool servers.
    """

    given: JSON
    chat: JSON
    items: Sequence[JSON]
    instructions: str | None
    custom: frozenset[str]
    mcp: Sequence[JSON]
    previous: str | None
    stream: bool
    store: bool
    background: bool
    max_tool_calls: int | None
    include: frozenset[str]


def read_request(body: JSON) -> Asked:
    """Raises InvalidRequest with the name of the first wrong field."""
    for name, why in _UNSERVED.items():
        if body.get(name) is not None:
            raise InvalidRequest(why, param=name, code="unsupported_parameter")
    tools = _tools(body.get("tools"))
    flags = {name: _flag(body, name) for name in ("stream", "store", "background", "parallel_tool_calls")}
    store = flags["store"] is not False
    if flags["background"] and not store:
        raise InvalidRequest("background needs store to be true.", param="background")
    asked = Asked(
        given=body,
        chat=_chat(body, tools),
        items=_items(body),
        instructions=_text(body, "instructions"),
        custom=frozenset(tool["name"] for tool in tools if tool["type"] == "custom"),
        mcp=[tool for tool in tools if tool["type"] == "mcp"],
        previous=_text(body, "previous_response_id"),
        stream=bool(flags["stream"]),
        store=store,
        background=bool(flags["background"]),
        max_tool_calls=_count(body, "max_tool_calls"),
        include=frozenset(_texts(body, "include")),
    )
    if not asked.items and not asked.previous and asked.instructions is None:
        raise InvalidRequest(
            "Missing required parameter: 'input'.", param="input", code="missing_required_parameter"
        )
    return asked


def _chat(body: JSON, tools: Sequence[JSON]) -> JSON:
    chat = {key: value for key, value in body.items() if key not in _OWN and value is not None}
    if model := _text(body, "model"):
        chat["model"] = model
    if (most := _count(body, "max_output_tokens")) is not None:
        chat["max_tokens"] = most
    if functions := [_function(tool) for tool in tools if tool["type"] in ("function", "custom")]:
        chat["tools"] = functions
    if effort := _object(body, "reasoning").get("effort"):
        chat["reasoning_effort"] = effort
    text = _object(body, "text")
    if verbosity := text.get("verbosity"):
        chat["verbosity"] = verbosity
    if form := _response_format(text.get("format")):
        chat["response_format"] = form
    if _wants_logprobs(body):
        chat |= {"logprobs": True, "top_logprobs": _count(body, "top_logprobs", least=0) or 0}
    _object(body, "metadata")
    return chat


def choice_of(
    asked: Asked, expose: Callable[[str, str | None], Sequence[str]]
) -> tuple[Any, frozenset[str] | None]:
    """The chat completion's `tool_choice`, and the names of all tools that may be used (None: no limit).

    `expose(label, name)` tells under which names the model sees a tool of a server, or all of its tools.
    """
    choice = asked.given.get("tool_choice")
    if choice is None or choice in ("auto", "none", "required"):
        return choice, None
    if not isinstance(choice, dict):
        raise InvalidRequest("tool_choice must be auto, none, required or an object.", param="tool_choice")
    if choice.get("type") == "allowed_tools":
        listed = choice.get("tools")
        if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
            raise InvalidRequest("tool_choice.tools must be a list of tools.", param="tool_choice.tools")
        names = frozenset(name for tool in listed for name in _chosen(tool, expose))
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


def _tools(given: Any) -> list[JSON]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise InvalidRequest("tools must be a list.", param="tools")
    tools = []
    for number, tool in enumerate(given):
        where = f"tools[{number}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind in ("function", "custom"):
            if not isinstance(tool.get("name"), str) or not tool["name"]:
                raise InvalidRequest(
                    f"Missing required parameter: '{where}.name'.",
                    param=f"{where}.name",
                    code="missing_required_parameter",
                )
        elif kind == "mcp":
            _check_mcp(tool, where)
        elif kind in HOSTED:
            log.info("the client's tool of type %s is left out: only OpenAI runs it", kind)
            continue
        else:
            raise InvalidRequest(
                f"Invalid value: {str(kind)[:50]!r}. Tools served here: function, custom and mcp.",
                param=f"{where}.type",
                code="invalid_value",
            )
        tools.append(tool)
    return tools


def _check_mcp(tool: JSON, where: str) -> None:
    if not isinstance(tool.get("server_label"), str) or not tool["server_label"]:
        raise InvalidRequest(
            f"Missing required parameter: '{where}.server_label'.",
            param=f"{where}.server_label",
            code="missing_required_parameter",
        )
    needs_approval(tool, "")
    if tool.get("connector_id") is not None:
        raise InvalidRequest("Connectors are OpenAI's own; name a server_url.", param=f"{where}.connector_id")
    headers = tool.get("headers")
    if headers is not None and not (
        isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values())
    ):
        raise InvalidRequest("headers must be an object of texts.", param=f"{where}.headers")
    for name in ("server_url", "authorization"):
        if not isinstance(tool.get(name), str | None):
            raise InvalidRequest(f"{name} must be a text.", param=f"{where}.{name}")


def _function(tool: JSON) -> JSON:
    if tool["type"] == "custom":
        hint = {"type": "string", "description": "The whole input of the tool, as plain text"}
        parameters = {"type": "object", "properties": {CUSTOM_INPUT: hint}, "required": [CUSTOM_INPUT]}
        function = {"name": tool["name"], "description": tool.get("description"), "parameters": parameters}
    else:
        function = {name: tool.get(name) for name in ("name", "description", "parameters", "strict")}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


def _response_format(form: Any) -> JSON | None:
    if form is None or (isinstance(form, dict) and form.get("type") == "text"):
        return None
    if not isinstance(form, dict) or form.get("type") not in ("json_schema", "json_object"):
        raise InvalidRequest(
            "text.format must be of type text, json_object or json_schema.", param="text.format"
        )
    if form["type"] == "json_object":
        return {"type": "json_object"}
    schema = {key: value for key, value in form.items() if key != "type" and value is not None}
    return {"type": "json_schema", "json_schema": schema}


def _wants_logprobs(body: JSON) -> bool:
    return "message.output_text.logprobs" in _texts(body, "include") or bool(body.get("top_logprobs"))


def _flag(body: JSON, name: str) -> bool | None:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise InvalidRequest(f"{name} must be true or false.", param=name)
    return value


def _count(body: JSON, name: str, *, least: int = 1) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidRequest(f"{name} must be a whole number from {least} on.", param=name)
    return value


def _text(body: JSON, name: str) -> str | None:
    value = body.get(name)
    if not isinstance(value, str | None):
        raise InvalidRequest(f"{name} must be a text.", param=name)
    return value


def _texts(body: JSON, name: str) -> list[str]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InvalidRequest(f"{name} must be a list of texts.", param=name)
    return value


def _object(body: JSON, name: str) -> JSON:
    value = body.get(name)
    if not isinstance(value, dict | None):
        raise InvalidRequest(f"{name} must be an object.", param=name)
    return value or {}
