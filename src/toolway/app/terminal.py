"""What the commands print: tables, JSON, complaints; and the options that they share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from toolway.conversation.tool_calls import parse_arguments
from toolway.types import JSON

if TYPE_CHECKING:
    from toolway.app.doctor import Finding

MIN_ROOM = 24
"""Cells that a description has beside its tool, or it stands below it."""

_COLOURS = {
    "ready": "green",
    "starting": "yellow",
    **dict.fromkeys(("failed", "unavailable", "needs auth"), "red"),
}

_SENTENCE = re.compile(r"(.+?[.!?])(?=\s|$)", re.DOTALL)

ConfigFile = Annotated[
    str | None, typer.Option(help="The mcp.json to read (TOOLWAY_CONFIG).", show_default=False)
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def print_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, is_below: bool = False, is_cut: bool = False
) -> None:
    """Columns as wide as their texts. The last one may be any text: beside the others, or below them.

    With `is_cut` it is shortened to what a terminal has room for; in a file nothing is.
    """
    console = Console(highlight=False)
    *widths, last = [max(map(cell_len, column)) for column in zip(titles, *rows, strict=True)]
    indent = sum(widths) + 2 * len(widths)
    room = console.width if is_cut and console.is_terminal else sys.maxsize
    if room - indent < min(MIN_ROOM, last):
        is_below = True
    for number, (*cells, text) in enumerate([titles, *rows]):
        line = Text("  ", style="" if number else "bold").join(
            Text(set_cell_size(cell, width), style=_COLOURS.get(cell, ""))
            for cell, width in zip(cells, widths, strict=True)
        )
        if is_below:
            lines = text.splitlines() if number else []
            line.append("".join(f"\n    {_cut(one, room - 4)}".rstrip() for one in lines))
        else:
            line.append(f"  {_cut(text, room - indent)}")
        line.rstrip()
        console.print(line, soft_wrap=True)


def _cut(text: str, room: int) -> str:
    return text if cell_len(text) <= room else set_cell_size(text, room - 1).rstrip() + "…"


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence, white space as single blanks."""
    found = _SENTENCE.match(text)
    return found[1] if found else text


def print_json(value: Any) -> None:
    """A value as JSON, indented."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def read_arguments(text: str) -> JSON:
    """The arguments of a tool as somebody wrote them on the command line; ends the command if they are none."""
    try:
        return parse_arguments(text)
    except ValueError as error:
        fail(f'The arguments cannot be used: {error}. Write a JSON object, like \'{{"city": "Paris"}}\'.')


def complain(message: str) -> None:
    """Tell people something, beside what a program reads."""
    typer.echo(message, err=True)


def fail(message: str) -> NoReturn:
    """Say why, and end with status 1."""
    complain(message)
    sys.exit(1)


def print_findings(findings: Sequence[Finding]) -> None:
    """One line for each finding, advice below it."""
    console = Console(highlight=False)
    for finding in findings:
        mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
        console.print(f"{mark} [bold]{escape(finding.check)}[/]: {escape(finding.detail)}", soft_wrap=True)
        if finding.advice:
            console.print(f"     -> {escape(finding.advice)}", soft_wrap=True)
    failed = sum(not finding.ok for finding in findings)
    console.print(
        f"[red]{failed} of {len(findings)} checks failed.[/]" if failed else "[green]All is well.[/]"
    )
