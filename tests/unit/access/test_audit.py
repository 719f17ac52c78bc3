"""The audit log: a line for each call, whole lines from many writers, nothing that waits, losses told."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.gate import DEADLINE
from toolway.access import audit as audit_module
from toolway.access.approvals import Approval, Verdict
from toolway.access.audit import AuditLog, matches, newest_first, oldest_first
from toolway.access.rules import ALLOWED, Decision
from toolway.telemetry.logging import Redactor
from toolway.types import Tool, ToolCall, ToolResult

TOOL = Tool(name="delete", server="files", description="", parameters={"type": "object"})
WHO = {"user.id": "u", "toolway.key.name": "tim", "gen_ai.request.model": ""}


def audit(path: Path, **options: Any) -> AuditLog:
    return AuditLog(str(path), **{"max_bytes": 10**6, "files": 2, **options})


def note(
    log: AuditLog, number: int = 0, *, decision: Decision = ALLOWED, is_error: bool = False, **arguments: Any
) -> None:
    log.call(
        WHO,
        ToolCall(id=f"call_{number}", name="files__delete", arguments="{}"),
        TOOL,
        arguments=arguments,
        result=ToolResult(text="gone ü", is_error=is_error),
        seconds=0.5,
        decision=decision,
    )


def entries(path: Path, files: int = 2) -> list[dict[str, Any]]:
    return list(oldest_first(path, files))


def test_a_line_says_who_ran_what_and_how_it_went(tmp_path: Path) -> None:
    log = audit(tmp_path / "a" / "audit.jsonl")
    note(log, path="/home")
    note(log, decision=Decision(effect="deny", rule="rule 2", reason="no"), is_error=True)
    log.close()
    first, second = entries(tmp_path / "a" / "audit.jsonl")
    assert first["time"].endswith("+00:00")
    assert len(first["toolway.arguments.sha256"]) == 64
    assert {key: first[key] for key in first if key not in ("time", "toolway.arguments.sha256")} == {
        "event": "call",
        "user.id": "u",
        "toolway.key.name": "tim",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "files__delete",
        "toolway.tool.name": "delete",
        "toolway.server": "files",
        "gen_ai.tool.call.id": "call_0",
        "toolway.decision": "allow",
        "duration": 0.5,
        "result.bytes": 7,
    }
    assert (second["error.type"], second["toolway.rule"], second["toolway.reason"]) == (
        "denied",
        "rule 2",
        "no",
    )


def test_questions_and_answers_are_lines_too(tmp_path: Path) -> None:
    log = audit(tmp_path / "audit.jsonl")
    approval = Approval(
        id="apr_1",
        owner="o",
        key="tim",
        name="delete",
        tool="delete",
        server="files",
        arguments={},
        tool_digest="d",
        rule="r",
    )
    log.approval_asked(WHO, approval)
    log.approval_answered(WHO, approval, Verdict(approve=False, by="chat", reason="never"))
    log.close()
    asked, answered = entries(tmp_path / "audit.jsonl")
    assert (asked["event"], asked["toolway.decision"], asked["toolway.approval.id"]) == (
        "approval.asked",
        "ask",
        "apr_1",
    )
    assert (answered["toolway.decision"], answered["toolway.approval.by"]) == ("deny", "chat")


def test_the_same_arguments_have_the_same_digest_in_any_order(tmp_path: Path) -> None:
    log = audit(tmp_path / "audit.jsonl")
    note(log, a=1, b=2)
    note(log, b=2, a=1)
    note(log, a=1, b=3)
    log.close()
    one, other, third = [entry["toolway.arguments.sha256"] for entry in entries(tmp_path / "audit.jsonl")]
    assert one == other != third


def test_the_text_of_arguments_comes_without_secrets(tmp_path: Path) -> None:
    log = audit(tmp_path / "audit.jsonl", arguments=True, redact=Redactor(["configured-secret"]))
    note(log, path="/home", password="hunter2", header="Bearer abcdefgh", note="configured-secret")
    log.close()
    text = (tmp_path / "audit.jsonl").read_text()
    assert "/home" in text
    assert not any(secret in text for secret in ("hunter2", "abcdefgh", "configured-secret"))


@pytest.mark.parametrize("value", ["\ud800", 10**400, "a\nb\x1b[31m"])
def test_hostile_values_make_one_line(tmp_path: Path, value: Any) -> None:
    log = audit(tmp_path / "audit.jsonl", arguments=True)
    note(log, value=value)
    note(log)
    log.close()
    assert (
        len((tmp_path / "audit.jsonl").read_bytes().splitlines())
        == len(entries(tmp_path / "audit.jsonl"))
        == 2
    )


def test_a_full_file_is_set_aside_and_so_many_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(40):
        log = audit(path, max_bytes=2000)
        note(log, number)
        log.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.lock",
    ]  # fmt: skip
    assert all(file.stat().st_size <= 2000 for file in tmp_path.iterdir())
    numbers = [int(entry["gen_ai.tool.call.id"].removeprefix("call_")) for entry in entries(path)]
    assert numbers == list(range(numbers[0], 40))
    assert path.stat().st_mode & 0o777 == 0o600


WRITER = """
import sys
from tests.unit.access.test_audit import *
log = audit(Path(sys.argv[1]), max_bytes=20_000, files=1000)
for number in range(500):
    note(log, number)
log.close()
"""


def test_many_processes_write_whole_lines_into_one_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(4)]
    assert [process.wait(DEADLINE * 3) for process in processes] == [0] * 4
    assert len(entries(path, 1000)) == 2000


def test_a_disk_that_cannot_be_written_costs_no_request_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "audit.jsonl"
    (tmp_path / "folder").write_text("a file is in the way")
    log = audit(path)
    began = time.monotonic()
    for number in range(30_000):
        note(log, number)
    assert time.monotonic() - began < DEADLINE
    until_idle(log)
    (tmp_path / "folder").unlink()
    note(log)
    log.close()
    found = entries(path)
    assert found[-1]["event"] == "lost"
    assert found[-1]["lines"] + len(found) - 1 == 30_001


def until_idle(log: AuditLog) -> None:
    end = time.monotonic() + DEADLINE
    while log.waiting:
        assert time.monotonic() < end


def test_what_is_no_entry_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"event": "call"}\n[1]\nnonsense\n{"event": "lo')
    assert entries(path) == [{"event": "call"}]


def test_entries_are_found_by_patterns() -> None:
    entry = {"toolway.key.name": "tim", "n": 1}
    assert matches(entry, {"toolway.key.name": "t?m", "n": "1"})
    assert not matches(entry, {"toolway.key.name": "tom"})
    assert not matches({"n": 3}, {"toolway.key.name": "t?m"})


@pytest.mark.parametrize("block", [1, 7, 64 * 2**10])
def test_entries_are_read_from_the_end_as_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(audit_module, "BLOCK", block)
    path = tmp_path / "audit.jsonl"
    (tmp_path / "audit.jsonl.1").write_bytes(b'{"n": 1}\n\nnonsense\n{"n": 2}\n')
    path.write_bytes('{"n": 3, "text": "ü"}\n{"n": 4}\n{"n": '.encode())
    assert [entry["n"] for _, entry in newest_first(path, 2)] == [4, 3, 2, 1]
    for place, entry in newest_first(path, 2):
        assert [one["n"] for _, one in newest_first(path, 2, place)] == list(range(entry["n"] - 1, 0, -1))


def test_who_reads_from_the_end_goes_on_after_the_file_was_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n')
    place, newest = next(newest_first(path, 2))
    assert newest == {"n": 2}
    path.replace(f"{path}.1")
    path.write_bytes(b'{"n": 3}\n')
    assert [entry["n"] for _, entry in newest_first(path, 2, place)] == [1]
    assert list(newest_first(path, 2, "1-7")) == [], "a file that is no longer there"


def test_a_line_that_is_too_long_to_be_one_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"n": 1}\n' + b"x" * 3 * 2**20 + b'\n{"n": 2}\n')
    assert [entry["n"] for _, entry in newest_first(path, 0)] == [2, 1]


def test_a_change_by_a_person_says_who_and_what(tmp_path: Path) -> None:
    log = audit(tmp_path / "audit.jsonl")
    log.changed("key.added", "anna", "ben")
    log.close()
    [line] = entries(tmp_path / "audit.jsonl")
    assert (line["event"], line["toolway.by"], line["toolway.changed"]) == ("key.added", "anna", "ben")
