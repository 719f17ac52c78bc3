"""Proxies as the environment names them: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

from toolway.net.hosts import is_loopback


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """An HTTP proxy: asked with CONNECT for https, with the whole URL for http."""

    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)
    """What Proxy-Authorization says."""
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """For people, without credentials."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


def proxy_for(url: str, env: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy that leads to a server; None: there is none on the way.

    A server on this machine is never reached through one. `http_proxy` counts before HTTP_PROXY, which a CGI program
    must not believe: there it is a header of the request. Raises ValueError for a proxy that is no http:// URL.
    """
    env = os.environ if env is None else env
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if is_loopback(host) or _is_excepted(host.lower().rstrip("."), port, _read("no_proxy", env)):
        return None
    text = _read(f"{parts.scheme}_proxy", env) or _read("all_proxy", env)
    return _proxy(text) if text else None


def _read(name: str, env: Mapping[str, str]) -> str:
    is_cgi = name == "http_proxy" and "REQUEST_METHOD" in env
    return (env.get(name) or ("" if is_cgi else env.get(name.upper(), ""))).strip()


def _proxy(text: str) -> Proxy:
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the proxy of the environment must be an http:// URL, not {parts.scheme}://")
    credentials = authorization = None
    if parts.username is not None:
        credentials = unquote(parts.username), unquote(parts.password or "")
        authorization = b"Basic " + base64.b64encode(":".join(credentials).encode())
    return Proxy(
        host=parts.hostname, port=parts.port or 80, authorization=authorization, credentials=credentials
    )


def _is_excepted(host: str, port: int, no_proxy: str) -> bool:
    """Does NO_PROXY name the host? Names stand for what is below them too; addresses and networks for themselves."""
    return any(_matches(entry, host, port) for entry in no_proxy.lower().replace(",", " ").split())


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal() and ("]" in entry or ":" not in name):
        if int(number) != port:
            return False
        entry = name
    name = entry.strip("[]").removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith("." + name))
