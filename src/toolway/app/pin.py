"""`toolway pin`: shows how the tools differ from those of the lock file, and accepts them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import anyio
import typer

from toolway.app.terminal import AsJSON, ConfigFile, complain, confirm, fail, print_json, print_text
from toolway.settings.load import load_settings
from toolway.settings.settings import Settings
from toolway.tools.pins import Change, Pinned, accept, changes_of, lock_path, read_pinned
from toolway.types import last_error


def pin(
    review: Annotated[bool, typer.Option("--review", help="Ask about each tool by itself.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Accept all without asking.")] = False,
    as_json: AsJSON = False,
    config: ConfigFile = None,
) -> None:
    """Show which tools are new or changed, and accept them (TOOLWAY_PINS); status 1 if some are not accepted."""
    settings = load_settings(config=config)
    path = lock_path(settings.tools)
    changes = anyio.run(_find_changes, settings, read_pinned(path))
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
        accepted = changes if confirm("Accept all of them?") else []
    if not review or yes:
        accept(path, accepted)
    left = len(changes) - len(accepted)
    if not as_json:
        print_text(
            f"{path}: {len(accepted)} accepted, {left} not" if changes else f"{path}: nothing has changed"
        )
    if not settings.tools.pins:
        complain("Pins are not in force: set TOOLWAY_PINS=on.")
    raise typer.Exit(1 if left else 0)


def _is_accepted(change: Change, path: Path) -> bool:
    """Ask about one, and write it down at once."""
    _show([change])
    if not confirm("Accept it?"):
        return False
    accept(path, [change])
    return True


def _show(changes: Sequence[Change]) -> None:
    for change in changes:
        print_text(change.title, bold=True)
        for line in change.difference:
            print_text(f"  {line}", fg={"+": "green", "-": "red"}.get(line[0]))
        for suspicion in change.suspicions:
            print_text(f"  ! {suspicion}", fg="yellow")
        print_text()


async def _find_changes(settings: Settings, pinned: Pinned) -> list[Change]:
    """How the tools of the servers that can be asked differ from what is pinned."""
    from toolway.tools.factory import open_catalog  # noqa: PLC0415

    logging.getLogger("toolway").setLevel(logging.CRITICAL)
    async with open_catalog(replace(settings.tools, pins=False)) as catalog:
        statuses = {source.label: source.status for source in catalog.sources}
    for label, status in statuses.items():
        if not status.is_usable:
            complain(f"{label} stays as it is pinned, since it cannot be asked: {last_error(status)}")
    return changes_of(statuses, pinned)
