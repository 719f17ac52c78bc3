"""`toolway doctor`: try everything once and say in plain words what is wrong and what to do about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio
import orjson

from toolway.access.rules import Rules, unmatched_in_rules, unmatched_patterns
from toolway.access.tokens import TokenVerifier
from toolway.app.state import AppState, judge_size
from toolway.conversation.events import EventStream
from toolway.conversation.message import ChatRequest
from toolway.conversation.tool_calls import read_arguments
from toolway.engine.model_target import USER_AGENT, ModelTarget
from toolway.engine.refused_tools import without_refused_tools
from toolway.engine.request_tools import RequestTools
from toolway.engine.search_policy import SearchPolicy
from toolway.errors import ConfigError, StoreError, UpstreamError
from toolway.net.proxy import Proxy, proxy_for
from toolway.server.process import check_exposure
from toolway.settings.access import AccessConfig, GroupConfig, KeyConfig
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings
from toolway.stores import EntryKind, open_store
from toolway.tools.catalog import Catalog, Snapshot
from toolway.tools.factory import open_sources
from toolway.tools.names import name_some
from toolway.tools.pins import Pins
from toolway.types import JSON, JSON_TYPE, Header, ToolSource, last_error
from toolway.upstream.client import Upstream, credential, proxy_of
from toolway.upstream.model_call import whole_model_call

SERVER_TIMEOUT = 20.0
MODEL_TIMEOUT = 120.0
"""Seconds; a model may have to be loaded first."""

_ADVICE = {
    "connect": "Start it, or correct its address where it is configured (MCP_SERVER_ENDPOINTS or mcp.json).",
    "fetch": "If it wants a key: TOOLWAY_SERVER_<NAME>_TOKEN, or headers in the mcp.json.",
    "start": "Correct the command in the mcp.json, or install what it runs.",
    "initialize": "Open its address: it does not answer as an MCP server does.",
    "list tools": "It does not answer as an MCP server does; its log may say why.",
    "parse": "Its address must lead to a service with an openapi.json, or to the document itself.",
}
"""What to do, by the stage in which a tool server failed."""
_PROGRAM_ADVICE = (
    "Run its command by hand: an MCP server waits in silence, and some need an argument like stdio."
)
"""The same for a program that was started and does not answer."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked. `advice` says what to do when it is not `ok`, or what would be better."""

    check: str
    ok: bool
    detail: str
    advice: str | None = None

    def to_json(self) -> JSON:
        """The finding as JSON."""
        return {"check": self.check, "ok": self.ok, "detail": self.detail, "advice": self.advice}


def examine(config: str | None = None) -> list[Finding]:
    """All findings, in the order of the checks: configuration, model server, tool servers.

    `config` is the mcp.json to read; what is only suspicious in it is a mistake here.
    """
    try:
        settings = load_settings(config=config)
        check_exposure(settings.server, has_keys=settings.access.is_declared)
    except ConfigError as error:
        return [Finding(check="configuration", ok=False, detail=error.message)]
    logging.getLogger("toolway").setLevel(logging.CRITICAL)  # the findings say it better
    return [
        *_configuration(settings),
        *_judge_keys(settings.access),
        *anyio.run(_try_provider, settings.access),
        *anyio.run(_try_store, settings),
        *anyio.run(_try_everything, settings),
    ]


async def judge_running(state: AppState) -> list[Finding]:
    """What is wrong with a Toolway that runs, as far as looking tells; nothing is started or tried for it."""
    settings, catalog = state.settings, state.catalog
    found = [
        Finding(check="configuration", ok=False, detail=warning, advice=None) for warning in settings.warnings
    ]
    models, model = await _try_models(state.upstream, settings, [USER_AGENT])
    found.append(models)
    tried = (source for source in catalog.sources if not source.status.is_untried or source.status.warnings)
    found += _judge_sources(tried, settings)
    found += [finding for finding in _judge_names(state.target.fit(catalog.snapshot)) if not finding.ok]
    found += _judge_refused(state.target)
    if models.ok:
        found += await _judge_size(settings, state.target, catalog.snapshot, model)
    if not await state.store.is_ready():
        found.append(Finding(check="store", ok=False, detail="it cannot be reached"))
    return found


def _configuration(settings: Settings) -> list[Finding]:
    number = len(settings.tools.endpoints) + len(settings.tools.servers)
    found = [
        Finding(
            check="configuration",
            ok=not settings.warnings,
            detail="; ".join(settings.warnings) or f"read; tool servers configured: {number}",
        )
    ]
    if not number:
        if disabled := settings.tools.all_disabled:
            found.append(Finding(check="tool servers", ok=False, detail=disabled))
        else:
            advice = "Write an mcp.json, or set MCP_SERVER_ENDPOINTS, for example to http://127.0.0.1:8011."
            found.append(Finding(check="tool servers", ok=False, detail="none are configured", advice=advice))
    return found


def _judge_keys(access: AccessConfig) -> list[Finding]:
    """Nothing to find where the file says nothing of keys."""
    if not access.keys:
        return []
    expired = [key.name for key in access.keys if key.expires is not None and key.expires < time.time()]
    detail = f"{len(access.keys)} in the mcp.json" + (
        f"; expired: {name_some(expired, 5)}" if expired else ""
    )
    advice = "`toolway keys revoke NAME` takes one away." if expired else None
    return [Finding(check="keys", ok=not expired, detail=detail, advice=advice)]


def _judge_patterns(access: AccessConfig, snapshot: Snapshot) -> list[Finding]:
    """Patterns of keys and groups that no tool matches now; nothing to find before all tools are known."""
    found: list[Finding] = []
    if snapshot.unknown:
        return found
    owners: list[GroupConfig | KeyConfig] = [*access.groups, *access.keys]
    for one in owners:
        if idle := unmatched_patterns(one, snapshot.tools):
            detail = f"no tool is meant by {name_some(idle, 5)} ({one.where})"
            advice = "Write names as `toolway tools` shows them, or SERVER.TOOL; * stands for anything."
            found.append(Finding(check=f"tools of {one.name}", ok=False, detail=detail, advice=advice))
    return found


async def _try_provider(access: AccessConfig) -> list[Finding]:
    if access.jwt is None:
        return []
    check = f"identity provider {access.jwt.issuer}"
    if why := await TokenVerifier(access, access.jwt).why_not():
        return [
            Finding(check=check, ok=False, detail=why, advice="Correct the issuer, or name its jwks_uri.")
        ]
    return [Finding(check=check, ok=True, detail="its keys can be read")]


async def _try_store(settings: Settings) -> list[Finding]:
    """Nothing to find where it is in memory."""
    if settings.store.url == "memory:":
        return []
    try:
        async with open_store(
            settings.store.url, ttl=settings.store.ttl, max_bytes=settings.store.max_bytes
        ) as store:
            key = EntryKind("doctor", str).key("")
            await store.add(key, "", ttl=1)
            await store.delete(key)
    except (ConfigError, StoreError) as error:
        return [Finding(check="store", ok=False, detail=error.message)]
    return [Finding(check="store", ok=True, detail=f"{settings.store.url.partition(':')[0]}: can be written")]


async def _try_everything(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    async with (
        Upstream.connect(settings.upstream) as upstream,
        open_sources(settings.tools) as sources,
        Catalog(sources).running() as catalog,
    ):
        target = ModelTarget(settings.upstream, upstream)
        await catalog.wait_until_tried(SERVER_TIMEOUT)
        models, model = await _try_models(upstream, settings)
        found.append(models)
        if models.ok:
            await target.learn()
            found += await _try_chat(upstream, settings, model, target, catalog.snapshot)
        found += _judge_sources(sources, settings)
        found += _judge_pins(settings)
        found += _judge_names(target.fit(catalog.snapshot))
        found += _judge_patterns(settings.access, catalog.snapshot)
        found += _judge_rules(settings, catalog.snapshot)
        found += await _judge_size(settings, target, catalog.snapshot, model)
    return found


async def _try_models(
    upstream: Upstream, settings: Settings, own: Sequence[Header] = ()
) -> tuple[Finding, str | None]:
    proxy = proxy_of(settings.upstream)
    check = f"model server {settings.upstream.base_url}" + (f" through the proxy {proxy}" if proxy else "")
    try:
        async with upstream.request("GET", "/models", headers=[*own, *_headers(settings)]) as answer:
            body = await answer.read(2**24)
    except UpstreamError as error:
        start = "Start it, or set OPENAI_BASE_URL to where it listens (LM Studio: http://localhost:1234/v1)."
        advice = start if "check that it runs" in error.message else None
        return Finding(check=check, ok=False, detail=error.message, advice=advice), None
    if answer.status in (401, 403):
        advice = "Set OPENAI_API_KEY to a key that it takes."
        return Finding(check=check, ok=False, detail=f"it answers {answer.status}", advice=advice), None
    try:
        ids = [model["id"] for model in orjson.loads(body)["data"]]
    except (ValueError, KeyError, TypeError):
        advice = "OPENAI_BASE_URL must point at an OpenAI-compatible API; most end with /v1."
        detail = f"GET /models answers {answer.status}, not a list of models"
        return Finding(check=check, ok=False, detail=detail, advice=advice), None
    if not ids:
        advice = "Load a model in it."
        return Finding(check=check, ok=False, detail="it has no models", advice=advice), None
    return Finding(check=check, ok=True, detail=f"answers; models: {name_some(ids, 5)}"), ids[0]


async def _try_chat(
    upstream: Upstream, settings: Settings, model: str | None, target: ModelTarget, snapshot: Snapshot
) -> list[Finding]:
    """One request with all tools in it: the question is whether the model server takes them."""
    check = f"model {model}"
    question = {"role": "user", "content": "Say hello."}
    body: JSON = {"model": model, "messages": [question], "max_tokens": 32}
    request = ChatRequest.of(body)
    tools = RequestTools(request, snapshot, fit=target.fit)
    await SearchPolicy(settings.tools).apply(
        tools,
        None,
        capabilities=target.capabilities(model),
        most_tools=target.max_tools,
        info=partial(target.infos.get, model, _headers(settings)),
    )
    whole = whole_model_call(upstream, _headers(settings))
    events = EventStream(on_head=target.learn_from)
    call_model = without_refused_tools(whole, tools=tools, target=target, probe=lambda: whole, events=events)
    with anyio.move_on_after(MODEL_TIMEOUT):
        try:
            message = await call_model(tools.put_into(request), events.emit, tools.is_clients)
        except UpstreamError as error:
            return [Finding(check=check, ok=False, detail=f"a chat request failed: {error.message}")]
        calls = [call for call in message.tool_calls if read_arguments(call.arguments) is not None]
        searched = f" ({len(tools.reachable)} are searched)" if tools.search else ""
        took = f"answers a chat request with {len(tools.tools)} tools{searched}"
        took += f", their schemas as for {target.schema_target}"
        took += f" (it called {calls[0].name})" if calls else ""
        return [Finding(check=check, ok=True, detail=took), *_judge_refused(target)]
    detail = f"no answer to a chat request within {MODEL_TIMEOUT:g} seconds"
    return [Finding(check=check, ok=False, detail=detail)]


def _judge_refused(target: ModelTarget) -> list[Finding]:
    advice = "It is left out of requests. Mend its schema, or set TOOLWAY_SCHEMA_PROFILE."
    return [
        Finding(
            check=f"tool {tool.name} of {tool.server}",
            ok=False,
            detail=f"the model server refuses it: {tool.reason}",
            advice=advice,
        )
        for tool in target.refused
    ]


def _proxies(settings: Settings) -> dict[str, Proxy]:
    """The proxies on the way to tool servers, by the servers' labels."""
    urls = {endpoint.label: endpoint.spec or endpoint.url for endpoint in settings.tools.endpoints}
    urls |= {server.label: str(getattr(server, "url", "")) for server in settings.tools.servers}
    found: dict[str, Proxy] = {}
    for label, url in urls.items():
        with suppress(ValueError):
            if url.startswith(("http://", "https://")) and (proxy := proxy_for(url)):
                found[label] = proxy
    return found


def _judge_sources(sources: Iterable[ToolSource], settings: Settings) -> list[Finding]:
    proxies = _proxies(settings)
    programs = {server.label for server in settings.tools.servers if server.type == "stdio"}
    return [
        _judge_source(source, proxies.get(source.label), is_program=source.label in programs)
        for source in sources
    ]


def _judge_source(source: ToolSource, proxy: Proxy | None, *, is_program: bool) -> Finding:
    status = source.status
    check = f"tool server {source.label}" + (f" through the proxy {proxy}" if proxy else "")
    if status.is_usable:
        names = [tool.name for tool in status.tools]
        resting = "; started when it is called" if status.state == "stopped" else ""
        count = f"{len(names)} tool{'s'[: len(names) != 1]}"
        detail = f"{count} ({status.protocol}{resting}): {name_some(names, 10)}"
        advice = "; ".join(status.warnings) or None
        return Finding(
            check=check, ok=bool(names), detail=detail if names else "it has no tools", advice=advice
        )
    if status.state == "starting" and not status.error:
        waited = "it does not answer" if status.warnings else f"no answer within {SERVER_TIMEOUT:g} seconds"
        detail = "; ".join([waited, *status.warnings])
        advice = _PROGRAM_ADVICE if is_program else "Is it the right address and port?"
        return Finding(check=check, ok=False, detail=detail, advice=advice)
    stage = status.error_stage or ""
    advice = _PROGRAM_ADVICE if is_program and stage == "initialize" else _ADVICE.get(stage)
    return Finding(check=check, ok=False, detail=f"{status.state}: {last_error(status)}", advice=advice)


def _judge_rules(settings: Settings, snapshot: Snapshot) -> list[Finding]:
    rules = Rules(settings.access.rules, settings.labels)
    if not rules.rules:
        return []
    problems = [*rules.warnings, *unmatched_in_rules(settings, rules, snapshot.tools, snapshot.unknown)]
    count = len(rules.rules)
    good = f"{count} rule{'s'[: count != 1]}; toolway policy explain says what becomes of a call"
    if snapshot.unknown:
        good += f"; whether they fit the tools of {', '.join(snapshot.unknown)} is not known before it is up"
    return [Finding(check="rules", ok=not problems, detail="; ".join(problems) or good)]


def _judge_pins(settings: Settings) -> list[Finding]:
    """Nothing to find where tools need no pins."""
    if not settings.tools.pins:
        return []
    pins = Pins(settings.tools)
    return [Finding(check="pins", ok=not pins.trouble, detail=pins.trouble or f"{pins.path} can be read")]


def _judge_names(snapshot: Snapshot) -> list[Finding]:
    found = []
    renamed = [
        f"{tool.name} of {tool.server} is {name}"
        for name, tool in snapshot.tools.items()
        if name != tool.name
    ]
    if renamed:
        detail = f"changed to be legal and unique: {name_some(renamed, 5, separator='; ')}"
        found.append(Finding(check="names", ok=True, detail=detail))
    for name, reason in snapshot.left_out.items():
        detail = f"its schema cannot be used: {reason}"
        found.append(
            Finding(check=f"tool {name}", ok=False, detail=detail, advice="It is left out of requests.")
        )
    return found


async def _judge_size(
    settings: Settings, target: ModelTarget, snapshot: Snapshot, model: str | None
) -> list[Finding]:
    """Nothing to find when the tools leave room for a conversation."""
    size = await judge_size(settings, target, snapshot, model or "")
    if size is None:
        return []
    detail, _, advice = size.text.partition("; ")
    return [Finding(check="size", ok=size.is_ok, detail=detail, advice=f"{advice[:1].upper()}{advice[1:]}.")]


def _headers(settings: Settings) -> list[Header]:
    return [JSON_TYPE, *credential(settings.upstream.api_key)]
