"""What the commands print: tables, JSON, complaints; and the options that they share.

All that a command prints goes through here: names and texts are those of tool servers, and what in them a terminal
would act on, or not show, is printed as an escape. Tables import `rich` by themselves: `serve` saves its 5 MB.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from toolway.conversation.tool_calls import parse_arguments
from toolway.telemetry.logging import visible
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
    from rich.cells import cell_len, set_cell_size
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    rows = [[*map(visible, row[:-1]), printable(row[-1])] for row in rows]
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
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= room else set_cell_size(text, room - 1).rstrip() + "…"


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence, white space as single blanks."""
    found = _SENTENCE.match(text)
    return found[1] if found else text


def printable(text: str) -> str:
    """The text with escapes in place of all that does something to a terminal or hides in it.

    Lines stay lines, and spaces of every width spaces: Chinese and Japanese are written with one of their own.
    """
    return _WORDS.sub(lambda found: visible(found[0]), text.replace("\r\n", "\n").expandtabs())


_WORDS = re.compile(r"[^\n\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")


def print_text(text: str = "", *, err: bool = False, **style: Any) -> None:
    """Print a text; `style` as typer's `secho` takes it."""
    typer.secho(printable(text), err=err, **style)


def print_result(text: str, *, err: bool = False) -> None:
    """Print the result of a tool: escaped for people, as it is for what reads it out of a file or a pipe."""
    if (sys.stderr if err else sys.stdout).isatty():
        print_text(text, err=err)
    else:
        typer.echo(text, err=err, color=True)


def print_markup(markup: str, *, err: bool = False, **values: str) -> None:
    """Print a line with marks like `[bold]...[/]` and `[red]...[/]`, in which values stand as `{name}`."""
    shown = {name: printable(value) for name, value in values.items()}
    text = _MARKED.sub(_styled, markup).format(**shown)
    typer.echo(text, err=err, color=False if os.environ.get("NO_COLOR") else None)


_MARKED = re.compile(r"\[(\w+)\](.*?)\[/\]")


def _styled(found: re.Match[str]) -> str:
    style, text = found.groups()
    return typer.style(text, bold=True) if style == "bold" else typer.style(text, fg=style)


def confirm(question: str, *, default: bool = False) -> bool:
    """Ask who sits at the terminal."""
    return typer.confirm(printable(question), default=default)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """A value as JSON, whose strings have escapes of their own for what `printable` escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    typer.echo(text if text.isprintable() else _UNPRINTABLE.sub(_json_escape, text))


_UNPRINTABLE = re.compile(r"[^ -~\n]")


def _json_escape(found: re.Match[str]) -> str:
    one = found[0]
    return one if printable(one) == one else json.dumps(one)[1:-1]


def read_arguments(text: str) -> JSON:
    """The arguments of a tool as somebody wrote them on the command line; ends the command if they are none."""
    try:
        return parse_arguments(text)
    except ValueError as error:
        fail(f'The arguments cannot be used: {error}. Write a JSON object, like \'{{"city": "Paris"}}\'.')


def complain(message: str) -> None:
    """Tell people something, beside what a program reads."""
    print_text(message, err=True)


def fail(message: str) -> NoReturn:
    """Say why, and end with status 1."""
    complain(message)
    sys.exit(1)


def print_findings(findings: Sequence[Finding]) -> None:
    """One line for each finding, advice below it."""
    for finding in findings:
        mark = "[green]ok  [/]" if finding.ok else "[red]FAIL[/]"
        print_markup(f"{mark} [bold]{{check}}[/]: {{detail}}", check=finding.check, detail=finding.detail)
        if finding.advice:
            print_markup("     -> {advice}", advice=finding.advice)
    failed = sum(not finding.ok for finding in findings)
    print_markup(
        f"[red]{failed} of {len(findings)} checks failed.[/]" if failed else "[green]All is well.[/]"
    )
