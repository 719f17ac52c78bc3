"""OpenAI's Responses API, for model servers that only speak chat completions."""

from __future__ import annotations

from toolway.api.responses.background import DEFAULT_PACE, Background, Pace
from toolway.api.responses.creation import ResponseCreator
from toolway.api.responses.routes import Responses, Socket
from toolway.api.responses.stored_responses import StoredResponses

__all__ = [
    "DEFAULT_PACE",
    "Background",
    "Pace",
    "ResponseCreator",
    "Responses",
    "Socket",
    "StoredResponses",
]
