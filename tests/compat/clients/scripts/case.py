"""What each Python script is told, and what it prints: one JSON object.

    python SCRIPT BASE_URL API MODE TOOLS MANNER [QUESTION...]

API is `chat` or `responses`. MODE is `streamed` or `whole`. TOOLS is `none`, or `own`, when the client brings the tool
`double`, or `never=LABEL`, `approve=LABEL` or `deny=LABEL`, when it declares that server of Toolway's, whose calls run
unasked, or are approved or denied by its user. MANNER is the way of using the client, where it has several. The
questions are asked one after the other in one conversation. The Node scripts are told and print the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

QUESTION = "What is the weather in Paris?"

DOUBLE: Any = {
    "type": "function",
    "function": {
        "name": "double",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    },
}
"""A tool of the client's, as chat completions have it."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to do."""

    url: str
    api: str
    streamed: bool
    brings_tool: bool
    manner: str
    server: str = ""
    """The label of the server that the client declares, if it does."""
    asks: bool = False
    """Whether calls of that server wait for the user, who `approves` or not."""
    approves: bool = False
    questions: tuple[str, ...] = (QUESTION,)

    @property
    def declaration(self) -> dict[str, Any]:
        """The server as it stands among a request's tools."""
        approval = "always" if self.asks else "never"
        return {"type": "mcp", "server_label": self.server, "require_approval": approval}

    def decision(self, request: str) -> dict[str, Any]:
        """What the user says to the approval request with this id."""
        return {
            "type": "mcp_approval_response",
            "approval_request_id": request,
            "approve": self.approves,
        }


@dataclass(kw_only=True)
class Told:
    """What the client told its user: the text, the names of all tool calls that it showed, the error it raised.

    `asked` holds the names of the calls that waited for an approval, `ran` the arguments with which the client ran its
    own tool, `usage` the total tokens of the last request.
    """

    text: str = ""
    tools: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    ran: list[int] = field(default_factory=list)
    usage: int | None = None
    error: dict[str, Any] | None = None

    def double(self, x: int) -> int:
        """Double a number."""
        self.ran.append(x)
        return 2 * x


def tell(play: Callable[[Case, Told], None]) -> None:
    """Play the case of the command line and print what was told, also when the client raised."""
    url, api, mode, tools, manner, *questions = sys.argv[1:]
    kind, _, server = tools.partition("=")
    case = Case(
        url=url,
        api=api,
        streamed=mode == "streamed",
        brings_tool=kind == "own",
        manner=manner,
        server=server,
        asks=kind in ("approve", "deny"),
        approves=kind == "approve",
        questions=tuple(questions) or (QUESTION,),
    )
    told = Told()
    try:
        play(case, told)
    except Exception as error:
        status = getattr(error, "status_code", None)
        told.error = {"type": type(error).__name__, "status": status, "message": str(error)}
    print(json.dumps(asdict(told)))
