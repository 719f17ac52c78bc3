"""What is found of the tools of 70 real servers, by the words in which people said what they did with them.

They lie beside the repository (another project's data, under its licence), in `../shared` or where TOOLWAY_SHARED says.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.paths import SHARED
from toolway.search.index import ToolIndex
from toolway.search.ranking import top_hits
from toolway.types import Tool

FOLDER = SHARED / "toolsearch"

pytestmark = pytest.mark.skipif(
    not (FOLDER / "tools.json").is_file(),
    reason="the public tools are not here (set TOOLWAY_SHARED to the folder above toolsearch/)",
)


def test_needed_tools_are_shown_and_their_neighbours_are_named():
    tools, tasks = (json.loads((FOLDER / name).read_text()) for name in ("tools.json", "tasks.json"))
    index = ToolIndex.build({f"{t['server']}/{t['name']}": _tool(t) for t in tools["tools"]})
    everything = set(index.names)
    shown = reached = total = 0
    for task in tasks:
        needed = {name for name in task["tools"] if any(t.name == name for t in index.tools.values())}
        results = [top_hits(index, index.search(step), everything) for step in task["steps"]]
        whole = {index.tools[name].name for result in results for name in result.shown}
        named = {index.tools[n].name for result in results for ns in result.neighbours.values() for n in ns}
        total += len(needed)
        shown += len(needed & whole)
        reached += len(needed & (whole | named))
    assert shown / total >= 0.83
    assert reached / total >= 0.97


def _tool(entry: dict[str, Any]) -> Tool:
    return Tool(
        name=entry["name"],
        server=entry["server"],
        description=entry["description"],
        parameters=entry["inputSchema"],
    )
