"""openai-agents: Runner with its two models, function_tool and HostedMCPTool.

MANNER tells what holds a conversation over the Responses API: `items`, all of which are sent again, `unstored`, the
same with `store=False`, or `previous` (previous_response_id). With `interruption` approvals are given to the run's
state, else to `on_approval_request`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    HostedMCPTool,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from case import Case, Told, tell
from openai import AsyncOpenAI


def play(case: Case, told: Told) -> None:
    set_tracing_disabled(True)
    asyncio.run(converse(case, told))


async def converse(case: Case, told: Told) -> None:
    model = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}[case.api]
    settings = ModelSettings(include_usage=True)
    if case.manner == "unstored":
        settings = ModelSettings(store=False, response_include=["reasoning.encrypted_content"])
    async with AsyncOpenAI(base_url=case.url, api_key="unused") as client:
        agent = Agent(
            name="Assistant",
            model=model(model="mock", openai_client=client),
            model_settings=settings,
            tools=list(tools(case, told)),
        )
        await talk(agent, case, told)


def tools(case: Case, told: Told) -> Any:
    def double(x: int) -> int:
        """Double a number."""
        return told.double(x)

    def decide(request: Any) -> Any:
        told.asked.append(request.data.name)
        return {"approve": case.approves}

    if case.brings_tool:
        yield function_tool(double)
    if case.server:
        config: Any = case.declaration
        yield HostedMCPTool(
            tool_config=config, on_approval_request=decide if case.manner != "interruption" else None
        )


async def talk(agent: Any, case: Case, told: Told) -> None:
    chained = {"auto_previous_response_id": True} if case.manner == "previous" else {}
    items: list[Any] = []
    for question in case.questions:
        said: Any = [*items, {"role": "user", "content": question}]
        while True:
            result = await run(agent, said, case, told, **chained)
            told.usage = result.raw_responses[-1].usage.total_tokens
            if not result.interruptions:
                break
            said = result.to_state()
            for request in result.interruptions:
                told.asked.append(request.raw_item.name)
                said.approve(request) if case.approves else said.reject(request)
        told.tools += [item.raw_item.name for item in result.new_items if item.type == "tool_call_item"]
        if chained:
            chained = {"previous_response_id": result.last_response_id}
        else:
            items = result.to_input_list()


async def run(agent: Any, said: Any, case: Case, told: Told, **more: Any) -> Any:
    if not case.streamed:
        result: Any = await Runner.run(agent, said, **more)
        told.text += "" if result.interruptions else "".join(texts(result))
        return result
    streamed: Any = Runner.run_streamed(agent, said, **more)
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            told.text += event.data.delta
    return streamed


def texts(result: Any) -> Any:
    """All that was said, which is more than `final_output` when a tool of Toolway's ran in between."""
    for item in result.new_items:
        if item.type == "message_output_item":
            yield "".join(part.text for part in item.raw_item.content)


if __name__ == "__main__":
    tell(play)
