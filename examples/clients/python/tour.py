"""What a product does with the gateway, in gql: ``python python/tour.py``."""

from __future__ import annotations

import asyncio
import json
import os
import uuid

from gql import GraphQLRequest, gql
from gql.client import AsyncClientSession
from gql.transport.exceptions import TransportQueryError
from learning_gateway import USERS, ask, each_user, gateway, gateway_socket

URL = os.environ.get("LEARNING_GATEWAY_URL", "http://127.0.0.1:8180")
KEY = os.environ["LEARNING_GATEWAY_TOKEN"]
EXPECTED = json.loads(os.environ["EXPECTED"])

COURSES = gql("""
  query Courses($providerIds: [ID!]) {
    providers { providerId name state }
    courses(filter: {providerIds: $providerIds}) {
      nodes { id title enrollments { nodes { id state role { value } userId } } }
    }
  }
""")
FIND = gql("""
  query Find($providerIds: [ID!], $usernames: [String!], $title: String) {
    users(filter: {providerIds: $providerIds, usernames: $usernames}) { nodes { id } }
    courses(filter: {providerIds: $providerIds, search: $title}) { nodes { id } }
  }
""")
ENROLL = gql("""
  mutation Enroll($input: EnrollUserInput!) {
    enrollUser(input: $input) {
      __typename
      ... on EnrollUserPayload { created enrollment { id state } }
      ... on WriteRefused { code message field retryable }
    }
  }
""")
END = gql("""
  mutation End($input: EndEnrollmentInput!) {
    endEnrollment(input: $input) {
      __typename
      ... on EndEnrollmentPayload { changed enrollment { id state } }
      ... on WriteRefused { code message field retryable }
    }
  }
""")

REFRESH = gql("""
  mutation Refresh($input: RefreshProviderInput!) {
    refreshProvider(input: $input) {
      __typename
      ... on ImportRequested { run { id state } }
      ... on ProviderRefused { code message }
    }
  }
""")
PROGRESS = gql("""
  subscription Progress($providerId: ID!) {
    importProgress(providerId: $providerId) { id state reading counts { kind read total } }
  }
""")


async def main() -> None:
    """Show everything, and stop at the first thing that is not as it should be."""
    async with gateway(URL, KEY) as session:
        await show_courses(session)
        await show_pages(session)
        await show_a_provider_that_is_down(session)
        await show_a_mutation(session)
        await show_error_codes(session)
        await show_a_subscription(session)


async def show_courses(session: AsyncClientSession) -> None:
    """List providers, and the courses of one with their enrollments."""
    answer = await ask(session, COURSES, providerIds=["2"])
    courses = answer.data["courses"]["nodes"]
    enrollments = [row for course in courses for row in course["enrollments"]["nodes"]]
    same(len(answer.data["providers"]), 3)
    same(len(courses), EXPECTED["courses"]["2"])
    same(len(enrollments), EXPECTED["enrollments"]["2"])
    names = ", ".join(provider["name"] for provider in answer.data["providers"])
    shown("query", f"{names}; {len(courses)} courses, {len(enrollments)} enrollments")


async def show_pages(session: AsyncClientSession) -> None:
    """Walk the users of two providers to the end."""
    ids = [user["id"] async for user in each_user(session, ["1", "2"], page=9)]
    same(len(ids), EXPECTED["users"]["1"] + EXPECTED["users"]["2"])
    same(len(set(ids)), len(ids))
    shown("pages", f"{len(ids)} users by nines")


async def show_a_provider_that_is_down(session: AsyncClientSession) -> None:
    """Ask two providers of which one is switched off."""
    answer = await ask(session, USERS, filter={"providerIds": ["1", "3"]}, first=100)
    users = answer.data["users"]
    same(answer.codes, ["PROVIDER_UNAVAILABLE"])
    same(answer.errors[0]["extensions"]["providerId"], "3")
    same(len(users["nodes"]), EXPECTED["users"]["1"])
    statuses = {source["providerId"]: source["status"] for source in users["sources"]}
    same(statuses, {"1": "OK", "3": "FAILED"})
    shown("partial result", f"{len(users['nodes'])} users and {answer.codes[0]} of provider 3")


async def show_a_mutation(session: AsyncClientSession) -> None:
    """Enroll somebody, once, and end it; ask for what is refused."""
    found = await ask(session, FIND, providerIds=["2"], usernames=["prince"], title="ethics")
    user_id = found.data["users"]["nodes"][0]["id"]
    course_id = found.data["courses"]["nodes"][0]["id"]
    place = {"userId": user_id, "courseId": course_id}
    # The same key again gives the first answer and sends nothing to the provider.
    wanted = {**place, "idempotencyKey": str(uuid.uuid4())}
    first = await ask(session, ENROLL, input=wanted)
    again = await ask(session, ENROLL, input=wanted)
    same(first.data["enrollUser"]["__typename"], "EnrollUserPayload")
    same(first.data["enrollUser"]["created"], True)
    same(again.data, first.data)
    enrollment_id = first.data["enrollUser"]["enrollment"]["id"]
    ending = {"enrollmentId": enrollment_id, "courseId": course_id, "ending": "REMOVE"}
    ended = await ask(session, END, input=ending)
    same(ended.data["endEnrollment"]["enrollment"]["state"], "DROPPED")
    # What was to be expected is data, not an error.
    refused = (await ask(session, ENROLL, input={**place, "role": "PROCTOR"})).data["enrollUser"]
    same(refused["__typename"], "WriteRefused")
    same(refused["field"], "role")
    shown("mutation", f"enrolled, once, and ended; refused with {refused['code']}")


async def show_error_codes(session: AsyncClientSession) -> None:
    """Meet errors: one of the input, one of the key."""
    codes = []
    async with gateway(URL, "not a key") as stranger:
        for asking in (
            ask(session, USERS, first=5, after="not a cursor"),
            ask(stranger, USERS, first=5),
        ):
            try:
                await asking
            except TransportQueryError as error:
                codes += [found["extensions"]["code"] for found in error.errors or ()]
    same(codes, ["BAD_INPUT", "UNAUTHENTICATED"])
    shown("error codes", " and ".join(codes))


async def show_a_subscription(session: AsyncClientSession) -> None:
    """Begin an import, and watch it until it has ended."""
    refresh = await ask(session, REFRESH, input={"providerId": "1"})
    progress = GraphQLRequest(PROGRESS, variable_values={"providerId": "1"})
    async with gateway_socket(URL, KEY) as socket:
        events = [event["importProgress"] async for event in socket.subscribe(progress)]
    last = events[-1]
    same(last["id"], refresh.data["refreshProvider"]["run"]["id"])
    same(last["state"], "DONE")
    counts = {count["kind"]: count["read"] for count in last["counts"]}
    same(counts["USERS"], EXPECTED["users"]["1"])
    shown("websocket", f"{len(events)} events of an import, the last one {last['state']}")


def same(actual: object, wanted: object) -> None:
    """End the tour unless the two are equal."""
    if actual != wanted:
        raise SystemExit(f"{wanted!r} was expected, {actual!r} came")


def shown(feature: str, text: str) -> None:
    """Tell that a feature works: run.py makes the table of README.md from these lines."""
    print(f"[{feature}] {text}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
