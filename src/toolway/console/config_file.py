"""The file of the tool servers: read, checked and changed, so that comments survive and no broken edit is saved."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import anyio
import anyio.to_thread

from toolway.console.context import ConsoleContext
from toolway.console.routes import ConsoleRequest, Route
from toolway.errors import ConfigError, Forbidden, InvalidRequest
from toolway.settings.files import locked, write_at_once
from toolway.settings.jsonc import MistakeError, Node, parse, with_member, without_member
from toolway.settings.load import check_servers
from toolway.settings.mcp_json import ROOTS, json_schema, keys_of
from toolway.types import JSON

MAX_FILE = 2**20
NEW = '{\n  "mcpServers": {}\n}\n'
KINDS = ("stdio", "http", "openapi")


class ConfigRoutes:
    """Its routes, and what they answer."""

    def __init__(self, context: ConsoleContext) -> None:
        self._context = context
        self._changing = anyio.Lock()

    def routes(self) -> list[Route]:
        """The routes of the file."""
        return [
            Route(method="GET", path="/config", handler=self._read,
                  summary="The text of the file of the tool servers, its entries, and their schema."),
            Route(method="PUT", path="/config", handler=self._write,
                  summary="Replace the text, if it is without mistakes and nobody changed it meanwhile.",
                  body={"text": {"type": "string"}, "digest": {"type": "string"}}),
            Route(method="PUT", path="/config/servers/{}", handler=self._set,
                  summary="Add a server or replace its entry; the rest of the file stays as it is.",
                  body={"entry": {"type": "object"}, "digest": {"type": "string"}}),
            Route(method="DELETE", path="/config/servers/{}", handler=self._remove,
                  summary="Take a server out of the file.",
                  body={"digest": {"type": "string"}}),
        ]  # fmt: skip

    async def _read(self, _: ConsoleRequest) -> JSON:
        self._check_right()
        text = self._text()
        schema = await anyio.to_thread.run_sync(_schema)
        kinds = {
            kind: [key for key in dict.fromkeys(keys_of(kind)) if key in _properties(schema)]
            for kind in KINDS
        }
        return {
            "path": str(self._context.config.path),
            "exists": text is not None,
            "text": text if text is not None else NEW,
            "digest": _digest(text),
            "entries": _entries(text or NEW),
            "schema": schema,
            "kinds": kinds,
            "is_json": self._is_json(),
        }

    async def _write(self, request: ConsoleRequest) -> JSON:
        body = await request.body(2 * MAX_FILE)
        text = body.get("text")
        if not isinstance(text, str) or len(text) > MAX_FILE:
            raise InvalidRequest("text must be the text of the file, at most 1 MiB of it.", param="text")
        return await self._save(request, body, lambda _: text)

    async def _set(self, request: ConsoleRequest) -> JSON:
        body, label = await request.body(), request.names[0]
        entry = body.get("entry")
        if not isinstance(entry, dict) or not label.strip():
            raise InvalidRequest("entry must be an object, and the server needs a name.", param="entry")
        if _CONTROL.search(label):
            raise InvalidRequest("The name of a server may hold no control characters.")

        def change(text: str) -> str:
            if body.get("new") is True and label in _entries(text):
                raise InvalidRequest(
                    f"There is a server {label[:100]!r} already; edit that, or choose another name."
                )
            return with_member(text, [_root_of(text, label), label], entry, indented=True)

        return await self._save(request, body, change, label)

    async def _remove(self, request: ConsoleRequest) -> JSON:
        body, label = await request.body(), request.names[0]

        def change(text: str) -> str:
            return without_member(text, [_root_of(text, label), label])

        return await self._save(request, body, change, label)

    async def _save(
        self, request: ConsoleRequest, body: JSON, change: Callable[[str], str], label: str = ""
    ) -> JSON:
        self._check_right()
        if not self._is_json() and "text" not in body:
            raise InvalidRequest("Entries of a TOML file can only be changed in its text.")
        async with self._changing:
            text = await anyio.to_thread.run_sync(self._change, body.get("digest"), change)
            self._context.config.reload()
        self._context.note_change(
            "config.changed", request.session.by, label or str(self._context.config.path)
        )
        return {"digest": _digest(text), "text": text}

    def _change(self, digest: Any, change: Callable[[str], str]) -> str:
        """Change the file, if it has this digest, while no command does; its new text. Raises InvalidRequest."""
        path = self._context.config.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path):
                now = self._text()
                if digest != _digest(now):
                    raise InvalidRequest(
                        "The file was changed meanwhile, by somebody else; load it again.",
                        code="config_changed",
                    )
                text = change(now if now is not None else NEW)
                check_servers(self._context.config.settings, text)
                write_at_once(path, text)
        except MistakeError as mistake:
            raise InvalidRequest(f"line {mistake.line}: {mistake}.", code="config_mistakes") from None
        except ConfigError as error:
            where = f"{path}:"
            raise InvalidRequest(error.message.replace(where, "line "), code="config_mistakes") from None
        except OSError as error:
            raise InvalidRequest(f"The file cannot be written: {error.strerror}.") from None
        return text

    def _check_right(self) -> None:
        if not self._context.settings.console.edit:
            raise Forbidden("TOOLWAY_CONSOLE_EDIT=false: the file is not shown and not changed here.")

    def _is_json(self) -> bool:
        return self._context.config.path.suffix != ".toml"

    def _text(self) -> str | None:
        path = self._context.config.path
        try:
            if path.stat().st_size > MAX_FILE:
                raise InvalidRequest(f"{path} is larger than 1 MiB; change it with an editor.")
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{path} cannot be read: {error}") from None


@cache
def _schema() -> JSON:
    return json_schema()


def _properties(schema: JSON) -> JSON:
    found: JSON = schema["$defs"]["server"]["properties"]
    return found


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def _digest(text: str | None) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32] if text is not None else "none"


def _roots(text: str) -> dict[str, Node]:
    with suppress(MistakeError):
        root = parse(text).value
        if isinstance(root, dict):
            return {key: root[key] for key in ROOTS if key in root and isinstance(root[key].value, dict)}
    return {}


def _root_of(text: str, label: str) -> str:
    """The key under which the file keeps this server, or would keep it."""
    roots = _roots(text)
    return next((key for key, node in roots.items() if label in node.value), next(iter(roots), ROOTS[0]))


def _entries(text: str) -> JSON:
    """The entries as they stand there, by label."""
    return {label: entry.plain() for node in _roots(text).values() for label, entry in node.value.items()}
