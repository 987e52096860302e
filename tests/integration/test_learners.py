"""Learners' browsers, which show a signed token: each reads its own rows, and no other exists."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.errors import SecurityWarning
from joserfc.jwk import OctKey, OKPKey, RSAKey
from learners import (
    AUDIENCE,
    LoginService,
    gateway_with_learners,
    new_key,
    running_login_service,
)
from pretend_roster import (
    Key,
    World,
    a_milestone,
    a_section,
    an_activity,
    an_enrollment,
    answer_of,
)
from running_gateway import RunningGateway, problem_of
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from gateway.tokens import KeySet, KeySetTerms, KeySetUnavailable
from schema.global_ids import COURSE, USER, GlobalId, enrollment_id
from simulators.canvas.app import running as running_canvas
from simulators.canvas.population import build_population as build_canvas
from simulators.canvas.state import ADMIN_TOKEN, CLIENT_ID, CLIENT_SECRET, Canvas
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

SCOPES = ("read:users", "read:courses", "read:enrollments")
PLACE = "id userId courseId progress { ratio } course { id title } user { id displayName }"
EVERYTHING = f"""{{
  users {{ totalCount nodes {{ externalId enrollments {{ totalCount nodes {{ {PLACE} }} }} }}
           sources {{ providerId status }} }}
  courses(orderBy: {{ field: TITLE }}) {{ totalCount
    nodes {{ id title enrollments {{ totalCount nodes {{ userId }} }} }} }}
  enrollments(filter: {{}}) {{ totalCount nodes {{ {PLACE} }} }}
  providers {{ providerId name platform }} }}"""
WHOLE = f"""{{ users(first: 1000) {{ nodes {{ externalId displayName
  enrollments {{ nodes {{ {PLACE} }} }} }} }} courses {{ nodes {{ id title }} }} }}"""


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population())


@pytest.fixture
async def login() -> AsyncIterator[LoginService]:
    async with running_login_service() as service:
        yield service


@pytest.fixture
async def gateway(
    tmp_path: Path, kolibri: Kolibri, login: LoginService
) -> AsyncIterator[RunningGateway]:
    async with running(kolibri) as url, gateway_with_learners(tmp_path, login) as opened:
        await opened.add_kolibri(url)
        yield opened


async def posted(
    gateway: RunningGateway, headers: Mapping[str, str], query: str, **variables: Any
) -> httpx.Response:
    body = {"query": query, "variables": variables}
    return await gateway.client.post("/graphql", json=body, headers=headers)


async def answered(
    gateway: RunningGateway, headers: Mapping[str, str], query: str, **variables: Any
) -> dict[str, Any]:
    answer = (await posted(gateway, headers, query, **variables)).json()
    assert "errors" not in answer, answer
    data = answer["data"]
    assert isinstance(data, dict)
    return data


def roster_calls(kolibri: Kolibri) -> list[int]:
    """How often what callers ask for was read, which timed exports do not."""
    paths = ("/api/auth/membership/", "/api/content/channel/")
    return [kolibri.counts.calls["GET", path] for path in paths]


def codes(answer: httpx.Response) -> list[str]:
    return [error["extensions"]["code"] for error in answer.json().get("errors", [])]


async def two_classmates(gateway: RunningGateway) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return two users who share a course, as the organisation sees them, and all courses."""
    whole = (await gateway.graphql(WHOLE))["data"]
    users = [user for user in whole["users"]["nodes"] if user["enrollments"]["nodes"]]

    def courses_of(user: Mapping[str, Any]) -> set[str]:
        return {place["courseId"] for place in user["enrollments"]["nodes"]}

    for one in users:
        for other in users:
            if one is not other and courses_of(one) & courses_of(other):
                return one, other, whole["courses"]["nodes"]
    raise AssertionError("nobody shares a course")


# What a learner sees


async def test_a_learner_sees_itself_its_enrollments_and_its_courses_and_nothing_else(
    gateway: RunningGateway, login: LoginService
) -> None:
    one, _, courses = await two_classmates(gateway)
    places = one["enrollments"]["nodes"]
    mine = {place["courseId"] for place in places}

    seen = await answered(gateway, login.headers({"1": one["externalId"]}), EVERYTHING)

    assert seen["users"] == {
        "totalCount": 1,
        "nodes": [
            {
                "externalId": one["externalId"],
                "enrollments": {"totalCount": len(places), "nodes": places},
            }
        ],
        "sources": [{"providerId": "1", "status": "OK"}],
    }
    by_id = {place["id"]: place for place in places}
    assert seen["enrollments"]["totalCount"] == len(places)
    assert {place["id"]: place for place in seen["enrollments"]["nodes"]} == by_id
    assert {row["id"]: row["title"] for row in seen["courses"]["nodes"]} == {
        row["id"]: row["title"] for row in courses if row["id"] in mine
    }
    own_id = GlobalId(USER, "1", one["externalId"]).encode()
    assert all(
        place["userId"] == own_id
        for row in seen["courses"]["nodes"]
        for place in row["enrollments"]["nodes"]
    )
    assert [row["providerId"] for row in seen["providers"]] == ["1"]
    assert 0 < len(mine) < len(courses)


async def test_what_is_anybody_elses_does_not_exist_however_it_is_asked_for(
    gateway: RunningGateway, login: LoginService
) -> None:
    one, other, courses = await two_classmates(gateway)
    mine = {place["courseId"] for place in one["enrollments"]["nodes"]}
    foreign = next(row["id"] for row in courses if row["id"] not in mine)
    theirs = other["enrollments"]["nodes"][0]
    query = """query ($user: ID!, $course: ID!, $place: ID!, $shared: ID!, $name: String!) {
        user(id: $user) { id } course(id: $course) { id }
        nodes(ids: [$user, $course, $place]) { id }
        byId: users(filter: {userIds: [$user]}) { totalCount nodes { id } }
        byName: users(filter: {search: $name}) { totalCount nodes { id } }
        sorted: users(orderBy: {field: DISPLAY_NAME}, first: 1) { totalCount nodes { id }
          pageInfo { hasNextPage } }
        ofUser: enrollments(filter: {userIds: [$user]}) { totalCount nodes { id } }
        ofCourse: enrollments(filter: {courseIds: [$shared]}) { nodes { userId } }
        shared: course(id: $shared) { enrollments { totalCount nodes { userId } } }
        elsewhere: provider(providerId: "2") { name } }"""
    variables = {
        "user": theirs["userId"],
        "course": foreign,
        "place": theirs["id"],
        "shared": next(iter(mine)),
        "name": other["displayName"],
    }

    seen = await answered(gateway, login.headers({"1": one["externalId"]}), query, **variables)

    own_id = GlobalId(USER, "1", one["externalId"]).encode()
    assert (seen["user"], seen["course"], seen["nodes"]) == (None, None, [None] * 3)
    assert seen["byId"] == seen["byName"] == seen["ofUser"] == {"totalCount": 0, "nodes": []}
    assert seen["sorted"] == {
        "totalCount": 1,
        "nodes": [{"id": own_id}],
        "pageInfo": {"hasNextPage": False},
    }
    assert {row["userId"] for row in seen["ofCourse"]["nodes"]} == {own_id}
    assert {row["userId"] for row in seen["shared"]["enrollments"]["nodes"]} == {own_id}
    assert seen["elsewhere"] is None


EVERY_FIELD = """query ($user: ID!, $course: ID!, $place: ID!, $own: ID!) {
    users { totalCount nodes { ...user } edges { node { id } } }
    byName: users(filter: {usernames: ["u2"], roles: [STUDENT], active: true}) { nodes { id } }
    byId: users(filter: {userIds: [$user, $own]}) { nodes { ...user } }
    byUsername: users(orderBy: {field: USERNAME, direction: DESC}) { nodes { id } }
    courses { totalCount nodes { ...course } }
    byTitle: courses(orderBy: {field: TITLE}, filter: {search: "o"}) { nodes { id } }
    enrollments(filter: {}) { totalCount nodes { ...place } }
    ofUser: enrollments(filter: {userIds: [$user, $own]}) { nodes { ...place } }
    ofCourse: enrollments(filter: {courseIds: [$course]}) { nodes { id } }
    modified: enrollments(filter: {states: [ACTIVE]}, orderBy: {field: MODIFIED}) { nodes { id } }
    user(id: $user) { id } course(id: $course) { id } node(id: $place) { id }
    nodes(ids: [$user, $course, $place]) { id } }
  fragment user on User { id activity { externalId } enrollments { nodes { ...place } } }
  fragment course on Course { id sections { externalId } iconUrl
    enrollments { totalCount nodes { id userId user { id } } } }
  fragment place on Enrollment { id userId user { id } course { ...course } section { title }
    milestones { title } progress { ratio } }"""


@pytest.mark.parametrize("page_size", [1000, 1])
async def test_nothing_of_others_is_even_read(page_size: int) -> None:
    world = World()
    world.platform = replace(world.platform, progress_by_call=True, page_size=page_size)
    school = world.add("a", user_count=3, course_count=3)
    places = [("u0", "c0"), ("u0", "c1"), ("u1", "c0"), ("u1", "c1"), ("u2", "c0"), ("u2", "c2")]
    school.enrollments = [an_enrollment("a", *place) for place in places]
    school.sections = [a_section("a", f"c{number}", number) for number in range(3)]
    school.milestones = [a_milestone("a", *place, 0) for place in places]
    school.activities = [an_activity("a", f"u{number}", number) for number in range(3)]
    ids = {
        "user": GlobalId(USER, "a", "u2").encode(),
        "course": GlobalId(COURSE, "a", "c2").encode(),
        "place": enrollment_id("a", "u2", "u2-c0").encode(),
        "own": GlobalId(USER, "a", "u1").encode(),
    }
    learner = Key(frozenset(SCOPES), accounts={"a": "u1", "b": "u0"})

    data = await answer_of(world, EVERY_FIELD, ids, key=learner)

    asked = {(name, repr(given)) for name, given in school.calls}
    own = {"c0", "c1"}
    for name, given in school.calls:
        if name in {"fetch_users", "fetch_enrollments_by_user"}:
            assert given == ["u1"], name
        elif name in {"fetch_courses", "fetch_sections_by_course"}:
            assert isinstance(given, list)
            assert {*given} <= own, name
        elif name in {"fetch_milestones", "fetch_progress"}:
            assert isinstance(given, list)
            assert {*given} <= {("u1", course) for course in own}, name
        else:
            assert (name, given) == ("fetch_activity_by_user", (["u1"], 50))
    assert len(asked) == len(school.calls) == 7
    own_places = [f"u1-{course}" for course in ("c0", "c1")]
    own_ids = [enrollment_id("a", "u1", place).encode() for place in own_places]
    text = json.dumps(data)
    assert [row["id"] for row in data["enrollments"]["nodes"]] == own_ids
    assert [row["id"] for row in data["courses"]["nodes"][0]["enrollments"]["nodes"]] == own_ids[:1]
    assert (data["users"]["totalCount"], data["courses"]["totalCount"]) == (1, 2)
    assert (data["byName"]["nodes"], data["ofCourse"]["nodes"]) == ([], [])
    assert (data["user"], data["course"], data["node"], data["nodes"]) == (
        None,
        None,
        None,
        [None] * 3,
    )
    for other in ("u0", "u2"):
        assert GlobalId(USER, "a", other).encode() not in text
        assert enrollment_id("a", other, f"{other}-c0").encode() not in text


MUTATIONS = [
    'refreshProvider(input: {providerId: "1"})',
    'removeProvider(providerId: "1")',
    'checkProvider(providerId: "1")',
    'revokeSession(providerId: "1")',
    'beginAuthorization(input: {providerId: "1"})',
    'createUser(input: {providerId: "1", username: "x", displayName: "x"})',
    'endEnrollment(input: {enrollmentId: "x"})',
]
NOT_FOR_LEARNERS = [
    *(f"mutation {{ {mutation} {{ __typename }} }}" for mutation in MUTATIONS),
    "{ changes { latestCursor } }",
    "{ auditLog { edges { action } } }",
    '{ provider(providerId: "1") { sessions { subject } } }',
    '{ provider(providerId: "1") { health { waiting } } }',
    '{ provider(providerId: "1") { lastImport { id } } }',
    *(
        f'{{ provider(providerId: "1") {{ {field} }} }}'
        for field in ("baseUrl", "accountId", "version", "problem")
    ),
]


async def test_learners_change_nothing_and_see_nothing_of_how_providers_are_run(
    gateway: RunningGateway, login: LoginService, kolibri: Kolibri
) -> None:
    headers = login.headers({"1": "somebody"})
    before = roster_calls(kolibri)

    answers = [await posted(gateway, headers, query) for query in NOT_FOR_LEARNERS]

    assert [codes(answer) for answer in answers] == [["FORBIDDEN"]] * len(NOT_FOR_LEARNERS)
    assert roster_calls(kolibri) == before


async def test_rest_metrics_and_acting_for_others_are_not_for_learners(
    gateway: RunningGateway, login: LoginService
) -> None:
    one, other, _ = await two_classmates(gateway)
    headers = login.headers({"1": one["externalId"]})
    acting = {**headers, "On-Behalf-Of": GlobalId(USER, "1", other["externalId"]).encode()}

    lists = [
        await gateway.get(path, params={"id": "1"}, headers=headers)
        for path in ("/api/users", "/api/courses", "/api/content", "/api/enrollments")
    ]
    others = await gateway.get(
        "/api/enrollments", params={"id": "1", "user_id": other["externalId"]}, headers=headers
    )
    added = await gateway.add_provider(id="2", type="kolibri", url="http://x", headers=headers)
    metrics = await gateway.get("/metrics", headers=headers)
    acted = await posted(gateway, acting, "{ users { totalCount } }")

    assert [problem_of(answer) for answer in (*lists, added, metrics)] == [(403, "FORBIDDEN")] * 6
    assert (others.status_code, others.json()) == (200, [])
    assert (acted.status_code, codes(acted)) == (403, ["FORBIDDEN"])


async def test_learners_without_an_account_or_scope_see_nothing(
    tmp_path: Path, kolibri: Kolibri, login: LoginService
) -> None:
    scopes = "read:courses"
    async with (
        running(kolibri) as url,
        gateway_with_learners(tmp_path, login, jwt_scopes=scopes) as gateway,
    ):
        await gateway.add_kolibri(url)
        nobody = await posted(
            gateway, login.headers({}), "{ courses { nodes { id } } providers { id } }"
        )
        elsewhere = await posted(gateway, login.headers({"7": "x"}), "{ providers { id } }")
        users = await posted(gateway, login.headers({"1": "x"}), "{ users { totalCount } }")

    assert nobody.json()["data"] == {"courses": {"nodes": []}, "providers": []}
    assert elsewhere.json()["data"] == {"providers": []}
    assert codes(users) == ["FORBIDDEN"]


async def test_a_learner_is_told_no_address_when_a_provider_is_down(
    tmp_path: Path, login: LoginService, kolibri: Kolibri
) -> None:
    query = '{ users { sources { code message } } user(id: "%s") { id } }'
    user_id = "0123456789abcdef0123456789abcdef"
    async with gateway_with_learners(tmp_path, login) as gateway:
        async with running(kolibri) as url:
            await gateway.add_kolibri(url)
        headers = login.headers({"1": user_id})
        told = await posted(gateway, headers, query % GlobalId(USER, "1", user_id).encode())
        whole = await gateway.graphql("{ users { sources { message } } }")

    (source,) = told.json()["data"]["users"]["sources"]
    assert source == {"code": "PROVIDER_UNAVAILABLE", "message": "The provider could not do this"}
    assert codes(told) == ["PROVIDER_UNAVAILABLE"] * 2
    assert "127.0.0.1" not in told.text
    assert url.removeprefix("http://") in whole["data"]["users"]["sources"][0]["message"]


async def test_kept_answers_never_reach_another_learner(
    tmp_path: Path, kolibri: Kolibri, login: LoginService
) -> None:
    async with (
        running(kolibri) as url,
        gateway_with_learners(tmp_path, login, max_age_seconds="3600") as gateway,
    ):
        await gateway.add_kolibri(url)
        one, other, _ = await two_classmates(gateway)  # and the whole roster is kept now
        learners = [login.headers({"1": each["externalId"]}) for each in (one, other)]

        rounds = [
            await asyncio.gather(*(answered(gateway, who, EVERYTHING) for who in learners))
            for _ in range(3)
        ]
        whole = await gateway.graphql("{ users(first: 1000) { nodes { externalId } } }")

    for seen in rounds:
        for each, data in zip((one, other), seen, strict=True):
            assert [row["externalId"] for row in data["users"]["nodes"]] == [each["externalId"]]
            ids = {place["id"] for place in data["enrollments"]["nodes"]}
            assert ids == {place["id"] for place in each["enrollments"]["nodes"]}
    assert len(whole["data"]["users"]["nodes"]) > 2


async def test_where_users_have_sessions_a_learner_is_read_as_itself_and_never_as_the_service(
    tmp_path: Path, login: LoginService
) -> None:
    canvas = Canvas(build_canvas())
    async with running_canvas(canvas) as url, gateway_with_learners(tmp_path, login) as gateway:
        added = await gateway.add_provider(
            id="2",
            type="canvas",
            url=url,
            api_key=ADMIN_TOKEN,
            client_id=CLIENT_ID,
            client_secret=CLIENT_SECRET,
        )
        canvas.reset()
        seen = await posted(
            gateway,
            login.headers({"2": 7}),
            "{ users { nodes { id } sources { code } } courses { nodes { id } sources { code } } }",
        )

    assert added.status_code == 200
    assert seen.json()["data"] == {
        "users": {"nodes": [], "sources": [{"code": "REAUTH_REQUIRED"}]},
        "courses": {"nodes": [], "sources": [{"code": "REAUTH_REQUIRED"}]},
    }
    assert all(
        error["extensions"]["authorizationUrl"].startswith(f"{gateway.url}/oauth/begin?")
        for error in seen.json()["errors"]
    )
    assert canvas.counts.calls == {}


# Tokens that are not believed


def segment(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hostile(login: LoginService) -> dict[str, str]:
    """Return every kind of token that must be refused, by what is wrong with it."""
    now = int(time.time())
    good = login.token({"1": "u"})
    head, payload, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    public = login.keys[0].as_dict(private=False)
    shared = OctKey.import_key(json.dumps(public).encode())  # the text it is published as
    stranger = new_key("k1")
    flipped = ("A" if signature[10] != "A" else "B").join((signature[:10], signature[11:]))
    return {
        "no algorithm": f"{segment({'alg': 'none'})}.{payload}.",
        "no algorithm, in capitals": f"{segment({'alg': 'NONE'})}.{payload}.{signature}",
        "public key as shared secret": login.token(
            {"1": "u"},
            key=shared,
            header={"alg": "HS256", "kid": "k1"},
        ),
        "signed by somebody else": login.token({"1": "u"}, key=stranger),
        "a key that is not in the set": login.token({"1": "u"}, key=new_key("k9")),
        "a key it brings along": login.token(
            {"1": "u"}, key=stranger, header={"jwk": stranger.as_dict(private=False)}
        ),
        "keys at an address it names": login.token(
            {"1": "u"}, key=stranger, header={"jku": "https://evil.example/keys"}
        ),
        "another algorithm than its key's": f"{segment({'alg': 'RS256', 'kid': 'k1'})}."
        f"{payload}.{signature}",
        "a signature of somebody else's": f"{head}.{payload}.{flipped}",
        "no signature": f"{head}.{payload}.",
        "other claims": f"{head}.{segment({**claims, 'learning_accounts': {'1': 'v'}})}."
        f"{signature}",
        "expired": login.token({"1": "u"}, exp=now - 61),
        "no expiry": login.token({"1": "u"}, exp=None),
        "an expiry that is text": login.token({"1": "u"}, exp="tomorrow"),
        "not yet": login.token({"1": "u"}, nbf=now + 120),
        "issued in the future": login.token({"1": "u"}, iat=now + 120),
        "another issuer": login.token({"1": "u"}, iss="https://login.example.org"),
        "no issuer": login.token({"1": "u"}, iss=None),
        "another audience": login.token({"1": "u"}, aud="another-gateway"),
        "other audiences": login.token({"1": "u"}, aud=["a", "b"]),
        "no audience": login.token({"1": "u"}, aud=None),
        "nobody": login.token({"1": "u"}, sub=None),
        "a number for a name": login.token({"1": "u"}, sub=7),
        "no accounts": login.token(None),
        "accounts in a list": login.token(["u"]),
        "accounts in a text": login.token('{"1": "u"}'),
        "an account that is no text": login.token({"1": ["u"]}),
        "an account that is a switch": login.token({"1": True}),
        "an account without an id": login.token({"1": ""}),
        "an account with a line break": login.token({"1": "u\nservice"}),
        "an account at no provider": login.token({"../1": "u"}),
        "too many accounts": login.token({str(number): "u" for number in range(21)}),
        "an extension": login.token({"1": "u"}, header={"crit": ["b64"], "b64": True}),
        "too long": login.token({"1": "u"}, more="x" * 9000),
        "a header in a list": f"{segment([1])}.{payload}.{signature}",
        "a header that is no JSON": f"{segment(b'{')}.{payload}.{signature}",
        "a header nested deep": f"{segment(b'[' * 5000)}.{payload}.{signature}",
        "a name that is no text": f"{segment({'alg': 'ES256', 'kid': 7})}.{payload}.{signature}",
        "nothing at all": "..",
        "strange letters": "é.é.é",
    }


async def test_every_other_token_is_refused_and_challenged(
    gateway: RunningGateway, login: LoginService, kolibri: Kolibri
) -> None:
    query = "{ users { totalCount } }"
    good = await posted(gateway, login.headers({"1": "u"}, aud=["another", AUDIENCE]), query)
    unnamed = await posted(gateway, login.headers({"1": "u"}, header={"kid": None}), query)
    late = await posted(gateway, login.headers({"1": "u"}, exp=int(time.time()) - 30), query)
    before = roster_calls(kolibri)

    for wrong, token in hostile(login).items():
        shown = {b"Authorization": f"Bearer {token}".encode()}
        answer = await gateway.client.post("/graphql", json={"query": query}, headers=shown)
        rest = await gateway.client.get("/api/users?id=1", headers=shown)

        assert (answer.status_code, codes(answer)) == (401, ["UNAUTHENTICATED"]), wrong
        assert problem_of(rest) == (401, "UNAUTHENTICATED"), wrong
        for challenge in (answer.headers["www-authenticate"], rest.headers["www-authenticate"]):
            assert challenge.startswith('Bearer realm="learning-gateway", error="invalid_token"')

    assert [answer.status_code for answer in (good, unnamed, late)] == [200] * 3
    assert roster_calls(kolibri) == before
    nothing = await gateway.client.get("/api/users?id=1", headers={"Authorization": ""})
    assert nothing.headers["www-authenticate"] == 'Bearer realm="learning-gateway"'


async def test_a_bootstrap_key_that_looks_like_a_token_is_still_the_bootstrap_key(
    tmp_path: Path, login: LoginService
) -> None:
    token = "a.bootstrap-key.with-two-dots"
    async with gateway_with_learners(tmp_path, login, token=token) as gateway:
        shown = {"Authorization": f"Bearer {token}"}
        answer = await posted(gateway, shown, "{ auditLog { edges { action } } }")

    assert answer.json() == {"data": {"auditLog": {"edges": []}}}
    assert login.fetches == 0


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSAKey.generate_key(2048, {"kid": "r"}), "RS256"),
        (RSAKey.generate_key(2048, {"kid": "r"}), "PS512"),
        (OKPKey.generate_key("Ed25519", {"kid": "o"}), "Ed25519"),
    ],
)
async def test_each_kind_of_key_signs_its_own_algorithms(
    gateway: RunningGateway, login: LoginService, key: Any, algorithm: str
) -> None:
    login.keys = [new_key("other"), key]
    headers = login.headers({"1": "u"}, key=key, header={"alg": algorithm})

    answer = await posted(gateway, headers, "{ providers { providerId } }")

    assert answer.json()["data"] == {"providers": [{"providerId": "1"}]}


async def test_keys_that_are_short_secret_or_for_something_else_sign_nothing(
    gateway: RunningGateway, login: LoginService
) -> None:
    with pytest.warns(SecurityWarning):
        short = RSAKey.generate_key(1024, {"kid": "short"})
    encrypting, meant, signing = new_key("encrypting"), new_key("meant"), new_key("signing")
    odd = [new_key(f"odd{number}") for number in range(4)]
    login.keys = [new_key(), short, encrypting, *odd, meant, signing]
    login.said_of_keys = {
        "encrypting": {"use": "enc"},
        "meant": {"alg": "ES384"},
        "signing": {"use": "sig", "alg": "ES256"},
        "odd0": {"kty": "OKP"},
        "odd1": {"crv": "Ed25519"},
        "odd2": {"x": ""},
        "odd3": {"kty": "RSA", "n": "é"},
    }

    answers = [
        await posted(gateway, login.headers({"1": "u"}, key=key, header=header), "{ __typename }")
        for key, header in (
            (short, {"alg": "RS256"}),
            (encrypting, {}),
            (meant, {}),
            *((key, {}) for key in odd),
            (signing, {}),
        )
    ]

    assert [answer.status_code for answer in answers] == [401] * 7 + [200]
    assert login.fetches == 1


# Where the keys come from


async def test_any_number_of_first_tokens_fetch_the_keys_once(
    gateway: RunningGateway, login: LoginService
) -> None:
    headers = login.headers({"1": "u"})

    answers = await asyncio.gather(
        *(posted(gateway, headers, "{ providers { id } }") for _ in range(20))
    )

    assert [answer.status_code for answer in answers] == [200] * 20
    assert login.fetches == 1


async def test_made_up_key_names_fetch_nothing_again_and_again(
    gateway: RunningGateway, login: LoginService
) -> None:
    for number in range(20):
        headers = login.headers({"1": "u"}, key=new_key(f"made-up-{number}"))
        assert (await posted(gateway, headers, "{ providers { id } }")).status_code == 401

    assert login.fetches == 1


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b'{"keys": 7}', b"{" * 1000, b"x" * 300_000, b"\xff"),
        b'{"keys": [{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    ],
    ids=["nothing", "a list", "a number", "braces", "too much", "no UTF-8", "nested deep"],
)
async def test_without_keys_nobody_is_told_that_the_token_is_bad(
    gateway: RunningGateway, login: LoginService, body: bytes
) -> None:
    login.body = body

    first, second = [
        await posted(gateway, login.headers({"1": "u"}), "{ providers { id } }") for _ in range(2)
    ]

    assert (problem_of(first), problem_of(second)) == ((503, "INTERNAL"),) * 2
    assert "retry-after" in first.headers
    assert login.fetches == 1
    assert (await gateway.get("/health")).status_code == 200
    assert "data" in await gateway.graphql("{ providers { id } }")


async def test_keys_from_a_file_serve_as_well(tmp_path: Path, login: LoginService) -> None:
    published = {"keys": [key.as_dict(private=True) for key in login.keys]}
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(published), encoding="utf-8")

    async with gateway_with_learners(tmp_path, login, jwt_keys=str(file)) as gateway:
        answer = await posted(gateway, login.headers({"1": "u"}), "{ __typename }")

    assert (answer.status_code, login.fetches) == (200, 0)


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_keys_are_fetched_when_old_or_unknown_and_serve_while_they_cannot_be() -> None:
    service = LoginService()
    clock = Clock()
    asked: list[float] = []
    fails = False

    async def fetch() -> bytes:
        asked.append(clock.now)
        if fails:
            raise OSError("the login service is down")
        return json.dumps(
            {"keys": [{**key.as_dict(private=False), "kid": key.kid} for key in service.keys]}
        ).encode()

    terms = KeySetTerms(fresh_seconds=600, stale_seconds=3600, pause_seconds=30)
    keys = KeySet(fetch, terms=terms, clock=clock)

    async def knows(kid: str) -> bool:
        return await keys.find(kid, "ES256") is not None

    assert await knows("k1")
    service.keys = [new_key("k2")]
    assert not await knows("k2")  # asked for a moment ago
    clock.now = 30
    assert await knows("k2")  # a new name is looked for
    assert not await knows("k1")  # and what was taken back is gone
    clock.now = 500
    assert await knows("k2")
    fails = True
    clock.now = 631
    assert await knows("k2")  # old, and served because nothing newer can be had
    clock.now = 640
    assert await knows("k2")
    assert asked == [0.0, 30.0, 631.0]
    clock.now = 30 + 3601
    with pytest.raises(KeySetUnavailable):
        await knows("k2")
    fails = False
    clock.now += 30
    assert await knows("k2")
    await keys.aclose()


async def test_ids_of_courses_and_enrollments_alone_open_nothing(
    gateway: RunningGateway, login: LoginService
) -> None:
    one, other, _ = await two_classmates(gateway)
    theirs = other["enrollments"]["nodes"][0]
    course = GlobalId(COURSE, "1", "made-up").encode()
    made_up = enrollment_id("1", other["externalId"], theirs["id"]).encode()

    seen = await answered(
        gateway,
        login.headers({"1": one["externalId"]}),
        "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }",
        ids=[course, made_up, theirs["id"]],
    )

    assert seen["nodes"] == [None, None, None]


async def test_over_a_websocket_a_learner_sees_no_more(
    gateway: RunningGateway, login: LoginService
) -> None:
    one, _, _ = await two_classmates(gateway)
    address = gateway.url.replace("http://", "ws://") + "/graphql"
    subprotocols = [Subprotocol("graphql-transport-ws")]
    good = login.headers({"1": one["externalId"]})
    heard = []
    async with connect(address, subprotocols=subprotocols, proxy=None) as socket:
        await socket.send(json.dumps({"type": "connection_init", "payload": good}))
        for number, query in enumerate(
            ("{ users { totalCount nodes { externalId } } }", "subscription { changes { cursor } }")
        ):
            heard.append(json.loads(await socket.recv()))
            payload = {"query": query}
            subscribe = {"id": str(number), "type": "subscribe", "payload": payload}
            await socket.send(json.dumps(subscribe))
            heard.append(json.loads(await socket.recv()))
    async with connect(address, subprotocols=subprotocols, proxy=None) as socket:
        bad = login.headers({"1": one["externalId"]}, exp=1)
        await socket.send(json.dumps({"type": "connection_init", "payload": bad}))
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()

    ack, users, complete, changes = heard
    assert (ack["type"], complete["type"]) == ("connection_ack", "complete")
    assert users["payload"]["data"]["users"] == {
        "totalCount": 1,
        "nodes": [{"externalId": one["externalId"]}],
    }
    assert [error["extensions"]["code"] for error in changes["payload"]] == ["FORBIDDEN"]
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4403
