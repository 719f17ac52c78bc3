"""OpenAI's Responses API, for model servers that only speak chat completions."""

from __future__ import annotations

from toolway.dialects.responses.background import DEFAULT_PACE, Background, Pace
from toolway.dialects.responses.drafting import Drafts
from toolway.dialects.responses.making import Making
from toolway.dialects.responses.records import Records
from toolway.dialects.responses.routes import Responses
from toolway.dialects.responses.socket import Socket

__all__ = ["DEFAULT_PACE", "Background", "Drafts", "Making", "Pace", "Records", "Responses", "Socket"]
