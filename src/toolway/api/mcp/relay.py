"""What a call's server tells while it runs, relayed to the client that waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from mcp.server.context import ServerRequestContext

from toolway.types import OnProgress, Progress

BACKLOG = 64
"""Reports that wait for a client that reads slowly; what comes beyond is left out."""


@asynccontextmanager
async def reporting_progress(ctx: ServerRequestContext) -> AsyncIterator[OnProgress | None]:
    """What reports progress to the client of this request, in order and before the result; None: it asked for none."""
    if ctx.meta is None or ctx.meta.get("progress_token") is None:
        yield None
        return
    send, receive = anyio.create_memory_object_stream[Progress](BACKLOG)

    def report(progress: Progress) -> None:
        if send.statistics().current_buffer_used < BACKLOG:
            send.send_nowait(progress)

    async def relay() -> None:
        with receive:
            async for progress in receive:
                await ctx.session.report_progress(progress.progress, progress.total, progress.message)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay)
        with send:
            yield report
