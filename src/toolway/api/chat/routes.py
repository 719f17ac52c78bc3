"""POST /v1/chat/completions: OpenAI's chat completions, with our tools in them."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import Any

from starlette.types import Receive, Scope, Send

from toolway.api.answers import answer_errors, answer_stream, answer_whole, start_stream
from toolway.api.chat.chunks import ChunkWriter, failure, progress_chunk
from toolway.api.chat.deferred import offer_deferred, without_deferred
from toolway.api.option_headers import read_option_headers
from toolway.conversation.events import Chunks, Event
from toolway.conversation.message import TEXT_FIELDS, ChatRequest, Message, joined
from toolway.conversation.tool_calls import call_object
from toolway.engine.conversation import Conversation, ConversationRequest
from toolway.engine.engine import Engine, ToolsAtHand
from toolway.engine.lane_exchange import ExchangeHandover
from toolway.engine.request_options import RequestOptions, choices_of, with_deferred
from toolway.engine.request_tools import RequestTools
from toolway.errors import InvalidRequest, Stopping, ToolwayError, UpstreamError
from toolway.server.asgi import EventStreamResponse, parse_object, read_body, relay
from toolway.server.caller import caller_of
from toolway.server.cancellation import cancel_on_disconnect, error_at_stop
from toolway.server.envelopes import send_error
from toolway.server.lane_protocol import HANDOVER, PARSED_BODY
from toolway.types import JSON, Caller, record
from toolway.upstream.client import CHAT_COMPLETIONS
from toolway.upstream.model_call import streamed_model_call, whole_model_call
from toolway.wire.lenient_json import dumps


@record
class ChatHandover:
    """A request that was in the fast lane; if it is streamed and has begun, with the `writer` of its beginning."""

    handover: ExchangeHandover
    raw: bytes
    """Its body."""
    caller: Caller
    writer: ChunkWriter | None

    def close(self) -> None:
        """As `ExchangeHandover.close`."""
        self.handover.close()


class ChatCompletions:
    """The endpoint as an ASGI app."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._settings = engine.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, streamed or whole. Errors go out in OpenAI's envelope."""
        await answer_errors(scope, send, self._respond(scope, receive, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = scope.get("extensions", {})
        chat_handover: ChatHandover | None = extensions.get(HANDOVER)
        handover, writer = (chat_handover.handover, chat_handover.writer) if chat_handover else (None, None)
        if chat_handover is not None:  # the lane has read all that is read here
            raw, caller, body = chat_handover.raw, chat_handover.caller, chat_handover.handover.sent.options
        else:
            raw = await read_body(scope, receive, self._settings.server.max_body_bytes)
            body = extensions.get(PARSED_BODY) or check_body(parse_object(raw))
            caller = caller_of(scope, self._settings.upstream)
        options = read_option_headers(caller.option_headers)

        def read(tools: ToolsAtHand) -> ConversationRequest:
            return read_request(body, options, tools, handover)

        begun_with = handover.tools if handover else None
        async with self._engine.open(read, caller=caller, begun_with=begun_with) as conversation:
            if conversation.request.deferred:
                await offer_deferred(conversation, self._engine.store)
            await self._serve(scope, receive, send, conversation, raw=raw, writer=writer)

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        conversation: Conversation,
        *,
        raw: bytes,
        writer: ChunkWriter | None,
    ) -> None:
        request = conversation.chat
        if request.options.get("n") not in (None, 1):
            _refuse_many(conversation.tools)
            await cancel_on_disconnect(scope, receive, lambda: self._relay(scope, send, conversation, raw))
        elif request.is_streamed:
            await self._stream(scope, receive, send, conversation, writer)
        else:

            async def produce() -> JSON:
                outcome = await conversation.run(whole_model_call, raw=raw)
                return whole_answer(outcome.message, outcome.usage, outcome.earlier)

            await answer_whole(scope, receive, send, conversation=conversation, produce=produce)

    async def _stream(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        conversation: Conversation,
        begun_writer: ChunkWriter | None,
    ) -> None:
        """The answer as server-sent events; the 200 goes out when the model server accepted round 1.

        Of one with a `begun_writer` the client has what that wrote, and the 200.
        """
        writer = begun_writer or ChunkWriter(conversation.chat.options.get("model"))
        progress = self._settings.loop.progress

        async def produce(stream: EventStreamResponse) -> bytes:
            if begun_writer is not None:
                await stream.start(())

            async def deliver(event: Event) -> None:
                if type(event) is Chunks:
                    await stream.write(writer.write(event.items))
                    return
                if not stream.started:
                    await start_stream(stream, event)
                if progress != "off" and (chunk := progress_chunk(event, progress)):
                    await stream.write(writer.write([(chunk, None)]))

            outcome = await conversation.run(streamed_model_call, deliver)
            usage = outcome.usage if wants_usage(conversation.chat) else None
            return writer.end(outcome.message, usage)

        keep_alive = self._settings.server.keepalive_interval
        await answer_stream(
            scope,
            receive,
            send,
            conversation=conversation,
            produce=produce,
            fail=_fail,
            keep_alive=keep_alive,
        )

    async def _relay(self, scope: Scope, send: Send, conversation: Conversation, raw: bytes) -> None:
        """Several answers to one request (`n`), which only go without tools of ours: untouched."""
        started = False
        body = conversation.tools.put_into(conversation.chat).body()
        raw = raw if body == parse_object(raw) else dumps(body)
        try:
            with error_at_stop(scope):
                async with self._engine.upstream.request(
                    "POST",
                    CHAT_COMPLETIONS,
                    query=conversation.caller.query,
                    headers=conversation.headers,
                    body=raw,
                ) as answer:
                    if not answer.is_success:
                        raise await answer.refusal()
                    started = True
                    await relay(answer, send)
        except (UpstreamError, Stopping) as error:
            if not started:  # else the missing end tells the client
                await send_error(scope, send, error)


async def _fail(error: ToolwayError) -> bytes:
    return failure(error)


def read_request(
    body: JSON, options: RequestOptions, tools: ToolsAtHand, handover: ExchangeHandover | None = None
) -> ConversationRequest:
    """The conversation that a body asks for; entries of the type mcp in its tools choose among the servers here."""
    request = ChatRequest.of(body)
    if not request.tools:
        return ConversationRequest(chat=request, options=options, handover=handover)
    request, deferred = without_deferred(request)
    entries = [tool for tool in request.tools or () if _is_mcp(tool)]
    if not entries:
        return ConversationRequest(chat=request, options=options, deferred=deferred, handover=handover)
    rest = [tool for tool in request.tools if not _is_mcp(tool)]
    chat = request.with_tools(rest) if rest else request.without("tools")
    options = with_deferred(options, entries, tools.labels)
    options = options.narrowed(choices_of(entries, tools.labels))
    return ConversationRequest(chat=chat, options=options, deferred=deferred)


def _is_mcp(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") == "mcp"


def wants_usage(request: ChatRequest) -> bool:
    """Whether a client asks for the usage at the end of its stream."""
    options = request.options.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def check_body(body: JSON) -> JSON:
    """The fields that Toolway itself acts on; all others are the model server's to judge."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list of at least one message.", param="messages")
    if body.get("stream") not in (None, True, False):
        raise InvalidRequest("stream must be true or false.", param="stream")
    if not isinstance(body.get("tools"), _LIST_OR_NULL):
        raise InvalidRequest("tools must be a list.", param="tools")
    if not isinstance(body.get("functions"), _LIST_OR_NULL):
        raise InvalidRequest("functions must be a list.", param="functions")
    return body


_LIST_OR_NULL = (list, NoneType)


def _refuse_many(tools: RequestTools) -> None:
    if tools.tools:
        raise InvalidRequest(
            "n must be 1 here: Toolway runs tools for this request, and several answers cannot share their "
            'results. Send n=1, or tool_choice="none".',
            param="n",
        )


def whole_answer(last: Message, usage: JSON | None, earlier: Sequence[JSON] = ()) -> JSON:
    """The last round's answer with the text of all rounds in it, our calls gone and usage summed."""
    frame = last.frame
    choice = frame["choices"][0]
    message = {**choice["message"], **last.fields}
    if earlier:
        message |= _joined_text((*earlier, message))
    if message.get("tool_calls"):
        message.pop("function_call", None)  # llama-cpp-python says each call twice
        message["tool_calls"] = [call_object(call) for call in last.tool_calls]
        if not message["tool_calls"]:
            del message["tool_calls"]
    choice = {**choice, "index": 0, "message": message, "finish_reason": last.finish_reason}
    return {**frame, "choices": [choice], **({"usage": usage} if usage else {})}


def _joined_text(rounds: Sequence[JSON]) -> JSON:
    """What was said in all these messages, each kind of it in one piece."""
    found: dict[str, list[str | list[Any]]] = {}
    for said in rounds:
        for member, piece in said.items():
            if piece and member in TEXT_FIELDS and isinstance(piece, (str, list)):
                found.setdefault(member, []).append(piece)
    return {member: joined(pieces) for member, pieces in found.items()}
