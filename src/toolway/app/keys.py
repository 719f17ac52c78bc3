"""`toolway keys`: makes, lists, rotates and revokes the keys of the mcp.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolway.access.keys import add_key, described, revoke_key, rotate_key, state_of
from toolway.app.terminal import AsJSON, ConfigFile, complain, print_json, print_table, print_text
from toolway.settings.access import GroupConfig, KeyConfig
from toolway.settings.load import load_settings
from toolway.settings.mcp_server import with_home
from toolway.settings.settings import DEFAULT_CONFIG

Name = Annotated[str, typer.Argument(help="Who has the key; any words.")]

app = typer.Typer(
    no_args_is_help=True, help="Make, list, rotate and revoke keys of clients, in the mcp.json."
)


@app.command()
def add(  # noqa: PLR0917 - typer passes them by name
    name: Name,
    group: Annotated[str | None, typer.Option(help="The group that it belongs to.")] = None,
    expires: Annotated[str | None, typer.Option(help="Its last day, like 2027-01-31.")] = None,
    tools: Annotated[list[str] | None, typer.Option(help="A pattern of its tools; may be repeated.")] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="A pattern of its models; may be repeated.")
    ] = None,
    routes: Annotated[
        list[str] | None, typer.Option(help="What it may ask: chat, mcp, ...; repeated.")
    ] = None,
    as_json: AsJSON = False,
    config: ConfigFile = None,
) -> None:
    """Make a key. It is printed once; the file keeps its digest."""
    options = {"group": group, "expires": expires, "tools": tools, "models": models, "routes": routes}
    path = _file(config)
    _tell(add_key(path, name, {key: value for key, value in options.items() if value}), name, path, as_json)


@app.command()
def rotate(name: Name, as_json: AsJSON = False, config: ConfigFile = None) -> None:
    """Give a key a new secret; the old one opens nothing any more."""
    path = _file(config)
    _tell(rotate_key(path, name), name, path, as_json)


@app.command()
def revoke(name: Name, config: ConfigFile = None) -> None:
    """Take a key away, at once also where Toolway runs with this file."""
    path = _file(config)
    revoke_key(path, name)
    complain(f"The key {name} is gone from {path}.")


@app.command("list")
def list_keys(as_json: AsJSON = False, config: ConfigFile = None) -> None:
    """List the keys of the file and what they may do."""
    access = load_settings(config=config).access
    keys = access.keys
    if as_json:
        print_json([described(key) for key in keys])
        return
    if not keys:
        complain("There are no keys in the mcp.json; `toolway keys add NAME` makes one.")
        return
    rows = [
        [
            key.name,
            key.group or "",
            state_of(key),
            *(_pattern_text(key, access.group(key.group), what) for what in ("tools", "models", "routes")),
        ]
        for key in keys
    ]
    print_table(["name", "group", "state", "tools", "models", "routes"], rows)


def _file(config: str | None) -> Path:
    return with_home(load_settings(config=config).tools.config or DEFAULT_CONFIG)


def _tell(secret: str, name: str, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "key": secret})
        return
    complain(f"The key of {name}; {path} keeps its digest, so it is shown only now:")
    print_text(secret)


def _pattern_text(key: KeyConfig, group: GroupConfig | None, what: str) -> str:
    """What a key may use; what its group may comes behind it, since each narrows the other."""
    rights = [(getattr(one, what), " (group)" if one is group else "") for one in (key, group) if one]
    return "; ".join(
        f"{', '.join(patterns) or 'none'}{whose}" for patterns, whose in rights if patterns is not None
    )
