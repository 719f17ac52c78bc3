"""The question in plain chat, what is an answer to it, and what language a user writes."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from toolway.access.approval_question import write_summary
from toolway.access.approval_reply import Reply, read_reply
from toolway.access.approvals import Approval
from toolway.access.language import language_of
from toolway.telemetry.logging import Redactor

CODE = "K7QF-2MXD"
ALL_OF_THREE = Reply(approved=frozenset({0, 1, 2}))
NOTHING = Reply()


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "Yes!",
        "yes yes",
        "JA",
        "ja bitte",
        "Ja, mach das",
        "Ok, go ahead.",
        "sure, thanks",
        "d'accord",
        "sí, por favor",
        "all",
        "alle bitte",
        "yes all",
        "all of them",
        "tutti",
        "да",
        "はい",
        "是的",
        "예",
        "✅",
        "va bene",
        "Do it!",
        "K7QF-2MXD",
        "k7qf2mxd",
        "K7QF 2MXD",
        "k7qf–2mxd",
        "yes, K7QF-2MXD",
        "Ｋ７ＱＦ-２ＭＸＤ",
        "１, 2, 3",
        "1 2 3",
        "1 and 2 and 3",
    ],
)
def test_a_yes_is_one_in_many_words(text: str) -> None:
    assert read_reply(text, CODE, 3) == ALL_OF_THREE


@pytest.mark.parametrize(
    "text", ["no", "Nein, danke", "do not", "don't", "none", "keine", "нет", "不要", "👎", "no K7QF2MXD"]
)
def test_a_no_is_one_in_many_words(text: str) -> None:
    assert read_reply(text, CODE, 3) == NOTHING


@pytest.mark.parametrize(
    "text",
    [
        "yes?",
        "ja？",
        "yes no",
        "ja, mach das nicht",
        "always no",
        "no, do it",
        "4",
        "0",
        "1 1",
        "1.5",
        "no 2",
        "yes 1 no 2",
        "9999",
        "WXYZ-2345",
        "please",
        "thanks",
        "",
        "...",
        "1 always",
        "२ ४",
    ],
)
def test_nothing_is_guessed_of_what_is_not_certain(text: str) -> None:
    reply = read_reply(text, CODE, 3)
    assert reply and not reply.is_clear
    assert not reply.approved


@pytest.mark.parametrize(
    "text",
    [
        "yes, but for Rome",
        "never mind",
        "no problem",
        "all except 2",
        "1 of 3",
        "2 mal",
        "both",
        "yesterday",
        "1-2",
        "yes K7QF-2MXE9",
        "What would that cost?",
        "yes " * 40,
        "ok google",
        "y\u200bes please delete",
    ],
)
def test_what_is_no_answer_is_none(text: str) -> None:
    assert read_reply(text, CODE, 3) is None


@pytest.mark.parametrize(
    ("text", "numbers"), [("2", {1}), ("yes 1 und 3", {0, 2}), ("3,1", {0, 2}), ("only 2", {1})]
)
def test_numbers_name_those_that_may_run(text: str, numbers: set[int]) -> None:
    assert read_reply(text, CODE, 3) == Reply(approved=frozenset(numbers))


@pytest.mark.parametrize("text", ["always", "Immer!", "always please", "her zaman", "常に"])
def test_always_is_a_yes_for_more_than_this(text: str) -> None:
    assert read_reply(text, CODE, 1) == Reply(approved=frozenset({0}), always=True)


@pytest.mark.parametrize(
    ("texts", "accepted", "language"),
    [
        (["Ja!"], "", "en"),
        (["Ja! Ja! Ja!"], "de-AT, en", "de"),
        (["Lösche bitte die Datei", "Ja!"], "", "de"),
        (["Bitte lösche die Datei", *["Ja!"] * 5], "", "de"),
        (["Delete the file, please"], "de", "en"),
        (["DO /yes/ja/0"], "", "en"),
        (['DO [["say", {"text": "ja do jest"}]]'], "", "en"),
        (['jest": {"text": "bitte lösche die Datei"}}]'], "", "en"),
        (['{"a": ["lösche die", {"b": "Datei'], "", "en"),
        (["do_it ja.txt ja0 https://example.com/jest/to?co=ja"], "", "en"),
        (["`bitte` ```bitte lösche das```"], "", "en"),
        (["ja " * 40], "", "en"),
        (["Lösche bitte die Datei /home/the/file is.txt"], "", "de"),
        (['Bitte lösche das: {"what": "the file is my file"}'], "", "de"),
        (["Peux-tu supprimer le fichier, s'il te plaît ?"], "", "fr"),
        (["/tmp/ファイル を消して"], "en", "ja"),
        (["Удали файл"], "", "ru"),
        (["ファイルを消して"], "en", "ja"),
        (["weather: Paris"], "fi, fr;q=0.8", "fr"),
        ([""], "", "en"),
        ([], "xx", "en"),
    ],
)
def test_the_language_is_that_of_more_than_one_short_word(
    texts: list[str], accepted: str, language: str
) -> None:
    assert language_of(texts, accepted) == language


@pytest.mark.parametrize(
    "reason", ["cannot be <b>undone</b>", "`rm` *all* | [x](http://x) ~~not~~ a\\*b &lt; # 1", "a\u202eb"]
)
def test_a_reason_is_read_as_it_was_written_where_markdown_is_shown(reason: str) -> None:
    approval = Approval(
        id="apr_1", owner="o", key="", name="drop", tool="drop", server="<db>", arguments={},
        tool_digest="", reason=reason, seconds=60,
    )  # fmt: skip
    question = write_summary(approval, "en", Redactor(()))
    tokens = [token for each in MarkdownIt().parse(question) for token in each.children or ()]
    assert {token.type for token in tokens} <= {"text", "text_special", "code_inline", "softbreak"}, tokens
    shown = "".join(token.content for token in tokens)
    assert f"(<db>): {reason}".replace("\u202e", "\\u202e") in shown
