"""Who is at the other end of a connection from this machine: the user whose process opened it, as Linux tells."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

_TABLES = {socket.AF_INET: Path("/proc/net/tcp"), socket.AF_INET6: Path("/proc/net/tcp6")}


def is_own_user(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Whether this process's user, or root, opened the connection. True where the system does not tell."""
    uid = _owner(client, server)
    return uid is None or uid in (0, os.getuid())


def _owner(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    family = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    try:
        ends = f"{_kernel_address(family, *client)} {_kernel_address(family, *server)} "
        with _TABLES[family].open() as table:
            for line in table:
                if ends in line:
                    return int(line.split()[7])
    except (OSError, ValueError, IndexError):
        return None
    return None


def _kernel_address(family: socket.AddressFamily, host: str, port: int) -> str:
    """An address as the kernel writes it there: words of four bytes in the order of this machine."""
    packed = socket.inet_pton(family, host.partition("%")[0])
    order = "<" if sys.byteorder == "little" else ">"
    words = struct.unpack(f"{order}{len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
