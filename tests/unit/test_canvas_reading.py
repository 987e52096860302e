"""Canvas answers oddly: what GraphQL hides, how big its pages may be, and what is asked instead."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from sessions.addresses import AddressPolicy
from sessions.base import Export, Grant, NewGrant, Subject
from sessions.errors import (
    NotSupported,
    ProviderBadResponse,
    ProviderForbidden,
    ProviderTimeout,
    ProviderUnavailable,
    ReauthRequired,
    SessionLost,
)
from sessions.http import ProviderHttp, deadline
from sessions.platforms.canvas import CanvasSession
from sessions.strategies import listening
from storage.credentials import Secret
from storage.records import Provider, ProviderState

URL = "https://canvas.test"
CHALLENGE = {"www-authenticate": 'Bearer realm="canvas-lms"'}
ABILITIES = "currentScore finalScore gradingPeriod courses"
DENIED = {"status": "unauthorized", "errors": [{"message": "user not authorized"}]}

Answer = Callable[[httpx.Request], httpx.Response]
Replies = Mapping[str, object]


class Pretended:
    """A Canvas that answers by path: a body, a response, or a function of the request."""

    def __init__(self, replies: Replies) -> None:
        self.replies = dict(replies)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        path = request.url.path.removeprefix("/api/v1/").removeprefix("/api/")
        answer = self.replies.get(path)
        if answer is None:
            missing = {"errors": [{"message": "The specified resource does not exist."}]}
            return httpx.Response(404, json=missing)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, httpx.Response):
            return answer
        links = f'<{request.url}>; rel="current"'
        return httpx.Response(200, json=answer, headers={"link": links})

    def called(self) -> Counter[str]:
        paths = (request.url.path for request in self.requests)
        return Counter(path.removeprefix("/api/v1/").removeprefix("/api/") for path in paths)


class Held:
    """An authorization that holds one grant and cannot replace it."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.grant = Grant(version=1, secret=Secret(values))

    async def current(self) -> Grant:
        return self.grant

    async def replace(self, lost: Grant, *, again: bool = False) -> Grant:
        raise ReauthRequired("The token does not hold")


class NoExports:
    async def read(self, name: str) -> Export | None:
        return None


@asynccontextmanager
async def pretended(
    replies: Replies,
    *,
    subject: str = "service",
    courses: str = "3",
    graphql: str = ABILITIES,
    options: Mapping[str, str] | None = None,
) -> AsyncIterator[tuple[CanvasSession, Pretended]]:
    canvas = Pretended(replies)
    now = datetime.now(UTC)
    provider = Provider(
        id="7",
        platform="canvas",
        name="",
        base_url=URL,
        options=options or {},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=now,
        updated_at=now,
    )
    grant = {
        "access_token": "7~token",
        "account_id": "1",
        "courses": courses,
        "graphql": graphql,
        "graphql_problem": "" if graphql else "Not here",
    }
    async with ProviderHttp.open(
        URL, provider_id="7", policy=AddressPolicy(), transport=httpx.MockTransport(canvas)
    ) as http:
        session = CanvasSession(
            provider,
            http=http,
            authorization=Held(grant),
            exports=NoExports(),
            subject=Subject.parse(subject),
        )
        yield session, canvas


def refused(status: int, body: object = DENIED, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def enrollment(
    id_: str, user_id: str = "5", course_id: str = "1", **more: object
) -> dict[str, Any]:
    return {
        "id": id_,
        "user_id": user_id,
        "course_id": course_id,
        "type": "StudentEnrollment",
        "enrollment_state": "active",
        **more,
    }


def node(id_: str | None, user_id: str | None = "5", **more: object) -> dict[str, Any]:
    return {
        "_id": id_,
        "userId": user_id,
        "courseSectionId": "8",
        "type": "StudentEnrollment",
        "enrollmentState": "active",
        "course": {"_id": "1"},
        "grades": None,
        **more,
    }


def connection(nodes: object, *, after: str | None = None) -> dict[str, Any]:
    return {"nodes": nodes, "pageInfo": {"hasNextPage": after is not None, "endCursor": after}}


def course(id_: str, nodes: object = (), **more: object) -> dict[str, Any]:
    found = connection(list(nodes)) if isinstance(nodes, tuple | list) else nodes
    return {"_id": id_, "state": "available", "enrollmentsConnection": found, **more}


def account(*courses: object, after: str | None = None) -> dict[str, Any]:
    return {"data": {"account": {"coursesConnection": connection(list(courses), after=after)}}}


REST: Replies = {
    "accounts/self/courses": [{"id": "1"}, {"id": "2"}],
    "courses/1/enrollments": [enrollment("10"), enrollment("9")],
    "courses/2/enrollments": [enrollment("11", "6", "2")],
    "users/5/enrollments": [enrollment("10"), enrollment("9")],
    "users/6/enrollments": [enrollment("11", "6", "2")],
}


# ---- GraphQL that cannot be believed ---------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"data": {"account": None}}, "GraphQL does not show the account's courses"),
        (
            {"data": {"account": {"coursesConnection": None}}},
            "GraphQL does not show the account's courses",
        ),
        (account(course("1", None)), "GraphQL does not show the enrollments of some courses"),
        (account(course("1", [node(None)])), "GraphQL hides whose enrollments some are"),
        (account(course("1", [node("9", None)])), "GraphQL hides whose enrollments some are"),
        (
            account(course("1", [node("9", grades={"gradingPeriod": {"_id": "2"}})])),
            "GraphQL gives marks of grading periods instead of courses",
        ),
        (
            account(course("1"), course("1")),
            "GraphQL gave a course twice, so it may have left out another",
        ),
        (
            {"data": {"account": {"coursesConnection": {"pageInfo": {"hasNextPage": True}}}}},
            "GraphQL does not say where a list goes on",
        ),
        ({"errors": [{"message": "Field 'x' doesn't exist"}]}, "GraphQL answered with a problem"),
        ({"data": None}, "GraphQL answered with a problem"),
        (
            {"data": account(course("1"))["data"], "errors": [{"message": "partly"}]},
            "GraphQL answered with a problem",
        ),
        ({"data": {"account": 5}}, None),
        (refused(403), "Canvas does not permit this: user not authorized"),
        (refused(404), "Canvas has no such thing, or hides it"),
        (httpx.Response(200, html="<html>"), None),
    ],
)
async def test_rest_answers_where_graphql_is_not_complete(
    answer: object, reason: str | None
) -> None:
    async with pretended({**REST, "graphql": answer}) as (session, canvas):
        with listening() as choices:
            page = await session.list_enrollments(position=None, limit=100)
            await session.fetch_enrollments_by_course(["1", "2"])

    assert [row.id for row in page.items] == ["9", "10", "11"]
    assert canvas.called()["graphql"] == 1
    assert [choice.chosen for choice in choices] == [
        "graphql by account",
        "rest by course",
        "rest by course",
    ]
    assert choices[1].reason == choices[2].reason
    assert reason is None or choices[1].reason == reason


@pytest.mark.parametrize(
    "answer",
    [
        {"data": {"u0": {"_id": "5", "enrollments": None}}},
        {"errors": [{"message": "no"}]},
    ],
)
async def test_rest_answers_by_user_where_graphql_is_not_complete(answer: object) -> None:
    async with pretended({**REST, "graphql": answer}) as (session, canvas):
        found = await session.fetch_enrollments_by_user(["5", "6"])

    assert {user: [row.id for row in rows] for user, rows in found.items()} == {
        "5": ["9", "10"],
        "6": ["11"],
    }
    assert canvas.called() == {"graphql": 1, "users/5/enrollments": 1, "users/6/enrollments": 1}


async def test_whom_graphql_does_not_find_rest_may() -> None:
    answer = {"data": {"u0": {"_id": "5", "enrollments": [node("9"), None]}, "u1": None, "u2": {}}}
    async with pretended({**REST, "graphql": answer}, courses="99999") as (session, canvas):
        found = await session.fetch_enrollments_by_user(["5", "6", "7"])

    assert {user: [row.id for row in rows] for user, rows in found.items()} == {
        "5": ["9"],
        "6": ["11"],
    }
    assert canvas.called()["users/7/enrollments"] == 1


def heavy(*, above: int, message: str) -> tuple[Answer, list[int]]:
    """GraphQL that takes only so many courses, or users, at once."""
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        form = parse_qs(request.content.decode())
        query = form["query"][0]
        variables = json.loads(form.get("variables", ["{}"])[0])
        users = query.count("legacyNode")
        asked: Sequence[Any] = variables.get("ids") or range(users)
        if "coursesConnection(first: " in query:
            asked = range(int(query.partition("coursesConnection(first: ")[2].partition(",")[0]))
        sizes.append(len(asked))
        if len(asked) > above:
            return httpx.Response(200, json={"errors": [{"message": message}]})
        if "coursesConnection" in query:
            body: dict[str, Any] = account(course("1", [node("9")]))
        elif users:
            body = {"data": {f"u{n}": {"_id": str(n), "enrollments": []} for n in range(users)}}
        else:
            body = {"data": {"courses": [*(course(each) for each in asked), None]}}
        return httpx.Response(200, json=body)

    return answer, sizes


@pytest.mark.parametrize(
    "message", ["Query has complexity of 400000, which exceeds 375000", "Timeout on Query.account"]
)
async def test_pages_become_shorter_until_they_are_answered(message: str) -> None:
    answer, sizes = heavy(above=30, message=message)
    async with pretended({"graphql": answer}) as (session, _):
        page = await session.list_enrollments(position=None, limit=100)

    assert sizes == [100, 50, 25]
    assert [row.id for row in page.items] == ["9"]


async def test_fewer_users_and_courses_are_asked_for_until_they_are_answered() -> None:
    answer, sizes = heavy(above=6, message="Query timed out")
    ids = [str(number) for number in range(1, 13)]
    answer_courses, course_sizes = heavy(above=30, message="Query timed out")
    async with pretended({"graphql": answer}, courses="9999999") as (session, canvas):
        by_user = await session.fetch_enrollments_by_user(ids)
        canvas.replies["graphql"] = answer_courses
        by_course = await session.fetch_enrollments_by_course([str(n) for n in range(1, 41)])

    assert (len(by_user), sizes) == (12, [12, 6, 6])
    assert (len(by_course), course_sizes) == (40, [40, 20, 20])


async def test_graphql_that_does_not_answer_in_time_is_asked_for_less() -> None:
    asked = list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(parse_qs(request.content.decode())["query"][0])
        if len(asked) == 1:
            raise httpx.ReadTimeout("late")
        return httpx.Response(200, json=account(course("1", [node("9")])))

    async with pretended({"graphql": answer}) as (session, _):
        page = await session.list_enrollments(position=None, limit=100)

    assert [row.id for row in page.items] == ["9"]
    assert ["first: 50" in query for query in asked] == [False, True]


async def test_a_deadline_that_passed_says_nothing_about_graphql() -> None:
    def late(_request: httpx.Request) -> httpx.Response:
        time.sleep(0.06)
        raise httpx.ReadTimeout("late")

    ids = [str(number) for number in range(1, 31)]
    async with pretended({"graphql": late}, courses="9999999") as (session, canvas):
        with deadline(0.05), pytest.raises(ProviderTimeout):
            await session.fetch_enrollments_by_user(ids)
        canvas.replies["graphql"], sizes = heavy(above=20, message="")
        with listening() as choices:
            await session.fetch_enrollments_by_user(ids)

    assert [choice.chosen for choice in choices] == ["graphql by user"]
    assert sizes == [20, 10]


async def test_what_stays_too_much_is_read_through_rest() -> None:
    answer, sizes = heavy(above=0, message="Timeout")
    async with pretended({**REST, "graphql": answer}) as (session, _):
        page = await session.list_enrollments(position=None, limit=100)

    assert sizes == [100, 50, 25, 12, 10]
    assert len(page.items) == 3


async def test_a_course_goes_on_where_its_page_ended() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        query = parse_qs(request.content.decode())["query"][0]
        if "coursesConnection" in query:
            full = course("1", connection([node("9")], after="MQ"))
            return httpx.Response(200, json=account(full, course("2", [node("11")]), None))
        assert 'after: "MQ"' in query
        body = {"data": {"c0": course("1", [node("10"), None]), "c1": None}}
        return httpx.Response(200, json=body)

    async with pretended({"graphql": answer}) as (session, canvas):
        page = await session.list_enrollments(position=None, limit=100)

    assert [row.id for row in page.items] == ["9", "10", "11"]
    assert canvas.called() == {"graphql": 2}


@pytest.mark.parametrize("again", ["the same", "too much", "nothing"])
async def test_a_course_that_does_not_go_on_is_read_through_rest(again: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        query = parse_qs(request.content.decode())["query"][0]
        same = course("1", connection([node("9")], after="MQ"))
        if "coursesConnection" in query:
            return httpx.Response(200, json=account(same))
        if again == "too much":
            return httpx.Response(200, json={"errors": [{"message": "complexity"}]})
        return httpx.Response(200, json={"data": {"c0": same if again == "the same" else None}})

    async with pretended({**REST, "graphql": answer}) as (session, _):
        page = await session.list_enrollments(position=None, limit=100)

    assert [row.id for row in page.items] == ["9", "10", "11"]


async def test_deleted_courses_are_not_in_what_graphql_gives() -> None:
    answer = account(course("1", [node("9")]), course("2", [node("11")], state="deleted"))
    async with pretended({"graphql": answer}) as (session, _):
        page = await session.list_enrollments(position=None, limit=100)

    assert [row.id for row in page.items] == ["9"]


async def test_enrollments_of_everybody_are_read_once_for_very_many_users() -> None:
    ids = [str(number) for number in range(1, 160)]
    users = [{"id": id_, "name": id_} for id_ in ids[:-1]]
    pages = {
        None: (users[:100], "bookmark:x"),
        "bookmark:x": (users[100:], None),
    }

    def listing(request: httpx.Request) -> httpx.Response:
        rows, following = pages[request.url.params.get("page")]
        link = f'<{URL}/api/v1/accounts/self/users?page={following}>; rel="next"'
        headers = {"link": link if following else f'<{URL}>; rel="first"'}
        return httpx.Response(200, json=rows, headers=headers)

    replies = {
        "graphql": account(course("1", [node("9"), node("10", "999")])),
        "accounts/self/users": listing,
    }
    async with pretended(replies) as (session, canvas):
        with listening() as choices:
            found = await session.fetch_enrollments_by_user(ids)
            canvas.requests.clear()
            again = await session.fetch_enrollments_by_user(ids)

    assert set(found) == set(again) == set(ids[:-1])
    assert [row.id for row in found["5"]] == ["9"]
    assert choices[0].chosen == "graphql by account"
    # who was seen a moment ago is known to exist; only the one who was not is asked for
    assert canvas.called() == {"graphql": 1, "users/159": 1}


async def test_enrollments_of_very_many_users_in_few_courses_are_read_by_course() -> None:
    ids = ["5", "6", *(str(number) for number in range(100, 103))]
    replies = {**REST, **{f"users/{id_}": {"id": id_} for id_ in ids[2:4]}}
    async with pretended(replies, courses="2", graphql="") as (session, canvas):
        with listening() as choices:
            found = await session.fetch_enrollments_by_user(ids)

    assert {user: len(rows) for user, rows in found.items()} == {"5": 2, "6": 1, "100": 0, "101": 0}
    assert choices[0].chosen == "rest by course"
    assert choices[0].calls_by_strategy == {"rest by user": 5, "rest by course": 3}
    assert canvas.called()["courses/1/enrollments"] == 1


async def test_many_courses_of_few_are_read_with_the_account() -> None:
    answer = account(course("1", [node("9")]), course("2", []))
    graphql = ABILITIES.removesuffix(" courses")
    ids = [str(number) for number in range(1, 42)]
    async with pretended({"graphql": answer}, graphql=graphql) as (session, canvas):
        with listening() as choices:
            found = await session.fetch_enrollments_by_course(ids)

    assert {each: len(rows) for each, rows in found.items()} == {"1": 1, "2": 0}
    assert choices[0].chosen == "graphql by account"
    assert canvas.called()["graphql"] == 1


async def test_an_account_whose_courses_cannot_be_counted_is_still_read() -> None:
    async with pretended(REST, courses="", graphql="") as (session, _):
        page = await session.list_enrollments(position=None, limit=100)
        by_user = await session.fetch_enrollments_by_user(["5"])
    async with pretended(
        {**REST, "graphql": {"data": {"u0": {"_id": "5", "enrollments": []}}}}, courses=""
    ) as (session, _):
        with listening() as choices:
            await session.fetch_enrollments_by_user(["5", "6"])
            await session.fetch_enrollments_by_course(["1", "2"])
            await session.fetch_courses(["1", "2"])

    assert [row.id for row in page.items] == ["9", "10", "11"]
    assert len(by_user["5"]) == 2
    assert "graphql by account" not in choices[0].calls_by_strategy
    assert "rest list" not in choices[2].calls_by_strategy


# ---- the probe at login ----------------------------------------------------------------------


FIELDS = [
    *("_id", "userId", "courseSectionId", "course", "type", "enrollmentState", "createdAt"),
    *("updatedAt", "startAt", "endAt", "lastActivityAt", "totalActivityTime", "grades"),
]


def schema(
    enrollment: list[str] | None, grades: list[str] | None, root: list[str] | None
) -> dict[str, Any]:
    def kind(names: list[str] | None) -> object:
        return None if names is None else {"fields": [{"name": name} for name in names]}

    return {"data": {"enrollment": kind(enrollment), "grades": kind(grades), "root": kind(root)}}


LOGIN: Replies = {
    "users/self": {"id": "2", "name": "Ada"},
    "accounts/self": {"id": "1", "name": "School"},
    "accounts/self/courses": [{"id": "1"}],
    "accounts/self/roles": [
        {"workflow_state": "built_in", "base_role_type": "StudentEnrollment"},
        {"workflow_state": "active", "base_role_type": "AccountMembership"},
    ],
    "graphql": schema(FIELDS, ["currentScore", "finalGrade", "gradingPeriod"], ["courses"]),
}


async def learned(
    changes: Replies, *, options: Mapping[str, str] | None = None
) -> Mapping[str, str]:
    async with pretended({**LOGIN, **changes}, options=options) as (session, _):
        granted = await session.log_in(Secret({"api_key": " 7~fresh "}))
    return granted.secret.reveal()


async def test_a_login_keeps_what_decides_how_canvas_is_read() -> None:
    assert await learned({}) == {
        "access_token": "7~fresh",
        "user_id": "2",
        "account_id": "1",
        "courses": "1",
        "graphql": "currentScore finalGrade gradingPeriod courses",
        "graphql_problem": "",
    }


@pytest.mark.parametrize(
    "answer",
    [
        schema(FIELDS[1:], ["currentScore"], ["courses"]),
        schema(FIELDS, ["finalScore"], None),
        schema(None, ["currentScore"], None),
        schema(FIELDS, None, None),
        {"data": None},
        {"data": schema(FIELDS, ["currentScore"], None)["data"], "errors": [{"message": "odd"}]},
        refused(403),
        refused(404),
        httpx.Response(200, html="<html>"),
    ],
)
async def test_a_release_whose_graphql_lacks_something_is_read_through_rest(answer: object) -> None:
    values = await learned({"graphql": answer})

    assert values["graphql"] == ""
    assert values["graphql_problem"] == "This Canvas's GraphQL lacks what is needed"


async def test_courses_by_id_are_asked_for_only_where_they_exist() -> None:
    values = await learned({"graphql": schema(FIELDS, ["currentScore"], None)})

    assert values["graphql"] == "currentScore"


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        (
            [{"workflow_state": "inactive", "base_role_type": "TaEnrollment"}],
            "The account has custom roles, whose names GraphQL does not tell",
        ),
        (refused(401), "The access token may not read roles, so there may be custom ones"),
        (refused(404), "The access token may not read roles, so there may be custom ones"),
    ],
)
async def test_custom_roles_or_doubt_about_them_forbid_graphql(roles: object, problem: str) -> None:
    values = await learned({"accounts/self/roles": roles})

    assert values["graphql_problem"] == problem


async def test_graphql_can_be_switched_off() -> None:
    async with pretended(LOGIN, options={"graphql": "never"}) as (session, canvas):
        granted = await session.log_in(Secret({"api_key": "7~fresh"}))

    assert granted.secret.reveal()["graphql_problem"] == "The option graphql is never"
    assert canvas.called()["graphql"] == 0
    assert canvas.called()["accounts/self/roles"] == 0


async def test_an_outage_while_learning_is_no_lack() -> None:
    async with pretended({**LOGIN, "graphql": httpx.Response(500)}) as (session, _):
        with pytest.raises(ProviderUnavailable):
            await session.log_in(Secret({"api_key": "7~fresh"}))


@pytest.mark.parametrize(
    ("courses", "count"),
    [
        ([], "0"),
        ([{"id": "1"}], "1"),
        (refused(403), ""),
        (refused(404), ""),
        (
            httpx.Response(
                200,
                json=[{"id": "1"}],
                headers={
                    "link": f'<{URL}/api/v1/accounts/1/courses?page=2&per_page=1>; rel="next",'
                    f'<{URL}/api/v1/accounts/1/courses?page=1234&per_page=1>; rel="last"'
                },
            ),
            "1234",
        ),
        (
            httpx.Response(
                200,
                json=[{"id": "1"}],
                headers={"link": f'<{URL}/api/v1/accounts/1/courses?page=2>; rel="next"'},
            ),
            "",
        ),
    ],
)
async def test_courses_are_counted_by_the_number_of_the_last_page(
    courses: object, count: str
) -> None:
    assert (await learned({"accounts/self/courses": courses}))["courses"] == count


async def test_a_token_that_ends_while_learning_is_refused() -> None:
    lost = refused(401, {"errors": [{"message": "Invalid access token."}]}, **CHALLENGE)
    for path in ("users/self", "accounts/self/roles"):
        with pytest.raises(ReauthRequired):
            await learned({path: lost})


async def test_an_address_without_users_is_no_canvas() -> None:
    with pytest.raises(ProviderBadResponse, match="not a Canvas API"):
        await learned({"users/self": httpx.Response(404, html="<html>Not found</html>")})


@pytest.mark.parametrize("key", ["", "  "])
async def test_no_token_is_refused_without_a_call(key: str) -> None:
    async with pretended({}) as (session, canvas):
        with pytest.raises(ReauthRequired):
            await session.log_in(Secret({"api_key": key}))

    assert canvas.requests == []


async def test_keeping_alive_learns_anew() -> None:
    custom = [{"workflow_state": "active", "base_role_type": "StudentEnrollment"}]
    async with pretended({**LOGIN, "accounts/self/roles": custom}) as (session, _):
        grant = Grant(version=1, secret=Secret({"access_token": "7~token"}))
        kept = await session.keep_alive(grant)

    assert kept.secret.reveal()["graphql_problem"].startswith("The account has custom roles")
    assert kept.lifetime_seconds == 86_400


async def test_a_users_grant_is_only_proven() -> None:
    async with pretended(LOGIN, subject="user:2") as (session, canvas):
        grant = Grant(version=1, secret=Secret({"access_token": "a", "refresh_token": "b"}))
        kept = await session.keep_alive(grant)

        assert kept == NewGrant(secret=grant.secret)
        assert session.can_renew(grant)
        assert canvas.called() == {"users/self": 1}


async def test_a_grant_without_a_token_is_lost() -> None:
    empty = Grant(version=1, secret=Secret({}))
    async with pretended(LOGIN) as (session, canvas):
        with pytest.raises(SessionLost):
            await session.keep_alive(empty)

    assert canvas.requests == []


# ---- checks ---------------------------------------------------------------------------------


USERS = [{"id": "2", "email": None, "login_id": "a", "sis_user_id": None}, {"id": "3"}]
CHECK: Replies = {
    "users/self": {"id": "2", "name": "Ada\u0007"},
    "accounts/self": {"id": "1", "name": None},
    "accounts/self/users": USERS,
    "accounts/self/courses": [],
}


async def test_a_key_that_is_null_shows_that_the_permission_is_there() -> None:
    options = {"role.TaEnrollment": "AIDE", "graphql": "never"}
    async with pretended(CHECK, options=options) as (session, _):
        check = await session.check()

    assert (check.name, check.missing) == ("1", ())


async def test_every_missing_permission_is_told_with_what_it_costs() -> None:
    changes = {"accounts/self/users": [{"id": "2"}], "accounts/self/courses": refused(401)}
    async with pretended({**CHECK, **changes}) as (session, _):
        check = await session.check()

    assert [sentence.partition(":")[0] for sentence in check.missing] == [
        "Users - view primary email address",
        "Users - view login IDs",
        "SIS Data - read",
        "Courses - view list",
    ]


async def test_a_token_that_may_not_list_users_is_told_so() -> None:
    async with pretended({**CHECK, "accounts/self/users": refused(403)}) as (session, _):
        with pytest.raises(ProviderForbidden, match="may not list the users of the account 1"):
            await session.check()


async def test_missing_scopes_are_told_instead() -> None:
    scopes = refused(401, {"errors": [{"message": "Insufficient scopes on access token."}]})
    async with pretended({**CHECK, "accounts/self/users": scopes}) as (session, _):
        with pytest.raises(ProviderForbidden, match="scopes are not enough"):
            await session.check()


async def test_a_users_check_names_the_user() -> None:
    async with pretended(CHECK, subject="user:2") as (session, _):
        check = await session.check()

    assert check.account == "Canvas user Ada"


# ---- what is hidden -------------------------------------------------------------------------


async def test_what_is_hidden_from_a_user_is_left_out_and_from_the_service_an_error() -> None:
    denied: Replies = {
        "users/6": refused(403),
        "users/6/enrollments": refused(401),
        "users/6/page_views": refused(403),
        "courses/2": refused(401),
        "courses/2/sections": refused(403),
        "courses/1/assignments": [],
        "courses/1/students/submissions": refused(403),
    }
    async with pretended(denied, subject="user:5") as (session, _):
        found = [
            await session.fetch_users(["6"]),
            await session.fetch_enrollments_by_user(["6"]),
            await session.fetch_activity_by_user(["6"], limit=3),
            await session.fetch_courses(["2"]),
            await session.fetch_sections_by_course(["2"]),
            await session.fetch_milestones([("6", "1")]),
        ]
    assert found == [{}] * 6

    async with pretended(denied, graphql="", courses="999") as (session, _):
        reads: list[Callable[[], Any]] = [
            lambda: session.fetch_users(["6"]),
            lambda: session.fetch_enrollments_by_user(["6"]),
            lambda: session.fetch_activity_by_user(["6"], limit=3),
            lambda: session.fetch_courses(["2"]),
            lambda: session.fetch_sections_by_course(["2"]),
            lambda: session.fetch_milestones([("6", "1")]),
        ]
        for read in reads:
            with pytest.raises(ProviderForbidden):
                await read()


async def test_missing_scopes_are_an_error_for_users_as_well() -> None:
    scopes = refused(401, {"errors": [{"message": "Insufficient scopes on access token."}]})
    replies: Replies = {"users/6": scopes, "users/6/page_views": scopes}
    async with pretended(replies, subject="user:5") as (session, _):
        with pytest.raises(ProviderForbidden):
            await session.fetch_users(["6"])
        with pytest.raises(ProviderForbidden):
            await session.fetch_activity_by_user(["6"], limit=3)


async def test_page_views_that_are_switched_off_are_not_supported() -> None:
    async with pretended({"users/5": {"id": "5"}}) as (session, _):
        assert await session.fetch_activity_by_user(["6"], limit=3) == {}
        with pytest.raises(NotSupported):
            await session.fetch_activity_by_user(["5"], limit=3)


async def test_a_users_own_page_views_are_asked_for_as_theirs() -> None:
    replies: Replies = {"users/self": {"id": "5"}}
    async with pretended(replies, subject="user:5") as (session, canvas):
        with pytest.raises(NotSupported):
            await session.fetch_activity_by_user(["5"], limit=3)

    assert canvas.called() == {"users/5/page_views": 1, "users/self": 1}


async def test_nothing_asked_is_nothing_called() -> None:
    async with pretended({}) as (session, canvas):
        found = [
            await session.fetch_progress([]),
            await session.fetch_progress([("x", "1")]),
            await session.fetch_milestones([]),
            await session.fetch_sections_by_course(["no-such-id"]),
            await session.fetch_activity_by_user([], limit=1),
            await session.fetch_users(["../admin"]),
            await session.fetch_courses(["1/../2"]),
        ]

    assert found == [{}] * 7
    assert canvas.requests == []


async def test_submissions_of_others_are_not_taken() -> None:
    rows = [
        {"id": "1", "assignment_id": "3", "user_id": "5"},
        {"id": "2", "assignment_id": "3", "user_id": "999"},
    ]
    replies: Replies = {"courses/1/assignments": [], "courses/1/students/submissions": rows}
    async with pretended(replies) as (session, _):
        found = await session.fetch_milestones([("5", "1")])

    assert [row.external_id for row in found["5", "1"]] == ["1"]


# ---- lists ----------------------------------------------------------------------------------


def numbered(total: int, *, most: int) -> Answer:
    """An account's users whose pages are numbered, as where ``sort=id`` gives no bookmarks."""

    def answer(request: httpx.Request) -> httpx.Response:
        params = request.url.params
        size, page = min(int(params["per_page"]), most), int(params.get("page", "1"))
        ids = range((page - 1) * size + 1, min(page * size, total) + 1)
        here = f"{URL}/api/v1/accounts/self/users?sort=id&per_page={size}"
        links = f'<{here}&page={page}>; rel="current"'
        if page * size < total:
            links += f',<{here}&page={page + 1}>; rel="next"'
        rows = [{"id": str(id_)} for id_ in ids]
        return httpx.Response(200, json=rows, headers={"link": links})

    return answer


@pytest.mark.parametrize("most", [100, 50, 7])
@pytest.mark.parametrize("limit", [1, 7, 30, 99, 100, 1000])
async def test_numbered_pages_are_read_whole_at_any_size(limit: int, most: int) -> None:
    async with pretended({"accounts/self/users": numbered(120, most=most)}) as (session, _):
        ids: list[str] = []
        position: str | None = None
        while True:
            page = await session.list_users(position=position, limit=limit)
            assert len(page.items) <= limit
            ids += [user.external_id for user in page.items]
            position = page.next_position
            if position is None:
                break

    assert ids == [str(number) for number in range(1, 121)]


async def test_a_walk_begun_elsewhere_goes_on_where_pages_are_shorter() -> None:
    async with pretended({"accounts/self/users": numbered(120, most=50)}) as (session, _):
        page = await session.list_users(position="@30", limit=100)

    assert [user.external_id for user in page.items] == [str(n) for n in range(31, 121)]


async def test_rows_of_a_list_with_bookmarks_have_no_positions_of_their_own() -> None:
    def bookmarked(request: httpx.Request) -> httpx.Response:
        link = f'<{URL}/api/v1/accounts/1/courses?page=bookmark:b>; rel="next"'
        first = request.url.params.get("page") is None
        rows = [{"id": "1"}, {"id": "2"}] if first else [{"id": "3"}]
        return httpx.Response(200, json=rows, headers={"link": link} if first else {})

    replies: Replies = {
        "accounts/1/courses": bookmarked,
        "accounts/self/courses": bookmarked,
    }
    async with pretended(replies) as (session, _):
        page = await session.list_courses(position=None, limit=2)
        rest = await session.list_courses(position=page.next_position, limit=2)

    assert (len(page.items), page.next_position) == (2, "page:bookmark:b")
    assert [course.external_id for course in rest.items] == ["3"]
    assert (page.positions, rest.positions) == ([], [])


async def test_a_bookmark_that_leads_back_ends_the_list() -> None:
    link = f'<{URL}/api/v1/accounts/self/users?page=bookmark:a>; rel="next"'
    same = httpx.Response(200, json=[{"id": "1"}], headers={"link": link})
    async with pretended({"accounts/self/users": same}) as (session, canvas):
        with pytest.raises(ProviderBadResponse, match="circle"):
            await session.list_users(position=None, limit=100)

    assert len(canvas.requests) == 2


async def test_users_not_found_in_the_list_after_as_many_calls_are_asked_for() -> None:
    def endless(request: httpx.Request) -> httpx.Response:
        page = int(request.url.params.get("page", "bookmark:0").removeprefix("bookmark:"))
        rows = [{"id": str(1000 + page)}]
        link = f'<{URL}/api/v1/accounts/self/users?page=bookmark:{page + 1}>; rel="next"'
        return httpx.Response(200, json=rows, headers={"link": link})

    ids = [str(number) for number in range(1, 13)]
    replies: Replies = {"accounts/self/users": endless} | {f"users/{i}": {"id": i} for i in ids[:5]}
    async with pretended(replies) as (session, canvas):
        found = await session.fetch_users(ids)

    assert set(found) == set(ids[:5])
    assert canvas.called()["accounts/self/users"] == 12
    assert len(canvas.requests) == 24


async def test_a_list_read_to_its_end_tells_how_many_there_are() -> None:
    ids = [str(number) for number in range(1, 5)]
    replies: Replies = {
        "accounts/self/users": numbered(120, most=100),
        "accounts/self/courses": [{"id": id_} for id_ in ids],
    }
    async with pretended(replies, courses="99999") as (session, _):
        session._reader._shared_seconds = 0
        begun = await session.list_users(position=None, limit=50)
        other = await session.list_users(position="@90", limit=20)
        with listening() as choices:
            await session.fetch_users(ids)
            await session.fetch_courses(ids)
        going = await session.list_users(position=begun.next_position, limit=50)
        await session.list_users(position=going.next_position, limit=50)
        await session.list_courses(position=None, limit=100)
        with listening() as now:
            await session.fetch_users(ids)
            await session.fetch_courses(ids)

    assert len(other.items) == 20
    assert [choice.chosen for choice in choices] == ["rest by user", "rest by course"]
    assert [choice.calls_by_strategy["rest list"] for choice in now] == [2, 1]


async def test_a_first_failure_ends_what_is_beside_it() -> None:
    replies = {**REST, "courses/1/enrollments": httpx.Response(500)}
    async with pretended(replies, graphql="") as (session, _):
        with pytest.raises(ProviderUnavailable):
            await session.list_enrollments(position=None, limit=100)


async def test_many_at_the_same_time_share_one_read() -> None:
    courses = [{"id": str(number)} for number in range(1, 4)]
    async with pretended({"accounts/self/courses": courses}) as (session, canvas):
        found = await asyncio.gather(*(session.fetch_courses(["1", "2", "3"]) for _ in range(10)))

    assert all(len(each) == 3 for each in found)
    assert len(canvas.requests) == 1


@pytest.mark.parametrize("media_type", ["text/html", "application/json", ""])
async def test_what_is_no_image_is_not_passed_on(media_type: str) -> None:
    row = {"id": "1", "image_download_url": f"{URL}/files/1?verifier=x"}

    def image(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers
        return httpx.Response(200, content=b"x", headers={"content-type": media_type})

    async with pretended({"courses/1": row, "/files/1": image}) as (session, _):
        with pytest.raises(ProviderBadResponse, match="not an image"):
            await session.fetch_file("course-image/1", max_bytes=100)


async def test_an_image_is_passed_on_whole_and_only_if_it_is_small_enough() -> None:
    row = {"id": "1", "image_download_url": f"{URL}/files/1?verifier=x"}
    image = httpx.Response(200, content=b"x" * 100, headers={"content-type": "Image/PNG"})
    async with pretended({"courses/1": row, "/files/1": image}) as (session, canvas):
        assert await session.fetch_file("course-image/1", max_bytes=100) == b"x" * 100
        with pytest.raises(ProviderBadResponse):
            await session.fetch_file("course-image/1", max_bytes=99)

    assert canvas.called() == {"courses/1": 1, "/files/1": 2}
