"""Results in the loop: budgets, reading on, images, and a conversation that becomes too long."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.unit.engine.scripted_model import Behaviour, InMemorySource, ScriptedModel, call, run_loop, says
from toolway.conversation.events import Chunks, Emit
from toolway.conversation.message import ChatRequest, Message
from toolway.engine.tool_results import Budget, fill_results
from toolway.errors import UpstreamError, UpstreamStatus
from toolway.types import JSON, Image, ToolResult
from toolway.upstream.model_info import ModelInfo

TEXT = "\n".join(f"line {n}" for n in range(1000))
PNG = Image(media_type="image/png", data="aGVsbG8=")


def returns(text: str = "Here.", *images: Image) -> Behaviour:
    async def behaviour(_: JSON) -> ToolResult:
        return ToolResult(text=text, images=images)

    return behaviour


def tool_names(request: JSON) -> list[str]:
    return [tool["function"]["name"] for tool in request.get("tools", ())]


def results_in(request: JSON) -> list[str]:
    return [m["content"] for m in request["messages"] if m["role"] == "tool"]


async def test_the_models_context_sets_the_budget():
    model = ScriptedModel(says(None, call("long")), says("Done"))
    budget = Budget(result=60_000, round=60_000)
    await run_loop(
        model, InMemorySource(long=returns("x" * 50_000)), budget=budget, info=ModelInfo(context=4096)
    )
    assert 3072 < len(results_in(model.requests[1])[0]) < 3072 + 250


async def test_the_results_of_one_round_share_a_budget():
    source = InMemorySource(long=returns("x" * 5000), short=returns("brief"))
    model = ScriptedModel(
        says(None, call("long", id="1"), call("short", id="2"), call("long", id="3")), says("Done")
    )
    await run_loop(model, source, budget=Budget(result=5000, round=2005))
    assert [content.count("x") for content in results_in(model.requests[1])] == [1000, 0, 1000]


async def test_from_the_first_cut_on_the_rest_can_be_read():
    model = ScriptedModel(says(None, call("long")), says(None, call("long", id="2")), says("Done"))
    await run_loop(model, InMemorySource(long=returns(TEXT), other=returns()))
    offered = [tool_names(request) for request in model.requests]
    assert offered == [["long", "other"], *[["long", "other", "toolway_read_more"]] * 2]
    first, second = results_in(model.requests[2])
    assert first == second, "the same result is cut to the same bytes"


async def read_on(**arguments: Any) -> str:
    """What the model reads when it asks for more of TEXT."""
    asked: list[JSON] = []

    class Curious(ScriptedModel):
        async def answer(
            self, request: ChatRequest, emit: Emit, is_clients: Callable[[str], bool]
        ) -> Message:
            asked.append(body := request.body())
            if len(asked) == 1:
                return says(None, call("long"))
            if len(asked) == 2:
                found = re.search(r'"id": "(\w+)"', results_in(body)[0])
                assert found
                text = orjson.dumps({"id": found[1], **arguments}).decode()
                return says(None, call("toolway_read_more", text, id="2"))
            return says("Done")

    await run_loop(Curious(), InMemorySource(long=returns(TEXT)))
    return results_in(asked[2])[1]


async def test_reading_on_from_an_offset():
    assert await read_on(offset=7000, length=20) == (
        f"[characters 7,000 to 7,020 of {len(TEXT):,}]\n{TEXT[7000:7020]}\n[go on with offset 7020]"
    )
    assert (await read_on(offset=10**9)).endswith("[the end]")
    assert len(await read_on(offset=0, length=10**9)) < 1000


async def test_searching_what_was_cut():
    answer = await read_on(search="LINE 777")
    assert answer.startswith(f"Found in 1 place of {len(TEXT):,} characters")
    assert f"[offset {TEXT.index('line 777')}]" in answer
    assert "nowhere" in await read_on(search="elephant")


async def test_wrong_arguments_and_unknown_ids_are_errors_for_the_model():
    assert (await read_on(offset="x")).startswith("Error: The arguments do not fit")
    assert (await read_on(id="0000")).startswith("Error: nothing is kept under the id '0000'")


async def test_without_keeping_the_model_is_told_to_ask_for_less():
    model = ScriptedModel(says(None, call("long")), says("Done"))
    await run_loop(model, InMemorySource(long=returns(TEXT)), keeps=False)
    assert "ask for less at once" in results_in(model.requests[1])[0]
    assert "toolway_read_more" not in results_in(model.requests[1])[0]


async def test_a_client_that_has_a_tool_of_that_name_keeps_it():
    theirs = {"type": "function", "function": {"name": "toolway_read_more", "parameters": {}}}
    model = ScriptedModel(says(None, call("long")), says("Done"))
    await run_loop(model, InMemorySource(long=returns(TEXT)), tools=[theirs])
    assert tool_names(model.requests[1]) == ["toolway_read_more", "long"]


async def test_images_follow_in_a_user_message_for_a_model_that_sees():
    model = ScriptedModel(says(None, call("shoot", id="1"), call("echo", id="2")), says("Done"))
    await run_loop(model, InMemorySource(shoot=returns("Taken.", PNG), echo=returns()), sees=True)
    assert [m["role"] for m in model.requests[1]["messages"]] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert model.requests[1]["messages"][-1]["content"] == [
        {"type": "text", "text": "Images returned by shoot:"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}},
    ]


@pytest.mark.parametrize(
    ("image", "sees", "info", "why"),
    [
        (PNG, False, ModelInfo(sees=True), "takes no images"),
        (PNG, None, ModelInfo(), "takes no images"),
        (Image(media_type="image/tiff", data="aGVs"), True, ModelInfo(), "do not take this kind"),
        (Image(media_type="image/png", data="a" * 4000), True, ModelInfo(), "too large"),
    ],
)
async def test_an_image_that_is_not_shown_is_noted(
    image: Image, sees: bool | None, info: ModelInfo, why: str
):
    model = ScriptedModel(says(None, call("shoot")), says("Done"))
    await run_loop(model, InMemorySource(shoot=returns("Taken.", image)), sees=sees, info=info)
    assert why in results_in(model.requests[1])[0]
    assert model.requests[1]["messages"][-1]["role"] == "tool"


async def test_the_model_server_says_whether_its_model_sees():
    model = ScriptedModel(says(None, call("shoot")), says("Done"))
    await run_loop(model, InMemorySource(shoot=returns("Taken.", PNG)), info=ModelInfo(sees=True))
    assert model.requests[1]["messages"][-1]["role"] == "user"


class Narrow(ScriptedModel):
    """A model server that refuses a conversation of more than `most` characters, `speaks` before that if asked to."""

    most = 0
    speaks = False
    refused = 0

    async def answer(self, request: ChatRequest, emit: Emit, is_clients: Callable[[str], bool]) -> Message:
        if len(orjson.dumps(request.messages)) > self.most:
            self.refused += 1
            if self.speaks:
                await emit(Chunks([("I", None)]))
            raise UpstreamStatus(400, [], b'{"error": {"code": "context_length_exceeded"}}')
        return await super().answer(request, emit, is_clients)


async def test_a_conversation_that_is_too_long_goes_on_with_shorter_results():
    model = Narrow(says(None, call("long")), says(None, call("long", id="2")), says("Done"))
    model.most = 9000
    outcome, _ = await run_loop(
        model, InMemorySource(long=returns(TEXT)), budget=Budget(result=6000, round=6000)
    )
    assert outcome.message.fields["content"] == "Done"
    assert model.refused == 1
    first, second = results_in(model.requests[2])
    assert len(first) < 1000 < 5000 < len(second), "the oldest gives way"
    assert '{"id": "' in first, "and can still be read"


async def test_if_that_does_not_help_the_client_gets_the_refusal():
    model = Narrow(says(None, call("long")))
    model.most = 100
    with pytest.raises(UpstreamStatus):
        await run_loop(model, InMemorySource(long=returns(TEXT)))
    assert model.refused == 3, "asked once more for each thing that can give way: results, then definitions"


async def test_what_was_said_is_not_said_twice():
    model = Narrow(says(None, call("long")))
    model.most, model.speaks = 500, True
    with pytest.raises(UpstreamError):
        await run_loop(model, InMemorySource(long=returns(TEXT)))
    assert model.refused == 1


async def test_the_clients_own_results_are_never_shortened():
    model = Narrow(says(None, call("long")), says("Done"))
    model.most = 8000
    theirs = {"role": "tool", "tool_call_id": "c", "content": "t" * 6000}
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function"}]},
        theirs,
    ]
    await run_loop(
        model, InMemorySource(long=returns(TEXT)), messages=history, budget=Budget(result=4000, round=4000)
    )
    assert theirs in model.requests[1]["messages"]


def test_images_of_results_that_were_waited_for_stand_behind_all_results_of_their_turn():
    def result(number: int, text: str = "") -> JSON:
        return {"role": "tool", "tool_call_id": str(number), "content": text}

    image: JSON = {"role": "user", "content": [{"type": "image_url"}]}
    messages = [{"role": "assistant"}, result(1), result(2, "told"), {"role": "user", "content": "?"}]
    filled = fill_results(messages, [result(1, "found"), image])
    assert filled == [messages[0], result(1, "found"), messages[2], image, messages[3]]


def test_images_stand_at_the_end_where_no_result_was_waited_for():
    image: JSON = {"role": "user", "content": [{"type": "image_url"}]}
    question: JSON = {"role": "user", "content": "?"}
    assert fill_results([question], [image]) == [question, image]
