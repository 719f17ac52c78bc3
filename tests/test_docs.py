"""The documents are true: what they link to and name is there, and what is there is named."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "tests" / "README.md"], key=str)
HISTORY = {"CHANGELOG.md"}
"""What was true when it was written."""

LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
PATH = re.compile(r"`((?:src|tests|docs|bench)/[\w./-]+)`")
MODULE = re.compile(r"`([\w/]+\.py)`")
FILES = [path.as_posix() for path in (*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py"))]
SUPPORT = sorted(
    path.relative_to(ROOT / "tests").as_posix()
    for path in ROOT.glob("tests/**/*.py")
    if not path.name.startswith(("test_", "__"))
)
APART = ("compat/clients/scripts/", "unit/tools/mcp/servers/")
"""Programs that are told of by their folder."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_links_to_is_there(document):
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_paths_that_a_document_names_are_there(document):
    for path in PATH.findall(document.read_text()) if document.name not in HISTORY else ():
        assert (ROOT / path).exists() or "/." in path, f"{document.name} names {path}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_modules_that_a_document_names_are_there(document):
    for name in MODULE.findall(document.read_text()) if document.name not in HISTORY else ():
        assert any(path.endswith(f"/{name}") for path in FILES), f"{document.name} names {name}"


@pytest.mark.parametrize("module", [name for name in SUPPORT if not name.startswith(APART)])
def test_each_module_that_tests_share_is_in_the_index(module: str):
    index = (ROOT / "tests" / "README.md").read_text()
    if module in ("conftest.py", "integration/console/conftest.py", "fuzz_long.py"):
        return
    name = module.removeprefix("support/")
    assert f"`{name}`" in index, f"tests/README.md does not tell what {module} is for"


@pytest.mark.parametrize("place", ["Makefile", "bench/run.py", "CONTRIBUTING.md", "docs/performance.md"])
def test_what_make_bench_measures_is_said_everywhere_in_the_same_words(place: str):
    text = (ROOT / place).read_text()
    assert (
        "Toolway beside nginx, HAProxy, Envoy and a bare relay, in turn before one mock model server" in text
    )


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
ADDED = re.findall(
    r"^\| \[[^]]+\]\((\S+)\) \| `(.+?)` \| .+ \|$",
    ARCHITECTURE.partition("## Where to add ...")[2],
    re.MULTILINE,
)
"""Each file that gets a line where something is added, and the line that is there."""


@pytest.mark.parametrize(("path", "line"), ADDED)
def test_the_lines_that_tell_where_to_add_stand_in_their_files(path: str, line: str):
    assert line.replace("\\|", "|") in (ROOT / "docs" / path).read_text()


def test_each_row_of_where_to_add_has_a_file_and_a_line():
    rows = re.findall(r"^\| \[", ARCHITECTURE.partition("## Where to add ...")[2], re.MULTILINE)
    assert len(rows) == len(ADDED) > 20


PLACES = re.findall(
    r"^\| (.+?) \| (\[.+) \|$",
    ARCHITECTURE.partition("## Where is ...")[2].partition("## Where to add ...")[0],
    re.MULTILINE,
)


@pytest.mark.parametrize(("question", "place"), PLACES, ids=[question for question, _ in PLACES])
def test_what_is_named_as_the_place_of_something_stands_there(question: str, place: str):
    files = [(ROOT / "docs" / path) for path in re.findall(r"\]\((\S+?)\)", place)]
    text = " ".join(path.read_text() for path in files if path.is_file())
    for name in re.findall(r"`(?:\w+\.)*(\w+)`", place):
        assert re.search(rf"\b{name}\b", text), f"{question}: {name}"
