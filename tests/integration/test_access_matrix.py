"""Every field with every set of scopes: what each caller is answered is what the rules say.

The fields come from the schema, so that one without a rule, or without a probe here, fails.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import strawberry
from learners import LoginService, gateway_with_learners, running_login_service
from pretend_roster import SCHEMA
from running_gateway import ADMIN, RunningGateway

from resolvers.context import Scope
from schema.access import (
    REACHED_BY,
    RULES,
    check_rules,
    field_of,
    fields_that_need_a_rule,
)
from schema.global_ids import PERSON, PROVIDER, USER, GlobalId, match_id
from simulators.kolibri.app import running
from simulators.kolibri.population import PASSWORD, build_population
from simulators.kolibri.state import Kolibri
from storage.credentials import Secret
from storage.imports import RosterKind
from storage.matching import MatchOrder
from storage.people import Decided
from storage.records import ProviderState

ALLOWED, FORBIDDEN, ABSENT = "yes", "·", "nothing"
PAGE = Path(__file__).parents[2] / "docs" / "access.md"
AT_ONCE = 15


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A column of the matrix.

    Attributes:
        sees: Whether provider 1 exists for it.
    """

    title: str
    scopes: frozenset[str] = frozenset()
    sees: bool = True
    learner: bool = False

    def answer(self, name: str) -> str:
        """Return what the rules say of a field."""
        rule, reached_by = RULES[name], reached(name)
        if not self.sees and self.learner and not is_root(name):
            return ABSENT  # the object that the field is of does not exist
        admin = Scope.ADMIN in self.scopes
        if self.learner:
            allowed = rule.learners
        else:
            allowed = admin or rule.scopes | reached_by <= self.scopes
            allowed &= admin or not rule.any_of or bool(rule.any_of & self.scopes)
        if not allowed:
            return FORBIDDEN
        return ALLOWED if self.sees or name == "Query.auditLog" else ABSENT


def reached(name: str) -> frozenset[Scope]:
    """Return what a key needs to come by the object that a field is of."""
    return REACHED_BY.get(name.partition(".")[0], frozenset())


def is_root(name: str) -> bool:
    return name.startswith(("Query.", "Mutation.", "Subscription."))


EVERY_SCOPE = frozenset(scope.value for scope in Scope if scope is not Scope.ADMIN)
SHOWN = (
    Caller(title="no scope"),
    *(Caller(title=scope, scopes=frozenset({scope})) for scope in Scope),
    Caller(title="all, another provider", scopes=EVERY_SCOPE, sees=False),
    Caller(title="learner", learner=True),
)
"""The columns of the table in the documentation."""

SETS = {reached(name) | rule.scopes for name, rule in RULES.items()}
CALLERS = (
    *SHOWN,
    *(Caller(title="exactly what is needed", scopes=frozenset(needed))
      for needed in SETS if len(needed) > 1),
    *(Caller(title="all but one", scopes=EVERY_SCOPE - {scope}) for scope in sorted(EVERY_SCOPE)),
    Caller(title="admin, another provider", scopes=frozenset({"admin"}), sees=False),
    Caller(title="learner elsewhere", learner=True, sees=False),
)  # fmt: skip

PROBES = {
    "Query.node(Provider)": "node(id: $provider) { id }",
    "Query.node(User)": "node(id: $user) { id }",
    "Query.node(Course)": "node(id: $course) { id }",
    "Query.node(Enrollment)": "node(id: $place) { id }",
    "Query.nodes(Provider)": "nodes(ids: [$provider]) { id }",
    "Query.nodes(User)": "nodes(ids: [$user]) { id }",
    "Query.nodes(Course)": "nodes(ids: [$course]) { id }",
    "Query.nodes(Enrollment)": "nodes(ids: [$place]) { id }",
    "Query.providers": "providers { id }",
    "Query.provider": 'provider(providerId: "1") { id }',
    "Query.user": "user(id: $user) { id }",
    "Query.users": "users(first: 1) { nodes { id } }",
    "Query.course": "course(id: $course) { id }",
    "Query.courses": "courses(first: 1) { nodes { id } }",
    "Query.enrollments": "enrollments(filter: {userIds: [$user]}) { nodes { id } }",
    "Query.changes": 'changes(providerIds: ["1"], first: 1) { latestCursor }',
    "Query.auditLog": "auditLog(first: 1) { edges { action } }",
    "Query.node(Person)": "node(id: $person) { id }",
    "Query.nodes(Person)": "nodes(ids: [$person]) { id }",
    "Query.people": "people(first: 1) { nodes { id } }",
    "Query.userMatches": "userMatches(first: 1, filter: {statuses: [CONFIRMED]}) { nodes { id } }",
    "Query.matchUser": 'matchUser(user: {displayName: "Plato"}, first: 1) { score }',
    "Query.matchRun": "matchRun(id: $run) { id }",
    "Query.matchRuns": "matchRuns(first: 1) { id }",
    "Query.peopleDecisions": "peopleDecisions(first: 1) { nodes { id } }",
    "ProviderSession.authorizationUrl": 'provider(providerId: "1") {'
    " sessions { authorizationUrl } }",
    **{
        f"{of}.{field}": f"{root} {{ id {field} {inside} }}"
        for of, root, fields in (
            (
                "Provider",
                'provider(providerId: "1")',
                {
                    **dict.fromkeys(("baseUrl", "accountId", "version", "problem"), ""),
                    "capabilities": "",
                    "sessions": "{ subject }",
                    "health": "{ waiting }",
                    "lastImport": "{ id }",
                },
            ),
            (
                "User",
                "user(id: $user)",
                {
                    "provider": "{ id }",
                    "enrollments": "{ nodes { id } }",
                    "activity": "{ kind }",
                    "person": "{ id }",
                    "matches": "{ score }",
                },
            ),
            (
                "Course",
                "course(id: $course)",
                {
                    "provider": "{ id }",
                    "iconUrl": "",
                    "icon": "{ url }",
                    "enrollments": "{ nodes { id } }",
                    "sections": "{ title }",
                },
            ),
            (
                "Enrollment",
                "node(id: $place) { ... on Enrollment",
                {
                    "provider": "{ id }",
                    "user": "{ id }",
                    "course": "{ id }",
                    "section": "{ title }",
                    "milestones": "{ title }",
                    "progress": "{ ratio } ",
                },
            ),
        )
        for field, inside in fields.items()
    },
}
PROBES = {
    name: f"{text} }}" if name.startswith("Enrollment.") else text for name, text in PROBES.items()
}
MUTATIONS = {
    "registerProvider": '(input: {providerId: "1", platform: "x", baseUrl: "x", credentials: {}})',
    "updateProvider": '(input: {providerId: "1", baseUrl: "x"})',
    "checkProvider": "(providerId: $victim)",
    "refreshProvider": "(input: {providerId: $victim})",
    "revokeSession": "(providerId: $victim)",
    "removeProvider": "(providerId: $victim)",
    "beginAuthorization": '(input: {providerId: "1"})',
    "createUser": '(input: {providerId: "1", username: "x", displayName: "x"})',
    "createLogin": '(input: {userId: $user, username: "x"})',
    "enrollUser": "(input: {userId: $user, courseId: $course})",
    "endEnrollment": "(input: {enrollmentId: $place})",
    "startMatchRun": '(input: {providerIds: ["1", "8"]})',
    "confirmMatch": "(input: {matchId: $match})",
    "rejectMatch": "(input: {matchId: $match})",
    "linkUsers": "(input: {userIds: [$user, $same]})",
    "unlinkUser": "(input: {userId: $loner})",
    "mergePeople": "(input: {intoId: $person, fromIds: [$person]})",
    "undoDecision": "(input: {decisionId: $decision})",
}
"""In this order: the provider that is refreshed is removed then, and checked while it is there."""

REFUSED = {
    "WriteRefused": {"createUser", "createLogin", "enrollUser", "endEnrollment"},
    "PeopleRefused": {
        *("startMatchRun", "confirmMatch", "rejectMatch", "linkUsers", "unlinkUser"),
        *("mergePeople", "undoDecision"),
    },
}

SUBSCRIPTIONS = {
    "Subscription.importProgress": 'importProgress(providerId: "1") { id }',
    "Subscription.matchRunProgress": "matchRunProgress(id: $run) { id }",
    "Subscription.changes": 'changes(providerIds: ["1"], since: "none of ours") { cursor }',
}


def test_every_field_of_the_schema_has_a_rule_and_a_probe() -> None:
    needed = {*fields_that_need_a_rule(SCHEMA)}
    probed = {*PROBES, *SUBSCRIPTIONS, *(f"Mutation.{name}" for name in MUTATIONS)}

    assert {*map(field_of, RULES)} == needed
    assert probed == {*RULES}


def test_a_schema_with_a_field_nobody_made_a_rule_for_is_not_built() -> None:
    @strawberry.type
    class Query:
        @strawberry.field
        def providers(self) -> str:
            return ""

        @strawberry.field
        def grades(self) -> str:
            return ""

    with pytest.raises(LookupError, match=r"who may ask for Query\.grades:"):
        check_rules(strawberry.Schema(Query))


def test_the_table_in_the_documentation_is_the_rules() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert "\n".join(table()) in text, "docs/access.md should hold:\n" + "\n".join(table())


def table() -> Iterator[str]:
    """Yield the lines of the matrix."""
    titles = [caller.title for caller in SHOWN]
    yield f"| field | {' | '.join(f'`{each}`' if ':' in each else each for each in titles)} |"
    yield f"| --- |{' :-: |' * len(titles)}"
    for name in RULES:
        yield f"| `{name}` | {' | '.join(caller.answer(name) for caller in SHOWN)} |"


@dataclass(kw_only=True)
class Campus:
    """A gateway, and what the probes ask about."""

    gateway: RunningGateway
    login: LoginService
    variables: dict[str, str]
    learner: str

    async def headers(self, caller: Caller, victim: str) -> Mapping[str, str]:
        if caller.learner:
            return self.login.headers({"1" if caller.sees else "7": self.learner})
        if not caller.sees:
            return await self.gateway.key(*caller.scopes, "provider:7")
        narrowed = ("provider:1", f"provider:{victim}")  # a key has to have some scope
        return await self.gateway.key(*(caller.scopes or narrowed))

    async def asked(self, headers: Mapping[str, str], document: str, **more: str) -> Any:
        names = [name for name in {**self.variables, **more} if f"${name}" in document]
        kind, _, rest = document.partition(" ")
        declared = ", ".join(f"${name}: ID!" for name in names)
        text = f"{kind}{f'({declared})' if declared else ''} {rest}"
        body = {"query": text, "variables": {**self.variables, **more}}
        answer = await self.gateway.client.post("/graphql", json=body, headers=headers)
        found = answer.json()
        assert all("path" in error for error in found.get("errors", [])), answer.text
        return found

    async def watched(self, headers: Mapping[str, str], document: str) -> str:
        """Return what a subscription comes to that cannot go on: every one here ends at once."""
        declared = "($run: ID!)" if "$run" in document else ""
        query = f"subscription{declared} {{ {document} }}"
        body = {"query": query, "variables": self.variables}
        streamed = {**headers, "Accept": "text/event-stream"}
        answer = await self.gateway.client.post("/graphql", json=body, headers=streamed)
        assert answer.text.endswith("event: complete\ndata: \n\n")
        if "FORBIDDEN" in answer.text:
            return FORBIDDEN
        return ABSENT if "NOT_FOUND" in answer.text else ALLOWED


@pytest.fixture
async def campus(tmp_path: Path) -> AsyncIterator[Campus]:
    async with (
        running(Kolibri(build_population())) as url,
        running_login_service() as login,
        gateway_with_learners(tmp_path, login) as gateway,
    ):
        await gateway.add_kolibri(url)
        whole = await gateway.graphql(
            "{ users(first: 1000) { nodes { id externalId"
            " enrollments { nodes { id courseId } } } } }"
        )
        user = next(
            user for user in whole["data"]["users"]["nodes"] if user["enrollments"]["nodes"]
        )
        place = user["enrollments"]["nodes"][0]
        variables = {
            "provider": GlobalId(PROVIDER, "1").encode(),
            "user": user["id"],
            "course": place["courseId"],
            "place": place["id"],
        }
        for number in range(len(CALLERS)):
            await gateway.parts.providers.add(
                id=f"victim{number}",
                platform="kolibri",
                name="victim",
                base_url=url,
                credentials=Secret({"username": ADMIN, "password": PASSWORD}),
                state=ProviderState.ACTIVE,
            )
        await gateway.add_kolibri(url, id="8")
        variables |= await people_of(gateway, user["externalId"], user["id"])
        yield Campus(gateway=gateway, login=login, variables=variables, learner=user["externalId"])


async def people_of(gateway: RunningGateway, user_id: str, user: str) -> dict[str, str]:
    """Have two providers imported and compared, and a person there; return what to ask about."""
    parts = gateway.parts
    for provider_id in ("1", "8"):
        await parts.imports.request(provider_id, requested_by="test", accept_drop=False)
        await parts.importer.run_now(provider_id)
    order = MatchOrder(provider_ids=("1", "8"))
    run, _ = await parts.people.matches.request(order, requested_by="test")
    await parts.people.finish(run)
    one, other = ("1", user_id), ("8", user_id)
    undone = await parts.people.store.link([one, other], decided_by="test")
    assert isinstance(undone, Decided)
    assert undone.decision is not None
    await parts.people.store.undo(undone.decision.id, decided_by="test")
    linked = await parts.people.store.link([one, other], decided_by="test")
    assert isinstance(linked, Decided)
    loner = next(
        row.external_id
        for row in await parts.imports.list_rows("1", RosterKind.USERS, limit=2)
        if row.external_id != user_id
    )
    return {
        "same": GlobalId(USER, *other).encode(),
        "loner": GlobalId(USER, "1", loner).encode(),
        "person": GlobalId(PERSON, linked.person_id or "").encode(),
        "match": match_id((one, other)).encode(),
        "run": str(run.id),
        "decision": str(undone.decision.id),
    }


def told(value: Any, codes: Sequence[str]) -> str:
    """Return what an answer comes to."""
    if "FORBIDDEN" in codes:
        return FORBIDDEN
    if isinstance(value, dict) and value.get("code") in {"PROVIDER_NOT_FOUND", "NOT_FOUND"}:
        return ABSENT
    if isinstance(value, dict) and "nodes" in value:
        value = value["nodes"]
    if value in (None, [], [None]) or "PROVIDER_NOT_FOUND" in codes:
        return ABSENT
    return ALLOWED


async def answers_of(campus: Campus, caller: Caller, victim: str) -> dict[str, str]:
    headers = await campus.headers(caller, victim)
    found: dict[str, str] = {}
    alone = [[name] for name in PROBES if "nodes(" in name]  # what fails there empties all
    others = [name for name in PROBES if [name] not in alone]
    for some in [*alone, *(others[at : at + AT_ONCE] for at in range(0, len(others), AT_ONCE))]:
        fields = " ".join(f"a{number}: {PROBES[name]}" for number, name in enumerate(some))
        answer = await campus.asked(headers, f"query {{ {fields} }}")
        for number, name in enumerate(some):
            codes = [
                error["extensions"]["code"]
                for error in answer.get("errors", [])
                if error["path"][0] == f"a{number}"
            ]
            found[name] = told((answer["data"] or {}).get(f"a{number}"), codes)
    for name, arguments in MUTATIONS.items():
        if name == "revokeSession":  # so that there is one
            async with campus.gateway.parts.sessions.session(victim):
                pass
        kind = next((kind for kind, names in REFUSED.items() if name in names), "ProviderRefused")
        document = (
            f"mutation {{ done: {name}{arguments} {{ __typename ... on {kind} {{ code }} }} }}"
        )
        answer = await campus.asked(headers, document, victim=victim)
        codes = [error["extensions"]["code"] for error in answer.get("errors", [])]
        found[f"Mutation.{name}"] = told((answer["data"] or {}).get("done"), codes)
    for name, field in SUBSCRIPTIONS.items():
        begun = field if caller.sees else field.replace(', since: "none of ours"', "")
        found[name] = await campus.watched(headers, begun)
    return found


async def test_every_cell_of_the_matrix_is_as_the_rules_have_it(campus: Campus) -> None:
    wrong: list[str] = []
    cells = 0
    for number, caller in enumerate(CALLERS):
        found = await answers_of(campus, caller, f"victim{number}")
        for name in RULES:
            cells += 1
            expected = caller.answer(name)
            if found[name] != expected:
                wrong.append(f"{name} for {caller.title} {sorted(caller.scopes)}: {found[name]}"
                             f" instead of {expected}")  # fmt: skip

    assert wrong == [], "\n".join(wrong)
    assert cells == len(CALLERS) * len(RULES) > 1400
