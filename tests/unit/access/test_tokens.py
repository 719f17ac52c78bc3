"""JWTs as credentials: what is checked of one, which group it leads to, and keys that a provider changes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.servers import free_port, running
from toolway.access import tokens
from toolway.access.tokens import TokenVerifier, is_token
from toolway.errors import Busy, Forbidden, ToolwayError, Unauthorized
from toolway.settings.access import AccessConfig, GroupConfig, JwtConfig
from toolway.types import Principal

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())


def public(key: Any, **members: Any) -> dict[str, Any]:
    algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
    found: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**found, **members}


class Provider:
    """An issuer whose documents are what a test says; counts the questions."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [public(RSA, kid="one")]
        self.issuer = ""
        self.asked: list[str] = []
        self.status = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        document: Any = {"keys": self.keys}
        if scope["path"].endswith("openid-configuration"):
            document = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": orjson.dumps(document)})

    def token(
        self, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one", **claims: Any
    ) -> bytes:
        said = {
            "iss": self.issuer,
            "aud": "toolway",
            "sub": "ann",
            "exp": time.time() + 600,
            "groups": ["staff"],
        }
        said = {name: value for name, value in {**said, **claims}.items() if value is not None}
        return jwt.encode(said, key, algorithm, headers={"kid": kid} if kid else None).encode()


@contextmanager
def provider() -> Iterator[Provider]:
    app = Provider()
    with running(app, lifespan="off") as url:
        app.issuer = url
        yield app


def verifier(app: Provider, **options: Any) -> TokenVerifier:
    config = JwtConfig(issuer=app.issuer, audience=("toolway",), **options)
    groups = (GroupConfig(name="staff", tools=("a",)), GroupConfig(name="guests"))
    return TokenVerifier(AccessConfig(is_declared=True, groups=groups, jwt=config), config)


def find(one: TokenVerifier, *given: bytes) -> list[Principal]:
    async def main() -> list[Principal]:
        return [await one.find(token) for token in given]

    return anyio.run(main)


def refused(one: TokenVerifier, token: bytes) -> ToolwayError:
    with pytest.raises(ToolwayError) as raised:
        find(one, token)
    return raised.value


def test_a_token_stands_for_a_person_in_a_group() -> None:
    with provider() as app:
        first, again, other = find(verifier(app), app.token(), app.token(), app.token(sub="bob"))
        assert (first.name, first.group) == ("jwt:ann", "staff")
        assert first.id == again.id != other.id
        assert first.selection
        assert app.asked == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": time.time() - 120}, "expired_token"),
        ({"exp": None}, "invalid_token"),
        ({"aud": "another"}, "invalid_token"),
        ({"aud": None}, "invalid_token"),
        ({"iss": "http://127.0.0.1:1"}, "invalid_token"),
        ({"sub": None}, "invalid_token"),
        ({"sub": 7}, "invalid_token"),
        ({"nbf": time.time() + 86_400}, "invalid_token"),
    ],
)
def test_a_token_for_another_time_place_or_service_is_refused(claims: Any, code: str) -> None:
    with provider() as app:
        error = refused(verifier(app), app.token(**claims))
        assert isinstance(error, Unauthorized)
        assert error.code == code


def test_a_clock_that_is_a_little_off_does_no_harm() -> None:
    with provider() as app:
        assert find(
            verifier(app),
            app.token(exp=time.time() - 30),
            app.token(iat=time.time() + 30),
            app.token(exp=10**400),
        )


def test_a_token_that_anybody_can_make_is_refused() -> None:
    with provider() as app:
        app.keys.append({"kty": "oct", "kid": "shared", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"})
        one = verifier(app)
        head, body, signature = app.token().split(b".")
        for token in (
            app.token(key=None, algorithm="none"),
            app.token(key=b"secret" * 6, algorithm="HS256", kid="shared"),
            app.token(key=OTHER),
            app.token(key=OTHER, kid="two"),
            app.token(kid=None)[:-8] + b"AAAAAAAA",
            b".".join([head, body, b""]),
            b".".join([head, b"e30", signature]),
            b"eyJ.eyJ.x",
            b"eyJ\xff.\x00.\xe9",
            b"eyJhbGciOiJSUzI1NiIsImtpZCI6WyJvbmUiXX0." + body + b"." + signature,
        ):
            assert refused(one, token).code == "invalid_token", token


def test_the_audience_may_be_one_of_many_and_the_issuer_end_with_a_slash() -> None:
    with provider() as app:
        assert find(verifier(app), app.token(aud=["x", "toolway"]), app.token(iss=f"{app.issuer}/"))


@pytest.mark.parametrize(
    ("options", "claims", "group"),
    [
        ({}, {"groups": ["x", "guests", "staff"]}, "staff"),
        ({}, {"groups": "guests"}, "guests"),
        ({"groups_claim": "scope"}, {"scope": "openid guests"}, "guests"),
        ({"groups_claim": "realm_access.roles"}, {"realm_access": {"roles": ["staff"]}}, "staff"),
        ({"groups_claim": "https://x/roles"}, {"https://x/roles": ["staff"]}, "staff"),
        ({"groups": {"Team A": "guests", "b": "staff"}}, {"groups": ["b", "Team A"]}, "guests"),
        ({"groups": {"Team A": "guests"}}, {"groups": "Team A"}, "guests"),
        ({"default_group": "guests"}, {"groups": ["unknown"]}, "guests"),
        ({"default_group": "guests"}, {"groups": None}, "guests"),
        ({}, {"groups": ["unknown"]}, None),
        ({}, {"groups": None}, None),
        ({}, {"groups": {"staff": True}}, None),
        ({}, {"groups": [["staff"]]}, None),
        ({"groups": {"x": "guests"}}, {"groups": ["staff"]}, None),
    ],
)
def test_the_claims_choose_the_group(options: Any, claims: Any, group: str | None) -> None:
    with provider() as app:
        one = verifier(app, **options)
        if group is None:
            assert isinstance(refused(one, app.token(**claims)), Forbidden)
        else:
            (found,) = find(one, app.token(**claims))
            assert found.group == group


def test_people_have_the_name_of_a_claim_without_what_cannot_be_seen() -> None:
    with provider() as app:
        (found,) = find(verifier(app, name_claim="email"), app.token(email="ann@x\u202e\n"))
        assert found.name == "jwt:ann@x??"


def test_a_provider_may_change_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PAUSE_SECONDS", 0.0)
    with provider() as app:
        one = verifier(app)
        old = app.token()
        find(one, old)
        app.keys = [public(CURVE, kid="two")]
        find(one, app.token(CURVE, "ES256", "two"))
        assert refused(one, old).code == "invalid_token"
        app.keys = [public(OTHER)]
        find(one, app.token(OTHER, kid=None))
        app.keys = [public(RSA)]
        find(one, app.token(RSA, kid=None))


def test_tokens_with_unknown_keys_do_not_flood_the_provider() -> None:
    with provider() as app:
        one = verifier(app)
        find(one, app.token())
        for number in range(20):
            refused(one, app.token(OTHER, kid=f"{number}"))
        assert len(app.asked) == 2


def test_while_the_provider_is_away_its_keys_are_good_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
    with provider() as app:
        one = verifier(app)
        find(one, app.token())
        app.status = 500
        find(one, app.token(sub="bob"))
        monkeypatch.setattr(tokens, "STALE_SECONDS", 0.0)
        assert isinstance(refused(one, app.token()), Busy)


def test_without_the_keys_of_the_provider_nothing_can_be_said() -> None:
    app = Provider()
    app.issuer = f"http://127.0.0.1:{free_port()}"
    assert isinstance(refused(verifier(app), app.token()), Busy)


def test_a_provider_that_says_that_it_is_another_is_not_believed() -> None:
    with provider() as app:
        one = verifier(app)
        app.issuer = "https://elsewhere.example"
        assert isinstance(refused(one, app.token()), Busy)


def test_keys_may_stand_where_the_configuration_says() -> None:
    with provider() as app:
        find(verifier(app, jwks_uri=f"{app.issuer}/there?x=1"), app.token())
        assert app.asked == ["/there"]


@pytest.mark.parametrize(
    "secret", [b"", b"sk-toolway-x", b"eyJ", b"eyJ.a", b"eyJ.a.b.c", b"eyJ.a." + b"x" * 20_000]
)
def test_what_has_not_the_form_of_a_token_is_none(secret: bytes) -> None:
    assert not is_token(secret)
