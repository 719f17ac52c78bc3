"""A chat client, and a model that calls the tools that its user names, for calls that wait for a person."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import orjson

from tests.support.answers import chunks_of, content_of
from tests.support.app_server import AppServer
from tests.support.gate import DEADLINE
from tests.support.upstream import Reply, call_stream, text_stream, tool_call, whole

JSON = dict[str, Any]
CODE = re.compile(r"[2-9A-Z]{4}-[2-9A-Z]{4}$")


def write_config(folder: Path, rules: list[JSON], **more: Any) -> str:
    """The path of an mcp.json with these rules."""
    file = folder / "mcp.json"
    file.write_bytes(orjson.dumps({"mcpServers": {}, "rules": rules, **more}))
    return str(file)


def model(body: JSON) -> Reply:
    """Calls get_weather for each city in the user's newest message ("weather: Paris, Rome"); else says how it went."""
    said = [m for m in body["messages"] if m["role"] != "system"]
    asked = said[-1]["role"] == "user" and str(said[-1]["content"]).partition("weather: ")[2]
    if not asked:
        text = "Done." if said[-1]["role"] == "tool" else "Hello."
        return text_stream(text) if body.get("stream") else whole({"content": text})
    calls = [
        tool_call(arguments=orjson.dumps({"city": city}).decode(), id=f"call_{number}", index=number)
        for number, city in enumerate(asked.split(", "))
    ]
    if body.get("stream"):
        return call_stream(*calls)
    return whole({"content": None, "tool_calls": calls}, "tool_calls")


class Chat:
    """One conversation as a client without any memory of ours keeps it: its messages, and nothing else."""

    def __init__(self, app: AppServer, *, url: str = "", stream: bool = False, **options: Any) -> None:
        self.app = app
        self.url = url or app.url
        self.stream = stream
        self.model = options.pop("model", "mock")
        self.options = options
        self.messages: list[JSON] = []
        app.upstream.answer = model

    def send(self, *extra: JSON) -> httpx2.Response:
        """The messages as they are, once more."""
        with self.open(*extra) as answer:
            answer.read()
        return answer

    def open(self, *extra: JSON) -> AbstractContextManager[httpx2.Response]:
        """The same, for an answer that is read while it comes."""
        body = {"model": self.model, "messages": [*self.messages, *extra], "stream": self.stream}
        url = f"{self.url}/v1/chat/completions"
        return httpx2.stream("POST", url, json=body, timeout=DEADLINE, **self.options)

    def say(self, text: Any) -> str:
        """The answer to one more message of the user's, which is kept too."""
        self.messages.append({"role": "user", "content": text})
        answer = self.send()
        assert answer.status_code == 200, answer.text
        told = text_in(answer)
        self.messages.append({"role": "assistant", "content": told})
        return told

    def branch(self) -> Chat:
        """A conversation that goes on from here by itself."""
        other = Chat(self.app, url=self.url, stream=self.stream, **self.options)
        other.messages = [*self.messages]
        return other

    @property
    def cities(self) -> list[str]:
        """What tools were called for."""
        return [arguments["city"] for _, arguments in self.app.tools.calls]

    @property
    def seen(self) -> list[JSON]:
        """The conversation as the model saw it the last time."""
        found: list[JSON] = self.app.upstream.seen[-1].json["messages"]
        return found


def text_in(answer: httpx2.Response) -> str:
    """The words of a whole or a streamed answer."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return content_of(chunks_of(answer.text))
    return str(answer.json()["choices"][0]["message"]["content"])


def code_in(question: str) -> str:
    """The code at the end of a question."""
    found = CODE.search(question)
    assert found, question
    return found[0]


def is_question(text: str) -> bool:
    return bool(CODE.search(text))
