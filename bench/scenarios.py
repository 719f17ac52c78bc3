"""What is asked of every target, and what a right answer holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
RELAYS = ("direct", "nginx", "haproxy", "envoy", "relay", "litellm", "portkey", "toolway")
PROXIES = ("nginx", "haproxy", "envoy")
DEFINITION_BYTES = 770
TOOLWAYS = ("toolway-0", "toolway", "toolway-200", "toolway-search")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    key: str
    title: str
    targets: tuple[str, ...]
    connections: int = 1
    stream: bool = False
    chunks: int = 100
    """Text chunks of a streamed answer, 200 bytes each."""
    pause_us: int = 0
    """Time between two chunks of one stream."""
    calls: int = 0
    """Tools the model calls before it answers."""
    tools: int = 0
    """Definitions that stand in the request itself."""
    path: str = "/v1/chat/completions"
    runs_tools: bool = True
    """False: the target hands the model's calls back, so no text is expected."""

    @property
    def counts_events(self) -> bool:
        return self.stream and not self.calls and not self.pause_us

    @property
    def stamps(self) -> int:
        """How many stamps of the mock a right answer holds: one in each text chunk or whole answer."""
        if not self.runs_tools:
            return 0
        return (self.chunks if self.stream else 1) * self.repeats

    @property
    def end(self) -> str:
        """How the line begins that ends a stream."""
        return 'data: {"type":"message_stop"' if self.path == MESSAGES else "data: [DONE]"

    @property
    def repeats(self) -> int:
        """How often an answer says each stamp: the events at the end of a response repeat its text four times."""
        return 5 if self.stream and self.path == RESPONSES else 1

    def body(self) -> bytes:
        if self.path not in ("/v1/chat/completions", RESPONSES, MESSAGES):
            return json.dumps({"query": "foxes", "limit": 3}).encode()
        model = f"mock-c{self.chunks}-s200-d{self.pause_us}-t{self.calls}"
        messages = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Say something about foxes and dogs, please."},
        ]
        said = "input" if self.path == RESPONSES else "messages"
        request = {"model": model, said: messages, "temperature": 0.7}
        if self.path == MESSAGES:
            request |= {"max_tokens": 1000, "system": messages[0]["content"], "messages": messages[1:]}
        if self.tools:
            request["tools"] = [definition(number) for number in range(self.tools)]
        return json.dumps({**request, "stream": True} if self.stream else request).encode()


def definition(number: int) -> dict[str, Any]:
    """As many bytes as Toolway makes of an operation of the mock; nobody reads these."""
    function = {"name": f"op_{number}", "description": "".ljust(DEFINITION_BYTES)}
    return {"type": "function", "function": function}


def passed_on(tools: int) -> Scenario:
    title = f"What is paid for the bytes of {tools} tools: the client sends them, 16 at a time"
    return Scenario(key=f"bytes-{tools}", title=title, targets=PROXIES, connections=16, tools=tools)


def whole(connections: int) -> Scenario:
    title = f"Whole answers of 1 kB, {connections} at a time"
    return Scenario(key=f"whole-{connections}", title=title, targets=RELAYS, connections=connections)


def streamed(connections: int) -> Scenario:
    title = f"Streamed answers of 100 chunks of 200 bytes, {connections} at a time"
    return Scenario(
        key=f"stream-{connections}", title=title, targets=RELAYS, connections=connections, stream=True
    )


def over(api: str, connections: int) -> Scenario:
    """Streams over another API than chat completions: "response" or "message"."""
    title = f"The same over the {api.capitalize()}s API, {connections} at a time"
    return Scenario(
        key=f"{api}-{connections}",
        title=title,
        targets=("toolway",),
        connections=connections,
        stream=True,
        path={"response": RESPONSES, "message": MESSAGES}[api],
    )


def tool_round(connections: int, *, stream: bool) -> Scenario:
    kind = "Streamed" if stream else "Whole"
    return Scenario(
        key=f"tool-{kind.lower()}-{connections}",
        title=f"{kind} answers after one tool call, {connections} at a time",
        targets=("toolway",),
        connections=connections,
        stream=stream,
        chunks=20,
        calls=1,
    )


SCENARIOS = (
    whole(1),
    whole(16),
    streamed(1),
    streamed(16),
    over("response", 1),
    over("response", 16),
    over("message", 1),
    over("message", 16),
    Scenario(
        key="first-byte",
        title="Time to the first byte: 10 chunks, 1 ms apart, one stream",
        targets=RELAYS,
        stream=True,
        chunks=10,
        pause_us=1000,
    ),
    tool_round(1, stream=True),
    tool_round(16, stream=True),
    tool_round(1, stream=False),
    tool_round(16, stream=False),
    Scenario(
        key="part-call",
        title="A part of the tool round: the model asks for the call, streamed",
        targets=("direct",),
        stream=True,
        calls=1,
        runs_tools=False,
    ),
    Scenario(
        key="part-tool",
        title="A part of the tool round: the tool's own answer",
        targets=("direct",),
        path="/op_0",
    ),
    Scenario(
        key="part-answer",
        title="A part of the tool round: the model's answer of 20 chunks, streamed",
        targets=("direct",),
        stream=True,
        chunks=20,
    ),
    Scenario(
        key="tools-1",
        title="Whole answers with 0, 20 and 200 tools added, and 200 searched, one at a time",
        targets=TOOLWAYS,
    ),
    Scenario(
        key="tools-16",
        title="Whole answers with 0, 20 and 200 tools added, and 200 searched, 16 at a time",
        targets=TOOLWAYS,
        connections=16,
    ),
    passed_on(20),
    passed_on(200),
    Scenario(
        key="workers-32",
        title="Whole answers with one worker and with two, 32 at a time",
        targets=("toolway", "toolway-2w"),
        connections=32,
    ),
    Scenario(
        key="workers-stream-32",
        title="Streamed answers with one worker and with two, 32 at a time",
        targets=("toolway", "toolway-2w"),
        connections=32,
        stream=True,
    ),
)
