"""What a request that names no tools is offered, as far as it is known without asking anybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from toolway.conversation.message import ChatRequest, Message, cached_tokens
from toolway.engine.history import found_tools
from toolway.engine.model_target import ModelTarget
from toolway.engine.recovery import ModelHabits
from toolway.engine.request_tools import RequestTools
from toolway.engine.search_policy import KnownSearch, SearchPolicy
from toolway.stores import Store
from toolway.tools.catalog import Snapshot
from toolway.types import Caller, Tool, record


@record
class Offer:
    """The tools of ours that stand in a request by name, and their definitions as they are sent, if there are any."""

    tools: Mapping[str, Tool]
    definitions: Any
    has_search: bool = False

    def learn_from(self, answer: Message, target: ModelTarget, model: Any) -> None:
        """Learn from the answer of a model how it best calls what it finds, as the loop does."""
        if cached_tokens(answer.usage):
            target.habits(model).caches_prompts = True


NO_TOOLS = Offer(tools={}, definitions=None)


class KnownOffers:
    """The offers of one engine."""

    def __init__(self, search: SearchPolicy, target: ModelTarget, store: Store) -> None:
        self._search = search
        self._target = target
        self._store = store
        self._made: WeakKeyDictionary[Snapshot, dict[KnownSearch, Offer]] = WeakKeyDictionary()
        """What there was to offer of the tools of a snapshot."""

    def find(self, snapshot: Snapshot, model: Any, caller: Caller, messages: Sequence[Any]) -> Offer | None:
        """What a model is offered of these tools beside messages without calls; None: that is not known.

        It is what `RequestTools` offers once `SearchPolicy.apply` has seen it.
        """
        if not snapshot.offered:
            return NO_TOOLS
        target, habits = self._target, self._target.habits(model)
        if target.cuts_silently or not _is_known_alone(habits):
            return None
        search = self._search.known(
            len(snapshot.offered),
            snapshot.size,
            habits=habits,
            most_tools=target.max_tools,
            info=target.infos.cached(model),
        )
        if search is None:
            return None
        if search.way == "append" and found_tools.may_be_kept(self._store, caller, messages):
            return None
        made = self._made.setdefault(snapshot, {})
        if (offer := made.get(search)) is None:
            offer = made[search] = self._offer(snapshot, search)
        return offer if habits.most_tools is None or len(offer.tools) <= habits.most_tools else None

    def _offer(self, snapshot: Snapshot, search: KnownSearch) -> Offer:
        request = ChatRequest.of({"messages": []})
        tools = RequestTools(request, snapshot)
        if search.way is not None:
            self._search.begin(tools, search)
        definitions = tools.put_into(request).tools
        return Offer(tools=tools.tools, definitions=definitions, has_search=tools.search is not None)


def _is_known_alone(habits: ModelHabits) -> bool:
    """Whether of a model nothing was learned by which its offers change, but what `SearchPolicy.known` looks at."""
    return (learned := vars(habits)) == _NO_HABITS or {**learned, **_LOOKED_AT} == _NO_HABITS


_NO_HABITS = vars(ModelHabits())
_LOOKED_AT = {name: _NO_HABITS[name] for name in ("searches", "caches_prompts", "most_tools")}
