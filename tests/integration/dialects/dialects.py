"""The dialects, each as a client that speaks it: the same questions in, the same answers out.

A dialect joins the suite by a subclass of `Client` and its line in `DIALECTS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson

from tests.integration.responses.requests import create, events_of, websocket
from tests.support.answers import assert_error, assert_one_clean_answer, chunks_of
from tests.support.app_server import AppServer
from tests.support.messages import check_error, check_message, read_message
from tests.support.responses import check_events, check_response

JSON = dict[str, Any]

EMPTY_OBJECT: JSON = {"type": "object", "properties": {}}


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call that the client is to run itself."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the client can know.

    `outcome` is "completed", "calls", "incomplete", "failed" (an error in place of the end of the answer) or
    "refused" (an error in place of an answer, with its HTTP `status`).
    """

    outcome: str
    text: str = ""
    calls: tuple[Call, ...] = ()
    usage: JSON | None = None
    status: int = 200
    error: str = ""


class Client(ABC):
    """One conversation. `own_tools` are the names of the client's own tools; `limit` bounds the answer's tokens."""

    name: str
    modes: tuple[str, ...] = ("streamed", "whole")

    def __init__(
        self, app: AppServer, mode: str, *, own_tools: Sequence[str] = (), limit: int | None = None
    ) -> None:
        self.app = app
        self.streamed = mode == "streamed"
        self.own_tools = own_tools
        self.limit = limit

    @abstractmethod
    def ask(self, text: str, *, image: str | None = None) -> Answer:
        """Say something, with an image (a URL) behind it, and read the whole answer."""

    @abstractmethod
    def give_results(self, results: Mapping[str, str]) -> Answer:
        """Answer the calls of the last answer: id -> what the client's tool said."""

    def _post(self, path: str, body: JSON) -> httpx2.Response:
        body = {"model": "mock", **body, **({"stream": True} if self.streamed else {})}
        return httpx2.post(f"{self.app.url}/v1/{path}", json=body, timeout=60, verify=False)


class Chat(Client):
    """/v1/chat/completions."""

    name = "chat"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._history: list[JSON] = []

    def ask(self, text: str, *, image: str | None = None) -> Answer:
        content: Any = text
        if image:
            content = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": image}}]
        return self._send({"role": "user", "content": content})

    def give_results(self, results: Mapping[str, str]) -> Answer:
        return self._send(
            *({"role": "tool", "tool_call_id": id, "content": text} for id, text in results.items())
        )

    def _send(self, *messages: JSON) -> Answer:
        self._history += messages
        body: JSON = {"messages": self._history}
        if self.own_tools:
            tools = [{"name": name, "parameters": EMPTY_OBJECT} for name in self.own_tools]
            body["tools"] = [{"type": "function", "function": tool} for tool in tools]
        if self.limit:
            body["max_tokens"] = self.limit
        if self.streamed:
            body["stream_options"] = {"include_usage": True}
        answered = self._post("chat/completions", body)
        if answered.status_code != 200:
            return _refusal(answered.status_code, answered.json())
        return self._streamed(chunks_of(answered.text)) if self.streamed else self._whole(answered.json())

    def _whole(self, body: JSON) -> Answer:
        (choice,) = body["choices"]
        return self._answer(choice["message"], choice["finish_reason"], body.get("usage"))

    def _streamed(self, chunks: list[JSON]) -> Answer:
        message: JSON = {"role": "assistant", "content": "", "tool_calls": []}
        finish = usage = None
        for chunk in chunks:
            if "error" in chunk:
                assert_error(chunk)
                return Answer(outcome="failed", text=message["content"], error=chunk["error"]["message"])
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                delta, finish = choice["delta"], choice["finish_reason"] or finish
                message["content"] += delta.get("content") or ""
                for fragment in delta.get("tool_calls") or ():
                    _join(message["tool_calls"], fragment)
        assert_one_clean_answer(chunks)
        return self._answer({key: value for key, value in message.items() if value != []}, finish, usage)

    def _answer(self, message: JSON, finish: Any, usage: JSON | None) -> Answer:
        self._history.append(message)
        calls = tuple(
            Call(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
            for call in message.get("tool_calls", ())
        )
        outcomes = {"stop": "completed", "tool_calls": "calls", "length": "incomplete"}
        return Answer(
            outcome=outcomes[finish], text=message.get("content") or "", calls=calls, usage=_usage(usage)
        )


def _join(calls: list[JSON], fragment: JSON) -> None:
    """Put a fragment of a call behind what is there of it."""
    if fragment["index"] == len(calls):
        calls.append({"id": fragment["id"], "type": "function", "function": {"name": "", "arguments": ""}})
    for key, value in fragment["function"].items():
        calls[fragment["index"]]["function"][key] += value


class ResponsesWithItems(Client):
    """/v1/responses by a client that stores nothing and sends all items back."""

    name = "responses, items sent back"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._items: list[JSON] = []

    def ask(self, text: str, *, image: str | None = None) -> Answer:
        parts: list[JSON] = [{"type": "input_text", "text": text}]
        if image:
            parts.append({"type": "input_image", "image_url": image, "detail": "auto"})
        content: Any = parts if image else text
        return self._send({"type": "message", "role": "user", "content": content})

    def give_results(self, results: Mapping[str, str]) -> Answer:
        return self._send(
            *({"type": "function_call_output", "call_id": id, "output": text} for id, text in results.items())
        )

    def _send(self, *items: JSON) -> Answer:
        self._items += items
        return self._create({"input": self._items, "store": False})

    def _create(self, body: JSON) -> Answer:
        if self.own_tools:
            body["tools"] = [
                {"type": "function", "name": name, "parameters": EMPTY_OBJECT, "strict": False}
                for name in self.own_tools
            ]
        if self.limit:
            body["max_output_tokens"] = self.limit
        return self._respond(body)

    def _respond(self, body: JSON) -> Answer:
        answered = self._post("responses", body)
        if answered.status_code != 200:
            return _refusal(answered.status_code, answered.json())
        return self._answer(
            check_events(events_of(answered.text)) if self.streamed else check_response(answered.json())
        )

    def _answer(self, response: JSON) -> Answer:
        self._remember(response)
        items = response["output"]
        calls = tuple(
            Call(id=item["call_id"], name=item["name"], arguments=item["arguments"])
            for item in items
            if item["type"] == "function_call"
        )
        return Answer(
            outcome="calls" if calls else response["status"],
            text="".join(
                part["text"] for item in items if item["type"] == "message" for part in item["content"]
            ),
            calls=calls,
            usage=_usage(response["usage"]),
            error=(response["error"] or {}).get("message", ""),
        )

    def _remember(self, response: JSON) -> None:
        self._items += response["output"]


class ResponsesStored(ResponsesWithItems):
    """/v1/responses by a client that names the response that came before."""

    name = "responses, stored"
    _previous: str | None = None

    def _send(self, *items: JSON) -> Answer:
        return self._create({"input": list(items), "previous_response_id": self._previous})

    def _remember(self, response: JSON) -> None:
        self._previous = response["id"]


class ResponsesOverWebSocket(ResponsesWithItems):
    """The same events over a WebSocket."""

    name = "responses, WebSocket"
    modes = ("streamed",)

    def _respond(self, body: JSON) -> Answer:
        with websocket(self.app) as connection:
            events = create(connection, **body)
        if events[-1]["type"] == "error":
            return _refusal(events[-1]["status"], {"error": events[-1]["error"]})
        return self._answer(check_events(events))


class Messages(Client):
    """/v1/messages by a client that sends all blocks back."""

    name = "messages"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._history: list[JSON] = []

    def ask(self, text: str, *, image: str | None = None) -> Answer:
        content: Any = text
        if image:
            kind, _, data = image.removeprefix("data:").partition(";base64,")
            source = {"type": "base64", "media_type": kind, "data": data}
            content = [{"type": "text", "text": text}, {"type": "image", "source": source}]
        return self._send(content)

    def give_results(self, results: Mapping[str, str]) -> Answer:
        return self._send(
            [
                {"type": "tool_result", "tool_use_id": id, "content": text, "is_error": False}
                for id, text in results.items()
            ]
        )

    def _send(self, content: Any) -> Answer:
        self._history.append({"role": "user", "content": content})
        body: JSON = {"messages": self._history, "max_tokens": self.limit or 1000}
        if self.own_tools:
            body["tools"] = [{"name": name, "input_schema": EMPTY_OBJECT} for name in self.own_tools]
        answered = self._post("messages", body)
        if answered.status_code != 200:
            return self._refused(answered.status_code, answered.json())
        return self._answer(read_message(answered.text) if self.streamed else check_message(answered.json()))

    def _refused(self, status: int, body: JSON) -> Answer:
        return Answer(outcome="refused", status=status, error=check_error(body))

    def _answer(self, message: JSON) -> Answer:
        content = message["content"]
        text = "".join(block["text"] for block in content if block["type"] == "text")
        if "error" in message:
            return Answer(outcome="failed", text=text, error=check_error(message["error"]))
        self._history.append({"role": "assistant", "content": content})
        calls = tuple(
            Call(id=block["id"], name=block["name"], arguments=orjson.dumps(block["input"]).decode())
            for block in content
            if block["type"] == "tool_use"
        )
        outcomes = {"end_turn": "completed", "tool_use": "calls", "max_tokens": "incomplete"}
        usage = message["usage"]
        counts = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"]}
        return Answer(
            outcome=outcomes[message["stop_reason"]],
            text=text,
            calls=calls,
            usage={**counts, "total_tokens": sum(counts.values())},
        )


def _refusal(status: int, body: JSON) -> Answer:
    assert_error(body)
    return Answer(outcome="refused", status=status, error=body["error"]["message"])


def _usage(usage: JSON | None) -> JSON | None:
    """Under the names of chat completions."""
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.get("prompt_tokens", usage.get("input_tokens")),
        "completion_tokens": usage.get("completion_tokens", usage.get("output_tokens")),
        "total_tokens": usage["total_tokens"],
    }


DIALECTS: tuple[type[Client], ...] = (
    Chat,
    ResponsesWithItems,
    ResponsesStored,
    ResponsesOverWebSocket,
    Messages,
)
