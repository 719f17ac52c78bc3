"""Children of the demo end with it, and their end is told with their last words."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from toolway.demo.child import DemoError, running_child

READY = """
import sys, threading
from toolway.demo.child import announce
print("hello from", sys.argv[1], file=sys.stderr)
announce("http://here")
threading.Event().wait()
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a module that a child can run."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(source: str, name: str = "program") -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return write


def test_a_child_announces_its_address_and_is_gone_after_the_with(program):
    lines: list[str] = []
    with running_child("it", program(READY), "Anna", on_line=lines.append) as child:
        assert child.wait_ready(30) == "http://here"
        child.check()
    assert lines == ["hello from Anna"]
    assert child.process.returncode == -signal.SIGTERM


def test_a_child_that_dies_is_told_of_with_its_last_words(program):
    source = "import sys; sys.exit('the disk is made of cheese')"
    with running_child("The server", program(source)) as child:
        with pytest.raises(DemoError, match=r"The server ended with exit status 1[\s\S]*cheese"):
            child.wait_ready(30)
        with pytest.raises(DemoError, match="cheese"):
            child.check()


def test_a_child_killed_by_a_signal_names_the_signal(program):
    source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with running_child("it", program(source)) as child, pytest.raises(DemoError, match="SIGKILL"):
        child.wait_ready(30)


def test_a_child_that_says_nothing_in_time_is_given_up(program):
    source = "import threading; threading.Event().wait()"
    with running_child("it", program(source)) as child, pytest.raises(DemoError, match="did not start"):
        child.wait_ready(0.01)


def test_children_are_not_reached_by_the_terminal_s_ctrl_c(program):
    with running_child("it", program(READY), "Anna") as child:
        child.wait_ready(30)
        assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to watch a process that is not ours")
def test_a_child_ends_when_its_parent_is_killed(program):
    parent = program(
        """
        import sys
        from toolway.demo.child import running_child
        with running_child("it", "program", "Anna") as child:
            child.wait_ready(30)
            print(child.process.pid, flush=True)
            sys.stdin.read()
        """,
        "parent",
    )
    program(READY)
    outlive_nothing([sys.executable, "-m", parent])


def outlive_nothing(command: list[str]) -> None:
    """Run a parent that prints its child's pid, kill -9 it, and wait 30 s at most for the child's end."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        poll = select.poll()
        poll.register(child, select.POLLIN)
        assert not poll.poll(0), "the child ended before its parent"
        parent.kill()
        assert poll.poll(30_000), "the child outlived its parent"
        os.close(child)
