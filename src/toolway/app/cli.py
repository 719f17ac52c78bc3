"""The command line: serve, tools, call, mcp, doctor, demo.

Each command imports what it needs by itself, so that none pays for the others.
"""

from __future__ import annotations

import logging
import sys
import webbrowser
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import typer

from toolway import __version__
from toolway.app.keys import app as keys_app
from toolway.app.pin import pin
from toolway.app.policy import approvals, audit, policy
from toolway.app.terminal import (
    AsJSON,
    ConfigFile,
    complain,
    confirm,
    fail,
    first_sentence,
    print_findings,
    print_json,
    print_markup,
    print_result,
    print_table,
    print_text,
    read_arguments,
)
from toolway.errors import ConfigError, SourceError, sentence
from toolway.settings.load import load_settings
from toolway.settings.mcp_server import RemoteServerConfig
from toolway.settings.settings import Settings, ToolSettings
from toolway.tools import names
from toolway.types import JSON, SourceStatus, Tool, ToolResult, last_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from toolway.tools.catalog import Catalog

T = TypeVar("T")

app = typer.Typer(
    name="toolway",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Gives every OpenAI client the tools of your MCP and OpenAPI servers.",
)
app.add_typer(keys_app, name="keys")
app.add_typer(policy, name="policy")
app.add_typer(approvals, name="approvals")
app.command()(audit)
app.command()(pin)
Strict = Annotated[bool, typer.Option("--strict", help="Take unknown keys in the mcp.json for mistakes.")]
Full = Annotated[bool, typer.Option("--full", help="Print whole descriptions, not their first sentences.")]


def main() -> None:
    """Run the command of sys.argv; mistakes in the configuration end with status 1 and their message."""
    try:
        app()
    except ConfigError as error:
        fail(error.message)
    except KeyboardInterrupt:
        sys.exit(130)


def _version(asked: bool) -> None:
    if asked:
        print_text(f"toolway {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Settings come from the environment and from .env; config.example explains each."""


@app.command()
def serve(  # noqa: PLR0917 - typer passes them by name
    host: Annotated[str | None, typer.Option(help="Address to listen on (TOOLWAY_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (TOOLWAY_PORT).")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that serve (TOOLWAY_WORKERS).")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow other addresses than 127.0.0.1 without client keys.")
    ] = False,
    config: ConfigFile = None,
    strict: Strict = False,
) -> None:
    """Serve the OpenAI API with your tools in it."""
    from toolway.server.process import run

    settings = load_settings(
        host=host,
        port=port,
        workers=workers,
        insecure=insecure or None,
        config=config,
        strict=strict or None,
    )
    _warn(settings)
    run(settings, _create_app, on_listening=lambda url: _announce(settings, url))


def _create_app(settings: Settings) -> ASGIApp:
    """The app, made where it serves: the process that only looks after workers does not load it."""
    from toolway.app.asgi import create_app

    return create_app(settings)


@app.command()
def tools(as_json: AsJSON = False, full: Full = False, config: ConfigFile = None) -> None:
    """List every tool with its server and state; status 1 if no server could be used."""
    settings = load_settings(config=config)
    _warn(settings)
    found, statuses, too_many = _with_catalog(settings, partial(_list_tools, settings))
    if as_json:
        print_json([_tool_json(name, tool) for name, tool in found.items()])
        for label, status in statuses.items():
            if status.error:
                complain(f"{label}: {status.state} ({last_error(status)})")
    elif not statuses:
        none = "No tool servers are configured: write an mcp.json, or set MCP_SERVER_ENDPOINTS."
        fail(settings.tools.all_disabled or none)
    else:
        if found:
            _print_tools(found, full=full)
            print_text()
        _print_servers(statuses)
    for label, status in statuses.items():
        for warning in status.warnings:
            complain(f"{label}: {warning}")
    if too_many:
        complain(f"{too_many[0].upper()}{too_many[1:]}.")
    if statuses and not any(status.is_usable for status in statuses.values()):
        fail("No tool server can be used; `toolway doctor` says what to do.")


@app.command()
def call(
    name: Annotated[str, typer.Argument(help="The tool, as `toolway tools` names it, or SERVER.TOOL.")],
    arguments: Annotated[
        str, typer.Argument(help='Its arguments as a JSON object, like \'{"city": "Paris"}\'; - reads stdin.')
    ] = "{}",
    as_json: AsJSON = False,
    config: ConfigFile = None,
) -> None:
    """Run one tool and print its result; status 1 if it failed."""
    values = read_arguments(sys.stdin.read() if arguments == "-" else arguments)
    settings = load_settings(config=config)
    _warn(settings)

    async def run(catalog: Catalog) -> ToolResult:
        return await _call(catalog, name, values, settings.loop.tool_timeout)

    result = _with_catalog(settings, run)
    if as_json:
        images = [{"media_type": image.media_type, "data": image.data} for image in result.images]
        print_json({"name": name, "is_error": result.is_error, "text": result.text, "images": images})
    else:
        print_result(result.text, err=result.is_error)
        for image in result.images:
            size = len(image.data) * 3 // 4
            complain(f"(A picture, {image.media_type}, about {size:,} bytes; --json prints it as base64.)")
    raise typer.Exit(1 if result.is_error else 0)


@app.command()
def mcp(
    profile: Annotated[
        str | None, typer.Option(help="Offer this profile's tools only (TOOLWAY_PROFILES).")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Serve your tools as one MCP server on standard input and output, for the mcp.json of other programs."""
    from toolway.app.stdio import run_stdio
    from toolway.telemetry.logging import configure_logging

    settings = load_settings(config=config)
    _warn(settings)
    configure_logging(settings)
    anyio.run(run_stdio, settings, profile)


@app.command()
def doctor(as_json: AsJSON = False, config: ConfigFile = None) -> None:
    """Check the configuration, the model server and every tool server; say what is wrong and what to do."""
    from toolway.app.doctor import examine

    findings = examine(config)
    if as_json:
        healthy = all(finding.ok for finding in findings)
        print_json({"ok": healthy, "checks": [finding.to_json() for finding in findings]})
    else:
        print_findings(findings)
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where the mcp.json is written.")] = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Say yes to everything.")] = False,
) -> None:
    """Write an mcp.json out of what is found on this machine: model servers, other programs' tool servers."""
    from toolway.app.init import config_files, find_model_servers, find_servers, initialise

    if not yes and not sys.stdin.isatty():
        fail("There is nobody to ask; --yes says yes to everything.")
    print_text("Looking for model servers, and for tool servers in the configuration of other programs ...")
    written = initialise(
        folder,
        confirm=(lambda _: True) if yes else partial(confirm, default=True),
        say=print_text,
        models=find_model_servers(),
        servers=find_servers(config_files(Path.home())),
    )
    raise typer.Exit(0 if written else 1)


@app.command()
def login(
    server: Annotated[str, typer.Argument(help="The server, as the mcp.json names it.")],
    config: ConfigFile = None,
) -> None:
    """Allow Toolway, in your browser, to use a remote MCP server in your name."""
    settings = load_settings(config=config)
    remote = {entry.label: entry for entry in settings.tools.servers if isinstance(entry, RemoteServerConfig)}
    if server not in remote:
        names = ", ".join(remote) or "none"
        fail(f"There is no server {server} with a url in the mcp.json; those with one: {names}.")
    anyio.run(_login, remote[server], settings.tools)
    print_text(f"Toolway may use {server} now; {settings.tools.token_file} remembers it.")


async def _login(server: RemoteServerConfig, settings: ToolSettings) -> None:
    from toolway.tools.factory import login_store
    from toolway.tools.mcp.oauth import login as ask

    async def show(page: str) -> None:
        print_text(f"Allow it in your browser; if none opens, go to:\n{page}")
        await anyio.to_thread.run_sync(webbrowser.open, page)

    try:
        await ask(server, show, login_store(settings))
    except SourceError as error:
        fail(f"{server.url}: {error.message}")


@app.command()
def demo(
    port: Annotated[int | None, typer.Option(help="Port for Toolway in the demo.")] = None,
    stay: Annotated[
        bool | None, typer.Option("--stay/--no-stay", help="Stay up afterwards; by default on a terminal.")
    ] = None,
) -> None:
    """See it work: a small real model, real tool servers, one question."""
    from toolway.demo.walkthrough import run_demo

    raise typer.Exit(run_demo(port=port, stay=stay))


def _with_catalog(settings: Settings, use: Callable[[Catalog], Coroutine[Any, Any, T]]) -> T:
    """Run `use` on a catalog whose servers have all been tried. What goes wrong is told once, not logged too."""
    from toolway.tools.factory import open_catalog

    logging.getLogger("toolway").setLevel(logging.CRITICAL)

    async def run() -> T:
        async with open_catalog(settings.tools) as catalog:
            return await use(catalog)

    return anyio.run(run)


async def _list_tools(
    settings: Settings, catalog: Catalog
) -> tuple[Mapping[str, Tool], Mapping[str, SourceStatus], str | None]:
    """Also why they are too many, if they are."""
    from toolway.app.state import judge_size
    from toolway.engine.model_target import ModelTarget
    from toolway.upstream.client import Upstream

    statuses = {source.label: source.status for source in catalog.sources}
    async with Upstream.connect(settings.upstream) as upstream:
        size = await judge_size(settings, ModelTarget(settings.upstream, upstream), catalog.snapshot)
    return catalog.snapshot.tools, statuses, size.text if size else None


async def _call(catalog: Catalog, name: str, arguments: JSON, seconds: float) -> ToolResult:
    snapshot = catalog.snapshot
    known = names.resolve(name, snapshot.tools)
    if known is None:
        return ToolResult(text=names.no_such_tool(name, snapshot.tools, snapshot.unknown), is_error=True)
    tool = snapshot.tools[known]
    with anyio.move_on_after(tool.timeout or seconds):
        return await snapshot.call(tool, arguments)
    return ToolResult(
        text=f"{name} did not answer within {tool.timeout or seconds:g} seconds.", is_error=True
    )


def _tool_json(name: str, tool: Tool) -> JSON:
    return {
        "name": name,
        "server": tool.server,
        "description": tool.description,
        "parameters": tool.parameters,
        "available": tool.available,
    }


def _print_servers(statuses: Mapping[str, SourceStatus]) -> None:
    rows = [
        [label, status.state, status.protocol or "", str(len(status.tools)), last_error(status)]
        for label, status in statuses.items()
    ]
    print_table(["server", "state", "protocol", "tools", "last error"], rows)


def _print_tools(found: Mapping[str, Tool], *, full: bool) -> None:
    rows = [
        [
            name,
            tool.server,
            "ready" if tool.available else "unavailable",
            tool.description.strip() if full else first_sentence(" ".join(tool.description.split())),
        ]
        for name, tool in found.items()
    ]
    print_table(["tool", "server", "state", "description"], rows, is_below=full, is_cut=not full)


def _announce(settings: Settings, url: str) -> None:
    tell = partial(print_markup, err=True)
    where = "[bold]Toolway {version}[/] at [bold]{url}/v1[/], in front of {upstream}"
    tell(where, version=__version__, url=url, upstream=settings.upstream.base_url)
    if settings.console.enabled:
        tell("Its console: [bold]{url}[/]", url=url)
    if settings.tools.all_disabled:
        tell("[yellow]{why}[/]", why=settings.tools.all_disabled)
    elif not settings.tools.endpoints and not settings.tools.servers:
        tell("[yellow]No tool servers are configured[/]; write an mcp.json, or set MCP_SERVER_ENDPOINTS.")


def _warn(settings: Settings) -> None:
    for warning in settings.warnings:
        complain(sentence(f"Warning: {warning}"))
