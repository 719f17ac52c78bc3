"""One call of the model, streamed or whole: a request in, a clean Message out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import orjson

from toolway.conversation.events import Chunks, Emit, HeadArrived
from toolway.conversation.message import ChatRequest, Message, MessageBuilder, error_in, read_answer
from toolway.errors import UpstreamError
from toolway.net.decompress import PART
from toolway.types import JSON, Header
from toolway.upstream.client import Answer, Upstream
from toolway.upstream.refusals import refusal_code
from toolway.wire import lenient_json, sse

QUOTE, BACKSLASH = b'"\\'


class ChunkTemplate:
    """What stands around the text in chunk after chunk of one stream.

    Parsing is most of what a chunk costs, and nearly all chunks of a stream are the same but for a word.
    """

    def __init__(self) -> None:
        self._head = self._tail = b""

    def learn(self, chunk: JSON, payload: bytes) -> None:
        """Take this chunk as the pattern, if one plain text is all that its delta holds."""
        self._head = b""
        choices = chunk["choices"]
        delta = choices[0]["delta"] if choices else {}
        text = delta.get("content")
        if len(delta) == 1 and isinstance(text, str) and text:
            quoted = b'"%s"' % text.encode()
            before, _, after = payload.partition(quoted)
            if before.endswith((b'"content":', b'"content": ')) and quoted not in after:
                self._head, self._tail = before + b'"', b'"' + after

    def text_in(self, payload: bytes) -> str | None:
        """The text of a chunk that repeats the pattern; None for any other, and where a parser is needed."""
        head, tail = self._head, self._tail
        if not (head and payload.startswith(head) and payload.endswith(tail)):
            return None
        quoted = payload[len(head) : -len(tail)]
        if not quoted or QUOTE in quoted or BACKSLASH in quoted:
            return None
        try:
            text = quoted.decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() else None


_STREAM_TYPES = frozenset({b"text/event-stream", b"text/plain", b"application/octet-stream", b""})
"""What servers call an event stream."""

IsClients = Callable[[str], bool]
"""Whether a tool of this name is the client's own."""

Turn = Callable[[ChatRequest, Emit, IsClients], Awaitable[Message]]
"""`turn(request, emit, is_clients)`: ask the model once."""

_Take = Callable[[Answer, Emit, IsClients], Awaitable[Message]]

TurnFactory = Callable[[Upstream, Sequence[Header]], Turn]
"""One of the functions below: how the model server is asked."""


def streamed_turn(upstream: Upstream, headers: Sequence[Header]) -> Turn:
    """A turn whose text reaches `emit` as it comes."""
    return _asking(upstream, headers, _take_streamed)


def whole_turn(upstream: Upstream, headers: Sequence[Header]) -> Turn:
    """A turn whose answer comes in one piece."""
    return _asking(upstream, headers, _take_whole)


def unstreamed_turn(upstream: Upstream, headers: Sequence[Header]) -> Turn:
    """A turn whose answer comes in one piece, and whose text reaches `emit` like that of a stream."""
    return _asking(upstream, headers, _take_unstreamed)


def _asking(upstream: Upstream, headers: Sequence[Header], take: _Take) -> Turn:
    async def turn(request: ChatRequest, emit: Emit, is_clients: IsClients) -> Message:
        try:
            async with upstream.request(
                "POST",
                "/chat/completions",
                headers=headers,
                body=lenient_json.dumps(request.body()),
                repeatable=True,
            ) as answer:
                if not answer.is_success:
                    raise await answer.refusal()
                return await take(answer, emit, is_clients)
        except UpstreamError as error:
            error.code = refusal_code(error)
            raise

    return turn


async def _take_whole(answer: Answer, emit: Emit, _: IsClients) -> Message:
    await emit(HeadArrived(headers=answer.headers))
    return read_answer(_parse_answer(await answer.read()))


async def _take_streamed(answer: Answer, emit: Emit, is_clients: IsClients) -> Message:
    kind = answer.header(b"content-type").partition(b";")[0].strip().lower()
    if kind not in _STREAM_TYPES:
        return await _take_unstreamed(answer, emit, is_clients)
    await emit(HeadArrived(headers=answer.headers))
    return await _read_stream(answer, emit, MessageBuilder(is_clients))


async def _take_unstreamed(answer: Answer, emit: Emit, is_clients: IsClients) -> Message:
    """A 200 that is no event stream: an error, or all at once, asked for or from a server that cannot stream."""
    builder = MessageBuilder(is_clients)
    whole = _parse_answer(await answer.read())
    message = read_answer(whole)
    await emit(HeadArrived(headers=answer.headers))
    choice = whole["choices"][0]
    calls = [{**call, "index": n} for n, call in enumerate(choice["message"].get("tool_calls") or ())]
    delta = {**message.fields, **({"tool_calls": calls} if calls else {})}
    rest = {key: value for key, value in choice.items() if key not in ("message", "index")}
    chunk = {
        **whole,
        "object": "chat.completion.chunk",
        "choices": [{**rest, "index": 0, "delta": delta, "finish_reason": message.finish_reason or "stop"}],
    }
    visible = builder.feed(chunk)
    if visible is not None:
        await emit(Chunks([(visible, None)]))
    return builder.message()


def _parse_answer(body: bytes) -> JSON:
    try:
        parsed = lenient_json.loads_harmless(body)
    except ValueError as error:
        raise UpstreamError(
            f"The model server's answer is not JSON; it starts with: {_excerpt(body)}"
        ) from error
    if not isinstance(parsed, dict):
        raise UpstreamError("The model server's answer is not a JSON object.")
    return parsed


async def _read_stream(answer: Answer, emit: Emit, builder: MessageBuilder) -> Message:
    decoder, template, decompress = sse.Decoder(), ChunkTemplate(), answer.decompressor()
    done = False
    try:
        while not done and (data := await answer.receive()):
            for part in decompress(data):
                if payloads := decoder.feed(part):
                    done = await _feed(payloads, builder, template, emit) or done
                if len(part) == PART:
                    # There is more in what came, and others want the event loop too.
                    await anyio.lowlevel.checkpoint()
        if not done:
            done = await _feed(decoder.close(), builder, template, emit)
    except sse.NotAnEventStream as stray:
        raise _stray_error(stray.text) from stray
    if not (builder.started and (done or builder.finished)):
        reason = "before it was complete" if builder.started else "without an answer in it"
        raise UpstreamError(f"The model server's stream ended {reason}.", code="upstream_cut")
    if not builder.finished and (decoder.stray or builder.stray):
        raise _stray_error(decoder.stray or lenient_json.dumps(builder.stray))
    await answer.drain()
    return builder.message()


async def _feed(payloads: list[bytes], builder: MessageBuilder, template: ChunkTemplate, emit: Emit) -> bool:
    """Take the payloads of one read; True when `[DONE]` was among them."""
    items: list[tuple[JSON | str, bytes | None]] = []
    done = False
    try:
        for payload in payloads:
            if payload.startswith(sse.DONE):
                done = True
                break
            if (text := template.text_in(payload)) is not None:
                builder.say(text)
                items.append((text, payload))
                continue
            chunk, raw = _parse_chunk(payload)
            visible = builder.feed(chunk)
            if visible is chunk and raw is not None:
                template.learn(chunk, raw)
                items.append((chunk, raw))
            elif visible is not None:
                items.append((visible, None))
    finally:
        if items:
            await emit(Chunks(items))
    return done


def _parse_chunk(payload: bytes) -> tuple[JSON, bytes | None]:
    """The chunk, and its bytes unless only lax readers take them."""
    raw: bytes | None = payload
    try:
        chunk: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        chunk, raw = _parse_lax_chunk(payload), None
    if not isinstance(chunk, dict):
        raise UpstreamError("The model server sent an event that is not a JSON object.")
    return chunk, raw


def _parse_lax_chunk(payload: bytes) -> Any:
    try:
        return lenient_json.loads(payload)
    except ValueError as error:
        raise UpstreamError(
            f"The model server sent an event that is not JSON: {_excerpt(payload)}"
        ) from error


def _stray_error(text: bytes) -> UpstreamError:
    """What a server wrote instead of events, as the error it means."""
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict) and (error := error_in(body)):
        return error
    return UpstreamError(f"The model server broke its stream off with: {_excerpt(text)}")


def _excerpt(data: bytes) -> str:
    """The beginning of what a server wrote, in one line and in quotes."""
    return repr(" ".join(data[:200].decode(errors="replace").split()))
