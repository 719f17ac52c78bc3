"""Sources that stand before another one: the base of them all, masked secrets, tool transformation, earlier lists.

A TransformedSource has fewer tools, other names, other descriptions, another timeout.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qsl, quote, urlsplit

from toolway.errors import SourceError
from toolway.settings.mcp_server import ServerConfig
from toolway.types import (
    JSON,
    CallClient,
    ContextSource,
    OnProgress,
    Progress,
    SourceStatus,
    Tool,
    ToolResult,
    ToolSource,
    call_client,
)
from toolway.wire.lenient_json import dumps_text, harmless


class SourceWrapper:
    """A ToolSource that is `inner` in all that a subclass does not change."""

    def __init__(self, inner: ToolSource) -> None:
        self.label = inner.label
        self.kind = inner.kind
        self.inner = inner

    @property
    def status(self) -> SourceStatus:
        """The inner source's newest status."""
        return self.inner.status

    async def run(self, changed: Callable[[], None]) -> None:
        """Run the inner source."""
        await self.inner.run(changed)

    def call(
        self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None
    ) -> Coroutine[Any, Any, ToolResult]:
        """Run the tool of the inner source."""
        return self.inner.call(tool, arguments, on_progress)

    async def request(self, method: str, params: JSON) -> JSON:
        """Ask the inner source, which is a `ContextSource` if its status offers anything."""
        return await cast(ContextSource, self.inner).request(method, params)


class StatusTransformer(SourceWrapper, ABC):
    """A wrapper that shows another status, made anew only when the inner source has a new one."""

    def __init__(self, inner: ToolSource) -> None:
        super().__init__(inner)
        self._inner_status: SourceStatus | None = None
        self._status = SourceStatus()

    @property
    def status(self) -> SourceStatus:
        """The inner status transformed; the same object for as long as the inner one is the same."""
        newest = self.inner.status
        if newest is not self._inner_status:
            self._inner_status, self._status = newest, self._transform(newest)
        return self._status

    @abstractmethod
    def _transform(self, status: SourceStatus) -> SourceStatus:
        """What is shown in place of this status."""


class Mask:
    """Replaces what Toolway sends to a server to prove who it is, wherever it comes back in a text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: tuple[str, ...] = ()
        for secret in secrets:
            self.add(secret)

    @classmethod
    def of(cls, *, url: str = "", headers: Mapping[str, str] = {}, env: Mapping[str, str] = {}) -> Mask:
        """For what is sent to one server: its URL's credentials, its headers, its environment."""
        parts = urlsplit(url)
        pairs = [*parse_qsl(parts.query), ("password", parts.password or "")]
        sent = [value for name, value in (*pairs, *headers.items()) if _is_secret(name, value)]
        return cls([*sent, *(value for name, value in env.items() if _is_key(name, value))])

    def add(self, secret: str) -> None:
        """Mask this too: it, its parts, and how it is written in JSON and in URLs."""
        bare = secret.rpartition(" ")[2]
        texts = {secret, bare, *_basic(secret)}
        forms = {
            form
            for text in texts
            for form in (text, json.dumps(text)[1:-1], quote(text, safe="", errors="replace"))
        }
        kept = {form for form in forms if len(form) >= SHORTEST_SECRET} | set(self._forms)
        self._forms = tuple(sorted(kept, key=len, reverse=True))

    def within(self, value: Any) -> Any:
        """A JSON value with each text in it masked; the same object if there is nothing to mask."""
        if not self._forms:
            return value
        text = dumps_text(value)
        return value if self(text) is text else self._within(value)

    def _within(self, value: Any) -> Any:
        if isinstance(value, str):
            return self(value)
        if isinstance(value, list):
            return [self._within(item) for item in value]
        if isinstance(value, dict):
            return {self(key): self._within(item) for key, item in value.items()}
        return value

    def __call__(self, text: str) -> str:
        for form in self._forms:
            if form in text:
                text = text.replace(form, "***")
        return text


SHORTEST_SECRET = 6
"""Characters of what is masked: anything shorter is a part of ordinary words."""

_SECRET_NAME = re.compile(
    r"key|token|secret|pass|pwd|auth|cred|private|cookie|session|signature", re.IGNORECASE
)
_KEY = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.~+/=-]{20,}", re.ASCII)


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET_NAME.search(name) or _KEY.fullmatch(value))


def _is_key(name: str, value: str) -> bool:
    """For variables of a program, many of which are named like secrets and hold words: "AUTH_MODE=disabled"."""
    return bool(_SECRET_NAME.search(name)) and not value.isalpha() and "/" not in value


def _basic(header: str) -> Iterator[str]:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(encoded).decode()
        except (binascii.Error, UnicodeDecodeError):
            return
        yield pair
        yield pair.partition(":")[2]


class MaskedSource(StatusTransformer):
    """`inner`, of which no text holds a secret of the operator's: results, errors, progress and definitions."""

    def __init__(self, inner: ToolSource, mask: Mask) -> None:
        super().__init__(inner)
        self._mask = mask

    def _transform(self, status: SourceStatus) -> SourceStatus:
        """The status, masked; tools that need no mask are the same objects."""
        return replace(
            status,
            tools=tuple(map(self._tool, status.tools)),
            error=status.error and self._mask(status.error),
            warnings=tuple(map(self._mask, status.warnings)),
        )

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run the inner tool, and mask what it says."""

        def report(progress: Progress) -> None:
            if on_progress:
                message = progress.message
                on_progress(replace(progress, message=message and self._mask(message)))

        client = call_client.get()
        if client is None:
            result = await self.inner.call(tool, arguments, on_progress and report)
        else:
            with self._masked_client(client):
                result = await self.inner.call(tool, arguments, on_progress and report)
        text = self._mask(result.text)
        if result.raw is not None:
            return replace(result, text=text, raw=partial(self._masked, result.raw))
        return result if text is result.text else replace(result, text=text)

    async def request(self, method: str, params: JSON) -> JSON:
        """Ask the inner source, and mask what it says."""
        client = call_client.get()
        try:
            with self._masked_client(client) if client else nullcontext():
                answer = await super().request(method, params)
        except SourceError as error:
            message = self._mask(error.message)
            raise SourceError(message, stage=error.stage, rpc_code=error.rpc_code) from None
        result: JSON = self._mask.within(harmless(answer))
        return result

    @contextmanager
    def _masked_client(self, client: CallClient) -> Iterator[None]:
        """What the server tells and asks the client of a call reaches it masked too."""

        def log(params: JSON) -> None:
            client.log(self._mask.within(harmless(params)))

        async def ask(requests: JSON) -> JSON:
            return await client.ask(self._mask.within(harmless(requests)))

        token = call_client.set(replace(client, log=log, ask=ask))
        try:
            yield
        finally:
            call_client.reset(token)

    def _masked(self, raw: Callable[[], JSON]) -> JSON:
        masked: JSON = self._mask.within(raw())
        return masked

    def _tool(self, tool: Tool) -> Tool:
        texts = [tool.description, tool.parameters, tool.annotations, tool.extra]
        if (masked := self._mask.within(texts)) is texts:
            return tool
        description, parameters, annotations, extra = masked
        return replace(
            tool, description=description, parameters=parameters, annotations=annotations, extra=extra
        )


class TransformedSource(StatusTransformer):
    """`inner` seen through `include`, `exclude`, `rename`, `prefix`, `description` and `timeout`.

    All of them go by the names that the server itself gives its tools.
    """

    def __init__(self, inner: ToolSource, config: ServerConfig) -> None:
        super().__init__(inner)
        self._config = config

    def call(
        self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None
    ) -> Coroutine[Any, Any, ToolResult]:
        """Run the inner tool."""
        return self.inner.call(tool.handle, arguments, on_progress)

    def _transform(self, status: SourceStatus) -> SourceStatus:
        tools = tuple(self._tool(tool) for tool in status.tools if self._is_included(tool.name))
        unmatched = self._unmatched([tool.name for tool in status.tools]) if status.state == "ready" else ()
        return replace(status, tools=tools, warnings=(*status.warnings, *unmatched))

    def _is_included(self, name: str) -> bool:
        included = not self._config.include or _matches(name, self._config.include)
        return included and not _matches(name, self._config.exclude)

    def _tool(self, tool: Tool) -> Tool:
        return replace(
            tool,
            name=self._config.rename.get(tool.name) or self._config.prefix + tool.name,
            description=self._config.description.get(tool.name, tool.description),
            timeout=self._config.timeout or tool.timeout,
            handle=tool,
        )

    def _unmatched(self, names: list[str]) -> Iterator[str]:
        """Sentences about what in the entry fits no tool: most of it is misspelt."""
        for key in ("include", "exclude"):
            for glob in getattr(self._config, key):
                if not any(fnmatchcase(name, glob) for name in names):
                    yield f"{key}: {glob!r} fits no tool of this server"
        for key in ("rename", "description"):
            for name in getattr(self._config, key):
                if name not in names:
                    yield f"{key}: there is no tool {name!r} on this server"


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


class ListedSource(SourceWrapper):
    """`inner` with exactly the tools that a client was told of earlier. A call of one that is gone is an error."""

    def __init__(self, inner: ToolSource, listed: Sequence[Tool]) -> None:
        super().__init__(inner)
        now = {tool.name: tool for tool in inner.status.tools}
        self._status = replace(
            inner.status, tools=tuple(_as_listed(tool, now.get(tool.name)) for tool in listed)
        )

    @property
    def status(self) -> SourceStatus:
        """The inner status of the moment in which the request began, with the listed tools."""
        return self._status

    async def call(self, tool: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run the inner tool of this name."""
        if tool.handle is None:
            return ToolResult(text=f"the server has no tool {tool.name!r} any more", is_error=True)
        return await self.inner.call(tool.handle, arguments, on_progress)


def _as_listed(listed: Tool, now: Tool | None) -> Tool:
    if now is None:
        return listed
    return replace(now, description=listed.description, parameters=listed.parameters, handle=now)
