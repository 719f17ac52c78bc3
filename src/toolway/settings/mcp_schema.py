"""The JSON Schema of `mcp.json`, made from the models: `make schema` writes it to docs/mcp.schema.json."""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from toolway.settings.mcp_json import MODELS, TYPES


class _Short(GenerateJsonSchema):
    """Without titles that repeat each name, and without null and defaults where they mean that a key is left out."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def nullable_schema(self, schema: Any) -> Any:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> Any:
        shown = super().default_schema(schema)
        return self.generate_inner(schema["schema"]) if shown.get("default") in (None, "", []) else shown


def json_schema() -> dict[str, Any]:
    """What editors check a file with. A server of any kind may have the keys of each."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    for model in (base for kind in MODELS.values() for base in reversed(kind.__mro__) if is_dataclass(base)):
        schema = TypeAdapter(model).json_schema(schema_generator=_Short)
        definitions |= schema.get("$defs", {})
        # A class knows the sentences about its own fields only, not of those that it inherits.
        properties |= {key: field for key, field in schema["properties"].items() if "description" in field}
    properties["type"] = {
        "description": "What the server is. Default: stdio with a command; with a url it is asked.",
        "enum": list(TYPES),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Tool servers of Toolway (mcp.json)",
        "type": "object",
        "anyOf": [{"required": [key]} for key in ("mcpServers", "servers", "mcp")],
        "properties": {key: {"$ref": "#/$defs/servers"} for key in ("mcpServers", "servers")},
        "$defs": {
            "servers": {
                "description": "A server's name -> its entry.",
                "type": "object",
                "propertyNames": {"minLength": 1},
                "additionalProperties": {"$ref": "#/$defs/server"},
            },
            "server": {"type": "object", "properties": properties},
            **definitions,
        },
    }


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))  # noqa: T201
