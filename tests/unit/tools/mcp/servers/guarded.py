"""An MCP server behind OAuth, and the authorization server that guards it, which allows everybody at once."""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.unit.tools.mcp.servers.bad_http import BadHTTP, answer, call


class Guarded:
    """`tokens` are good; `given` counts what kind of grant each was given for."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.given: list[str] = []
        self.codes: dict[str, str] = {}
        routes = [
            Route("/mcp", self.mcp, methods=["POST"]),
            Route("/.well-known/oauth-protected-resource/mcp", self.resource),
            Route("/.well-known/oauth-authorization-server", self.metadata),
            Route("/register", self.register, methods=["POST"]),
            Route("/authorize", self.authorize),
            Route("/token", self.token, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def mcp(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            where = f"{base(request)}/.well-known/oauth-protected-resource/mcp"
            return Response(
                status_code=401, headers={"www-authenticate": f'Bearer resource_metadata="{where}"'}
            )
        said = await request.json()
        server = BadHTTP()
        raw = call(server, said) if said["method"] == "tools/call" else answer(server, said, {})
        head, _, body = (raw or b"").partition(b"\r\n\r\n")
        return Response(body, int(head.split(b" ")[1]), media_type="application/json")

    async def resource(self, request: Request) -> Response:
        return JSONResponse({"resource": f"{base(request)}/mcp", "authorization_servers": [base(request)]})

    async def metadata(self, request: Request) -> Response:
        at = base(request)
        ends = {
            "authorization_endpoint": "authorize",
            "token_endpoint": "token",
            "registration_endpoint": "register",
        }
        more = {"response_types_supported": ["code"], "code_challenge_methods_supported": ["S256"]}
        return JSONResponse({"issuer": at, **{key: f"{at}/{path}" for key, path in ends.items()}, **more})

    async def register(self, request: Request) -> Response:
        said = {"client_id": "c1", "token_endpoint_auth_method": "none"}
        return JSONResponse({**await request.json(), **said}, 201)

    async def authorize(self, request: Request) -> Response:
        asked = request.query_params
        self.codes["code1"] = asked["code_challenge"]
        back = urlencode({"code": "code1", "state": asked["state"]})
        return RedirectResponse(f"{asked['redirect_uri']}?{back}")

    async def token(self, request: Request) -> Response:
        form = await request.form()
        kind = str(form["grant_type"])
        if kind == "authorization_code":
            digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == self.codes.pop(str(form["code"]))
        if kind == "client_credentials":
            expected = f"Basic {base64.b64encode(b'robot:s3cret').decode()}"
            if request.headers.get("authorization") != expected:
                return JSONResponse({"error": "invalid_client"}, 401)
        if kind == "refresh_token" and form["refresh_token"] != f"r{len(self.given)}":
            return JSONResponse({"error": "invalid_grant"}, 400)
        self.given.append(kind)
        number = len(self.given)
        self.tokens = {f"t{number}"}
        answer: dict[str, Any] = {"access_token": f"t{number}", "token_type": "Bearer", "expires_in": 3600}
        return JSONResponse(
            answer if kind == "client_credentials" else {**answer, "refresh_token": f"r{number}"}
        )


def base(request: Request) -> str:
    return str(request.base_url).rstrip("/")
