"""All tool sources -> one immutable snapshot of tools; the only place that knows what is available now."""

from __future__ import annotations

import logging
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from functools import cached_property, partial
from typing import Any

import anyio
import anyio.to_thread
import orjson
from anyio.abc import TaskGroup

from toolway.schema.compile import count_undefined, define
from toolway.schema.targets import SchemaTarget
from toolway.search.index import ToolIndex
from toolway.tools import names
from toolway.tools.invoke import run_checked
from toolway.types import (
    JSON,
    OnProgress,
    Selection,
    SourceStatus,
    Tool,
    ToolResult,
    ToolSource,
    is_selected,
    may_select,
)

log = logging.getLogger("toolway.catalog")

AT_ONCE = 20
"""So many new definitions are made without a thread."""

SLICE = 0.004
"""Seconds that an index is made at a time: requests wait for it."""

MAX_VIEWS = 128
"""So many choices of tools each snapshot keeps ready."""

MAX_LINES = 20
"""Renamed tools that the log names one by one."""


STARTUP_WAIT = 2.0
"""Seconds after the start in which a request waits for tool servers that were not tried yet."""


class Snapshot:
    """The tools of one moment under the names that models see, sorted; it never changes.

    `tools` holds the unavailable ones too; `offered` those that can be called, with definitions as the model server
    takes them. Those are serialised once and spliced into each request.
    """

    def __init__(
        self,
        sources: Sequence[ToolSource],
        *,
        statuses: Mapping[ToolSource, SourceStatus] | None = None,
        target: SchemaTarget = "openai",
        assign: Callable[[Iterable[Tool]], dict[str, Tool]] = names.assign,
    ) -> None:
        """`statuses` are those of the sources if a thread makes it: only the event loop may read them."""
        self.sources = tuple(sources)
        statuses = _statuses(sources) if statuses is None else statuses
        self._owners = {tool: source for source, status in statuses.items() for tool in status.tools}
        self._announced = {source: status.announced for source, status in statuses.items()}
        self.tools = assign(self._owners)
        self._index = _Index(self.tools)
        self._by_target: dict[tuple[SchemaTarget, frozenset[Tool]], Snapshot] = {(target, frozenset()): self}
        self._views: dict[Selection, Snapshot] = {}
        self._define(target, ())

    @property
    def untried(self) -> list[str]:
        """The labels of the servers that have not been tried yet, whose tools nobody knows."""
        return [source.label for source in self.sources if source.status.is_untried]

    @property
    def unknown(self) -> list[str]:
        """The labels of the servers that are not up and never were: nobody knows which tools they have."""
        statuses = {source.label: source.status for source in self.sources}
        return [label for label, status in statuses.items() if not (status.is_usable or status.tools)]

    def visible_to(self, selection: Selection) -> Snapshot:
        """What there is for a caller: no other tools, and no server that has none for it."""
        if not selection:
            return self
        key = tuple(map(tuple, selection))
        if key not in self._views:
            if len(self._views) >= MAX_VIEWS:
                del self._views[next(iter(self._views))]
            self._views[key] = self._view(key)
        return self._views[key]

    def _view(self, selection: Selection) -> Snapshot:
        view = copy(self)
        view.tools = {name: tool for name, tool in self.tools.items() if is_selected(name, tool, selection)}
        labels = {tool.server for tool in view.tools.values()}
        view.sources = tuple(
            source
            for source in self.sources
            if source.label in labels or (not source.status.tools and may_select(source.label, selection))
        )
        view._by_target = {(self.target, self._excluded): view}
        view._views = {}
        view._define(self.target, self._excluded)
        return view

    def with_sources(self, extra: Sequence[ToolSource]) -> Snapshot:
        """These tools and behind them those of `extra`, for one request: no name of these changes for it.

        Cheap where the tools of `extra` are the same objects as at the last time.
        """
        if not extra:
            return self
        joined = copy(self)
        owners = {tool: source for source in extra for tool in source.status.tools}
        joined.sources = (*self.sources, *extra)
        joined._owners = {**self._owners, **owners}
        joined._announced = self._announced | {source: source.status.announced for source in extra}
        joined.tools = {**self.tools, **names.assign(owners, taken=self.tools)}
        joined._views = {}
        joined._index = _Index(joined.tools)
        joined._by_target = {(self.target, self._excluded): joined}
        joined._define(self.target, self._excluded)
        return joined

    def changed(self, called: Iterable[Tool]) -> set[ToolSource]:
        """The servers of these tools that have said since that they have others."""
        return {
            owner
            for tool in called
            if (owner := self._owners.get(tool))
            and owner.status.announced != self._announced[owner]
            and owner.status.is_usable
        }

    async def renewed(self, changed: Collection[ToolSource]) -> Snapshot:
        """These tools, with those of `changed` as they are by now, for one request: new ones come last.

        What did not change keeps its name and its place, and is the same object.
        """
        newest = {source: {tool.name: tool for tool in source.status.tools} for source in changed}
        kept: dict[str, Tool] = {}
        for name, tool in self.tools.items():
            now = tool if (own := newest.get(self._owners[tool])) is None else own.pop(tool.name, None)
            if now is not None:
                kept[name] = tool if _is_same(tool, now) else now
        new = names.assign((tool for own in newest.values() for tool in own.values()), taken=self.tools)
        await _define_many({name: tool for name, tool in new.items() if tool.available}, self.target)
        renewed = copy(self)
        renewed.tools = {**kept, **new}
        renewed._index = _Index(renewed.tools)
        renewed._owners = {tool: source for source in changed for tool in source.status.tools} | self._owners
        renewed._announced = self._announced | {source: source.status.announced for source in changed}
        renewed._by_target = {(self.target, self._excluded): renewed}
        renewed._define(self.target, self._excluded)
        return renewed

    def for_target(self, target: SchemaTarget, excluded: frozenset[Tool] = frozenset()) -> Snapshot:
        """The same tools, as one kind of model server takes them, and without those that it may not get."""
        key = (target, excluded)
        if key not in self._by_target:
            adapted = copy(self)
            adapted._views = {}
            adapted._define(target, excluded)
            self._by_target[key] = adapted
        return self._by_target[key]

    def _define(self, target: SchemaTarget, excluded: Collection[Tool]) -> None:
        self._excluded = frozenset(excluded)
        for derived in ("callable", "_listed_names"):  # of what this is a copy of
            self.__dict__.pop(derived, None)
        offered = {name: tool for name, tool in self.tools.items() if tool.available and tool not in excluded}
        definitions = define(offered, target)
        self.target = target
        self.offered = {name: tool for name, tool in offered.items() if name in definitions.fragments}
        self.left_out = definitions.left_out
        """Names of tools that no schema could be made for, and why."""
        self._definitions = definitions
        self.sizes = definitions.sizes
        self.size = sum(definitions.sizes.values())
        """The bytes of each definition, and of all."""

    @cached_property
    def callable(self) -> dict[str, Tool]:
        """The tools whose servers can be reached now, whatever a model server takes of them."""
        return {name: tool for name, tool in self.tools.items() if tool.available}

    @cached_property
    def _listed_names(self) -> dict[str, str]:
        return {names.qualified(tool): name for name, tool in self.tools.items()}

    def listed_name(self, name: str) -> str | None:
        """The name under which a tool is listed, given that or its qualified one, which is good whatever is listed."""
        return name if name in self.tools else self._listed_names.get(name)

    def names_of(self, server: str, name: str | None = None) -> list[str]:
        """The names under which models see a tool of a server, which is given by either name, or all of its tools."""
        return [
            known
            for known, tool in self.tools.items()
            if tool.server == server and name in (None, known, tool.name)
        ]

    def definition(self, name: str) -> orjson.Fragment:
        """One tool as OpenAI's `tools` list wants it, already JSON."""
        return self._definitions.fragments[name]

    @property
    def all_definitions(self) -> orjson.Fragment:
        """The `tools` list of all that are offered, already JSON."""
        return self._definitions.all

    async def index(self) -> ToolIndex:
        """The index in which these tools are searched, perhaps with others; made when somebody first wants it."""
        async with self._index.building:
            if not self._index.built.tools:
                await in_slices(self._index.build())
            return self._index.built

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Check the arguments against the tool's schema, then run it. A failure is a result, never an exception."""
        return await run_checked(tool, arguments, self.run, on_progress)

    def run(
        self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None
    ) -> Coroutine[Any, Any, ToolResult]:
        """Run a tool whose arguments were checked."""
        return self._owners[tool].call(tool, arguments, on_progress)


class _Index:
    """The index of these tools, which all snapshots of them share, and of a part of them."""

    def __init__(self, tools: Mapping[str, Tool]) -> None:
        self.built = ToolIndex({})
        self.building = anyio.Lock()
        self._tools = tools

    def build(self) -> Iterator[None]:
        self.built = yield from ToolIndex.build_in_steps(self._tools)


def _is_same(one: Tool, other: Tool) -> bool:
    return (one.description, one.parameters, one.available) == (
        other.description,
        other.parameters,
        other.available,
    )


async def in_slices(steps: Iterator[None]) -> None:
    """Take all these steps, with a rest after each slice of time."""
    end = time.perf_counter() + SLICE
    for _ in steps:
        if time.perf_counter() > end:
            await anyio.sleep(SLICE / 2)
            end = time.perf_counter() + SLICE


async def _define_many(tools: Mapping[str, Tool], target: SchemaTarget) -> None:
    """Have the definitions of these tools ready, made in a thread if they are many and new."""
    if count_undefined(tools, target) >= AT_ONCE:
        await anyio.to_thread.run_sync(define, tools, target, abandon_on_cancel=True)


def _statuses(sources: Iterable[ToolSource]) -> dict[ToolSource, SourceStatus]:
    return {source: source.status for source in sources}


class Catalog:
    """Runs every source side by side and keeps the newest snapshot of what they offer together.

    `name` is that of this Toolway in the paths of tools. With `prefixed` each tool is named with its server's label.
    Without, a tool keeps its name when another server comes up later that has one of the same name; see
    `docs/decisions/019-names-that-stay.md`.
    """

    def __init__(self, sources: Sequence[ToolSource] = (), *, prefixed: bool = False, name: str = "") -> None:
        self.sources = tuple(sources)
        self.name = name
        self._prefixed = prefixed
        self._kept: dict[names.Key, str] = {}
        self._target: SchemaTarget = "openai"
        self._is_preparing = False
        self._is_stale = False
        """Whether a source has changed since the snapshot that is being prepared was begun."""
        self.snapshot = Snapshot(self.sources, assign=self._assign)
        self._group: TaskGroup | None = None
        self._running: dict[ToolSource, anyio.CancelScope] = {}
        self._held: set[ToolSource] = set()
        """Sources that somebody stopped; they do not run until they are restarted."""
        self._ending: set[ToolSource] = set()
        """Sources that run again as soon as they have ended."""
        self._in_use: dict[Snapshot, int] = {}
        self._all_tried = anyio.Event()
        self._started = time.monotonic()
        self._seen: dict[ToolSource, SourceStatus] = {}
        self.on_change: list[Callable[[], None]] = []
        """Called after each change of a source, when `snapshot` tells of it."""
        self.listeners: list[Callable[[], None]] = []
        """Are called whenever a source has a new status."""
        self._notice()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Catalog]:
        """Run the sources while the block lasts. None of them is waited for; see `wait_until_tried`."""
        self._started = time.monotonic()
        async with anyio.create_task_group() as group:
            self._group = group
            self._start(self.sources)
            try:
                yield self
            finally:
                self._group = None
                group.cancel_scope.cancel()

    def replace(self, sources: Sequence[ToolSource]) -> None:
        """Have these sources from now on. New ones start; those that are gone end with the last request that
        still sees their tools. Only while `running`.
        """
        self.sources = tuple(sources)
        self._kept = {}
        if self._all_tried.is_set() and any(source.status.is_untried for source in sources):
            self._all_tried = anyio.Event()
        self._start(source for source in sources if source not in self._running and source not in self._held)
        self._held &= set(sources)
        self._notice()

    def stop(self, source: ToolSource) -> None:
        """End a source, whoever uses it, until it is restarted; its tools are away then."""
        self._held.add(source)
        self._ending.discard(source)
        if source in self._running:
            self._running[source].cancel()

    def restart(self, source: ToolSource) -> None:
        """Run a source anew: one that runs is ended first."""
        self._held.discard(source)
        if source in self._running:
            self._ending.add(source)
            self._running[source].cancel()
        else:
            self._start([source])

    def refresh(self) -> None:
        """Look at the sources anew, of which something else than their servers changed the status."""
        self._notice()

    def set_target(self, target: SchemaTarget) -> None:
        """From now on snapshots have their definitions ready for this kind of model server."""
        self._target = target
        self._notice()

    @contextmanager
    def use(self) -> Iterator[Snapshot]:
        """The newest snapshot; all its sources stay alive until the block ends."""
        snapshot = self.hold()
        try:
            yield snapshot
        finally:
            self.release(snapshot)

    def hold(self, snapshot: Snapshot | None = None) -> Snapshot:
        """The newest snapshot, or one that is held; its sources stay alive until it was released as often as held."""
        snapshot = snapshot or self.snapshot
        self._in_use[snapshot] = self._in_use.get(snapshot, 0) + 1
        return snapshot

    def release(self, snapshot: Snapshot) -> None:
        """End what `hold` began."""
        self._in_use[snapshot] -= 1
        if not self._in_use[snapshot]:
            del self._in_use[snapshot]
            if snapshot is not self.snapshot:
                self._end_unused()

    def _start(self, sources: Iterable[ToolSource]) -> None:
        if self._group is None:
            raise RuntimeError("the catalog is not running")
        for source in sources:
            self._running[source] = anyio.CancelScope()
            self._group.start_soon(self._run, source)

    async def _run(self, source: ToolSource) -> None:
        with self._running[source]:
            await source.run(self._notice)
        del self._running[source]
        if source in self._ending:
            self._ending.discard(source)
            if self._group is not None and source in self.sources:
                self._start([source])

    def _end_unused(self) -> None:
        seen = [self.snapshot, *self._in_use]
        needed = {source for snapshot in seen for source in snapshot.sources} | set(self.sources)
        for source, scope in self._running.items():
            if source not in needed:
                scope.cancel()

    async def until_tried(self) -> None:
        """Wait, however long it takes, until each source has been tried once."""
        await self._all_tried.wait()

    async def wait_until_tried(self, within: float) -> bool:
        """Wait until each source has been tried once, or is `within` seconds old; whether all have been tried."""
        if not self._all_tried.is_set():
            with anyio.move_on_after(self._started + within - time.monotonic()):
                await self._all_tried.wait()
        return self._all_tried.is_set()

    def _notice(self) -> None:
        """A source changed: build the next snapshot, in a thread if that takes long."""
        if self._is_preparing:
            self._is_stale = True
        elif self._group is None or self._count_undefined() < AT_ONCE:
            self._publish(self._new_snapshot(_statuses(self.sources)))
        else:
            self._is_preparing = self._is_stale = True
            self._group.start_soon(self._prepare)

    def _count_undefined(self) -> int:
        tools = self._assign(tool for source in self.sources for tool in source.status.tools)
        return count_undefined({name: tool for name, tool in tools.items() if tool.available}, self._target)

    def _new_snapshot(self, statuses: Mapping[ToolSource, SourceStatus]) -> Snapshot:
        return Snapshot(self.sources, statuses=statuses, target=self._target, assign=self._assign)

    def _assign(self, tools: Iterable[Tool]) -> dict[str, Tool]:
        return names.assign(tools, kept=self._kept, prefixed=self._prefixed)

    async def _prepare(self) -> None:
        while self._is_stale:
            self._is_stale = False
            work = partial(self._new_snapshot, _statuses(self.sources))
            snapshot = await anyio.to_thread.run_sync(work, abandon_on_cancel=True)
        self._is_preparing = False
        self._publish(snapshot)

    def _publish(self, snapshot: Snapshot) -> None:
        """Have the next snapshot. Requests under way keep theirs."""
        before = self.snapshot
        self._seen = {source: status for source, status in self._seen.items() if source in self.sources}
        self.snapshot = snapshot
        for source in self.sources:
            self._report(source)
        self._report_names(before)
        if not any(source.status.is_untried for source in self.sources):
            self._all_tried.set()
            self._kept = {names.key_of(tool): name for name, tool in self.snapshot.tools.items()}
        for notify in self.on_change:
            notify()
        self._end_unused()
        for listener in self.listeners:
            listener()

    def _report(self, source: ToolSource) -> None:
        status, seen = source.status, self._seen.get(source)
        self._seen[source] = status
        if not seen or (seen.state, len(seen.tools), seen.error) != (
            status.state,
            len(status.tools),
            status.error,
        ):
            _report_state(source.label, status)
        for warning in status.warnings:
            if not seen or warning not in seen.warnings:
                log.warning("server %s: %s", source.label, warning)

    def _report_names(self, before: Snapshot) -> None:
        new = [(name, tool) for name, tool in self.snapshot.tools.items() if name not in before.tools]
        renamed = [(name, tool) for name, tool in new if name != tool.name]
        for name, tool in renamed[:MAX_LINES]:
            log.debug("tool %s of server %s is offered as %s", tool.name, tool.server, name)
        if renamed:
            count = len(renamed)
            plural = " is" if count == 1 else "s are"
            log.info("%d tool%s offered under another name; toolway tools lists them", count, plural)
        for name, reason in self.snapshot.left_out.items():
            if name not in before.left_out:
                log.warning("tool %s is left out, its schema cannot be used: %s", name, reason)


def _report_state(label: str, status: SourceStatus) -> None:
    if status.state == "ready":
        count = len(status.tools)
        log.info("server %s is ready: %d tool%s (%s)", label, count, "s"[: count != 1], status.protocol)
    elif status.state == "stopped":
        log.info("server %s is stopped", label)
    elif status.state != "starting":
        log.warning("server %s: %s (%s)", label, status.state, status.error)
