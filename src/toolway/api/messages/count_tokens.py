"""How many tokens a request has: counted by the model server where it has a tokenizer to ask, else estimated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from toolway.api.messages.request_reader import MessageJob
from toolway.errors import UpstreamError
from toolway.types import JSON
from toolway.upstream.client import Upstream
from toolway.wire.lenient_json import dumps
from toolway.wire.token_estimate import estimate_tokens

PICTURE_TOKENS = 1000
"""What a picture is taken for."""

_MAX_BYTES = 16 * 2**20


class TokenCounter:
    """Counts at one model server, and remembers which of its ways it has."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._ways: list[Callable[[MessageJob, JSON], Awaitable[int | None]]] = [
            self._by_template,
            self._by_messages,
        ]

    async def count(self, job: MessageJob) -> int:
        """The tokens of a request's input, our tools included."""
        conversation = job.conversation
        body = conversation.tools.put_into(conversation.chat).body()
        for way in list(self._ways):
            count = await way(job, body)
            if count is not None:
                self._ways = [way]
                return count
        return self._estimated(job, body)

    async def _by_template(self, job: MessageJob, body: JSON) -> int | None:
        """llama.cpp: the prompt as its template writes it, then that text in tokens."""
        asked: JSON = {name: body[name] for name in ("messages", "tools", "tool_choice") if name in body}
        prompt = (await self._post(job, "/apply-template", asked)).get("prompt")
        if not isinstance(prompt, str):
            return None
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        tokens = (await self._post(job, "/tokenize", asked)).get("tokens")
        return len(tokens) if isinstance(tokens, list) and tokens else None

    async def _by_messages(self, job: MessageJob, body: JSON) -> int | None:
        """vLLM: the messages in tokens."""
        asked: JSON = {name: body[name] for name in ("model", "messages", "tools") if name in body}
        count = (await self._post(job, "/tokenize", asked)).get("count")
        return count if type(count) is int and count > 0 else None

    async def _post(self, job: MessageJob, path: str, body: JSON) -> JSON:
        headers = job.conversation.headers
        try:
            async with self._upstream.request(
                "POST", path, headers=headers, body=dumps(body), root=True
            ) as answer:
                parsed: Any = orjson.loads(await answer.read(_MAX_BYTES)) if answer.is_success else {}
        except (UpstreamError, orjson.JSONDecodeError):
            return {}
        return parsed if isinstance(parsed, dict) else {}

    @staticmethod
    def _estimated(job: MessageJob, body: JSON) -> int:
        counted = {name: body[name] for name in ("messages", "tools") if name in body}
        text = len(dumps(counted)) - job.media.chars
        return max(1, estimate_tokens(text) + job.media.count * PICTURE_TOKENS)
