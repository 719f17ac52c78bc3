"""What the demo shows: its steps, the lines that its programs print, and an answer as it streams in."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

LABEL_WIDTH = 12
BAR_WIDTH = 30
COLOURS = {"toolway": "cyan", "weather": "green", "calculator": "green"}
SILENT = frozenset({"model"})
"""Whose lines go to the log only: the model server's are about its own insides."""


class Screen:
    """The terminal, or a pipe: then there are no colours, no moving lines, and one plain line for each step."""

    def __init__(self, log: TextIO) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        self.console = Console(highlight=False, markup=False, emoji=False)
        self._log = log
        self._lock = threading.RLock()
        self._answering = False
        self._held: list[tuple[str, str, str]] = []

    def say(self, text: str = "", style: str = "") -> None:
        """A line of the demo's own."""
        self.console.print(text, style=style, soft_wrap=True)

    def labelled(self, label: str, text: str, label_style: str = "bold", text_style: str = "") -> None:
        """`label      text`, the texts under each other."""
        parts = (f"{label:<{LABEL_WIDTH}} ", label_style), (text, text_style)
        self.console.print(Text.assemble(*parts), soft_wrap=True)

    @contextmanager
    def step(self, label: str, doing: str) -> Iterator[Step]:
        """A step under way: a moving line until it is done, then a line that stays."""
        begun = time.perf_counter()
        with self.waiting(f"{label:<{LABEL_WIDTH - 2}} {doing}") as progress:
            step = Step(self, progress, label)
            yield step
        seconds = f"  {time.perf_counter() - begun:.1f} s"
        parts = ("✓ ", "green"), (f"{label:<{LABEL_WIDTH - 2}} ", "bold"), step.outcome, (seconds, "dim")
        self.console.print(Text.assemble(*parts), soft_wrap=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Progress]:
        """A moving line with the seconds so far, gone when the block is left."""
        columns = SpinnerColumn(), TextColumn("{task.description}"), _Bytes(), TimeElapsedColumn()
        hidden = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=hidden) as progress:
            progress.add_task(text, total=None)
            yield progress

    def program_said(self, source: str, line: str, *, shown: str, matters: bool) -> None:
        """A line that one of the programs printed; `shown` is what is worth showing of it, faintly or not.

        From any thread. Held back while an answer is on its line.
        """
        with self._lock:
            self._log.write(f"{source:<{LABEL_WIDTH}} {line}\n")
            self._log.flush()
            if source in SILENT:
                return
            style = "" if matters else "dim"
            if self._answering:
                self._held.append((source, shown, style))
            else:
                self._show(source, shown, style)

    def answer_piece(self, text: str) -> None:
        """A piece of the answer, shown as it comes."""
        with self._lock:
            if not self._answering:
                self._answering = True
                self.console.print(Text(f"{'Answer':<{LABEL_WIDTH}} ", style="bold"), end="")
            self.console.print(Text(text, style="bold green"), end="", soft_wrap=True)

    def answer_ends(self) -> None:
        """Ends the line of the answer, if one was begun, and shows what was held back."""
        with self._lock:
            if self._answering:
                self.console.print()
            self._answering = False
            for held in self._held:
                self._show(*held)
            self._held.clear()

    def _show(self, source: str, line: str, style: str) -> None:
        self.labelled(f"  {source}", line, label_style=COLOURS.get(source, ""), text_style=style)


class Step:
    """A step under way; `outcome` is what its line says when it is done."""

    def __init__(self, screen: Screen, progress: Progress, label: str) -> None:
        self.outcome = ""
        self._screen = screen
        self._progress = progress
        self._label = label
        self._quarter = 0

    def bytes_there(self, done: int, expected: int) -> None:
        """`done` of `expected` bytes have come: a bar, or on a pipe a line for each quarter."""
        self._progress.update(self._progress.task_ids[0], completed=done, total=expected)
        quarter = 4 * done // expected
        if self._progress.disable and quarter > self._quarter:
            self._screen.say(f"  {self._label}: {_megabytes(done, expected)}")
        self._quarter = quarter


class _Bytes(ProgressColumn):
    """A bar and the size so far, for a task that has a size."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        filled = int(BAR_WIDTH * task.completed / task.total)
        sizes = _megabytes(task.completed, task.total)
        return Text.assemble(("━" * filled, "green"), ("━" * (BAR_WIDTH - filled), "dim"), f" {sizes}")


def _megabytes(done: float, expected: float) -> str:
    return f"{done / 1e6:.0f} of {expected / 1e6:.0f} MB"
