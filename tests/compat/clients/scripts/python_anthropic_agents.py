"""LangChain's and pydantic-ai's clients of Anthropic's API, each with the loop that it brings."""

from __future__ import annotations

from typing import Any

from case import Case, Told, tell


def play(case: Case, told: Told) -> None:
    {"langchain": langchain, "pydantic-ai": pydantic_ai}[case.manner](case, told)


def langchain(case: Case, told: Told) -> None:
    from langchain_anthropic import ChatAnthropic
    from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def double(x: int) -> int:
        """Double a number."""
        return told.double(x)

    model: Any = ChatAnthropic(
        model_name="mock",
        base_url=case.url.removesuffix("/v1"),
        api_key="unused",
        max_tokens=2000,
        max_retries=0,
    )
    bound = model.bind_tools([double]) if case.brings_tool else model
    messages: list[Any] = []
    for question in case.questions:
        messages.append(HumanMessage(question))
        while True:
            if case.streamed:
                pieces = list(bound.stream(messages))
                message: Any = sum(pieces[1:], start=pieces[0]) if pieces else AIMessageChunk("")
            else:
                message = bound.invoke(messages)
            told.text += message.text if isinstance(message.text, str) else message.text()
            told.tools += [call["name"] for call in message.tool_calls]
            told.usage = message.usage_metadata["total_tokens"]
            messages.append(message)
            if not message.tool_calls:
                break
            messages += [
                ToolMessage(str(double.invoke(call["args"])), tool_call_id=call["id"])
                for call in message.tool_calls
            ]


def pydantic_ai(case: Case, told: Told) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(base_url=case.url.removesuffix("/v1"), api_key="unused")
    agent: Any = Agent(AnthropicModel("mock", provider=provider))
    if case.brings_tool:
        agent.tool_plain(told.double)
    history: Any = None

    async def read(_: Any, events: Any) -> None:
        async for _event in events:
            pass

    # `run_stream` takes the first text for the answer, whatever calls stand behind it.
    options: Any = {"event_stream_handler": read} if case.streamed else {}
    for question in case.questions:
        result = agent.run_sync(question, message_history=history, **options)
        told.text += result.output
        history = result.all_messages()
    told.tools += [
        part.tool_name for message in history for part in message.parts if part.part_kind == "tool-call"
    ]


if __name__ == "__main__":
    tell(play)
