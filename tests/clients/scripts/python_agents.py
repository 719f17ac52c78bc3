"""openai-agents: Runner with OpenAIChatCompletionsModel and function_tool."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from case import QUESTION, Case, Told, tell
from openai import AsyncOpenAI


def play(case: Case, told: Told) -> None:
    set_tracing_disabled(True)
    asyncio.run(converse(case, told))


async def converse(case: Case, told: Told) -> None:
    def double(x: int) -> int:
        """Double a number."""
        return told.double(x)

    client = AsyncOpenAI(base_url=case.url, api_key="unused")
    agent = Agent(
        name="Assistant",
        model={"chat": OpenAIChatCompletionsModel}[case.api](model="mock", openai_client=client),
        model_settings=ModelSettings(include_usage=True),
        tools=[function_tool(double)] if case.brings_tool else [],
    )
    async with client:
        result: Any
        if case.streamed:
            result = Runner.run_streamed(agent, QUESTION)
            await follow(result, told)
        else:
            result = await Runner.run(agent, QUESTION)
            told.text = result.final_output
    told.tools = [item.raw_item.name for item in result.new_items if item.type == "tool_call_item"]
    told.usage = result.raw_responses[-1].usage.total_tokens


async def follow(result: Any, told: Told) -> None:
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            told.text += event.data.delta


if __name__ == "__main__":
    tell(play)
