"""A subscriber that writes what happens in one conversation as lines of the log."""

from __future__ import annotations

import logging
import random
import time
from functools import cached_property

from toolway.conversation.events import (
    CallBegan,
    CallEnded,
    ClientLeft,
    ConversationBegan,
    ConversationEnded,
    ConversationFailed,
    Event,
    Outcome,
    RoundBegan,
)

log = logging.getLogger("toolway.chat")


def log_conversation() -> ConversationLog | None:
    """The log of one conversation, if anybody reads it."""
    return ConversationLog() if log.isEnabledFor(logging.INFO) else None


def log_failure(event: ConversationFailed) -> None:
    """Write the line of an error, of a conversation that has no other lines too."""
    if not log.isEnabledFor(logging.INFO):
        ConversationLog()(event)


class ConversationLog:
    """One request as lines of the log, under an id of its own; what clients send is never that id."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @cached_property
    def _id(self) -> str:
        return f"{random.getrandbits(24):06x}"

    def __call__(self, event: Event) -> None:
        """Write the line of an event; those with nothing to read are passed over."""
        match event:
            case ConversationBegan():
                how = "streamed" if event.streamed else "whole"
                messages, tools = _count(event.messages, "message"), _count(event.tools, "tool")
                side = f": a side request ({event.side}) gets none" if event.side else ""
                log.info("%s > %s, %s, %s, %s%s", self._id, str(event.model), how, messages, tools, side)
            case RoundBegan(number=number) if number > 1:
                log.info("%s   round %d", self._id, number)
            case CallBegan(call=call, tool=tool):
                server = f"of {tool.server}" if tool else "(unknown)"
                # Words from outside are not for a log that is kept: debug output alone.
                log.debug("%s   call %s %s: %s", self._id, call.name, server, call.arguments)
            case CallEnded():
                self._call_ended(event)
            case ConversationEnded(outcome=outcome):
                self._ended(outcome)
            case ConversationFailed():
                self._failed(event)
            case ClientLeft():
                log.info("%s < the client left after %.2f s", self._id, self._seconds())

    def _call_ended(self, event: CallEnded) -> None:
        result = event.result
        how = "failed" if result.is_error else "done"
        size = _count(len(result.text), "character")
        log.info("%s   %s %s in %.2f s, %s", self._id, how, event.call.name, event.seconds, size)
        if result.is_error:
            log.debug("%s   because: %s", self._id, result.text)

    def _ended(self, outcome: Outcome) -> None:
        tokens = (outcome.total_usage or {}).get("total_tokens")
        counts = [_count(outcome.rounds, "round"), _count(outcome.calls, "call")]
        counts += [] if tokens is None else [f"{tokens} tokens"]
        reason = outcome.message.finish_reason
        log.info("%s < %s, %s, %.2f s", self._id, reason, ", ".join(counts), self._seconds())

    def _failed(self, event: ConversationFailed) -> None:
        error = event.error
        level = logging.WARNING if error.status >= 500 else logging.INFO
        log.log(level, "%s < %d after %.2f s: %s", self._id, error.status, event.seconds, error.message)

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
