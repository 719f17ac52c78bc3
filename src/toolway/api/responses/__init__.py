"""OpenAI's Responses API, for model servers that only speak chat completions."""

from __future__ import annotations

from toolway.api.responses.background import DEFAULT_PACE, Background, Pace
from toolway.api.responses.creation import ResponseCreator
from toolway.api.responses.records import Records
from toolway.api.responses.routes import Responses, Socket

__all__ = [
    "DEFAULT_PACE",
    "Background",
    "Pace",
    "Records",
    "ResponseCreator",
    "Responses",
    "Socket",
]
