"""Whose process is at the other end of a connection."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from toolway.console import access


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_connection_of_this_user_is_known_and_one_of_another_is_not(address, monkeypatch):
    with socket.create_server(
        (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET
    ) as server:
        port = server.getsockname()[1]
        with socket.create_connection((address, port)) as client:
            ends = client.getsockname()[:2], (address, port)
            assert access._user_of(*ends) == os.getuid()
            assert access.is_own_user(*ends)
            monkeypatch.setattr(os, "getuid", lambda: 12345)
            assert access.is_own_user(*ends) == (access._user_of(*ends) == 0)


def test_what_the_system_does_not_tell_is_no_reason_to_refuse():
    assert access.is_own_user(("127.0.0.1", 1), ("127.0.0.1", 2))
    assert access.is_own_user(("nonsense", 1), ("127.0.0.1", 2))
