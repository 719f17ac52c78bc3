"""The catalog: sources come and go while requests keep what they saw."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import anyio
import anyio.lowlevel
import orjson

from tests.unit.engine.scripted_model import InMemorySource, echo
from toolway.schema.compile import compile_schema
from toolway.tools.catalog import Catalog, Snapshot
from toolway.types import SourceStatus, Tool


class Switched(InMemorySource):
    """A source whose status the test sets; it says when it runs and when it ended."""

    def __init__(self, label: str, *names: str) -> None:
        super().__init__(label, **dict.fromkeys(names, echo))
        self.full = self.status
        self.status = SourceStatus()
        self.runs, self.ended = anyio.Event(), anyio.Event()
        self._changed: Callable[[], None] | None = None

    async def run(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.runs.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()

    def become(self, status: SourceStatus) -> None:
        self.status = status
        assert self._changed is not None
        self._changed()


def lost(status: SourceStatus) -> SourceStatus:
    return replace(
        status, state="failed", error="gone", tools=tuple(replace(t, available=False) for t in status.tools)
    )


def definitions(catalog: Catalog) -> list[str]:
    return [tool["function"]["name"] for tool in orjson.loads(orjson.dumps(catalog.snapshot.all_definitions))]


def bytes_of(snapshot: Snapshot) -> bytes:
    return orjson.dumps(snapshot.all_definitions)


async def test_a_source_joins_when_it_is_ready_and_its_lost_tools_stay_listed():
    source = Switched("memory", "b", "a")
    async with Catalog([source]).running() as catalog:
        await source.runs.wait()
        assert definitions(catalog) == []
        assert not await catalog.wait_until_tried(0.0)
        source.become(source.full)
        assert definitions(catalog) == ["a", "b"]
        assert await catalog.wait_until_tried(0.0)
        source.become(lost(source.full))
        assert definitions(catalog) == []
        assert [tool.available for tool in catalog.snapshot.tools.values()] == [False, False]
    assert source.ended.is_set()


async def test_a_server_that_goes_does_not_rename_the_tools_of_another():
    one, two = Switched("one", "now"), Switched("two", "now")
    async with Catalog([one, two]).running() as catalog:
        await one.runs.wait()
        await two.runs.wait()
        one.become(one.full)
        two.become(two.full)
        assert definitions(catalog) == ["one__now", "two__now"]
        one.become(lost(one.full))
        assert definitions(catalog) == ["two__now"]


async def test_a_server_that_comes_up_late_does_not_rename_the_tools_of_another():
    one, late = Switched("one", "now"), Switched("late", "now", "then")
    async with Catalog([one, late]).running() as catalog:
        await one.runs.wait()
        await late.runs.wait()
        one.become(one.full)
        late.become(SourceStatus(state="failed", error="not there"))
        assert definitions(catalog) == ["now"]
        late.become(late.full)
        assert definitions(catalog) == ["late__now", "now", "then"]
        one.become(lost(one.full))
        one.become(replace(one.full, tools=tuple(replace(tool) for tool in one.full.tools)))
        assert definitions(catalog) == ["late__now", "now", "then"]
        assert catalog.snapshot.listed_name("one__now") == "now"


async def test_another_configuration_assigns_the_names_anew():
    one, two = InMemorySource("one", now=echo), InMemorySource("two", now=echo)
    async with Catalog([one]).running() as catalog:
        assert definitions(catalog) == ["now"]
        catalog.replace([one, two])
        assert definitions(catalog) == ["one__now", "two__now"]


async def test_who_wants_to_know_hears_of_each_change():
    source = Switched("memory", "a")
    heard: list[list[str]] = []
    async with Catalog([source]).running() as catalog:
        await source.runs.wait()
        catalog.on_change.append(lambda: heard.append(list(catalog.snapshot.callable)))
        source.become(source.full)
        source.become(lost(source.full))
        assert heard == [["a"], []]


async def test_the_definitions_are_the_same_bytes_whatever_the_order_of_the_sources():
    def made(*labels: str) -> bytes:
        return orjson.dumps(
            Catalog([InMemorySource(label, now=echo, then=echo) for label in labels]).snapshot.all_definitions
        )

    assert made("a", "b") == made("b", "a")


async def test_tools_of_one_request_take_no_name_away():
    sources = [InMemorySource("memory", now=echo, then=echo), InMemorySource("git", log=echo)]
    async with Catalog(sources).running() as catalog:
        base = catalog.snapshot.for_target("llama.cpp")
        # "memory__now" is what the first tool would be called if another server had a "now" as well.
        guests = [
            InMemorySource("a", now=echo, log=echo, new=echo),
            InMemorySource("b", new=echo, memory__now=echo),
        ]
        joined = base.with_sources(guests)
        assert list(joined.tools)[:3] == list(base.tools) == ["log", "now", "then"]
        assert all(joined.tools[name] is base.tools[name] for name in base.tools)
        assert list(joined.tools)[3:] == ["a__log", "a__new", "a__now", "b__new", "memory__now"]
        assert joined.target == "llama.cpp"
        assert bytes_of(joined.for_target("openai")).startswith(bytes_of(catalog.snapshot)[:-1])
        assert list(catalog.snapshot.tools) == ["log", "now", "then"]
        assert base.with_sources([]) is base


async def test_tools_of_one_request_cannot_take_a_name_that_was_made_by_hash():
    crowd = [InMemorySource("s", **{"a" * 70: echo})]
    base = Catalog(crowd).snapshot
    joined = base.with_sources([InMemorySource("t", **{next(iter(base.tools)): echo})])
    assert joined.tools[next(iter(base.tools))].server == "s"
    assert len(joined.tools) == 2


async def test_tools_that_the_model_server_refuses_stay_out_of_a_request_with_its_own():
    base = Catalog([InMemorySource("s", good=echo, bad=echo)]).snapshot
    fitted = base.for_target("openai", frozenset({base.tools["bad"]}))
    joined = fitted.with_sources([InMemorySource("t", other=echo)])
    assert list(joined.offered) == ["good", "other"]
    assert list(joined.for_target("gemini", frozenset({base.tools["bad"]})).offered) == ["good", "other"]


async def test_without_sources_everything_is_settled_at_once():
    async with Catalog([]).running() as catalog:
        assert await catalog.wait_until_tried(0.0)
        assert definitions(catalog) == []


async def test_a_removed_source_ends_with_the_last_request_that_sees_it():
    old, new = Switched("old", "x"), Switched("new", "y")
    async with Catalog([old]).running() as catalog:
        await old.runs.wait()
        old.become(old.full)
        with catalog.use() as snapshot:
            catalog.replace([new])
            await new.runs.wait()
            new.become(new.full)
            assert definitions(catalog) == ["y"]
            assert not old.ended.is_set()
            assert (await snapshot.call(snapshot.tools["x"], {})).text == "echo {}"
        with anyio.fail_after(60):
            await old.ended.wait()
        assert not new.ended.is_set()


SCHEMA = {
    "type": "object",
    "properties": {f"p{n}": {"type": "object", "properties": {"a": {"type": "string"}}} for n in range(40)},
}


class Big(Switched):
    """A switched source of 400 tools with schemas that take a while."""

    def __init__(self, label: str) -> None:
        super().__init__(label, *(f"{label}{n}" for n in range(400)))
        self.full = replace(
            self.full, tools=tuple(replace(tool, parameters=SCHEMA) for tool in self.full.tools)
        )


async def test_many_new_tools_are_prepared_while_others_go_on():
    big, small = Big("big"), Switched("small", "x")
    async with Catalog([big, small]).running() as catalog:
        await big.runs.wait()
        big.become(big.full)
        assert definitions(catalog) == []
        assert not await catalog.wait_until_tried(0.0)
        await anyio.lowlevel.checkpoint()
        small.become(small.full)  # in the midst of it
        before = catalog.snapshot
        with anyio.fail_after(60):
            assert await catalog.wait_until_tried(60)
        assert before.tools == {}
        assert len(catalog.snapshot.offered) == 401
        big.become(replace(big.full, error="known by now"))
        assert len(catalog.snapshot.offered) == 401


async def test_many_new_tools_are_defined_by_another_thread():
    big = Big("big")
    compiled: list[FrameType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is compile_schema.__code__:
            compiled.append(frame)

    async with Catalog([big]).running() as catalog:
        await big.runs.wait()
        sys.setprofile(note)  # of this thread, which is the event loop's
        try:
            big.become(big.full)
            with anyio.fail_after(60):
                assert await catalog.wait_until_tried(60)
        finally:
            sys.setprofile(None)
        assert len(catalog.snapshot.offered) == 400
        assert compiled == []


async def test_tools_are_indexed_while_others_go_on_and_anew_when_there_are_more():
    many = Switched("many", *(f"tool_{number}" for number in range(2_000)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with Catalog([many]).running() as catalog, anyio.create_task_group() as group:
        await many.runs.wait()
        many.become(many.full)
        with anyio.fail_after(60):
            assert await catalog.wait_until_tried(60)
            group.start_soon(others)
            assert len((await catalog.snapshot.index()).names) == 2_000
            assert turns > 5
            one = replace(many.full.tools[0], name="open_umbrella")
            many.become(replace(many.full, tools=(*many.full.tools, one)))
            while "open_umbrella" not in catalog.snapshot.offered:
                await anyio.lowlevel.checkpoint()
            assert (await catalog.snapshot.index()).search("umbrella") == ["open_umbrella"]
        group.cancel_scope.cancel()


async def test_definitions_are_ready_for_the_model_server_that_is_expected():
    big = Big("big")
    async with Catalog([big]).running() as catalog:
        await big.runs.wait()
        catalog.set_target("gemini")
        big.become(big.full)
        with anyio.fail_after(60):
            assert await catalog.wait_until_tried(60)
        assert catalog.snapshot.for_target("gemini") is catalog.snapshot


async def test_a_source_whose_tools_can_still_be_seen_is_not_ended():
    big, gone = Big("big"), Switched("gone", "x")
    async with Catalog([gone]).running() as catalog:
        await gone.runs.wait()
        gone.become(gone.full)
        big.status = big.full
        catalog.replace([big])
        assert definitions(catalog) == ["x"]
        assert not gone.ended.is_set()
        with anyio.fail_after(60):
            await gone.ended.wait()
        assert len(catalog.snapshot.offered) == 400


async def test_a_source_that_stays_is_not_started_again():
    stays, goes = Switched("stays", "x"), Switched("goes", "y")
    async with Catalog([stays, goes]).running() as catalog:
        await stays.runs.wait()
        await goes.runs.wait()
        stays.runs = anyio.Event()
        catalog.replace([stays])
        with anyio.fail_after(60):
            await goes.ended.wait()
        assert not stays.runs.is_set()
        assert not stays.ended.is_set()


async def test_a_call_that_does_not_fit_the_schema_never_reaches_the_source():
    tool: Tool
    async with Catalog([InMemorySource("memory", echo=echo)]).running() as catalog:
        tool = catalog.snapshot.tools["echo"]
        refused = await catalog.snapshot.call(tool, {"city": 5})
        assert refused.is_error
        assert "city" in refused.text


async def test_a_renewed_snapshot_has_new_tools_last_and_keeps_the_others_as_they_were():
    source, other = InMemorySource("s", b=echo, gone=echo), InMemorySource("t", a=echo, z=echo)
    base = Snapshot([source, other])
    called = [base.tools["b"]]
    newer = InMemorySource("s", b=echo, a=echo, added=echo).status
    source.status = newer
    assert base.changed(called) == set()  # nobody said so: a refreshed document is for the next request
    source.status = replace(newer, announced=1)
    assert base.changed([base.tools["z"]]) == set()
    renewed = await base.renewed(base.changed(called))
    assert list(renewed.offered) == ["a", "b", "z", "added", "s__a"]
    assert all(renewed.tools[name] is base.tools[name] for name in ("a", "b", "z"))
    assert renewed.changed(called) == set()
    assert list(base.offered) == ["a", "b", "gone", "z"]


async def test_a_server_that_is_away_keeps_its_tools_in_a_request_under_way():
    source = InMemorySource("s", b=echo)
    base = Snapshot([source])
    source.status = replace(lost(source.status), announced=1)
    assert base.changed([base.tools["b"]]) == set()
