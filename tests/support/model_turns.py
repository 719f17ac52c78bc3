"""What a model says in one turn, written as its server would: as a stream in pieces, or as a whole answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.app_server import AppServer
from tests.support.upstream import Reply, chunk, sse, whole

JSON = dict[str, Any]

USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}


@dataclass(frozen=True, kw_only=True)
class ModelTurn:
    """`calls` are as in a delta (`tool_call`); `finish` by default what goes with them."""

    text: str = ""
    calls: tuple[JSON, ...] = ()
    reasoning: str = ""
    finish: str | None = None
    usage: JSON = field(default_factory=lambda: USAGE)

    def reply(self, *, streamed: bool) -> Reply:
        """The turn as bytes."""
        finish = self.finish or ("tool_calls" if self.calls else "stop")
        if streamed:
            pieces = [chunk(reasoning_content=part) for part in _halves(self.reasoning)]
            pieces += [chunk(content=part) for part in _halves(self.text)]
            pieces += [chunk(tool_calls=[call]) for call in self.calls]
            last = {**chunk(), "choices": [], "usage": self.usage}
            return sse(chunk(role="assistant", content=""), *pieces, chunk(finish=finish), last)
        message: JSON = {"content": self.text or None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {key: value for key, value in call.items() if key != "index"} for call in self.calls
            ]
        return whole(message, finish, usage=self.usage)


def _halves(text: str) -> list[str]:
    return [text[: len(text) // 2], text[len(text) // 2 :]] if text else []


def set_turns(app: AppServer, *turns: ModelTurn | Reply) -> None:
    """The model's turns, each written as its request wants it; the last one again and again."""

    def answer(body: JSON) -> Reply:
        turn = turns[min(len(app.upstream.seen), len(turns) - 1)]
        return turn if isinstance(turn, Reply) else turn.reply(streamed=bool(body.get("stream")))

    app.set_replies()
    app.upstream.answer = answer
