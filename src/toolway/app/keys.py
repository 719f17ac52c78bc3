"""`toolway keys`: makes, lists, rotates and revokes the keys of the mcp.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from toolway.access.keys import PREFIX, hash_of, new_secret
from toolway.app.terminal import AsJSON, ConfigFile, complain, fail, print_json, print_table
from toolway.errors import ConfigError
from toolway.settings.access import KeyConfig, check_name
from toolway.settings.edit import locked, replace_text, with_member, without_member
from toolway.settings.mcp_json import parse_config
from toolway.settings.mcp_server import with_home
from toolway.settings.settings import environment, load_settings
from toolway.types import JSON

EMPTY = '{\n  "mcpServers": {}\n}\n'

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
    secret = new_secret()
    said = {"group": group, "expires": expires, "tools": tools, "models": models, "routes": routes}
    entry = {"hash": hash_of(secret)} | {key: value for key, value in said.items() if value}
    try:
        check_name(name)
    except ValueError as error:
        fail(f"{name!r}: {error}.")

    def change(text: str, known: Collection[str]) -> str:
        if name in known:
            fail(f"There is a key {name} already; `toolway keys rotate` gives it a new secret.")
        return with_member(text, ["keys", name], entry)

    _tell(secret, name, _change(config, change, makes_file=True), as_json)


@app.command()
def rotate(name: Name, as_json: AsJSON = False, config: ConfigFile = None) -> None:
    """Give a key a new secret; the old one opens nothing any more."""
    secret = new_secret()

    def change(text: str, known: Collection[str]) -> str:
        _need(name, known)
        return with_member(text, ["keys", name, "hash"], hash_of(secret))

    _tell(secret, name, _change(config, change), as_json)


@app.command()
def revoke(name: Name, config: ConfigFile = None) -> None:
    """Take a key away, at once also where Toolway runs with this file."""

    def change(text: str, known: Collection[str]) -> str:
        _need(name, known)
        return without_member(text, ["keys", name])

    complain(f"The key {name} is gone from {_change(config, change)}.")


@app.command("list")
def list_keys(as_json: AsJSON = False, config: ConfigFile = None) -> None:
    """List the keys of the file and what they may do."""
    settings = load_settings(config=config)
    access = settings.access
    if as_json:
        print_json([_as_json(key) for key in access.keys])
        return
    if not access.keys:
        complain("There are no keys in the mcp.json; `toolway keys add NAME` makes one.")
        return
    rows = [
        [
            key.name,
            key.group or "",
            _state(key),
            *(_shown(getattr(key, what)) for what in ("tools", "models", "routes")),
        ]
        for key in access.keys
    ]
    print_table(["name", "group", "state", "tools", "models", "routes"], rows)


def _change(
    config: str | None, change: Callable[[str, Collection[str]], str], *, makes_file: bool = False
) -> Path:
    """Change the file's text, if what comes out of it can be used; the file that was changed."""
    settings = load_settings(config=config)
    path = with_home(settings.tools.config or "mcp.json")
    if path.suffix == ".toml":
        fail(f"{path} is TOML, which is not changed here; have the keys in an mcp.json.")
    if not path.exists() and not makes_file:
        fail("There is no mcp.json with keys in it; `toolway keys add NAME` makes one.")
    with locked(path):
        text = _read(path) if path.exists() else EMPTY
        env = environment()
        before = parse_config(text, env, path=str(path))
        changed = change(text, {key.name for key in before.access.keys})
        parse_config(changed, env, path=str(path))
        replace_text(path, changed)
    return path


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _need(name: str, known: Collection[str]) -> None:
    if name not in known:
        fail(f"There is no key {name}; those that are: {', '.join(sorted(known)) or 'none'}.")


def _tell(secret: str, name: str, path: Path, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "key": secret})
        return
    complain(f"The key of {name}; {path} keeps its digest, so it is shown only now:")
    typer.echo(secret)


def _state(key: KeyConfig) -> str:
    if key.expires is None:
        return "valid"
    word = "expired" if time.time() >= key.expires else "until"
    return f"{word} {datetime.fromtimestamp(key.expires, UTC):%Y-%m-%d}"


def _shown(patterns: tuple[str, ...] | None) -> str:
    return "" if patterns is None else ", ".join(patterns) or "none"


def _as_json(key: KeyConfig) -> JSON:
    names = ("name", "group", "tools", "exclude", "models", "routes")
    shown = {name: value for name in names if (value := getattr(key, name)) not in (None, ())}
    return {**shown, "prefix": PREFIX, "state": _state(key), "expires": key.expires}
