"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens."""

from toolway.api.messages.routes import Messages

__all__ = ["Messages"]
