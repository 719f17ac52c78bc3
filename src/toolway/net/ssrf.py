"""The way out to one server that a client named: its name is looked up here, and each address judged before use."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import ip_address

import anyio
from anyio import to_thread

from toolway.net.allowlist import AllowList, Destination

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> addresses; raises OSError when there is none."""

LOOKUPS = 4
"""Names that are looked up at once. A slow name server must not use up the threads that all others need."""


class Resolver:
    """Looks names up as the system does, a few at once."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(LOOKUPS)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host, in the system's order. Raises OSError."""
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self._limiter)
        return [str(info[4][0]) for info in found]


class SsrfGuard:
    """Gives out the addresses at which `place` may be reached, each time a connection is made to it.

    Whoever connects must use these addresses and look nothing up himself: between two looks a name may have come to
    lead elsewhere (DNS rebinding).
    """

    def __init__(self, place: Destination, allowed: AllowList, resolve: Resolve) -> None:
        self.place = place
        self.refused = False
        """Whether the newest question was answered with no."""
        self._allowed = allowed
        self._resolve = resolve

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Where to connect to for `host`, best first. One address that is not allowed forbids all.

        Raises:
            PermissionError: This is not the place, or it may not be reached.
            OSError: The name is listed by the operator, and unknown.
        """
        self.refused = False
        if (host, port) != (self.place.host, self.place.port):
            raise self._no("it leads to another host")
        found = [host] if self.place.address else await self._looked_up()
        if not found or not all(self._allowed.admits(self.place, ip_address(text)) for text in found):
            raise self._no("it has no address that may be used")
        return found

    def _no(self, reason: str) -> PermissionError:
        self.refused = True
        return PermissionError(reason)

    async def _looked_up(self) -> Sequence[str]:
        try:
            return list(dict.fromkeys(await self._resolve(self.place.host, self.place.port)))
        except (OSError, UnicodeError):
            if not self._allowed.lists(self.place):
                return []  # whether a name is known inside is nothing that a client should find out
            raise OSError("its name is not known") from None
