"""Stored responses: what GET gives back, and what the next request goes on from."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from toolway.api.responses.items.input_items import OpenTurn
from toolway.errors import InvalidRequest, NotFound
from toolway.stores import EntryKind, Key, Store
from toolway.types import JSON, ToolResult, record

PREFIX = "resp_"


Path = Sequence[tuple[str, int]]
"""Where the messages of a conversation are kept: of each of these threads so many chunks, from its beginning on."""


@record
class StoredResponse:
    """One response. `items` are its input with ids, `messages` the conversation as the model saw it, without
    instructions; `turn` is its last turn when calls of it are open, `listed` the servers whose tools were shown, and
    `own` the ids of calls in it that were ours. Of what is kept `path` says where, and `lengths` how many messages
    are in each chunk.
    """

    resource: JSON
    items: Sequence[JSON] = ()
    messages: Sequence[JSON] = ()
    turn: OpenTurn | None = None
    listed: Sequence[str] = ()
    own: Sequence[str] = ()
    path: Path = ()
    lengths: Sequence[int] = ()


@record
class _Chunk:
    """What one response adds to its conversation. `echo` are the fields of the response that are new, too."""

    response: str
    messages: list[JSON]
    own: list[str]
    echo: JSON


@record
class _ResponseRecord:
    """What is kept of a response beside the chunks of its conversation; long texts of the last one are not repeated."""

    resource: JSON
    items: list[JSON]
    turn: OpenTurn | None
    listed: list[str]
    path: list[tuple[str, int]]
    packed_from: int = 40
    """Characters from which a text in `resource` and `items` stands as `_pack` makes it; 0: none does."""
    chunk: _Chunk | None = None
    """The chunk of a response that begins a conversation: it stands in a place of its own once another one goes on."""


@record
class _ApprovalAnswer:
    """The answer to an approval request."""

    approve: bool


RESPONSE = EntryKind("response", _ResponseRecord, version=3, oldest=1)
CHUNK = EntryKind("chunk", _Chunk)
BRANCH = EntryKind("branch", str)
"""The thread that goes on from a chunk which was not the last of its own."""
APPROVAL = EntryKind("approval", _ApprovalAnswer)
RESULT = EntryKind("approved result", ToolResult)

_OWN_FIELDS = (
    "id created_at completed_at status error incomplete_details output previous_response_id usage".split()
)
"""Fields of a response that differ from those of the one before, in their order in it."""


class StoredResponses:
    """The records in a store, each visible to its owner alone.

    A response goes on with the conversation of another one, so only what it adds is kept, in a chunk; decision 015
    tells how. Chunks are written before the record that needs them and renewed after it, so that they go last.
    """

    def __init__(self, store: Store, *, ttl: float) -> None:
        self._store = store
        self._ttl = ttl

    async def save(
        self, owner: str, record: StoredResponse, previous: StoredResponse | None = None
    ) -> StoredResponse:
        """Keep a record, in place of an older one of this response; returns it with its place. Raises StoreError.

        `previous` is the record that it goes on from.
        """
        if not record.messages:
            await self._put(owner, record, record.resource)
            return record
        before = _kept_before(record, previous)
        kept = await self._append(owner, record, before)
        if before.path:
            keys = [*_branch_keys(owner, kept.path), *_chunk_keys(owner, kept.path)]
            if not await self._store.renew(keys, ttl=self._ttl):
                # Somebody deleted the responses before meanwhile.
                kept = await self._append(owner, record, _NOTHING)
        return kept

    async def find(self, owner: str, identity: str) -> StoredResponse | None:
        """The record of a response, if it is there and this owner's. Raises StoreError."""
        kept = await self._store.get(RESPONSE.key(owner, identity), certain=True)
        if kept is None:
            return None
        found = [kept.chunk] if kept.chunk else await self._store.get_all(_chunk_keys(owner, kept.path))
        chunks = [chunk for chunk in found if chunk is not None]
        if len(chunks) < len(found):
            return None
        echo: JSON = {}
        for chunk in chunks:
            echo |= chunk.echo
        resource, items = kept.resource, kept.items
        if kept.packed_from:
            texts = _texts(chunks[-1].messages if chunks else [], kept.turn, kept.packed_from)
            try:
                resource, items = _unpack(resource, texts), _unpack(items, texts)
            except (IndexError, ValueError):  # damage, which counts as gone
                return None
        return StoredResponse(
            resource={**echo, **resource},
            items=items,
            messages=[message for chunk in chunks for message in chunk.messages],
            turn=kept.turn,
            listed=kept.listed,
            own=[identity for chunk in chunks for identity in chunk.own],
            path=kept.path,
            lengths=[len(chunk.messages) for chunk in chunks],
        )

    async def get(self, owner: str, identity: str) -> StoredResponse:
        """The record of a response. Raises NotFound, StoreError."""
        record = await self.find(owner, identity)
        if record is None:
            raise _not_found(identity)
        return record

    async def delete(self, owner: str, identity: str) -> None:
        """Forget a response, and of its conversation what no other one needs. Raises NotFound, StoreError."""
        key = RESPONSE.key(owner, identity)
        kept = await self._store.get(key, certain=True)
        if not await self._store.delete(key):
            raise _not_found(identity)
        path = kept.path if kept else []
        while path and await self._forget_chunk(owner, path):
            *before, (thread, count) = path
            path = [*before, (thread, count - 1)] if count > 1 else before

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
        answer = _ApprovalAnswer(approve=approve)
        return await self._store.add(APPROVAL.key(owner, request), answer, ttl=self._ttl)

    async def was_denied(self, owner: str, request: str) -> bool:
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

    async def _append(self, owner: str, record: StoredResponse, before: StoredResponse) -> StoredResponse:
        """Keep what a record adds to what was kept before."""
        chunk, own = _added(record, before)
        path = await self._place(owner, before, chunk)
        places = {text: number for number, text in enumerate(_texts(chunk.messages, record.turn, LONG))}
        kept = StoredResponse(
            resource=record.resource,
            items=record.items,
            messages=record.messages,
            turn=record.turn,
            listed=record.listed,
            own=record.own,
            path=path,
            lengths=[*before.lengths, len(chunk.messages)],
        )
        await self._put(owner, kept, own, places, chunk=None if before.path else chunk)
        return kept

    async def _place(self, owner: str, before: StoredResponse, chunk: _Chunk) -> Path:
        """Keep a chunk behind those of a path: in the last thread, or where that went on already in a new one.

        One that begins a conversation stays in the record of its response, and comes out of it now.
        """
        path = before.path
        if not path:
            return [(f"0-{secrets.token_hex(8)}", 1)]
        *first, (thread, count) = path
        if not first and count == 1:
            await self._store.add(CHUNK.key(owner, thread, "0"), _added(before, _NOTHING)[0], ttl=self._ttl)
        if await self._store.add(CHUNK.key(owner, thread, str(count)), chunk, ttl=self._ttl):
            return [*first, (thread, count + 1)]
        number, name = 0, secrets.token_hex(8)
        while not await self._store.add(_branch_key(owner, path, number), f"{number}-{name}", ttl=self._ttl):
            number += 1
        branch = f"{number}-{name}"
        await self._store.put(CHUNK.key(owner, branch, "0"), chunk, ttl=self._ttl, certain=True)
        return [*path, (branch, 1)]

    async def _put(
        self,
        owner: str,
        record: StoredResponse,
        resource: JSON,
        places: Mapping[str, int] | None = None,
        *,
        chunk: _Chunk | None = None,
    ) -> None:
        items = list(record.items)
        kept = _ResponseRecord(
            resource=_pack(resource, places) if places else resource,
            items=_pack(items, places) if places else items,
            turn=record.turn,
            listed=list(record.listed),
            path=list(record.path),
            packed_from=LONG if places else 0,
            chunk=chunk,
        )
        await self._store.put(RESPONSE.key(owner, record.resource["id"]), kept, ttl=self._ttl, certain=True)

    async def _forget_chunk(self, owner: str, path: Path) -> bool:
        """Forget the last chunk of a path, unless something needs it."""
        key = _chunk_keys(owner, path)[-1]
        chunk = await self._store.get(key, certain=True)
        if chunk is None or await self._is_needed(owner, path, chunk):
            return False
        await self._store.delete(key)
        if await self._is_needed(owner, path, chunk):  # since a moment ago
            await self._store.add(key, chunk, ttl=self._ttl)
            return False
        return True

    async def _is_needed(self, owner: str, path: Path, chunk: _Chunk) -> bool:
        """Whether its response is still there, or one that goes on from it."""
        thread, count = path[-1]
        keys = [RESPONSE.key(owner, chunk.response), CHUNK.key(owner, thread, str(count))]
        for key in keys:
            if await self._store.get(key, certain=True) is not None:
                return True
        number = 0
        while branch := await self._store.get(_branch_key(owner, path, number), certain=True):
            if await self._store.get(CHUNK.key(owner, branch, "0"), certain=True) is not None:
                return True
            number += 1
        return False


_NOTHING = StoredResponse(resource={})


def _kept_before(record: StoredResponse, previous: StoredResponse | None) -> StoredResponse:
    """What a record goes on from, as far as it is kept: all chunks whose messages are still the same."""
    if previous is None or not previous.path or previous.resource.keys() != record.resource.keys():
        return _NOTHING
    if record.messages[: len(previous.messages)] == previous.messages:
        return previous
    return _NOTHING


def _added(record: StoredResponse, before: StoredResponse) -> tuple[_Chunk, JSON]:
    """What a record adds to what was kept before, and the fields of its response that are its alone."""
    known, echo = set(before.own), dict(record.resource)
    own = {name: echo.pop(name) for name in _OWN_FIELDS if name in echo}
    if before is not _NOTHING:
        echo = {name: value for name, value in echo.items() if before.resource.get(name, ...) != value}
    chunk = _Chunk(
        response=own["id"],
        messages=list(record.messages[len(before.messages) :]),
        own=[identity for identity in record.own if identity not in known],
        echo=echo,
    )
    return chunk, own


def _chunk_keys(owner: str, path: Path) -> list[Key[_Chunk]]:
    return [CHUNK.key(owner, thread, str(number)) for thread, count in path for number in range(count)]


def _branch_keys(owner: str, path: Path) -> list[Key[str]]:
    """Those of the branches on a path; a thread begins with the number of its branch."""
    return [
        _branch_key(owner, path[:depth], int(path[depth][0].partition("-")[0]))
        for depth in range(1, len(path))
    ]


def _branch_key(owner: str, path: Path, number: int) -> Key[str]:
    thread, count = path[-1]
    return BRANCH.key(owner, thread, str(count), str(number))


LONG = 200
"""Texts of so many characters are kept once, in the messages of a chunk."""


def _texts(messages: list[JSON], turn: OpenTurn | None, long: int) -> list[str]:
    """The texts of at least `long` characters, which a record need not repeat."""
    found: list[str] = []
    _find_long_texts(messages, long, found)
    if turn:
        _find_long_texts([turn.assistant, list(turn.results)], long, found)
    return found


def _find_long_texts(value: JSON | list[Any], long: int, found: list[str]) -> None:
    """Add the long texts in an object or a list, always in the same order."""
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, str):
            if len(part) >= long:
                found.append(part)
        elif part and isinstance(part, (dict, list)):
            _find_long_texts(part, long, found)


def _pack(value: Any, places: Mapping[str, int]) -> Any:
    """An object or a list with the number of its place for each text that has one, itself if there are none.

    What begins with NUL begins with two.
    """
    packed = value
    for name, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, str):
            if len(part) >= LONG and part in places:
                new: Any = f"\0{places[part]}"
            elif part[:1] == "\0":
                new = f"\0{part}"
            else:
                continue
        elif not part or not isinstance(part, (dict, list)) or (new := _pack(part, places)) is part:
            continue
        if packed is value:
            packed = value.copy()
        packed[name] = new
    return packed


def _unpack(value: Any, texts: Sequence[str]) -> Any:
    """The value that `_pack` got."""
    if isinstance(value, str):
        if not value.startswith("\0"):
            return value
        return value[1:] if value.startswith("\0\0") else texts[int(value[1:])]
    if isinstance(value, dict):
        return {name: _unpack(part, texts) for name, part in value.items()}
    return [_unpack(part, texts) for part in value] if isinstance(value, list) else value


def new_id() -> str:
    """The id of a new response. The ids of its items begin with what follows the prefix."""
    return PREFIX + secrets.token_hex(16)


def with_ids(items: Sequence[JSON], identity: str) -> list[JSON]:
    """Input items as they are listed: each with an id, and the content of messages as parts."""
    whole = identity.removeprefix(PREFIX)
    return [_as_list_item(item, f"{whole}i{number:03x}") for number, item in enumerate(items)]


_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _as_list_item(item: JSON, suffix: str) -> JSON:
    kind = item.get("type") or "message"
    prefix = _ID_PREFIXES.get(kind, "item")
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
    if item.get("id") or "id" not in item:
        return item
    return {key: value for key, value in item.items() if key != "id"}


def _not_found(identity: str) -> NotFound:
    return NotFound(f"Response with id '{identity[:100]}' not found.")


def check_previous(record: StoredResponse | None, identity: str) -> StoredResponse:
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
