"""A request to create a response: its fields and tools checked, and the chat completion that it asks for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from toolway.api import fields
from toolway.api.responses.items.chat_shapes import own_shapes
from toolway.errors import InvalidRequest
from toolway.tools import names
from toolway.types import JSON, record

log = logging.getLogger("toolway.responses")

_SERVED = "Tools served here: function, custom, mcp and tool_search."
_IN_A_NAMESPACE = "A namespace holds function and custom tools."

CUSTOM_INPUT = "input"
"""The one argument of the function that stands for a custom tool."""

_HOSTED = (
    "apply_patch", "code_interpreter", "computer", "file_search", "image_generation", "local_shell",
    "programmatic_tool_calling", "shell", "tool_search", "web_search",
)  # fmt: skip
"""How the types of tools begin that only OpenAI runs; new ones add a word or a date.

Clients declare some of them always (Codex), so they are left out, not rejected.
"""

_SHOWN = {
    "function": ("name", "description", "parameters", "strict", "defer_loading"),
    "custom": ("name", "description", "format", "defer_loading"),
    "mcp": ("server_label", "server_description", "server_url", "allowed_tools"),
    "tool_search": ("execution", "description", "parameters"),
}
"""What the response repeats of a declaration. The rest may be secret."""

_NULL = {
    "function": ("description", "parameters", "strict"),
    "custom": (),
    "mcp": ("server_description", "allowed_tools"),
    "tool_search": (),
}
"""What it says also when nothing was given."""


_DECLARATIONS = {
    "function": fields.object_of(
        {"name": fields.Name}, description=str, parameters=JSON, strict=bool, defer_loading=bool
    ),
    "custom": fields.object_of({"name": fields.Name}, description=str, format=JSON, defer_loading=bool),
    "tool_search": fields.object_of(execution=Literal["server", "client"], description=str, parameters=JSON),
    "mcp": fields.object_of(
        {"server_label": fields.Name},
        **dict.fromkeys(("server_url", "server_description", "authorization"), str),
        headers=fields.NamedTexts,
        allowed_tools=Annotated[fields.Texts | JSON, fields.Expected("a list of texts")],
        defer_loading=bool,
    ),
}
_DECLARATIONS["namespace"] = fields.object_of(
    {"name": fields.Name, "tools": Annotated[list[JSON], fields.Expected("a list of tools")]},
    description=str,
)
_FORMAT = fields.object_of({"type": Literal["grammar", "text"]})
_GRAMMAR = fields.object_of({"definition": fields.Name, "syntax": Literal["lark", "regex"]})
_FILTER = fields.object_of(tool_names=fields.Texts, read_only=bool)

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
        {"tools": Annotated[list[JSON], fields.Expected("a list of tools")]},
        mode=Literal["auto", "required"],
    ),
}


@dataclass(frozen=True, kw_only=True)
class ClientTool:
    """A function or custom tool of the client's, under the name that the client gave it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False
    is_search: bool = False
    """It is the tool search that the client runs."""


@record
class ResponseRequest:
    """A request to create a response. `chat` is the body of a chat completion, without messages.

    `given` is the body, checked, in the shapes of this API; `items` is its input as a list, `tools` are the
    declarations served, `client_tools` the client's own among them by the names that the model calls them by,
    `deferred` the names of those that a search finds, and `mcp` the entries that name tool servers.
    """

    given: JSON
    chat: JSON
    items: Sequence[JSON]
    tools: Sequence[JSON]
    instructions: str | None
    client_tools: Mapping[str, ClientTool]
    deferred: frozenset[str]
    mcp: Sequence[JSON]
    previous: str | None
    stream: bool
    store: bool
    background: bool
    max_tool_calls: int | None
    include: frozenset[str]

    @property
    def search(self) -> JSON | None:
        """The declaration of OpenAI's tool search, if there is one."""
        return next((tool for tool in self.tools if tool["type"] == "tool_search"), None)

    @property
    def compacts(self) -> bool:
        """Whether the response is to be a summary of the conversation instead of an answer."""
        return any(item.get("type") == "compaction_trigger" for item in self.items)

    def model_name(self, name: str, namespace: Any = None) -> str:
        """The name by which the model calls a tool of the client's, declared or not."""
        if not isinstance(namespace, str):
            return name
        return self._model_names.get((namespace, name)) or names.legal(_joined(namespace, name))

    @cached_property
    def _model_names(self) -> Mapping[tuple[str | None, str], str]:
        return {(tool.namespace, tool.name): name for name, tool in self.client_tools.items()}


def read_request(body: JSON) -> ResponseRequest:
    """Raises InvalidRequest with the name of the first wrong field."""
    for name, why in _UNSERVED.items():
        if body.get(name) is not None:
            raise InvalidRequest(why, param=name, code="unsupported_parameter")
    body = own_shapes(body)
    known = fields.check(_REQUEST, body)
    _check_choice(body.get("tool_choice"))
    items = _items(body)
    given = read_tools(body.get("tools"), "tools")
    loaded: list[JSON] = []
    for number, item in enumerate(items):
        if item.get("type") in ("additional_tools", "tool_search_output"):
            loaded += read_tools(item.get("tools"), f"input[{number}].tools")
    tools = [*given, *loaded]
    declared = _client_tools(tools)
    store, background = known.get("store") is not False, bool(known.get("background"))
    if background and not store:
        raise InvalidRequest("background needs store to be true.", param="background")
    request = ResponseRequest(
        given=body,
        chat=_chat(body, known, [as_function(tool, name) for name, (_, tool) in declared.items()]),
        items=items,
        instructions=known.get("instructions"),
        tools=tools,
        client_tools={name: tool for name, (tool, _) in declared.items()},
        deferred=_deferred(declared, given, loaded),
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


def _chat(body: JSON, known: JSON, functions: Sequence[JSON]) -> JSON:
    chat = {key: value for key, value in body.items() if key not in _OWN and value is not None}
    if most := known.get("max_output_tokens"):
        chat["max_tokens"] = most
    if functions:
        chat["tools"] = functions
    reasoning = known.get("reasoning")
    if reasoning and (effort := fields.check(_REASONING, reasoning, "reasoning").get("effort")):
        chat["reasoning_effort"] = effort
    if text := known.get("text"):
        text = fields.check(_TEXT, text, "text")
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
        allowed = frozenset(name for tool in choice["tools"] for name in _names_chosen(tool, request, expose))
        return choice.get("mode") or "auto", allowed
    chosen = frozenset(_names_chosen(choice, request, expose))
    if len(chosen) == 1:
        return {"type": "function", "function": {"name": next(iter(chosen))}}, None
    return "required", chosen


def _names_chosen(
    tool: JSON, request: ResponseRequest, expose: Callable[[str, str | None], Sequence[str]]
) -> Sequence[str]:
    name = tool.get("name")
    match tool.get("type"):
        case "function" | "custom" if isinstance(name, str):
            return [request.model_name(name, tool.get("namespace"))]
        case "namespace" if isinstance(name, str):
            found = [key for key, own in request.client_tools.items() if own.namespace == name]
            return _any_of(found, f"the namespace {name[:100]!r}")
        case "mcp" if isinstance(label := tool.get("server_label"), str):
            return _any_of(
                expose(label, name if isinstance(name, str) else None), f"the server {label[:100]!r}"
            )
    raise InvalidRequest(
        f"tool_choice of the type {str(tool.get('type'))[:50]!r} is not served here.", param="tool_choice"
    )


def _any_of(found: Sequence[str], where: str) -> Sequence[str]:
    if found:
        return found
    raise InvalidRequest(f"tool_choice names no tool of {where}.", param="tool_choice")


def _items(body: JSON) -> list[JSON]:
    given = body.get("input")
    if given is None:
        return []
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise InvalidRequest("input must be a text or a list of items.", param="input")
    fields.check_size("input", len(given), sum(map(_parts, given[: fields.MAX_ENTRIES])))
    return given


_LISTS = ("content", "output", "summary")


def _parts(item: JSON) -> int:
    """How many parts the lists of an item hold."""
    lists = [part for name in _LISTS if isinstance(part := item.get(name), list)]
    return sum(map(len, lists)) if lists else 0


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


def read_tools(given: Any, where: str) -> list[JSON]:
    """The declarations that are served here. Raises InvalidRequest for what is none."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise fields.wrong(where, "a list")
    inner = (tool.get("tools") for tool in given[: fields.MAX_ENTRIES] if isinstance(tool, dict))
    fields.check_size(where, len(given), sum(len(tools) for tools in inner if isinstance(tools, list)))
    return [read for number, tool in enumerate(given) if (read := _read_tool(tool, f"{where}[{number}]"))]


def _client_tools(tools: Sequence[JSON]) -> dict[str, tuple[ClientTool, JSON]]:
    """The client's own tools, each with its declaration, by the names that the model calls them by.

    A tool in a namespace has that in its name: a chat completion knows no namespaces, and two may hold the same name.
    """
    declared: dict[str, tuple[ClientTool, JSON]] = {}
    for tool in tools:
        if tool["type"] in ("function", "custom"):
            own = ClientTool(name=tool["name"], is_custom=tool["type"] == "custom")
            declared.setdefault(tool["name"], (own, tool))
    for space in tools:
        for tool in space["tools"] if space["type"] == "namespace" else ():
            own = ClientTool(name=tool["name"], namespace=space["name"], is_custom=tool["type"] == "custom")
            name = names.legal(_joined(space["name"], tool["name"]))
            if name in declared and declared[name][0] != own:
                name = names.with_hash(name, f"{space['name']}\0{tool['name']}")
            declared.setdefault(name, (own, tool))
    return declared


def _deferred(
    declared: Mapping[str, tuple[ClientTool, JSON]], given: Sequence[JSON], loaded: Sequence[JSON]
) -> frozenset[str]:
    """The names of the tools that are to be found first, if there is a search for them, and were not found yet."""
    if not any(tool["type"] == "tool_search" for tool in given):
        return frozenset()
    found = {own for own, _ in _client_tools(loaded).values()}
    return frozenset(
        name for name, (own, tool) in declared.items() if tool.get("defer_loading") and own not in found
    )


def _joined(namespace: str, name: str) -> str:
    return f"{namespace.rstrip('_')}__{name.lstrip('_')}"


def as_function(tool: JSON, name: str) -> JSON:
    """A function or custom tool, declared as in a chat completion under this name."""
    function = {"name": name, **{key: tool.get(key) for key in ("description", "parameters", "strict")}}
    if tool["type"] == "custom":
        hint = {"type": "string", "description": "The whole input of the tool, as plain text"}
        parameters = {"type": "object", "properties": {CUSTOM_INPUT: hint}, "required": [CUSTOM_INPUT]}
        function |= {"parameters": parameters, "strict": None}
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


def tool_as_shown(tool: JSON) -> JSON:
    """A declaration as the response repeats it, without the secrets in it."""
    kind = tool["type"]
    if kind == "namespace":
        inner = [tool_as_shown(each) for each in tool["tools"]]
        return {
            "type": kind,
            "name": tool["name"],
            "description": tool.get("description") or "",
            "tools": inner,
        }
    shown = {"type": kind, **dict.fromkeys(_NULL[kind]), **shown_members(tool, _SHOWN)}
    if kind == "mcp":
        shown["require_approval"] = approval_of(tool)
    if "format" in shown:
        shown["format"] = shown_members(shown["format"], {"grammar": ("syntax", "definition")})
    if "server_url" in shown:
        shown["server_url"] = _origin(shown["server_url"])
    return shown


def shown_members(given: JSON, known: Mapping[str, Sequence[str]]) -> JSON:
    """The type of an object, and what is `known` of this type and given: a client that is typed fails at more."""
    names = known.get(given["type"], ())
    return {"type": given["type"], **{name: given[name] for name in names if given.get(name) is not None}}


def approval_of(entry: JSON, where: str = "") -> str | JSON:
    """`require_approval` of an mcp entry, with all that may be left out; OpenAI's default is to ask always.

    It is "always", "never", or `{"always": FILTER, "never": FILTER}`; a filter is `{"tool_names": [...]}` or
    `{"read_only": ...}`, and may come as a list of names. Raises InvalidRequest for anything else.
    """
    wanted, name = entry.get("require_approval"), f"{where}.require_approval".removeprefix(".")
    if wanted is None or wanted in ("always", "never"):
        return str(wanted or "always")
    if not isinstance(wanted, dict) or not wanted or wanted.keys() - {"always", "never"}:
        raise InvalidRequest(f'{name} must be "always", "never" or an object of these two.', param=name)
    return {kind: _filter(wanted[kind], f"{name}.{kind}") for kind in wanted if wanted[kind] is not None}


def needs_approval(entry: JSON, name: str) -> bool:
    """Whether a call of the tool with this name waits.

    A tool in neither filter asks, unless the client only said which ones ask. A filter by anything else than names
    never lets a call run unasked. Raises InvalidRequest.
    """
    wanted = approval_of(entry)
    if isinstance(wanted, str):
        return wanted == "always"
    if (never := _names(wanted.get("never"))) is not None and name in never:
        return False
    if "always" not in wanted:
        return True
    always = _names(wanted["always"])
    return always is None or name in always or "never" in wanted


def _origin(url: str) -> str:
    """Paths and queries of such addresses hold keys at times."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "<redacted>"
    return f"{parts.scheme}://{host}/<redacted>"


def _read_tool(tool: Any, where: str, served: Collection[str] = _DECLARATIONS) -> JSON | None:
    """The declaration, without what in it is not served; None when nothing of it is. Raises InvalidRequest."""
    if not isinstance(tool, dict):
        raise fields.wrong(where, "an object")
    kind = tool.get("type")
    if not isinstance(kind, str) or not (kind in served or kind.startswith(_HOSTED)):
        raise fields.invalid(kind, f"{where}.type", _SERVED if served is _DECLARATIONS else _IN_A_NAMESPACE)
    if kind not in served:
        log.info("the client's tool of type %s is left out: only OpenAI runs it", kind)
        return None
    fields.check(_DECLARATIONS[kind], tool, where)
    if kind == "mcp":
        _check_server(tool, where)
    elif kind == "custom" and tool.get("format") is not None:
        _check_format(tool["format"], f"{where}.format")
    elif kind == "namespace":
        inner = [
            _read_tool(each, f"{where}.tools[{number}]", ("function", "custom"))
            for number, each in enumerate(tool["tools"])
        ]
        return {**tool, "tools": [each for each in inner if each]}
    return tool


def _check_format(form: JSON, where: str) -> None:
    if fields.check(_FORMAT, form, where)["type"] == "grammar":
        fields.check(_GRAMMAR, form, where)


def _check_server(tool: JSON, where: str) -> None:
    approval_of(tool, where)
    if tool.get("connector_id") is not None:
        raise InvalidRequest("Connectors are OpenAI's own; name a server_url.", param=f"{where}.connector_id")
    if isinstance(allowed := tool.get("allowed_tools"), dict):
        fields.check(_FILTER, allowed, f"{where}.allowed_tools")
        # To pass over another filter would let tools be called that the client ruled out.
        if allowed.keys() - {"tool_names"}:
            raise InvalidRequest(
                "allowed_tools goes by tool_names alone here.", param=f"{where}.allowed_tools"
            )


def _filter(chosen: Any, where: str) -> JSON:
    if isinstance(chosen, list):
        chosen = {"tool_names": chosen}
    if not isinstance(chosen, dict) or chosen.keys() - {"tool_names", "read_only"}:
        raise fields.wrong(where, "an object with tool_names")
    fields.check(_FILTER, chosen, where)
    return {name: value for name, value in chosen.items() if value is not None}


def _names(chosen: JSON | None) -> list[str] | None:
    """The names in a filter; None when it does not go by names alone."""
    return chosen["tool_names"] if chosen and chosen.keys() == {"tool_names"} else None
