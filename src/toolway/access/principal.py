"""Makes principals of what the configuration says of keys, groups and those who come with a token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from toolway.dialects import DIALECTS
from toolway.settings.access import AccessConfig, GroupConfig, KeyConfig, Quotas, Rights
from toolway.types import Choice, Principal, Quota

A_DAY = 86_400
ROUTES = frozenset({*(dialect.name for dialect in DIALECTS), "passthrough"})
"""What a key may ask that says nothing about it: the console shows what everybody does, and must be named."""

_LIMITS = ("max_rounds", "max_calls", "max_seconds")


def principal_of_key(key: KeyConfig, config: AccessConfig) -> Principal:
    """Who has this key. Its group's rights hold, and its own: each may only narrow the other."""
    return _principal("key", key.name, config.group(key.group), key)


def principal_of_person(issuer: str, subject: str, name: str, group: GroupConfig) -> Principal:
    """Whom the provider `issuer` knows as `subject`."""
    return _principal("jwt", f"{issuer}\0{subject}", group, name=name)


def _principal(
    kind: str, identity: str, group: GroupConfig | None, key: KeyConfig | None = None, name: str = ""
) -> Principal:
    rights: list[Rights] = [one for one in (group, key) if one]
    account = digest_of(kind, identity)
    quotas = [quota for one in rights for quota in _quotas(one, account)]
    if group and group.shared:
        quotas += _quotas(group.shared, digest_of("group", group.name))
    return Principal(
        id=account,
        name=name or identity,
        group=group.name if group else "",
        routes=_routes(rights),
        selection=tuple((_choice(one),) for one in rights if one.tools is not None or one.exclude),
        models=[one.models for one in rights if one.models is not None],
        limits=_lowest(rights),
        tool_search=next((one.tool_search for one in reversed(rights) if one.tool_search), None),
        quotas=_tightest(quotas),
    )


def digest_of(kind: str, name: str) -> str:
    """What stands for a name where it is kept or counted; those of different kinds never meet."""
    return hashlib.sha256(f"{kind}\0{name}".encode(errors="surrogatepass")).hexdigest()[:24]


def _choice(rights: Rights) -> Choice:
    return Choice(patterns=("*",) if rights.tools is None else rights.tools, excluded=rights.exclude)


def _routes(rights: Sequence[Rights]) -> frozenset[str]:
    routes = [frozenset[str](one.routes) for one in rights if one.routes is not None]
    return frozenset.intersection(*routes) if routes else ROUTES


def _lowest(rights: Sequence[Rights]) -> dict[str, float]:
    bounds = {
        name: [value for one in rights if (value := getattr(one, name)) is not None] for name in _LIMITS
    }
    return {name: min(values) for name, values in bounds.items() if values}


def _quotas(limits: Quotas, account: str) -> Iterator[Quota]:
    for unit in ("requests", "tool_calls"):
        if rate := getattr(limits, unit):
            yield Quota(account=account, unit=unit, most=rate.most, seconds=rate.seconds)
        if most := getattr(limits, f"concurrent_{unit}"):
            yield Quota(account=account, unit=unit, most=most)
    if limits.tokens_per_day:
        yield Quota(account=account, unit="tokens", most=limits.tokens_per_day, seconds=A_DAY)


def _tightest(quotas: Sequence[Quota]) -> list[Quota]:
    """Of quotas that count the same, the smallest: to count twice what one count says would be wrong."""
    found: dict[tuple[str, str, int], Quota] = {}
    for quota in quotas:
        place = (quota.account, quota.unit, quota.seconds)
        if place not in found or quota.most < found[place].most:
            found[place] = quota
    return list(found.values())
