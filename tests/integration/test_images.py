"""An image that a tool returns, from its server to the model."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.support.app_server import AppServer, app_server
from tests.support.tools import JSON, Raw, ToolService
from tests.support.upstream import json_reply, tool_call, whole

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


async def image(_: JSON) -> Raw:
    return Raw(PNG, kind=b"image/png")


def shown(app: AppServer) -> list[JSON]:
    """The messages of the second round."""
    app.ask()
    messages: list[JSON] = app.upstream.seen[1].json["messages"]
    return messages


def seeing(modalities: list[str] | None) -> Any:
    entry = (
        {"id": "mock"}
        if modalities is None
        else {"id": "mock", "architecture": {"input_modalities": modalities}}
    )
    return json_reply({"data": [entry]})


@pytest.mark.parametrize(
    ("vision", "modalities", "is_shown"),
    [
        ("on", None, True),
        ("off", ["text", "image"], False),
        ("auto", ["text", "image"], True),
        ("auto", ["text"], False),
        ("auto", None, False),
    ],
)
def test_an_image_reaches_models_that_see(vision: str, modalities: list[str] | None, is_shown: bool):
    replies = [whole({"tool_calls": [tool_call()]}, "tool_calls"), whole({"content": "A dot."})]
    with app_server(*replies, tools=ToolService(get_weather=image), vision=vision) as app:
        app.upstream.models = seeing(modalities)
        *_, result, last = [{}, *shown(app)]
    if is_shown:
        assert result["role"] == "tool"
        url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
        assert last["content"][1] == {"type": "image_url", "image_url": {"url": url}}
    else:
        assert last["role"] == "tool"
        assert "is not shown: this model takes no images" in last["content"]
