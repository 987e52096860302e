"""Imports through the whole application: GraphQL, server-sent events, a simulated Kolibri."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from pretend_platform import until
from pretend_roster import Key, World, a_context, a_user, an_enrollment
from running_gateway import RunningGateway, running_gateway

from gateway import streams
from resolvers.importing import content_of
from schema import build_schema
from schema.execution import execute, subscribe
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri
from storage.credentials import Secret
from storage.database import Database
from storage.imports import ImportStore, RosterKind, StagedPage, StagedRow
from storage.leases import LeaseStore
from storage.providers import ProviderStore

EVENTS = {"Accept": "text/event-stream"}
REFRESH = """mutation ($id: ID!, $accept: Boolean! = false) {
  refreshProvider(input: {providerId: $id, acceptDrop: $accept}) {
    ... on ImportRequested { alreadyUnderWay run { id providerId state requestedBy } }
    ... on ProviderRefused { code field message }
  }
}"""
LAST = """query ($id: ID!) { provider(providerId: $id) { lastImport {
  id state problem problemCode finishedAt counts { kind read before created updated deleted }
} } }"""
PROGRESS = "subscription ($id: ID!) { importProgress(providerId: $id) { id state } }"
CHANGES = """query ($since: String, $first: Int = 1000, $kinds: [RosterKind!], $ids: [ID!]) {
  changes(since: $since, first: $first, kinds: $kinds, providerIds: $ids) {
    latestCursor
    pageInfo { hasNextPage endCursor }
    edges { cursor type kind providerId externalId nodeId node {
      __typename id ... on User { displayName provenance { via } provider { name } }
    } }
  }
}"""


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def gateway(tmp_path: Path, kolibri: Kolibri) -> AsyncIterator[RunningGateway]:
    async with running(kolibri) as url, running_gateway(tmp_path) as running_one:
        await running_one.add_kolibri(url)
        yield running_one


@asynccontextmanager
async def streaming(
    gateway: RunningGateway, query: str, headers: Mapping[str, str] | None = None, **variables: Any
) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[tuple[str, Any]]]]:
    """Open an event stream; yields the answer and its events, with comments left out."""
    body = {"query": query, "variables": variables}
    async with gateway.client.stream(
        "POST", "/graphql", json=body, headers={**EVENTS, **(headers or {})}
    ) as answer:
        yield answer, events_of(answer)


async def events_of(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    waiting = ""
    async for text in answer.aiter_text():
        waiting += text
        assert "\r" not in waiting
        while "\n\n" in waiting:
            block, _, waiting = waiting.partition("\n\n")
            if block != ":":
                name, _, data = block.partition("\n")
                content = data.removeprefix("data: ")
                yield name.removeprefix("event: "), json.loads(content) if content else None


async def all_events(gateway: RunningGateway, query: str, **variables: Any) -> list[Any]:
    async with streaming(gateway, query, **variables) as (_, events):
        return [event async for event in events]


# The whole way.


async def test_a_provider_is_imported_when_asked_and_tells_how_it_went(
    gateway: RunningGateway, kolibri: Kolibri
) -> None:
    asked = (await gateway.graphql(REFRESH, id="1"))["data"]["refreshProvider"]
    events = await all_events(gateway, PROGRESS, id="1")

    assert asked["alreadyUnderWay"] is False
    assert (asked["run"]["providerId"], asked["run"]["state"]) == ("1", "QUEUED")
    states = [event["data"]["importProgress"]["state"] for name, event in events if name == "next"]
    assert states[-1] == "DONE"
    assert {event["data"]["importProgress"]["id"] for _, event in events[:-1]} == {
        asked["run"]["id"]
    }
    assert events[-1] == ("complete", None)
    last = (await gateway.graphql(LAST, id="1"))["data"]["provider"]["lastImport"]
    users = (await gateway.users()).json()
    assert last["counts"][0] == {
        "kind": "USERS",
        "read": len(users),
        "before": 0,
        "created": len(users),
        "updated": 0,
        "deleted": 0,
    }
    assert [counts["kind"] for counts in last["counts"]] == ["USERS", "COURSES", "ENROLLMENTS"]
    found = (await gateway.graphql(CHANGES, kinds=["USERS"]))["data"]["changes"]
    assert {edge["externalId"] for edge in found["edges"]} == {
        user["external_user_id"] for user in users
    }
    assert {edge["type"] for edge in found["edges"]} == {"CREATED"}
    again = (await gateway.graphql(CHANGES, since=found["latestCursor"]))["data"]["changes"]
    assert (again["edges"], again["latestCursor"]) == ([], found["latestCursor"])


async def test_a_plain_caller_is_told_how_to_subscribe(gateway: RunningGateway) -> None:
    for accept in ("application/json", "*/*", "application/graphql-response+json"):
        answer = await gateway.client.post(
            "/graphql",
            json={"query": PROGRESS, "variables": {"id": "1"}},
            headers={"Accept": accept},
        )

        assert answer.status_code == 400
        assert answer.json()["errors"] == [
            {
                "message": "query: A subscription is answered as server-sent events: send it with"
                " Accept: text/event-stream",
                "extensions": {"code": "BAD_INPUT"},
            }
        ]


async def test_an_event_stream_says_what_it_is(gateway: RunningGateway) -> None:
    async with streaming(gateway, PROGRESS, id="1") as (answer, events):
        got = [event async for event in events]

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "accept" in answer.headers["vary"].lower()
    assert got == [("complete", None)]  # never imported


async def test_a_query_is_streamed_only_to_those_who_prefer_that(gateway: RunningGateway) -> None:
    streamed = 'event: next\ndata: {"data":{"__typename":"Query"}}\n\nevent: complete\ndata: \n\n'
    whole = '{"data":{"__typename":"Query"}}'
    expected = {
        "text/event-stream": (200, streamed),
        "text/event-stream, application/json;q=0.5": (200, streamed),
        "application/json;q=0.5, text/event-stream;q=0.6": (200, streamed),
        "application/json, text/event-stream": (200, whole),
        "text/event-stream, application/json": (200, whole),
        "text/event-stream;q=0, application/json": (200, whole),
        "*/*": (200, whole),
    }

    found = {}
    for accept in [*expected, "text/*"]:
        answer = await gateway.client.post(
            "/graphql", json={"query": "{ __typename }"}, headers={"Accept": accept}
        )
        found[accept] = (answer.status_code, answer.text)

    assert found.pop("text/*")[0] == 406
    assert found == expected


async def test_a_subscription_is_streamed_to_those_who_name_it_anywhere(
    gateway: RunningGateway,
) -> None:
    named = {
        "query": f"query Q {{ __typename }} {PROGRESS.replace('(', 'S (', 1)}",
        "operationName": "S",
        "variables": {"id": "1"},
    }
    for accept, body in (
        ("application/json, text/event-stream", {"query": PROGRESS, "variables": {"id": "1"}}),
        ("application/graphql-response+json, application/json, text/event-stream", named),
    ):
        answer = await gateway.client.post("/graphql", json=body, headers={"Accept": accept})

        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.text == ":\n\nevent: complete\ndata: \n\n"


async def test_a_subscription_may_come_by_get_and_a_mutation_may_not(
    gateway: RunningGateway,
) -> None:
    parameters = {"query": PROGRESS, "variables": json.dumps({"id": "1"})}
    answer = await gateway.client.get("/graphql", params=parameters, headers=EVENTS)
    refused = await gateway.client.get(
        "/graphql",
        params={"query": REFRESH, "variables": json.dumps({"id": "1"})},
        headers=EVENTS,
    )

    assert answer.text == ":\n\nevent: complete\ndata: \n\n"
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


async def test_what_is_wrong_with_a_subscription_is_its_only_event(
    gateway: RunningGateway,
) -> None:
    for query, variables, code in (
        ("subscription { nothing }", {}, "BAD_INPUT"),
        ("subscription {", {}, "BAD_INPUT"),
        (PROGRESS, {}, "BAD_INPUT"),
        (PROGRESS, {"id": "unknown"}, "PROVIDER_NOT_FOUND"),
        ('subscription { changes(since: "x") { cursor } }', {}, "BAD_INPUT"),
    ):
        events = await all_events(gateway, query, **variables)

        assert [name for name, _ in events] == ["next", "complete"]
        assert [error["extensions"]["code"] for error in events[0][1]["errors"]] == [code]


async def test_without_a_good_key_there_is_no_stream(gateway: RunningGateway) -> None:
    async with streaming(gateway, PROGRESS, headers={"Authorization": "x"}, id="1") as (answer, _):
        await answer.aread()

    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


async def test_a_caller_who_goes_away_ends_the_stream(gateway: RunningGateway) -> None:
    query = "subscription { changes { cursor } }"
    async with streaming(gateway, query) as (answer, _):
        await anext(answer.aiter_bytes())
        assert gateway.parts.admission.load().subscriptions == 1

    await until(lambda: not gateway.parts.admission.load().subscriptions)


async def test_streams_are_cut_off_without_an_ending_when_the_gateway_stops(
    gateway: RunningGateway,
) -> None:
    async with streaming(gateway, "subscription { changes { cursor } }") as (answer, _):
        pieces = answer.aiter_raw()
        first = await anext(pieces)
        gateway.app.state.draining = True
        rest = b"".join([piece async for piece in pieces])

    assert (first, rest) == (b":\n\n", b"")


async def test_a_silent_stream_is_kept_alive_for_as_long_as_its_key_is_good() -> None:
    looks = [True, True, False]
    ended = asyncio.Event()

    async def silent() -> AsyncGenerator[dict[str, Any], None]:
        try:
            await asyncio.Event().wait()
            yield {}
        finally:
            ended.set()

    async def may_go_on() -> bool:
        return looks.pop(0)

    written = streams.written(
        streams.Steps(silent()),
        streams.EVENT_STREAM,
        body_of=lambda body: body,
        may_go_on=may_go_on,
        is_stopping=lambda: False,
        beat_seconds=0.01,
    )
    pieces = [piece async for piece in written]

    assert pieces == [b":\n\n"] * 3
    assert ended.is_set()


async def test_changes_are_followed_as_they_come(gateway: RunningGateway) -> None:
    query = "subscription ($c: String) { changes(since: $c, kinds: [COURSES]) { type kind } }"
    now = (await gateway.graphql(CHANGES))["data"]["changes"]["latestCursor"]
    async with streaming(gateway, query, c=now) as (_, events):
        await gateway.graphql(REFRESH, id="1")
        name, event = await anext(events)

    assert (name, event) == ("next", {"data": {"changes": {"type": "CREATED", "kind": "COURSES"}}})


# What a key may do and see, in memory.


class Desk:
    """A world with a database of imports, and questions to it."""

    def __init__(self, database: Database, key_ring: Any) -> None:
        self.world = World()
        self.imports = ImportStore(database)
        self.leases = LeaseStore(database, key_ring, owner="tests")
        self.providers = ProviderStore(database, key_ring)
        self.schema = build_schema()

    async def add(self, *provider_ids: str) -> None:
        for provider_id in provider_ids:
            self.world.add(provider_id)
            await self.providers.add(
                id=provider_id,
                platform="pretend",
                name="Pretend",
                base_url="http://pretend.example",
                credentials=Secret({}),
            )

    async def import_(self, provider_id: str, **rows: Any) -> None:
        await self.imports.request(provider_id, requested_by="key", accept_drop=False)
        claim = await self.leases.claim_job("import", provider_id, lease_seconds=30)
        assert claim is not None
        run = await self.imports.begin(claim, scheduled=False, resume_seconds=60)
        for kind in RosterKind:
            assert run is not None
            page = StagedPage(
                kind=kind, rows=rows.get(kind.value.lower(), []), position=None, total=None
            )
            run = await self.imports.stage(claim, run, page, lease_seconds=30)
        assert run is not None
        await self.imports.apply(claim, run, next_seconds=None)

    def context(self, key: Key | None = None, subjects: Mapping[str, str] | None = None) -> Any:
        return replace_imports(a_context(self.world, key, subjects), self.imports)

    async def ask(
        self,
        query: str,
        key: Key | None = None,
        subjects: Mapping[str, str] | None = None,
        **variables: Any,
    ) -> dict[str, Any]:
        body = {"query": query, "variables": variables}
        _, answer = await execute(self.schema, body, self.context(key, subjects))
        return answer

    async def changes(self, key: Key | None = None, **variables: Any) -> dict[str, Any]:
        answer = await self.ask(CHANGES, key, **variables)
        assert "errors" not in answer, answer
        found: dict[str, Any] = answer["data"]["changes"]
        return found


def replace_imports(context: Any, imports: ImportStore) -> Any:
    context.imports = imports
    return context


def codes(answer: Mapping[str, Any]) -> list[str]:
    return [error["extensions"]["code"] for error in answer["errors"]]


def rows(*records: Any) -> list[StagedRow]:
    return [content_of(record) for record in records]


@pytest.fixture
def desk(sqlite_database: Database, key_ring: Any) -> Desk:
    return Desk(sqlite_database, key_ring)


async def test_changes_hold_the_row_or_the_ids_of_what_is_gone(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_(
        "1",
        users=rows(a_user("1", 1), a_user("1", 2)),
        enrollments=rows(an_enrollment("1", "u1", "c")),
    )
    before = await desk.changes()
    await desk.import_("1", users=rows(a_user("1", 1, display_name="New")))

    found = await desk.changes(since=before["latestCursor"])

    ids = {edge["externalId"]: edge["nodeId"] for edge in before["edges"]}
    assert before["edges"][0]["node"]["id"] == ids["u1"]
    assert [
        (edge["type"], edge["kind"], edge["externalId"], edge["nodeId"]) for edge in found["edges"]
    ] == [
        ("UPDATED", "USERS", "u1", ids["u1"]),
        ("DELETED", "ENROLLMENTS", "u1-c", ids["u1-c"]),
        ("DELETED", "USERS", "u2", ids["u2"]),
    ]
    assert [edge["node"] for edge in found["edges"]] == [
        {
            "__typename": "User",
            "id": ids["u1"],
            "displayName": "New",
            "provenance": {"via": "CACHE"},
            "provider": {"name": "School 1"},
        },
        None,
        None,
    ]


async def test_changes_are_walked_page_by_page(desk: Desk) -> None:
    await desk.add("1")
    await desk.import_("1", users=rows(*(a_user("1", number) for number in range(5))))

    walked, since, more = [], None, True
    while more:
        page = await desk.changes(first=2, since=since)
        walked += [edge["externalId"] for edge in page["edges"]]
        since, more = page["pageInfo"]["endCursor"], page["pageInfo"]["hasNextPage"]

    assert walked == ["u0", "u1", "u2", "u3", "u4"]
    assert since == page["latestCursor"]


async def test_a_key_sees_changes_of_its_providers_and_of_what_it_may_read(desk: Desk) -> None:
    await desk.add("1", "2")
    await desk.import_(
        "1", users=rows(a_user("1", 1)), enrollments=rows(an_enrollment("1", "a", "b"))
    )
    await desk.import_("2", users=rows(a_user("2", 2)))
    narrow = Key(scopes=frozenset({"read:users"}), hidden=frozenset({"1"}))
    reader = Key(scopes=frozenset({"read:users"}))

    assert [edge["externalId"] for edge in (await desk.changes(narrow))["edges"]] == ["u2"]
    assert [edge["externalId"] for edge in (await desk.changes(reader))["edges"]] == ["u1", "u2"]
    assert codes(await desk.ask(CHANGES, reader, kinds=["ENROLLMENTS"])) == ["FORBIDDEN"]
    assert codes(await desk.ask(CHANGES, Key(scopes=frozenset({"read:providers"})))) == [
        "FORBIDDEN"
    ]
    assert codes(await desk.ask(CHANGES, narrow, ids=["1"])) == ["PROVIDER_NOT_FOUND"]
    assert codes(await desk.ask(CHANGES, subjects={"1": "u1"})) == ["FORBIDDEN"]


@pytest.mark.parametrize("since", ["", "x", "AAAA" * 20])
async def test_a_cursor_of_nobody_is_refused(desk: Desk, since: str) -> None:
    answer = await desk.ask(CHANGES, since=since)

    assert codes(answer) == ["BAD_INPUT"]
    assert answer["errors"][0]["message"].startswith("since: ")


async def test_a_cursor_older_than_the_changes_kept_says_so_and_what_to_do(desk: Desk) -> None:
    await desk.add("1")
    old = (await desk.changes())["latestCursor"]
    await desk.import_("1", users=rows(a_user("1", 1)))
    kept = (await desk.changes())["latestCursor"]
    await desk.imports.sweep_changes(kept_seconds=-60)

    answer = await desk.ask(CHANGES, since=old)

    assert codes(answer) == ["BAD_INPUT"]
    assert "take latestCursor, read the lists anew" in answer["errors"][0]["message"]
    assert (await desk.changes(since=kept))["edges"] == []


async def test_the_last_imports_of_many_providers_are_one_question(desk: Desk) -> None:
    await desk.add(*(f"p{number}" for number in range(20)))
    await desk.import_("p3")
    questions: list[int] = []
    context = desk.context()

    class Counting(ImportStore):
        async def list_last_runs(self, provider_ids: Any) -> Any:
            questions.append(len(provider_ids))
            return await super().list_last_runs(provider_ids)

    context.imports = Counting(desk.imports._database)
    _, answer = await execute(
        desk.schema, {"query": "{ providers { lastImport { state } } }"}, context
    )

    found = [provider["lastImport"] for provider in answer["data"]["providers"]]
    assert questions == [20]
    assert found == [{"state": "DONE"} if number == 3 else None for number in range(20)]


@pytest.mark.parametrize(
    ("key", "subjects"),
    [(Key(scopes=frozenset({"read:users"})), {}), (Key(), {"1": "u1"})],
)
async def test_imports_are_for_those_who_may_see_providers(
    desk: Desk, key: Key, subjects: Mapping[str, str]
) -> None:
    await desk.add("1")
    await desk.import_("1")

    last = await desk.ask(LAST, key, subjects, id="1")
    refreshed = await desk.ask(REFRESH, key, subjects, id="1")
    body = {"query": PROGRESS, "variables": {"id": "1"}}
    events = subscribe(desk.schema, body, desk.context(key, subjects), event_seconds=1)
    watched = [event async for event in events]

    assert codes(last) == codes(refreshed) == codes(watched[0]) == ["FORBIDDEN"]
    assert last["data"]["provider"]["lastImport"] is None
    assert len(watched) == 1
    assert (await desk.leases.find_job("import", "1")) is None


async def test_what_cannot_be_imported_is_refused(desk: Desk) -> None:
    await desk.add("1")
    roster = desk.world.rosters["1"]
    roster.provider = replace(roster.provider, state=type(roster.provider.state).DISABLED)

    disabled = (await desk.ask(REFRESH, id="1"))["data"]["refreshProvider"]
    unknown = (await desk.ask(REFRESH, id="2"))["data"]["refreshProvider"]
    hidden = (await desk.ask(REFRESH, Key(hidden=frozenset({"1"})), id="1"))["data"]

    assert (disabled["code"], disabled["field"]) == ("BAD_INPUT", "providerId")
    assert (unknown["code"], unknown["field"]) == ("PROVIDER_NOT_FOUND", "providerId")
    assert hidden["refreshProvider"] == unknown


async def test_asking_again_while_an_import_is_under_way_gives_that_one(desk: Desk) -> None:
    await desk.add("1")

    first = (await desk.ask(REFRESH, id="1"))["data"]["refreshProvider"]
    again = (await desk.ask(REFRESH, id="1", accept=True))["data"]["refreshProvider"]

    assert (first["alreadyUnderWay"], again["alreadyUnderWay"]) == (False, True)
    assert first["run"] == again["run"]
    assert first["run"]["requestedBy"] == "key"


async def test_a_fault_of_ours_in_a_subscription_is_masked(desk: Desk) -> None:
    await desk.add("1")

    class Broken(ImportStore):
        async def list_last_runs(self, provider_ids: Any) -> Any:
            raise RuntimeError("canary")

    context = desk.context()
    context.imports = Broken(desk.imports._database)
    body = {"query": PROGRESS, "variables": {"id": "1"}}
    with structlog.testing.capture_logs() as logged:
        events = [event async for event in subscribe(desk.schema, body, context, event_seconds=1)]

    assert codes(events[0]) == ["INTERNAL"]
    assert [line["event"] for line in logged] == ["internal_error"]
    assert "canary" not in json.dumps(events)
    assert len(events) == 1


async def test_progress_is_told_when_there_is_some(desk: Desk) -> None:
    await desk.add("1")
    asked = await desk.imports.request("1", requested_by="key", accept_drop=False)
    body = {"query": PROGRESS, "variables": {"id": "1"}}
    events = subscribe(desk.schema, body, desk.context(), event_seconds=1)
    first = await anext(events)
    waiting = asyncio.ensure_future(anext(events))
    done, _ = await asyncio.wait({waiting}, timeout=0.7)  # it has looked once more meanwhile

    await desk.import_("1")

    told = [first, await waiting, *[event async for event in events]]
    states = [event["data"]["importProgress"]["state"] for event in told]
    assert asked is not None
    assert done == set()
    assert [state for state in states if state != "RUNNING"] == ["QUEUED", "DONE"]
    assert states[-1] == "DONE"


async def test_followed_changes_come_in_order_over_many_pages(desk: Desk) -> None:
    await desk.add("1")
    since = (await desk.changes())["latestCursor"]
    await desk.import_("1", users=rows(*(a_user("1", number) for number in range(250))))
    query = """subscription ($since: String) {
      changes(since: $since, providerIds: ["1"]) { externalId }
    }"""
    body = {"query": query, "variables": {"since": since}}

    events = subscribe(desk.schema, body, desk.context(), event_seconds=1)
    followed = [(await anext(events))["data"]["changes"]["externalId"] for _ in range(250)]
    await events.aclose()

    assert followed == sorted(f"u{number}" for number in range(250))


async def test_where_there_are_no_imports_that_is_said(desk: Desk) -> None:
    await desk.add("1")

    answers = []
    for query in (CHANGES, REFRESH, LAST):
        body = {"query": query, "variables": {"id": "1"}}
        answers.append((await execute(desk.schema, body, a_context(desk.world)))[1])

    assert codes(answers[0]) == codes(answers[1]) == ["NOT_SUPPORTED"]
    assert answers[2] == {"data": {"provider": {"lastImport": None}}}
