"""An authorization server for MCP clients: it registers each, lets one person in at once, and signs tokens."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from typing import Any
from urllib.parse import urlencode

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route


class AuthorizationServer:
    """`claims` are what its tokens say of the person, `audience` and the resource that was asked for what they are for.

    `resources` are those that were asked for.

    `issuer` is its URL, which is known once it runs. Codes are good once, and only with their PKCE verifier.
    """

    def __init__(self, audience: str, **claims: Any) -> None:
        self.issuer = ""
        self.audience = audience
        self.claims = claims
        self.resources: list[str] = []
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._codes: dict[str, dict[str, str]] = {}
        self.app = Starlette(
            routes=[
                Route("/.well-known/oauth-authorization-server", self._metadata),
                Route("/.well-known/openid-configuration", self._metadata),
                Route("/register", self._register, methods=["POST"]),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/keys", self._keys),
            ]
        )

    async def _metadata(self, _: Request) -> Response:
        places = {
            "authorization_endpoint": "authorize",
            "token_endpoint": "token",
            "registration_endpoint": "register",
            "jwks_uri": "keys",
        }
        return JSONResponse(
            {
                "issuer": self.issuer,
                **{name: f"{self.issuer}/{path}" for name, path in places.items()},
                "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"],
                "token_endpoint_auth_methods_supported": ["none"],
            }
        )

    async def _register(self, request: Request) -> Response:
        return JSONResponse({**await request.json(), "client_id": secrets.token_hex(8)}, 201)

    async def _authorize(self, request: Request) -> Response:
        code, asked = secrets.token_hex(16), dict(request.query_params)
        self._codes[code] = asked
        back = {"code": code, "state": asked["state"], "iss": self.issuer}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)

    async def _token(self, request: Request) -> Response:
        form = await request.form()
        asked = self._codes.pop(str(form.get("code")), {})
        digest = hashlib.sha256(str(form.get("code_verifier")).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if asked.get("code_challenge") != challenge:
            return JSONResponse({"error": "invalid_grant"}, 400)
        resource = str(form.get("resource") or asked.get("resource"))
        self.resources.append(resource)
        now = int(time.time())
        said = {
            "iss": self.issuer,
            "aud": [self.audience, resource],
            "iat": now,
            "exp": now + 600,
            **self.claims,
        }
        token = jwt.encode(said, self._key, "RS256", headers={"kid": "1"})
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": 600})

    async def _keys(self, _: Request) -> Response:
        public = jwt.get_algorithm_by_name("RS256").to_jwk(self._key.public_key(), as_dict=True)
        return JSONResponse({"keys": [{**public, "kid": "1", "use": "sig", "alg": "RS256"}]})
