"""What each Python script is told, and what it prints: one JSON object.

    python SCRIPT BASE_URL API MODE TOOLS MANNER

API is `chat`. MODE is `streamed` or `whole`. TOOLS is `own`, when the client brings the tool `double`, or `none`.
MANNER is the way of using the client, where it has several. The Node scripts are told and print the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

QUESTION = "What is the weather in Paris?"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to do."""

    url: str
    api: str
    streamed: bool
    brings_tool: bool
    manner: str


@dataclass(kw_only=True)
class Told:
    """What the client told its user: the text, the names of all tool calls that it showed, the error it raised.

    `ran` holds the arguments with which the client ran its own tool, `usage` the total tokens of the last request.
    """

    text: str = ""
    tools: list[str] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)
    usage: int | None = None
    error: dict[str, Any] | None = None

    def double(self, x: int) -> int:
        """Double a number."""
        self.ran.append(x)
        return 2 * x


def tell(play: Callable[[Case, Told], None]) -> None:
    """Play the case of the command line and print what was told, also when the client raised."""
    url, api, mode, tools, manner = sys.argv[1:]
    case = Case(url=url, api=api, streamed=mode == "streamed", brings_tool=tools == "own", manner=manner)
    told = Told()
    try:
        play(case, told)
    except Exception as error:
        status = getattr(error, "status_code", None)
        told.error = {"type": type(error).__name__, "status": status, "message": str(error)}
    print(json.dumps(asdict(told)))
