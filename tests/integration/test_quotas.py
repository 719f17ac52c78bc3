"""Quotas of keys, over a real port: 429 in each API's own words, in one process and across replicas with a Redis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.app_server import QUESTION, AppServer, app_server, serving
from tests.support.redis import RedisServer, redis  # noqa: F401 - a fixture
from tests.support.upstream import Reply, call_stream, json_reply, text_stream, tool_call, whole
from toolway.access.audit import AuditLog, Denials
from toolway.access.keys import hash_of
from toolway.errors import Unauthorized

USAGE = {"prompt_tokens": 60, "completion_tokens": 10, "total_tokens": 70}


def config(folder: Path, **rights: Any) -> str:
    keys = {name: {"hash": hash_of(name), **rights} for name in ("alice", "bob")}
    file = folder / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {}, "keys": keys}))
    return str(file)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(app: AppServer, key: str = "alice", *replies: Reply, **body: Any) -> httpx2.Response:
    app.set_replies(*(replies or [whole({"content": "Hi"})]))
    return app.ask(headers=bearer(key), **body)


def test_a_request_over_the_quota_is_told_when_to_come_again(tmp_path: Path):
    with app_server(config=config(tmp_path, requests="2/minute")) as app:
        limits = [(b"x-ratelimit-remaining-requests", b"4999")]
        told = ask(app, "alice", json_reply(json.loads(whole({"content": "Hi"}).parts[0]), 200, limits))
        assert told.headers.get_list("x-ratelimit-remaining-requests") == ["1"]
        assert ask(app, stream=True).status_code == 200
        refused = ask(app)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert not app.upstream.seen
        assert ask(app, "bob").status_code == 200
        get = httpx2.get(f"{app.url}/v1/models", headers=bearer("alice"))
        assert get.status_code != 429


def test_what_toolway_itself_answers_counts_but_for_routes_that_the_key_does_not_have(tmp_path: Path):
    with app_server(config=config(tmp_path, requests="2/minute", routes=["chat", "rest"])) as app:
        url, headers = f"{app.url}/v1/chat/completions", bearer("alice")
        forbidden = httpx2.post(f"{app.url}/v1/embeddings", json={}, headers=headers)
        assert (forbidden.status_code, "x-ratelimit-remaining-requests" in forbidden.headers) == (403, False)
        bad = httpx2.post(url, content=b"{", headers=headers)
        assert (bad.status_code, bad.headers["x-ratelimit-remaining-requests"]) == (400, "1")
        missing = httpx2.post(f"{app.url}/tools/no_such_tool", json={}, headers=headers)
        assert (missing.status_code, missing.headers["x-ratelimit-remaining-requests"]) == (404, "0")
        assert not app.upstream.seen
        assert ask(app).status_code == 429


def test_each_api_tells_it_in_its_own_words(tmp_path: Path):
    with app_server(config=config(tmp_path, requests="1/minute")) as app:
        assert ask(app).status_code == 200
        client = openai.OpenAI(base_url=f"{app.url}/v1", api_key="alice", max_retries=0)
        with client, pytest.raises(openai.RateLimitError, match="1 requests per minute is used up"):
            client.responses.create(model="mock", input="Hi")
        body = {"model": "mock", "max_tokens": 9, "messages": QUESTION}
        claude = httpx2.post(f"{app.url}/v1/messages", json=body, headers={"x-api-key": "alice"})
        assert claude.status_code == 429
        assert claude.json()["error"]["type"] == "rate_limit_error"
        assert "retry-after" in claude.headers
        passed = httpx2.post(f"{app.url}/v1/embeddings", json={"model": "m"}, headers=bearer("alice"))
        tool = httpx2.post(f"{app.url}/tools/get_weather", json={"city": "Paris"}, headers=bearer("alice"))
        assert [passed.status_code, tool.status_code] == [429, 429]


def test_calls_over_the_quota_are_a_result_that_the_model_reads(tmp_path: Path):
    with app_server(config=config(tmp_path, tool_calls="1/minute")) as app:
        call = tool_call(name="list_cities", arguments="{}")
        ask(app, "alice", call_stream(call), call_stream(call), text_stream("Done."), stream=True)
        assert len(app.tools.calls) == 1
        result = app.upstream.seen[-1].json["messages"][-1]["content"]
        assert "not run: The quota of 1 tool calls per minute is used up" in result
        refused = httpx2.post(f"{app.url}/tools/list_cities", json={}, headers=bearer("alice"))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert len(app.tools.calls) == 1


@pytest.mark.parametrize(
    "reply",
    [
        whole({"content": "Hi"}, usage=USAGE),
        text_stream("Hi", usage=USAGE),
        text_stream("Hi" * 200),
        whole({"content": "Hi" * 200}),
    ],
)
def test_tokens_are_counted_also_when_the_model_server_does_not_say(tmp_path: Path, reply: Reply):
    with app_server(config=config(tmp_path, tokens_per_day=50)) as app:
        streamed = b"data:" in reply.parts[0]
        first = ask(app, "alice", reply, stream=streamed)
        assert first.status_code == 200
        assert first.headers["x-ratelimit-remaining-tokens"] == "50"
        assert "usage" not in first.text or not streamed
        assert ask(app).status_code == 429
        assert ask(app, "bob").status_code == 200


def test_what_is_passed_on_is_counted_too(tmp_path: Path):
    with app_server(config=config(tmp_path, tokens_per_day=50)) as app:
        app.set_replies(json_reply({"data": [], "usage": USAGE}))
        url, body = f"{app.url}/v1/embeddings", {"model": "m", "input": "x"}
        assert httpx2.post(url, json=body, headers=bearer("alice")).status_code == 200
        assert httpx2.post(url, json=body, headers=bearer("alice")).status_code == 429


def test_replicas_count_together_in_redis_and_alone_without(tmp_path: Path, redis: RedisServer):  # noqa: F811
    with (
        app_server(config=config(tmp_path, requests="3/minute"), store=redis.url) as one,
        serving(one.settings) as other,
    ):
        both = [one.url, other]

        def statuses(times: int) -> list[int]:
            one.set_replies(*[whole({"content": "Hi"})] * times)
            body = {"model": "mock", "messages": QUESTION}
            return [
                httpx2.post(
                    f"{url}/v1/chat/completions", json=body, headers=bearer("alice"), timeout=60
                ).status_code
                for url in both * (times // 2)
            ]

        assert sorted(statuses(6)) == [200] * 3 + [429] * 3
        redis.stop()
        assert sorted(statuses(8)) == [200] * 6 + [429] * 2


def test_without_redis_nothing_with_a_quota_is_done_where_that_is_set(tmp_path: Path, redis: RedisServer):  # noqa: F811
    path = config(tmp_path, requests="3/minute")
    with app_server(config=path, store=redis.url, quotas_fail="closed") as app:
        assert ask(app).status_code == 200
        redis.stop()
        refused = ask(app)
        assert (refused.status_code, app.upstream.seen) == (503, [])


def test_messages_over_a_websocket_are_requests(tmp_path: Path):
    from websockets.sync.client import connect

    with app_server(config=config(tmp_path, requests="1/minute")) as app:
        app.set_replies(text_stream("Hi"), text_stream("Hi"))
        url = app.url.replace("http", "ws") + "/v1/responses"
        with connect(url, additional_headers=bearer("alice")) as socket:
            for expected in ("response.completed", "error"):
                socket.send(json.dumps({"type": "response.create", "model": "mock", "input": "Hi"}))
                event: Any = {"type": ""}
                while event["type"] not in ("response.completed", "error"):
                    event = json.loads(socket.recv(timeout=60))
                assert event["type"] == expected
            assert event["status"] == 429


def test_the_audit_log_tells_of_who_was_refused(tmp_path: Path):
    log = tmp_path / "audit.jsonl"
    quotas = {"requests": "3/minute", "tool_calls": "1/minute", "routes": ["chat"]}
    with app_server(config=config(tmp_path, **quotas), audit=str(log)) as app:
        for _ in range(3):
            assert ask(app, "wrong").status_code == 401
        passed = httpx2.post(f"{app.url}/v1/embeddings", json={}, headers=bearer("alice"))
        assert passed.status_code == 403
        two = whole(
            {"content": None, "tool_calls": [tool_call(id="a"), tool_call(id="b", index=1)]}, "tool_calls"
        )
        assert ask(app, "alice", two, whole({"content": "Hi"})).status_code == 200
        assert [ask(app).status_code for _ in range(4)] == [200, 200, 429, 429]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [line for line in lines if line["event"] == "refused"]
    assert [line["error.type"] for line in told] == [
        "invalid_api_key",
        "route_not_allowed",
        "rate_limit_exceeded",
        "rate_limit_exceeded",
    ]
    assert told[0]["client.address"] == "127.0.0.1"
    assert "toolway.key.name" not in told[0]
    assert (told[1]["toolway.key.name"], told[1]["url.path"]) == ("alice", "/v1/embeddings")
    assert (told[3]["toolway.key.name"], told[3]["http.response.status_code"]) == ("alice", 429)
    assert told[2]["toolway.reason"].startswith("The quota of 1 tool calls per minute is used up")
    assert told[3]["toolway.reason"].startswith("The quota of 3 requests per minute is used up")


def test_the_same_refusal_again_and_again_is_one_line_with_a_count(tmp_path: Path):
    audit = AuditLog(str(tmp_path / "audit.jsonl"), max_bytes=10**6, files=1)
    denials = Denials()
    denials.note(Unauthorized("No.", code="invalid_api_key"))
    denials.audit = audit
    for address in ("10.0.0.1", "10.0.0.2"):
        for _ in range(100):
            where = {"client.address": address}
            denials.note(Unauthorized("No.", code="invalid_api_key"), where=where)
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["client.address"] for line in lines] == ["10.0.0.1", "10.0.0.2"]


def test_a_refusal_that_goes_on_is_told_again_after_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    log = AuditLog(str(tmp_path / "audit.jsonl"), max_bytes=10**6, files=1)
    denials = Denials()
    denials.audit = log
    for now in (0.0, 1.0, 9.0, 10.0):
        monkeypatch.setattr("time.monotonic", lambda now=now: now)
        denials.note(Unauthorized("No.", code="invalid_api_key"))
    monkeypatch.undo()
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line.get("toolway.repeats") for line in lines] == [None, 2]
