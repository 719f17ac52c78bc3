"""An MCP server behind OAuth, and the authorization server that guards it, which allows everybody at once."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlencode

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.unit.tools.mcp.servers.bad_http import BadHTTP, answer, call


class Guarded:
    """`tokens` are good; `given` counts what kind of grant each was given for, `refused` those that were not.

    Without `metadata` it is a server of before 2025-06; without `registers` clients are registered by hand. Methods of
    `scopes` want that scope; a method that is `free` wants no token. `at_token` is waited for before a token is given.
    If it is `strict`, whoever shows a refresh token again ends the grant for all.
    """

    def __init__(
        self,
        *,
        metadata: bool = True,
        registers: bool = True,
        scopes: Mapping[str, str] = {},
        free: Collection[str] = (),
        echo: bool = False,
        strict: bool = False,
    ) -> None:
        self.tokens: set[str] = set()
        self.given: list[str] = []
        self.refused: list[str] = []
        self.asked_scopes: list[str] = []
        self.clients: list[str] = []
        self.assertions: list[str] = []
        self.codes: dict[str, str] = {}
        self.ended = False
        self._has_metadata = metadata
        self._scopes = scopes
        self._free = free
        self._echo = echo
        self._crowd = 0
        self.at_token: Callable[[], Awaitable[None]] | None = None
        self._is_strict = strict
        self._crowd_came = anyio.Event()
        routes = [
            Route("/mcp", self.mcp, methods=["POST"]),
            Route("/authorize", self.authorize),
            Route("/token", self.token, methods=["POST"]),
        ]
        if metadata:
            routes.append(Route("/.well-known/oauth-protected-resource/mcp", self.resource))
            routes.append(Route("/.well-known/oauth-authorization-server", self.metadata))
        if registers:
            routes.append(Route("/register", self.register, methods=["POST"]))
        self.app = Starlette(routes=routes)

    def gather(self, number: int) -> None:
        """Take all tokens away, and refuse requests only when so many have come."""
        self.tokens.clear()
        self._crowd, self._crowd_came = number, anyio.Event()

    async def mcp(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        said = await request.json()
        where = f'Bearer resource_metadata="{base(request)}/.well-known/oauth-protected-resource/mcp"'
        if token not in self.tokens and said["method"] not in self._free:
            self._crowd -= 1
            if self._crowd == 0:
                self._crowd_came.set()
            if self._crowd > 0:
                await self._crowd_came.wait()
            return Response(
                status_code=401, headers={"www-authenticate": where if self._has_metadata else "Bearer"}
            )
        wanted = self._scopes.get(said["method"])
        if wanted and wanted not in " ".join(self.asked_scopes[-1:]).split():
            challenge = f'{where}, error="insufficient_scope", scope="{wanted}"'
            return Response(status_code=403, headers={"www-authenticate": challenge})
        if self._echo and said["method"] == "tools/call":
            sent = request.headers["authorization"]
            text = {"type": "text", "text": f"you sent {sent} and {sent.removeprefix('Bearer ')}"}
            return JSONResponse({"jsonrpc": "2.0", "id": said["id"], "result": {"content": [text]}})
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
        self.asked_scopes.append(asked.get("scope", ""))
        self.clients.append(asked["client_id"])
        back = urlencode({"code": "code1", "state": asked["state"]})
        return RedirectResponse(f"{asked['redirect_uri']}?{back}")

    async def token(self, request: Request) -> Response:
        form = await request.form()
        kind = str(form["grant_type"])
        if self.at_token is not None:
            await self.at_token()
        if kind == "authorization_code":
            digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == self.codes.pop(str(form["code"]))
        if kind == "client_credentials" and "client_assertion" in form:
            self.assertions.append(str(form["client_assertion"]))
        elif kind == "client_credentials":
            expected = f"Basic {base64.b64encode(b'robot:s3cret').decode()}"
            if request.headers.get("authorization") != expected:
                return JSONResponse({"error": "invalid_client"}, 401)
        if kind == "refresh_token" and (self.ended or form["refresh_token"] != f"r{len(self.given)}"):
            self.refused.append(kind)
            self.ended = self.ended or self._is_strict
            return JSONResponse({"error": "invalid_grant"}, 400)
        self.given.append(kind)
        number = len(self.given)
        self.tokens = {f"t{number}-of-the-server"}
        answer: dict[str, Any] = {
            "access_token": f"t{number}-of-the-server",
            "token_type": "Bearer",
            "expires_in": 3600,
        }
        return JSONResponse(
            answer if kind == "client_credentials" else {**answer, "refresh_token": f"r{number}"}
        )


def base(request: Request) -> str:
    return str(request.base_url).rstrip("/")
