"""Where things lie: the checkout, its source, and the documents that only some checkouts have beside them."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "toolway"
QUIRKS = ROOT / "tests" / "compat" / "quirks"
SHARED = Path(os.environ.get("TOOLWAY_SHARED") or ROOT.parent / "shared")
"""Other people's documents; tests that need them are skipped where they are not."""
