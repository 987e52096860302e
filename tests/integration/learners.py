"""A login service around a gateway: it signs learners' tokens and publishes its keys."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from running_gateway import (
    RunningGateway,
    address_of,
    listening,
    running_gateway,
    serving,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

ISSUER = "https://login.example.org/"
AUDIENCE = "learning-gateway"
SigningKey = RSAKey | ECKey | OKPKey | OctKey


def new_key(kid: str = "k1") -> SigningKey:
    """Return a key for ES256, which is made at once."""
    return ECKey.generate_key("P-256", {"kid": kid})


@dataclass(kw_only=True)
class LoginService:
    """Publishes its keys at ``url``, or something else.

    Attributes:
        said_of_keys: What is published of keys beside themselves, by their names.
        body: Is published instead, if it is given.
        fetches: How often it was asked.
    """

    url: str = ""
    keys: list[SigningKey] = field(default_factory=lambda: [new_key()])
    said_of_keys: dict[str, dict[str, str]] = field(default_factory=dict)
    body: bytes | None = None
    fetches: int = 0

    async def publish(self, _request: Request) -> Response:
        self.fetches += 1
        if self.body is not None:
            return Response(self.body)
        published = [
            {**key.as_dict(private=False), **self.said_of_keys.get(key.kid or "", {})}
            for key in self.keys
        ]
        return JSONResponse({"keys": published})

    def token(
        self,
        accounts: object = None,
        *,
        key: SigningKey | None = None,
        header: Mapping[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Sign a token that is good for five minutes; a claim that is ``None`` is left out."""
        now = int(time.time())
        signer = key or self.keys[0]
        whole = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ann",
            "iat": now,
            "exp": now + 300,
            "learning_accounts": accounts,
            **claims,
        }
        head = {"alg": "ES256", "kid": signer.kid, **(header or {})}
        return jwt.encode(
            {name: value for name, value in head.items() if value is not None},
            {name: value for name, value in whole.items() if value is not None},
            signer,
            algorithms=[head["alg"]],
        )

    def headers(self, accounts: object, **options: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token(accounts, **options)}"}


@contextlib.asynccontextmanager
async def running_login_service() -> AsyncIterator[LoginService]:
    login = LoginService()
    app = Starlette(routes=[Route("/keys", login.publish)])
    with listening() as listener:
        login.url = f"{address_of(listener)}/keys"
        async with serving(app, listener):
            yield login


@contextlib.asynccontextmanager
async def gateway_with_learners(
    folder: Path, login: LoginService, **settings: str
) -> AsyncIterator[RunningGateway]:
    given = {
        "jwt_keys": login.url,
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        **settings,
    }
    async with running_gateway(folder, **given) as gateway:
        yield gateway
