"""The architecture holds: a package imports only what the table allows, and no two modules import each other."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support.paths import ROOT, SOURCE

MODULES = sorted(path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.py"))
ANY = frozenset({"types", "errors", "dialects"})
"""What every package may import: the shared nouns, the error tree and the names of the dialects."""

ROW = re.compile(r"^\| \[`(\w+)(?:/|\.py)`\]\(\S+\) \| (.+?) \| (.*?) ?\|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs" / "architecture.md").read_text())
ALLOWED = {name: frozenset(re.findall(r"`(\w+)`", allowed)) for name, _, allowed in ROWS}
"""From the ground up: each package and what it may import besides itself, as docs/architecture.md declares it."""

WITH_HTTP_SERVER = {"server", "demo"} | {name for name, others in ALLOWED.items() if "server" in others}
"""Packages that may know ASGI and who serves it: the server, whoever stands on it, and the servers of the demo."""

SDK_INTERNALS = "tools/mcp/sdk_internals"
"""The one module that has private names of the MCP SDK."""

APART = {"api": "dialect", "tools": "kind of tool source"}
"""Packages whose inner packages do not know each other."""


def package_of(module: str) -> str:
    return module.split("/", maxsplit=1)[0]


def imports_of(module: str) -> set[str]:
    """The modules of Toolway that one imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} has a relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "toolway":
            base = "/".join((node.module or "").split(".")[1:])
            for alias in node.names:
                inner = f"{base}/{alias.name}".strip("/")
                found.add(inner if inner in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {
                "/".join(name.name.split(".")[1:]) for name in node.names if name.name.startswith("toolway.")
            }
    return {f"{name}/__init__" if f"{name}/__init__" in MODULES else name for name in found if name}


INNER = [module for module in MODULES if module not in ("__init__", "__main__")]


@pytest.mark.parametrize("module", INNER)
def test_a_module_imports_only_what_its_package_may(module: str):
    package = package_of(module)
    assert package in ALLOWED, f"the package {package} has no line in the table of docs/architecture.md"
    for name in imports_of(module):
        other = package_of(name)
        assert other in ALLOWED[package] | ANY | {package}, (
            f"{module} imports {name}, but {package} may not import {other}: allowed are "
            f"{', '.join(sorted(ALLOWED[package] | ANY))} (docs/architecture.md). "
            "Move what is shared down, or hand it in."
        )


@pytest.mark.parametrize("module", [m for m in INNER if package_of(m) not in WITH_HTTP_SERVER])
def test_below_the_server_nothing_knows_of_asgi(module: str):
    found = {name.split(".")[0] for name in foreign_imports_of(module)} & {"starlette", "uvicorn"}
    assert not found, f"{module} imports {found}: what a scope says is read in server/ or api/"


@pytest.mark.parametrize("module", [m for m in INNER if m != SDK_INTERNALS])
def test_private_names_of_the_mcp_sdk_are_imported_in_one_module(module: str):
    found = {name for name in foreign_imports_of(module) if is_private(name)}
    assert not found, f"{module} imports {found}: private names of the SDK stand in {SDK_INTERNALS}.py"


@pytest.mark.parametrize("module", [m for m in INNER if "mcp/" in m and m != SDK_INTERNALS])
def test_private_attributes_of_the_mcp_sdk_are_read_in_one_module(module: str):
    """Where the SDK is used, a private attribute of something else than `self` is the SDK's, or another stranger's."""
    tree = ast.parse((SOURCE / f"{module}.py").read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_others_private(node)]
    assert not [ast.unparse(node) for node in found if node.attr not in OF_THE_LIBRARY], module


OF_THE_LIBRARY = {"_value2member_map_"}
"""Private by its name alone: Python documents it."""


def is_others_private(node: ast.Attribute) -> bool:
    """Whether a private attribute is of something that is neither `self` nor `cls`."""
    is_private = node.attr.startswith("_") and not node.attr.startswith("__")
    return is_private and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))


def test_the_module_for_private_names_of_the_mcp_sdk_has_some():
    assert any(map(is_private, foreign_imports_of(SDK_INTERNALS)))


def is_private(name: str) -> bool:
    """Whether a dotted name is one of the MCP SDK's, and private there."""
    package, *rest = name.split(".")
    return package in ("mcp", "mcp_types") and any(part.startswith("_") for part in rest)


def foreign_imports_of(module: str) -> set[str]:
    """The dotted names, of whatever package, that a module imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_table_points_down():
    order = list(ALLOWED)
    for package, allowed in ALLOWED.items():
        assert all(order.index(other) < order.index(package) for other in allowed), package


def test_there_is_no_import_cycle():
    graph = {module: imports_of(module) for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in MODULES if package_of(m) in APART and m.count("/") > 1])
def test_dialects_and_kinds_of_sources_do_not_know_each_other(module: str):
    package, inner, *_ = module.split("/")
    for name in imports_of(module):
        parts = name.split("/")
        if parts[0] == package and len(parts) > 2:
            assert parts[1] == inner, f"{module} imports {name}: one {APART[package]} knows another"


@pytest.mark.parametrize("module", MODULES)
def test_each_package_says_in_a_line_what_it_is_for(module: str):
    if module.endswith("/__init__"):
        assert first_line(module), f"{module} has no docstring"


TABLES = {
    module: re.findall(r"^\| `(\w+)` +\|", (SOURCE / f"{module}.py").read_text(), re.MULTILINE)
    for module in MODULES
    if module.endswith("/__init__")
}
"""The modules that the docstring of a package has a row for."""


@pytest.mark.parametrize("package", [name for name, rows in TABLES.items() if rows])
def test_a_package_that_lists_its_modules_lists_all_of_them(package: str):
    folder = (SOURCE / f"{package}.py").parent
    inner = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert sorted(TABLES[package]) == sorted(inner - {"__init__"})


def test_packages_list_their_modules_where_a_name_does_not_tell():
    assert all(TABLES[f"{package}/__init__"] for package in ("wire", "engine/history"))


@pytest.mark.parametrize(("package", "purpose", "_"), ROWS)
def test_the_table_repeats_the_purposes_of_the_packages(package: str, purpose: str, _: str):
    module = package if package in MODULES else f"{package}/__init__"
    assert first_line(module) == purpose


def test_each_entry_of_the_source_has_its_row_and_they_fit_on_a_page():
    entries = {package_of(module) for module in MODULES} - {"__init__", "__main__"}
    assert entries == set(ALLOWED)
    assert len(entries) <= 20


def first_line(module: str) -> str:
    said = ast.get_docstring(ast.parse((SOURCE / f"{module}.py").read_text()))
    return said.partition("\n")[0] if said else ""


@pytest.mark.parametrize("module", MODULES)
def test_no_module_passes_600_lines(module: str):
    assert len((SOURCE / f"{module}.py").read_text().splitlines()) <= 600
