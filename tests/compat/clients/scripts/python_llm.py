"""llm: a model of its extra-openai-models.yaml, and `chain` for tools."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from case import Case, Told, tell

MODELS = """
- model_id: toolway
  model_name: mock
  api_base: {url}
  supports_tools: true
"""


def play(case: Case, told: Told) -> None:
    with tempfile.TemporaryDirectory() as home:
        more = {"chat": ""}[case.api]
        (Path(home) / "extra-openai-models.yaml").write_text(MODELS.format(url=case.url) + more)
        os.environ["LLM_USER_PATH"] = home
        ask(case, told)


def ask(case: Case, told: Told) -> None:
    import llm  # reads LLM_USER_PATH

    tools = [llm.Tool.function(told.double, name="double")] if case.brings_tool else None
    conversation = llm.get_model("toolway").conversation(tools=tools)
    for question in case.questions:
        for response in conversation.chain(question, stream=case.streamed).responses():
            for text in response:
                told.text += text
            told.tools += [call.name for call in response.tool_calls()]
            usage = response.usage()
            told.usage = (usage.input or 0) + (usage.output or 0)


if __name__ == "__main__":
    tell(play)
