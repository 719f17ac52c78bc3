"""One connection to one MCP server, of either era: requests out as plain JSON, polite answers to the server's.

It stands on the SDK's dispatcher, but reads the results itself: `ClientSession` validates each against its models,
so that one tool with a sloppy schema, or one content block of an unknown kind, costs the whole answer. The
`mcp` SDK is loaded with this module, so nothing imports it before it is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    CONNECTION_CLOSED,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    LOG_LEVEL_META_KEY,
    METHOD_NOT_FOUND,
    PROTOCOL_VERSION_META_KEY,
    UNSUPPORTED_PROTOCOL_VERSION,
    JSONRPCError,
    JSONRPCRequest,
    JSONRPCResponse,
)
from mcp_types.version import (
    HANDSHAKE_PROTOCOL_VERSIONS,
    LATEST_HANDSHAKE_VERSION,
    LATEST_MODERN_VERSION,
    MODERN_PROTOCOL_VERSIONS,
)

from toolway import __version__
from toolway.errors import ToolwayError
from toolway.settings.mcp_server import Era
from toolway.tools.mcp.errors import LostError, RpcError
from toolway.tools.mcp.inbound import TOOLS_CHANGED, InboundFilter
from toolway.tools.mcp.messages import RpcResponse, correlated
from toolway.tools.mcp.options import Sampler, ServerLog
from toolway.tools.mcp.results import (
    Handle,
    resource_list,
    resource_result,
    tool_result,
)
from toolway.tools.mcp.sdk import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    CallOptions,
    DispatchContext,
    JSONRPCDispatcher,
    ProgressFnT,
    ReadStream,
    SessionMessage,
    TransportContext,
    WriteStream,
    encode_header_value,
    inject_trace_context,
    mcp_param_headers,
)
from toolway.types import (
    JSON,
    CallClient,
    ClientRequestFailed,
    OnProgress,
    Progress,
    ToolResult,
    call_client,
)

if TYPE_CHECKING:
    from toolway.tools.mcp.posts import Posts

CLIENT_INFO = {"name": "toolway", "version": __version__}
CANCEL_SECONDS = 1.0
"""How long a call that was cancelled waits until its server is told."""

PROBE_TIMEOUT = 5.0
"""Seconds that `server/discover` may take before the server is taken for an old one."""

LISTEN_ID = "listen-1"
MAX_PAGES = 200
MAX_ITEMS = 10_000
MAX_INPUT_ROUNDS = 3

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "notice": logging.INFO, "warning": logging.WARNING}


class Session:
    """Speaks with one server. `closed` is set when it has gone, `tools_changed` when its tools changed.

    `is_shared`: all answers come on one stream, so that only their ids say which request they end. With `posts` calls
    of tools need no stream.
    """

    def __init__(
        self,
        read: ReadStream[SessionMessage | Exception],
        write: WriteStream[SessionMessage],
        *,
        log: ServerLog,
        sampler: Sampler | None = None,
        asks_clients: bool = False,
        is_shared: bool = True,
        posts: Posts | None = None,
    ) -> None:
        self.closed = anyio.Event()
        self.tools_changed = anyio.Event()
        self.context_changed = anyio.Event()
        """Set when its prompts or its resources changed."""
        self.changes = 0
        """How often the server said that its tools changed."""
        self.changed_again = anyio.Event()
        """Set at the next time; then there is another one."""
        self.version: str | None = None
        self.capabilities: JSON = {}
        self.instructions: str | None = None
        self._sampler = sampler
        self._offers: JSON = {"sampling": {}} if sampler else {}
        self._at_start: JSON = {"elicitation": {"form": {}, "url": {}}} if asks_clients else {}
        """What is offered to servers that hear of it once only: whether the client of a call can is seen then."""
        self._log = log
        self._open: dict[int, str] = {}
        self._clients: dict[int, CallClient] = {}
        self._next_id = 0
        self._posts = posts
        self._posting: set[anyio.CancelScope] = set()
        """What is under way by them; it ends with the connection."""
        inbound = InboundFilter(
            read,
            changed=self._list_changed,
            ended=self.closed.set,
            dropped=partial(log.drop, 0),
            answered=partial(self._correlated, is_shared=is_shared),
        )
        self._dispatcher: JSONRPCDispatcher[TransportContext] = JSONRPCDispatcher(inbound, write)

    @property
    def offered(self) -> frozenset[str]:
        """What the server has besides tools."""
        return frozenset({"prompts", "resources", "completions"} & self.capabilities.keys())

    @property
    def announced_lists(self) -> frozenset[str]:
        """The lists of whose changes it tells."""
        kinds = {kind: self.capabilities.get(kind) for kind in ("tools", "prompts", "resources")}
        return frozenset(
            kind
            for kind, given in kinds.items()
            if isinstance(given, dict) and given.get("listChanged") is True
        )

    @property
    def modern(self) -> bool:
        """Whether the server speaks 2026-07-28 or newer."""
        return self.version in MODERN_PROTOCOL_VERSIONS

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Read what the server says until it is gone; requests in flight then end with `LostError`."""
        try:
            await self._dispatcher.run(self._on_request, self._on_notify, task_status=task_status)
        finally:
            self.closed.set()
            for scope in self._posting:
                scope.cancel()

    # -- requests

    async def request(
        self,
        method: str,
        params: JSON | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
        within: float | None = None,
        request_id: str | None = None,
    ) -> JSON:
        """Send one request; its result as the server wrote it. A cancelled caller is told to the server.

        Raises:
            RpcError: The answer is an error, or HTTP said no.
            LostError: The connection ended before the answer.
        """
        if self.closed.is_set():
            raise LostError(sent=False)
        options: CallOptions = {}
        if within is not None:
            options["timeout"] = within
        if request_id is not None:
            options["request_id"] = request_id
        if on_progress is not None:
            options["on_progress"] = _progress(on_progress)
        if method in ("initialize", "server/discover"):
            options["cancel_on_abandon"] = False  # forbidden by the specification
        params, options["headers"] = self._with_protocol_fields(method, params or {}, headers or {})
        with self._numbered(method, options):
            if self._posts and method == "tools/call" and within is None:
                return await self._post(self._posts, method, params, options, on_progress)
            try:
                return await self._dispatcher.send_raw_request(method, params, options)
            except MCPError as error:
                raise self._translated(error) from None

    async def _post(
        self, posts: Posts, method: str, params: JSON, options: CallOptions, on_progress: OnProgress | None
    ) -> JSON:
        number = options["request_id"]
        meta = {**params.get("_meta", {}), **({"progressToken": number} if on_progress else {})}
        inject_trace_context(meta)
        params = {**params, "_meta": meta} if meta else params
        request = JSONRPCRequest(jsonrpc="2.0", id=number, method=method, params=params)
        answer = None
        with anyio.CancelScope() as scope:
            self._posting.add(scope)
            try:
                answer = await posts.ask(request, options.get("headers") or {}, _read_progress(on_progress))
            except anyio.get_cancelled_exc_class():
                await self._cancel(number)
                raise
            except Exception:
                if not self.closed.is_set():
                    raise
            finally:
                self._posting.discard(scope)
        if answer is None:
            raise LostError()
        if isinstance(answer, JSONRPCError):
            raise self._translated(MCPError(answer.error.code, answer.error.message, answer.error.data))
        return answer.result

    async def _cancel(self, number: int | str) -> None:
        """Tell a server of an older version that nobody waits for a call; to one of 2026-07-28 the closing says it."""
        if self.closed.is_set() or self.modern:
            return
        with anyio.move_on_after(CANCEL_SECONDS, shield=True):
            params = {"requestId": number, "reason": "caller cancelled"}
            await self._dispatcher.notify("notifications/cancelled", params)

    @contextmanager
    def _numbered(self, method: str, options: CallOptions) -> Iterator[None]:
        """Give the request its id, unless it has one, and know for as long as it is open what it is."""
        if "request_id" in options:
            yield
            return
        self._next_id += 1
        options["request_id"] = number = self._next_id
        self._open[number] = method
        if client := call_client.get():
            self._clients[number] = client
        try:
            yield
        finally:
            del self._open[number]
            self._clients.pop(number, None)

    def _correlated(self, answer: RpcResponse, *, is_shared: bool) -> RpcResponse | None:
        """The answer under the id of the request that it ends; None if it ends none.

        A server that could not read a request cannot name it: its error ends the one that is open. A result under a
        foreign id is nobody's, but the end of a call all the same.
        """
        text = str(answer.id)
        was_given = text.isdecimal() and int(text[:20]) <= self._next_id
        if was_given or text == LISTEN_ID:
            return answer if text == LISTEN_ID or int(text) in self._open else None
        if not is_shared or len(self._open) != 1:
            return None
        ((number, method),) = self._open.items()
        if isinstance(answer, JSONRPCResponse) and method != "tools/call":
            return None  # noise at the start
        return correlated(answer, number)

    def _translated(self, error: MCPError) -> Exception:
        if error.code == CONNECTION_CLOSED and (self.closed.is_set() or error.message == "Connection closed"):
            return LostError()
        return RpcError(error.code, error.message, error.data)

    def _with_protocol_fields(
        self, method: str, params: JSON, headers: Mapping[str, str]
    ) -> tuple[JSON, dict[str, str]]:
        version = LATEST_MODERN_VERSION if method == "server/discover" else self.version
        if version is None:
            return params, {}
        if version not in MODERN_PROTOCOL_VERSIONS:
            return params, {MCP_PROTOCOL_VERSION_HEADER: version}
        client = call_client.get()
        meta = {
            PROTOCOL_VERSION_META_KEY: version,
            CLIENT_INFO_META_KEY: CLIENT_INFO,
            CLIENT_CAPABILITIES_META_KEY: {**self._offers, **(client.offers if client else {})},
        }
        if client and client.log_level:
            meta[LOG_LEVEL_META_KEY] = client.log_level
        stamp = {MCP_PROTOCOL_VERSION_HEADER: version, MCP_METHOD_HEADER: method}
        name = params.get(NAME_BEARING_METHODS.get(method, ""))
        if isinstance(name, str):
            stamp[MCP_NAME_HEADER] = encode_header_value(name)
        return {**params, "_meta": {**params.get("_meta", {}), **meta}}, {**stamp, **headers}

    # -- the beginning

    async def negotiate(self, era: Era) -> None:
        """Agree on a protocol version: the newest first, the handshake for whoever does not know it.

        Legacy is the `initialize` handshake, up to 2025-11-25; modern is stateless, since 2026-07-28.

        Raises:
            RpcError: The server speaks no version that Toolway speaks, or wants credentials.
            LostError: The server ended; under "auto" it may be one that cannot bear the question.
        """
        if era == "legacy":
            return await self._initialize()
        if era == "modern":
            return await self._discover(within=None)
        try:
            return await self._discover()
        except RpcError as error:
            if error.needs_auth or error.unsent:
                raise
        try:
            return await self._initialize()
        except RpcError as error:
            # A slow starter may take the late question as agreed, and then wants no handshake.
            if error.code != UNSUPPORTED_PROTOCOL_VERSION:
                raise
        return await self._discover()

    async def _discover(self, within: float | None = PROBE_TIMEOUT) -> None:
        try:
            result = await self.request("server/discover", within=within)
        except RpcError as error:
            if error.code != UNSUPPORTED_PROTOCOL_VERSION or not _supports_modern(error):
                raise
            result = await self.request(
                "server/discover", within=within
            )  # it names the version it was asked for
        offered = result.get("supportedVersions")
        mutual = [version for version in MODERN_PROTOCOL_VERSIONS if version in (offered or ())]
        if not mutual:
            raise RpcError(UNSUPPORTED_PROTOCOL_VERSION, f"the server speaks only {offered}")
        self._agreed(mutual[-1], result)

    async def _initialize(self) -> None:
        hello = {
            "protocolVersion": LATEST_HANDSHAKE_VERSION,
            "capabilities": {**self._at_start, **self._offers},
            "clientInfo": CLIENT_INFO,
        }
        try:
            result = await self.request("initialize", hello)
        except RpcError as error:
            other = _version_named_in(error)
            if other is None:
                raise
            result = await self.request("initialize", {**hello, "protocolVersion": other})
        version = result.get("protocolVersion")
        if version not in HANDSHAKE_PROTOCOL_VERSIONS:
            known = ", ".join((*HANDSHAKE_PROTOCOL_VERSIONS, *MODERN_PROTOCOL_VERSIONS))
            raise RpcError(
                INVALID_REQUEST,
                f"the server speaks protocol version {version!r}; Toolway speaks {known}",
            )
        self._agreed(version, result)
        headers = {MCP_PROTOCOL_VERSION_HEADER: str(version)}
        await self._dispatcher.notify("notifications/initialized", None, {"headers": headers})

    def _agreed(self, version: str, result: JSON) -> None:
        capabilities, instructions = result.get("capabilities"), result.get("instructions")
        self.version = version
        self.capabilities = capabilities if isinstance(capabilities, dict) else {}
        self.instructions = instructions if isinstance(instructions, str) else None

    # -- tools

    async def list_all(self, method: str, key: str) -> tuple[list[Any], JSON]:
        """Every page of a list: its items, and the last page. A cursor that comes back ends it."""
        items: list[Any] = []
        seen: set[str] = set()
        page = await self.request(method)
        while True:
            found = page.get(key)
            items.extend(found if isinstance(found, list) else ())
            cursor = page.get("nextCursor")
            if (
                not isinstance(cursor, str)
                or cursor in seen
                or len(seen) >= MAX_PAGES
                or len(items) >= MAX_ITEMS
            ):
                return items[:MAX_ITEMS], page
            seen.add(cursor)
            page = await self.request(method, {"cursor": cursor})

    async def call(self, handle: Handle, arguments: JSON, on_progress: OnProgress | None) -> ToolResult:
        """Run one tool of a listing. A server that asks back is declined.

        Raises:
            RpcError: The answer is an error, or a request for input that cannot be given.
            LostError: The connection ended before the answer.
        """
        if handle.method == "resources/list":
            return await self._list_resources()
        if handle.method == "resources/read":
            return resource_result(await self.interact("resources/read", {"uri": arguments.get("uri")}))
        headers = mcp_param_headers(handle.headers, arguments) if self.modern else {}
        params = {"name": handle.name, "arguments": arguments}
        raw = await self.interact("tools/call", params, headers=headers, on_progress=on_progress)
        return tool_result(raw)

    async def _list_resources(self) -> ToolResult:
        resources, _ = await self.list_all("resources/list", "resources")
        try:
            templates, _ = await self.list_all("resources/templates/list", "resourceTemplates")
        except RpcError:
            templates = []  # many servers know only the plain list
        return resource_list(resources, templates)

    async def interact(self, method: str, params: JSON, **options: Any) -> JSON:
        """A request that the server may answer with questions (2026-07-28: `input_required`)."""
        asked = params
        for _ in range(MAX_INPUT_ROUNDS):
            result = await self.request(method, asked, **options)
            if result.get("resultType", "complete") != "input_required":
                return result
            asked = {**params, **await self._input(result)}
        raise RpcError(-32000, "the tool keeps asking for input that nobody here can give")

    async def _input(self, result: JSON) -> JSON:
        requests = result.get("inputRequests")
        asked = {key: item for key, item in (requests or {}).items() if isinstance(item, dict)}
        client = call_client.get()
        answers: JSON = {}
        try:
            if client and asked and all(_can(client, item) for item in asked.values()):
                from_client = await client.ask(asked)
                answers = {key: from_client[key] for key in asked if key in from_client}
            else:
                for key, item in asked.items():
                    answers[key] = await self._answer(item.get("method"), item.get("params"), client)
        except ClientRequestFailed as error:
            raise RpcError(INVALID_REQUEST, str(error)) from None
        except MCPError as error:
            raise RpcError(error.code, error.message) from None
        state = {} if result.get("requestState") is None else {"requestState": result["requestState"]}
        return {"inputResponses": answers, **state}

    async def listen(self) -> None:
        """Ask a modern server to say when its tools change; returns when it says no more."""
        wanted = {"notifications": {f"{kind}ListChanged": True for kind in sorted(self.announced_lists)}}
        await self.request("subscriptions/listen", wanted, request_id=LISTEN_ID)

    # -- what the server asks and tells

    async def _on_request(
        self, ctx: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        return await self._answer(method, params, self._client_behind(ctx))

    def _client_behind(self, ctx: DispatchContext[TransportContext]) -> CallClient | None:
        """The client of the call that a server's message is about: of its stream, else of the only call there is."""
        number = getattr(ctx.message_metadata, "related_request_id", None)
        if number is None and len(self._open) == 1:
            number = next(iter(self._open))
        return self._clients.get(number) if isinstance(number, int) else None

    async def _answer(self, method: Any, params: Mapping[str, Any] | None, client: CallClient | None) -> JSON:
        request = {"method": method, "params": dict(params or {})}
        if client and _can(client, request):
            try:
                answer: JSON = (await client.ask({QUESTION: request}))[QUESTION]
            except ClientRequestFailed as error:
                raise MCPError(INVALID_REQUEST, str(error)) from None
            except KeyError:
                raise MCPError(INVALID_REQUEST, f"the client said nothing to {method}") from None
            return answer
        match method:
            case "ping":
                return {}
            case "roots/list":
                return {"roots": []}
            case "elicitation/create":
                return {"action": "decline"}
            case "sampling/createMessage" if self._sampler is not None:
                return await self._sample(self._sampler, dict(params or {}))
            case "sampling/createMessage":
                raise MCPError(
                    METHOD_NOT_FOUND, 'the server asked for a model, and its entry lacks "sampling": true'
                )
        raise MCPError(METHOD_NOT_FOUND, f"Toolway does not answer {method}")

    async def _sample(self, sampler: Sampler, params: JSON) -> JSON:
        try:
            return await sampler(params)
        except ToolwayError as error:
            raise MCPError(INTERNAL_ERROR, error.message) from None

    async def _on_notify(
        self, ctx: DispatchContext[TransportContext], method: str, params: Mapping[str, Any] | None
    ) -> None:
        if method == "notifications/subscriptions/acknowledged":
            self.tools_changed.set()  # between the list and this moment nobody would have told
        if method == "notifications/message" and params:
            level = _LEVELS.get(str(params.get("level")), logging.ERROR)
            self._log.add(level, str(params.get("data"))[:2000])
            if client := self._client_behind(ctx):
                client.log(dict(params))

    def _list_changed(self, method: str) -> None:
        if method == TOOLS_CHANGED:
            self.changes += 1
            self.tools_changed.set()
            self.changed_again.set()
            self.changed_again = anyio.Event()
        else:
            self.context_changed.set()


QUESTION = "question"
"""The key of a request that has none."""

_CAPABILITIES = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


def _can(client: CallClient, request: JSON) -> bool:
    """Whether a client said that it answers such a request, in that mode."""
    method, params = request.get("method"), request.get("params")
    capability = client.offers.get(_CAPABILITIES.get(str(method), ""))
    if not isinstance(capability, dict):
        return False
    mode = params.get("mode", "form") if isinstance(params, dict) else "form"
    return method != "elicitation/create" or mode in capability or (not capability and mode == "form")


def _supports_modern(error: RpcError) -> bool:
    data = error.data if isinstance(error.data, dict) else {}
    return any(version in str(data.get("supported")) for version in MODERN_PROTOCOL_VERSIONS)


def _version_named_in(error: RpcError) -> str | None:
    """The newest version of the handshake that a server names when it rejects the one it was asked for."""
    data = error.data if isinstance(error.data, dict) else {}
    named = f"{data.get('supported')} {data.get('supportedVersions')} {error.message}"
    older = [v for v in HANDSHAKE_PROTOCOL_VERSIONS if v != LATEST_HANDSHAKE_VERSION and v in named]
    return max(older, default=None)


def _read_progress(report: OnProgress | None) -> Callable[[JSON], None]:
    """Tells of the params of a notification of progress, as far as they are in shape."""

    def read(params: JSON) -> None:
        progress, total, message = (params.get(name) for name in ("progress", "total", "message"))
        if report is None or not isinstance(progress, int | float) or isinstance(progress, bool):
            return
        report(
            Progress(
                progress=float(progress),
                total=float(total) if isinstance(total, int | float) else None,
                message=message if isinstance(message, str) else None,
            )
        )

    return read


def _progress(report: OnProgress) -> ProgressFnT:
    async def relay(progress: float, total: float | None, message: str | None) -> None:
        report(Progress(progress=progress, total=total, message=message))

    return relay
