"""What a tool is known by: legal, unique, stable names, the way back from what a model made of one; its digest."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from weakref import WeakKeyDictionary

from toolway.types import JSON, Tool
from toolway.wire.lenient_json import dumps

MAX_LENGTH = 64
"""OpenAI's limit; names match `^[a-zA-Z0-9_-]{1,64}$` and, for Gemini's sake, do not start with a digit."""

_ILLEGAL = re.compile(r"[^a-zA-Z0-9_-]+")
_JUNK = re.compile(r"<\|channel\|>\w*|<\|.*?\|>|^(?:functions?|tools?|default_api)[.:/]|[\s`\"'()]+|:\d+$")


def legal(name: str) -> str:
    """`name` made acceptable to every model server; a name that was cut ends with a hash of the whole."""
    clean = _ILLEGAL.sub("_", name) or "_"
    if clean[0].isdigit() or clean[0] == "-":
        clean = "_" + clean
    return clean if len(clean) <= MAX_LENGTH else with_hash(clean, name)


Key = tuple[str, str]
"""(label of its server, name there): what a tool stays known by when its server lists it anew."""


def key_of(tool: Tool) -> Key:
    """What is the same of a tool in every list of its server."""
    return tool.server, tool.name


def qualified(tool: Tool) -> str:
    """The name that depends on nothing but the tool and its server: `weather__now`."""
    return legal(f"{tool.server}__{tool.name}")


def assign(
    tools: Iterable[Tool],
    taken: Collection[str] = (),
    *,
    kept: Mapping[Key, str] = MappingProxyType({}),
    prefixed: bool = False,
) -> dict[str, Tool]:
    """One name for each tool, whatever the order they come in; the result is sorted by name.

    A name that one server has stays as it is. Where several servers share one, or it is `taken`, each gets its
    server's prefix, `weather__now`; with `prefixed` every tool does. A tool with a `kept` name has that, and the others
    make way. What still clashes (after illegal characters went) is told apart by a hash.
    """
    steps: Sequence[Callable[[Tool], str]] = (
        *([] if prefixed else [lambda tool: legal(tool.name)]),
        qualified,
        lambda tool: with_hash(qualified(tool), f"{tool.server}\0{tool.name}"),
    )
    named: dict[str, Tool] = {}
    open_tools: list[Tool] = []
    for tool in tools:
        name = kept.get(key_of(tool))
        if name is None or name in named or name in taken:
            open_tools.append(tool)
        else:
            named[name] = tool
    for step in steps:
        claims: dict[str, list[Tool]] = defaultdict(list)
        for tool in open_tools:
            claims[step(tool)].append(tool)
        open_tools = []
        for name, claimants in claims.items():
            if len(claimants) == 1 and name not in named and name not in taken:
                named[name] = claimants[0]
            else:
                open_tools += claimants
    for tool in open_tools:  # the same server label and name twice: nothing else is left
        candidates = (
            with_hash(legal(tool.name), f"{tool.server}\0{tool.name}\0{number}") for number in count()
        )
        named[next(name for name in candidates if name not in named and name not in taken)] = tool
    return dict(sorted(named.items()))


def find(name: str, tools: Mapping[str, Tool]) -> str | None:
    """The offered name that a model meant: its exact name, or the only one left when markup is taken off."""
    if name in tools:
        return name
    bare = _JUNK.sub("", _JUNK.sub("", name))
    if bare in tools:
        return bare
    same = [known for known in tools if known.lower() == bare.lower()]
    return same[0] if len(same) == 1 else None


def no_such_tool(name: str, tools: Mapping[str, Tool], down: Sequence[str]) -> str:
    """What a person reads who named a tool that is not there, while these servers are `down`."""
    close = closest(name, [f"{tool.server}.{tool.name}" for tool in tools.values()] if "." in name else tools)
    message = f"There is no tool named {name}." + (f" Did you mean {' or '.join(close)}?" if close else "")
    if down:
        who = f"The server {down[0]} is" if len(down) == 1 else f"The servers {', '.join(down)} are"
        return f"{message} {who} not up, and may have it: `toolway doctor` says why."
    return message if close else f"{message} `toolway tools` lists them."


def resolve(name: str, tools: Mapping[str, Tool]) -> str | None:
    """The name, as models see it, of the tool that a person means by it or by SERVER.TOOL."""
    if name in tools:
        return name
    return next((known for known, tool in tools.items() if f"{tool.server}.{tool.name}" == name), None)


def hint(name: str, known: Iterable[str], untried: Sequence[str] = ()) -> str:
    """What to do about a name that nothing has, as a sentence; empty when nobody knows.

    `untried` are the servers that have not said yet what they have.
    """
    close = closest(name, known)
    meant = f"Did you mean {' or '.join(close)}?" if close else ""
    if untried:
        servers = f"server {untried[0]} is" if len(untried) == 1 else f"servers {', '.join(untried)} are"
        return f"{meant} The tool {servers} still starting; try again.".lstrip()
    return meant


def closest(name: str, tools: Iterable[str]) -> list[str]:
    """Up to three offered names that look like `name`."""
    return difflib.get_close_matches(name, list(tools), n=3, cutoff=0.65)


def name_some(names: Iterable[str], most: int = 10, *, separator: str = ", ") -> str:
    """The first of them, and how many are not named."""
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return separator.join(known[:most]) + more


def with_hash(name: str, whole: str) -> str:
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{name[: MAX_LENGTH - 9]}_{digest}"


_digests: WeakKeyDictionary[Tool, str] = WeakKeyDictionary()


def definition_of(tool: Tool) -> JSON:
    """What its server tells of a tool: description, schemas, annotations, title; what is empty is left out."""
    definition = {
        "title": tool.extra.get("title"),
        "description": tool.description,
        "parameters": tool.parameters,
        "outputSchema": tool.extra.get("outputSchema"),
        "annotations": tool.annotations,
    }
    return {name: value for name, value in definition.items() if value}


def digest(server: str, name: str, definition: JSON) -> str:
    """SHA-256 over the server's label, the tool's name and its definition, in canonical JSON."""
    return hashlib.sha256(dumps([server, name, definition], sort_keys=True)).hexdigest()


def digest_of(tool: Tool) -> str:
    """The digest of a tool as its server tells of it now."""
    known = _digests.get(tool)
    if known is None:
        known = _digests[tool] = digest(tool.server, tool.name, definition_of(tool))
    return known
