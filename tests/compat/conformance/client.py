"""Toolway's MCP client as the conformance suite drives it: argv[1] is the server, the environment names the scenario.

Nothing here knows what a scenario wants, but for the credentials that an operator would write into the entry: the
server is configured, its tools are listed and called, and who is told to run `toolway login` does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import httpx2

from toolway.errors import SourceError
from toolway.settings.load import load_settings
from toolway.tools.catalog import Catalog
from toolway.tools.factory import login_store, open_sources
from toolway.tools.mcp.oauth import login
from toolway.types import Tool

SCENARIO = os.environ.get("MCP_CONFORMANCE_SCENARIO", "")
CONTEXT = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
METADATA_URL = "https://conformance-test.local/client-metadata.json"
TIMEOUT = 12.0
ROUNDS = 3


async def main(url: str) -> None:
    entry = {"type": "http", "url": url, **await credentials(url)}
    with TemporaryDirectory() as folder:
        config = anyio.Path(folder, "mcp.json")
        await config.write_text(json.dumps({"mcpServers": {"server": entry}}))
        settings = load_settings({}, None, config=str(config), token_file=f"{folder}/tokens.json")
        for _ in range(ROUNDS):
            said = await use(settings)
            print(said)
            if "toolway login" not in said:
                return
            (server,) = settings.tools.servers
            await login(server, browse, login_store(settings.tools))


async def credentials(url: str) -> dict[str, Any]:
    """What an operator would have been told about this server."""
    client = {key: CONTEXT[key] for key in ("client_id", "client_secret") if key in CONTEXT}
    if SCENARIO.startswith("auth/client-credentials"):
        if "private_key_pem" in CONTEXT:
            client |= {"private_key": CONTEXT["private_key_pem"], "algorithm": CONTEXT["signing_algorithm"]}
        issuer, token_url = await authorization_server(url)
        ends = {"token_url": token_url, "audience": issuer}
        return {"auth": {"type": "client_credentials", **ends, **client}}
    if client:
        return {"oauth": client}
    return {"oauth": {"metadata_url": METADATA_URL}} if SCENARIO == "auth/basic-cimd" else {}


async def authorization_server(url: str) -> tuple[str, str]:
    """Its issuer and its token endpoint, as its documentation would name them."""
    async with httpx2.AsyncClient() as client:
        place = httpx2.URL(url)
        resource = await client.get(
            place.copy_with(path=f"/.well-known/oauth-protected-resource{place.path}")
        )
        issuer = resource.json()["authorization_servers"][0].rstrip("/")
        metadata = await client.get(f"{issuer}/.well-known/oauth-authorization-server")
        return str(metadata.json()["issuer"]), str(metadata.json()["token_endpoint"])


async def use(settings: Any) -> str:
    """Call each tool once; what the first that failed said, or the state of the server."""
    async with open_sources(settings.tools) as sources, Catalog(sources).running() as catalog:
        await catalog.wait_until_tried(TIMEOUT)
        status = sources[0].status
        if status.error:
            return status.error
        failures = []
        tools = catalog.snapshot.tools
        for name, values in calls(tools):
            with anyio.move_on_after(TIMEOUT):
                result = await catalog.snapshot.call(tools[name], values)
                failures += [result.text] if result.is_error else []
        return next(iter(failures), f"{len(status.tools)} tools of {status.protocol}")


def calls(tools: Mapping[str, Tool]) -> list[tuple[str, dict[str, Any]]]:
    """The calls that the scenario asks for, or one of each tool. Whoever asks for a schema gets the first tool's."""
    if "toolCalls" in CONTEXT:
        return [(call["name"], call["arguments"]) for call in CONTEXT["toolCalls"] if call["name"] in tools]
    first = next(
        (tool.parameters for tool in tools.values() if "schema" not in tool.parameters["properties"]), {}
    )
    return [(name, arguments(tool.parameters, first)) for name, tool in tools.items()]


def arguments(schema: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """A value for each parameter."""
    samples = {"number": 5, "integer": 5, "boolean": True, "array": [], "object": first}
    properties = schema.get("properties", {})
    return {name: sample(item, samples) for name, item in properties.items()}


def sample(schema: Any, samples: dict[str, Any]) -> Any:
    if not isinstance(schema, dict):
        return "text"
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    return samples.get(kind, "text") if isinstance(kind, str) else "text"


async def browse(page: str) -> None:
    """What a person's browser does with the page."""
    async with httpx2.AsyncClient(follow_redirects=True) as browser:
        await browser.get(page)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        anyio.run(main, sys.argv[1])
    except SourceError as error:
        sys.exit(error.message)
