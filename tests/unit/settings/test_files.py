"""How configuration files are written."""

from __future__ import annotations

import stat
from pathlib import Path

from toolway.settings.files import replace_text


def test_a_file_is_replaced_at_once_and_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    replace_text(link, "new\r\n")
    assert real.read_bytes() == b"new\r\n"
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "real.json"]


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    replace_text(tmp_path / "mcp.json", "{}")
    assert stat.S_IMODE((tmp_path / "mcp.json").stat().st_mode) == 0o600
