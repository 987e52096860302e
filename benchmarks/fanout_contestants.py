"""The least that `benchmarks/fanout.py` compares with: the same calls without a gateway.

    uvicorn fanout_contestants:app, with UPSTREAM and KEY in the environment

An endpoint that takes the body of a GraphQL request, reads no more of it than how many users are
wanted, makes the calls that are needed with the gateway's own HTTP client, at most as many at once
as the platform allows the gateway, and puts dictionaries together.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import msgspec
from register_platform import AT_ONCE, CALLS_AT_ONCE
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sessions.addresses import AddressPolicy
from sessions.http import HttpLimits, ProviderHttp
from sessions.sharing import work_off


async def roster(http: ProviderHttp, first: int) -> dict[str, Any]:
    """Return users with their enrollments and courses, level by level."""

    async def page(offset: int) -> Any:
        limit = min(AT_ONCE, first - offset)
        return await _read(http, "/users", {"offset": offset, "limit": limit})

    begun = await page(0)
    end = min(first, begun["total"])
    rest = await work_off(range(AT_ONCE, end, AT_ONCE), page, at_once=CALLS_AT_ONCE)
    users = [*begun["rows"], *chain.from_iterable(rest[at]["rows"] for at in sorted(rest))]
    user_ids = [user["id"] for user in users]
    enrollments = await _of_ids(http, "/enrollments", "user_ids", user_ids)
    course_ids = list(dict.fromkeys(row["course_id"] for row in enrollments))
    courses = {row["id"]: row for row in await _of_ids(http, "/courses", "ids", course_ids)}
    places: dict[str, list[Any]] = {user_id: [] for user_id in user_ids}
    for row in enrollments:
        course = courses[row["course_id"]]
        places[row["user_id"]].append(
            {
                "role": {"value": row["role"]},
                "state": row["state"],
                "course": {
                    "externalId": course["id"],
                    "title": course["title"],
                    "courseCode": course["code"],
                },
            }
        )
    nodes = [
        {
            "externalId": user["id"],
            "displayName": user["name"],
            "username": user["username"],
            "email": user["email"],
            "enrollments": {"nodes": places[user["id"]]},
        }
        for user in users
    ]
    return {"data": {"users": {"nodes": nodes}}}


async def _of_ids(http: ProviderHttp, path: str, name: str, ids: Sequence[str]) -> list[Any]:
    async def batch(start: int) -> Any:
        return await _read(http, path, {name: ",".join(ids[start : start + AT_ONCE])})

    found = await work_off(range(0, len(ids), AT_ONCE), batch, at_once=CALLS_AT_ONCE)
    return [*chain.from_iterable(found[start] for start in sorted(found))]


async def _read(http: ProviderHttp, path: str, params: dict[str, str | int]) -> Any:
    headers = {"authorization": f"Bearer {os.environ['KEY']}"}
    answer = await http.request("GET", path, params=params, headers=headers)
    assert answer.status == 200
    return msgspec.json.decode(answer.body)


def _application() -> Starlette:
    @asynccontextmanager
    async def lifespan(application: Starlette) -> AsyncIterator[None]:
        policy = AddressPolicy(allowed_networks=["127.0.0.0/8"])
        limits = HttpLimits(concurrency=CALLS_AT_ONCE)
        async with ProviderHttp.open(
            os.environ["UPSTREAM"], provider_id="1", policy=policy, limits=limits
        ) as http:
            application.state.http = http
            yield

    async def endpoint(request: Request) -> Response:
        body = msgspec.json.decode(await request.body())
        found = await roster(request.app.state.http, body["variables"]["first"])
        return Response(msgspec.json.encode(found), media_type="application/json")

    async def hello(_: Request) -> Response:
        return Response(b"{}", media_type="application/json")

    routes = [Route("/", endpoint, methods=["POST"]), Route("/ready", hello)]
    return Starlette(routes=routes, lifespan=lifespan)


if "UPSTREAM" in os.environ:
    app = _application()
