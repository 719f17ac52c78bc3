"""What a request that names no tools is offered, as far as it is known without asking anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from toolway.conversation.message import ChatRequest
from toolway.engine.history import found_tools
from toolway.engine.model_capabilities import ModelCapabilities
from toolway.engine.model_target import ModelTarget
from toolway.engine.request_tools import RequestTools
from toolway.engine.search_policy import KnownSearch, SearchPolicy
from toolway.engine.tool_search import Way
from toolway.stores import Store
from toolway.tools.catalog import Snapshot
from toolway.types import JSON, Caller, Tool, record
from toolway.upstream.model_info import ModelInfo


@record
class Offer:
    """The tools of ours that stand in a request by name, and their definitions as they are sent, if there are any."""

    tools: Mapping[str, Tool]
    definitions: Any
    has_search: bool = False


NO_TOOLS = Offer(tools={}, definitions=None)


@record
class _Decision:
    """An offer, if it is known, the way in which other tools are searched, and all that both were decided by."""

    snapshot: Snapshot
    capabilities: JSON
    info: ModelInfo | None
    way: Way | None
    offer: Offer | None


class KnownOffers:
    """The offers of one engine."""

    def __init__(self, search: SearchPolicy, target: ModelTarget, store: Store) -> None:
        self._search = search
        self._target = target
        self._store = store
        self._made: WeakKeyDictionary[Snapshot, dict[KnownSearch, Offer]] = WeakKeyDictionary()
        """What there was to offer of the tools of a snapshot."""
        self._last: _Decision | None = None

    def find(self, snapshot: Snapshot, model: Any, caller: Caller, messages: Sequence[Any]) -> Offer | None:
        """What a model is offered of these tools beside messages without calls; None: that is not known.

        It is what `RequestTools` offers once `SearchPolicy.apply` has seen it.
        """
        target, last = self._target, self._last
        if not snapshot.offered:
            return NO_TOOLS
        if target.cuts_silently:
            return None
        capabilities, info = target.capabilities(model), target.infos.cached(model)
        if last is None or (
            last.snapshot is not snapshot or last.info is not info or last.capabilities != vars(capabilities)
        ):
            last = self._last = self._decide(snapshot, capabilities, info)
        if last.way == "append" and found_tools.may_be_kept(self._store, caller, messages):
            return None
        return last.offer

    def _decide(
        self, snapshot: Snapshot, capabilities: ModelCapabilities, info: ModelInfo | None
    ) -> _Decision:
        search, offer = None, None
        if _is_known_alone(capabilities):
            count, most = len(snapshot.offered), self._target.max_tools
            search = self._search.known(
                count, snapshot.size, capabilities=capabilities, most_tools=most, info=info
            )
        if search is not None:
            made = self._made.setdefault(snapshot, {})
            if (offer := made.get(search)) is None:
                offer = made[search] = self._offer(snapshot, search)
            if capabilities.most_tools is not None and len(offer.tools) > capabilities.most_tools:
                offer = None
        way = search.way if search else None
        return _Decision(
            snapshot=snapshot, capabilities={**vars(capabilities)}, info=info, way=way, offer=offer
        )

    def _offer(self, snapshot: Snapshot, search: KnownSearch) -> Offer:
        request = ChatRequest.of({"messages": []})
        tools = RequestTools(request, snapshot)
        if search.way is not None:
            self._search.begin(tools, search)
        definitions = tools.put_into(request).tools
        return Offer(tools=tools.tools, definitions=definitions, has_search=tools.search is not None)


def _is_known_alone(capabilities: ModelCapabilities) -> bool:
    """Whether of a model nothing was learned by which its offers change, but what `SearchPolicy.known` looks at."""
    return (learned := vars(capabilities)) == _NOTHING_LEARNED or {
        **learned,
        **_LOOKED_AT,
    } == _NOTHING_LEARNED


_NOTHING_LEARNED = vars(ModelCapabilities())
_LOOKED_AT = {name: _NOTHING_LEARNED[name] for name in ("searches", "caches_prompts", "most_tools")}
