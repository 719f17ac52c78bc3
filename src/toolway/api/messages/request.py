"""A request for a message: its fields and tools checked, and the chat completion that it asks for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from toolway.api import fields
from toolway.api.messages.connector import Toolset, read_toolsets
from toolway.api.messages.content import blocks_of
from toolway.api.messages.input_messages import BILLING
from toolway.errors import InvalidRequest
from toolway.server.envelopes import NO_THREADS
from toolway.types import JSON, Tool

log = logging.getLogger("toolway.messages")

Thinking = Literal["off", "shown", "sealed"]
"""Whether the client sees what the model thinks: not at all, as text, or in a signature that it carries unread."""

_REQUEST = fields.object_of(
    {"model": fields.Name, "messages": Annotated[list[JSON], fields.Expected("a list of messages")]},
    max_tokens=fields.CountOrZero,
    stream=bool,
    stop_sequences=fields.Texts,
    temperature=fields.Number,
    top_p=fields.Number,
    top_k=int,
    thinking=JSON,
    output_config=JSON,
    output_format=JSON,
    metadata=JSON,
    tool_choice=JSON,
    tools=Annotated[list[JSON], fields.Expected("a list of tools")],
    mcp_servers=Annotated[list[JSON], fields.Expected("a list of servers")],
)
"""What is acted on. All other fields are Anthropic's own affair, and never an error."""

_THINKING = fields.object_of(type=str, display=str)
_OUTPUT = fields.object_of(effort=str, format=JSON)
_FORMAT = fields.object_of({"type": str}, schema=JSON)
_METADATA = fields.object_of(user_id=str)
_CHOICE = fields.object_of(
    {"type": Literal["auto", "any", "tool", "none"]}, name=str, disable_parallel_tool_use=bool
)
_TOOL = fields.object_of(
    {"name": fields.Name}, description=str, input_schema=JSON, strict=bool, defer_loading=bool
)

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}

SEARCH_TOOLS = "tool_search_tool_"
"""How the types of Anthropic's tool search tools begin; `regex` or `bm25` stands behind it."""

MAX_USER = 64
"""Characters of `user` that OpenAI takes; Claude Code's user_id has more."""

OPTIONAL = frozenset(
    {"reasoning_effort", "parallel_tool_calls", "max_tokens", "max_completion_tokens", "top_k", "user"}
)
"""What clients of Anthropic's API send always, and some model servers refuse: it is left out then."""


@dataclass(frozen=True, kw_only=True)
class MessagesRequest:
    """A request for a message. `options` is the body of a chat completion, without messages and tools.

    `tools` are the client's own that the model sees at once, `deferred` those that it must find first, by name.
    """

    model: str
    options: JSON
    messages: Sequence[Any]
    system: Sequence[str]
    tools: Sequence[JSON]
    deferred: Mapping[str, JSON]
    searches: Mapping[str, str]
    """The types of Anthropic's tool search tools that the request has, by the names that it gives them."""
    toolsets: Sequence[Toolset]
    stream: bool
    thinking: Thinking
    stop_sequences: Sequence[str]

    @property
    def mcp(self) -> list[JSON]:
        """The entries that name tool servers, as the Responses API has them."""
        return [toolset.entry for toolset in self.toolsets]

    @property
    def listed(self) -> dict[str, Sequence[Tool]]:
        """By the names of servers, the tools that they are to have, whatever they say now."""
        return {toolset.label: toolset.tools for toolset in self.toolsets if toolset.tools is not None}


def read_request(body: JSON, *, counts_only: bool = False) -> MessagesRequest:
    """Raises InvalidRequest with the name of the first wrong field; `counts_only` wants no max_tokens."""
    known = fields.check(_REQUEST, body)
    if body.get("thread"):
        raise InvalidRequest(
            "Conversations are not kept here: leave thread out and send all messages.",
            param="thread",
            code=NO_THREADS,
        )
    if known.get("max_tokens") is None and not counts_only:
        raise fields.missing("max_tokens")
    fields.check_size("messages", len(known["messages"]))
    given = known.get("tools") or []
    fields.check_size("tools", len(given))
    tools = [tool for number, entry in enumerate(given) if (tool := _tool(entry, f"tools[{number}]"))]
    thinking = fields.check(_THINKING, known.get("thinking") or {}, "thinking")
    return MessagesRequest(
        model=known["model"],
        options=_options(known),
        messages=known["messages"],
        system=_system(body.get("system")),
        tools=[tool for tool in tools if not tool.get("defer_loading")],
        deferred={tool["name"]: tool for tool in tools if tool.get("defer_loading")},
        searches=_searches(given),
        toolsets=read_toolsets(known.get("mcp_servers") or [], given, known["messages"]),
        stream=bool(known.get("stream")),
        thinking=_thinking_of(thinking),
        stop_sequences=known.get("stop_sequences") or (),
    )


def as_functions(tools: Sequence[JSON]) -> list[JSON]:
    """Declared tools as a chat completion has them; of two with one name the first."""
    by_name = {tool["name"]: tool for tool in reversed(tools)}
    return [_function(tool) for tool in tools if by_name[tool["name"]] is tool]


def read_tool(entry: Any, where: str) -> JSON | None:
    """A declaration that stands in the conversation."""
    if not isinstance(entry, dict):
        raise fields.wrong(where, "an object")
    return _tool(entry, where)


def _function(tool: JSON) -> JSON:
    function = {
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
        "strict": tool.get("strict"),
    }
    return {
        "type": "function",
        "function": {key: value for key, value in function.items() if value is not None},
    }


def _system(system: Any) -> list[str]:
    if system is None:
        return []
    texts = []
    for number, block in enumerate(blocks_of(system, "system")):
        if not isinstance(text := block.get("text"), str):
            raise fields.wrong(f"system[{number}].text", "a text")
        if text and not text.startswith(BILLING):
            texts.append(text)
    return texts


def _thinking_of(thinking: JSON) -> Thinking:
    if thinking.get("type") not in ("enabled", "adaptive"):
        return "off"
    return "sealed" if thinking.get("display") == "omitted" else "shown"


def _options(known: JSON) -> JSON:
    output = fields.check(_OUTPUT, known.get("output_config") or {}, "output_config")
    user = fields.check(_METADATA, known.get("metadata") or {}, "metadata").get("user_id")
    options: JSON = {
        "model": known["model"],
        **{name: known.get(name) for name in ("temperature", "top_p", "top_k")},
        "max_tokens": known.get("max_tokens") or None,
        "stop": known.get("stop_sequences") or None,
        "reasoning_effort": _EFFORTS.get(output.get("effort") or ""),
        "response_format": _format(output.get("format") or known.get("output_format") or {}),
        "user": user if not user or len(user) <= MAX_USER else hashlib.sha256(user.encode()).hexdigest(),
        **_choice(known.get("tool_choice") or {}),
    }
    if known.get("stream"):
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in options.items() if value is not None}


def _format(form: JSON) -> JSON | None:
    if not form:
        return None
    if fields.check(_FORMAT, form, "output_config.format")["type"] != "json_schema" or not form.get("schema"):
        raise InvalidRequest(
            "output_config.format must be of the type json_schema, with a schema.",
            param="output_config.format",
        )
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": form["schema"], "strict": True},
    }


def _choice(given: JSON) -> JSON:
    if not given:
        return {}
    choice = fields.check(_CHOICE, given, "tool_choice")
    kind, name = choice["type"], choice.get("name")
    if kind == "tool" and not name:
        raise fields.missing("tool_choice.name")
    parallel = {"parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else {}
    if kind == "tool":
        return {"tool_choice": {"type": "function", "function": {"name": name}}, **parallel}
    return {"tool_choice": _CHOICES[kind], **parallel}


def _tool(entry: JSON, where: str) -> JSON | None:
    """The declaration of a tool that the client runs; None for one that is not served here. Raises InvalidRequest."""
    kind = entry.get("type")
    if kind is not None and not isinstance(kind, str):
        raise fields.wrong(f"{where}.type", "a text")
    if kind in (None, "custom"):
        tool = fields.check(_TOOL, entry, where)
        return {name: value for name, value in tool.items() if value is not None}
    if known := next((known for prefix, known in CLIENT_TOOLS.items() if kind.startswith(prefix)), None):
        name = entry.get("name")
        return {**known, "name": name if isinstance(name, str) and name else known["name"]}
    if kind.startswith(("computer_", "browser_")):
        raise InvalidRequest(
            f"{where}: tools of the type {kind[:50]!r} need a model of Anthropic's; declare a custom tool.",
            param=where,
        )
    if kind != "mcp_toolset" and not kind.startswith(SEARCH_TOOLS):
        log.info("the client's tool of type %s is left out: only Anthropic runs it", kind[:50])
    return None


def _searches(tools: Sequence[JSON]) -> dict[str, str]:
    """Only a name that no other tool has: the search is for what cannot be called yet."""
    names = [tool.get("name") for tool in tools]
    searches = {}
    for number, tool in enumerate(tools):
        kind, name = tool.get("type"), tool.get("name")
        if isinstance(kind, str) and kind.startswith(SEARCH_TOOLS):
            if not isinstance(name, str) or not name or names.count(name) > 1:
                raise fields.wrong(f"tools[{number}].name", "a name of its own")
            searches[name] = kind
    return searches


def _object_schema(required: list[str], **properties: Any) -> JSON:
    return {"type": "object", "properties": properties, "required": required}


def _text_schema(about: str, **more: Any) -> JSON:
    return {"type": "string", "description": about, **more}


_RANGE = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
_LINE = {
    "type": "integer",
    "minimum": 0,
    "description": "insert: the line behind which the text goes, 0 for the top",
}
_EDITS = {
    "file_text": _text_schema("create: the content of the file"),
    "old_str": _text_schema("str_replace: the text to replace"),
    "new_str": _text_schema("str_replace: the text to put there"),
    "insert_line": _LINE,
    "insert_text": _text_schema("insert: the text to insert"),
}
"""What the editor and the memory take for their commands."""

CLIENT_TOOLS: Mapping[str, JSON] = {
    "bash_": {
        "name": "bash",
        "description": "Runs a command in a bash session that stays open, and returns what it prints.",
        "input_schema": _object_schema(
            [],
            command=_text_schema("The command to run"),
            restart={"type": "boolean", "description": "Start the session anew instead of running a command"},
        ),
    },
    "text_editor_": {
        "name": "str_replace_based_edit_tool",
        "description": "Views and edits files. str_replace replaces old_str, which must stand in the file just once.",
        "input_schema": _object_schema(
            ["command", "path"],
            command=_text_schema("What to do", enum=["view", "create", "str_replace", "insert"]),
            path=_text_schema("Absolute path of the file or directory"),
            **_EDITS,
            view_range={**_RANGE, "description": "view: first and last line, -1 for the end"},
        ),
    },
    "memory_": {
        "name": "memory",
        "description": "Reads and writes notes that outlive the conversation, as files below /memories.",
        "input_schema": _object_schema(
            ["command"],
            command=_text_schema(
                "What to do", enum=["view", "create", "str_replace", "insert", "delete", "rename"]
            ),
            path=_text_schema("Path of the file or directory, below /memories"),
            **_EDITS,
            old_path=_text_schema("rename: the path now"),
            new_path=_text_schema("rename: the path then"),
            view_range={**_RANGE, "description": "view: first and last line"},
        ),
    },
}
"""Tools whose schemas Anthropic's own models know, and which the client runs: declared by a type alone.

By the beginning of the type, which ends with a date: the declaration as a custom tool has it.
"""
