"""Tool search in every dialect: prompts that keep their beginning, and nothing found that may not be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.integration.dialects.dialects import DIALECTS, Client
from tests.integration.test_tool_search import (
    META,
    QUERIES,
    SUBJECTS,
    at_most_128,
    many_tools,
    models,
    names,
    refuses,
    results,
    search,
    searching,
    through,
)
from tests.support.app_server import app_server
from tests.support.servers import running
from tests.support.tools import ToolService
from tests.support.upstream import Reply, call_stream, json_reply, text_stream, tool_call, whole
from toolway.access.keys import hash_of

JSON = dict[str, Any]

WAYS = pytest.mark.parametrize("way", ["append", "call"])
EVERY = pytest.mark.parametrize(
    ("dialect", "mode"),
    [(d, mode) for d in DIALECTS for mode in d.modes],
    ids=lambda v: getattr(v, "name", v),
)


def reply(body: JSON, *calls: JSON, text: str = "Done.") -> Reply:
    if body.get("stream"):
        return call_stream(*calls) if calls else text_stream(text)
    return whole({"tool_calls": list(calls)}, finish="tool_calls") if calls else whole({"content": text})


@WAYS
@EVERY
def test_ten_turns_begin_with_the_same_bytes(dialect: type[Client], mode: str, way: str):
    def script(body: JSON) -> Reply:
        last = body["messages"][-1]
        text = json.dumps(last["content"])
        number = int(text.strip('"}]').split()[-1]) if last["role"] == "user" else 0
        calls = [search(QUERIES[number // 2], id=f"call_{number}")] if number % 2 else []
        return reply(body, *calls, text=f"Answer {len(body['messages'])}.")

    with searching(tool_search_way=way, replay="true") as app:
        app.upstream.answer = script
        client = dialect(app, mode)
        for turn in range(10):
            assert client.ask(f"Question {turn}").outcome == "completed"
        requests = [seen.json for seen in app.upstream.seen]
    assert len(requests) == 15
    for earlier, later in pairwise(requests):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
        assert later["tools"][: len(earlier["tools"])] == earlier["tools"]
    assert len({json.dumps(request["tools"]) for request in requests}) == (1 if way == "call" else 6)


def of_subject(subject: str) -> ToolService:
    """An ordinary server: fifteen tools about one thing."""
    service = many_tools(3)
    paths = service.document["paths"]
    service.document["paths"] = {path: item for path, item in paths.items() if f"_{subject}_" in path}
    return service


def at_4096(body: JSON) -> Reply | None:
    tokens = len(json.dumps(body)) // 4
    return (
        refuses(f"request ({tokens} tokens) exceeds the available context size (4096)")
        if tokens > 4096
        else None
    )


def at_128(body: JSON) -> Reply | None:
    refusal = at_most_128(body)
    return refusal if refusal.status == 400 else None


def cutting(body: JSON) -> Reply | None:
    """Ollama forgets what does not fit, and says nothing; then it does not know what was asked."""
    return whole({"content": "What was the question?"}) if len(json.dumps(body)) // 4 > 4096 else None


SERVERS: dict[str, tuple[JSON, Callable[[JSON], Reply | None]]] = {
    "llama.cpp with 4096": ({"owned_by": "llamacpp", "meta": {"n_ctx": 4096}}, at_4096),
    "one with 4096 that does not say so": ({"owned_by": "me"}, at_4096),
    "one with at most 128 tools": ({"owned_by": "me"}, at_128),
    "Ollama": ({"owned_by": "library"}, cutting),
}


@pytest.fixture(scope="module")
def services() -> Iterator[dict[str, tuple[ToolService, str]]]:
    """Ten servers, and where they are."""
    with ExitStack() as stack:
        made = {subject: of_subject(subject) for subject in SUBJECTS}
        yield {
            subject: (service, stack.enter_context(running(service, lifespan="off")))
            for subject, service in made.items()
        }


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_ten_ordinary_servers_just_work(
    dialect: type[Client],
    server: str,
    services: dict[str, tuple[ToolService, str]],
    caplog: pytest.LogCaptureFixture,
):
    entry, limit = SERVERS[server]

    def script(body: JSON) -> Reply:
        if refusal := limit(body):
            return refusal
        asked = max(n for n, message in enumerate(body["messages"]) if message["role"] == "user")
        done = sum(message["role"] == "tool" for message in body["messages"][asked:])
        turn = sum(message["role"] == "user" for message in body["messages"]) - 1
        subject = SUBJECTS[turn]
        calls = [search(f"delete a {subject}"), through(f"delete_{subject}_1", {"id": turn})]
        return reply(body, *calls[done:][:1])

    endpoints = ",".join(f"{subject}={url}" for subject, (_, url) in services.items())
    with app_server(endpoints=endpoints) as app:
        app.upstream.answer = script
        app.upstream.models = models(**entry)
        app.upstream.asides = {"/api/show": json_reply({"model_info": {"llama.context_length": 131_072}})}
        client = dialect(app, dialect.modes[0])
        for turn, subject in enumerate(SUBJECTS[:3]):
            service, _ = services[subject]
            service.calls.clear()
            assert client.ask(f"Delete {subject} {turn}.").text == "Done."
            assert service.calls == [(f"delete_{subject}_1", {"id": turn})]
        offered = [names(seen.json) for seen in app.upstream.seen]
        assert all(len(offer) < 40 for offer in offered[1:])
        assert offered[-1][:2] == META
        assert "the model searches them" in caplog.text, "the operator reads what became of the tools"


PATHS: dict[str, JSON] = {
    "chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
    "responses": {"input": "Hello"},
    "messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100},
}


@WAYS
@pytest.mark.parametrize("path", PATHS)
def test_what_may_not_be_used_is_not_found_or_named_or_called(path: str, way: str, tmp_path: Path):
    keys = {"few": {"hash": hash_of("few"), "tools": ["get_weather", "list_*", "share_*"]}}
    rules = [{"tools": ["share_*"], "effect": "deny", "reason": "Nothing leaves the house."}]
    config = tmp_path / "mcp.json"
    config.write_text(json.dumps({"keys": keys, "rules": rules}))
    calls = [
        search("delete a song, list songs"),
        through("delete_song_1", {"id": 1}, id="call_1"),
        tool_call("delete_song_1", '{"id": 1}', id="call_2"),
        search("delete_song_1", id="call_3"),
        through("share_song_1", {"id": 1}, id="call_4"),
        tool_call("share_song_1", '{"id": 1}', id="call_5"),
        through("list_song_1", {"id": 1}, id="call_6"),
    ]

    def script(body: JSON) -> Reply:
        return reply(body, *calls[len(results(body)) :][:1])

    with searching(tool_search_way=way, config=str(config), max_rounds=20) as app:
        app.upstream.answer = script
        headers = {"Authorization": "Bearer few"}
        body = {"model": "mock", **PATHS[path]}
        answer = httpx2.post(f"{app.url}/v1/{path}", json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        found, *told = results(app.upstream.seen[-1].json)
        offered = [names(seen.json) for seen in app.upstream.seen]
        assert app.tools.calls == [("list_song_1", {"id": 1})], "only what is allowed ran"
    assert "list_song_0" in found
    assert "delete_song" not in found
    assert all("no tool named 'delete_song_1'" in text for text in told[:2])
    assert '"name":"delete_song' not in told[2]
    assert all("Nothing leaves the house." in text for text in told[3:5])
    assert "delete_song" not in json.dumps(app.upstream.seen[0].json["tools"])
    assert not any(name.startswith("delete_") for names_ in offered for name in names_)
    assert offered[0] == META
