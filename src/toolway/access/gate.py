"""The gate of one request: decides whether each of its calls runs, has people asked, and notes what came of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio

from toolway.access.approval_question import write_summary
from toolway.access.approvals import Approval, Approvals, Verdict
from toolway.access.audit import AuditLog
from toolway.access.rules import ALLOWED, CallOrigin, Decision, Rules
from toolway.errors import InvalidRequest, NotFound, StoreError
from toolway.telemetry.logging import Redactor
from toolway.tools.invoke import read_call
from toolway.types import (
    JSON,
    Caller,
    ClientRequestFailed,
    Tool,
    ToolCall,
    ToolResult,
    call_client,
    is_selected,
)
from toolway.wire.lenient_json import dumps

log = logging.getLogger("toolway.access")

Elicit = Callable[[Approval], Awaitable[Verdict | None]]
"""Asks the person at the client, where its protocol can; None: nobody answered."""

ELICITATION: JSON = {
    "type": "object",
    "properties": {"allow": {"type": "boolean", "title": "Allow", "description": "Let this call run once"}},
    "required": ["allow"],
}

UNREACHABLE = "whether it is allowed cannot be known now, since the store cannot be reached"


@dataclass(frozen=True, kw_only=True)
class _ApprovalOutcome:
    """What became of a call that a person had to be asked about: its approval, or why it does not run."""

    approval: Approval | None = None
    verdict: Verdict | None = None
    reason: str = "nobody answered"


class _MustWait(Exception):
    """A call that comes again must wait for a person: it is neither allowed nor denied, and the audit log says so."""

    def __init__(self, approval: Approval) -> None:
        super().__init__(approval.id)
        self.approval = approval


class CallGate:
    """The `Gate` of the calls that come with one request of `caller`.

    `elicit` asks the person at the client, if that can be; then a call waits `wait` seconds for an answer of somebody
    else before the request goes on without it. `write_waiting` says what the caller of a tool that is called directly
    reads meanwhile.
    """

    def __init__(
        self,
        rules: Rules,
        approvals: Approvals,
        audit: AuditLog | None,
        *,
        caller: Caller,
        origin: CallOrigin,
        wait: float,
        elicit: Elicit,
        write_waiting: Callable[[Approval], str],
        messages: Sequence[Any] = (),
    ) -> None:
        self._rules = rules
        self._approvals = approvals
        self._audit = audit
        self._caller = caller
        self._origin = origin
        self.dialect = origin.dialect
        self._wait = wait
        self._elicit = elicit
        self._write_waiting = write_waiting
        self._messages = messages
        self._outcomes: dict[tuple[str, str], _ApprovalOutcome] = {}
        self._decisions: dict[str, Decision] = {}
        self._who: Mapping[str, Any] | None = None
        self.grants: list[str] = []
        """The ids of the standing yeses that hold in this conversation."""

    def must_ask(self, call: ToolCall, tool: Tool) -> bool:
        """Whether the rules want a person to be asked before this call runs; not for one that cannot run anyway."""
        if not self._rules.may_ask(call.name, tool):
            return False
        arguments = read_call(call, tool)
        if isinstance(arguments, ToolResult) or not self._exists(call, tool):
            return False
        return self._decide(call, tool, arguments).effect == "ask"

    async def ask_for_approval(
        self, calls: Sequence[tuple[ToolCall, Tool]], *, may_stay_open: bool = True
    ) -> list[Approval | None]:
        """Have people asked about calls; for each its approval when nobody answered in time, None when it is resolved.

        A call that is resolved may be invoked: it runs, or the model reads why it does not.
        """
        asked = [await self._ask(call, tool) for call, tool in calls]
        waiting = [approval for approval in asked if approval]
        answers = await self._answers(waiting)
        left: list[Approval | None] = []
        for (call, _), approval in zip(calls, asked, strict=True):
            if approval and (verdict := answers.get(approval.id)):
                self._outcomes[_key(call)] = _ApprovalOutcome(approval=approval, verdict=verdict)
                self._note_answered(approval, verdict)
                self.grants += [verdict.grant] if verdict.grant else []
            elif approval and not may_stay_open:
                self._outcomes[_key(call)] = _ApprovalOutcome(reason=_BESIDE)
            left.append(approval if approval and _key(call) not in self._outcomes else None)
        if not may_stay_open:
            await self._withdraw([a for a in waiting if a.id not in answers])
        return left

    async def resume(
        self, call: ToolCall, identity: str, verdict: Verdict, *, takes_back: bool = True
    ) -> tuple[Approval | None, Verdict]:
        """Go on with a call that waited in an earlier request, under the approval of this id.

        Returns the approval, None when its time is over, and the answer that counts (`Approvals.answer`). Raises
        StoreError.
        """
        approval = await self._approvals.find(identity)
        if approval and approval.owner != self._caller.id:
            approval = None
        if approval:
            try:
                verdict = await self._approvals.answer(identity, verdict, takes_back=takes_back)
                self._note_answered(approval, verdict)
            except NotFound:
                approval = None
        self.grants += [verdict.grant] if verdict.grant else []
        self._outcomes[_key(call)] = _ApprovalOutcome(approval=approval, verdict=verdict)
        return approval, verdict

    async def resume_linked(self, call: ToolCall, request: str) -> None:
        """The same after a yes of a client that knows the approval as its `request`. Raises StoreError."""
        identity = await self._approvals.linked(self._caller.id, request)
        await self.resume(call, identity or "", Verdict(approve=True, by=self.dialect))

    async def deny_linked(self, request: str) -> None:
        """A client said no to what it knows as its `request`. Raises StoreError."""
        if identity := await self._approvals.linked(self._caller.id, request):
            with suppress(NotFound):
                await self._approvals.answer(identity, Verdict(approve=False, by=self.dialect))

    async def link(self, approval: Approval, request: str) -> None:
        """Its client knows this approval as its `request`. What cannot be kept cannot be approved later."""
        with suppress(StoreError):
            await self._approvals.link(approval, request)

    async def authorize(self, call: ToolCall, tool: Tool, arguments: JSON) -> ToolResult | None:
        """None lets the call run; a result says why it does not."""
        if not self._exists(call, tool):
            return _denial(f"there is no tool named {call.name[:100]!r}. Use only the tools you were given.")
        decision = self._decisions[call.id] = self._decide(call, tool, arguments)
        outcome = self._outcomes.pop(_key(call), None)
        if decision.effect == "deny":
            return self._denied(call, _because("it is not allowed here", decision.reason))
        if outcome is None and decision.effect == "allow":
            return None
        try:
            why = await self._why_not(call, tool, arguments, decision, outcome)
        except StoreError:
            why = UNREACHABLE
        except _MustWait as waits:
            return _denial(f"{call.name} was not run: {self._write_waiting(waits.approval)}.")
        return self._denied(call, why) if why else None

    def ended(
        self, call: ToolCall, tool: Tool, arguments: JSON | None, result: ToolResult, seconds: float
    ) -> None:
        """Note how the call ended."""
        decision = self._decisions.pop(call.id, ALLOWED)
        if self._audit:
            self._audit.call(
                self.who,
                call,
                tool,
                arguments=arguments,
                result=result,
                seconds=seconds,
                decision=decision,
            )

    @property
    def who(self) -> Mapping[str, Any]:
        """Who makes the calls, and by which way, in the words of OpenTelemetry where it has any."""
        if self._who is None:
            self._who = self._caller_fields()
        return self._who

    def _caller_fields(self) -> Mapping[str, Any]:
        return {
            "user.id": self._caller.id.rpartition(":")[2][:16],
            "toolway.key.name": self._caller.name,
            "gen_ai.conversation.id": conversation_of(self._caller.id, self._messages),
            "gen_ai.request.model": self._origin.model,
            "toolway.dialect": self.dialect,
        }

    def _exists(self, call: ToolCall, tool: Tool) -> bool:
        return is_selected(call.name, tool, self._caller.selection)

    def _decide(self, call: ToolCall, tool: Tool, arguments: JSON) -> Decision:
        return self._rules.decide(call.name, tool, self._origin, arguments)

    async def _ask(self, call: ToolCall, tool: Tool) -> Approval | None:
        """Let a call wait; None when it is resolved already."""
        arguments = read_call(call, tool)
        if isinstance(arguments, ToolResult):
            self._outcomes.pop(_key(call), None)  # it fails by itself
            return None
        decision = self._decide(call, tool, arguments)
        try:
            if await self._approvals.granted(self._caller.id, tool, self.grants):
                return None
            approval = await self._approvals.ask(
                self._caller,
                call,
                tool,
                arguments,
                rule=decision.rule,
                reason=decision.reason,
                dialect=self.dialect,
                conversation=self.who["gen_ai.conversation.id"],
            )
        except InvalidRequest as error:
            self._outcomes[_key(call)] = _ApprovalOutcome(
                reason=f"nobody can be asked about it: {error.message}"
            )
            return None
        except StoreError:
            self._outcomes[_key(call)] = _ApprovalOutcome(reason=UNREACHABLE)
            return None
        self._note_asked(approval)
        return approval

    async def _answers(self, waiting: Sequence[Approval]) -> Mapping[str, Verdict]:
        """What the person at the client answers, and others within `wait` seconds, by the ids of the approvals."""
        try:
            for approval in waiting:
                with anyio.move_on_after(approval.seconds):
                    if verdict := await self._elicit(approval):
                        with suppress(NotFound):
                            await self._approvals.answer(approval.id, verdict)
            return await self._approvals.wait(waiting, self._wait) if waiting else {}
        except StoreError:
            return {}
        except BaseException:
            await self._withdraw(waiting)
            raise

    async def _withdraw(self, approvals: Sequence[Approval]) -> None:
        with anyio.CancelScope(shield=True), suppress(StoreError):
            await self._approvals.withdraw(approvals)

    async def _why_not(
        self,
        call: ToolCall,
        tool: Tool,
        arguments: JSON,
        decision: Decision,
        outcome: _ApprovalOutcome | None,
    ) -> str:
        """Why a call that a person had to be asked about does not run; empty when it does. Raises StoreError."""
        if outcome is None:
            if await self._approvals.granted(self._caller.id, tool, self.grants):
                return ""
            outcome = await self._ask_on_the_way(call, tool)
        approval, verdict = outcome.approval, outcome.verdict
        if verdict is None:
            return outcome.reason
        if not verdict.approve:
            return _because("it was not approved", verdict.reason)
        if approval is None:  # what only the client itself wants to be asked about, it may allow
            return "" if decision.effect == "allow" else "the answer came after the time for it was over"
        if not approval.is_for(tool, arguments):
            return "the tool is no longer the one that was asked about; it would have to be asked about again"
        return await self._begin(approval)

    async def _begin(self, approval: Approval) -> str:
        """Why an approved call may not begin; empty, once, when it may. Raises StoreError."""
        if await self._approvals.use(approval):
            return ""
        is_taken_back = await self._approvals.is_taken_back(approval)
        return "it was not approved" if is_taken_back else "it was run before with this approval"

    async def _ask_on_the_way(self, call: ToolCall, tool: Tool) -> _ApprovalOutcome:
        """Ask about a call outside of a loop. Raises _MustWait when nobody answered: then it may come again."""
        arguments = read_call(call, tool)
        assert not isinstance(arguments, ToolResult)  # noqa: S101 - `invoke` has read it
        approval = await self._approvals.awaited(self._caller.id, tool, arguments)
        if approval is None:
            approval = await self._ask(call, tool)
        if approval is None:
            return self._outcomes.pop(_key(call), _ApprovalOutcome(reason=_BESIDE))
        await self._approvals.note_awaited(approval, tool)
        verdict = (await self._answers([approval])).get(approval.id) or await self._approvals.verdict(
            approval.id
        )
        if verdict is None:
            raise _MustWait(approval)
        self._note_answered(approval, verdict)
        await self._approvals.forget_awaited(approval, tool)
        return _ApprovalOutcome(approval=approval, verdict=verdict)

    def _denied(self, call: ToolCall, why: str) -> ToolResult:
        self._decisions[call.id] = Decision(effect="deny", rule=self._decisions[call.id].rule, reason=why)
        return _denial(f"{call.name} was not run: {why}.")

    def _note_asked(self, approval: Approval) -> None:
        log.info("a call of %s waits for an approval: %s", approval.name, approval.id)
        if self._audit:
            self._audit.approval_asked(self.who, approval)

    def _note_answered(self, approval: Approval, verdict: Verdict) -> None:
        if self._audit:
            self._audit.approval_answered(self.who, approval, verdict)


_BESIDE = "a person would have to approve it, who cannot be asked beside other calls: call it again by itself"


def conversation_of(owner: str, messages: Sequence[Any]) -> str:
    """What is the same for all requests of a conversation: a digest of whose it is, and how its user began it."""
    begin = next(
        (m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user"), None
    )
    return hashlib.sha256(dumps([owner, begin])).hexdigest()[:16] if begin else ""


def _key(call: ToolCall) -> tuple[str, str]:
    """What tells a call: some models number theirs anew in each round."""
    return call.id, call.arguments


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason.rstrip('.')}" if reason else what


def _denial(text: str) -> ToolResult:
    return ToolResult(text=text, is_error=True, failure="denied")


async def ask_client(approval: Approval, redact: Redactor) -> Verdict | None:
    """The answer of the person at the MCP client of the call under way (elicitation), an `Elicit`."""
    client = call_client.get()
    if client is None or "elicitation" not in client.offers:
        return None
    message = write_summary(approval, "en", redact)
    question = {
        "method": "elicitation/create",
        "params": {"message": message, "requestedSchema": ELICITATION},
    }
    try:
        answer = (await client.ask({approval.id: question})).get(approval.id)
    except ClientRequestFailed:
        return None
    if not isinstance(answer, dict):
        return None
    action, content = answer.get("action"), answer.get("content")
    if action == "accept" and isinstance(content, dict):
        return Verdict(approve=content.get("allow") is True, by="mcp")
    return Verdict(approve=False, by="mcp") if action == "decline" else None
