"""Servers that requests declare: what may stand in an entry, and what of it is ever shown."""

from __future__ import annotations

from typing import Any

import pytest

from toolway.errors import InvalidRequest
from toolway.tools.client_servers import DeclaredServer, read_declared

URL = "https://mcp.example.com/mcp"


def declared(**entry: Any) -> DeclaredServer:
    said = {"type": "mcp", "server_label": "git", "server_url": URL, **entry}
    server = read_declared(said, {"weather"})
    assert server is not None
    return server


def test_an_entry_without_a_url_names_a_configured_server() -> None:
    assert read_declared({"type": "mcp", "server_label": "weather"}, {"weather"}) is None
    assert read_declared({"type": "mcp", "server_label": "weather", "server_url": None}, {"weather"}) is None
    assert read_declared({"server_label": "weather", "server_url": "toolway:weather"}, {"weather"}) is None


def test_authorization_becomes_a_bearer_token() -> None:
    assert declared(authorization="abc").headers == {"authorization": "Bearer abc"}
    assert declared(authorization="bearer abc").headers == {"authorization": "bearer abc"}
    assert declared(headers={"Authorization": "Basic abc", "X-Key": "k"}).headers == {
        "authorization": "Basic abc",
        "x-key": "k",
    }


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"server_label": "weather"}, "is a tool server of this Toolway"),
        ({"server_label": None}, "server_label must be"),
        ({"server_label": "1st"}, "server_label must be"),
        ({"server_label": "a b"}, "server_label must be"),
        ({"server_label": "a\nb"}, "server_label must be"),
        ({"server_label": "a" * 65}, "server_label must be"),
        ({"server_url": 7}, "server_url of 'git' cannot be used"),
        ({"server_url": "https://me:canary@h/"}, "user name or password"),
        ({"headers": ["canary"]}, "must be an object"),
        ({"headers": {f"x-{n}": "canary" for n in range(65)}}, "must be an object"),
        ({"headers": {"x": 7}}, "text of printable ASCII"),
        ({"headers": {"x": "canary\r\nhost: evil"}}, "text of printable ASCII"),
        ({"headers": {"x": "canary\x00"}}, "text of printable ASCII"),
        ({"headers": {"x": "canäry"}}, "text of printable ASCII"),
        ({"headers": {"x": " canary"}}, "text of printable ASCII"),
        ({"headers": {"a b": "canary"}}, "no HTTP header may have"),
        ({"headers": {"x\r\n": "canary"}}, "no HTTP header may have"),
        ({"headers": {"Host": "canary"}}, "is not for clients to set"),
        ({"headers": {"Transfer-Encoding": "canary"}}, "is not for clients to set"),
        ({"headers": {"Mcp-Session-Id": "canary"}}, "is not for clients to set"),
        ({"headers": {"X": "canary", "x": "canary"}}, "is there twice"),
        ({"headers": {"authorization": "canary"}, "authorization": "canary"}, "send one of them"),
        ({"headers": {"x": "canary" * 3000}}, "larger than"),
        ({"authorization": "canary\n"}, "authorization of 'git' must be"),
        ({"authorization": ["canary"]}, "authorization of 'git' must be"),
    ],
)
def test_a_bad_entry_is_the_clients_fault_and_its_secrets_stay_unsaid(
    entry: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        declared(**entry)
    assert says in caught.value.message
    assert "canary" not in caught.value.message
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "tools", "invalid_server")


def test_the_text_of_a_server_holds_none_of_its_secrets() -> None:
    server = declared(server_url=f"{URL}?key=canary1", headers={"X-Key": "canary2"}, authorization="canary3")
    assert "canary" not in repr(server)
    assert {"canary1", "canary2", "canary3", "Bearer canary3"} <= set(server.secrets)


def test_a_key_is_one_for_each_server_credential_and_owner() -> None:
    servers = [
        declared(),
        declared(server_label="other"),
        declared(server_url=f"{URL}/"),
        declared(authorization="abc"),
        declared(headers={"x": "abc"}),
    ]
    keys = {server.key(owner) for server in servers for owner in ("one", "two")}
    assert len(keys) == 10
    assert declared().key("one") == servers[0].key("one")
    assert declared(headers={"a": "1", "b": "2"}).key("") == declared(headers={"B": "2", "A": "1"}).key("")
