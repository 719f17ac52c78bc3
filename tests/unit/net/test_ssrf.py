"""Which servers may be reached that nobody configured: the setting's entries, URLs, and addresses."""

from __future__ import annotations

from ipaddress import ip_address

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolway.errors import ConfigError
from toolway.net.ssrf import AllowList, is_forbidden, is_public, parse_allowed, read_destination
from toolway.settings.load import load_settings


def allows(setting: str, url: str, *addresses: str) -> bool:
    """Whether a URL may be used when its name leads to these addresses."""
    allowed, place = AllowList(parse_allowed(setting)), read_destination(url)
    found = [ip_address(text) for text in addresses] or [place.address]
    return allowed.denial_of(place) is None and all(a is not None and allowed.allows(place, a) for a in found)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("http://a", "write the host alone"),
        ("https://a/mcp", "write the host alone"),
        ("me:canary@a", "write the host alone"),
        ("a/b", "a network like 10.1.0.0/16"),
        ("10.1.2.3/16", "did you mean 10.1.0.0/16?"),
        ("0.0.0.0/0", "write * for any public host"),
        ("::/0", "write * for any public host"),
        ("10.0.0.0/33", "a network like 10.1.0.0/16"),
        ("127.1", "an unusual form of an address"),
        ("0x7f.0.0.1", "an unusual form of an address"),
        ("2130706433", "an unusual form of an address"),
        ("010.0.0.1", "an unusual form of an address"),
        ("a:0", "host:port"),
        ("a:99999", "host:port"),
        ("a:b", "host:port"),
        ("[fe80::1%eth0]", "is no IPv6 address"),
        ("mcp.*", "stands alone or in front"),
        ("*.*.example.com", "stands alone or in front"),
        ("*.10.0.0.1", "a * cannot stand before an address"),
        ("-a.example.com", "is no host name"),
        ("a..b", "is no host name"),
        ("ex%61mple.com", "is no host name"),
    ],
)
def test_a_bad_entry_is_told_with_what_is_legal(entry: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({"TOOLWAY_DYNAMIC_SERVERS": f"good.example.com, {entry}"}, None)
    assert "TOOLWAY_DYNAMIC_SERVERS" in caught.value.message
    assert says in caught.value.message
    assert "canary" not in caught.value.message


def test_nothing_is_allowed_by_default() -> None:
    assert load_settings({}, None).tools.dynamic_servers == ()
    reason = AllowList().denial_of(read_destination("https://mcp.example.com/mcp"))
    assert reason is not None and "TOOLWAY_DYNAMIC_SERVERS is empty" in reason


def test_entries_may_be_separated_by_commas_and_spaces() -> None:
    text = " a.example.com,*.b.example , 10.1.0.0/16\n[::1]:9000 MÜNCHEN.example:8443,"
    entries = load_settings({"TOOLWAY_DYNAMIC_SERVERS": text}, None).tools.dynamic_servers
    assert [entry.name or str(entry.network) for entry in entries] == [
        "a.example.com",
        "*.b.example",
        "10.1.0.0/16",
        "::1/128",
        "xn--mnchen-3ya.example",
    ]
    assert [entry.port for entry in entries] == [None, None, None, 9000, 8443]


PUBLIC = "93.184.215.14"


@pytest.mark.parametrize(
    ("setting", "url", "addresses"),
    [
        ("mcp.example.com", "https://mcp.example.com/mcp", [PUBLIC]),
        ("mcp.example.com", "https://MCP.Example.com.:8443/mcp?x=1", [PUBLIC]),
        ("mcp.example.com", "http://mcp.example.com", [PUBLIC]),
        ("mcp.internal", "http://mcp.internal:9000/", ["10.0.0.7", "fd12::7"]),
        ("localhost", "http://localhost:9000/", ["127.0.0.1", "::1"]),
        ("mcp.internal:9000", "http://mcp.internal:9000/", ["192.168.0.1"]),
        ("*.example.com", "https://a.b.example.com/", [PUBLIC, "2606:4700::1"]),
        ("*", "https://anything.example/", [PUBLIC]),
        ("*", f"https://{PUBLIC}/", []),
        ("*", "https://[2606:4700::1]/", []),
        ("*", "https://six.example/", ["64:ff9b::5db8:d70e"]),
        ("*:8443", "https://anything.example:8443/", [PUBLIC]),
        ("127.0.0.1:9000", "http://127.0.0.1:9000/", []),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]:9000/", []),
        ("::1", "http://[0:0:0:0:0:0:0:1]/", []),
        ("10.1.0.0/16", "http://10.1.255.255:1234/", []),
        ("10.1.0.0/16", "https://tools.corp.example/", ["10.1.2.3"]),
        ("*, 10.1.0.0/16", "https://tools.corp.example/", ["10.1.2.3", PUBLIC]),
        ("169.254.169.254", "http://169.254.169.254/", []),
        ("münchen.example", "https://xn--mnchen-3ya.example/", [PUBLIC]),
        ("xn--mnchen-3ya.example", "https://MÜNCHEN.example/", [PUBLIC]),
    ],
)
def test_what_is_listed_may_be_used(setting: str, url: str, addresses: list[str]) -> None:
    assert allows(setting, url, *addresses)


@pytest.mark.parametrize(
    ("setting", "url", "addresses"),
    [
        ("mcp.example.com", "https://evil.example.com/", [PUBLIC]),
        ("mcp.example.com", "https://mcp.example.com.evil.example/", [PUBLIC]),
        ("mcp.example.com:443", "https://mcp.example.com:444/", [PUBLIC]),
        ("mcp.internal", "http://mcp.internal/", ["169.254.169.254"]),
        ("mcp.internal", "http://mcp.internal/", ["10.0.0.7", "fe80::1"]),
        ("mcp.internal", "http://mcp.internal/", ["0.0.0.0"]),
        ("mcp.internal", "http://mcp.internal/", ["fd00:ec2::254"]),
        ("mcp.internal", "http://mcp.internal/", ["64:ff9b::a9fe:a9fe"]),
        ("*.example.com", "https://example.com/", [PUBLIC]),
        ("*.example.com", "https://evilexample.com/", [PUBLIC]),
        ("*.example.com", "http://a.example.com/", [PUBLIC]),
        ("*.example.com", "https://a.example.com/", ["127.0.0.1"]),
        ("*.example.com", "https://a.example.com/", [PUBLIC, "10.0.0.1"]),
        ("*", f"http://{PUBLIC}/", []),
        ("*", "https://localhost/", ["::1"]),
        ("*", "https://127.0.0.1/", []),
        ("*", "https://[::ffff:10.0.0.1]/", []),
        ("*:8443", "https://anything.example/", [PUBLIC]),
        ("*, 10.1.0.0/16", "https://tools.corp.example/", ["10.2.0.1"]),
        ("10.1.0.0/16", "https://tools.corp.example/", [PUBLIC]),
        ("127.0.0.1:9000", "http://127.0.0.1:9001/", []),
        ("127.0.0.1", "http://127.0.0.2/", []),
        ("8.8.8.8", f"https://{PUBLIC}/", []),
    ],
)
def test_what_is_not_listed_may_not(setting: str, url: str, addresses: list[str]) -> None:
    assert not allows(setting, url, *addresses)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mcp.example.com/mcp",
        "ftp://h/",
        "file:///etc/passwd",
        "https:///mcp",
        "https://user@h/",
        "https://user:canary@h/",
        "https://h@127.0.0.1/",
        "https://h\\@127.0.0.1/",
        "https://h\\.example/",
        "https://h /",
        "https://h\t/",
        "https://h/\n",
        "https://h/\x00",
        "https://h#@127.0.0.1/",
        "https://h/#f",
        "https://127.1/",
        "https://127.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.01/",
        "https://1.2.3.4.5/",
        "https://256.0.0.1/",
        "https://a.0x7f/",
        "https://０x7f.1/",
        "https://127。1/",
        "https://[127.0.0.1]/",
        "https://[::1%25lo]/",
        "https://[fe80::1%eth0]/",
        "https://[::1/",
        "https://::1/",
        "https://h:/",
        "https://h:0/",
        "https://h:65536/",
        "https://h:-1/",
        "https://h:１２/",
        "https://h:80:90/",
        "https://%31%32%37.0.0.1/",
        "https://-h.example/",
        "https://h..example/",
        "https://" + "a" * 64 + ".example/",
        "https://" + "a." * 130 + "example/",
        "https://h/" + "a" * 2000,
    ],
)
def test_a_url_that_parsers_may_read_differently_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"it|is no|unusual") as caught:
        read_destination(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "is_written"),
    [
        ("HTTPS://MCP.Example.COM", "https://mcp.example.com/"),
        ("https://h.example:443/a?b=c%20d", "https://h.example/a?b=c%20d"),
        ("http://h_1.example:443/", "http://h_1.example:443/"),
        ("https://１２７.0.0.1/", "https://127.0.0.1/"),
        ("https://127.0.0.1./", "https://127.0.0.1/"),
        ("https://[0:0::1]:8443/", "https://[::1]:8443/"),
        ("https://[::ffff:7f00:1]/", "https://127.0.0.1/"),
        ("https://faß.example/", "https://xn--fa-hia.example/"),
        ("https://h.example?a=b", "https://h.example/?a=b"),
    ],
)
def test_a_url_is_written_in_one_way(url: str, is_written: str) -> None:
    place = read_destination(url)
    assert place.url == is_written
    assert read_destination(place.url) == place


@given(st.text(alphabet="ab.:/@[]%\\0x17fF１。-_?#\t ", max_size=30))
def test_the_client_connects_to_the_host_that_was_judged(rest: str) -> None:
    try:
        place = read_destination(f"https://{rest}")
    except ValueError:
        return
    url = httpx2.URL(place.url)
    assert url.raw_host.decode() == place.host
    assert (url.port or 443) == place.port
    assert not url.userinfo


NEVER_PUBLIC = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255"),
    *(
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
    ),
    *("192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
    *("255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"),
    *(
        "64:ff9b::127.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:db8::1",
    ),
    *("2002:7f00:1::", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fd00::1", "fd00:ec2::254"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2606:4700::1%eth0"),
]


@pytest.mark.parametrize("text", NEVER_PUBLIC)
def test_an_address_that_does_not_leave_for_the_internet_is_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    ["1.1.1.1", "8.8.8.8", "::ffff:8.8.8.8", "100.63.0.1", "172.32.0.1", "2606:4700::1", "64:ff9b::8.8.8.8"],
)
def test_other_addresses_are_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "fe80::1",
        "ff02::1",
        "fd20:ce::254",
    ],
)
def test_no_name_may_lead_to_addresses_with_a_special_meaning(text: str) -> None:
    assert is_forbidden(ip_address(text))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_an_address_is_never_both_public_and_forbidden(address: object) -> None:
    parsed = ip_address(str(address))
    assert not (is_public(parsed) and is_forbidden(parsed))
    assert not (is_public(parsed) and (parsed.is_private or parsed.is_loopback or parsed.is_link_local))
