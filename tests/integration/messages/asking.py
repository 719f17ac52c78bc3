"""`/v1/messages` without an SDK: the model's turns in, the message out, each checked."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.support.app_server import AppServer
from tests.support.messages import check_message, read_message
from tests.support.upstream import JSON

BOTH = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
QUESTION = [{"role": "user", "content": "What is the weather?"}]
KEY = {"x-api-key": "sk-mine", "anthropic-version": "2023-06-01"}


def post(app: AppServer, body: JSON, path: str = "", **headers: str) -> httpx2.Response:
    sent = {"model": "mock", "messages": QUESTION, **body}
    return httpx2.post(f"{app.url}/v1/messages{path}", json=sent, headers=headers, timeout=60)


def ask(app: AppServer, *, streamed: bool = False, beta: str = "", **body: Any) -> JSON:
    headers = {**KEY, **({"anthropic-beta": beta} if beta else {})}
    answer = post(app, {"max_tokens": 100, "stream": streamed, **body}, **headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["request-id"].startswith("req_")
    return read_message(answer.text) if streamed else check_message(answer.json())


def sent(app: AppServer, number: int = -1) -> JSON:
    body: JSON = app.upstream.seen[number].json
    return body
