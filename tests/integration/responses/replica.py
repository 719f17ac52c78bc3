"""Toolway as a process of its own, with the settings of its environment, that looks at its neighbours often."""

from __future__ import annotations

import sys
from functools import partial

from toolway.api.responses import Pace
from toolway.app.asgi import create_app
from toolway.server.process import run
from toolway.settings.load import load_settings

QUICK = Pace(lease=5.0, beat=0.05, poll=0.02)


def main() -> None:
    run(load_settings(), partial(create_app, pace=QUICK), lambda url: print(url, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
