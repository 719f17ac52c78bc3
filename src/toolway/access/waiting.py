"""What a caller outside of a conversation reads while a person must approve its call: who can, and what to do then."""

from __future__ import annotations

from toolway.access.approvals import Approval
from toolway.settings.groups import ServerSettings
from toolway.settings.settings import Settings


def write_waiting(approval: Approval, settings: Settings, *, is_served: bool) -> str:
    """Half a sentence and what follows it, without the last full stop; nothing in it that cannot be done.

    `is_served`: this process listens, so that the console and the command line can answer. `toolway mcp` does not: what
    waits in its memory nobody else sees.
    """
    first = "a person must approve it first"
    minutes = max(1, round(approval.seconds / 60))
    again = f"When that is done, within {minutes} minutes, call it again with the same arguments"
    command = f"toolway approvals approve {approval.id}{_url_option(settings.server)}"
    if not settings.console.enabled:
        return (
            f"{first}, and nobody can be asked: the console and its commands are off (TOOLWAY_CONSOLE), and this "
            "client does not ask its user (MCP's elicitation)"
        )
    if is_served:
        return f"{first} ({command}). {again}"
    if settings.store.url != "memory:":
        return f"{first}, at a running `toolway serve` with the same TOOLWAY_STORE ({command}). {again}"
    return (
        f"{first}, and nobody can be asked: this client does not ask its user (MCP's elicitation), and what waits in "
        "the memory of `toolway mcp` nobody else sees. Use a client that asks, or give it and a running "
        "`toolway serve` the same TOOLWAY_STORE, where `toolway approvals` and the console answer"
    )


def _url_option(server: ServerSettings) -> str:
    """What the command needs where Toolway does not listen where it looks by itself."""
    usual = ServerSettings()
    return "" if (server.host, server.port) == (usual.host, usual.port) else f" --url {server.local_url()}"
