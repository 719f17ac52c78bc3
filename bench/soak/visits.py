"""What clients do in the soak, each with a check of what they get. A visit is one client with its own text and key."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx2
from bench.soak.services import OPERATIONS
from mcp.client import Client

JSON = dict[str, Any]
USERS = 20
"""Half of the visits are these users', each other one is somebody new."""


@dataclass
class Visitor:
    """One client. `text` is what nobody else says."""

    url: str
    http: httpx2.AsyncClient
    config: Path
    text: str = field(default_factory=lambda: uuid4().hex[:12])
    key: str = field(default_factory=lambda: f"sk-{random.choice([random.randrange(USERS), uuid4().hex])}")

    async def ask(self, path: str, body: Any, *, status: int = 200, method: str = "POST") -> Any:
        content = {} if method == "GET" else {"content": body} if isinstance(body, bytes) else {"json": body}
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        answer = await self.http.request(method, f"{self.url}{path}", headers=headers, **content)
        check(answer.status_code == status, answer.status_code, answer.text[:300])
        return answer

    async def events(self, path: str, body: JSON, *, most: int | None = None) -> list[JSON]:
        """The events of a stream; with `most` the client is gone after so many."""
        found: list[JSON] = []
        headers = {"authorization": f"Bearer {self.key}"}
        async with self.http.stream(
            "POST", f"{self.url}{path}", headers=headers, json={**body, "stream": True}
        ) as answer:
            check(answer.status_code == 200, answer.status_code)
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    found.append(json.loads(line[6:]))
                    if most and len(found) >= most:
                        return found
                elif line == "data: [DONE]":
                    return found
        return found

    async def chat(self, *said: str, **more: Any) -> str:
        """The answer to these messages, the user's and the model's in turn."""
        answer = await self.ask("/v1/chat/completions", chat_body(*said, **more))
        return str(answer.json()["choices"][0]["message"]["content"])

    async def chat_stream(self, *said: str) -> str:
        chunks = await self.events("/v1/chat/completions", chat_body(*said))
        deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
        return "".join(delta.get("content") or "" for delta in deltas)


def chat_body(*said: str, **more: Any) -> JSON:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
    return {"model": "mock", "messages": messages, **more}


def check(holds: bool, *told: Any) -> None:
    if not holds:
        raise AssertionError(told)


def same(got: Any, expected: Any) -> None:
    check(got == expected, got, expected)


async def whole(visitor: Visitor) -> None:
    same(await visitor.chat(f"say {visitor.text}"), visitor.text)


async def streamed(visitor: Visitor) -> None:
    text = f"{visitor.text} and {visitor.text} again"
    same(await visitor.chat_stream(f"say {text}"), text)


async def tool_round(visitor: Visitor) -> None:
    text = visitor.text
    asking = random.choice([visitor.chat, visitor.chat_stream])
    tool = random.choice([*OPERATIONS[:4], "local__echo", "remote__echo"])
    answer = await asking(f"call {tool} {text}")
    check(answer.startswith("The tool says") and text in answer, tool, answer)


async def conversation(visitor: Visitor) -> None:
    said = [f"call look_up_1 {visitor.text}"]
    for turn in ("say one", "call remote__echo two", "say three"):
        said += [await visitor.chat_stream(*said), turn]
    same(await visitor.chat(*said), "three")


async def response(visitor: Visitor) -> None:
    asked = {"model": "mock", "input": f"call local__echo {visitor.text}"}
    first = (await visitor.ask("/v1/responses", asked)).json()
    check(visitor.text in response_text(first), first)
    follow = {"model": "mock", "input": "say more", "previous_response_id": first["id"]}
    events = await visitor.events("/v1/responses", follow)
    same(events[-1]["type"], "response.completed")
    same(response_text(events[-1]["response"]), "more")
    stored = (await visitor.ask(f"/v1/responses/{first['id']}", None, method="GET")).json()
    same(response_text(stored), response_text(first))
    if random.random() < 0.3:
        await visitor.ask(f"/v1/responses/{first['id']}", {}, method="DELETE")


def response_text(made: JSON) -> str:
    parts = [part for item in made["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


async def background(visitor: Visitor) -> None:
    asked = {"model": "mock", "input": f"say {visitor.text}", "background": True}
    made = (await visitor.ask("/v1/responses", asked)).json()
    while made["status"] in {"queued", "in_progress"}:
        await anyio.sleep(0.2)
        made = (await visitor.ask(f"/v1/responses/{made['id']}", None, method="GET")).json()
    same(response_text(made), visitor.text)


async def message(visitor: Visitor) -> None:
    asked = [{"role": "user", "content": f"call look_up_2 {visitor.text}"}]
    body = {"model": "mock", "max_tokens": 100, "messages": asked}
    if random.random() < 0.5:
        events = await visitor.events("/v1/messages", body)
        text = "".join(
            event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"
        )
    else:
        made = (await visitor.ask("/v1/messages", body)).json()
        text = "".join(block["text"] for block in made["content"] if block["type"] == "text")
    check(visitor.text in text, text)


async def mcp_client(visitor: Visitor) -> None:
    async with Client(f"{visitor.url}/mcp", mode=random.choice(["2026-07-28", "legacy"])) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        check({"remote__echo", "local__echo", "look_up_0"} <= tools, tools)
        answer = await client.call_tool("remote__echo", {"value": visitor.text})
        check(visitor.text in str(answer.content), answer)


async def rest(visitor: Visitor) -> None:
    answer = await visitor.ask("/tools/look_up_3", {"city": visitor.text})
    same(answer.json()["city"], visitor.text)
    await visitor.ask("/openapi.json", None, method="GET")


async def leaver(visitor: Visitor) -> None:
    """A client that has heard enough, or does not wait for the tool."""
    if random.random() < 0.5:
        path, said = random.choice([("chat/completions", "messages"), ("responses", "input")])
        body = {"model": "mock", said: [{"role": "user", "content": f"slow {visitor.text}"}]}
        await visitor.events(f"/v1/{path}", body, most=3)
    else:
        with anyio.move_on_after(0.3):
            await visitor.chat("call remote__slow 5")


async def listener(visitor: Visitor) -> None:
    """A client that hears a slow answer to its end."""
    answer = await visitor.chat_stream(f"slow {visitor.text}")
    check(answer.count(visitor.text) == 50, answer)


async def refused(visitor: Visitor) -> None:
    """A request that is refused, by Toolway or by the model server."""
    body = chat_body(f"say {visitor.text}")
    match random.randrange(7):
        case 0:
            await visitor.ask("/v1/chat/completions", b'{"model": ', status=400)
        case 1:
            await visitor.ask(f"/nowhere/{visitor.text}", body, status=404)
        case 2:
            await visitor.ask("/v1/chat/completions", chat_body("refuse 429"), status=429)
        case 3:
            await visitor.ask("/v1/chat/completions", chat_body("refuse 503"), status=503)
        case 4:
            follow = {"model": "mock", "input": "say no", "previous_response_id": f"resp_{visitor.text}"}
            await visitor.ask("/v1/responses", follow, status=400)
        case 5:
            events = await visitor.events("/v1/chat/completions", chat_body(f"break {visitor.text}"))
            check("error" in events[-1], events)
        case 6:
            await visitor.ask("/tools/look_up_3", {"town": 1}, status=422)


async def overseer(visitor: Visitor) -> None:
    """Who looks after the server: health, metrics, the console's lists."""
    for path in ("/healthz", "/metrics", "/v1/models", "/"):
        await visitor.ask(path, None, method="GET")


async def upheaval(visitor: Visitor) -> None:
    """A server crashes, and the file of the servers is written anew, so that one of them is another."""
    crashed = await visitor.chat("call crash now")
    check(crashed.startswith("The tool says"), crashed)
    config = json.loads(visitor.config.read_text())
    config["mcpServers"]["fragile"]["env"] = {"SOAK": visitor.text}
    visitor.config.write_text(json.dumps(config))


Visit = Callable[[Visitor], Awaitable[None]]

VISITS: dict[Visit, int] = {
    whole: 20,
    streamed: 20,
    tool_round: 20,
    conversation: 6,
    response: 8,
    background: 3,
    message: 8,
    mcp_client: 3,
    rest: 4,
    leaver: 8,
    listener: 2,
    refused: 8,
    overseer: 1,
}
"""How often each comes, among all."""
