"""The names under which values are stored: whoever changes one loses what earlier versions stored under it."""

from __future__ import annotations

import importlib
import pkgutil

import toolway
from toolway.stores import EntryKind

STORED = {
    ("answer", 2),
    ("approval", 1),
    ("approval answered", 1),
    ("approval awaited", 1),
    ("approval claim", 1),
    ("approval link", 1),
    ("approval turn", 1),
    ("approval used", 1),
    ("approved result", 1),
    ("attempt", 1),
    ("branch", 1),
    ("cancel", 1),
    ("chunk", 1),
    ("console line", 1),
    ("console record", 1),
    ("console.ended", 1),
    ("events", 1),
    ("found functions", 1),
    ("found tools", 1),
    ("grant", 1),
    ("interrupted", 1),
    ("key used", 1),
    ("lease", 1),
    ("renewal of a grant", 1),
    ("response", 3),
    ("result", 1),
    ("slot", 1),
    ("tool vector", 1),
    ("turn", 1),
    ("verdict", 1),
}
"""Every kind and the version of its form."""


def test_what_is_stored_keeps_its_names_and_versions():
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(toolway.__path__, "toolway.")
        if not module.name.startswith(("toolway.demo", "toolway.__main__"))
    ]
    kinds = [value for module in modules for value in vars(module).values() if isinstance(value, EntryKind)]
    assert {(kind.name, kind.version) for kind in kinds} == STORED
