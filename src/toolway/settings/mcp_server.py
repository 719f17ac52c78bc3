"""One tool server as a configuration file describes it; what every kind of source is made from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

LONG = 20
"""Characters from which on any value of an environment is taken for a key."""

_SECRET = re.compile(r"key|token|secret|pass|pwd|auth|cred|private|cookie|session", re.IGNORECASE)

Kind = Literal["stdio", "http", "sse", "auto", "openapi"]
Era = Literal["auto", "legacy", "modern"]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """One server of the file. Times are seconds; what another kind of server uses is empty."""

    label: str
    type: Kind
    """"auto": a URL that is asked whether it speaks streamable HTTP or, as servers before 2025 do, SSE."""
    where: str = field(default="", compare=False)
    """File and line, for messages."""

    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None

    url: str = ""
    spec: str = ""
    """OpenAPI only: URL or path of the document, when it is not below `url`."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: Mapping[str, str] = field(default_factory=dict, repr=False)
    """OAuth client credentials: type, token_url, client_id, client_secret, scope."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    prefix: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    description: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    lazy: bool = False
    idle_timeout: float = 300.0
    era: Era = "auto"
    resources: bool = False
    sampling: bool = False
    sampling_max_tokens: int = 1024

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that must never be shown: all headers, and of the environment what looks like a key."""
        env = [value for name, value in self.env.items() if _SECRET.search(name) or len(value) >= LONG]
        values = (*env, *self.headers.values(), self.auth.get("client_secret"))
        return tuple(value for value in values if value)
