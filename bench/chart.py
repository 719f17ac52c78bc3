"""Draws the result of a run: bars of each target's rate as a share of Envoy's, as an SVG for the documentation."""

from __future__ import annotations

from html import escape
from typing import Any

SHOWN = {
    "whole-16": "Whole answers, 16 at a time",
    "whole-1": "Whole answers, one at a time",
    "stream-16": "Events of streams, 16 at a time",
}
WIDTH, LEFT, BAR, GAP = 760, 130, 18, 6
LONGEST = WIDTH - LEFT - 250
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .small { fill: #59636e }
rect { fill: #b6bec7 } .ours { fill: #0b7a75 } .one { stroke: #59636e; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .small { fill: #9198a1 }
  rect { fill: #4b535d } .ours { fill: #3fb8af } .one { stroke: #9198a1 }
}
"""


def chart(result: dict[str, Any]) -> str:
    """An SVG of 760 pixels in width; scenarios that were not measured beside Envoy are left out."""
    parts, y = list[str](), 24
    for key, title in SHOWN.items():
        rows = {name: row for name, row in result["scenarios"].get(key, {}).items() if row.get("of_envoy")}
        rows = {name: row for name, row in rows.items() if name != "direct"}
        if not rows:
            continue
        unit = LONGEST / max(row["of_envoy"] for row in rows.values())
        parts.append(f'<text class="title" x="0" y="{y}">{escape(title)}</text>')
        top = y = y + 12
        for name, row in sorted(rows.items(), key=lambda item: -item[1]["of_envoy"]):
            parts += _bar(name, row, y, unit)
            y += BAR + GAP
        x = LEFT + unit
        parts.append(f'<line class="one" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y - GAP}"/>')
        y += 30
    machine, run = result["machine"], result["run"]
    told = (
        f"{run['date']}, {machine['cpu']}, {machine['cores']} cores; each on one of them. The line is Envoy."
    )
    parts.append(f'<text class="small" x="0" y="{y}">{escape(told)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" role="img">'
    label = "<title>Answers and events a second, as shares of what Envoy passes on</title>"
    return "\n".join([head, label, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _bar(name: str, row: dict[str, Any], y: float, unit: float) -> list[str]:
    share, middle = row["of_envoy"], y + BAR * 0.72
    kind = "ours" if name.startswith("toolway") else "other"
    width = max(share * unit, 1)
    return [
        f'<text x="0" y="{middle:.1f}">{escape(name)}</text>',
        f'<rect class="{kind}" x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" rx="2"/>',
        f'<text class="small" x="{LEFT + width + 8:.1f}" y="{middle:.1f}">{share:.2f}'
        f" ({row['rate']:,.0f} a second, {row['cpu_us']:.1f} µs)</text>",
    ]
