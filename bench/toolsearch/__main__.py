"""Measure tool search: `python -m bench.toolsearch [--public FOLDER] [--prompt]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.toolsearch.prompt import of_prompts
from bench.toolsearch.recall import of_own_set, of_public_set, of_speed, of_tokens

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--public", type=Path, help="a folder with tools.json and tasks.json")
parser.add_argument("--prompt", action="store_true", help="ask the demo's model too: takes minutes")
options = parser.parse_args()

rows = [*(of_public_set(options.public) if options.public else ()), *of_own_set(), *of_speed(), *of_tokens()]
if options.prompt:
    rows += of_prompts()
width = max(len(name) for name, _ in rows)
for name, value in rows:
    print(f"{name:<{width}}  {value}".rstrip())
