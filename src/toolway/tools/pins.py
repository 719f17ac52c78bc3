"""Pinned tools: the lock file beside the mcp.json, the sources that offer only what it has, and changes to accept."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import anyio

from toolway.errors import ConfigError
from toolway.settings.files import locked, replace_text
from toolway.settings.mcp_server import with_home
from toolway.settings.settings import DEFAULT_CONFIG, ToolSettings
from toolway.tools.cpu_bound import no_garbage_collection, run_one_at_a_time
from toolway.tools.names import definition_of, digest, digest_of, name_some
from toolway.tools.source_wrappers import SourceWrapper
from toolway.tools.suspicious import (
    hides_text,
    mentions_in,
    secret_parameters,
    visible,
    words_to_model,
)
from toolway.types import JSON, OnProgress, SourceStatus, Tool, ToolResult, ToolSource
from toolway.wire.lenient_json import loads

log = logging.getLogger("toolway.pins")

VERSION = 1
AT_ONCE = 20
"""So many new tools are looked at without a thread."""

LOOK_WAIT = 2.0
"""Seconds that the result of a call waits until the tools that it loaded were looked at."""

Pinned = dict[str, dict[str, JSON]]
"""Server -> tool -> definition, as it was accepted."""


def lock_path(settings: ToolSettings) -> Path:
    """The lock file: `mcp.lock.json` for `mcp.json`, in the same folder."""
    return with_home(settings.config or DEFAULT_CONFIG).with_suffix(".lock.json")


def read_lock(path: Path) -> Pinned:
    """What a lock file holds. Raises ValueError with a sentence for one that is broken, OSError."""
    try:
        content = loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(f'it has no "version": {VERSION}')
    found: Pinned = {}
    try:
        for server, tools in content["servers"].items():
            for name, pin in tools.items():
                definition = {key: value for key, value in pin.items() if key != "digest"}
                if pin["digest"] != f"sha256:{digest(server, name, definition)}":
                    raise ValueError(f"the digest of {server}.{name} is not that of its text")
                found.setdefault(server, {})[name] = definition
    except (KeyError, TypeError, AttributeError):
        raise ValueError('it must hold {"servers": {SERVER: {TOOL: {"digest": ...}}}}') from None
    return found


def write_lock(path: Path, pinned: Pinned) -> None:
    """Replace the lock file at once. What is not ASCII stands in it as an escape, so that nothing hides."""
    servers = {
        server: {
            name: {"digest": f"sha256:{digest(server, name, definition)}", **definition}
            for name, definition in sorted(tools.items())
        }
        for server, tools in sorted(pinned.items())
        if tools
    }
    replace_text(path, json.dumps({"version": VERSION, "servers": servers}, indent=2) + "\n")


class Pins:
    """What the sources of one factory share: what is pinned, and which tools each server has."""

    def __init__(self, settings: ToolSettings) -> None:
        self.is_on = settings.pins
        self.path = lock_path(settings)
        self.trouble = ""
        """Why the lock file, as it is now, is not in force; empty: it is."""
        self.version = 0
        """Another one whenever a source may have to be looked at anew."""
        self._digests: set[str] = set()
        self._names: dict[str, frozenset[str]] = {}
        self._inspections: WeakKeyDictionary[Tool, _Inspection] = WeakKeyDictionary()
        self._stamp: tuple[int, int, int] | None = None
        if self.is_on:
            self.read()

    def read(self) -> bool:
        """Read the lock file if it is another one; whether it is. A broken one leaves in force what was."""
        stamp = _stamp(self.path)
        if not self.is_on or (stamp == self._stamp and self.version):
            return False
        self._stamp = stamp
        self.version += 1
        try:
            pinned = read_lock(self.path)
        except FileNotFoundError:
            self.trouble = f"there is no {self.path}: `toolway pin` makes it"
        except (ValueError, OSError) as error:
            self.trouble = f"{self.path} cannot be used: {error}"
        else:
            self.trouble = ""
            self._digests = {
                digest(server, name, definition)
                for server, tools in pinned.items()
                for name, definition in tools.items()
            }
            log.info("%s: %d tools are pinned", self.path, len(self._digests))
        if self.trouble:
            kept = f"; the {len(self._digests)} tools pinned before stay so" if self._digests else ""
            log.error("%s%s", self.trouble, kept)
        return True

    def has(self, tool: Tool) -> bool:
        """Whether a tool may be offered as it is."""
        return not self.is_on or digest_of(tool) in self._digests

    def learn(self, label: str, tools: Iterable[Tool]) -> None:
        """Tell what tools a server has."""
        names = frozenset(tool.name for tool in tools)
        if self._names.get(label) != names:
            self._names[label] = names
            self.version += 1

    def suspicions(self, label: str, tools: Iterable[Tool]) -> list[str]:
        """Sentences about tools of a server that hide text, or lead the model to another server's tools."""
        own = self._names.get(label, frozenset())
        others = (
            frozenset[str]().union(*(names for other, names in self._names.items() if other != label)) - own
        )
        found = []
        for tool in tools:
            inspection = self._inspected(tool)
            if inspection.hidden:
                found.append(f"the tool {visible(tool.name)} hides text from people: {inspection.hidden}")
            if named := inspection.mentions & others:
                names = name_some(map(visible, sorted(named)))
                found.append(
                    f"the tool {visible(tool.name)} tells the model of other servers' tools: {names}"
                )
        return found

    def unknown(self, tools: Iterable[Tool]) -> list[Tool]:
        """Those that nobody has looked at yet."""
        return [tool for tool in tools if tool not in self._inspections]

    def inspect(self, label: str, tools: Iterable[Tool]) -> None:
        """Look at tools of a server before they are judged: of many that takes a while, for which a thread is."""
        with no_garbage_collection():
            self.suspicions(label, tools)
            for tool in tools:
                self.has(tool)

    def _inspected(self, tool: Tool) -> _Inspection:
        if (inspection := self._inspections.get(tool)) is None:
            inspection = self._inspections[tool] = _Inspection(tool)
        return inspection

    def forget(self, labels: Iterable[str]) -> None:
        """Keep only what is known of these servers."""
        kept = set(labels)
        self._names = {label: names for label, names in self._names.items() if label in kept}


class _Inspection:
    """What is suspicious in a tool, whatever its server's other tools are; each is looked for once."""

    def __init__(self, tool: Tool) -> None:
        definition = definition_of(tool)
        self.hidden = hides_text(tool.name, definition)
        self.mentions = mentions_in(definition)


class PinnedSource(SourceWrapper):
    """`inner` without the tools that are not pinned, where tools must be; and with warnings of suspicious ones."""

    def __init__(self, inner: ToolSource, pins: Pins) -> None:
        super().__init__(inner)
        self._pins = pins
        self._seen: tuple[SourceStatus, int] | None = None
        self._status = SourceStatus()
        self._withheld: Mapping[str, Tool] = {}
        self._inspects = False
        """Whether many new tools are looked at in a thread, before anybody hears of them."""
        self._is_inspecting = False
        """Whether the thread does so now."""
        self._inspected_all = anyio.Event()
        """Set when that was done; then there is another one."""
        self._findings = SourceStatus()
        """The newest status of which all tools were looked at."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Run the inner source."""
        news = anyio.Event()

        async def inspect() -> None:
            nonlocal news
            while True:
                await news.wait()
                news = anyio.Event()
                self._is_inspecting = True
                await run_one_at_a_time(partial(self._pins.inspect, self.label, self.inner.status.tools))
                self._is_inspecting = False
                changed()
                self._inspected_all.set()
                self._inspected_all = anyio.Event()

        def inner_changed() -> None:
            if self._is_known(self.inner.status):
                changed()
            else:
                news.set()

        self._inspects = True
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(inspect)
                await self.inner.run(inner_changed)
                group.cancel_scope.cancel()
        finally:
            self._inspects = self._is_inspecting = False

    def _is_known(self, status: SourceStatus) -> bool:
        """Whether a status can be shown now: no thread looks at its tools, and few are still to be looked at."""
        if self._is_inspecting:
            return False
        return len(status.tools) < AT_ONCE or len(self._pins.unknown(status.tools)) < AT_ONCE

    @property
    def is_pinned(self) -> bool:
        """Whether it offers only what was accepted."""
        return self._pins.is_on

    @property
    def whole(self) -> SourceStatus:
        """The status with the tools that are not offered too."""
        return self.inner.status

    @property
    def status(self) -> SourceStatus:
        """The inner status; the same object for as long as neither it nor the pins change."""
        newest = self.inner.status
        if newest is not self._findings:
            newest = self._findings = (
                newest if not self._inspects or self._is_known(newest) else self._findings
            )
        if self._seen is None or self._seen[0] is not newest or self._seen[1] != self._pins.version:
            self._pins.learn(self.label, newest.tools)
            self._seen = newest, self._pins.version
            self.kind = self.inner.kind
            self._status = self._judge(newest)
        return self._status

    def _judge(self, status: SourceStatus) -> SourceStatus:
        self._withheld = {tool.name: tool for tool in status.tools if not self._pins.has(tool)}
        warnings = self._pins.suspicions(self.label, status.tools)
        if self._withheld:
            names = name_some(map(visible, self._withheld))
            why = self._pins.trouble or "`toolway pin --review` shows what is new or changed, and accepts it"
            warnings.append(f"not offered, since not pinned: {names} ({why})")
        if not warnings:
            return status
        tools = tuple(tool for tool in status.tools if tool.name not in self._withheld)
        return replace(status, tools=tools, warnings=(*status.warnings, *warnings))

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run the inner tool, unless it changed since it was offered."""
        if self._pins.is_on and self._has_changed(tool):
            text = f"{tool.name} was changed by its server, and may not be run until a person has accepted the change."
            return ToolResult(text=text, is_error=True, failure="denied")
        result = await self.inner.call(tool, arguments, on_progress)
        newest = self.inner.status
        if self._inspects and newest is not self._findings and not self._is_known(newest):
            # It loaded many, for the next round of its caller.
            with anyio.move_on_after(LOOK_WAIT):
                await self._inspected_all.wait()
        return result

    def _has_changed(self, tool: Tool) -> bool:
        """Whether the server's tool of this name is now one that nobody accepted."""
        newest = next((other for other in self.inner.status.tools if other.name == tool.name), None)
        return newest is not None and not self._pins.has(newest)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


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
        if named := sorted(mentions_in(self.after) & self.others):
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
