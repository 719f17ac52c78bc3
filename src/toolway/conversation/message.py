"""A chat completion request, and its answer, streamed or whole, of a sloppy model server as one clean Message.

What each rule is good for is in `docs/wire.md`; every one was seen on a real server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from itertools import chain, groupby
from typing import Any, Literal, cast

from toolway.conversation.tool_calls import CallAssembler, new_id
from toolway.errors import UpstreamError
from toolway.types import JSON, ToolCall, record
from toolway.wire.lenient_json import fix_surrogates, harmless

TEXT_FIELDS = ("reasoning_content", "reasoning", "content", "refusal", "reasoning_details", "thinking_blocks")
"""Members of deltas that make one text or list; a replayed message needs them (DeepSeek: 400 without)."""
Ending = Literal["whole", "length", "content_filter", "failed"]
"""How a message of the model ended. Only one that is whole has calls that are whole for certain, and may be run."""

FINISH_REASONS: dict[str, Ending] = {
    **dict.fromkeys(
        "stop tool_calls function_call tool_call tool_use end_turn stop_sequence eos".split(), "whole"
    ),
    **dict.fromkeys("length max_tokens max_output_tokens model_length".split(), "length"),
    **dict.fromkeys("model_context_window_exceeded context_length_exceeded".split(), "length"),
    **dict.fromkeys("content_filter safety recitation blocklist sensitive refusal".split(), "content_filter"),
    **dict.fromkeys(
        "error network_error insufficient_system_resource abort aborted cancelled".split(), "failed"
    ),
    **dict.fromkeys("timeout malformed_function_call".split(), "failed"),
}
"""What servers call the end of a message, in lower case; whatever else they say is a failure."""

_NOT_WORDS = frozenset({"role", "tool_calls", "function_call", *TEXT_FIELDS})
_ENVELOPE = frozenset(
    {"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier"}
)


@record
class Message:
    """One message of the model, clean.

    `fields` is the assistant message without its calls (content, reasoning, whatever else it had, no nulls).
    `frame` is the upstream's own object around it: the chunk with the finish_reason, or the whole answer;
    its members that nobody here knows reach the client from there. `usage_frame` is the chunk with the usage.
    """

    fields: JSON
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: JSON | None = None
    frame: JSON = field(default_factory=dict)
    usage_frame: JSON = field(default_factory=dict)

    @property
    def ending(self) -> Ending:
        """How the message ended; one whose server does not say is whole."""
        return FINISH_REASONS.get(self.finish_reason.lower(), "failed") if self.finish_reason else "whole"

    @property
    def cut_short(self) -> bool:
        """Whether the server stopped in the middle, so that no call in it can be trusted to be whole."""
        return self.ending != "whole"


def unfinished_answer(message: Message) -> UpstreamError:
    """The error of an answer whose finish_reason says that the model server gave up."""
    reason = fix_surrogates(str(message.finish_reason))[:100]
    text = f"The model server did not finish its answer: its finish_reason is {reason!r}."
    return UpstreamError(text, code=reason)


def error_in(body: JSON) -> UpstreamError | None:
    """The error that a server put into a 200 answer or a stream, as it named it."""
    error = body.get("error") or (_bare_error(body) if "choices" not in body else None)
    if not error:
        return None
    error = harmless(body if error is True else error)
    if not isinstance(error, dict):
        return UpstreamError(f"The model server reported an error: {error}")
    code = error.get("code")
    message = next((error[name] for name in _MESSAGES if error.get(name)), None)
    found = UpstreamError(
        str(message or "The model server reported an error without a message."),
        param=error.get("param"),
        code=None if code is None else str(code),
    )
    found.type = str(error.get("type") or found.type)
    return found


def _bare_error(body: JSON) -> Any:
    """An error without OpenAI's wrapper: FastAPI's `detail`, or the error object itself."""
    is_error = body.get("object") == "error" or (
        "message" in body and not body.keys().isdisjoint(_ERROR_FIELDS)
    )
    return body if is_error else body.get("detail")


_MESSAGES = ("message", "msg", "detail")
"""What servers call the message of an error."""

_ERROR_FIELDS = frozenset({"code", "type", "status", "statusCode"})


class MessageBuilder:
    """Takes the chunks of one streamed message; hands back what of each the client may see at once.

    A call is held until its name is known; calls that are `is_clients(name)`, the client's own, are then passed on,
    numbered from 0 among themselves. All other calls, the finish_reason and the usage stay here.
    """

    started = False
    """Whether anything of an answer came."""
    stray: JSON | None = None
    """The first chunk that means nothing here."""
    _finish_reason: str | None = None
    _usage: JSON | None = None

    def __init__(self, is_clients: Callable[[str], bool]) -> None:
        self._is_clients = is_clients
        self._said: dict[str, list[str | list[Any]]] = {}
        self._extra: JSON = {}
        self._calls = CallAssembler()
        self._passed: dict[int, int] = {}
        self._frame: JSON = {}
        self._usage_frame: JSON = {}

    def feed(self, chunk: JSON) -> JSON | None:
        """What the client sees of this chunk: the same object if all of it, a new one if less, None if nothing.

        Raises UpstreamError for an error that the server sends in the stream.
        """
        choices = chunk.get("choices")
        if "error" in chunk and (error := error_in(chunk)):
            raise error
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            return self._feed_frame(chunk)
        self.started = True
        choice = choices[0]
        if "error" in choice and (error := error_in(choice)):
            raise error
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            choice = {**choice, "delta": (delta := {})}
            chunk = {**chunk, "choices": [choice]}
        for key, value in delta.items():
            if key not in _NOT_WORDS:
                if value is not None:  # Gemini's signature of a text stands in `extra_content`
                    self._extra[key] = value
            elif value and key in TEXT_FIELDS and isinstance(value, (str, list)):
                self._said.setdefault(key, []).append(value)
        if chunk.get("usage"):
            chunk = self._without_usage(chunk)
        finish = choice.get("finish_reason")
        if isinstance(finish, str) and finish:
            return self._finish(chunk, choice, delta)
        if finish is not None:  # "" until the last chunk
            choice = {**choice, "finish_reason": None}
            chunk = {**chunk, "choices": [choice]}
        if "tool_calls" in delta:
            return self._without_calls(chunk, choice, delta)
        return chunk

    def add_content(self, text: str) -> None:
        """More content, from a chunk that holds nothing else new."""
        self._said["content"].append(text)

    def message(self) -> Message:
        """The message, once its stream is over."""
        fields: JSON = {"role": "assistant"}
        fields |= {key: joined(pieces) for key, pieces in self._said.items()}
        fields |= self._extra
        return Message(
            fields=fields,
            tool_calls=self._calls.finished(),
            finish_reason=self._finish_reason,
            usage=self._usage,
            frame=self._frame,
            usage_frame=self._usage_frame,
        )

    @property
    def finished(self) -> bool:
        """Whether a finish_reason came."""
        return self._finish_reason is not None

    @property
    def has_calls(self) -> bool:
        """Whether the model has begun to call a tool."""
        return not self._calls.is_empty

    def _feed_frame(self, chunk: JSON) -> JSON | None:
        if error := error_in(chunk):
            raise error
        if isinstance(usage := chunk.get("usage"), dict):
            self._usage = usage
            self._usage_frame = chunk
            return None
        unknown = any(value for key, value in chunk.items() if key not in _ENVELOPE)
        if "choices" not in chunk and self.stray is None:
            self.stray = chunk
        return {**chunk, "choices": []} if unknown else None  # Azure's prompt_filter_results

    def _without_usage(self, chunk: JSON) -> JSON:
        if isinstance(chunk["usage"], dict):
            self._usage = chunk["usage"]
        return {key: value for key, value in chunk.items() if key != "usage"}

    def _finish(self, chunk: JSON, choice: JSON, delta: JSON) -> JSON | None:
        self._finish_reason = choice["finish_reason"]
        self._frame = chunk
        delta = self._pass_calls(delta) if "tool_calls" in delta else delta
        if not any(value for key, value in delta.items() if key != "role"):
            return None
        return {**chunk, "choices": [{**choice, "delta": delta, "finish_reason": None}]}

    def _without_calls(self, chunk: JSON, choice: JSON, delta: JSON) -> JSON | None:
        rest = self._pass_calls(delta)
        if not any(value for key, value in rest.items() if key != "role"):
            return None
        return {**chunk, "choices": [{**choice, "delta": rest}]}

    def _pass_calls(self, delta: JSON) -> JSON:
        rest = {key: value for key, value in delta.items() if key not in ("tool_calls", "function_call")}
        passed = [
            {**fragment, "index": self._number(position)}
            for position, fragment in self._calls.feed(delta["tool_calls"])
            if self._is_clients(self._calls.name(position))
        ]
        return {**rest, "tool_calls": passed} if passed else rest

    def _number(self, position: int) -> int:
        return self._passed.setdefault(position, len(self._passed))


def joined(pieces: Sequence[str | list[Any]]) -> str | list[Any]:
    """Pieces of content as one text or, where some are lists of parts (Mistral), as one list of parts."""
    if not any(isinstance(piece, list) for piece in pieces):
        return fix_surrogates("".join(cast(Sequence[str], pieces)))
    parts: list[Any] = []
    for is_text, group in groupby(pieces, lambda piece: isinstance(piece, str)):
        text_or_parts = list(chain.from_iterable(group))
        parts += [{"type": "text", "text": "".join(text_or_parts)}] if is_text else text_or_parts
    return cast(list[Any], harmless(parts))


def read_answer(answer: JSON) -> Message:
    """The message of a whole (not streamed) answer. Raises UpstreamError for an answer that is none."""
    choices = answer.get("choices")
    if (choices is None or "error" in answer) and (error := error_in(answer)):
        raise error
    if not (isinstance(choices, list) and choices and isinstance(choice := choices[0], dict)):
        raise UpstreamError(
            "The model server's answer has no choices; it may not be an OpenAI-compatible server."
        )
    if "error" in choice and (error := error_in(choice)):
        raise error
    if not isinstance(message := choice.get("message"), dict):
        raise UpstreamError("The model server's answer has no message.")
    fields = {key: value for key, value in message.items() if value is not None}
    fields["role"] = "assistant"
    calls = _whole_calls(fields.pop("tool_calls")) if "tool_calls" in fields else ()
    if calls:
        fields.pop("function_call", None)
    finish, usage = choice.get("finish_reason"), answer.get("usage")
    return Message(
        fields=fields,
        tool_calls=calls,
        finish_reason=finish if isinstance(finish, str) else None,
        usage=usage if isinstance(usage, dict) else None,
        frame=answer,
    )


def _whole_calls(calls: Any) -> tuple[ToolCall, ...]:
    if not isinstance(calls, list) or not calls:
        return ()
    assembler = CallAssembler()
    for call in calls:
        if isinstance(call, dict):
            assembler.add_whole(call)
    return assembler.finished()


def add_usage(total: JSON | None, more: JSON | None) -> JSON | None:
    """The sum of two usage objects, member by member, however deep; what is no number comes from the newer."""
    if not total or not more:
        return more or total
    summed = dict(total)
    for key, value in more.items():
        old = summed.get(key)
        if _is_number(value) and _is_number(old):
            summed[key] = old + value
        elif isinstance(value, dict) and isinstance(old, dict):
            summed[key] = add_usage(old, value)
        elif value is not None:
            summed[key] = value
    return summed


def token_count(usage: JSON | None, *path: str) -> int:
    """A number of tokens in a usage object; 0 for what is none."""
    return optional_token_count(usage, *path) or 0


def optional_token_count(usage: JSON | None, *path: str) -> int | None:
    """The same; None for what is none. Servers that compute in floating point write 12.0."""
    value: Any = usage
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return int(value) if _is_number(value) and 0 <= value <= _MAX_TOKENS else None


_MAX_TOKENS = 2**53
"""More is an error of the model server's, and no JSON reader takes it."""


def cached_tokens(usage: JSON | None) -> int:
    """The tokens of the prompt that the model server need not read anew."""
    return token_count(usage, "prompt_tokens_details", "cached_tokens")


def usage_for_client(last: JSON | None, total: JSON | None, *, rounds: int) -> JSON | None:
    """The usage that a client reads: the prompt of the last round, what the model wrote in all; beside it the sum.

    Clients take it for the size of their conversation, and throw a part away when that seems too large. Rounds that
    they do not see read the same prompt again, and must not count for that.
    """
    if not last or not total or total == last:
        return last
    of_all = ("completion_tokens", "completion_tokens_details")
    written: JSON = {name: total[name] for name in of_all if name in total}
    usage: JSON = {**last, **written}
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(completion, int):
        usage["total_tokens"] = prompt + completion
    return {**usage, "toolway": {"rounds": rounds, **total}}


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


@record
class ChatRequest:
    """One request for the model server, its body made by `body` when it is sent.

    `options` are the members that the client sent, in its order; its `messages` and `tools` stand there for their
    places alone. `tools` None: as in the options.
    """

    options: JSON
    messages: Sequence[Any]
    tools: Any = None

    @classmethod
    def of(cls, body: JSON) -> ChatRequest:
        """The request that a client's body asks for."""
        return cls(options=body, messages=body["messages"], tools=body.get("tools"))

    @property
    def is_streamed(self) -> bool:
        """Whether the client wants its answer as a stream."""
        return bool(self.options.get("stream"))

    def with_messages(self, messages: Sequence[Any]) -> ChatRequest:
        """The request with these messages."""
        return ChatRequest(options=self.options, messages=messages, tools=self.tools)

    def with_tools(self, tools: Any) -> ChatRequest:
        """The request with these tools."""
        return ChatRequest(options=self.options, messages=self.messages, tools=tools)

    def with_options(self, **options: Any) -> ChatRequest:
        """The request with these members in place of its own."""
        return replace(self, options={**self.options, **options})

    def without(self, *names: str) -> ChatRequest:
        """The request without these members."""
        if self.options.keys().isdisjoint(names) and (self.tools is None or "tools" not in names):
            return self
        kept = {name: value for name, value in self.options.items() if name not in names}
        return replace(self, options=kept, tools=None if "tools" in names else self.tools)

    def body(self) -> JSON:
        """The JSON object as it goes to the model server."""
        return self.body_with(self.tools)

    def body_with(self, tools: Any) -> JSON:
        """The same, of the request with these tools."""
        if tools is None:
            return {**self.options, "messages": self.messages}
        return {**self.options, "messages": self.messages, "tools": tools}


def own_answer(model: Any, text: str | None = None) -> Message:
    """A whole answer of ours in the place of one of the model's, which was not let speak."""
    said = {"role": "assistant"} if text is None else {"role": "assistant", "content": text}
    frame = {"model": model, "choices": [{"index": 0, "message": said}]}
    answer = {"id": f"chatcmpl-{new_id()}", "object": "chat.completion", "created": int(time.time()), **frame}
    return Message(fields=said, finish_reason="stop", frame=answer)
