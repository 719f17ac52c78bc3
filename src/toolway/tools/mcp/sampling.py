"""`sampling/createMessage` of an MCP server -> a chat completion of the model behind Toolway, and back."""

from __future__ import annotations

from typing import Any

import orjson

from toolway.errors import UpstreamError
from toolway.types import JSON, Header
from toolway.upstream.client import CHAT_COMPLETIONS, Upstream, credential

MAX_ANSWER = 8 * 2**20
_STOP = {"stop": "endTurn", "length": "maxTokens"}


class UpstreamSampler:
    """Answers with the first model of the upstream, by at most `max_tokens` tokens and without any tools."""

    def __init__(self, upstream: Upstream, api_key: str | None, *, max_tokens: int) -> None:
        self._upstream = upstream
        self._headers: list[Header] = [(b"content-type", b"application/json"), *credential(api_key)]
        self._max_tokens = max_tokens

    async def __call__(self, params: JSON) -> JSON:
        """A CreateMessageResult. Raises UpstreamError."""
        models = await self._ask("GET", "/models", None)
        model = next((item["id"] for item in models.get("data") or [] if "id" in item), "default")
        answer = await self._ask("POST", CHAT_COMPLETIONS, chat_body(params, model, self._max_tokens))
        return message_result(answer, model)

    async def _ask(self, method: str, path: str, body: JSON | None) -> JSON:
        data = None if body is None else orjson.dumps(body)
        async with self._upstream.request(method, path, headers=self._headers, body=data) as answer:
            content = await answer.read(MAX_ANSWER)
        try:
            found = orjson.loads(content)
        except orjson.JSONDecodeError:
            found = None
        if answer.status != 200 or not isinstance(found, dict):
            raise UpstreamError(
                f"The model server answered {answer.status} to a server that asked for a model."
            )
        return found


def chat_body(params: JSON, model: str, max_tokens: int) -> JSON:
    """The chat request for a CreateMessageRequest's params; what it wants of other servers is left out."""
    asked = params.get("maxTokens")
    limit = min(asked, max_tokens) if isinstance(asked, int) and asked > 0 else max_tokens
    system = params.get("systemPrompt")
    messages: list[JSON] = (
        [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    )
    messages += [_message(item) for item in params.get("messages") or [] if isinstance(item, dict)]
    body: JSON = {"model": model, "messages": messages, "max_tokens": limit, "stream": False}
    if isinstance(params.get("temperature"), int | float):
        body["temperature"] = params["temperature"]
    if isinstance(params.get("stopSequences"), list) and params["stopSequences"]:
        body["stop"] = params["stopSequences"]
    return body


def _message(item: JSON) -> JSON:
    content = item.get("content")
    parts = [_part(block) for block in (content if isinstance(content, list) else [content])]
    plain = len(parts) == 1 and parts[0]["type"] == "text"
    role = "assistant" if item.get("role") == "assistant" else "user"
    return {"role": role, "content": parts[0]["text"] if plain else parts}


def _part(block: Any) -> JSON:
    block = block if isinstance(block, dict) else {"type": "text", "text": str(block)}
    if block.get("type") == "image":
        return {
            "type": "image_url",
            "image_url": {"url": f"data:{block.get('mimeType')};base64,{block.get('data')}"},
        }
    return {"type": "text", "text": str(block.get("text") or f"[{block.get('type')}]")}


def message_result(answer: JSON, model: str) -> JSON:
    """The CreateMessageResult for a chat completion."""
    choice: JSON = next(iter(answer.get("choices") or []), {})
    text = (choice.get("message") or {}).get("content") or ""
    return {
        "role": "assistant",
        "content": {"type": "text", "text": text},
        "model": str(answer.get("model") or model),
        "stopReason": _STOP.get(str(choice.get("finish_reason")), "endTurn"),
    }
