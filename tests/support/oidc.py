"""A real OpenID Connect provider in a process of its own, and a person who logs in there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from tests.support.gate import DEADLINE
from tests.support.servers import free_port

CALLBACK = "http://127.0.0.1/callback"


@dataclass(frozen=True)
class OidcProvider:
    """`issuer` is its URL."""

    issuer: str

    def log_in(self, person: str, client: str) -> str:
        """The ID token that a client gets for a person, by the code flow."""
        asked = {"client_id": client, "response_type": "code", "redirect_uri": CALLBACK, "scope": "openid"}
        sent = httpx2.post(
            f"{self.issuer}/oauth2/authorize", params=asked, data={"sub": person}, timeout=DEADLINE
        )
        code = parse_qs(urlsplit(sent.headers["location"]).query)["code"][0]
        wanted = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        answer = httpx2.post(
            f"{self.issuer}/oauth2/token", data=wanted, auth=(client, "secret"), timeout=DEADLINE
        )
        return str(answer.json()["id_token"])


@contextmanager
def oidc_provider(*people: dict[str, Any], port: int = 0) -> Iterator[OidcProvider]:
    """A provider that knows these people, each by the claims of a token. It has another key each time."""
    port = port or free_port()
    arguments = [part for person in people for part in ("--user-claims", json.dumps(person))]
    command = [sys.executable, "-W", "ignore", "-m", "oidc_provider_mock", "--port", str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    found = OidcProvider(f"http://127.0.0.1:{port}")
    try:
        _wait_for(found, process)
        yield found
    finally:
        process.kill()
        process.wait()


def _wait_for(provider: OidcProvider, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE
    while True:
        try:
            httpx2.get(f"{provider.issuer}/jwks", timeout=DEADLINE)
            return
        except httpx2.TransportError:
            assert process.poll() is None and time.monotonic() < end, "the provider did not start"
