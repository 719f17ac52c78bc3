"""GET /openapi.json and POST /tools/{name}, each for a profile too below /tools/<profile>/; GET /docs."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any

import anyio
import anyio.to_thread
from starlette.types import Receive, Scope, Send

from toolway.access.policy import Policy
from toolway.api.rest.document import openapi_document
from toolway.dialects import REST
from toolway.errors import InvalidRequest, MethodNotAllowed, NotFound
from toolway.schema.arguments import faults, repair_arguments, without_unset_nulls
from toolway.server.admission import call_slot
from toolway.server.asgi import ClientGone, parse_object, read_body, send_whole
from toolway.server.caller import caller_of
from toolway.server.cancellation import cancel_on_disconnect
from toolway.server.envelopes import PROBLEM, problem, send_error
from toolway.settings.settings import Settings
from toolway.tools.direct_tools import DirectTools
from toolway.tools.names import hint
from toolway.tools.profiles import narrowed
from toolway.types import JSON, JSON_TYPE, Caller, Selection, Tool, ToolResult
from toolway.wire.lenient_json import dumps, loads_exact

ROOT = REST.path
DOCUMENT = "openapi.json"


class RestTools:
    """The service as an ASGI app. Errors are problems (RFC 9457). `has_keys`: whether clients need one now."""

    def __init__(
        self, direct_tools: DirectTools, settings: Settings, policy: Policy, has_keys: Callable[[], bool]
    ) -> None:
        self._direct_tools = direct_tools
        self._policy = policy
        self._settings = settings
        self._has_keys = has_keys
        self._document_limiter = anyio.CapacityLimiter(1)
        """One document is made at a time: of many tools it takes a thread a while."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._answer(scope, receive, send)
        except InvalidRequest as error:
            await send_error(scope, send, error)
        except ClientGone:
            return

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = caller_of(scope, self._settings.upstream)
        selection = caller.selection
        parts = scope["path"].removeprefix(ROOT).strip("/").split("/")
        *profile, name = parts
        if len(profile) > 1:
            raise NotFound(f"There is nothing at {scope['path'][:200]}; a tool is at /tools/NAME.")
        if profile:
            selection = narrowed(
                selection, profile[0], self._settings.tools.profiles, self._direct_tools.all_tools
            )
        if name != DOCUMENT:
            _allow(scope, "POST")
            await self._call(scope, receive, send, name, replace(caller, selection=selection))
            return
        _allow(scope, "GET", "HEAD")
        root = "/".join([ROOT, *profile]) if scope["path"].startswith(ROOT) else ""
        document = partial(
            openapi_document,
            await self._direct_tools.tools(selection),
            profile="".join(profile),
            root=root,
            paths="" if root else ROOT,
            has_keys=self._has_keys(),
            toolway=self._direct_tools.catalog.name,
        )
        content = await anyio.to_thread.run_sync(
            document, abandon_on_cancel=True, limiter=self._document_limiter
        )
        await send_whole(send, 200, content, [JSON_TYPE, (b"cache-control", b"no-cache")])

    async def _call(self, scope: Scope, receive: Receive, send: Send, name: str, caller: Caller) -> None:
        gate = self._policy.gate(caller, dialect=REST.name)
        body = await read_body(scope, receive, self._settings.server.max_body_bytes)
        arguments = parse_object(body) if body.strip() else {}

        async def call() -> None:
            async with call_slot(scope):
                result = await self._direct_tools.call(
                    name, body.decode() or "{}", caller.selection, gate=gate
                )
            if result is None:
                await _send_problem(send, await self._unknown(name, caller.selection))
            elif result.is_error:
                tools = await self._direct_tools.tools(caller.selection)
                await _send_problem(send, _problem(name, result, tools, arguments))
            else:
                media_type, content = http_body(result)
                kind = (b"content-type", media_type.encode())
                await send_whole(send, 200, content, [kind, (b"x-content-type-options", b"nosniff")])

        await cancel_on_disconnect(scope, receive, call)

    async def _unknown(self, name: str, selection: Selection) -> JSON:
        tools, untried = await self._direct_tools.tools(selection), self._direct_tools.untried(selection)
        message = f"There is no tool {name[:100]!r} here. {hint(name, tools, untried)}".rstrip()
        return problem(503 if untried else 404, message)


def _allow(scope: Scope, *methods: str) -> None:
    if scope["method"] not in methods:
        raise MethodNotAllowed(scope["method"], scope["path"], methods)


def _problem(name: str, result: ToolResult, tools: Mapping[str, Tool], arguments: JSON) -> JSON:
    status = {"arguments": 422, "timeout": 504, "denied": 403}.get(result.failure, 502)
    more: JSON = {}
    if status == 422 and name in tools:
        tool = tools[name]
        tried = repair_arguments(tool, without_unset_nulls(tool, arguments))
        more["errors"] = [{"pointer": _pointer(path), "detail": text} for path, text in faults(tool, tried)]
    return problem(status, result.text, tool=name, **more)


def _pointer(path: list[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


async def _send_problem(send: Send, body: JSON) -> None:
    await send_whole(send, body["status"], dumps(body), [PROBLEM.content_type])


class DocsPage:
    """GET /docs: a page that shows the document and calls its tools; nothing in it comes from elsewhere."""

    def __init__(self) -> None:
        page = files("toolway.api.rest").joinpath("docs.html").read_bytes()
        script, style = _inside(page, b"script"), _inside(page, b"style")
        policy = (
            f"default-src 'none'; connect-src 'self'; script-src '{script}'; style-src '{style}'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._page = page
        self._headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the page."""
        await send_whole(send, 200, self._page, self._headers)


def _inside(page: bytes, element: bytes) -> str:
    """The hash by which a content security policy allows an element of the page."""
    content = page.partition(b"<%b>" % element)[2].partition(b"</%b>" % element)[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


_JSON = "application/json"

_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


def http_body(result: ToolResult) -> tuple[str, bytes]:
    """(media type, body) of a result that is no error, in the shape that mcpo's clients know.

    Structured content is the body where there is any. One block of content is the body by itself, several are a list; a
    text that is JSON is that JSON, an image by itself its bytes, in a list a `data:` URI.
    """
    raw = result.raw() if result.raw is not None else {}
    if raw.get("structuredContent") is not None:
        return _JSON, dumps(raw["structuredContent"])
    content = raw.get("content") if result.raw is not None else _content(result)
    blocks = content if isinstance(content, list) else [content]
    if len(blocks) == 1:
        return _only(blocks[0])
    return _JSON, dumps([_value(block) for block in blocks])


def _content(result: ToolResult) -> list[JSON]:
    images = [{"type": "image", "mimeType": i.media_type, "data": i.data} for i in result.images]
    return [{"type": "text", "text": result.text}, *images]


def _only(block: Any) -> tuple[str, bytes]:
    if isinstance(block, dict) and block.get("type") in ("image", "audio"):
        media_type, data = _data_of(block)
        try:
            return media_type, base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            pass
    text = _text(block)
    if text is not None and _is_json(text):
        return _JSON, text.encode()  # its numbers as they are written
    return _JSON, dumps(_value(block))


def _value(block: Any) -> Any:
    if (text := _text(block)) is not None:
        return loads_exact(text) if _is_json(text) else text
    kind, resource = (block.get("type"), block.get("resource")) if isinstance(block, dict) else (None, None)
    match kind, resource:
        case "image" | "audio", _:
            return _data_uri(*_data_of(block))
        case "resource", {"text": str(text)}:
            return text
        case "resource", {"blob": str(blob), **rest}:
            return _data_uri(_media_type(rest.get("mimeType")), blob)
    return block


def _text(block: Any) -> str | None:
    text = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _is_json(text: str) -> bool:
    try:
        loads_exact(text)
    except ValueError:
        return False
    return True


def _data_of(block: JSON) -> tuple[str, str]:
    data = block.get("data")
    return _media_type(block.get("mimeType")), "".join(data.split()) if isinstance(data, str) else ""


def _media_type(value: Any) -> str:
    fits = isinstance(value, str) and _MEDIA_TYPE.fullmatch(value)
    return value if fits and not value.startswith(("text/html", "image/svg")) else "application/octet-stream"


def _data_uri(media_type: str, data: str) -> str:
    return f"data:{media_type};base64,{data}"
