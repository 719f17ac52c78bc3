"""Interrupted answers: their finished rounds, put back when the client goes on behind what it saw of them.

A client that left in the middle of an answer, or whose answer broke off, comes back with a part of its text, or with
nothing of it, and then a new message of its user. What ran meanwhile it never saw. The rounds are found by all that
the client sent before, and the part that it shows must be the beginning of what it was sent; where two attempts look
alike and had other rounds, they are nobody's. Whoever has no key must show a part that nobody could guess.

Some clients come back by themselves, with the part as their last message (Codex, whose stream broke): their answer
goes on behind it, and is kept as one with what ran before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolway.conversation.events import EventStream, Outcome
from toolway.engine.history.digests import SYSTEM, digests, essences, role_of, text_of
from toolway.stores import EntryKind, Key, Store
from toolway.types import JSON, Caller

MAX_INTERRUPTED = 8
"""Interrupted answers that are kept of conversations with the same beginning, the newest of them."""

UNGUESSABLE = 40
"""Characters of an answer, white space not counted, that tell whose it is where nobody has a key."""

_NOTE = re.compile(
    r"\W*(\w+ ?){0,4}(interrupted|aborted|cancell?ed|stopped)|Noresponserequested\.", re.IGNORECASE
)
"""What some clients write behind the part of an answer, or in its place: "[Response interrupted by user]"; Claude
Code's "No response requested."; without white space."""


@dataclass(frozen=True, kw_only=True)
class InterruptedAnswer:
    """The messages of finished `rounds`, and `shown`: the text that the client was sent, without white space."""

    conversation: str
    shown: str
    rounds: list[JSON]


INTERRUPTED = EntryKind("interrupted", list[InterruptedAnswer])


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the rounds of an attempt belong: before the message `anchor` of the client's, or in its place.

    `rest` is what stands in its place behind them: the part of the last turn that the client saw.
    """

    anchor: Any
    rounds: Sequence[JSON]
    rest: JSON | None


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """An attempt behind which the client goes on with the same answer, whose `part` is its last message.

    `sent` is what stands before the part, `rounds` are the messages that it never saw, and `rest` is what stands of
    the part behind them.
    """

    sent: Sequence[Any]
    part: str
    rounds: Sequence[JSON]
    rest: str

    def one(self, outcome: Outcome) -> Outcome:
        """The whole answer: this attempt and what came of going on. What was said of one turn is one message."""
        if outcome.hidden:
            hidden = self._with_rest(outcome.hidden)
            return replace(outcome, hidden=(*self.rounds, *hidden), earlier=(self._seen, *outcome.earlier))
        before = {"content": self.part.removesuffix(self.rest)}
        (fields,) = self._with_rest((outcome.message.fields,))
        return replace(
            outcome,
            hidden=tuple(self.rounds),
            earlier=(before, *outcome.earlier),
            message=replace(outcome.message, fields=fields),
            split_turn=self._with_rest(outcome.split_turn),
        )

    def all_rounds(self, rounds: Sequence[JSON]) -> list[JSON]:
        """Its rounds, and those of going on."""
        return [*self.rounds, *self._with_rest(rounds)]

    @property
    def _seen(self) -> JSON:
        return {"content": self.part}

    def _with_rest(self, messages: Sequence[JSON]) -> tuple[JSON, ...]:
        """`messages`, of which the first goes on behind the rest."""
        if not messages or not self.rest:
            return tuple(messages)
        first, *others = messages
        return ({**first, "content": self.rest + text_of(first.get("content"))}, *others)


def continued(sent: Sequence[Any], places: Sequence[Place]) -> Continuation | None:
    """The attempt that the client goes on with by itself, if there is one."""
    if not places or places[-1].anchor is not sent[-1] or sent[-1].get("role") != "assistant":
        return None
    place, part = places[-1], text_of(sent[-1].get("content"))
    rest = text_of(place.rest.get("content")) if place.rest else ""
    return Continuation(sent=sent[:-1], part=part, rounds=place.rounds, rest=rest)


async def keep(
    store: Store, caller: Caller, sent: Sequence[Any], events: EventStream, before: Continuation | None = None
) -> None:
    """An attempt to answer these messages broke off, perhaps one that went on `before`."""
    rounds = [*events.rounds, *events.cut]
    if not rounds and not store.may_have(caller.id, INTERRUPTED):
        return
    texts = [text_of(message.get("content")) for message in rounds if message["role"] == "assistant"]
    if before is not None:
        sent, texts, rounds = before.sent, [before.part, *texts], before.all_rounds(rounds)
    *_, conversation = digests(essences(sent))
    key = _key_of(caller, sent)
    kept = await store.get(key) or []
    shown = "".join([*texts, "" if events.cut else events.unfinished_text()])
    new = InterruptedAnswer(conversation=conversation, shown="".join(shown.split()), rounds=rounds)
    others = [old for old in kept if old.conversation != conversation or not _continues(new, old)]
    # One without any makes those of another, that looks the same, nobody's.
    if new.rounds or any(old.conversation == conversation for old in others):
        await store.put(key, [*others, new][-MAX_INTERRUPTED:])


def may_be_kept(store: Store, caller: Caller, sent: Sequence[Any]) -> bool:
    """Whether rounds may be kept that belong into this conversation; False when it is known that there are none."""
    if not store.may_have(caller.id, INTERRUPTED) or not _parts(sent):
        return False
    return store.may_hold(_key_of(caller, sent))


async def find(
    store: Store, caller: Caller, sent: Sequence[Any], *, complete: int = 0, prefills: bool = True
) -> Sequence[Place]:
    """Where rounds of interrupted answers belong in a conversation of the client's.

    The first `complete` messages have them already. A part that ends the conversation is what the model goes on with,
    or, in an API without `prefills`, a turn that is to be made anew: many templates refuse such an end.
    """
    if not store.may_have(caller.id, INTERRUPTED) or not (
        parts := [part for part in _parts(sent) if part[0] >= complete]
    ):
        return ()
    if not (kept := await store.get(_key_of(caller, sent))):
        return ()
    up_to = list(digests(essences(sent)))
    places = []
    for before, part in parts:
        alike = [
            old for old in kept if old.conversation == up_to[before] and _is_part(part, old.shown, caller)
        ]
        if alike and all(old.rounds == alike[0].rounds for old in alike) and alike[0].rounds:
            place = _place(sent[before], part, alike[0])
            is_last = place.anchor is sent[-1] and part is not None
            places.append(replace(place, rest=None) if is_last and not prefills else place)
    return places


def put_back(messages: Sequence[Any], places: Sequence[Place]) -> list[Any]:
    """The conversation with the rounds in their places."""
    by_anchor: Mapping[int, Place] = {id(place.anchor): place for place in places}
    whole: list[Any] = []
    for message in messages:
        if (place := by_anchor.get(id(message))) is None:
            whole.append(message)
        else:
            whole += [*place.rounds, *([place.rest] if place.rest else [])]
    return whole


def _parts(sent: Sequence[Any]) -> list[tuple[int, str | None]]:
    """Each place where an answer may have broken off: how many messages stand before it, and the part that is shown.

    No part: a message of the user's follows where an answer should stand. The last message may be a part. Behind system
    messages alone nothing can have broken off.
    """
    places: list[tuple[int, str | None]] = []
    if not (first := _first(sent)) or (first == len(sent) and role_of(sent[-1]) != "assistant"):
        return places
    for position, one in enumerate(sent[first - 1 :], first - 1):
        behind = sent[position + 1] if position + 1 < len(sent) else None
        is_last, role = position + 1 == len(sent), one.get("role") if isinstance(one, dict) else None
        if role is None or not (is_last or (isinstance(behind, dict) and behind.get("role") == "user")):
            continue
        if role == "assistant" and not one.get("tool_calls"):
            places.append((position, text_of(one.get("content"))))
        elif role != "assistant" and not is_last:
            places.append((position + 1, None))
    return places


def _is_part(part: str | None, shown: str, caller: Caller) -> bool:
    """Whether this is what a client may show of an answer whose text began like that."""
    seen, same = "".join((part or "").split()), _shared(part or "", shown)
    if same < len(seen) and not _NOTE.match(seen[same:]):
        return False
    return caller.is_known or same >= UNGUESSABLE


def _shared(part: str, shown: str) -> int:
    """How many characters of an answer, white space not counted, are at the beginning of a part."""
    seen = "".join(part.split())
    pairs = zip(seen, shown, strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(seen), len(shown)))


def _place(anchor: Any, part: str | None, old: InterruptedAnswer) -> Place:
    rounds = old.rounds
    if part is None:
        return Place(anchor=anchor, rounds=rounds, rest=anchor)
    text = "".join(text_of(message.get("content")) for message in rounds if message["role"] == "assistant")
    seen = min(len("".join(text.split())), _shared(part, old.shown))
    rest = part.removeprefix(text) if part.startswith(text) else _behind(part, seen)
    rest = rest.lstrip()  # where the client parts two texts
    return Place(anchor=anchor, rounds=rounds, rest={**anchor, "content": rest} if rest else None)


def _behind(text: str, count: int) -> str:
    """What is left of a text behind so many characters that are no white space."""
    for position, character in enumerate(text):
        if count <= 0:
            return text[position:]
        count -= not character.isspace()
    return ""


def _continues(new: InterruptedAnswer, old: InterruptedAnswer) -> bool:
    """Whether an attempt went on behind the rounds of another."""
    return new.rounds[: len(old.rounds)] == old.rounds


def _key_of(caller: Caller, sent: Sequence[Any]) -> Key[list[InterruptedAnswer]]:
    """Where attempts of the conversations with this first message are kept."""
    *_, first = digests(essences(sent[: _first(sent)]))
    return INTERRUPTED.key(caller.id, first)


def _first(sent: Sequence[Any]) -> int:
    """How many messages stand up to the first one that is no system message."""
    return next((n for n, message in enumerate(sent, 1) if role_of(message) not in SYSTEM), 0)
