"""What an address tells about the model server behind it."""

from __future__ import annotations

import pytest

from toolway.engine.model_target import ModelTarget
from toolway.settings.settings import UpstreamSettings
from toolway.upstream.client import Upstream


@pytest.mark.parametrize(
    ("url", "is_openai"),
    [
        ("https://api.openai.com/v1", True),
        ("https://mine.openai.azure.com/openai/v1", True),
        ("https://mine.services.ai.azure.com/openai/v1", True),
        ("http://127.0.0.1:8080/v1", False),
        ("https://api.openai.com.example.net/v1", False),
        ("https://openai.azure.com.example.net/v1", False),
    ],
)
async def test_openais_own_servers_are_known_by_their_address(url: str, is_openai: bool):
    settings = UpstreamSettings(base_url=url)
    async with Upstream.connect(settings) as upstream:
        assert ModelTarget(settings, upstream).is_openai is is_openai
