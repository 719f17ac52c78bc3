"""One server's object in `mcp.json` -> its fields, with a sentence for each mistake in it."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args
from urllib.parse import urlsplit

from toolway.settings.interpolation import expand
from toolway.settings.jsonc import Node
from toolway.settings.mcp_server import Era, Kind

TYPES: Mapping[str, Kind] = {
    "stdio": "stdio",
    "http": "http",
    "streamable-http": "http",
    "streamable_http": "http",
    "streamableHttp": "http",
    "streamablehttp": "http",
    "sse": "sse",
    "openapi": "openapi",
}
ALIASES = {
    "transport": "type",
    "transportType": "type",
    "serverUrl": "url",
    "httpUrl": "url",
    "includeTools": "include",
    "enabledTools": "include",
    "excludeTools": "exclude",
    "disabledTools": "exclude",
}
"""Keys of other hosts that mean what one of ours means."""

COMMON = (
    *("type", "disabled", "enabled", "include", "exclude", "prefix", "rename", "description", "timeout"),
    *("lazy", "idle_timeout"),
)
KEYS: Mapping[str, tuple[str, ...]] = {
    "stdio": (
        *COMMON,
        "command",
        "args",
        "env",
        "cwd",
        "era",
        "resources",
        "sampling",
        "sampling_max_tokens",
    ),
    "remote": (*COMMON, "url", "headers", "auth", "era", "resources", "sampling", "sampling_max_tokens"),
    "openapi": (*COMMON, "url", "spec", "headers"),
}
AUTH_KEYS = ("type", "token_url", "client_id", "client_secret", "scope")
IGNORED = frozenset(
    (
        *(
            "autoApprove",
            "alwaysAllow",
            "allow",
            "trust",
            "tools",
            "name",
            "title",
            "note",
            "notes",
            "comment",
        ),
        *("icon", "iconUrl", "gallery", "version", "id", "provider", "tags", "metadata", "$schema", "dev"),
        *(
            "initTimeout",
            "initializationTimeout",
            "startupTimeout",
            "networkTimeout",
            "oauth",
            "disabledInDashboard",
        ),
        *(
            "sandbox",
            "sandboxEnabled",
            "fromGalleryId",
            "registryUrl",
            "isActive",
            "watch",
            "watchPaths",
            "debug",
        ),
    )
)
"""Keys that other hosts read and that change nothing here."""


class Report:
    """Collects sentences: `problems` forbid the file, `warnings` do not."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def problem(self, line: int, key: str, message: str) -> None:
        """The file cannot be used as it is."""
        self.problems.append(f"{self.path}:{line}: {key}: {message}.")

    def warning(self, line: int, key: str, message: str) -> None:
        """Something in the file is not used."""
        self.warnings.append(f"{self.path}:{line}: {key}: {message}.")


class Entry:
    """One server's object, read key by key; what is wrong is reported and read as if it were not there."""

    def __init__(self, label: str, node: Node, report: Report, env: Mapping[str, str]) -> None:
        self._label = label
        self._line = node.line
        self._report = report
        self._env = env
        self._nodes: dict[str, Node] = {ALIASES.get(key, key): child for key, child in node.value.items()}
        self._written = {ALIASES.get(key, key): key for key in node.value}

    def kind(self) -> Kind | None:
        """What the entry says it is, or what its keys make it."""
        said = self._nodes.get("type")
        if said is not None:
            kind = TYPES.get(said.value) if isinstance(said.value, str) else None
            if kind is None:
                legal = ", ".join(dict.fromkeys(TYPES.values()))
                self._problem("type", f"{said.plain()!r} is none of {legal}")
                return None
        else:
            kind = "stdio" if "command" in self._nodes else "auto" if "url" in self._nodes else None
        if self._written.get("url") == "httpUrl" and kind == "auto":
            return "http"
        if kind is None:
            self._problem("", 'it needs a "command" to run or a "url" to call')
        return kind

    def check_keys(self, known: tuple[str, ...]) -> None:
        """Warn of keys that nobody reads."""
        for key, node in self._nodes.items():
            written = self._written[key]
            if key in known or written in IGNORED:
                continue
            elsewhere = any(key in keys for keys in KEYS.values())
            said = "this key is not for a server of this kind" if elsewhere else "this key is not known"
            self._report.warning(node.line, f"{self._label}.{written}", said + nearest(written, known))

    def fields(self, kind: Kind) -> dict[str, Any]:
        """The arguments of ServerConfig."""
        found: dict[str, Any] = {
            "include": self._texts("include"),
            "exclude": self._texts("exclude"),
            "prefix": self._text("prefix"),
            "rename": self._mapping("rename"),
            "description": self._descriptions(),
            "timeout": self._timeout(),
            "lazy": self.flag("lazy"),
            "idle_timeout": self._number("idle_timeout") or 300.0,
        }
        if kind == "stdio":
            found |= {
                "command": self._needed("command"),
                "args": self._texts("args"),
                "env": self._mapping("env"),
            }
            found |= {"cwd": self._text("cwd") or None}
        else:
            found |= {"url": self._url(needed=kind != "openapi"), "headers": self._headers()}
        if kind == "openapi":
            found["spec"] = self._text("spec")
            if not found["spec"] and "url" not in self._nodes:
                self._problem("", 'an OpenAPI service needs its "url", or the "spec" that describes it')
        else:
            found |= self._mcp_fields()
        return found

    def _mcp_fields(self) -> dict[str, Any]:
        return {
            "era": self._choice("era", get_args(Era), "auto"),
            "resources": self.flag("resources"),
            "sampling": self.flag("sampling"),
            "sampling_max_tokens": int(self._number("sampling_max_tokens") or 1024),
            "auth": self._auth(),
        }

    # -- values

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        node = self._nodes.get(key)
        if node is None:
            return default
        if not isinstance(node.value, bool):
            self._problem(key, f"{node.plain()!r} is neither true nor false")
            return default
        return node.value

    def _text(self, key: str) -> str:
        node = self._nodes.get(key)
        if node is None:
            return ""
        if not isinstance(node.value, str):
            self._problem(key, f"{node.plain()!r} must be a string")
            return ""
        return str(self._expanded(key, node.value))

    def _needed(self, key: str) -> str:
        if key not in self._nodes:
            self._problem("", f'it needs a "{key}"')
            return ""
        text = self._text(key)
        if not text.strip() and isinstance(self._nodes[key].value, str):
            self._problem(key, "it is empty")
        return text

    def _texts(self, key: str) -> tuple[str, ...]:
        node = self._nodes.get(key)
        if node is None:
            return ()
        if not isinstance(node.value, list):
            self._problem(key, "it must be a list of strings")
            return ()
        return tuple(self._scalar(f"{key}[{number}]", item) for number, item in enumerate(node.value))

    def _mapping(self, key: str) -> dict[str, str]:
        node = self._nodes.get(key)
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            self._problem(key, "it must be an object with strings as values")
            return {}
        items = {name: child for name, child in node.value.items() if child.value is not None}
        return {name: self._scalar(f"{key}.{name}", child) for name, child in items.items()}

    def _scalar(self, key: str, node: Node) -> str:
        if isinstance(node.value, dict | list) or node.value is None:
            self._problem(key, "it must be a string", node.line)
            return ""
        if isinstance(node.value, bool):
            return "true" if node.value else "false"
        return str(self._expanded(key, str(node.value), node.line))

    def _expanded(self, key: str, value: Any, line: int | None = None) -> Any:
        """The value with every string in it expanded."""
        if isinstance(value, dict):
            return {name: self._expanded(f"{key}.{name}", inner, line) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._expanded(key, inner, line) for inner in value]
        if not isinstance(value, str):
            return value
        try:
            return expand(value, self._env)
        except ValueError as error:
            self._problem(key, str(error), line)
            return ""

    def _headers(self) -> dict[str, str]:
        headers = self._mapping("headers")
        for name, value in headers.items():
            if not name or not value.isprintable() or not name.isascii() or any(c in name for c in " :"):
                self._problem("headers", f"{name!r} is no header, or holds what a header cannot hold")
        return headers

    def _url(self, *, needed: bool) -> str:
        text = self._needed("url") if needed else self._text("url")
        if not text:
            return ""
        try:
            url = urlsplit(text)
            legal = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            legal = False
        if not legal or any(c.isspace() for c in text):
            self._problem("url", f"{self._nodes['url'].value!r} is no URL like http://localhost:8000/mcp")
        return text

    def _auth(self) -> dict[str, str]:
        """OAuth client credentials: where tokens are given out, and to whom."""
        auth = self._mapping("auth")
        if not auth:
            return {}
        if auth.get("type") != "client_credentials":
            self._problem(
                "auth", 'its "type" must be "client_credentials"; for a login: toolway login SERVER'
            )
        for key in ("token_url", "client_id", "client_secret"):
            if not auth.get(key):
                self._problem("auth", f'it needs a "{key}"')
        for key in auth.keys() - AUTH_KEYS:
            self._problem("auth", f"{key!r} is not known{nearest(key, AUTH_KEYS)}")
        return auth

    def _number(self, key: str) -> float | None:
        node = self._nodes.get(key)
        if node is None or node.value is None:
            return None
        if isinstance(node.value, bool) or not isinstance(node.value, int | float) or node.value <= 0:
            self._problem(key, f"{node.plain()!r} is no number above 0")
            return None
        return float(node.value)

    def _timeout(self) -> float | None:
        seconds = self._number("timeout")
        if seconds is not None and seconds >= 1000:
            written = f"{self._label}.{self._written['timeout']}"
            self._report.warning(
                self._nodes["timeout"].line,
                written,
                f"{seconds:g} is taken for milliseconds; write {seconds / 1000:g}",
            )
            return seconds / 1000
        return seconds

    def _choice(self, key: str, legal: tuple[str, ...], default: str) -> str:
        text = self._text(key) or default
        if text not in legal:
            self._problem(key, f"{text!r} is none of {', '.join(legal)}" + nearest(text, legal))
            return default
        return text

    def _descriptions(self) -> dict[str, str]:
        node = self._nodes.get("description")
        # Other hosts describe the server with it; here it says tool by tool what the model shall read.
        return {} if node is None or isinstance(node.value, str) else self._mapping("description")

    def _problem(self, key: str, message: str, line: int | None = None) -> None:
        node = self._nodes.get(key.partition(".")[0].partition("[")[0])
        written = f"{self._label}.{key}" if key else self._label
        self._report.problem(line or (node.line if node else self._line), written, message)


def nearest(key: str, known: tuple[str, ...]) -> str:
    """ "; did you mean ...", when one of the known names is near."""
    close = get_close_matches(key, known, 1, 0.7)
    return f"; did you mean {close[0]!r}" if close else ""
