"""The demo's OpenAPI service: what it answers is what its openapi.json says."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import jsonschema_rs
import pytest

from tests.support.servers import running
from toolway.demo.weather import SAMPLE_WEATHER, WEATHER, running_weather


@pytest.fixture(scope="module")
def weather():
    with running(WEATHER) as url:
        yield url


def ask(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    ("query", "status"),
    [("?city=Paris", 200), ("?city=new%20york", 200), ("?city=Atlantis", 404), ("", 404)],
)
def test_every_answer_is_one_the_document_tells_of(weather: str, query: str, status: int):
    _, document = ask(f"{weather}/openapi.json")
    got, answer = ask(f"{weather}/weather{query}")
    assert got == status
    told = document["paths"]["/weather"]["get"]["responses"][str(status)]
    jsonschema_rs.Draft202012Validator(told["content"]["application/json"]["schema"]).validate(answer)


def test_the_weather_is_said_to_be_sample_data(weather: str):
    for city, said in SAMPLE_WEATHER.items():
        _, answer = ask(f"{weather}/weather?city={city.replace(' ', '+')}")
        assert answer == {"city": city, "weather": said, "source": "sample data"}


def test_the_service_runs_as_a_program_and_tells_each_call():
    lines: list[str] = []
    with running_weather(on_line=lines.append) as service:
        url = service.wait_ready()
        ask(f"{url}/openapi.json")
        ask(f"{url}/weather?city=Paris")
    assert len(lines) == 1
    assert lines[0].startswith('GET /weather?city=Paris -> 200 {"city":"Paris"')
