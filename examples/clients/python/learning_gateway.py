"""learning-gateway with gql: copy this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gql import Client, GraphQLRequest, gql
from gql.client import AsyncClientSession
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.exceptions import TransportQueryError
from gql.transport.websockets import WebsocketsTransport

USERS = gql("""
  query Users($filter: UserFilter, $first: Int!, $after: String) {
    users(filter: $filter, first: $first, after: $after) {
      nodes { id displayName email provider { providerId } }
      pageInfo { hasNextPage endCursor }
      sources { providerId status code retryable retryAfterSeconds }
    }
  }
""")


def gateway(url: str, key: str) -> Client:
    """Return a client of the gateway at an address, to be opened with ``async with``."""
    headers = {"Authorization": f"Bearer {key}"}
    return Client(transport=AIOHTTPTransport(url=f"{url}/graphql", headers=headers))


def gateway_socket(url: str, key: str) -> Client:
    """Return a client for subscriptions, by a websocket; also to be opened with ``async with``."""
    address = url.replace("http", "ws", 1) + "/graphql"
    payload = {"Authorization": f"Bearer {key}"}
    return Client(transport=WebsocketsTransport(url=address, init_payload=payload))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came, and what is missing: a provider that is down costs its rows and one error."""

    data: Mapping[str, Any]
    errors: Sequence[Mapping[str, Any]] = ()

    @property
    def codes(self) -> Sequence[str]:
        """The stable codes of the errors."""
        return [error["extensions"]["code"] for error in self.errors]


async def ask(session: AsyncClientSession, document: GraphQLRequest, **variables: object) -> Answer:
    """Return an answer with what is missing from it.

    gql raises as soon as there is an error, and carries what came beside it in the exception.

    Raises:
        TransportQueryError: Nothing came back; its ``errors`` carry ``extensions.code``.
    """
    document = GraphQLRequest(document, variable_values=variables)
    try:
        return Answer(data=await session.execute(document))
    except TransportQueryError as error:
        if not error.data or all(field is None for field in error.data.values()):
            raise
        return Answer(data=error.data, errors=error.errors or ())


async def each_user(
    session: AsyncClientSession, provider_ids: Sequence[str], *, page: int = 500
) -> AsyncIterator[Mapping[str, Any]]:
    """Yield every user of some providers, page by page.

    Raises:
        TransportQueryError: The list could not be had at all.
    """
    after = None
    while True:
        answer = await ask(
            session, USERS, filter={"providerIds": provider_ids}, first=page, after=after
        )
        users = answer.data["users"]
        for user in users["nodes"]:
            yield user
        if not users["pageInfo"]["hasNextPage"]:
            return
        after = users["pageInfo"]["endCursor"]
