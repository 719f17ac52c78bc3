"""How much a server may say unasked: a budget that refills, for lines of logs, notifications and bytes of noise."""

from __future__ import annotations

import time


class Budget:
    """A token bucket: `burst` at once, `rate` a second in the long run."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = time.monotonic()

    def spend(self, amount: float = 1.0) -> bool:
        """Whether there is enough left; only then is it spent."""
        self._refill()
        if self._left < amount:
            return False
        self._left -= amount
        return True

    def overdraw(self, amount: float) -> float:
        """Spend what cannot be helped; the seconds after which there is something left again, 0 if there is now."""
        self._refill()
        self._left -= amount
        return max(0.0, -self._left / self._rate)

    def _refill(self) -> None:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
