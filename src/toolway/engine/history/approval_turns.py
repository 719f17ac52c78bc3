"""Turns whose calls wait for a person, in plain chat: asked about in words, answered by the user's next message.

What the client sees is a question with a code at its end. The turn itself waits in the store under that code, which
nobody else was given. When the client returns with the question and a message of its user's behind it, turn and results
stand in place of both, as if the calls had run at once; so the model never sees a question, and can answer none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any

import anyio

from toolway.access.approval_question import code_at_end, new_code, write_question
from toolway.access.approval_reply import Reply, read_reply
from toolway.access.approvals import Approval, Verdict
from toolway.access.gate import CallGate
from toolway.access.language import language_of
from toolway.access.policy import Policy
from toolway.conversation.events import Chunks, EventStream, HeadArrived, Outcome, RoundBegan
from toolway.conversation.message import ChatRequest, joined, own_answer
from toolway.engine.history.digests import SYSTEM, role_of
from toolway.engine.history.split_turns import SplitTurn, parts_of
from toolway.engine.tool_results import fill_results, tool_message
from toolway.errors import NotFound, StoreError
from toolway.stores import EntryKind
from toolway.types import JSON, Caller, ToolCall

REPEAT_TIMEOUT = 30.0
"""Seconds for which one who sends the same answer again waits for what the first one ran."""

POLL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class ApprovalTurn(SplitTurn):
    """A turn that waits, its open calls with the ids of their approvals, and how its question looks."""

    calls: list[ToolCall]
    approvals: list[str]
    question: str
    length: int

    def is_asked_in(self, text: str) -> bool:
        """Whether a text ends with the question; what a client does to white space makes no difference."""
        return _digest(_essence(text)[-self.length :]) == self.question


@dataclass(frozen=True, kw_only=True)
class _Resolution:
    """What stands in place of the question since a reply decided this (`_decision`).

    `is_pure` says that the reply was nothing but an answer, which the model does not see.
    """

    reply: str
    is_pure: bool
    messages: list[JSON]
    grants: list[str] = field(default_factory=list)


TURN = EntryKind("approval turn", ApprovalTurn)
CLAIM = EntryKind("approval claim", str)
ANSWERED = EntryKind("approval answered", _Resolution)


@dataclass(kw_only=True)
class RestoredConversation:
    """A conversation with the turns behind its questions; `approved` are the calls in it that must run now.

    With a `question` nothing goes on: it is asked again, since it is not certain what its answer meant.
    """

    messages: Sequence[Any]
    question: str = ""
    approved: Sequence[ToolCall] = ()
    keep: Callable[[_Resolution], Awaitable[None]] | None = None
    resolution: _Resolution | None = None
    begin: int = 0

    async def fill(self, results: Sequence[JSON]) -> Sequence[Any]:
        """The conversation with the results of the approved calls in it, which are kept for when it comes again."""
        resolution, keep = self.resolution, self.keep
        assert resolution and keep  # noqa: S101 - calls were approved
        self.keep = None
        filled = replace(resolution, messages=fill_results(resolution.messages, results))
        await keep(filled)
        end = self.begin + len(resolution.messages)
        return [*self.messages[: self.begin], *filled.messages, *self.messages[end:]]

    async def close(self) -> None:
        """The request ends. Calls that were stopped in the middle do not run when the same answer comes again."""
        if self.keep:
            text = "Error: it was stopped before its end; it is not known whether it ran."
            with anyio.CancelScope(shield=True):
                await self.fill([tool_message(call, text) for call in self.approved])


class ApprovalTurns:
    """The questions of one caller's conversations."""

    def __init__(self, policy: Policy, gate: CallGate, caller: Caller) -> None:
        self._approvals = policy.approvals
        self._store = policy.approvals.store
        self._redact = policy.redact
        self._gate = gate
        self._caller = caller
        self._owner = caller.id

    async def ask(
        self, outcome: Outcome, asked: Sequence[Approval], messages: Sequence[Any], events: EventStream
    ) -> Outcome:
        """The outcome with a question about its calls that wait as the end of the answer. Raises StoreError."""
        turn = ApprovalTurn(
            before=list(outcome.hidden),
            **parts_of(outcome.split_turn),
            calls=list(outcome.pending_approvals),
            approvals=[approval.id for approval in asked],
            question="",
            length=0,
        )
        question = await self._question(turn, asked, messages)
        message, content = outcome.message, outcome.message.fields.get("content")
        if content or any(turn.get("content") for turn in outcome.earlier):
            question = f"\n\n{question}"
        await events.emit(Chunks([({"choices": [{"index": 0, "delta": {"content": question}}]}, None)]))
        fields = {**message.fields, "content": joined([content, question]) if content else question}
        message = replace(message, fields=fields, finish_reason="stop")
        return replace(outcome, message=message, split_turn=())

    async def ask_again(self, question: str, request: ChatRequest, events: EventStream) -> Outcome:
        """The outcome of a request whose answer is nothing but a question."""
        await events.emit(RoundBegan(number=1))
        await events.emit(HeadArrived(headers=()))
        await events.emit(Chunks([({"choices": [{"index": 0, "delta": {"content": question}}]}, None)]))
        return Outcome(
            message=own_answer(request.options.get("model"), question), prompt=tuple(request.messages)
        )

    async def _question(
        self,
        turn: ApprovalTurn,
        asked: Sequence[Approval],
        messages: Sequence[Any],
        *,
        is_asked_again: bool = False,
    ) -> str:
        """Keep the turn; the question about its open calls, in the language of its user as far as it is known."""
        accepted = next((value for name, value in self._caller.headers if name == b"accept-language"), b"")
        code = new_code()
        language = language_of(
            [_text(m) for m in messages if role_of(m) == "user"], accepted.decode("latin-1")
        )
        question = write_question(asked, code, language, self._redact, is_asked_again=is_asked_again)
        essence = _essence(question)
        turn = replace(turn, question=_digest(essence), length=len(essence))
        await self._store.put(TURN.key(self._owner, code), turn, certain=True)
        return question

    async def put_back(self, messages: Sequence[Any]) -> RestoredConversation:
        """The conversation as the model shall see it. An answer at its end decides. Raises StoreError."""
        restored = RestoredConversation(messages=messages)
        if not any(code_in(message) for message in messages):
            return restored
        found: list[Any] = []
        position = 0
        while position < len(messages):
            reply = messages[position + 1] if position + 1 < len(messages) else None
            is_last = all(role_of(message) in SYSTEM for message in messages[position + 2 :])
            code = code_in(messages[position])
            turn = None
            if code and role_of(reply) == "user":
                turn = await self._turn(code, messages[position], is_last)
            is_unclear = bool(code and turn and reply and await self._is_unclear(code, turn, reply))
            if turn and is_unclear and is_last:
                restored.question = await self._open_question(turn, messages)
                is_unclear = bool(restored.question)
            if is_unclear:
                position += 2  # the model sees neither the question nor what was no answer to it
            elif code and turn and reply:
                resolution, approved = await self._answer(code, turn, reply, is_last)
                if approved:
                    restored.approved, restored.keep = approved, partial(self._keep, code)
                    restored.resolution, restored.begin = resolution, len(found)
                self._gate.grants += resolution.grants
                found += resolution.messages if resolution.is_pure else [*resolution.messages, reply]
                position += 2
            else:
                found.append(messages[position])
                position += 1
        restored.messages = found
        return restored

    async def _is_unclear(self, code: str, turn: ApprovalTurn, reply: JSON) -> bool:
        """Whether a message was meant as an answer to a question, but not which; not once it counted as none."""
        read = read_reply(_text(reply), code, len(turn.calls))
        if read is None or read.is_clear:
            return False
        return await self._store.get(ANSWERED.key(self._owner, code), certain=True) is None

    async def _open_question(self, turn: ApprovalTurn, messages: Sequence[Any]) -> str:
        """The question about a turn once more; empty when it has its answers by now, or the time for them is over."""
        asked = [await self._approvals.find(identity) for identity in turn.approvals]
        verdicts = [await self._approvals.verdict(identity) for identity in turn.approvals]
        waiting = [approval for approval in asked if approval and approval.owner == self._owner]
        if len(waiting) < len(asked) or all(verdicts):
            return ""
        return await self._question(turn, waiting, messages, is_asked_again=True)

    async def _turn(self, code: str, message: JSON, is_last: bool) -> ApprovalTurn | None:
        turn = await self._store.get(TURN.key(self._owner, code), certain=is_last)
        return turn if turn and turn.is_asked_in(_text(message)) else None

    async def _answer(
        self, code: str, turn: ApprovalTurn, reply: JSON, is_last: bool
    ) -> tuple[_Resolution, Sequence[ToolCall]]:
        """What stands in place of question and reply, and the calls in it that must run now."""
        answer = _clear_reply(_text(reply), code, turn)
        decision = _decision(answer)
        key = ANSWERED.key(self._owner, code)
        resolution = await self._store.get(key, certain=is_last)
        if resolution is None:
            if not is_last:
                return _not_run(turn, decision, repeat("was not run: nobody approved it")), ()
            if await self._store.add(CLAIM.key(self._owner, code), decision):
                return await self._decide_or_release(code, turn, answer)
            resolution = await self._wait_for(code, decision)
        if resolution is None:
            fate = "was not run again: it was begun before, and it is not known whether it ran"
            return _not_run(turn, decision, repeat(fate)), ()
        if resolution.reply != decision:
            await self._take_back(turn, answer)
            verdicts = [await self._approvals.verdict(identity) for identity in turn.approvals]
            return _not_run(turn, decision, map(_fate, verdicts)), ()
        return resolution, ()

    async def _take_back(self, turn: ApprovalTurn, reply: Reply | None) -> None:
        """The user now refuses calls that an earlier answer allowed: those that have not begun do not run."""
        if reply is None:
            return
        for number, identity in enumerate(turn.approvals):
            if number not in reply.approved:
                with suppress(NotFound):
                    await self._approvals.answer(identity, Verdict(approve=False, by=self._gate.dialect))

    async def _wait_for(self, code: str, decision: str) -> _Resolution | None:
        """What comes of the same decision, which somebody else is about to carry out."""
        known = await self._store.get(CLAIM.key(self._owner, code), certain=True)
        if known is not None and known != decision:
            return _Resolution(reply=known, is_pure=False, messages=[])
        with anyio.move_on_after(REPEAT_TIMEOUT):
            while True:
                if resolution := await self._store.get(ANSWERED.key(self._owner, code), certain=True):
                    return resolution
                await anyio.sleep(POLL_SECONDS)
        return None

    async def _decide_or_release(
        self, code: str, turn: ApprovalTurn, reply: Reply | None
    ) -> tuple[_Resolution, Sequence[ToolCall]]:
        try:
            return await self._decide(code, turn, reply)
        except StoreError:
            with suppress(StoreError):  # so that the same answer can be sent again
                await self._store.delete(CLAIM.key(self._owner, code))
            raise

    async def _decide(
        self, code: str, turn: ApprovalTurn, reply: Reply | None
    ) -> tuple[_Resolution, Sequence[ToolCall]]:
        approved: list[ToolCall] = []
        results: list[JSON] = []
        grants: list[str] = []
        for number, (call, identity) in enumerate(zip(turn.calls, turn.approvals, strict=True)):
            verdict = Verdict(
                approve=reply is not None and number in reply.approved,
                by=self._gate.dialect,
                reason="" if reply else "the user answered something else",
                always="conversation" if reply and reply.always else "",
            )
            # Something else is no answer: what somebody else said meanwhile counts.
            approval, verdict = await self._gate.resume(call, identity, verdict, takes_back=reply is not None)
            if approval and verdict.approve:
                approved.append(call)
                grants += [verdict.grant] if verdict.always == "conversation" else []
            results.append(tool_message(call, "" if call in approved else _why(call, approval, verdict)))
        resolution = _Resolution(
            reply=_decision(reply),
            is_pure=reply is not None,
            messages=turn.whole(results),
            grants=grants,
        )
        if not approved:
            await self._keep(code, resolution)
        return resolution, approved

    async def _keep(self, code: str, resolution: _Resolution) -> None:
        await self._store.put(ANSWERED.key(self._owner, code), resolution)


def _clear_reply(text: str, code: str, turn: ApprovalTurn) -> Reply | None:
    """What a text answers to a question; None when that is not certain."""
    reply = read_reply(text, code, len(turn.calls))
    return reply if reply and reply.is_clear else None


def _why(call: ToolCall, approval: Approval | None, verdict: Verdict) -> str:
    if approval is None:
        return f"Error: {call.name} was not run: the answer came after the time for it was over."
    why = f": {verdict.reason}" if verdict.reason else ""
    return f"Error: {call.name} was not run: the user did not approve it{why}."


def _decision(reply: Reply | None) -> str:
    """What an answer decides, the same in all its wordings: which calls may run, and whether for the conversation.

    Empty for what is no answer: it decides nothing.
    """
    if reply is None:
        return ""
    numbers = " ".join(map(str, sorted(reply.approved)))
    return f"always {numbers}" if reply.always else numbers or "none"


def _fate(verdict: Verdict | None) -> str:
    """What became of a call whose question had another answer before; `verdict` is the one that counts."""
    earlier = "an earlier answer to this question, in another branch of this conversation"
    if verdict is None:
        return (
            f"was not run for this answer: its time is over. It is not known whether it ran after {earlier}"
        )
    if verdict.approve:
        return f"was not run for this answer: it was allowed by {earlier}, and may have run then"
    return f"was not run: it was refused by {earlier}. If it is still wanted, call it again: the user is asked anew"


def _not_run(turn: ApprovalTurn, decision: str, fates: Iterable[str]) -> _Resolution:
    """The turn in which a reply of this decision, a message like any other, runs none of the open calls."""
    results = [
        tool_message(call, f"Error: {call.name} {fate}.")
        for call, fate in zip(turn.calls, fates, strict=False)
    ]
    return _Resolution(reply=decision, is_pure=False, messages=turn.whole(results))


def code_in(message: Any) -> str | None:
    """The code at the end of a message of the assistant's."""
    if not isinstance(message, dict) or message.get("role") != "assistant" or message.get("tool_calls"):
        return None
    return code_at_end(_text(message))


def _text(message: JSON) -> str:
    """The words of a message; an image or anything else in it counts as a word that is no answer."""
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        return "".join(text if isinstance(text, str) else " [?] " for text in texts)
    return content if isinstance(content, str) else ""


def _essence(text: str) -> str:
    return "".join(text.split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
