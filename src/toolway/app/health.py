"""GET /healthz, /readyz and /: whether the process lives, whether it can serve, what it is."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from toolway import __version__
from toolway.app.state import AppState
from toolway.engine.model_target import USER_AGENT
from toolway.errors import ToolwayError
from toolway.server.asgi import send_json
from toolway.server.caller import principal_of
from toolway.types import JSON
from toolway.upstream.client import credential


async def healthz(scope: Scope, receive: Receive, send: Send) -> None:
    """200 as long as the process answers."""
    await send_json(send, 200, {"status": "ok"})


async def welcome(scope: Scope, receive: Receive, send: Send) -> None:
    """What this is, for programs; a browser gets the console."""
    about = {"name": "toolway", "version": __version__, "openai_base_url": "/v1"}
    await send_json(send, 200, about)


class Readiness:
    """GET /readyz: 200 when the model server answers and each tool server was tried, else 503.

    A tool server that is down, or is being restarted, makes the state "degraded", still with 200: requests are
    served without its tools. So does a store that is away: all are served but those for stored responses. A key that
    may use some tools alone hears of their servers alone, in the state too.
    """

    def __init__(self, state: AppState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the model server for its models, look at the catalog."""
        upstream = await self._upstream_state()
        sources = self._state.catalog.sources
        if selection := principal_of(scope).selection:  # no others exist for this key
            visible = {source.label for source in self._state.catalog.snapshot.visible_to(selection).sources}
            sources = tuple(source for source in sources if source.label in visible)
        servers = {source.label: source.status.state for source in sources}
        if upstream != "ready" or any(source.status.is_untried for source in sources):
            status = "not ready"
        else:
            status = (
                "ready" if all(state in ("ready", "stopped") for state in servers.values()) else "degraded"
            )
        body: JSON = {"status": status, "upstream": upstream, "servers": servers}
        if not await self._state.store.is_ready():
            body |= {"status": "degraded" if status == "ready" else status, "store": "unreachable"}
        # Tools of servers that requests declare are nobody else's business.
        if barred := [tool for tool in self._state.target.refused if tool.server in servers]:
            body["refused_by_upstream"] = {tool.name: tool.reason for tool in barred}
        await send_json(send, 503 if status == "not ready" else 200, body)

    async def _upstream_state(self) -> str:
        headers = [USER_AGENT, *credential(self._state.settings.upstream.api_key)]
        try:
            async with self._state.upstream.request("GET", "/models", headers=headers) as answer:
                await answer.read(2**24)
                return "ready" if answer.status < 500 else f"answers {answer.status}"
        except ToolwayError:
            return "unreachable"
