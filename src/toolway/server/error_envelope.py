"""An error as the JSON that clients of OpenAI's APIs read; another dialect has its own beside it."""

from __future__ import annotations

from toolway.errors import ToolwayError
from toolway.types import JSON


def openai_envelope(error: ToolwayError) -> JSON:
    """OpenAI's error object: `{"error": {"message", "type", "param", "code"}}`."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
