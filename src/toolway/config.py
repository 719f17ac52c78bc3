"""Environment and .env -> frozen Settings; the only module that reads the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One entry of MCP_SERVER_ENDPOINTS, its credentials taken out of the URL."""

    label: str
    url: str
    """An http(s) base URL, the URL of a document, or a path of a document on disk."""
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set. Times are seconds, sizes are bytes unless the name says otherwise."""

    openai_base_url: str = "http://127.0.0.1:1234/v1"
    openai_api_key: str | None = field(default=None, repr=False)
    endpoints: tuple[Endpoint, ...] = ()
    debug_output: bool = True

    host: str = "127.0.0.1"
    port: int = 8484
    workers: int = 1
    insecure: bool = False
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()

    max_body_bytes: int = 64 * 2**20
    receive_timeout: float = 30.0
    upstream_connect_timeout: float = 10.0
    upstream_silence_timeout: float = 600.0
    keepalive_interval: float = 10.0

    tool_names: Literal["operation", "short"] = "operation"
    tool_timeout: float = 60.0
    max_tool_response_bytes: int = 10 * 2**20
    max_result_chars: int = 60_000
    max_document_bytes: int = 32 * 2**20
    refresh_interval: float = 60.0
    max_rounds: int = 20
    max_seconds: float = 600.0
