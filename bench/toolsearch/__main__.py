"""Measure tool search: `python -m bench.toolsearch [--public FOLDER [--embeddings]] [--prompt TOOLS ... [--count]]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.toolsearch.prompt import of_prompts
from bench.toolsearch.recall import of_own_set, of_public_set, of_speed, of_tokens

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--public", type=Path, help="a folder with tools.json and tasks.json")
parser.add_argument(
    "--embeddings", action="store_true", help="with the local model too (toolway[embeddings])"
)
parser.add_argument(
    "--prompt",
    type=int,
    nargs="+",
    default=(),
    help="only this: so many tools before the demo's model, for an hour",
)
parser.add_argument(
    "--count", action="store_true", help="count the tokens of --prompt, in a minute, not reading them"
)
options = parser.parse_args()

if options.prompt:
    for name, value in of_prompts(options.prompt, counted=options.count):
        print(f"{name:<70}  {value}", flush=True)
    sys.exit()
rows = of_public_set(options.public, with_embeddings=options.embeddings) if options.public else []
rows += [*of_own_set(with_embeddings=options.embeddings), *of_speed(), *of_tokens()]
width = max(len(name) for name, _ in rows)
for name, value in rows:
    print(f"{name:<{width}}  {value}".rstrip())
