"""The options of one request (its tools, limits and profile), whichever way its dialect states them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from toolway.conversation.message import ChatRequest
from toolway.engine.limits import Limits
from toolway.errors import InvalidRequest, NotFound
from toolway.settings.profiles import ModelAlias, Profile, SearchMode, resolve_alias, split_model
from toolway.settings.settings import Settings
from toolway.types import JSON, Choice, Principal, Selection, record


@record
class RequestOptions:
    """Which tools may be offered, and limits; None asks for nothing, and no limit is ever above the settings'."""

    selection: Selection = ()
    tool_search: SearchMode | None = None
    """Whether the tools are searched; None: as the profile or the setting says."""
    always: Selection = ()
    """Tools that are offered though others are searched."""
    max_rounds: float | None = None
    max_calls: float | None = None
    max_seconds: float | None = None

    def narrowed(self, *choices: Sequence[Choice]) -> RequestOptions:
        """The same options with fewer tools: each of them must be taken by one of each `choices` too."""
        return replace(self, selection=[*self.selection, *choices]) if choices else self

    def lowered(self, limits: Limits) -> Limits:
        """The limits of this request."""
        if self.max_rounds is self.max_calls is self.max_seconds is None:
            return limits
        asked = {name: getattr(self, name) for name in ("max_rounds", "max_calls", "max_seconds")}
        return lowered(limits, {name: value for name, value in asked.items() if value is not None})


def lowered(limits: Limits, values: Mapping[str, float]) -> Limits:
    """The limits with those of `values` that are less."""
    lower: dict[str, Any] = {}
    for name, value in values.items():
        limit = getattr(limits, name)
        lower[name] = min(limit, type(limit)(value))
    return replace(limits, **lower) if lower else limits


def limits_of(settings: Settings) -> Limits:
    """What a request may use that asks for no less."""
    loop = settings.loop
    return Limits(
        max_rounds=loop.max_rounds,
        max_calls=loop.max_calls,
        max_seconds=loop.max_seconds,
        max_repeats=loop.max_repeats,
        max_similar=loop.max_similar,
    )


def read_profile(
    request: ChatRequest,
    options: RequestOptions,
    profiles: Sequence[Profile],
    aliases: Sequence[ModelAlias] = (),
) -> tuple[ChatRequest, RequestOptions]:
    """The request for the model that its name stands for, and the options with those of the profile behind the name."""
    if not profiles and not aliases:
        return request, options
    named = request.options.get("model")
    bare, profile = split_model(named, profiles)
    _check_fallbacks(request.options.get("models"), profiles)
    model = resolve_alias(bare, aliases)
    if model != named:
        request = request.with_options(model=model)
    if profile:
        options = options.narrowed([Choice(patterns=profile.patterns)])
        options = replace(options, tool_search=options.tool_search or profile.tool_search)
    return request, options


def _check_fallbacks(models: Any, profiles: Sequence[Profile]) -> None:
    """Raise InvalidRequest for a profile at one of the `models` that a server may choose from; it would not hold."""
    for name in models if isinstance(models, list) else ():
        if split_model(name, profiles)[1]:
            raise InvalidRequest(
                f"{name[:100]!r} in models has a profile, which only the name in model can have.",
                param="models",
            )


def check_models(principal: Principal, body: Mapping[str, Any]) -> None:
    """Raise NotFound for a request in which there is a model that its principal may not use; in `models`, too."""
    if principal.models:
        more = body.get("models")
        for name in (body.get("model"), *(more if isinstance(more, list) else [more] if more else [])):
            if not principal.may_use_model(name):
                raise no_such_model(name)


def no_such_model(name: object) -> NotFound:
    """What OpenAI answers for a model that is not there, or is not for this key."""
    if name is None:
        return NotFound("This key must name one of its models.", param="model", code="model_not_found")
    shown = str(name)[:100]
    message = f"The model {shown!r} does not exist, or this key may not use it."
    return NotFound(message, param="model", code="model_not_found")


def choices_of(entries: Sequence[JSON], servers: Iterable[str]) -> list[Choice]:
    """The tools that entries of the type mcp name. Raises InvalidRequest for a label that is none of `servers`."""
    labels = set(servers)
    return [_choice(entry, labels) for entry in entries]


def with_deferred(options: RequestOptions, entries: Sequence[JSON], servers: Iterable[str]) -> RequestOptions:
    """The options of a request whose entries of the type mcp may have OpenAI's `defer_loading`.

    The tools of those that have it are searched, those of the others are offered.
    """
    deferred = [entry.get("defer_loading") is True for entry in entries]
    if not any(deferred) or options.tool_search:
        return options
    loaded = [entry for entry, is_deferred in zip(entries, deferred, strict=True) if not is_deferred]
    return replace(options, tool_search="on", always=[choices_of(loaded, servers)] if loaded else ())


def _choice(entry: JSON, servers: set[str]) -> Choice:
    """`{"type": "mcp", "server_label", "allowed_tools"}` of OpenAI's Responses API; the names may be in an object."""
    label = entry.get("server_label")
    if label not in servers:
        known = ", ".join(sorted(servers)) or "none"
        raise InvalidRequest(
            f"There is no tool server with the label {str(label)[:100]!r} here; those that are: {known}.",
            param="tools",
        )
    allowed = entry.get("allowed_tools")
    if isinstance(allowed, dict):
        allowed = allowed.get("tool_names")
    if allowed is None:
        return Choice(server=label)
    if not isinstance(allowed, list):
        raise InvalidRequest("allowed_tools must be a list of names.", param="tools")
    return Choice(server=label, names=frozenset(name for name in allowed if isinstance(name, str)))
