"""openai-python: `responses.create`, or the helper `responses.stream`, in the loop that its users write around them.

MANNER is one of the two, and what holds the conversation: `previous` (previous_response_id), or `items` (nothing is
stored, all items are sent back, reasoning as encrypted content).
"""

from __future__ import annotations

import json
from typing import Any

from case import Case, Told, tell
from openai import OpenAI

DOUBLE: Any = {
    "type": "function",
    "name": "double",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
    "strict": False,
}


def play(case: Case, told: Told) -> None:
    how, holds = case.manner.split()
    ask = {"create": create, "stream": stream}[how]
    request: dict[str, Any] = {"model": "mock", "tools": [DOUBLE] if case.brings_tool else []}
    if case.server:
        request["tools"].append(case.declaration)
    if holds == "items":
        request |= {"store": False, "include": ["reasoning.encrypted_content"]}
    items: list[Any] = []
    with OpenAI(base_url=case.url, api_key="unused") as client:
        for question in case.questions:
            items.append({"role": "user", "content": question})
            while True:
                response = ask(client, case, {**request, "input": items}, told)
                told.usage = response.usage.total_tokens
                more = [answer for item in response.output if (answer := answered(item, case, told))]
                if holds == "previous":
                    request["previous_response_id"], items = response.id, more
                else:
                    items += [*response.output, *more]
                if not more:
                    break


def answered(item: Any, case: Case, told: Told) -> dict[str, Any] | None:
    """What the client has to say to an item, if anything."""
    match item.type:
        case "function_call":
            told.tools.append(item.name)
            output = str(told.double(**json.loads(item.arguments)))
            return {"type": "function_call_output", "call_id": item.call_id, "output": output}
        case "mcp_call":
            told.tools.append(item.name)
        case "mcp_approval_request":
            told.asked.append(item.name)
            return case.decision(item.id)
    return None


def create(client: OpenAI, case: Case, request: dict[str, Any], told: Told) -> Any:
    if not case.streamed:
        response = client.responses.create(**request)
        told.text += response.output_text
        return response
    last: Any = None
    for event in client.responses.create(**request, stream=True):
        if event.type == "response.output_text.delta":
            told.text += event.delta
        last = event
    return last.response


def stream(client: OpenAI, case: Case, request: dict[str, Any], told: Told) -> Any:
    with client.responses.stream(**request) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                told.text += event.delta
        return events.get_final_response()


if __name__ == "__main__":
    tell(play)
