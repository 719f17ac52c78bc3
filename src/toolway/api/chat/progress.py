"""What people may see of the calls behind an answer, in the forms that clients show."""

from __future__ import annotations

from typing import Literal

from toolway.conversation.events import CallBegan, CallEnded, CallProgressed, Event
from toolway.types import JSON, Progress

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
