"""Stored responses: what GET gives back, and what the next request goes on from."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolway.api.responses.items.input_items import Turn
from toolway.errors import InvalidRequest, NotFound
from toolway.stores import Key, Store, key_of
from toolway.types import JSON, Image, ToolResult

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


class Records:
    """The records in a store, each visible to its owner alone."""

    def __init__(self, store: Store, *, ttl: float) -> None:
        self._store = store
        self._ttl = ttl

    async def save(self, owner: str, record: Record) -> None:
        """Keep a record, in place of an older one of this response."""
        kept = {**vars(record), "turn": record.turn and vars(record.turn)}
        await self._store.put(self._key(owner, record.resource["id"]), kept, ttl=self._ttl)

    async def find(self, owner: str, identity: str) -> Record | None:
        """The record of a response, if it is there and this owner's."""
        kept = await self._store.get(self._key(owner, identity))
        if kept is None:
            return None
        return Record(**{**kept, "turn": Turn(**kept["turn"]) if kept["turn"] else None})

    async def get(self, owner: str, identity: str) -> Record:
        """The record of a response. Raises NotFound."""
        record = await self.find(owner, identity)
        if record is None:
            raise _not_found(identity)
        return record

    async def delete(self, owner: str, identity: str) -> None:
        """Forget a response. Raises NotFound."""
        if not await self._store.delete(self._key(owner, identity)):
            raise _not_found(identity)

    async def item(self, owner: str, identity: str) -> JSON:
        """An item of a stored response, by the id that it got here. Raises NotFound."""
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
        return await self._store.add(self._answer(owner, request), {"approve": approve}, ttl=self._ttl)

    async def was_refused(self, owner: str, request: str) -> bool:
        """Whether this approval request was answered with a no."""
        answer = await self._store.get(self._answer(owner, request))
        return answer is not None and answer.get("approve") is False

    async def keep_result(self, owner: str, request: str, result: ToolResult) -> None:
        """Keep what an approved call gave, since its response came to nothing and the approval may come again."""
        kept = {**vars(result), "images": [vars(image) for image in result.images]}
        await self._store.put(self._result(owner, request), kept, ttl=self._ttl)

    async def result(self, owner: str, request: str) -> ToolResult | None:
        """What the call gave, if that was kept."""
        kept = await self._store.get(self._result(owner, request))
        if kept is None:
            return None
        return ToolResult(**{**kept, "images": tuple(Image(**image) for image in kept["images"])})

    async def forget_result(self, owner: str, request: str) -> None:
        """From now on the approval is spent: its response is whole. Raises StoreError."""
        await self._store.delete(self._result(owner, request))

    async def release(self, owner: str, request: str) -> None:
        """Take a claim back, since nothing came of it. Raises StoreError."""
        await self._store.delete(self._answer(owner, request))

    def _answer(self, owner: str, request: str) -> Key[JSON]:
        return key_of("approval", owner, request)

    def _result(self, owner: str, request: str) -> Key[JSON]:
        return key_of("approved result", owner, request)

    def _key(self, owner: str, identity: str) -> Key[JSON]:
        return key_of("response", owner, identity)


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
