"""Prompts and resources of all servers, under names that say whose they are.

With one configured server they keep their names. With several, a prompt is `server__prompt` and a resource
`toolway://server/URI`: a function of the configuration alone, whichever servers are up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import quote
from weakref import WeakKeyDictionary

import anyio
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS

from toolway.errors import SourceError
from toolway.tools.catalog import Catalog
from toolway.tools.names import with_hash
from toolway.types import JSON, ContextSource, Selection, Tool, ToolSource, is_selected

LIST_SECONDS = 10.0
"""How long a server may take to list what it has; then what it listed last counts."""

SCHEME = "toolway://"


class CatalogContext:
    """The prompts, resources and templates of the catalog's servers, as far as a selection lets them through."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._last: WeakKeyDictionary[ToolSource, dict[str, list[JSON]]] = WeakKeyDictionary()

    async def listed(self, method: str, key: str, naming: str, selection: Selection) -> dict[str, JSON]:
        """All items of one kind by their public names; `naming` is the member that holds the name."""
        sources = [source for source in self._catalog.sources if _has(source, key)]
        found: dict[ToolSource, list[JSON]] = {}

        async def ask(source: ContextSource) -> None:
            found[source] = await self._items(source, method, key)

        async with anyio.create_task_group() as tasks:
            for source in sources:
                tasks.start_soon(ask, cast(ContextSource, source))
        items: dict[str, JSON] = {}
        for source in sources:
            for item in found[source]:
                name = item.get(naming)
                if isinstance(name, str) and _is_visible(source, name, selection):
                    public = self._public(source, name, naming)
                    items[public] = {**item, naming: public}
        return dict(sorted(items.items()))

    async def _items(self, source: ContextSource, method: str, key: str) -> list[JSON]:
        known = self._last.setdefault(source, {})
        if source.status.state == "ready" or (source.status.state == "starting" and method not in known):
            try:
                with anyio.fail_after(LIST_SECONDS):
                    items = (await source.request(method, {}))[key]
            except (SourceError, TimeoutError):
                pass  # templates are not known to every server that has resources
            else:
                known[method] = [item for item in items if isinstance(item, dict)]
        return known.get(method, [])

    @property
    def _is_alone(self) -> bool:
        return len(self._catalog.sources) <= 1

    def _public(self, source: ToolSource, name: str, naming: str) -> str:
        if self._is_alone:
            return name
        return f"{_head(source.label)}__{name}" if naming == "name" else f"{_root(source.label)}{name}"

    def _prompt(self, public: str, selection: Selection) -> tuple[ContextSource, str]:
        """The server of a prompt, and its name there."""
        head, _, name = public.partition("__")
        for source in self._having("prompts"):
            own = public if self._is_alone else name if _head(source.label) == head else None
            if own is not None and _is_visible(source, own, selection):
                return source, own
        raise MCPError(INVALID_PARAMS, f"Unknown prompt: {public[:100]}")

    def _resource(self, public: str, selection: Selection) -> Iterator[tuple[ContextSource, str, str]]:
        """(server, URI there, what stands before URIs of it): its own, or each for a URI that came in a result."""
        for source in self._having("resources"):
            root = _root(source.label)
            if public.startswith(root) and _is_visible(source, own := public.removeprefix(root), selection):
                yield source, own, root
                return
        for source in self._having("resources"):
            if _is_visible(source, public, selection):
                yield source, public, ""

    def _having(self, kind: str) -> Iterator[ContextSource]:
        return (cast(ContextSource, source) for source in self._catalog.sources if _has(source, kind))

    async def get_prompt(self, params: JSON, selection: Selection) -> JSON:
        """The result of `prompts/get`."""
        source, name = self._prompt(params["name"], selection)
        return await _request(source, "prompts/get", {**params, "name": name})

    async def read_resource(self, params: JSON, selection: Selection) -> JSON:
        """The result of `resources/read`. A URI that a tool returned is asked of each server until one knows it."""
        uri = params["uri"]
        failure = MCPError(INVALID_PARAMS, f"Resource not found: {uri[:500]}", {"uri": uri})
        for source, own, root in self._resource(uri, selection):
            try:
                result = await _request(source, "resources/read", {**params, "uri": own})
            except MCPError as error:
                failure = error
                continue
            contents = result.get("contents")
            if not root or not isinstance(contents, list):
                return result
            return {**result, "contents": [_with_root(item, root) for item in contents]}
        raise failure

    async def complete(self, params: JSON, selection: Selection) -> JSON:
        """The result of `completion/complete`: of a server that completes nothing, nothing."""
        ref = params["ref"]
        if ref["type"] == "ref/prompt":
            source, name = self._prompt(ref["name"], selection)
            own: JSON = {**ref, "name": name}
        else:
            found = next(self._resource(ref["uri"], selection), None)
            if found is None:
                raise MCPError(INVALID_PARAMS, f"Unknown resource template: {ref['uri'][:500]}")
            source, own = found[0], {**ref, "uri": found[1]}
        if "completions" not in source.status.offers:
            return {"completion": {"values": []}}
        return await _request(source, "completion/complete", {**params, "ref": own})

    def state(self) -> list[tuple[Any, ...]]:
        """What changes when the lists may have."""
        return [
            (source, source.status.offers, source.status.context_changes, _is_there(source))
            for source in self._catalog.sources
            if source.status.offers
        ]


def _has(source: ToolSource, kind: str) -> bool:
    offered = "resources" if kind == "resourceTemplates" else kind
    return offered in source.status.offers and _is_there(source)


def _is_there(source: ToolSource) -> bool:
    """Whether a server has what it offers, as its tools are there: also while it is started again."""
    return source.status.is_usable or source.status.state == "starting"


def _is_visible(source: ToolSource, name: str, selection: Selection) -> bool:
    return is_selected(name, Tool(name=name, server=source.label, description="", parameters={}), selection)


def _head(label: str) -> str:
    """What stands before the names of a server's prompts: its label, of which `__` is the end alone."""
    clean = re.sub(r"[^A-Za-z0-9_.-]+|_{2,}", "_", label).strip("_") or "server"
    return clean if clean == label else with_hash(clean, label)


def _root(label: str) -> str:
    return f"{SCHEME}{quote(label, safe='')}/"


def _with_root(item: Any, root: str) -> Any:
    uri = item.get("uri") if isinstance(item, dict) else None
    return {**item, "uri": root + uri} if isinstance(uri, str) else item


async def _request(source: ContextSource, method: str, params: JSON) -> JSON:
    try:
        return await source.request(method, params)
    except SourceError as error:
        raise MCPError(error.rpc_code or INTERNAL_ERROR, error.message) from None
