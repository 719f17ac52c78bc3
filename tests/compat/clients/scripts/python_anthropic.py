"""anthropic for Python: `create`, the helper `stream`, `tool_runner`, and the beta MCP connector (`connector`)."""

from __future__ import annotations

from typing import Any

from anthropic import Anthropic, beta_tool
from case import Case, Told, tell

DOUBLE: Any = {
    "name": "double",
    "description": "Double a number.",
    "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


def play(case: Case, told: Told) -> None:
    with Anthropic(base_url=case.url.removesuffix("/v1"), api_key="unused", max_retries=0) as client:
        messages: list[Any] = []
        for question in case.questions:
            messages.append({"role": "user", "content": question})
            MANNERS[case.manner](client, case, told, messages)


def by_hand(client: Anthropic, case: Case, told: Told, messages: list[Any]) -> None:
    """The loop that users write around their own tools."""
    tools = {"tools": [DOUBLE]} if case.brings_tool else {}
    while True:
        request: Any = {
            "model": "mock",
            "max_tokens": 2000,
            "messages": messages,
            "thinking": THINKING,
            **tools,
        }
        if case.manner == "stream":
            with client.messages.stream(**request) as events:
                told.text += "".join(events.text_stream)
                message = events.get_final_message()
        elif case.streamed:
            message = raw(client, request)
            told.text += "".join(block.text for block in message.content if block.type == "text")
        else:
            message = client.messages.create(**request)
            told.text += "".join(block.text for block in message.content if block.type == "text")
        told.usage = message.usage.input_tokens + message.usage.output_tokens
        uses = [block for block in message.content if block.type == "tool_use"]
        told.tools += [use.name for use in uses]
        messages.append({"role": "assistant", "content": [block.to_dict() for block in message.content]})
        if message.stop_reason != "tool_use":
            return
        results = [
            {"type": "tool_result", "tool_use_id": use.id, "content": str(told.double(**use.input))}  # type: ignore[arg-type]
            for use in uses
        ]
        messages.append({"role": "user", "content": results})


def raw(client: Anthropic, request: Any) -> Any:
    """The events of `create(stream=True)`, put together by the SDK."""
    with client.messages.stream(**request) as events:
        for _ in events:
            pass
        return events.get_final_message()


def tool_runner(client: Anthropic, case: Case, told: Told, messages: list[Any]) -> None:
    """The SDK's own loop."""

    @beta_tool
    def double(x: int) -> str:
        """Double a number.

        Args:
            x: The number.
        """
        return str(told.double(x))

    runner = client.beta.messages.tool_runner(
        model="mock",
        max_tokens=2000,
        messages=messages,
        tools=[double] if case.brings_tool else [],
        stream=case.streamed,
    )
    for turn in runner:
        message = turn.get_final_message() if case.streamed else turn
        told.text += "".join(block.text for block in message.content if block.type == "text")
        told.tools += [block.name for block in message.content if block.type == "tool_use"]
        told.usage = message.usage.input_tokens + message.usage.output_tokens


def connector(client: Anthropic, case: Case, told: Told, messages: list[Any]) -> None:
    """A server that the request names, whose tools are listed and whose calls are shown; a pause is gone on from."""
    request: Any = {
        "model": "mock",
        "max_tokens": 2000,
        "mcp_servers": [{"type": "url", "name": case.server, "url": "toolway:"}],
        "tools": [{"type": "mcp_toolset", "mcp_server_name": case.server}],
        "betas": ["mcp-client-2026-09-15"],
    }
    while True:
        if case.streamed:
            with client.beta.messages.stream(messages=messages, **request) as events:
                message: Any = events.get_final_message()
        else:
            message = client.beta.messages.create(messages=messages, **request)
        told.text += "".join(block.text for block in message.content if block.type == "text")
        listings = [block for block in message.content if block.type == "mcp_tool_listing"]
        told.asked += [tool.name for listing in listings for tool in listing.tools]
        told.tools += [block.name for block in message.content if block.type == "mcp_tool_use"]
        told.ran += [
            len(block.content[0].text) for block in message.content if block.type == "mcp_tool_result"
        ]
        told.usage = message.usage.input_tokens + message.usage.output_tokens
        messages.append({"role": "assistant", "content": [block.to_dict() for block in message.content]})
        if message.stop_reason != "pause_turn":
            return


MANNERS = {"create": by_hand, "stream": by_hand, "tool_runner": tool_runner, "connector": connector}

if __name__ == "__main__":
    tell(play)
