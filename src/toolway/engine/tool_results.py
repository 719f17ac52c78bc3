"""Tool results as the model reads them: cut to fit its context, whole texts kept, images shown."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from toolway.stores import EntryKind, Store
from toolway.types import JSON, Image, OnProgress, Tool, ToolCall, ToolResult
from toolway.upstream.model_info import ModelInfo
from toolway.wire.lenient_json import dumps, fix_surrogates
from toolway.wire.token_estimate import MIN_BYTES_PER_TOKEN

IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""The kinds that models take."""

MAX_IMAGES = 8
"""Images that one round shows."""

READ_MORE = "toolway_read_more"
"""The tool that reads on in a result that was cut."""

LEAST = 2000
"""Characters of results in one round that every model is trusted with."""

IMAGES_OF = "Images returned by "
"""How the message that holds the images of a round begins."""

_CUT_ID = re.compile(READ_MORE + r' with \{"id": "(\w+)"')


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Characters of tool results that the model gets: of each one, and of all of one round together."""

    result: int
    round: int

    def within(self, context: int | None) -> Budget:
        """The budget for a model with a context of so many tokens: a quarter for one result, half for a round."""
        if context is None:
            return self
        chars = context * MIN_BYTES_PER_TOKEN
        return Budget(
            result=min(self.result, max(LEAST, chars // 4)), round=min(self.round, max(LEAST, chars // 2))
        )

    def shares(self, lengths: Sequence[int]) -> list[int]:
        """How many characters each result of a round keeps: short ones stay whole, long ones share what is left."""
        kept = [min(length, self.result) for length in lengths]
        left = self.round
        for rank, position in enumerate(sorted(range(len(kept)), key=kept.__getitem__)):
            kept[position] = min(kept[position], left // (len(kept) - rank))
            left -= kept[position]
        return kept


def tool_message(call: ToolCall, text: str) -> JSON:
    """The `role: tool` message for one call. Its content is a string and never empty."""
    return {"role": "tool", "tool_call_id": call.id, "content": text}


def text_of(result: ToolResult) -> str:
    """A result's text as the model reads it when it is whole."""
    text = result.text.strip() or "(the tool returned nothing)"
    if result.is_error and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return fix_surrogates(text)


def shorten(text: str, max_chars: int, kept_as: str | None = None) -> str:
    """`text`, or its head and tail with a note between them that says how much is missing and how to see it.

    `kept_as` is the id under which READ_MORE finds the whole text; None when that tool is not there.
    """
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    tail = max_chars - head
    how = "ask for less at once"
    if kept_as:
        how = (
            f'to see more, call {READ_MORE} with {{"id": "{kept_as}", "offset": {head}}} '
            f'or with {{"id": "{kept_as}", "search": "words"}}'
        )
    note = f"\n\n[... {len(text) - max_chars:,} of {len(text):,} characters left out: {how} ...]\n\n"
    return text[:head] + note + (text[-tail:] if tail else "")


def id_in(text: str) -> str | None:
    """The id of the whole text in the note of one that was cut."""
    match = _CUT_ID.search(text)
    return match[1] if match else None


def images_message(images: Sequence[tuple[ToolCall, Image]]) -> JSON:
    """A user message with these images: no backend takes any in a `role: tool` message."""
    names = ", ".join(dict.fromkeys(call.name for call, _ in images))
    parts: list[JSON] = [{"type": "text", "text": f"{IMAGES_OF}{names}:"}]
    for _, image in images:
        url = f"data:{image.media_type};base64,{image.data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": parts}


def _is_images_message(message: Any) -> bool:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or len(content) < 2 or message.get("role") != "user":
        return False
    first = content[0].get("text") if isinstance(content[0], dict) else None
    return isinstance(first, str) and first.startswith(IMAGES_OF)


def _without_images(message: JSON) -> JSON:
    """A message of `images_message` with a note in place of the images."""
    return {
        **message,
        "content": f"{message['content'][0]['text']} (left out: the conversation became too long)",
    }


log = logging.getLogger("toolway.results")

FLOOR = 400
"""Characters that are left of a result when the conversation is too long for the model."""

NOTE = 250
"""Characters that the note about a cut has at most."""

NOT_SHOWN = "the images of these results are not shown: the model server does not take them"

AROUND = 120
"""Characters on each side of what was searched for."""

MAX_FOUND = 20

HANDLE = 20
"""Hexadecimal digits of the id of a text that was kept: too many to be tried out."""

READER = Tool(
    name=READ_MORE,
    server="toolway",
    description=(
        "Reads the part of an earlier tool result that was left out. Give the id from the note in that result, and "
        "an offset (in characters) to read from, or words to search for."
    ),
    parameters={
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "The id from the note"},
            "offset": {"type": "integer", "minimum": 0, "description": "Where to begin"},
            "length": {"type": "integer", "minimum": 1, "description": "How many characters"},
            "search": {"type": "string", "description": "Words to find instead"},
        },
        "required": ["id"],
    },
)


@dataclass(frozen=True, kw_only=True)
class ResultRules:
    """The settings for results. `sees` None: as the model server says."""

    most: Budget
    keeps: bool
    sees: bool | None
    max_image_bytes: int


LONG_RESULT = EntryKind("result", str)
"""The whole text of a result that was cut."""


class ToolResults:
    """Made for each request. `ask` tells about its model, and is asked only when a result is not small.

    `cut` says that something was cut in this conversation, so that READER has something to read. `own` holds the
    ids of calls whose results are ours to shorten.
    """

    def __init__(
        self, *, rules: ResultRules, store: Store, owner: str, ask: Callable[[], Awaitable[ModelInfo]]
    ) -> None:
        self.cut = False
        self.own: set[str] = set()
        self.shows_images = True
        """False once the model server was found to take no images where they stand."""
        self._rules = rules
        self._store = store
        self._owner = owner
        self._ask = ask

    def adopt(self, messages: Sequence[Any], clients: Sequence[Any]) -> None:
        """Take results that were put back into the client's conversation for our own."""
        theirs = {str(m.get("tool_call_id")) for m in clients if isinstance(m, dict)}
        ids = {str(m.get("tool_call_id")) for m in messages if isinstance(m, dict)}
        self.adopt_calls(messages, ids - theirs)

    def adopt_calls(self, messages: Sequence[Any], ids: Collection[str]) -> None:
        """Take the results of these calls in a conversation for our own."""
        for message in messages if ids else ():
            if not isinstance(message, dict) or message.get("role") != "tool":
                continue
            if (identity := str(message.get("tool_call_id"))) in ids:
                self.own.add(identity)
                self.cut = self.cut or bool(id_in(str(message.get("content"))))

    async def messages(self, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> list[JSON]:
        """One `role: tool` message for each call, in order; behind them one with the images, if there are some."""
        shown: list[tuple[ToolCall, Image]] = []
        texts = list(map(text_of, results))
        if any(result.images for result in results):
            shown, noted = await self._images(calls, results)
            texts = [text + note for text, note in zip(texts, noted, strict=True)]
        if sum(map(len, texts)) > min(LEAST, self._rules.most.result, self._rules.most.round):
            texts = await self._shortened(texts)
        self.own.update([call.id for call in calls])
        answers = list(map(tool_message, calls, texts))
        return [*answers, images_message(shown)] if shown else answers

    async def read(self, _: Tool, arguments: JSON, on_progress: OnProgress | None = None) -> ToolResult:
        """Run READER: a part of a text that was kept, or the places in it where words are found."""
        identity = str(arguments["id"])
        whole = await self._store.get(LONG_RESULT.key(self._owner, identity))
        if whole is None:
            text = f"nothing is kept under the id {identity[:50]!r} (any more). Call the tool again that said it."
            return ToolResult(text=text, is_error=True)
        room = (await self._budget()).result - 200
        if words := arguments.get("search"):
            return ToolResult(text=_find_text(whole, str(words), room))
        begin = min(int(arguments.get("offset") or 0), len(whole))
        end = min(begin + min(int(arguments.get("length") or room), room), len(whole))
        rest = f"\n[go on with offset {end}]" if end < len(whole) else "\n[the end]"
        return ToolResult(
            text=f"[characters {begin:,} to {end:,} of {len(whole):,}]\n{whole[begin:end]}{rest}"
        )

    def is_own(self, message: JSON) -> bool:
        """Whether a message is a result, or the images of results, that is ours to shorten."""
        return message.get("tool_call_id") in self.own or (bool(self.own) and _is_images_message(message))

    def size_of_last(self, messages: Sequence[Any]) -> int:
        """Characters of our results at the end of the conversation."""
        return sum(len(str(message.get("content"))) for message in messages[self.begin_of_last(messages) :])

    def begin_of_last(self, messages: Sequence[Any]) -> int:
        """Where our results at the end of the conversation begin."""
        own = takewhile(
            lambda message: isinstance(message, dict) and self.is_own(message), reversed(messages)
        )
        return len(messages) - sum(1 for _ in own)

    async def shrink(self, messages: Sequence[Any], excess: int) -> list[Any] | None:
        """The conversation with about so many bytes taken out of our results, the oldest first.

        None when there is nothing to take.
        """
        shrunk = []
        removed = 0
        for message in messages:
            smaller = message
            if removed < excess and isinstance(message, dict) and self.is_own(message):
                smaller = await self._smaller(message, excess - removed)
                removed += _size(message) - _size(smaller) if smaller is not message else 0
            shrunk.append(smaller)
        return shrunk if removed > 0 else None

    async def _smaller(self, message: JSON, excess: int) -> JSON:
        if message["role"] != "tool":
            return _without_images(message)
        text = str(message["content"])
        # A cut brings a note along, which must not outweigh it.
        room = max(FLOOR, len(text) - max(excess, 2 * NOTE))
        return {**message, "content": await self._cut(text, room)} if len(text) > room + NOTE else message

    def without_images(self, messages: Sequence[Any]) -> list[Any] | None:
        """The conversation with notes in place of the images, from now on; None: it has none."""
        kept: list[Any] = []
        for message in messages:
            if not (isinstance(message, dict) and self.is_own(message) and message["role"] == "user"):
                kept.append(message)
            elif kept and isinstance(kept[-1], dict) and kept[-1].get("role") == "tool":
                kept[-1] = {**kept[-1], "content": f"{kept[-1]['content']}\n[{NOT_SHOWN}]"}
        if len(kept) == len(messages):
            return None
        self.shows_images = False
        return kept

    async def _budget(self) -> Budget:
        return self._rules.most.within((await self._ask()).context)

    async def _shortened(self, texts: Sequence[str]) -> list[str]:
        shares = (await self._budget()).shares([len(text) for text in texts])
        return [await self._cut(text, share) for text, share in zip(texts, shares, strict=True)]

    async def _cut(self, text: str, max_chars: int) -> str:
        if len(text) <= max_chars:
            return text
        identity = id_in(text) if self._rules.keeps else None
        if self._rules.keeps and identity is None:
            # The digest as id: the same result is cut to the same bytes, and kept once.
            identity = hashlib.sha256(text.encode()).hexdigest()[:HANDLE]
            await self._store.put(LONG_RESULT.key(self._owner, identity), text)
        self.cut = True
        return shorten(text, max_chars, identity)

    async def _images(
        self, calls: Sequence[ToolCall], results: Sequence[ToolResult]
    ) -> tuple[list[tuple[ToolCall, Image]], list[str]]:
        """Which images are shown, and for each call a note about those that are not."""
        sees = self._rules.sees
        if not self.shows_images:
            sees = False
        elif sees is None:
            sees = bool((await self._ask()).sees)
        shown: list[tuple[ToolCall, Image]] = []
        notes = []
        for call, result in zip(calls, results, strict=True):
            reasons = []
            for number, image in enumerate(result.images, 1):
                why = self._why_hidden(image, sees, len(shown))
                if why:
                    reasons.append(f"\n[image {number} ({image.media_type}) is not shown: {why}]")
                else:
                    shown.append((call, image))
            notes.append("".join(reasons))
        return shown, notes

    def _why_hidden(self, image: Image, sees: bool, count: int) -> str | None:
        if not sees:
            log.info("a tool returned an image that the model cannot see; TOOLWAY_VISION=on if it can")
            return "this model takes no images"
        if image.media_type not in IMAGE_TYPES:
            return "models do not take this kind"
        if len(image.data) * 3 // 4 > self._rules.max_image_bytes:
            return "it is too large"
        return f"{MAX_IMAGES} are the most at once" if count >= MAX_IMAGES else None


def _find_text(whole: str, words: str, room: int) -> str:
    """The places of `words` in the text, with what stands around them."""
    places = [match.start() for match in re.finditer(re.escape(words), whole, re.IGNORECASE)]
    if not places:
        return f"{words[:100]!r} is nowhere in the {len(whole):,} characters of this result."
    count = f"{len(places)} place{'s'[: len(places) != 1]}"
    lines = [f"Found in {count} of {len(whole):,} characters:"]
    for place in places[:MAX_FOUND]:
        line = f"[offset {place}] {whole[max(0, place - AROUND) : place + len(words) + AROUND]}"
        if sum(map(len, lines)) + len(line) > room:
            break
        lines.append(line)
    return "\n".join(lines)


def _size(message: JSON) -> int:
    return len(dumps(message))


def fill_results(messages: Sequence[JSON], answers: Sequence[JSON]) -> list[JSON]:
    """The conversation with these results in the places that wait for them, which are empty; images go behind.

    Where nothing waits, images stand at the end.
    """
    results = {answer["tool_call_id"]: answer for answer in answers if answer["role"] == "tool"}
    whole = [
        results.get(message["tool_call_id"], message) if _waits(message) else message for message in messages
    ]
    images = [answer for answer in answers if answer["role"] != "tool"]
    if images:
        places = [number for number, message in enumerate(messages) if _waits(message)]
        end = 1 + places[-1] if places else len(whole)
        while end < len(whole) and whole[end]["role"] == "tool":
            end += 1
        whole[end:end] = images
    return whole


def _waits(message: JSON) -> bool:
    return message["role"] == "tool" and not message["content"]
