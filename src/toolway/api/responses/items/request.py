"""The body of POST /v1/responses -> the chat completion it asks for, and what it asks of this server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from toolway.api.responses.items import fields
from toolway.api.responses.items.tools import as_function, read_tools
from toolway.errors import InvalidRequest
from toolway.types import JSON

_OWN = frozenset({
    "access_programs", "background", "background_options", "client_metadata", "context_management", "conversation",
    "function_call", "functions", "generate", "image", "include", "input", "instructions", "max_output_tokens",
    "max_tool_calls", "messages", "metadata", "moderation", "n", "previous_response_id", "prompt", "reasoning", "store",
    "stream", "stream_options", "text", "tool_choice", "tools", "top_logprobs", "truncation", "type",
})  # fmt: skip
"""Fields that have another name, or none, in a chat completion, or no place here. All others go along as they are."""

CHOICES = ("auto", "none", "required")
"""What `tool_choice` may be besides an object."""

_UNSERVED = {
    "conversation": "Conversations are not kept here; use previous_response_id.",
    "prompt": "There are no stored prompts here; send instructions and input.",
}


_REQUEST = fields.object_of(
    **dict.fromkeys(("model", "instructions", "previous_response_id"), str),
    **dict.fromkeys(("stream", "store", "background", "parallel_tool_calls"), bool),
    **dict.fromkeys(("max_output_tokens", "max_tool_calls"), fields.Count),
    **dict.fromkeys(("temperature", "top_p", "presence_penalty", "frequency_penalty"), fields.Number),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"), str),
    include=fields.Texts,
    metadata=fields.NamedTexts,
    reasoning=JSON,
    service_tier=str,
    text=JSON,
    top_logprobs=fields.CountOrZero,
    truncation=Literal["auto", "disabled"],
)
"""What is acted on, and what is only repeated or passed on: a client gets back what it sent."""

_REASONING = fields.object_of(effort=str, summary=Literal["auto", "concise", "detailed"])
_TEXT = fields.object_of(verbosity=str, format=JSON)
_JSON_SCHEMA = fields.object_of({"name": fields.Name, "schema": JSON}, description=str, strict=bool)
_CHOICES = {
    "function": fields.object_of({"name": fields.Name}),
    "custom": fields.object_of({"name": fields.Name}),
    "mcp": fields.object_of({"server_label": fields.Name}, name=str),
    "allowed_tools": fields.object_of(
        {"tools": Annotated[list[JSON], fields.Kind("a list of tools")]}, mode=Literal["auto", "required"]
    ),
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
    known = fields.check(_REQUEST, body)
    _check_choice(body.get("tool_choice"))
    tools = read_tools(body.get("tools"))
    store, background = known.get("store") is not False, bool(known.get("background"))
    if background and not store:
        raise InvalidRequest("background needs store to be true.", param="background")
    request = ResponseRequest(
        given=body,
        chat=_chat(body, known, tools),
        items=_items(body),
        instructions=known.get("instructions"),
        tools=tools,
        custom=frozenset(tool["name"] for tool in tools if tool["type"] == "custom"),
        mcp=[tool for tool in tools if tool["type"] == "mcp"],
        previous=known.get("previous_response_id"),
        stream=bool(known.get("stream")),
        store=store,
        background=background,
        max_tool_calls=known.get("max_tool_calls"),
        include=frozenset(known.get("include") or ()),
    )
    if not request.items and not request.previous and request.instructions is None:
        raise fields.missing("input")
    return request


def _check_choice(choice: Any) -> None:
    if choice is None or choice in CHOICES:
        return
    if not isinstance(choice, dict):
        raise InvalidRequest("tool_choice must be auto, none, required or an object.", param="tool_choice")
    if kind := fields.by_type(_CHOICES, choice):
        fields.check(kind, {"tools": None, **choice}, "tool_choice")


def _chat(body: JSON, known: JSON, tools: Sequence[JSON]) -> JSON:
    chat = {key: value for key, value in body.items() if key not in _OWN and value is not None}
    if most := known.get("max_output_tokens"):
        chat["max_tokens"] = most
    if functions := [as_function(tool) for tool in tools if tool["type"] != "mcp"]:
        chat["tools"] = functions
    if effort := fields.check(_REASONING, known.get("reasoning") or {}, "reasoning").get("effort"):
        chat["reasoning_effort"] = effort
    text = fields.check(_TEXT, known.get("text") or {}, "text")
    if verbosity := text.get("verbosity"):
        chat["verbosity"] = verbosity
    if form := _response_format(text.get("format") or {}):
        chat["response_format"] = form
    top = known.get("top_logprobs") or 0
    if top or "message.output_text.logprobs" in (known.get("include") or ()):
        chat |= {"logprobs": True, "top_logprobs": top}
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
            fields.check(_JSON_SCHEMA, form, "text.format")
            schema = {key: value for key, value in form.items() if key != "type" and value is not None}
            return {"type": "json_schema", "json_schema": schema}
        case kind if form and kind != "text":
            raise InvalidRequest(
                "text.format must be of type text, json_object or json_schema.", param="text.format"
            )
    return None
