"""What a text is split into."""

from __future__ import annotations

import pytest

from toolway.search.words import query_words, related, stem, words


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("getUserNames", ["get", "user", "nam"]),
        ("list_all-files", ["list", "all", "fil"]),
        ("parseHTTPResponse2", ["pars", "http", "respons", "2"]),
        ("the of and", []),
        ("", []),
        ("news of the day", ["news", "day"]),
        ("天气预报", ["天气", "气预", "预报", *words("weather forecast")]),
        ("查询火车站", ["查询", "询火", "火车", "车站", *words("query search station")]),
    ],
)
def test_names_and_sentences_are_split_alike(text: str, stems: list[str]):
    assert words(text) == stems


@pytest.mark.parametrize(
    "forms",
    [
        ("convert", "converts", "converting", "converted"),
        ("summary", "summaries"),
        ("search", "searches", "searching", "searched"),
        ("create", "creates", "creating", "creation", "creator"),
        ("plan", "plans", "planning", "planned"),
    ],
)
def test_the_forms_of_a_word_have_one_stem(forms: tuple[str, ...]):
    assert len({stem(form) for form in forms}) == 1


@pytest.mark.parametrize(
    ("query", "means"),
    [
        ("write it to /root/notes/today.md", "text file"),
        ("open report.pdf", "pdf file"),
        ("look into ~/data", "file path"),
        ("read C:\\temp\\a.xlsx", "excel spreadsheet file"),
        ("what stands at https://example.com/a.pdf", "url website"),
    ],
)
def test_a_path_counts_as_the_kind_of_thing_that_it_names(query: str, means: str):
    assert set(words(means)) <= set(query_words(query))
    assert not {"notes", "root", "data", "example"} & set(query_words(query))


def test_words_around_what_is_looked_for_are_left_out_unless_nothing_else_is_said():
    assert query_words("get several news related to chess") == words("get news chess")
    assert query_words("related") == words("related")


def test_words_that_mean_the_same_are_related_both_ways():
    assert stem("powerpoint") in related(stem("presentation"))
    assert stem("presentation") in related(stem("powerpoint"))
    assert stem("weather") not in related(stem("delete"))


def test_a_text_without_end_is_read_to_a_bound():
    assert len(words("word " * 1_000_000)) <= 400
    assert len(words("x" * 1_000_000)) <= 400
