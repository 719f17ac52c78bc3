"""The demo's client: the official openai package, and the questions that it asks Toolway."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Event

import openai
from openai.types.chat import ChatCompletionChunk

from toolway.demo.child import DemoError
from toolway.demo.model import ALIAS
from toolway.demo.screen import Screen

ANSWER_SECONDS = 300.0
HEARD_SECONDS = 2.0
MAX_TOKENS = 200


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, the tool server that the model must call for it, and what of its result the answer holds."""

    text: str
    server: str
    expected: str


QUESTIONS = (
    Question(text="What is the weather in Paris?", server="weather", expected="14 degrees"),
    Question(text="Add 1234 and 4321", server="calculator", expected="5555"),
)
TEMPERATURES = (0.0, 0.5)
"""Of the first try and of the second: at 0 the same question would only get the same answer."""


def open_client(base_url: str) -> openai.OpenAI:
    """The client as anybody would make it, to be closed after use."""
    # A proxy set in the environment is not for this machine's own addresses.
    direct = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(
        base_url=base_url, api_key="none", http_client=direct, timeout=ANSWER_SECONDS, max_retries=0
    )


class Conversation:
    """Questions of a client. `served` has an event for each tool server, set when it was called."""

    def __init__(self, client: openai.OpenAI, screen: Screen, served: Mapping[str, Event]) -> None:
        self._client = client
        self._screen = screen
        self._served = served

    def ask(self, question: Question) -> None:
        """Ask until the tool server was really called and the answer tells its result, twice at most.

        Raises:
            DemoError: Both answers were of no use, or the question got an error.
        """
        for temperature in TEMPERATURES:
            self._screen.say()
            self._screen.labelled("Question", question.text, text_style="bold")
            self._served[question.server].clear()
            answer = self._listen(question, temperature)
            trouble = self._trouble(question, answer)
            if trouble is None:
                return
            self._screen.say(f"  The model {trouble}.", "yellow")
        raise DemoError(f"The model {trouble}, twice.")

    def _trouble(self, question: Question, answer: str) -> str | None:
        if not self._served[question.server].wait(HEARD_SECONDS):
            return f"did not call the {question.server}"
        if not answer.strip():
            return "gave no answer"
        if question.expected not in answer:
            return f"did not say what the {question.server} had found"
        return None

    def _listen(self, question: Question, temperature: float) -> str:
        """One streamed request, shown while it runs; the answer."""
        begun = time.perf_counter()
        pieces: list[str] = []
        first = 0.0
        with ExitStack() as waiting:
            waiting.enter_context(self._screen.waiting("the model is at work"))
            for piece in self._pieces(question, temperature):
                waiting.close()
                first = first or time.perf_counter() - begun
                pieces.append(piece)
                self._screen.answer_piece(piece)
        self._screen.answer_ends()
        seconds = time.perf_counter() - begun
        self._screen.labelled(
            "", f"first word after {first:.1f} s, complete after {seconds:.1f} s", "", "dim"
        )
        return "".join(pieces)

    def _pieces(self, question: Question, temperature: float) -> Iterator[str]:
        try:
            with self._client.chat.completions.create(
                model=ALIAS,
                messages=[{"role": "user", "content": question.text}],
                temperature=temperature,
                max_tokens=MAX_TOKENS,
                stream=True,
            ) as stream:
                yield from filter(None, map(_text, stream))
        except openai.OpenAIError as error:
            raise DemoError(f"The question got an error: {error}") from error


def _text(chunk: ChatCompletionChunk) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""
