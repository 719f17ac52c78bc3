"""How many examples property tests try: few in a normal run, as many as FUZZ_EXAMPLES says in `make fuzz`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))

settings.register_profile(
    "toolway",
    deadline=None,
    max_examples=EXAMPLES,
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)

slow = settings(settings.get_profile("toolway"), max_examples=max(40, EXAMPLES // 1000))
"""For examples that cost milliseconds each."""
