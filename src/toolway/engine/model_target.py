"""What is learned about the model server while it is used: which schemas it takes, which tools it refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import anyio

from toolway import __version__, types
from toolway.engine.model_capabilities import ModelCapabilities, Room
from toolway.schema.compile import MAX_TOOLS
from toolway.schema.targets import SchemaTarget
from toolway.settings.settings import UpstreamSettings
from toolway.tools.catalog import Snapshot
from toolway.tools.names import digest_of
from toolway.types import JSON, Tool
from toolway.upstream.client import Upstream, credential
from toolway.upstream.model_info import Listing, ModelInfos
from toolway.wire.token_estimate import BYTES_PER_TOKEN

log = logging.getLogger("toolway.backend")

USER_AGENT: types.Header = (b"user-agent", f"toolway/{__version__}".encode())
"""Tells requests that are Toolway's own from those that it makes for a client."""

MAX_REFUSED = 1000
"""Definitions of refused tools that are remembered; clients that declare servers can bring new ones for ever."""

MAX_MODELS = 1000
"""Models of which something is remembered; clients name them."""

LEARN_TIMEOUT = 5.0
"""Seconds that the model server has to say what it is."""
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)

_GOOGLE = ("generativelanguage.googleapis.com", "aiplatform.googleapis.com")
_AZURE = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
_OWNERS_WITH_GRAMMARS = frozenset({"llamacpp", "llama-swap", "organization_owner"})
"""What `owned_by` says in the model lists of llama.cpp, llama-swap and LM Studio."""


@dataclass(frozen=True, kw_only=True)
class RefusedTool:
    """A tool that the model server refuses, and in which words."""

    name: str
    server: str
    reason: str


class ModelTarget:
    """One model server, seen from here. Everything that it knows is lost with the process, and learned again."""

    def __init__(
        self,
        settings: UpstreamSettings,
        upstream: Upstream,
        on_schema_target: Callable[[SchemaTarget], None] | None = None,
    ) -> None:
        self._settings = settings
        self._on_schema_target = on_schema_target
        self.infos = ModelInfos(upstream, self._on_listing)
        """What it tells about its models; the one place that asks it for them."""
        self._is_certain = settings.schema_profile != "auto"
        self.schema_target: SchemaTarget = "openai"
        self._take(_configured_target(settings) or "openai")
        self.searching = anyio.Lock()
        """Held while somebody looks for the tool that the model server refuses; the others wait for the result."""
        self._tried = anyio.Event()
        self._started = time.monotonic()
        self._refused: dict[str, RefusedTool] = {}
        self._hopeless: WeakKeyDictionary[Snapshot, set[str]] = WeakKeyDictionary()
        self.cuts_silently = False
        """Whether it refuses no prompt that is too long, but forgets a part of it (Ollama)."""
        self._capabilities: dict[str, ModelCapabilities] = {}

    @property
    def refused(self) -> Sequence[RefusedTool]:
        """The tools that are left out because the model server refuses them, as they were defined then."""
        return tuple(self._refused.values())

    @cached_property
    def is_openai(self) -> bool:
        """Whether it is OpenAI's own server, or Azure's of the same models, by its address."""
        host = urlsplit(self._settings.base_url).hostname or ""
        return host == "api.openai.com" or host.endswith(_AZURE)

    @property
    def max_tools(self) -> int | None:
        """How many tools a request may hold, where that is known without asking."""
        return MAX_TOOLS if self.is_openai else None

    @asynccontextmanager
    async def learning(self) -> AsyncIterator[ModelTarget]:
        """Find the schema target while the block lasts, unless a setting or the address says it."""
        async with anyio.create_task_group() as group:
            if self._is_certain or _configured_target(self._settings):
                self._tried.set()
            else:
                group.start_soon(self._learn)
            yield self
            group.cancel_scope.cancel()

    async def wait_until_known(self, within: float) -> None:
        """Wait until the model server was asked what it is, or this is `within` seconds old."""
        if not self._tried.is_set():
            with anyio.move_on_after(self._started + within - time.monotonic()):
                await self._tried.wait()

    async def learn(self) -> bool:
        """Ask the model server once for its models; whether it answered."""
        headers = [USER_AGENT, *credential(self._settings.api_key)]
        with anyio.move_on_after(LEARN_TIMEOUT):
            return await self.infos.listing(headers) is not None
        return False

    def learn_from(self, headers: Sequence[types.Header]) -> None:
        """Learn from the head of any answer: llama.cpp names itself."""
        if self.schema_target == "openai" and (b"server", b"llama.cpp") in headers:
            self._become("llama.cpp")

    def capabilities(self, model: Any) -> ModelCapabilities:
        """What was learned of one model, to be added to."""
        name = model if isinstance(model, str) else ""
        if (known := self._capabilities.get(name)) is not None:
            return known
        if len(self._capabilities) >= MAX_MODELS and name not in self._capabilities:
            self._capabilities.clear()
        return self._capabilities.setdefault(name, ModelCapabilities())

    async def look_up_room(self, model: Any, headers: Sequence[types.Header]) -> None:
        """Learn how much a model reads whose server cuts the rest away without a word."""
        if self.cuts_silently and (context := (await self.infos.get(model, headers)).context):
            self.capabilities(model).room = Room.of(context * BYTES_PER_TOKEN, is_silent=True)

    def fit(self, snapshot: Snapshot) -> Snapshot:
        """The tools as this model server takes them, without those that it refuses."""
        if not self._refused:
            return snapshot.for_target(self.schema_target)
        barred = frozenset(tool for tool in snapshot.tools.values() if digest_of(tool) in self._refused)
        return snapshot.for_target(self.schema_target, barred)

    def bar(self, name: str, tool: Tool, reason: str) -> None:
        """Leave a tool out until its definition changes."""
        while len(self._refused) >= MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[digest_of(tool)] = RefusedTool(name=name, server=tool.server, reason=reason)
        log.warning(
            "tool %s of server %s is left out until its definition changes: the model server refuses it (%s)",
            name,
            tool.server,
            reason,
        )

    def give_up(self, snapshot: Snapshot, refusal: str) -> None:
        """No tool of `snapshot` was found to be the cause of this refusal: do not search again."""
        self._hopeless.setdefault(snapshot, set()).add(refusal)

    def is_hopeless(self, snapshot: Snapshot, refusal: str) -> bool:
        """Whether a search for the cause of the same refusal has found nothing."""
        return refusal in self._hopeless.get(snapshot, ())

    def _on_listing(self, listing: Listing) -> None:
        self.learn_from(listing.headers)
        self.cuts_silently = self.cuts_silently or listing.is_ollamas
        if _owners(listing.body) & _OWNERS_WITH_GRAMMARS:
            self._become("llama.cpp")

    async def _learn(self) -> None:
        tries = 0
        while not await self.learn():
            self._tried.set()
            await anyio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1
        self._tried.set()

    def _become(self, target: SchemaTarget) -> None:
        if not self._is_certain and target != self.schema_target:
            self._take(target)
            log.info("the model server takes schemas as %s does", target)

    def _take(self, target: SchemaTarget) -> None:
        self.schema_target = target
        if self._on_schema_target:
            self._on_schema_target(target)


def _configured_target(settings: UpstreamSettings) -> SchemaTarget | None:
    """The target that a setting or the model server's address says."""
    if settings.schema_profile != "auto":
        return settings.schema_profile
    host = urlsplit(settings.base_url).hostname or ""
    return "gemini" if any(host == name or host.endswith(f"-{name}") for name in _GOOGLE) else None


def _owners(listed: JSON) -> set[Any]:
    try:
        return {model["owned_by"] for model in listed["data"] if isinstance(model.get("owned_by"), str)}
    except (KeyError, TypeError, AttributeError):
        return set()
