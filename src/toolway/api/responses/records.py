"""Stored responses: what GET gives back, and what the next request goes on from."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolway.api.responses.items.input_items import Turn
from toolway.errors import InvalidRequest, NotFound
from toolway.stores import Kind, Store
from toolway.types import JSON, ToolResult

PREFIX = "resp_"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One response. `items` are its input with ids, `messages` the conversation as the model saw it, without
    instructions; `turn` is its last turn when calls of it are open, `listed` the servers whose tools were shown, and
    `own` the ids of calls in it that were ours.
    """

    resource: JSON
    items: Sequence[JSON] = ()
    messages: Sequence[JSON] = ()
    turn: Turn | None = None
    listed: Sequence[str] = ()
    own: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The answer to an approval request."""

    approve: bool


RESPONSE = Kind("response", Record)
APPROVAL = Kind("approval", _Answer)
RESULT = Kind("approved result", ToolResult)


class Records:
    """The records in a store, each visible to its owner alone."""

    def __init__(self, store: Store, *, ttl: float) -> None:
        self._store = store
        self._ttl = ttl

    async def save(self, owner: str, record: Record) -> None:
        """Keep a record, in place of an older one of this response. Raises StoreError."""
        key = RESPONSE.key(owner, record.resource["id"])
        await self._store.put(key, record, ttl=self._ttl, certain=True)

    async def find(self, owner: str, identity: str) -> Record | None:
        """The record of a response, if it is there and this owner's. Raises StoreError."""
        return await self._store.get(RESPONSE.key(owner, identity), certain=True)

    async def get(self, owner: str, identity: str) -> Record:
        """The record of a response. Raises NotFound, StoreError."""
        record = await self.find(owner, identity)
        if record is None:
            raise _not_found(identity)
        return record

    async def delete(self, owner: str, identity: str) -> None:
        """Forget a response. Raises NotFound, StoreError."""
        if not await self._store.delete(RESPONSE.key(owner, identity)):
            raise _not_found(identity)

    async def item(self, owner: str, identity: str) -> JSON:
        """An item of a stored response, by the id that it got here. Raises NotFound, StoreError."""
        whole = identity.partition("_")[2]
        record = await self.find(owner, PREFIX + whole[:32])
        if record is not None:
            for item in (*record.resource["output"], *record.items):
                if item["id"] == identity:
                    found: JSON = item
                    return found
        raise NotFound(f"Item with id '{identity[:100]}' not found.", param="input")

    async def claim(self, owner: str, request: str, *, approve: bool) -> bool:
        """Whether nobody answered this approval request before; from now on somebody has. Raises StoreError."""
        answer = _Answer(approve=approve)
        return await self._store.add(APPROVAL.key(owner, request), answer, ttl=self._ttl)

    async def was_refused(self, owner: str, request: str) -> bool:
        """Whether this approval request was answered with a no. Raises StoreError."""
        answer = await self._store.get(APPROVAL.key(owner, request), certain=True)
        return answer is not None and not answer.approve

    async def keep_result(self, owner: str, request: str, result: ToolResult) -> None:
        """Keep what an approved call gave, since its response came to nothing and the approval may come again."""
        await self._store.put(RESULT.key(owner, request), result, ttl=self._ttl)

    async def result(self, owner: str, request: str) -> ToolResult | None:
        """What the call gave, if that was kept. Raises StoreError."""
        return await self._store.get(RESULT.key(owner, request), certain=True)

    async def forget_result(self, owner: str, request: str) -> None:
        """From now on the approval is spent: its response is whole. Raises StoreError."""
        await self._store.delete(RESULT.key(owner, request))

    async def release(self, owner: str, request: str) -> None:
        """Take a claim back, since nothing came of it. Raises StoreError."""
        await self._store.delete(APPROVAL.key(owner, request))


def new_id() -> str:
    """The id of a new response. The ids of its items begin with what follows the prefix."""
    return PREFIX + secrets.token_hex(16)


def with_ids(items: Sequence[JSON], identity: str) -> list[JSON]:
    """Input items as they are listed: each with an id, and the content of messages as parts."""
    whole = identity.removeprefix(PREFIX)
    return [_listed(item, f"{whole}i{number:03x}") for number, item in enumerate(items)]


def _listed(item: JSON, suffix: str) -> JSON:
    kind = item.get("type") or "message"
    prefix = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}.get(
        kind, "item"
    )
    listed: JSON = {"id": item.get("id") or f"{prefix}_{suffix}", "type": kind, **_without_null_id(item)}
    if kind == "message":
        listed = {"status": "completed", **listed}
        if isinstance(text := item.get("content"), str):
            part: Any = {"type": "input_text", "text": text}
            if item.get("role") == "assistant":
                part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            listed["content"] = [part]
    return listed


def _without_null_id(item: JSON) -> JSON:
    return item if item.get("id") else {key: value for key, value in item.items() if key != "id"}


def _not_found(identity: str) -> NotFound:
    return NotFound(f"Response with id '{identity[:100]}' not found.")


def check_previous(record: Record | None, identity: str) -> Record:
    """The record, fit to go on from. Raises InvalidRequest."""
    if record is None:
        raise InvalidRequest(
            f"Previous response with id '{identity[:100]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    status = record.resource["status"]
    if status in ("completed", "incomplete"):
        return record
    raise InvalidRequest(
        f"Previous response with id '{identity[:100]}' is {status}; go on from one that is complete.",
        param="previous_response_id",
    )
