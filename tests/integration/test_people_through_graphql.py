"""From import to confirmed people, through GraphQL only: a simulated Kolibri and Canvas."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

import pytest
from overlapping import STRANGERS, canvas_school, kolibri_school, same_people
from running_gateway import RunningGateway, running_gateway

from schema.global_ids import PERSON, USER, GlobalId
from simulators.canvas.app import running as running_canvas
from simulators.canvas.state import ADMIN_TOKEN, Canvas
from simulators.kolibri.app import running as running_kolibri
from simulators.kolibri.population import Population
from simulators.kolibri.state import Kolibri

MATCHES = """query ($filter: UserMatchFilter, $first: Int = 100, $after: String) {
  userMatches(filter: $filter, first: $first, after: $after) {
    totalCount pageInfo { hasNextPage endCursor }
    nodes {
      id score weight prior status modelVersion competition competitorIds decidedBy decisionId
      left { id username displayName provider { providerId } }
      right { id username displayName provider { providerId } }
      evidence { field kind leftValue rightValue weight explanation }
    }
  }
}"""
OUTCOME = """__typename
  ... on PeopleDecided {
    changed decision { id kind userIds } person { id displayName users { id } }
  }
  ... on ProviderConflict { code message providerId userIds }
  ... on StaleDecision { code message decisionId }
  ... on PeopleRefused { code message field }"""
CONFIRM = (
    f"mutation ($input: DecideMatchInput!) {{ done: confirmMatch(input: $input) {{ {OUTCOME} }} }}"
)
REJECT = (
    f"mutation ($input: DecideMatchInput!) {{ done: rejectMatch(input: $input) {{ {OUTCOME} }} }}"
)
LINK = f"mutation ($input: LinkUsersInput!) {{ done: linkUsers(input: $input) {{ {OUTCOME} }} }}"
UNLINK = (
    f"mutation ($input: UnlinkUserInput!) {{ done: unlinkUser(input: $input) {{ {OUTCOME} }} }}"
)
MERGE = (
    f"mutation ($input: MergePeopleInput!) {{ done: mergePeople(input: $input) {{ {OUTCOME} }} }}"
)
UNDO = (
    f"mutation ($input: UndoDecisionInput!) {{ done: undoDecision(input: $input) {{ {OUTCOME} }} }}"
)
START = """mutation ($input: StartMatchRunInput!) { done: startMatchRun(input: $input) {
  __typename ... on MatchRunRequested { alreadyUnderWay run { id state } }
  ... on PeopleRefused { code field message } } }"""
RUN = """query ($id: ID!) { matchRun(id: $id) {
  id state providerIds pairsDone pairsTotal progress accountCount suggestionCount linkCount
  modelVersion notes problem } }"""
REFRESH = """mutation ($id: ID!) { refreshProvider(input: {providerId: $id}) {
  ... on ImportRequested { run { id } } ... on ProviderRefused { message } } }"""


@dataclass(kw_only=True)
class School:
    """A gateway before both, and what should come out."""

    gateway: RunningGateway
    kolibri: Kolibri
    people: Population

    async def ask(self, query: str, **variables: Any) -> Any:
        answer = await self.gateway.graphql(query, **variables)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    async def do(self, query: str, **given: Any) -> Any:
        return (await self.ask(query, input=given))["done"]

    async def import_all(self) -> None:
        for provider_id in ("1", "2"):
            await self.ask(REFRESH, id=provider_id)
        while True:
            found = await self.ask("{ providers { lastImport { state } } }")
            states = {one["lastImport"]["state"] for one in found["providers"]}
            if states == {"DONE"}:
                return
            assert "FAILED" not in states
            await asyncio.sleep(0.05)

    async def run(self, **given: Any) -> Any:
        started = await self.do(START, **given)
        assert started["__typename"] == "MatchRunRequested", started
        while True:
            run = (await self.ask(RUN, id=started["run"]["id"]))["matchRun"]
            if run["state"] in {"DONE", "FAILED"}:
                return run
            await asyncio.sleep(0.05)

    async def matches(self, **wanted: Any) -> list[Any]:
        return list((await self.ask(MATCHES, filter=wanted))["userMatches"]["nodes"])

    def is_right(self, match: Mapping[str, Any]) -> bool:
        person = same_people(self.people).get(match["right"]["username"])
        return person is not None and person.username == match["left"]["username"]


@asynccontextmanager
async def whole_school(folder: Path) -> AsyncIterator[School]:
    """Serve a gateway before a Kolibri and a Canvas, both registered."""
    people = kolibri_school()
    kolibri = Kolibri(people)
    async with (
        running_kolibri(kolibri) as kolibri_url,
        running_canvas(Canvas(canvas_school(people))) as canvas_url,
        running_gateway(folder) as gateway,
    ):
        await gateway.add_kolibri(kolibri_url)
        added = await gateway.add_provider(
            id="2", type="canvas", url=canvas_url, api_key=ADMIN_TOKEN
        )
        assert added.status_code == 200, added.text
        yield School(gateway=gateway, kolibri=kolibri, people=people)


@pytest.fixture(scope="module")
def compared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a gateway that has imported both and compared them, to be copied."""
    folder = tmp_path_factory.mktemp("compared")

    async def fill() -> None:
        async with whole_school(folder) as school:
            await school.import_all()
            await school.run()

    asyncio.run(fill())
    return folder


@pytest.fixture
async def school(compared_folder: Path, tmp_path: Path) -> AsyncIterator[School]:
    """A gateway that has imported and compared both; they are not there any more."""
    shutil.copytree(compared_folder, tmp_path, dirs_exist_ok=True)
    people = kolibri_school()
    async with running_gateway(tmp_path) as gateway:
        yield School(gateway=gateway, kolibri=Kolibri(people), people=people)


async def test_from_import_to_confirmed_people_through_graphql_only(tmp_path: Path) -> None:
    async with whole_school(tmp_path) as school:
        await school.import_all()
        run = await school.run(providerIds=["1", "2"])
        await from_matches_to_people(school, run)


async def from_matches_to_people(school: School, run: Any) -> None:
    assert (run["state"], run["pairsDone"], run["progress"]) == ("DONE", 1, 1.0)
    assert run["accountCount"] == 67 + len(canvas_school(school.people).users)
    matches = await school.matches()
    assert run["suggestionCount"] >= len(matches)
    assert [row["score"] for row in matches] == sorted(
        (row["score"] for row in matches), reverse=True
    )
    for row in matches:
        assert fsum([row["prior"], *(each["weight"] for each in row["evidence"])]) == row["weight"]
        assert all(each["explanation"] for each in row["evidence"])
        assert row["modelVersion"] == run["modelVersion"]
    sure = [row for row in matches if row["score"] >= 0.5]
    assert sum(school.is_right(row) for row in sure) >= 0.9 * len(sure)
    assert len(sure) >= 20
    for row in sure:
        if school.is_right(row):
            done = await school.do(
                CONFIRM, matchId=row["id"], expectedModelVersion=row["modelVersion"]
            )
            assert done["__typename"] == "PeopleDecided", done
            assert done["person"]["users"] == [
                {"id": row["left"]["id"]},
                {"id": row["right"]["id"]},
            ]
        else:
            await school.do(REJECT, matchId=row["id"])
    right = [row for row in sure if school.is_right(row)]
    found = await school.ask("{ people(first: 100) { nodes { id users { username } } } }")
    assert len(found["people"]["nodes"]) == len(right)
    assert all(len(person["users"]) == 2 for person in found["people"]["nodes"])
    listed = await school.ask(
        '{ users(filter: {providerIds: ["2"]}, first: 100) { nodes { username person { id } } } }'
    )
    has_person = {row["username"] for row in listed["users"]["nodes"] if row["person"]}
    assert has_person == {row["right"]["username"] for row in right}
    rest = await school.gateway.get("/api/users", params={"id": "2", "unmatched": "true"})
    assert {row["external_username"] for row in rest.json()} == {
        row["username"] for row in listed["users"]["nodes"]
    } - has_person
    assert {"theodoraquill", "ottolinevance", "barnabymarsh"} <= {
        row["external_username"] for row in rest.json()
    }


async def test_two_of_a_name_are_suggested_with_a_low_score_and_say_why(school: School) -> None:
    found = await school.matches(minScore=0.05)
    twins = [row for row in found if row["right"]["username"] == "mary.jones"]

    assert {row["left"]["username"] for row in twins} >= {"learner20", "learner21"}
    for row in twins:
        if row["left"]["username"] in {"learner20", "learner21"}:
            assert row["score"] < 0.7
            assert row["competition"] is not None
            assert row["competitorIds"]
    strangers = [row for row in found if row["right"]["displayName"] in STRANGERS]
    assert all(row["score"] < 0.2 for row in strangers)


async def test_what_was_decided_outlasts_a_new_import_and_a_new_run(tmp_path: Path) -> None:
    async with whole_school(tmp_path) as school:
        await school.import_all()
        await school.run()
        await decided_and_imported_again(school)


async def decided_and_imported_again(school: School) -> None:
    first, second, third, *_ = await school.matches()
    await school.do(CONFIRM, matchId=first["id"])
    rejected = await school.do(REJECT, matchId=second["id"])
    assert rejected["decision"]["kind"] == "REJECT"

    school.kolibri.add_user("newcomer", "Newly Come")
    await school.import_all()
    again = await school.run()

    assert again["state"] == "DONE"
    suggested = {row["id"] for row in await school.matches()}
    assert third["id"] in suggested
    assert not suggested & {first["id"], second["id"]}
    decided = await school.matches(statuses=["CONFIRMED", "REJECTED"])
    assert {row["id"]: row["status"] for row in decided} == {
        first["id"]: "CONFIRMED",
        second["id"]: "REJECTED",
    }
    undone = await school.do(UNDO, decisionId=rejected["decision"]["id"])
    assert undone["__typename"] == "PeopleDecided"
    assert second["id"] in {row["id"] for row in await school.matches()}


async def test_refusals_are_part_of_the_result_and_change_nothing(school: School) -> None:
    first, second, *_ = await school.matches()
    linked = await school.do(CONFIRM, matchId=first["id"])

    conflict = await school.do(LINK, userIds=[first["left"]["id"], second["right"]["id"]])
    stale = await school.do(REJECT, matchId=first["id"])
    old = await school.do(CONFIRM, matchId=second["id"], expectedModelVersion="old")
    again = await school.do(CONFIRM, matchId=first["id"])
    unknown = await school.do(UNDO, decisionId="4711")

    assert conflict["__typename"] == "ProviderConflict"
    assert (conflict["code"], conflict["providerId"]) == ("CONFLICT", "2")
    assert set(conflict["userIds"]) == {first["right"]["id"], second["right"]["id"]}
    assert (stale["__typename"], stale["decisionId"]) == (
        "StaleDecision",
        linked["decision"]["id"],
    )
    assert old["__typename"] == "StaleDecision"
    assert (again["changed"], again["decision"]) == (False, None)
    assert (unknown["__typename"], unknown["code"]) == ("PeopleRefused", "NOT_FOUND")
    decisions = await school.ask("{ peopleDecisions { nodes { kind decidedBy } } }")
    assert decisions["peopleDecisions"]["nodes"] == [{"kind": "CONFIRM", "decidedBy": "bootstrap"}]
    entries = await school.ask("{ auditLog(first: 100) { edges { action outcome code target } } }")
    noted = [
        (edge["action"], edge["outcome"], edge["code"])
        for edge in entries["auditLog"]["edges"]
        if edge["action"] in {"confirmMatch", "rejectMatch", "linkUsers", "undoDecision"}
    ]
    assert noted == [
        ("confirmMatch", "DONE", None),
        ("linkUsers", "REFUSED", "CONFLICT"),
        ("rejectMatch", "REFUSED", "CONFLICT"),
        ("confirmMatch", "REFUSED", "CONFLICT"),
        ("confirmMatch", "DONE", None),
        ("undoDecision", "REFUSED", "NOT_FOUND"),
    ]


async def test_an_account_is_unlinked_and_people_are_found_by_id(school: School) -> None:
    first, *_ = await school.matches()
    linked = await school.do(CONFIRM, matchId=first["id"])
    person = linked["person"]["id"]

    found = await school.ask(
        "query ($id: ID!) { node(id: $id) { ... on Person { users { id } } } }", id=person
    )
    same = await school.do(MERGE, intoId=person, fromIds=[person])
    unlinked = await school.do(UNLINK, userId=first["right"]["id"])

    assert [user["id"] for user in found["node"]["users"]] == [
        first["left"]["id"],
        first["right"]["id"],
    ]
    assert same["changed"] is False
    assert (unlinked["changed"], unlinked["person"]) == (True, None)
    (match,) = await school.matches(userId=first["right"]["id"], statuses=["REJECTED"])
    assert match["id"] == first["id"]


async def test_somebody_is_looked_up_by_traits_and_by_account(school: School) -> None:
    login, person = next(iter(same_people(school.people).items()))

    found = await school.ask(
        """query ($user: UserTraits!) { matchUser(user: $user, providerIds: ["2"], first: 3) {
          id score weight prior left { id } evidence { weight }
          right { id username matches(minScore: 0) {
            id status left { username } right { id username } weight prior evidence { weight }
          } } } }""",
        user={"displayName": person.full_name, "email": f"{login}@school.org"},
    )
    best = found["matchUser"][0]

    assert best["right"]["username"] == login
    assert (best["id"], best["left"]) == (None, None)
    match = best["right"]["matches"][0]
    assert match["right"]["username"] == person.username
    assert (match["left"]["username"], match["status"]) == (login, "SUGGESTED")
    for row in (best, match):
        assert fsum([row["prior"], *(each["weight"] for each in row["evidence"])]) == row["weight"]


async def test_birth_year_and_gender_are_evidence_between_two_kolibris(tmp_path: Path) -> None:
    people = kolibri_school()
    async with (
        running_kolibri(Kolibri(people)) as one_url,
        running_kolibri(Kolibri(people)) as other_url,
        running_gateway(tmp_path) as gateway,
    ):
        school = School(gateway=gateway, kolibri=Kolibri(people), people=people)
        await gateway.add_kolibri(one_url)
        await gateway.add_kolibri(other_url, id="2")
        await school.import_all()
        await school.run()
        matches = await school.matches()
        listed = await school.ask(
            "{ users(first: 200) { nodes { username birthYear gender } } }",
        )

        said = {row["username"]: row for row in listed["users"]["nodes"]}
        known = [
            row
            for row in matches
            if row["left"]["username"] == row["right"]["username"]
            and said[row["left"]["username"]]["birthYear"]
            and said[row["left"]["username"]]["gender"] == "FEMALE"
        ]
        assert len(known) >= 5
        for row in known:
            shown = {each["kind"]: each for each in row["evidence"]}
            year = str(said[row["left"]["username"]]["birthYear"])
            for kind, field, value in (
                ("BIRTH_YEAR_SAME", "birthYear", year),
                ("GENDER_SAME", "gender", "FEMALE"),
            ):
                each = shown[kind]
                assert (each["field"], each["leftValue"], each["rightValue"]) == (
                    field,
                    value,
                    value,
                )
        person = said[known[0]["left"]["username"]]
        found = await school.ask(
            """query ($user: UserTraits!) { matchUser(user: $user, providerIds: ["1"], first: 1) {
              weight prior right { username } evidence { kind weight } } }""",
            user={
                "username": person["username"],
                "birthYear": person["birthYear"],
                "gender": "MALE",
            },
        )
        (match,) = found["matchUser"]
        kinds = {each["kind"] for each in match["evidence"]}
        assert match["right"]["username"] == person["username"]
        assert {"BIRTH_YEAR_SAME", "GENDER_OTHER"} <= kinds
        assert match["weight"] == fsum(
            [match["prior"], *(each["weight"] for each in match["evidence"])]
        )


async def test_a_run_links_unasked_only_where_it_may_and_is_undone_one_by_one(
    school: School,
) -> None:
    run = await school.run(linkAbove=0.95)

    linked = await school.matches(statuses=["AUTO_LINKED"])
    assert run["linkCount"] == len(linked) >= 5
    assert all(row["score"] >= 0.95 and row["decidedBy"] == "automatic" for row in linked)
    assert all(school.is_right(row) for row in linked)
    undone = await school.do(UNDO, decisionId=linked[0]["decisionId"])
    assert undone["changed"] is True
    people = await school.ask("{ people { nodes { id } } }")
    assert len(people["people"]["nodes"]) == len(linked) - 1


async def test_a_matches_list_is_walked_page_by_page(school: School) -> None:
    whole = await school.matches()

    walked: list[str] = []
    after = None
    while True:
        page = (await school.ask(MATCHES, filter=None, first=7, after=after))["userMatches"]
        walked += [row["id"] for row in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break

    assert walked == [row["id"] for row in whole]
    assert page["totalCount"] == len(whole)


async def test_people_and_decisions_are_walked_page_by_page(school: School) -> None:
    for row in (await school.matches())[:3]:
        await school.do(CONFIRM, matchId=row["id"])
    query = """query ($after: String, $other: String, $user: ID) {
      people(first: 2, after: $after, filter: {minAccounts: 2, providerIds: ["1", "2"]}) {
        edges { node { id displayName users { id } } } pageInfo { hasNextPage endCursor } }
      peopleDecisions(first: 2, after: $other, userId: $user) {
        edges { node { id kind } } pageInfo { hasNextPage endCursor } } }"""

    first = await school.ask(query)
    ends = [first[name]["pageInfo"]["endCursor"] for name in ("people", "peopleDecisions")]
    second = await school.ask(query, after=ends[0], other=ends[1])
    user = first["people"]["edges"][0]["node"]["users"][0]["id"]
    of_user = await school.ask(query, user=user)

    for name in ("people", "peopleDecisions"):
        pages = [first[name], second[name]]
        assert [page["pageInfo"]["hasNextPage"] for page in pages] == [True, False]
        ids = [edge["node"]["id"] for page in pages for edge in page["edges"]]
        assert len(ids) == len(set(ids)) == 3
    assert all(edge["node"]["displayName"] for edge in first["people"]["edges"])
    assert len(of_user["peopleDecisions"]["edges"]) == 1


async def test_wrong_input_is_refused_by_name(school: School) -> None:
    (match, *_) = await school.matches()
    user, person = match["left"]["id"], GlobalId(PERSON, "nobody").encode()
    elsewhere = GlobalId(USER, "9", "1").encode()
    asked = {
        'people(after: "x") { nodes { id } }': "after: This cursor is damaged",
        'userMatches(after: "x") { nodes { id } }': "after: This cursor is damaged",
        'peopleDecisions(after: "x") { nodes { id } }': "after: This cursor is damaged",
        "userMatches(filter: {minScore: 2}) { nodes { id } }": "minScore: 2.0 is not between",
        "matchUser(user: {}) { id }": "user: A name, a username,",
        'matchUser(user: {username: "x"}, first: 0) { id }': "first: 0 is not between 1 and 50",
        'userMatches(filter: {providerIds: ["9"]}) { nodes { id } }': "No such provider",
        f'node(id: "{match["id"]}") {{ id }}': "id: This is the id of a match",
    }
    changed = {
        f'linkUsers(input: {{userIds: ["{user}"]}})': "userIds: 2 to 100 different users",
        f'mergePeople(input: {{intoId: "{person}", fromIds: []}})': "fromIds: 1 to 20 people",
        'startMatchRun(input: {providerIds: ["1"]})': "providerIds: Two providers are needed",
        "startMatchRun(input: {expectedOverlap: 2})": "expectedOverlap: 2.0 is not between",
        f'confirmMatch(input: {{matchId: "{user}"}})': "input.matchId: This is the id of a User",
    }
    missing = {
        f'mergePeople(input: {{intoId: "{person}", fromIds: ["{person}"]}})': "intoId",
        'startMatchRun(input: {providerIds: ["1", "9"]})': "providerIds",
        f'unlinkUser(input: {{userId: "{elsewhere}"}})': "userId",
        f'linkUsers(input: {{userIds: ["{user}", "{elsewhere}"]}})': "userIds",
        'undoDecision(input: {decisionId: "x"})': "decisionId",
    }

    for document, problem in asked.items():
        answer = await school.gateway.graphql(f"{{ {document} }}")
        assert problem in answer["errors"][0]["message"], document
    for document, problem in changed.items():
        answer = await school.gateway.graphql(f"mutation {{ {document} {{ __typename }} }}")
        assert problem in answer["errors"][0]["message"], document
    for document, name in missing.items():
        refused = "{ ... on PeopleRefused { code field } }"
        answer = await school.ask(f"mutation {{ done: {document} {refused} }}")
        assert answer["done"] == {"code": "NOT_FOUND", "field": name}, document
    found = await school.ask('{ matchRun(id: "4711") { id } matchRuns { id state } }')
    assert found == {"matchRun": None, "matchRuns": [{"id": "1", "state": "DONE"}]}
    decisions = await school.ask("{ peopleDecisions { nodes { id } } }")
    assert decisions["peopleDecisions"]["nodes"] == []
    rest = await school.gateway.get("/api/users", params={"id": "1", "unmatched": "maybe"})
    assert (rest.status_code, rest.json()["detail"]) == (400, "unmatched: It is true or false")


async def test_progress_of_a_run_is_watched_until_it_ends(school: School) -> None:
    started = await school.do(START)

    body = {
        "query": f'subscription {{ matchRunProgress(id: "{started["run"]["id"]}") {{ state }} }}'
    }
    streamed = await school.gateway.client.post(
        "/graphql", json=body, headers={"Accept": "text/event-stream"}
    )

    assert '"state":"DONE"' in streamed.text.replace(" ", "")
    assert streamed.text.endswith("event: complete\ndata: \n\n")


async def test_a_key_for_one_provider_sees_no_matches_of_another(school: School) -> None:
    headers = await school.gateway.key("read:users", "write:people", "provider:1")
    first, *_ = await school.matches()

    answer = await school.gateway.client.post(
        "/graphql",
        json={"query": "{ userMatches { nodes { id } } matchRuns { id } people { nodes { id } } }"},
        headers=headers,
    )
    refused = await school.gateway.client.post(
        "/graphql",
        json={"query": CONFIRM, "variables": {"input": {"matchId": first["id"]}}},
        headers=headers,
    )

    assert answer.json() == {
        "data": {"userMatches": {"nodes": []}, "matchRuns": [], "people": {"nodes": []}}
    }
    assert refused.json()["data"]["done"]["code"] == "NOT_FOUND"
