"""LiteLLM with its provider for OpenAI's API or for Anthropic's (`openai`, `anthropic`): `completion`, and a loop."""

from __future__ import annotations

import json
from typing import Any

import litellm
from case import DOUBLE, Case, Told, tell


def play(case: Case, told: Told) -> None:
    base = case.url if case.manner == "openai" else case.url.removesuffix("/v1")
    request: dict[str, Any] = {"model": f"{case.manner}/mock", "api_base": base, "api_key": "unused"}
    if case.brings_tool:
        request["tools"] = [DOUBLE]
    messages: list[Any] = []
    for question in case.questions:
        messages.append({"role": "user", "content": question})
        while True:
            message = answered({**request, "messages": messages, "max_tokens": 2000}, case, told)
            messages.append(message.model_dump(exclude_none=True))
            calls = message.tool_calls or []
            told.tools += [call.function.name for call in calls]
            messages += [
                {
                    "role": "tool",
                    "tool_call_id": call.id,
                    "content": str(told.double(**json.loads(call.function.arguments))),
                }
                for call in calls
            ]
            if not calls:
                break


def answered(request: dict[str, Any], case: Case, told: Told) -> Any:
    if case.streamed:
        chunks = []
        for chunk in litellm.completion(**request, stream=True, stream_options={"include_usage": True}):
            chunks.append(chunk)
            told.text += "".join(choice.delta.content or "" for choice in chunk.choices)
        whole: Any = litellm.stream_chunk_builder(chunks, messages=request["messages"])
    else:
        whole = litellm.completion(**request)
        told.text += whole.choices[0].message.content or ""
    told.usage = whole.usage.total_tokens
    return whole.choices[0].message


if __name__ == "__main__":
    tell(play)
