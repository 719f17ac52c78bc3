"""openai-python: `create`, or the helper `stream`, in the loop that its users write around their own tools."""

from __future__ import annotations

import json
from typing import Any

from case import DOUBLE, Case, Told, tell
from openai import OpenAI


def play(case: Case, told: Told) -> None:
    ask = {("chat", "create"): create, ("chat", "stream"): stream}[case.api, case.manner]
    request: dict[str, Any] = {"model": "mock", "messages": []}
    if case.brings_tool:
        request["tools"] = [DOUBLE]
    with OpenAI(base_url=case.url, api_key="unused") as client:
        for question in case.questions:
            request["messages"].append({"role": "user", "content": question})
            while answer(ask(client, case, request, told), request, told):
                pass


def answer(message: dict[str, Any], request: dict[str, Any], told: Told) -> bool:
    """Put a message into the conversation, and the results of its calls behind it; whether it has any."""
    calls = message.get("tool_calls") or []
    told.tools += [call["function"]["name"] for call in calls]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": run(call["function"], told)} for call in calls
    ]
    request["messages"] += [message, *results]
    return bool(calls)


def run(function: dict[str, str], told: Told) -> str:
    return str(told.double(**json.loads(function["arguments"])))


def create(client: OpenAI, case: Case, request: dict[str, Any], told: Told) -> dict[str, Any]:
    if not case.streamed:
        return noted(client.chat.completions.create(**request), told)
    text, calls = "", dict[int, dict[str, Any]]()
    options: Any = {"include_usage": True}
    for chunk in client.chat.completions.create(**request, stream=True, stream_options=options):
        told.usage = chunk.usage.total_tokens if chunk.usage else told.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            told.text += choice.delta.content or ""
            for part in choice.delta.tool_calls or []:
                call = calls.setdefault(part.index, {"id": part.id, "type": "function", "function": {}})
                for name, piece in part.function.to_dict().items() if part.function else ():
                    call["function"][name] = call["function"].get(name, "") + piece
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return {**message, "tool_calls": list(calls.values())} if calls else message


def stream(client: OpenAI, case: Case, request: dict[str, Any], told: Told) -> dict[str, Any]:
    with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as events:
        for event in events:
            if event.type == "content.delta":
                told.text += event.delta
        return noted(events.get_final_completion(), told, text=False)


def noted(completion: Any, told: Told, text: bool = True) -> dict[str, Any]:
    told.usage = completion.usage.total_tokens
    message = completion.choices[0].message
    told.text += (message.content or "") if text else ""
    dumped: dict[str, Any] = message.to_dict()
    return dumped


if __name__ == "__main__":
    tell(play)
