"""One call of the model, streamed or whole: a request in, a clean Message out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from traceback import clear_frames

import anyio
import anyio.lowlevel

from toolway.conversation.chunk_template import ChunkTemplate, TextRun
from toolway.conversation.events import Chunks, Emit, HeadArrived
from toolway.conversation.message import ChatRequest, Message, MessageBuilder, error_in, read_answer
from toolway.errors import UpstreamError
from toolway.net.decompress import PART
from toolway.types import JSON, Header
from toolway.upstream.client import CHAT_COMPLETIONS, Upstream, UpstreamResponse
from toolway.upstream.refusals import refusal_code
from toolway.wire import lenient_json, sse

NO_CONTENT = 204

_STREAM_TYPES = frozenset({b"text/event-stream", b"text/plain", b"application/octet-stream", b""})
"""What servers call an event stream."""

MANY_BYTES = 4096
"""Less than that is parsed at once: it holds a handful of events."""

MAX_MISSES = 8
"""So many events in a row that are not like the one before, and whole reads are parsed at once."""

MAX_FIRST = 2
"""So many events may stand before those that are alike: the role, the first word."""

IsClients = Callable[[str], bool]
"""Whether a tool of this name is the client's own."""

ModelCall = Callable[[ChatRequest, Emit, IsClients], Awaitable[Message]]
"""`call_model(request, emit, is_clients)`: ask the model once."""

_Take = Callable[[UpstreamResponse, Emit, IsClients], Awaitable[Message]]

ModelCallFactory = Callable[[Upstream, Sequence[Header]], ModelCall]
"""One of the functions below: how the model server is asked."""


def streamed_model_call(upstream: Upstream, headers: Sequence[Header]) -> ModelCall:
    """A model call whose text reaches `emit` as it comes."""
    return _asking(upstream, headers, _take_streamed)


def whole_model_call(upstream: Upstream, headers: Sequence[Header]) -> ModelCall:
    """A model call whose answer comes in one piece."""
    return _asking(upstream, headers, _take_whole)


def unstreamed_model_call(upstream: Upstream, headers: Sequence[Header]) -> ModelCall:
    """A model call whose answer comes in one piece, and whose text reaches `emit` like that of a stream."""
    return _asking(upstream, headers, _take_unstreamed)


def _asking(upstream: Upstream, headers: Sequence[Header], take: _Take) -> ModelCall:
    async def call_model(request: ChatRequest, emit: Emit, is_clients: IsClients) -> Message:
        try:
            async with upstream.request(
                "POST",
                CHAT_COMPLETIONS,
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

    return call_model


async def _take_whole(answer: UpstreamResponse, emit: Emit, _: IsClients) -> Message:
    await emit(HeadArrived(headers=answer.headers))
    return read_answer(_parse_answer(await answer.read()))


async def _take_streamed(answer: UpstreamResponse, emit: Emit, is_clients: IsClients) -> Message:
    if not is_event_stream(answer):
        return await _take_unstreamed(answer, emit, is_clients)
    await emit(HeadArrived(headers=answer.headers))
    return await _read_stream(answer, emit, StreamReader(MessageBuilder(is_clients)))


def is_event_stream(answer: UpstreamResponse) -> bool:
    """Whether a 200 is streamed, as far as its head says."""
    kind = answer.header(b"content-type").partition(b";")[0].strip().lower()
    return kind in _STREAM_TYPES and answer.status != NO_CONTENT


async def resume_stream(
    request: AbstractAsyncContextManager[UpstreamResponse], reader: StreamReader, emit: Emit
) -> Message:
    """The message of a streamed answer of which `reader` has read a part."""
    try:
        async with request as answer:
            await emit(HeadArrived(headers=answer.headers))
            return await _read_stream(answer, emit, reader)
    except UpstreamError as error:
        error.code = refusal_code(error)
        raise


async def _take_unstreamed(answer: UpstreamResponse, emit: Emit, is_clients: IsClients) -> Message:
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
        raise _unreadable("The model server's answer", body, error) from error
    if not isinstance(parsed, dict):
        raise UpstreamError("The model server's answer is not a JSON object.")
    return parsed


async def _read_stream(answer: UpstreamResponse, emit: Emit, stream: StreamReader) -> Message:
    decompress = answer.decompressor()
    while not stream.is_over and (data := await answer.receive()):
        if decompress is None:
            for chunks in stream.read(data):
                await emit(chunks)
            continue
        for part in decompress(data):
            for chunks in stream.read(part):
                await emit(chunks)
            if len(part) == PART:
                # There is more in what came, and others want the event loop too.
                await anyio.lowlevel.checkpoint()
    for chunks in stream.close():
        await emit(chunks)
    message = stream.message()
    await answer.drain()
    return message


def _says_anything(message: Message) -> bool:
    return bool(message.tool_calls) or any(value for key, value in message.fields.items() if key != "role")


class StreamReader:
    """Reads one streamed answer, cut anywhere: its chunks go to the builder, and to the caller as they come."""

    is_over = False
    """Whether nothing that may still come is part of the answer."""
    _is_done = False
    """Whether `[DONE]` came."""
    _misses = 0
    """Events since the last one that was like the one before it."""
    _failure: Exception | None = None

    def __init__(self, builder: MessageBuilder) -> None:
        self._builder = builder
        self._decoder = sse.Decoder()
        self._template = ChunkTemplate()
        self._items: list[tuple[JSON | str, bytes | None]] = []

    def read(self, *pieces: bytes) -> Iterator[Chunks]:
        """What the client may see of what one network read brought, in the pieces in which the server sent it.

        Raises UpstreamError behind that.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        try:
            if len(pieces) > 1:
                pieces = pieces[self._take_first(pieces) :]
                if (alike := self._run_of(pieces)) is not None:
                    if self._items:
                        yield self._taken()
                    yield self._take_run(alike)
                    pieces = pieces[len(alike) :]
            data = b"".join(pieces)
            while data and not self.is_over:
                run = self._template.run_in(data) if self._decoder.is_between_events else None
                if run is None:
                    data = self._take_some(data)
                    continue
                if self._items:
                    yield self._taken()
                alike, data = run
                yield self._take_run(alike)
        finally:
            if self._items:
                yield self._taken()

    def close(self) -> Iterator[Chunks]:
        """The same of what is left at the end of the stream."""
        if self.is_over:
            yield from self.read(b"")
            return
        try:
            self._feed(self._decoder.close)
        finally:
            if self._items:
                yield self._taken()

    def fail(self, error: Exception) -> None:
        """Have this raised to whoever reads on."""
        clear_frames(error.__traceback__)  # they hold what came, and this reader
        self._failure = error.with_traceback(None)
        self.is_over = True

    def message(self) -> Message:
        """The message, once its stream is over. Raises UpstreamError for one that broke off."""
        builder, message = self._builder, self._builder.message()
        stray = self._decoder.stray or builder.stray
        if stray and not builder.finished and (self._is_done or not builder.started):
            raise _stray_error(stray if isinstance(stray, bytes) else lenient_json.dumps(stray))
        if not (builder.finished or (self._is_done and _says_anything(message))):
            reason = "before it was complete" if _says_anything(message) else "without an answer in it"
            raise UpstreamError(f"The model server's stream ended {reason}.", code="upstream_cut")
        return message

    def _take_first(self, pieces: Sequence[bytes]) -> int:
        """Parse what stands before the chunks that are alike, where each piece is an event; how many those are."""
        count = 0
        for piece in pieces[:MAX_FIRST]:
            if self._template.is_known or self.is_over or not piece.endswith(b"\n\n"):
                break
            self._feed(partial(self._decoder.feed, piece))
            count += 1
        return count

    def _run_of(self, pieces: Sequence[bytes]) -> TextRun | None:
        return self._template.run_of(pieces) if self._decoder.is_between_events and not self.is_over else None

    def _take_run(self, alike: TextRun) -> Chunks:
        self._misses = 0
        self._builder.add_content(alike.text)
        return Chunks(alike)

    def _take_some(self, data: bytes) -> bytes:
        """Parse the first event, or all where there are few, or they are not alike; returns the rest."""
        end = 0
        if len(data) > MANY_BYTES and self._misses < MAX_MISSES:
            end = data.find(b"\n\n") + 2
        self._misses += 1
        self._feed(partial(self._decoder.feed, data[:end] if end > 1 else data))
        return data[end:] if end > 1 else b""

    def _feed(self, decode: Callable[[], Sequence[bytes]]) -> None:
        try:
            payloads = decode()
        except sse.NotAnEventStream as broken:
            self._feed_payloads(broken.payloads)
            if not self.is_over:
                raise _stray_error(broken.text) from broken
        else:
            self._feed_payloads(payloads)

    def _feed_payloads(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            if payload.startswith(sse.DONE):
                self.is_over = self._is_done = True
                return
            self._feed_payload(payload)

    def _feed_payload(self, payload: bytes) -> None:
        if (text := self._template.text_in(payload)) is not None:
            self._builder.add_content(text)
            self._items.append((text, payload))
            return
        chunk, raw = _parse_chunk(payload)
        visible = self._builder.feed(chunk)
        if visible is chunk and raw is not None:
            self._template.learn(chunk, raw)
            self._items.append((chunk, raw))
        elif visible is not None:
            self._items.append((visible, None))

    def _taken(self) -> Chunks:
        items, self._items = self._items, []
        return Chunks(items)


def _parse_chunk(payload: bytes) -> tuple[JSON, bytes | None]:
    """The chunk, and its bytes unless only lax readers take them."""
    try:
        chunk, is_strict = lenient_json.loads_told(payload)
    except ValueError as error:
        raise _unreadable("An event of the model server", payload, error) from error
    if not isinstance(chunk, dict):
        raise _stray_error(payload)
    return chunk, payload if is_strict else None


def _unreadable(what: str, text: bytes, error: ValueError) -> UpstreamError:
    """Why JSON that a server sent cannot be read."""
    if isinstance(error.__cause__, RecursionError):
        return UpstreamError(f"{what} is JSON that is nested too deeply to be read.")
    if not text.strip():
        return UpstreamError(f"{what} is empty.")
    return UpstreamError(f"{what} is not JSON; it starts with: {_excerpt(text)}")


def _stray_error(text: bytes) -> UpstreamError:
    """What a server wrote instead of events, as the error it means."""
    for part in (text, text.partition(b"\n")[0]):
        with suppress(ValueError):
            body = lenient_json.loads(part)
            body = body[0] if isinstance(body, list) and body else body  # Gemini's way
            if isinstance(body, dict) and (error := error_in(body)):
                return error
    return UpstreamError(f"The model server broke its stream off with: {_excerpt(text)}")


def _excerpt(data: bytes) -> str:
    """The beginning of what a server wrote, in one line and in quotes."""
    return repr(" ".join(data[:200].decode(errors="replace").split()))
