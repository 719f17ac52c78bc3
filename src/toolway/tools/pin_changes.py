"""How the tools of the servers differ from those that a person has accepted, line by line; and accepting them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolway.errors import ConfigError
from toolway.settings.files import locked
from toolway.tools.digests import definition_of, digest
from toolway.tools.names import name_some
from toolway.tools.pins import Pinned, read_lock, write_lock
from toolway.tools.suspicious import hides_text, names_in, secret_parameters, visible, words_to_model
from toolway.types import JSON, SourceStatus

MAX_COMPARED = 2_000
"""Lines of a definition that are compared one by one; of a longer one all that was goes, and all that is comes."""

HEADER = 2
"""Lines that name the two sides of a difference. A tool's own line may look like one, so they go by number."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One tool that is not as the lock file has it. `before` is None for a new one, `after` for one that is gone."""

    server: str
    tool: str
    before: JSON | None
    after: JSON | None
    others: frozenset[str] = frozenset()
    """The names of other servers' tools."""

    @property
    def kind(self) -> str:
        """What happened to it: new, changed or gone."""
        return "gone" if self.after is None else "new" if self.before is None else "changed"

    @property
    def title(self) -> str:
        """What happened to which tool."""
        return f"{self.kind}: {visible(self.server)}.{visible(self.tool)}"

    @property
    def digest(self) -> str:
        """What is accepted when this change is: the digest of the tool as it is now; empty when it is gone."""
        return digest(self.server, self.tool, self.after) if self.after is not None else ""

    @property
    def difference(self) -> list[str]:
        """The lines that came (+), went (-), and stand around them; hidden characters are written as <U+200B>."""
        before, after = _lines(self.before), _lines(self.after)
        if len(before) + len(after) > MAX_COMPARED:
            return [f"-{line}" for line in before] + [f"+{line}" for line in after]
        lines = list(difflib.unified_diff(before, after, n=2, lineterm=""))[HEADER:]
        return [line for line in lines if not line.startswith("@@")]

    @property
    def suspicions(self) -> list[str]:
        """Sentences on what a person should look at twice."""
        if self.after is None:
            return []
        known = secret_parameters((self.before or {}).get("parameters", {}))
        secrets = [name for name in secret_parameters(self.after.get("parameters", {})) if name not in known]
        found = []
        if hidden := hides_text(self.tool, self.after):
            found.append(f"hides text from people: {hidden}")
        if named := names_in(self.after, self.others):
            found.append(f"tells the model of other servers' tools: {name_some(map(visible, named))}")
        found += [f"tells the model what to do: “{words}”" for words in words_to_model(self.after)]
        if secrets:
            found.append(f"new parameters ask for secrets: {name_some(map(visible, secrets))}")
        return found

    def to_json(self) -> JSON:
        """The change as JSON."""
        return {
            "server": self.server,
            "tool": self.tool,
            "kind": self.kind,
            "digest": self.digest,
            "before": self.before,
            "after": self.after,
            "difference": self.difference,
            "suspicions": self.suspicions,
        }


def changes_of(statuses: Mapping[str, SourceStatus], pinned: Pinned) -> list[Change]:
    """Every tool that differs from what is pinned, by server and name; what a server that cannot be asked has stays."""
    return sorted(_changes(statuses, pinned), key=lambda change: (change.server, change.tool))


def accept(path: Path, changes: Sequence[Change]) -> None:
    """Put exactly these into the lock file as it is now. Raises ConfigError."""
    if not changes:
        return
    with locked(path):
        pinned = read_pinned(path)
        for change in changes:
            tools = pinned.setdefault(change.server, {})
            if change.after is None:
                tools.pop(change.tool, None)
            else:
                tools[change.tool] = change.after
        write_lock(path, pinned)


def read_pinned(path: Path) -> Pinned:
    """What a lock file holds; nothing when there is none. Raises ConfigError."""
    try:
        return read_lock(path)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be used: {error}. Mend it, or remove it and pin all tools anew."
        ) from None


def _changes(statuses: Mapping[str, SourceStatus], pinned: Pinned) -> Iterator[Change]:
    for server in statuses.keys() | pinned.keys():
        status = statuses.get(server)
        if status and not status.is_usable:
            continue
        before = pinned.get(server, {})
        after = {tool.name: definition_of(tool) for tool in status.tools} if status else {}
        others = {t.name for label, one in statuses.items() if label != server for t in one.tools}
        for name in before.keys() | after.keys():
            old, new = before.get(name), after.get(name)
            # By digests: for Python 1, 1.0 and true are equal.
            if old is None or new is None or digest(server, name, old) != digest(server, name, new):
                yield Change(
                    server=server, tool=name, before=old, after=new, others=frozenset(others - after.keys())
                )


def _lines(definition: JSON | None) -> list[str]:
    """A definition as lines of text."""
    parts = []
    for name, value in (definition or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        parts += visible(f"{name}: {text}").replace("\r\n", "\n").split("\n")
    return parts
