"""The demo's tool servers: what they answer is what their openapi.json says."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import jsonschema_rs
import pytest

from tests.support.servers import running
from toolway.demo.services import SAMPLE_WEATHER, SERVICES, running_service


@pytest.fixture(scope="module")
def services():
    with running(SERVICES["calculator"]) as calculator, running(SERVICES["weather"]) as weather:
        yield {"calculator": calculator, "weather": weather}


def ask(url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    ("service", "path", "body", "status"),
    [
        ("weather", "/weather?city=Paris", None, 200),
        ("weather", "/weather?city=new%20york", None, 200),
        ("weather", "/weather?city=Atlantis", None, 404),
        ("weather", "/weather", None, 404),
        ("calculator", "/add", {"a": 3, "b": 4.5}, 200),
        ("calculator", "/add", {"a": 3}, 422),
        ("calculator", "/add", {"a": "3", "b": True}, 422),
        ("calculator", "/add", [], 422),
        ("calculator", "/add", b"not JSON", 422),
    ],
)
def test_every_answer_is_one_the_document_tells_of(services, service, path, body, status):
    _, document = ask(f"{services[service]}/openapi.json")
    got, answer = ask(services[service] + path, body)
    assert got == status
    method = "get" if body is None else "post"
    told = document["paths"][path.split("?")[0]][method]["responses"][str(status)]
    jsonschema_rs.Draft202012Validator(told["content"]["application/json"]["schema"]).validate(answer)


def test_the_weather_is_said_to_be_sample_data(services):
    for city, weather in SAMPLE_WEATHER.items():
        _, answer = ask(f"{services['weather']}/weather?city={city.replace(' ', '+')}")
        assert answer == {"city": city, "weather": weather, "source": "sample data"}


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [(3, 4, "3 + 4 = 7"), (1234, 4321, "1234 + 4321 = 5555"), (0.1, 0.2, "0.1 + 0.2 = 0.3")],
)
def test_the_calculator_writes_the_sum_out(services, a, b, result):
    assert ask(f"{services['calculator']}/add", {"a": a, "b": b}) == (200, {"result": result})


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_runs_as_a_program_and_tells_each_call(name):
    lines: list[str] = []
    with running_service(name, on_line=lines.append) as service:
        url = service.wait_ready()
        ask(f"{url}/openapi.json")
        ask(
            f"{url}/weather?city=Paris" if name == "weather" else f"{url}/add",
            *[{"a": 1, "b": 2}][name == "weather" :],
        )
    told = {
        "weather": 'GET /weather?city=Paris -> 200 {"city":"Paris"',
        "calculator": 'POST /add {"a": 1, "b": 2} -> 200 {"result":"1 + 2 = 3"}',
    }
    assert len(lines) == 1
    assert lines[0].startswith(told[name])
