"""A made-up company's 2,160 tools on 36 servers, and for some of them what a model might search for, in other words."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from toolway.types import Tool

SERVICES: dict[str, dict[str, str]] = tomllib.loads((Path(__file__).parent / "services.toml").read_text())

ACTIONS: dict[str, tuple[str, str]] = {
    "list": ("Returns all {} objects of the account, newest first. Supports paging.", "show me every {}"),
    "get": ("Returns one {} with all of its fields.", "open the details of one {}"),
    "create": ("Creates a new {} and returns its id.", "set up a new {}"),
    "update": ("Changes fields of a {}.", "edit a {}"),
    "delete": ("Deletes a {} for good.", "get rid of a {}"),
    "search": ("Full-text search over every {}.", "find a {} by some of its words"),
    "export": ("Writes each {} to a CSV file.", "download each {} as a spreadsheet"),
    "archive": ("Moves a {} to the archive.", "put a {} away without deleting it"),
    "share": ("Gives another user access to a {}.", "let a colleague see a {}"),
    "comment_on": ("Adds a comment to a {}.", "leave a remark on a {}"),
}

STYLES = ("{verb}_{noun}", "{noun}_{verb}", "{camel}", "{service}_{verb}_{noun}")


@dataclass(frozen=True, kw_only=True)
class Query:
    """Words, and the tool that they mean."""

    words: str
    tool: str


def catalogue() -> dict[str, Tool]:
    """The tools by unique names."""
    found: dict[str, Tool] = {}
    for number, (service, nouns) in enumerate(SERVICES.items()):
        for noun in nouns:
            for verb in ACTIONS:
                tool = _tool(service, noun, verb, STYLES[number % len(STYLES)])
                found[f"{service}__{tool.name}"] = tool
    return found


def queries(*, in_other_words: bool) -> list[Query]:
    """Each noun once, with each of the actions in turn: the noun as it is, or as somebody says who does not know it."""
    found: list[Query] = []
    verbs = list(ACTIONS)
    for number, (service, nouns) in enumerate(SERVICES.items()):
        for noun, meaning in nouns.items():
            verb = verbs[len(found) % len(verbs)]
            tool = _tool(service, noun, verb, STYLES[number % len(STYLES)])
            words = ACTIONS[verb][1].format(meaning if in_other_words else noun.replace("_", " "))
            found.append(Query(words=words, tool=f"{service}__{tool.name}"))
    return found


def _tool(service: str, noun: str, verb: str, style: str) -> Tool:
    camel = verb.split("_", maxsplit=1)[0] + "".join(
        word.title() for word in [*verb.split("_")[1:], *noun.split("_")]
    )
    properties = {
        "id": {"type": "string", "description": f"Id of the {noun.replace('_', ' ')}"},
        "fields": {"type": "object", "description": "What to set"},
        "query": {"type": "string", "description": "Text to look for"},
        "user_id": {"type": "string", "description": "The other user"},
        "limit": {"type": "integer", "description": "Most results", "default": 50},
    }
    wanted = {
        "list": ["limit"],
        "search": ["query", "limit"],
        "create": ["fields"],
        "share": ["id", "user_id"],
    }
    chosen = wanted.get(verb, ["id", "fields"] if verb == "update" else ["id"])
    return Tool(
        name=style.format(verb=verb, noun=noun, camel=camel, service=service),
        server=service,
        description=ACTIONS[verb][0].format(noun.replace("_", " ")),
        parameters={"type": "object", "properties": {name: properties[name] for name in chosen}},
    )
