"""What docs/clients.md says was used is what is used."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.paths import ROOT

HERE = Path(__file__).parent
PAGE = (ROOT / "docs" / "clients.md").read_text()


def test_the_page_names_the_versions_that_are_installed():
    package = json.loads((HERE / "package.json").read_text())
    pins = package["dependencies"] | package["optionalDependencies"]
    texts = [(HERE / name).read_text() for name in ("requirements.txt", "open_webui.txt")]
    lines = [line for text in texts for line in text.splitlines() if "==" in line]
    for name, version in [*pins.items(), *(line.split("==") for line in lines)]:
        assert f"`{name}` {version}" in PAGE, name
