"""The packages of the MCP SDK without what their `__init__` imports, so that a module of it costs itself alone.

`mcp` and `mcp.client` import the SDK's server for whoever wants anything of them: 18 MB, with its cryptography. Whoever
asks such a package itself for a name has its `__init__` run first, and notices nothing.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any

PACKAGES = ("mcp", "mcp.client")

_running = RLock()
_begun: set[ModuleType] = set()


class _BarePackage(ModuleType):
    """A package whose `__init__` runs when it is asked for a name that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name == "__all__" or not name.startswith("__"):
            with _running:
                self._run()
                if name in vars(self):
                    return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def _run(self) -> None:
        if self not in _begun and self.__spec__ and self.__spec__.loader:
            _begun.add(self)
            self.__spec__.loader.exec_module(self)


def use_bare_packages() -> None:
    """Put them where modules are looked for, unless the packages are there already."""
    for name in PACKAGES:
        if name not in sys.modules and (spec := find_spec(name)):
            package = module_from_spec(spec)
            package.__class__ = _BarePackage
            sys.modules[name] = package
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, package)
