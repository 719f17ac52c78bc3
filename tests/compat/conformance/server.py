"""The MCP server that the conformance suite's server scenarios ask for, to stand alone and behind Toolway.

Names and texts are the suite's. `python -m tests.compat.conformance.server PORT` serves it over HTTP.
"""

from __future__ import annotations

import base64
import contextlib
import struct
import sys
import warnings
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import uvicorn
from mcp.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from starlette.applications import Starlette
from starlette.routing import Route

JSON = dict[str, Any]


def _png() -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + pixel + chunk(b"IEND", b"")).decode()


PNG = _png()
WAV = base64.b64encode(
    b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    + b"data" + struct.pack("<I", 0)
).decode()  # fmt: skip
PLAIN: JSON = {"type": "object", "properties": {}}


def texts(*names: str) -> JSON:
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": list(names),
    }


SCHEMA_2020 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
INPUT = "test_input_required_result_"
TOOLS = {
    **dict.fromkeys(
        (
            "test_simple_text test_image_content test_audio_content test_embedded_resource test_error_handling "
            "test_multiple_content_types test_tool_with_logging test_tool_with_progress test_missing_capability "
            "test_elicitation_sep1034_defaults test_elicitation_sep1330_enums test_streaming_elicitation "
            "test_logging_tool"
        ).split(),
        PLAIN,
    ),
    **{
        INPUT + name: PLAIN
        for name in (
            "elicitation sampling list_roots request_state multiple_inputs multi_round tampered_state capabilities"
        ).split()
    },
    "test_sampling": texts("prompt"),
    "test_elicitation": texts("message"),
    "json_schema_2020_12_tool": SCHEMA_2020,
}


def whole(result: JSON) -> JSON:
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **result}


def text(said: str) -> JSON:
    return {"type": "text", "text": said}


IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
EMBEDDED = {
    "uri": "test://embedded-resource",
    "mimeType": "text/plain",
    "text": "This is an embedded resource content.",
}
MIXED = {
    "uri": "test://mixed-content-resource",
    "mimeType": "application/json",
    "text": '{"test":"data","value":123}',
}
CONTENT: dict[str, list[JSON]] = {
    "test_simple_text": [text("This is a simple text response for testing.")],
    "test_image_content": [IMAGE],
    "test_audio_content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}],
    "test_embedded_resource": [{"type": "resource", "resource": EMBEDDED}],
    "test_multiple_content_types": [
        text("Multiple content types test:"),
        IMAGE,
        {"type": "resource", "resource": MIXED},
    ],
}


def form(message: str, **properties: JSON) -> JSON:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema},
    }


def sampling(prompt: str) -> JSON:
    message = {"role": "user", "content": text(prompt)}
    return {"method": "sampling/createMessage", "params": {"messages": [message], "maxTokens": 100}}


NAME = form("What is your name?", name={"type": "string"})
ROOTS: JSON = {"method": "roots/list", "params": {}}
DEFAULTS = form(
    "Please review and update the form fields with defaults",
    name={"type": "string", "default": "John Doe"},
    age={"type": "integer", "default": 30},
    score={"type": "number", "default": 95.5},
    status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    verified={"type": "boolean", "default": True},
)
_TITLED = [{"const": f"value{n}", "title": title} for n, title in enumerate(("First", "Second", "Third"), 1)]
ENUMS = form(
    "Please select options",
    untitledSingle={"type": "string", "enum": ["option1", "option2", "option3"]},
    titledSingle={"type": "string", "oneOf": _TITLED},
    legacyEnum={"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]},
    untitledMulti={"type": "array", "items": {"type": "string", "enum": ["option1", "option2", "option3"]}},
    titledMulti={"type": "array", "items": {"anyOf": _TITLED}},
)
QUESTIONS: dict[str, list[dict[str, JSON]]] = {
    "elicitation": [{"user_name": NAME}],
    "sampling": [{"capital_question": sampling("What is the capital of France?")}],
    "list_roots": [{"client_roots": ROOTS}],
    "request_state": [{"confirm": form("Please confirm", ok={"type": "boolean"})}],
    "tampered_state": [{"confirm": form("Please confirm", ok={"type": "boolean"})}],
    "multiple_inputs": [{"user_name": NAME, "greeting": sampling("Greet"), "client_roots": ROOTS}],
    "multi_round": [{"step1": NAME}, {"step2": form("Your colour?", color={"type": "string"})}],
}
"""The rounds of questions of the tools that ask before they answer."""


async def list_tools(ctx: Any, params: Any) -> JSON:
    tools = [{"name": name, "description": name, "inputSchema": schema} for name, schema in TOOLS.items()]
    return whole({"tools": tools})


async def call_tool(ctx: Any, params: Any) -> JSON:
    name, arguments = params.name, params.arguments or {}
    if name in CONTENT:
        return whole({"content": CONTENT[name]})
    if name.startswith(INPUT):
        return input_required(ctx, name.removeprefix(INPUT))
    match name:
        case "test_error_handling":
            return whole(
                {"content": [text("This tool intentionally returns an error for testing")], "isError": True}
            )
        case "test_tool_with_logging" | "test_logging_tool":
            for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
                await log(ctx, said)
        case "test_tool_with_progress":
            for step in (0, 50, 100):
                await ctx.session.report_progress(step, 100)
        case "test_sampling":
            return await ask(ctx, sampling(arguments["prompt"]))
        case "test_elicitation":
            fields = {"username": {"type": "string"}, "email": {"type": "string"}}
            return await ask(ctx, form(arguments["message"], **fields))
        case "test_elicitation_sep1034_defaults":
            return await ask(ctx, DEFAULTS)
        case "test_elicitation_sep1330_enums":
            return await ask(ctx, ENUMS)
        case "test_missing_capability":
            if ctx.session.client_capabilities is None or ctx.session.client_capabilities.sampling is None:
                raise MCPError(-32021, "sampling is needed", {"requiredCapabilities": {"sampling": {}}})
        case "test_streaming_elicitation":
            return {"resultType": "input_required", "inputRequests": {"name": NAME}, "requestState": "s"}
        case unknown if unknown not in TOOLS:
            raise MCPError(-32602, f"Unknown tool: {unknown}")
    return whole({"content": [text("done")]})


async def log(ctx: Any, said: str) -> None:
    with warnings.catch_warnings(action="ignore"):
        await ctx.session.send_log_message("info", said, related_request_id=ctx.request_id)


async def ask(ctx: Any, request: JSON) -> JSON:
    """What the client says to a request, asked as its version of the protocol has it."""
    if ctx.protocol_version >= "2026":
        said = ((ctx.params or {}).get("inputResponses") or {}).get("question")
        if said is None:
            return asked({"question": request}, "0")
    else:
        said = await ctx.session._request_outbound.send_raw_request(request["method"], request["params"])
    return whole({"content": [text(f"The client said: {said}")]})


def input_required(ctx: Any, name: str) -> JSON:
    """The next round of questions, until all are answered; the state says which one the answers are for."""
    said = (ctx.params or {}).get("inputResponses") or {}
    state = (ctx.params or {}).get("requestState")
    if name == "capabilities":
        capabilities = ctx.session.client_capabilities
        requests = {"q": NAME} if capabilities and capabilities.elicitation else {"q": sampling("Hello")}
        return whole({"content": [text("ok")]}) if said else asked(requests, "0")
    rounds = QUESTIONS[name]
    if state is not None and (not state.isdecimal() or int(state) >= len(rounds)):
        raise MCPError(-32602, "the requestState is none of ours")
    number = int(state or 0)
    if state is not None and set(rounds[number]) <= set(said):
        number += 1
    return (
        asked(rounds[number], str(number)) if number < len(rounds) else whole({"content": [text(str(said))]})
    )


def asked(requests: JSON, state: str) -> JSON:
    return {"resultType": "input_required", "inputRequests": requests, "requestState": state}


RESOURCES: dict[str, JSON] = {
    "test://static-text": {
        "mimeType": "text/plain",
        "text": "This is the content of the static text resource.",
    },
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched resource content"},
}


async def list_resources(ctx: Any, params: Any) -> JSON:
    return whole({"resources": [{"uri": uri, "name": uri, "description": uri} for uri in RESOURCES]})


async def list_templates(ctx: Any, params: Any) -> JSON:
    template = {
        "uriTemplate": "test://template/{id}/data",
        "name": "template",
        "mimeType": "application/json",
    }
    return whole({"resourceTemplates": [template]})


async def read_resource(ctx: Any, params: Any) -> JSON:
    content = RESOURCES.get(params.uri)
    if params.uri.startswith("test://template/"):
        number = params.uri.split("/")[3]
        said = f'{{"id":"{number}","templateTest":true,"data":"Data for ID: {number}"}}'
        content = {"mimeType": "application/json", "text": said}
    if content is None:
        raise MCPError(-32602, "Resource not found", {"uri": params.uri})
    return whole({"contents": [{"uri": params.uri, **content}]})


PROMPTS: dict[str, tuple[list[str], Callable[[JSON], list[JSON]]]] = {
    "test_simple_prompt": ([], lambda _: [text("This is a simple prompt for testing.")]),
    "test_prompt_with_arguments": (
        ["arg1", "arg2"],
        lambda given: [text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")],
    ),
    "test_prompt_with_embedded_resource": (
        ["resourceUri"],
        lambda given: [
            {"type": "resource", "resource": {**EMBEDDED, "uri": given["resourceUri"]}},
            text("Please process the embedded resource above."),
        ],
    ),
    "test_prompt_with_image": ([], lambda _: [IMAGE, text("Please analyze the image above.")]),
    f"{INPUT}prompt": ([], lambda _: [text("with context")]),
}


async def list_prompts(ctx: Any, params: Any) -> JSON:
    listed = [
        {
            "name": name,
            "description": name,
            "arguments": [{"name": arg, "required": True} for arg in arguments],
        }
        for name, (arguments, _) in PROMPTS.items()
    ]
    return whole({"prompts": listed})


async def get_prompt(ctx: Any, params: Any) -> JSON:
    if params.name not in PROMPTS:
        raise MCPError(-32602, f"Unknown prompt: {params.name}")
    if params.name == f"{INPUT}prompt" and not (ctx.params or {}).get("inputResponses"):
        return asked({"user_context": form("Which context?", context={"type": "string"})}, "p")
    content = PROMPTS[params.name][1](params.arguments or {})
    return whole({"messages": [{"role": "user", "content": block} for block in content]})


async def complete(ctx: Any, params: Any) -> JSON:
    return whole({"completion": {"values": ["paris", "park"], "total": 2, "hasMore": False}})


def app() -> Starlette:
    handlers: JSON = {
        "on_list_tools": list_tools, "on_call_tool": call_tool, "on_list_resources": list_resources,
        "on_list_resource_templates": list_templates, "on_read_resource": read_resource,
        "on_list_prompts": list_prompts, "on_get_prompt": get_prompt, "on_completion": complete,
    }  # fmt: skip
    server: Server[Any] = Server("everything", version="1", get_tool_input_schema=TOOLS.get, **handlers)
    sessions = StreamableHTTPSessionManager(server)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with sessions.run():
            yield

    return Starlette(routes=[Route("/mcp", StreamableHTTPASGIApp(sessions))], lifespan=lifespan)


if __name__ == "__main__":
    anyio.run(uvicorn.Server(uvicorn.Config(app(), port=int(sys.argv[1]), log_level="error")).serve)
