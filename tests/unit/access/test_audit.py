"""The audit log: a line for each call, whole lines from many writers, nothing that waits, losses told."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.gate import DEADLINE
from toolway.access.approvals import Approval, Verdict
from toolway.access.audit import AuditLog, matching, read_lines
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
    return list(read_lines(path, files))


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
    log.asked(WHO, approval)
    log.answered(WHO, approval, Verdict(approve=False, by="chat", reason="never"))
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
    found: list[dict[str, Any]] = [
        {"toolway.key.name": "tim", "n": 1},
        {"toolway.key.name": "tom", "n": 2},
        {"n": 3},
    ]
    assert [entry["n"] for entry in matching(found, {"toolway.key.name": "t?m"})] == [1, 2]
    assert [entry["n"] for entry in matching(found, {"toolway.key.name": "tim", "n": "1"})] == [1]
