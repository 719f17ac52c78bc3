"""The table of dialects: what is read from it, and that it is whole."""

from __future__ import annotations

from typing import get_args

import pytest

from tests.support.paths import ROOT
from toolway.dialects import DIALECTS, Dialect, DialectName
from toolway.server.admission import family_of
from toolway.server.envelopes import ENVELOPES, envelope_of, plain_path


def test_each_name_of_a_dialect_has_its_line():
    assert tuple(dialect.name for dialect in DIALECTS) == get_args(DialectName)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_routes_of_a_dialect_have_its_name_and_its_envelope(dialect: Dialect):
    for path in [*dialect.paths, *(f"{path}/below" for path in dialect.paths)]:
        assert family_of(path) == dialect.name
        assert envelope_of({"type": "http", "path": path, "headers": []}) is ENVELOPES[dialect.errors]


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d.asks_models], ids=lambda dialect: dialect.name)
def test_a_dialect_of_models_is_found_without_v1(dialect: Dialect):
    assert plain_path(dialect.path.removeprefix("/v1")) == dialect.path


@pytest.mark.parametrize("key", ["routes", "dialects"])
def test_the_names_of_dialects_are_told_where_rules_and_keys_are_explained(key: str):
    lines = (ROOT / "docs" / "access.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{key}` |"))
    assert [name for name in get_args(DialectName) if f"`{name}`" not in row] == []
