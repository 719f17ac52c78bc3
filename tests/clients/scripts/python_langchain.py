"""langchain-openai: ChatOpenAI with bind_tools, in the loop that its documentation shows."""

from __future__ import annotations

from typing import Any

from case import QUESTION, Case, Told, tell
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI


def play(case: Case, told: Told) -> None:
    model: Any = ChatOpenAI(
        model="mock",
        base_url=case.url,
        api_key="unused",  # type: ignore[arg-type]
        stream_usage=True,
        use_responses_api={"chat": False}[case.api],
    )
    tool = StructuredTool.from_function(told.double, name="double")
    if case.brings_tool:
        model = model.bind_tools([tool])
    messages: list[Any] = [HumanMessage(QUESTION)]
    while True:
        answer = streamed(model, messages, told) if case.streamed else whole(model, messages, told)
        told.usage = answer.usage_metadata["total_tokens"] if answer.usage_metadata else None
        told.tools += [call["name"] or "" for call in [*answer.tool_calls, *answer.invalid_tool_calls]]
        if not answer.tool_calls:
            return
        messages += [answer, *(tool.invoke(call) for call in answer.tool_calls)]


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
