"""`toolway pin`: shows how the tools differ from those of the lock file, and accepts them."""

from __future__ import annotations

import difflib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import anyio
import typer

from toolway.app.terminal import AsJSON, ConfigFile, complain, fail, print_json
from toolway.settings.edit import locked
from toolway.settings.settings import Settings, load_settings
from toolway.tools.digests import definition_of, digest
from toolway.tools.pins import Pinned, lock_path, name_some, read_lock, write_lock
from toolway.tools.suspicious import hides_text, names_in, secret_parameters, visible, words_to_model
from toolway.types import JSON, SourceStatus, last_error


@dataclass(frozen=True, kw_only=True)
class Change:
    """One tool that is not as the lock file has it. `before` is None for a new one, `after` for one that is gone."""

    server: str
    tool: str
    before: JSON | None
    after: JSON | None
    others: frozenset[str] = frozenset()
    """The names of other servers' tools."""

    @property
    def title(self) -> str:
        """What happened to which tool."""
        kind = "gone" if self.after is None else "new" if self.before is None else "changed"
        return f"{kind}: {visible(self.server)}.{visible(self.tool)}"

    @property
    def difference(self) -> list[str]:
        """The lines that came (+), went (-), and stand around them; hidden characters are written as <U+200B>."""
        lines = difflib.unified_diff(_lines(self.before), _lines(self.after), n=2, lineterm="")
        return [line for line in lines if not line.startswith(("---", "+++", "@@"))]

    @property
    def suspicions(self) -> list[str]:
        """Sentences on what a person should look at twice."""
        if self.after is None:
            return []
        known = secret_parameters((self.before or {}).get("parameters", {}))
        secrets = [name for name in secret_parameters(self.after.get("parameters", {})) if name not in known]
        found = []
        if hidden := hides_text(self.tool, self.after):
            found.append(f"hides text from people: {hidden}")
        if named := names_in(self.after, self.others):
            found.append(f"tells the model of other servers' tools: {name_some(map(visible, named))}")
        found += [f"tells the model what to do: “{words}”" for words in words_to_model(self.after)]
        if secrets:
            found.append(f"new parameters ask for secrets: {name_some(map(visible, secrets))}")
        return found

    def to_json(self) -> JSON:
        """The change as JSON."""
        return {
            "server": self.server,
            "tool": self.tool,
            "before": self.before,
            "after": self.after,
            "difference": self.difference,
            "suspicions": self.suspicions,
        }


def pin(
    review: Annotated[bool, typer.Option("--review", help="Ask about each tool by itself.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Accept all without asking.")] = False,
    as_json: AsJSON = False,
    config: ConfigFile = None,
) -> None:
    """Show which tools are new or changed, and accept them (TOOLWAY_PINS); status 1 if some are not accepted."""
    settings = load_settings(config=config)
    path = lock_path(settings.tools)
    changes = anyio.run(_find_changes, settings, _read(path))
    if as_json:
        print_json([change.to_json() for change in changes])
    elif yes or not review:
        _show(changes)
    if yes or not changes or as_json:
        accepted = changes if yes else []
    elif not sys.stdin.isatty() and not review:
        fail("There is nobody to ask; --yes accepts all.")
    elif review:
        accepted = [change for change in changes if _is_accepted(change, path)]
    else:
        accepted = changes if typer.confirm("Accept all of them?") else []
    if not review or yes:
        _accept(path, accepted)
    left = len(changes) - len(accepted)
    if not as_json:
        typer.echo(
            f"{path}: {len(accepted)} accepted, {left} not" if changes else f"{path}: nothing has changed"
        )
    if not settings.tools.pins:
        complain("Pins are not in force: set TOOLWAY_PINS=on.")
    raise typer.Exit(1 if left else 0)


def _is_accepted(change: Change, path: Path) -> bool:
    """Ask about one, and write it down at once."""
    _show([change])
    if not typer.confirm("Accept it?"):
        return False
    _accept(path, [change])
    return True


def _read(path: Path) -> Pinned:
    try:
        return read_lock(path)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        fail(f"{path} cannot be used: {error}. Mend it, or remove it and pin all tools anew.")


def _show(changes: Sequence[Change]) -> None:
    for change in changes:
        typer.secho(change.title, bold=True)
        for line in change.difference:
            typer.secho(f"  {line}", fg={"+": "green", "-": "red"}.get(line[0]))
        for suspicion in change.suspicions:
            typer.secho(f"  ! {suspicion}", fg="yellow")
        typer.echo()


def _accept(path: Path, changes: Sequence[Change]) -> None:
    """Put exactly what was shown into the lock file as it is now."""
    if not changes:
        return
    with locked(path):
        pinned = _read(path)
        for change in changes:
            tools = pinned.setdefault(change.server, {})
            if change.after is None:
                tools.pop(change.tool, None)
            else:
                tools[change.tool] = change.after
        write_lock(path, pinned)


async def _find_changes(settings: Settings, pinned: Pinned) -> list[Change]:
    """How the tools of the servers that can be asked differ from what is pinned."""
    from toolway.tools.factory import open_catalog  # noqa: PLC0415

    logging.getLogger("toolway").setLevel(logging.CRITICAL)
    async with open_catalog(replace(settings.tools, pins=False)) as catalog:
        statuses = {source.label: source.status for source in catalog.sources}
    for label, status in statuses.items():
        if not status.is_usable:
            complain(f"{label} stays as it is pinned, since it cannot be asked: {last_error(status)}")
    return sorted(_changes(statuses, pinned), key=lambda change: (change.server, change.tool))


def _changes(statuses: dict[str, SourceStatus], pinned: Pinned) -> Iterator[Change]:
    for server in statuses.keys() | pinned.keys():
        status = statuses.get(server)
        if status and not status.is_usable:
            continue
        before = pinned.get(server, {})
        after = {tool.name: definition_of(tool) for tool in status.tools} if status else {}
        others = {t.name for label, one in statuses.items() if label != server for t in one.tools}
        for name in before.keys() | after.keys():
            old, new = before.get(name), after.get(name)
            # By digests: for Python 1, 1.0 and true are equal.
            if old is None or new is None or digest(server, name, old) != digest(server, name, new):
                yield Change(
                    server=server, tool=name, before=old, after=new, others=frozenset(others - after.keys())
                )


def _lines(definition: JSON | None) -> list[str]:
    """A definition as lines of text."""
    parts = []
    for name, value in (definition or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        parts += visible(f"{name}: {text}").replace("\r\n", "\n").split("\n")
    return parts
