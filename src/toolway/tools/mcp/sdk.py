"""Names of the MCP SDK that it does not promise to keep, for all of tools/mcp.

Only its transport over HTTP, which loads httpx2, is imported by `http` and `posts` themselves. What else Toolway uses
of it is public: models (`mcp_types`) and OAuth (`mcp.client.auth`).
"""

from __future__ import annotations

import logging

from mcp.shared.dispatcher import CallOptions, DispatchContext, ProgressFnT
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
    find_invalid_x_mcp_header,
    mcp_param_headers,
    x_mcp_header_map,
)
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp.shared.message import ClientMessageMetadata, ServerMessageMetadata, SessionMessage
from mcp.shared.transport_context import TransportContext

from toolway.tools.mcp.sdk_internals import (
    ContextSendStream,
    ReadStream,
    WriteStream,
    create_context_streams,
    inject_trace_context,
)

__all__ = [
    "MCP_METHOD_HEADER",
    "MCP_NAME_HEADER",
    "MCP_PROTOCOL_VERSION_HEADER",
    "NAME_BEARING_METHODS",
    "CallOptions",
    "ClientMessageMetadata",
    "ContextSendStream",
    "DispatchContext",
    "JSONRPCDispatcher",
    "ProgressFnT",
    "ReadStream",
    "ServerMessageMetadata",
    "SessionMessage",
    "TransportContext",
    "WriteStream",
    "create_context_streams",
    "encode_header_value",
    "find_invalid_x_mcp_header",
    "inject_trace_context",
    "mcp_param_headers",
    "x_mcp_header_map",
]

# The SDK logs whole messages, and a traceback for each fault of a server; what matters is logged by Toolway.
logging.getLogger("mcp").setLevel(logging.CRITICAL)
logging.getLogger("client").setLevel(logging.CRITICAL)
