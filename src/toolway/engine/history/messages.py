"""Messages as the next request repeats them to the model: its own turns, and the results behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import orjson

from toolway.conversation.message import Message
from toolway.conversation.tool_calls import call_object, read_arguments
from toolway.engine.request_tools import RequestTools
from toolway.types import JSON, ToolCall


def assistant_message(message: Message, tools: RequestTools) -> JSON:
    """What the model said, as the next request repeats it to the model.

    Content is never null (llama-cpp-python), names are legal (OpenAI), arguments are always a JSON object
    (llama.cpp answers 500 to anything else), everything unknown goes back as it came (Gemini's signatures).
    """
    return {
        **message.said,
        "content": message.said.get("content") or "",
        "tool_calls": [_replayed_call(call, tools) for call in message.tool_calls],
    }


def _replayed_call(call: ToolCall, tools: RequestTools) -> JSON:
    arguments = _replayed_arguments(call.arguments)
    return call_object(replace(call, name=tools.exact_name(call.name), arguments=arguments))


def _replayed_arguments(text: str) -> str:
    arguments = read_arguments(text)
    if not arguments:
        return "{}"
    return text if text.lstrip().startswith("{") else orjson.dumps(arguments).decode()


def fill_results(messages: Sequence[JSON], answers: Sequence[JSON]) -> list[JSON]:
    """The conversation with these results in the places that wait for them, which are empty; pictures go behind."""
    results = {answer["tool_call_id"]: answer for answer in answers if answer["role"] == "tool"}
    whole = [results[message["tool_call_id"]] if _waits(message) else message for message in messages]
    pictures = [answer for answer in answers if answer["role"] != "tool"]
    if pictures:
        last = max(number for number, message in enumerate(messages) if _waits(message))
        whole[last + 1 : last + 1] = pictures
    return whole


def _waits(message: JSON) -> bool:
    return message["role"] == "tool" and not message["content"]
