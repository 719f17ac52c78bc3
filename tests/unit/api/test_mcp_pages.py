"""The pages in which lists go to clients of /mcp."""

from __future__ import annotations

import orjson

from toolway.api.mcp.server import PAGE, PAGE_BYTES, page_of
from toolway.types import JSON


def pages(items: dict[str, JSON]) -> list[list[JSON]]:
    """All pages, each asked for with the cursor of the one before."""
    page = page_of("tools", items, None, items.__getitem__)
    found = [page["tools"]]
    while cursor := page.get("nextCursor"):
        page = page_of("tools", items, cursor, items.__getitem__)
        found.append(page["tools"])
    return found


def items_of(count: int, size: int) -> dict[str, JSON]:
    names = [f"{number:05}" for number in range(count)]
    return {name: {"name": name, "description": "x" * size} for name in names}


def test_what_a_model_can_read_is_one_page():
    items = items_of(PAGE, 100)
    assert pages(items) == [list(items.values())]


def test_a_long_list_comes_whole_in_pages_none_of_which_is_large():
    for items in (items_of(2 * PAGE + 1, 10), items_of(PAGE, 10_000)):
        found = pages(items)
        assert [item for page in found for item in page] == list(items.values())
        assert len(found) > 2
        assert all(len(page) <= PAGE and len(orjson.dumps(page)) < PAGE_BYTES + PAGE for page in found)


def test_an_item_larger_than_a_page_has_one_of_its_own():
    items = items_of(3, PAGE_BYTES + 1)
    assert [len(page) for page in pages(items)] == [1, 1, 1]
