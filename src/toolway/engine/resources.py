"""What all conversations of one engine share."""

from __future__ import annotations

from dataclasses import dataclass

from toolway.access.policy import Policy
from toolway.access.quotas import Meter
from toolway.engine.model_target import ModelTarget
from toolway.engine.search_policy import SearchPolicy
from toolway.settings.settings import Settings
from toolway.stores import Store
from toolway.upstream.client import Upstream


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The model server, the store, and what is known and wanted of them."""

    upstream: Upstream
    store: Store
    settings: Settings
    target: ModelTarget
    search: SearchPolicy
    meter: Meter
    policy: Policy
