"""Which tools does a model server refuse? Found by asking it with some of them, as few times as possible."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Collection, Sequence

from toolway.errors import UpstreamError, UpstreamStatus

_ABOUT_TOOLS = re.compile(
    r"grammar|schema|function|\btools?\b|parameters|propert(y|ies)|\bpattern\b|generate parser", re.IGNORECASE
)
_ABOUT_SOMETHING_ELSE = re.compile(
    r"context|too (long|many tokens)|max_?tokens|rate.?limit|quota|billing|overloaded|"
    r"tool[ _-]?calls?\b|tool_call_id|tool_choice|role|response_format|"
    r"(does not|doesn't|not) support (tool|function)|no such model|model .{0,80}not (found|exist)|api.?key",
    re.IGNORECASE,
)
_STATUSES = frozenset({400, 422, 500})

Refuses = Callable[[Sequence[str]], Awaitable[bool]]
"""Whether the model server refuses a request that holds just these tools of ours."""


def is_about_tools(error: UpstreamError) -> bool:
    """Whether a refusal can be the fault of a tool's definition: by its status and its words."""
    if isinstance(error, UpstreamStatus):
        text = error.body.decode(errors="replace")
        if error.status not in _STATUSES:
            return False
    else:
        text = error.message
        if type(error) is not UpstreamError or (error.code or "").startswith("upstream_"):
            return False
    return bool(_ABOUT_TOOLS.search(text)) and not _ABOUT_SOMETHING_ELSE.search(text)


def suspects(error: UpstreamError, names: Sequence[str]) -> list[str]:
    """The tools that a refusal names, or counts: "Invalid schema for function 'x'", "tools[3]"."""
    text = error.body.decode(errors="replace") if isinstance(error, UpstreamStatus) else error.message
    words = set(re.findall(r"[A-Za-z0-9_-]+", text))
    return [name for name in names if name in words and len(name) > 3]


def most_probes(count: int) -> int:
    """How often `find_culprits` asks at most."""
    return 2 * math.ceil(math.log2(max(count, 2))) + 6


async def find_culprits(names: Sequence[str], refuses: Refuses, suspected: Collection[str] = ()) -> list[str]:
    """The tools without which the rest is taken, each proven alone; those found so far when asking gets too much.

    `refuses(())` is asked first: what is refused without any of ours is not ours to mend.
    """
    search = _Search(refuses, most_probes(len(names)))
    try:
        return await search.run(list(names), [name for name in names if name in suspected])
    except _Enough:
        return search.found


class _Enough(Exception):
    pass


class _Search:
    def __init__(self, refuses: Refuses, probes: int) -> None:
        self.found: list[str] = []
        self._refuses = refuses
        self._left = probes

    async def run(self, names: list[str], suspected: list[str]) -> list[str]:
        if await self._ask([]):
            return []
        for name in suspected[:2]:
            if await self._ask([name]):
                self.found.append(name)
        rest = [name for name in names if name not in self.found]
        while rest and (not self.found or await self._ask(rest)):
            culprit = await self._bisect(rest)
            if culprit is None:
                break
            self.found.append(culprit)
            rest.remove(culprit)
        return self.found

    async def _bisect(self, names: list[str]) -> str | None:
        """One culprit among names that are refused together; None when they are taken one by one."""
        proven = False
        while len(names) > 1:
            half = names[: len(names) // 2]
            proven = await self._ask(half)
            names = half if proven else names[len(half) :]
        return names[0] if proven or await self._ask(names) else None

    async def _ask(self, names: Sequence[str]) -> bool:
        if not self._left:
            raise _Enough
        self._left -= 1
        return await self._refuses(names)
