"""Tools whose schemas Anthropic's own models know, and which the client runs: declared by a type alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolway.types import JSON


def _object(required: list[str], **properties: Any) -> JSON:
    return {"type": "object", "properties": properties, "required": required}


def _text(about: str, **more: Any) -> JSON:
    return {"type": "string", "description": about, **more}


_RANGE = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
_LINE = {
    "type": "integer",
    "minimum": 0,
    "description": "insert: the line behind which the text goes, 0 for the top",
}

CLIENT_TOOLS: Mapping[str, JSON] = {
    "bash_": {
        "name": "bash",
        "description": "Runs a command in a bash session that stays open, and returns what it prints.",
        "input_schema": _object(
            [],
            command=_text("The command to run"),
            restart={"type": "boolean", "description": "Start the session anew instead of running a command"},
        ),
    },
    "text_editor_": {
        "name": "str_replace_based_edit_tool",
        "description": "Views and edits files. str_replace replaces old_str, which must stand in the file just once.",
        "input_schema": _object(
            ["command", "path"],
            command=_text("What to do", enum=["view", "create", "str_replace", "insert"]),
            path=_text("Absolute path of the file or directory"),
            file_text=_text("create: the content of the file"),
            old_str=_text("str_replace: the text to replace"),
            new_str=_text("str_replace: the text to put there"),
            insert_line=_LINE,
            insert_text=_text("insert: the text to insert"),
            view_range={**_RANGE, "description": "view: first and last line, -1 for the end"},
        ),
    },
    "memory_": {
        "name": "memory",
        "description": "Reads and writes notes that outlive the conversation, as files below /memories.",
        "input_schema": _object(
            ["command"],
            command=_text("What to do", enum=["view", "create", "str_replace", "insert", "delete", "rename"]),
            path=_text("Path of the file or directory, below /memories"),
            file_text=_text("create: the content of the file"),
            old_str=_text("str_replace: the text to replace"),
            new_str=_text("str_replace: the text to put there"),
            insert_line=_LINE,
            insert_text=_text("insert: the text to insert"),
            old_path=_text("rename: the path now"),
            new_path=_text("rename: the path then"),
            view_range={**_RANGE, "description": "view: first and last line"},
        ),
    },
}
"""By the beginning of the type, which ends with a date: the declaration as a custom tool has it."""
