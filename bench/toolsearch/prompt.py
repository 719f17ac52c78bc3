"""Tokens of prompts that a real llama.cpp server evaluates anew in a conversation of ten turns.

The prompts are those of Toolway, and llama.cpp reads each one and answers a token. What the model does is scripted: so
small a one would neither search nor choose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal

import httpx2
import orjson
from bench.toolsearch.catalogue import catalogue, queries
from bench.toolsearch.model_server import CONTEXT
from bench.toolsearch.recall import Row
from tests.support.app_server import serving
from tests.support.servers import running
from tests.support.tools import ToolService, document
from tests.support.upstream import Reply, json_reply, tool_call, whole

from toolway.demo.child import running_child
from toolway.demo.model import ensure_weights
from toolway.settings.load import load_settings

Offer = Literal["all tools", "append", "call"]

TURNS = 10


def of_prompts(counts: Sequence[int], *, counted: bool = False) -> Iterator[Row]:
    """For each number of tools the same conversation three times: a turn calls a tool, and searches it before.

    What is `counted` is not read by the model: a prompt's tokens behind the beginning that it has in common with the
    one before.
    """
    with running_child(
        "The model server", "bench.toolsearch.model_server", "--weights", str(ensure_weights())
    ) as child:
        base = child.wait_ready(120)
        offers: tuple[Offer, ...] = ("all tools", "append", "call")
        for count in counts:
            for offer in offers:
                yield from _conversation(base, count, offer, _Counted if counted else _Model)


def _conversation(base: str, count: int, offer: Offer, kind: type[_Model]) -> list[Row]:
    chosen = dict(list(catalogue().items())[:count])
    service = ToolService(**dict.fromkeys((tool.name for tool in chosen.values()), _done))
    service.document = document({tool.name: tool.parameters for tool in chosen.values()})
    for tool in chosen.values():
        service.document["paths"][f"/{tool.name}"]["post"]["description"] = tool.description
    wanted = [query for query in queries(in_other_words=False) if query.tool in chosen]
    model = kind(base, [(q.words, chosen[q.tool].name) for q in wanted], offer)
    given: dict[str, Any] = {"replay": "true", "debug_output": False, "tool_search": "off"}
    if offer != "all tools":
        given |= {"tool_search": "on", "tool_search_way": offer}
    with (
        running(model, lifespan="off") as upstream,
        running(service, lifespan="off") as tools,
        serving(load_settings({}, None, openai_base_url=f"{upstream}/v1", endpoints=tools, **given)) as url,
    ):
        while set(httpx2.get(f"{url}/readyz").json()["servers"].values()) != {"ready"}:
            pass
        messages: list[Any] = []
        for turn in range(TURNS):
            messages.append(
                {"role": "user", "content": f"Question {turn}: {wanted[turn % len(wanted)].words}, please."}
            )
            body = {"model": "m", "messages": messages}
            answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=900)
            if answer.status_code != 200:
                break
            messages.append(answer.json()["choices"][0]["message"])
    what = f"{count} tools, {offer}"
    turns = len(messages) // 2
    return [
        (f"{what}: {turns} turns, {len(model.prompts)} requests, tokens read anew", f"{model.evaluated:,}"),
        (f"{what}: first prompt, longest prompt", f"{model.prompts[0]:,}, {max(model.prompts):,}"),
        *([(f"{what}: requests refused as too long", f"{model.refused}")] if model.refused else []),
    ]


class _Refusal(Exception):
    """llama.cpp refuses a prompt, with this body."""


async def _done(_: Any) -> Any:
    return {"done": True}


class _Model:
    """Hands each prompt to llama.cpp, keeps what that evaluated, and answers as the script has it."""

    def __init__(self, base: str, wanted: list[tuple[str, str]], offer: Offer) -> None:
        self.prompts: list[int] = []
        self.evaluated = self.refused = 0
        self._base = base
        self._wanted = wanted
        self._offer = offer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        reply = await self._reply(orjson.loads(body)) if body else Reply(status=404)
        await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers)})
        await send(
            {"type": "http.response.body", "body": b"".join(p for p in reply.parts if isinstance(p, bytes))}
        )

    async def _reply(self, request: dict[str, Any]) -> Reply:
        try:
            new, cached = await self._read(request)
        except _Refusal as refusal:
            self.refused += 1
            return json_reply(refusal.args[0], 400)
        self.prompts.append(new + cached)
        self.evaluated += new
        return self._next(request["messages"])

    async def _read(self, request: dict[str, Any]) -> tuple[int, int]:
        """The tokens of a prompt that llama.cpp evaluates, and those that it knows. Raises _Refusal."""
        read = {**request, "stream": False, "max_tokens": 1, "cache_prompt": True}
        answer = await self._post("/v1/chat/completions", read)
        if "timings" not in answer:
            raise _Refusal(answer)
        return answer["timings"]["prompt_n"], answer["timings"]["cache_n"]

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        async with httpx2.AsyncClient(timeout=900) as client:
            return (await client.post(f"{self._base.removesuffix('/v1')}{path}", json=body)).json()

    def _next(self, messages: list[dict[str, Any]]) -> Reply:
        asked = max(number for number, message in enumerate(messages) if message["role"] == "user")
        turn = sum(message["role"] == "user" for message in messages) - 1
        done = sum(message["role"] == "tool" for message in messages[asked:])
        words, name = self._wanted[turn % len(self._wanted)]
        arguments = {"id": "7", "fields": {}, "query": "x", "user_id": "8", "limit": 5}
        call = tool_call(name, json.dumps(arguments), id=f"call_{turn}_{done}")
        if self._offer == "call":
            call = tool_call(
                "call_tool", json.dumps({"name": name, "arguments": arguments}), id=f"call_{turn}_{done}"
            )
        steps = (
            [call]
            if self._offer == "all tools"
            else [tool_call("search_tools", json.dumps({"query": words}), id=f"call_{turn}_{done}"), call]
        )
        if done < len(steps):
            return whole({"content": "", "tool_calls": [steps[done]]}, finish="tool_calls")
        return whole({"content": f"That was number {turn}, and it is done."})


class _Counted(_Model):
    """The same without reading: llama.cpp writes and splits the prompt, and what is new in it is counted here."""

    _before: Sequence[int] = ()

    async def _read(self, request: dict[str, Any]) -> tuple[int, int]:
        written = await self._post(
            "/apply-template", {key: request[key] for key in ("messages", "tools") if key in request}
        )
        split = await self._post("/tokenize", {"content": written["prompt"], "add_special": True})
        tokens: list[int] = split["tokens"]
        if len(tokens) >= CONTEXT:
            message = f"request ({len(tokens)} tokens) exceeds the available context size ({CONTEXT} tokens)"
            raise _Refusal({"error": {"code": 400, "message": message, "type": "exceed_context_size_error"}})
        pairs = zip(tokens, self._before, strict=False)
        cached = min(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), len(tokens) - 1)
        self._before = tokens
        return len(tokens) - cached, cached
