"""The chunks of many rounds, and the progress of calls, -> one streamed answer: one id, one role, one finish_reason."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Literal

import orjson

from toolway.conversation.chunk_template import TextRun
from toolway.conversation.events import CallBegan, CallEnded, CallProgressed, Event
from toolway.conversation.message import Message
from toolway.errors import ToolwayError
from toolway.server.envelopes import openai_envelope
from toolway.types import JSON, Progress
from toolway.wire import lenient_json, sse

_NONE = object()


class ChunkWriter:
    """Writes one client's stream. `id`, `created` and `model` are those of the first chunk of round 1."""

    def __init__(self, model: str | None) -> None:
        self._model = model
        self._same: JSON = {}
        self._role_sent = False
        self._fitted = False
        """Whether a chunk that is like the last one, but for its text, can go out unchanged."""

    def write(self, items: Iterable[tuple[JSON | str, bytes | None]] | TextRun) -> bytes:
        """The events for these chunks; a chunk that needs no change goes out as the bytes it came in.

        A text in place of a chunk stands for one like the chunk before it, but for the text.
        """
        if isinstance(items, TextRun):
            if self._fitted:
                return items.events
            chunks = iter(items)
            written = self.write([next(chunks)])
            return written + (items.behind_first if self._fitted else self.write(chunks))
        out = []
        for item, raw in items:
            if self._fitted and raw is not None and isinstance(item, str):
                out.append(sse.encode(raw))
                continue
            chunk = orjson.loads(raw or b"{}") if isinstance(item, str) else item
            self._fitted = raw is not None and self._fits(chunk)
            if self._fitted and raw is not None:
                out.append(sse.encode(raw))
            elif (framed := self._with_frame(chunk)) is not None:
                out.append(sse.encode(lenient_json.dumps(framed)))
                self._fitted = raw is not None and self._fits(chunk)
        return b"".join(out)

    def end(self, message: Message, usage: JSON | None) -> bytes:
        """The finish chunk, the usage chunk if there is something to report, and `[DONE]`."""
        choices = message.frame.get("choices")
        choice = dict(choices[0]) if choices else {}
        choice.pop("message", None)
        frame = dict(message.frame)
        frame.pop("usage", None)
        delta = {} if self._role_sent else {"role": "assistant", "content": ""}
        self._role_sent = True
        choice = {**choice, "index": 0, "delta": delta, "finish_reason": message.finish_reason}
        events = [sse.encode(lenient_json.dumps({**frame, **self._adopt(frame), "choices": [choice]}))]
        if usage:
            last = {**message.usage_frame, **self._same, "choices": [], "usage": usage}
            events.append(sse.encode(lenient_json.dumps(last)))
        return b"".join([*events, sse.STREAM_END])

    def _fits(self, chunk: JSON) -> bool:
        """Whether a chunk can go out unchanged."""
        if not (self._same and self._same.items() <= chunk.items()):
            return False
        if not (choices := chunk["choices"]):
            return True
        return self._role_sent and choices[0].get("index") == 0 and "role" not in choices[0]["delta"]

    def _with_frame(self, chunk: JSON) -> JSON | None:
        framed = {**chunk, **self._adopt(chunk)}
        if not (choices := framed.get("choices")):
            return framed
        delta = dict(choices[0]["delta"])
        role = delta.pop("role", _NONE)
        if not self._role_sent:
            delta = {"role": "assistant", **delta}
            self._role_sent = True
        elif role is not _NONE and not any(delta.values()):
            return None
        return {**framed, "choices": [{"finish_reason": None, **choices[0], "index": 0, "delta": delta}]}

    def _adopt(self, chunk: JSON) -> JSON:
        if not self._same:
            self._same = {
                "id": chunk.get("id") or f"chatcmpl-{secrets.token_hex(12)}",
                "object": "chat.completion.chunk",
                "created": chunk.get("created") or int(time.time()),
                "model": chunk.get("model") or self._model or "unknown",
            }
        return self._same


def failure(error: ToolwayError) -> bytes:
    """The end of a stream that failed: an error without choices, so that no client takes it for an answer."""
    return sse.encode(lenient_json.dumps(openai_envelope(error))) + sse.STREAM_END


Form = Literal["off", "openwebui", "reasoning"]

MAX_MESSAGE = 200
"""Characters of a tool's own words about its progress."""


def progress_chunk(event: Event, form: Form) -> JSON | None:
    """A chunk with an empty delta and a status event, or with a line of reasoning; None: nothing to show."""
    if form == "off":
        return None
    match event:
        case CallBegan(call=call):
            text, done = f"{call.name} ...", False
        case CallProgressed(call=call, progress=progress):
            text, done = f"{call.name}: {_how_far(progress)}", False
        case CallEnded(call=call, result=result, seconds=seconds):
            text, done = f"{call.name}: {'failed' if result.is_error else 'done'} in {seconds:.1f} s", True
        case _:
            return None
    delta = {"reasoning_content": text + "\n"} if form == "reasoning" else {}
    chunk: JSON = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    if form == "openwebui":
        chunk["event"] = {"type": "status", "data": {"description": text, "done": done}}
    return chunk


def _how_far(progress: Progress) -> str:
    if progress.total:
        share = f"{min(100, round(100 * progress.progress / progress.total))} %"
    else:
        share = f"{progress.progress:g}"
    return f"{share}, {progress.message[:MAX_MESSAGE]}" if progress.message else share
