"""langchain-openai: ChatOpenAI with bind_tools, in the loop that its documentation shows.

MANNER tells what holds a conversation over the Responses API: `items`, `unstored` (the same with `store=False`), or
`previous` (previous_response_id).
"""

from __future__ import annotations

from typing import Any

from case import Case, Told, tell
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

OPTIONS: dict[str, dict[str, Any]] = {
    "unstored": {"store": False, "include": ["reasoning.encrypted_content"]},
    "previous": {"use_previous_response_id": True},
}


def play(case: Case, told: Told) -> None:
    model: Any = ChatOpenAI(
        model="mock",
        base_url=case.url,
        api_key="unused",  # type: ignore[arg-type]
        stream_usage=True,
        use_responses_api={"chat": False, "responses": True}[case.api],
        **OPTIONS.get(case.manner, {}),
    )
    tool = StructuredTool.from_function(told.double, name="double")
    if case.brings_tool:
        model = model.bind_tools([tool])
    elif case.server:
        model = model.bind_tools([case.declaration])
    messages: list[Any] = []
    for question in case.questions:
        messages.append(HumanMessage(question))
        while True:
            answer = streamed(model, messages, told) if case.streamed else whole(model, messages, told)
            told.usage = answer.usage_metadata["total_tokens"] if answer.usage_metadata else None
            more = answers(answer, tool, case, told)
            messages += [answer, *more]
            if not more:
                break


def answers(answer: AIMessage, tool: Any, case: Case, told: Told) -> list[Any]:
    """Results of the client's own calls, and what the user says to requests."""
    told.tools += [call["name"] or "" for call in [*answer.tool_calls, *answer.invalid_tool_calls]]
    blocks = [block for block in answer.content if isinstance(block, dict)]
    told.tools += [block["name"] for block in blocks if block["type"] == "mcp_call"]
    requests = [block for block in blocks if block["type"] == "mcp_approval_request"]
    told.asked += [block["name"] for block in requests]
    more: list[Any] = [tool.invoke(call) for call in answer.tool_calls]
    if requests:
        decisions: Any = [case.decision(block["id"]) for block in requests]
        more.append(HumanMessage(decisions))
    return more


def whole(model: Any, messages: list[Any], told: Told) -> AIMessage:
    answer: AIMessage = model.invoke(messages)
    told.text += answer.text
    return answer


def streamed(model: Any, messages: list[Any], told: Told) -> AIMessage:
    answer: Any = None
    for chunk in model.stream(messages):
        told.text += chunk.text
        answer = chunk if answer is None else answer + chunk
    return answer


if __name__ == "__main__":
    tell(play)
