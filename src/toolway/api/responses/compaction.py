"""What can be asked about a conversation instead of going on with it: its size, and a summary in its place."""

from __future__ import annotations

import time
from dataclasses import replace

from toolway.api.responses.items.fields import text_in
from toolway.api.responses.items.input_items import sealed
from toolway.api.responses.items.response_object import read_usage
from toolway.api.responses.preparation import Draft
from toolway.api.responses.records import new_id, with_ids
from toolway.errors import InvalidRequest, UpstreamError
from toolway.types import JSON

SUMMARISE = (
    "Write a summary of the conversation so far, for somebody who will go on with it without having read it: what is "
    "wanted, what was found out and done, names, numbers and decisions that matter, and what is still open. "
    "Write the summary alone."
)

_ANSWER_OPTIONS = (
    "response_format",
    "logprobs",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
)


async def count_tokens(draft: Draft) -> JSON:
    """How many tokens the request's input has, our tools included: the model server counts them.

    It is asked for an answer of one token, so it also reads the input into its cache. Raises UpstreamError.
    """
    conversation = draft.conversation
    request = conversation.tools.put_into(conversation.request)
    outcome = await conversation.ask(request.with_options(max_tokens=1))
    if not outcome.usage:
        raise UpstreamError("The model server does not say how many tokens it read.")
    usage = read_usage(outcome.usage) or {}
    return {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}


async def compact(draft: Draft) -> JSON:
    """The conversation in a few items: what users and developers said, and a summary of all.

    Raises InvalidRequest without a model, which the published schema wants here, and UpstreamError.
    """
    request = draft.conversation.request
    if "model" not in request.options:
        raise InvalidRequest(
            "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
        )
    messages = [*request.messages, {"role": "user", "content": SUMMARISE}]
    outcome = await draft.conversation.ask(replace(request.without(*_ANSWER_OPTIONS), messages=messages))
    summary = text_in(outcome.said.get("content")).strip()
    if not summary:
        raise UpstreamError("The model wrote no summary.")
    identity = new_id()
    item = {
        "id": f"cmp_{identity.removeprefix('resp_')}",
        "type": "compaction",
        "encrypted_content": sealed(summary),
    }
    return {
        "id": identity,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*_said_by_people(draft, identity), item],
        "usage": read_usage(outcome.usage or {"total_tokens": 0}),
    }


def _said_by_people(draft: Draft, identity: str) -> list[JSON]:
    spoken = [item for item in draft.asked.items if item.get("role") in ("user", "developer", "system")]
    return with_ids(spoken, identity)
