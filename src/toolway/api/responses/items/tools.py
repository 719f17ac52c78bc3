"""The tools that a client declares: read, as functions of a chat completion, shown again; which calls need approval."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from toolway.api.responses.items import fields
from toolway.errors import InvalidRequest
from toolway.types import JSON

log = logging.getLogger("toolway.responses")

CUSTOM_INPUT = "input"
"""The one argument of the function that stands for a custom tool."""

_HOSTED = frozenset({
    "apply_patch", "code_interpreter", "computer", "computer_use_preview", "file_search", "image_generation",
    "local_shell", "namespace", "programmatic_tool_calling", "shell", "tool_search", "web_search",
    "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11",
})  # fmt: skip
"""Tools that only OpenAI runs. Clients declare some of them always (Codex), so they are left out, not refused."""

_SHOWN = {
    "function": ("name", "description", "parameters", "strict"),
    "custom": ("name", "description", "format"),
    "mcp": ("server_label", "server_description", "server_url", "allowed_tools"),
}
"""What the response repeats of a declaration. The rest may be secret."""

_NULL = {
    "function": ("description", "parameters", "strict"),
    "custom": (),
    "mcp": ("server_description", "allowed_tools"),
}
"""What it says also when nothing was given."""


_DECLARATIONS = {
    "function": fields.object_of({"name": fields.Name}, description=str, parameters=JSON, strict=bool),
    "custom": fields.object_of({"name": fields.Name}, description=str, format=JSON),
    "mcp": fields.object_of(
        {"server_label": fields.Name},
        **dict.fromkeys(("server_url", "server_description", "authorization"), str),
        headers=fields.NamedTexts,
        allowed_tools=Annotated[fields.Texts | JSON, fields.Kind("a list of texts")],
    ),
}
_FORMAT = fields.object_of({"type": Literal["grammar", "text"]})
_GRAMMAR = fields.object_of({"definition": fields.Name, "syntax": Literal["lark", "regex"]})
_FILTER = fields.object_of(tool_names=fields.Texts, read_only=bool)


def read_tools(given: Any) -> list[JSON]:
    """The declarations that are served here. Raises InvalidRequest for what is none."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise fields.wrong("tools", "a list")
    return [tool for number, tool in enumerate(given) if _is_served(tool, f"tools[{number}]")]


def as_function(tool: JSON) -> JSON:
    """A function or custom tool, declared as in a chat completion."""
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


def tool_as_shown(tool: JSON) -> JSON:
    """A declaration as the response repeats it, without the secrets in it."""
    kind = tool["type"]
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


def _is_served(tool: Any, where: str) -> bool:
    if not isinstance(tool, dict):
        raise fields.wrong(where, "an object")
    if declaration := fields.by_type(_DECLARATIONS, tool):
        fields.check(declaration, tool, where)
        if tool["type"] == "mcp":
            _check_server(tool, where)
        elif tool["type"] == "custom" and tool.get("format") is not None:
            _check_format(tool["format"], f"{where}.format")
        return True
    if not isinstance(kind := tool.get("type"), str) or kind not in _HOSTED:
        raise fields.invalid(kind, f"{where}.type", "Tools served here: function, custom and mcp.")
    log.info("the client's tool of type %s is left out: only OpenAI runs it", kind)
    return False


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
