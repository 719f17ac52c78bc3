"""A program that holds MCP servers as Toolway does, says their process ids, and waits to be killed."""

import sys

import anyio

from tests.unit.tools.mcp.support import bad, running


async def main() -> None:
    async with running(bad(sys.argv[1])) as server:
        await server.ready()
        print((await server.call("pid")).text, (await server.call("child")).text, flush=True)
        await anyio.sleep_forever()


anyio.run(main, backend_options={"use_uvloop": sys.argv[2] == "uvloop"})
