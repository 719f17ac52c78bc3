"""The dashboard and the alert rules ask for figures that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT
from toolway.telemetry import metrics

DASHBOARD = ROOT / "deploy" / "grafana" / "toolway.json"
RULES = ROOT / "deploy" / "prometheus" / "toolway.rules.yaml"


def known_names() -> set[str]:
    return {
        f"{figure.name}{suffix}"
        for figure in metrics.INSTRUMENTS
        for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
            figure.kind, ("",)
        )
    }


def expressions(path: Path) -> list[str]:
    if path.suffix == ".json":
        return [
            target["expr"] for panel in json.loads(path.read_text())["panels"] for target in panel["targets"]
        ]
    return [rule["expr"] for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("path", [DASHBOARD, RULES], ids=lambda path: path.name)
def test_each_figure_that_is_asked_for_exists(path: Path):
    used = {name for text in expressions(path) for name in re.findall(r"toolway_\w+", text)}
    assert used
    assert used <= known_names()


def test_each_figure_is_documented():
    documented = set(re.findall(r"`(toolway_\w+)`", (ROOT / "docs" / "telemetry.md").read_text()))
    names = {
        name.removesuffix("_sum").removesuffix("_count").removesuffix("_bucket") for name in known_names()
    }
    assert documented == names
