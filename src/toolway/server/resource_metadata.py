"""RFC 9728: by which identity provider people get a token for this server, told to clients that have none."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from toolway.dialects import MCP, is_below
from toolway.server.asgi import send_json
from toolway.settings.access import JwtConfig
from toolway.types import JSON

WELL_KNOWN = "/.well-known/oauth-protected-resource"


def metadata_of(provider: JwtConfig, scope: Scope) -> JSON:
    """The metadata of what stands behind `WELL_KNOWN` in the path: /mcp, or one of its profiles."""
    behind = scope["path"].removeprefix(WELL_KNOWN).rstrip("/")
    metadata: JSON = {
        "resource": _origin(provider, scope) + (behind or MCP.path),
        "authorization_servers": [provider.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": "Toolway",
    }
    return metadata | ({"scopes_supported": list(provider.scopes)} if provider.scopes else {})


def metadata_url(provider: JwtConfig, scope: Scope) -> str:
    """Where the metadata of the resource stands that a request asked for."""
    path: str = scope["path"]
    is_mcp = is_below(path, MCP.path)
    behind = path.rstrip("/") if is_mcp and path.isascii() and path.isprintable() and '"' not in path else ""
    return _origin(provider, scope) + WELL_KNOWN + behind


def answer_metadata(provider: JwtConfig) -> ASGIApp:
    """The ASGI app that answers with it."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, metadata_of(provider, scope), [(b"cache-control", b"max-age=300")])

    return answer


def _origin(provider: JwtConfig, scope: Scope) -> str:
    """Scheme and host, as clients know this server."""
    if provider.resource:
        return provider.resource.removesuffix("/").removesuffix(MCP.path)
    host = next((value for name, value in scope["headers"] if name == b"host"), b"localhost")
    return f"{scope.get('scheme', 'http').replace('ws', 'http')}://{host.decode('latin-1')}"
