"""The result of a run as tables: aligned text for the terminal, or markdown for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.history import FIGURES
from bench.scenarios import SCENARIOS, Scenario

Table = tuple[str, Sequence[str], list[list[str]]]
"""Title, head, rows; the first column is text, the others are numbers."""

MACHINE = ("system", "python", "nginx")


def render(result: dict[str, Any], *, markdown: bool) -> str:
    draw = _markdown if markdown else _text
    return "\n\n".join([describe(result), *(draw(*table) for table in tables(result))])


def describe(result: dict[str, Any]) -> str:
    machine, run = result["machine"], result["run"]
    names = ", ".join([machine["cpu"], f"{machine['cores']} cores", *map(machine.get, MACHINE)])
    return (
        f"{run['date']}, Toolway {machine['toolway']}, on {names}.\n"
        f"Medians of {run['rounds']} rounds of {run['seconds']} s; a round measures each target in turn."
    )


def tables(result: dict[str, Any]) -> Iterator[Table]:
    for scenario in SCENARIOS:
        if targets := result["scenarios"].get(scenario.key):
            yield scenario_table(scenario, targets)
    yield memory_table(result["memory"])
    for held in result["held"].values():
        yield held_table(held)
    yield goal_table(result["goals"])
    if result.get("history"):
        yield history_table(result["history"])


def scenario_table(scenario: Scenario, targets: dict[str, Any]) -> Table:
    unit = "event" if scenario.counts_events else "request"
    head = ["", f"{unit}s/s", "of nginx", "of Envoy", f"CPU µs/{unit}", "first byte ms", "p50 ms", "p99 ms"]
    return scenario.title, head, [row(name, values) for name, values in targets.items()]


def row(name: str, values: dict[str, Any]) -> list[str]:
    cells = [
        name,
        number(values["rate"], 0),
        number(values["of_nginx"], 3),
        number(values.get("of_envoy"), 3),
        number(values["cpu_us"], 1) if values["cpu_us"] else "",
        *(number(values[key], 2, scale=1000) for key in ("first_us", "p50_us", "p99_us")),
    ]
    if values["faults"]:
        cells.append(f"{values['faults']} WRONG ANSWERS: {values['complaint']}")
    return cells


def memory_table(memory: dict[str, dict[str, dict[str, float]]]) -> Table:
    head = ["", "RSS idle", "PSS idle", "RSS after load", "PSS after load"]
    rows = [
        [
            name,
            *(number(moments[moment][kind], 1) for moment in ("idle", "loaded") for kind in ("rss", "pss")),
        ]
        for name, moments in memory.items()
    ]
    return "Memory, MB", head, rows


def held_table(held: dict[str, Any]) -> Table:
    head = ["", "at one time", "seconds", "CPU µs/event", "RSS before", "RSS peak"]
    cells = [number(held["held"], 0), number(held["seconds"], 1), number(held["cpu_us"], 1)]
    cells += [number(held["idle_mb"], 1), number(held["peak_mb"], 1)]
    if held["faults"]:
        cells.append(f"{held['faults']} WRONG ANSWERS: {held['complaint']}")
    return held["title"], head, [["toolway", *cells]]


def goal_table(goals: list[dict[str, Any]]) -> Table:
    rows = [
        [
            goal["text"],
            number(goal["value"], goal["digits"]),
            f"{'≥' if goal['at_least'] else '≤'} {goal['limit']:g}",
            goal["verdict"],
        ]
        for goal in goals
    ]
    return "Goals", ["", "measured", "goal", ""], rows


def history_table(runs: list[dict[str, Any]]) -> Table:
    """CPU µs of an answer or event, and its share of Envoy's rate, run by run; only one machine's can be compared."""
    rows = []
    for run in runs:
        cells = [f"{run[key]['cpu_us']:,.1f} ({number(run[key]['of_envoy'], 2) or '-'})" for key in FIGURES]
        rows.append([f"{run['date']} {run['commit']}", *cells])
    return "History: CPU µs (share of Envoy)", ["", *FIGURES.values()], rows


def number(value: float | None, digits: int, *, scale: float = 1) -> str:
    return "" if value is None else f"{value / scale:,.{digits}f}"


def _text(title: str, head: Sequence[str], rows: list[list[str]]) -> str:
    widths = [
        max(len(cell) for cell in column)
        for column in zip(head, *(r[: len(head)] for r in rows), strict=True)
    ]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False))
        return "  ".join(["", first.ljust(widths[0]), *padded, *cells[len(head) :]]).rstrip()

    return "\n".join([title, line(head), *map(line, rows)])


def _markdown(title: str, head: Sequence[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join([f"**{title}**", "", *("| " + " | ".join(cells) + " |" for cells in lines)])
