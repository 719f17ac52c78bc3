"""Host names and addresses: which are legal, which are this machine's, how they may be shown."""

from __future__ import annotations

import re
from ipaddress import ip_address

HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?|[0-9a-f:.]+(%[\w.-]+)?", re.IGNORECASE)
"""A legal host: a name, or an address without brackets."""


def masked(place: str) -> str:
    """A URL, or what was meant to be one, for messages: no credentials, and cut."""
    place = re.sub(r"//[^/]*@", "//***@", place) if "//" in place else re.sub(r"^[^/]*@", "***@", place)
    return place[:200]


def is_loopback(host: str) -> bool:
    """Is this name or address, without a port, one that only this machine can reach?"""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_same_origin(origin: bytes, host: bytes) -> bool:
    """Is a page of this Origin one of the server with this Host?"""
    return origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())
