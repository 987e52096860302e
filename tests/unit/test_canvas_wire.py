"""Canvas's wire in all its forms: who is let in, where lists go on, what a refusal means."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import httpx
import pytest

from sessions.addresses import AddressPolicy
from sessions.base import Grant, Subject
from sessions.errors import (
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderRateLimited,
    ProviderUnavailable,
    SessionLost,
)
from sessions.http import HttpLimits, ProviderHttp, Response, deadline, patience
from sessions.platforms.canvas.wire import (
    LINK_ORIGIN,
    CanvasWire,
    NotThere,
    ScopesMissing,
    api_root,
    problem_of,
    problems_by_field,
    segment,
)
from simulators.moving_time import run_virtually
from storage.credentials import Secret
from storage.records import Provider, ProviderState

T = TypeVar("T")

URL = "https://canvas.test"
API = f"{URL}/api/v1"
TOKEN = "7~secretTokenOfTheService0123456789"
CHALLENGE = {"www-authenticate": 'Bearer realm="canvas-lms"'}
THROTTLED = "403 Forbidden (Rate Limit Exceeded)\n"

Answer = Callable[[httpx.Request], httpx.Response]
Thing = dict[str, Any]


@dataclass
class Recorder:
    """A pretended Canvas: gives answers in turn, the last one for ever."""

    answers: list[httpx.Response | Answer]
    requests: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        turn = min(len(self.requests), len(self.answers)) - 1
        answer = self.answers[turn]
        return answer if isinstance(answer, httpx.Response) else answer(request)

    def queries(self) -> list[dict[str, str]]:
        return [dict(request.url.params) for request in self.requests]


@asynccontextmanager
async def wired(
    *answers: httpx.Response | Answer,
    url: str = URL,
    subject: Subject = Subject(),  # noqa: B008 - frozen
    options: Mapping[str, str] | None = None,
    tokens: tuple[str, ...] = (TOKEN,),
    total_seconds: float = 30,
) -> AsyncIterator[tuple[CanvasWire, Recorder]]:
    """A wire to a pretended Canvas; a lost token is replaced by the next one."""
    recorder = Recorder(list(answers))
    now = datetime.now(UTC)
    provider = Provider(
        id="7",
        platform="canvas",
        name="",
        base_url=url,
        options=options or {},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=now,
        updated_at=now,
    )
    left = list(tokens)

    async def authorised(call: Callable[[Grant], Awaitable[T]], /) -> T:
        while True:
            grant = Grant(version=1, secret=Secret({"access_token": left[0]}))
            try:
                return await call(grant)
            except SessionLost:
                left.pop(0)
                if not left:
                    raise

    async with ProviderHttp.open(
        url,
        provider_id="7",
        policy=AddressPolicy(),
        limits=HttpLimits(total_seconds=total_seconds),
        transport=httpx.MockTransport(recorder),
    ) as http:
        yield CanvasWire(provider, http=http, subject=subject, authorised=authorised), recorder


def ok(body: object, **headers: str) -> httpx.Response:
    return httpx.Response(200, json=body, headers=headers)


def linked(body: object, **targets: str) -> httpx.Response:
    return ok(body, link=",".join(f'<{url}>; rel="{rel}"' for rel, url in targets.items()))


def refusal(status: int, body: object, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def response_of(status: int, body: object) -> Response:
    return Response(status=status, body=json.dumps(body).encode())


# ---- what goes out


async def test_a_call_asks_for_string_ids_with_the_token_in_its_header_only() -> None:
    async with wired(ok({"id": "1"})) as (wire, canvas):
        await wire.get("users/self", Thing, params={"include[]": ["email", "uuid"]})

    (request,) = canvas.requests
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert request.headers["accept"] == "application/json+canvas-string-ids, application/json"
    assert str(request.url) == f"{API}/users/self?include%5B%5D=email&include%5B%5D=uuid"


@pytest.mark.parametrize(
    "given",
    [URL, f"{URL}/", f"{URL}/api/v1", f"{URL}/api/v1/", f"{URL}/api", f"{URL}//"],
)
async def test_the_address_may_be_that_of_the_api(given: str) -> None:
    async with wired(ok({}), url=given) as (wire, canvas):
        await wire.get("users/self", Thing)
        await wire.graphql("{ a }", Thing)

    assert [str(request.url) for request in canvas.requests] == [
        f"{API}/users/self",
        f"{URL}/api/graphql",
    ]
    assert api_root(given) == URL


async def test_a_canvas_below_a_path_is_called_there() -> None:
    page = linked([{}], next=f"{URL}/school/api/v1/courses?page=2")
    async with wired(page, ok([{}]), url=f"{URL}/school/api/v1") as (wire, canvas):
        await wire.rows("courses", Thing)

    paths = [request.url.path for request in canvas.requests]
    assert paths == ["/school/api/v1/courses"] * 2


async def test_a_masquerade_names_whom_it_acts_as_in_every_call() -> None:
    page = linked([{}], next=f"{API}/courses?as_user_id=5&page=2")
    subject = Subject.parse("masquerade:5")
    async with wired(page, ok([{}]), ok({}), ok({}), subject=subject) as (wire, canvas):
        await wire.rows("courses", Thing)
        await wire.graphql("{ a }", Thing)
        await wire.send("POST", "courses/1/enrollments", form={"a": 1})

    assert [request.url.params.get_list("as_user_id") for request in canvas.requests] == [["5"]] * 4


async def test_a_write_puts_its_parameters_in_the_body() -> None:
    async with wired(ok({"id": "9"})) as (wire, canvas):
        answer = await wire.send(
            "POST", "accounts/1/users", form={"user[name]": "Ö", "pseudonym[unique_id]": None}
        )

    (request,) = canvas.requests
    assert request.url.query == b""
    assert parse_qsl(request.content.decode()) == [("user[name]", "Ö")]
    assert answer.status == 200


async def test_a_refused_write_is_returned_to_be_judged() -> None:
    async with wired(refusal(400, {"message": "Can't add an enrollment."})) as (wire, canvas):
        answer = await wire.send("POST", "courses/1/enrollments")

    assert (answer.status, problem_of(answer)) == (400, "Can't add an enrollment")
    assert len(canvas.requests) == 1


async def test_graphql_sends_its_variables_as_json() -> None:
    async with wired(ok({"data": {"a": 1}, "errors": [{"message": "b"}]})) as (wire, canvas):
        answer = await wire.graphql("{ a }", Thing, variables={"ids": ["1"]})

    assert dict(parse_qsl(canvas.requests[0].content.decode())) == {
        "query": "{ a }",
        "variables": '{"ids":["1"]}',
    }
    assert answer.data == {"a": 1}
    assert [problem.message for problem in answer.errors] == ["b"]


def test_an_id_is_one_segment_whatever_it_holds() -> None:
    assert segment("sis_user_id:A/1 ?#") == "sis_user_id:A%2F1%20%3F%23"
    assert segment("12~34") == "12~34"


# ---- pages


@pytest.mark.parametrize(
    "header",
    [
        f'<{API}/courses?page=2>; rel="next"',
        f"<{API}/courses?page=2>; rel=next",
        f'<{API}/courses?page=2>;title="a, b; c";REL="NEXT"',
        f'<{API}/courses?page=1>; rel="current",<{API}/courses?page=2>; rel="next"',
        f'<{API}/courses?page=2>; rel="prefetch next"',
        '</api/v1/courses?page=2>; rel="next"',
        '<courses?page=2>; rel="next"',
        '<?page=2>; rel="next"',
        f'<{URL}:443/api/v1/courses?page=2#top>; rel="next"',
    ],
)
async def test_the_next_page_is_found_however_it_is_written(header: str) -> None:
    async with wired(ok([{}], link=header), ok([{}])) as (wire, canvas):
        assert len(await wire.rows("courses", Thing)) == 2

    assert canvas.queries() == [{"per_page": "100"}, {"page": "2"}]


async def test_only_the_next_page_is_followed() -> None:
    page = linked([{}], first=f"{API}/c?page=1", prev=f"{API}/c?page=0", last=f"{API}/c?page=5")
    async with wired(page) as (wire, canvas):
        listed = await wire.page("courses", Thing)

    assert (listed.following, listed.last, listed.size) == (None, 5, None)
    assert len(canvas.requests) == 1


async def test_pages_may_be_bookmarks_without_a_last_one() -> None:
    bookmark = "bookmark:WzEsInh5eiJd+/=="
    first = linked(
        [{}],
        current=f"{API}/users?page=first&per_page=50",
        next=f"{API}/users?sort=id&page=bookmark%3AWzEsInh5eiJd%2B%2F%3D%3D&per_page=50",
    )
    async with wired(first, ok([{}])) as (wire, canvas):
        await wire.rows("users", Thing, params={"sort": "id"})

    assert canvas.queries()[1] == {"sort": "id", "page": bookmark, "per_page": "50"}


@pytest.mark.parametrize(
    "target",
    [
        "https://elsewhere.example.net/api/v1/courses?page=2",
        "http://canvas.test/api/v1/courses?page=2",
        "https://canvas.test:8443/api/v1/courses?page=2",
        "https://canvas.test@elsewhere.example.net/api/v1/courses?page=2",
        "https://canvas.test/login?page=2",
        "//elsewhere.example.net/api/v1/courses",
        "javascript:alert(1)",
        "https://[",
        "https://canvas.test/%2e%2e/api/v1/courses",
    ],
)
async def test_a_next_page_elsewhere_is_refused_and_nothing_is_sent_there(target: str) -> None:
    async with wired(linked([{}], next=target)) as (wire, canvas):
        with pytest.raises(ProviderBadResponse) as refused:
            await wire.rows("courses", Thing)

    assert [request.url.host for request in canvas.requests] == ["canvas.test"]
    assert "page=2" not in refused.value.message


async def test_a_proxys_origin_is_accepted_if_it_is_named_and_rewritten_to_ours() -> None:
    inside = "http://canvas.internal:3000"
    page = linked([{}], next=f"{inside}/api/v1/courses?page=2")
    options = {LINK_ORIGIN: inside}
    async with wired(page, ok([{}]), options=options, url=f"{URL}/lms") as (wire, canvas):
        await wire.rows("courses", Thing)

    assert str(canvas.requests[1].url) == f"{URL}/lms/api/v1/courses?page=2"


async def test_a_proxys_origin_that_is_none_changes_nothing() -> None:
    page = linked([{}], next="http://canvas.internal/api/v1/courses?page=2")
    async with wired(page, options={LINK_ORIGIN: "nonsense"}) as (wire, _):
        with pytest.raises(ProviderBadResponse):
            await wire.rows("courses", Thing)


async def test_a_token_in_a_link_is_not_sent_along() -> None:
    page = linked([{}], next=f"{API}/courses?access_token={TOKEN}&page=2")
    async with wired(page, ok([{}])) as (wire, canvas):
        await wire.rows("courses", Thing)

    assert canvas.queries()[1] == {"page": "2"}


async def test_numbered_pages_come_in_order_and_go_on_where_the_list_has_grown() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("page", "1"))
        links = {"last": f"{API}/users?page=3&per_page=100"}
        if number < 4:
            links["next"] = f"{API}/users?page={number + 1}&per_page=100"
        return linked([{"id": str(number)}], **links)

    async with wired(answer) as (wire, canvas):
        rows = await wire.rows("users", Thing)

    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    assert canvas.queries() == [
        {"per_page": "100"},
        *({"page": str(number), "per_page": "100"} for number in (2, 3, 4)),
    ]


async def test_no_more_than_some_pages_are_believed_to_be_there() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        first = "page" not in request.url.params
        links = {"last": f"{API}/users?page=999999999"}
        if first:
            links["next"] = f"{API}/users?page=2"
        return linked([{"id": "1"}] if first else [], **links)

    async with wired(answer) as (wire, canvas):
        rows = await wire.rows("users", Thing)

    assert len(rows) == 1
    assert len(canvas.requests) == 200


async def test_pages_that_lead_in_a_circle_end() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        following = "b" if request.url.params.get("page") == "a" else "a"
        return linked([{}], next=f"{API}/users?page={following}")

    async with wired(answer) as (wire, canvas):
        with pytest.raises(ProviderBadResponse, match="circle"):
            await wire.rows("users", Thing)

    assert len(canvas.requests) == 3


async def test_a_full_page_without_any_links_is_not_believed_to_be_the_last() -> None:
    async with wired(ok([{}] * 100)) as (wire, _):
        with pytest.raises(ProviderBadResponse, match="did not say what follows"):
            await wire.rows("users", Thing)


async def test_a_full_page_after_a_long_query_may_have_lost_its_link() -> None:
    page = linked([{}] * 100, first=f"{API}/users?page=1")
    long = [("student_ids[]", "1" * 20)] * 50
    async with wired(page) as (wire, _):
        whole = await wire.rows("users", Thing)
        with pytest.raises(ProviderBadResponse, match="did not say what follows"):
            await wire.rows("users", Thing, params=long)

    assert len(whole) == 100


async def test_a_list_of_what_is_not_there_is_told_from_an_empty_one() -> None:
    missing = refusal(404, {"errors": [{"message": "The specified resource does not exist."}]})
    async with wired(ok([]), missing) as (wire, _):
        assert await wire.rows("courses/1/enrollments", Thing) == []
        with pytest.raises(NotThere):
            await wire.rows("courses/2/enrollments", Thing)


async def test_a_token_replaced_between_two_pages_does_not_end_the_walk() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        page = request.url.params.get("page", "1")
        if page == "2" and request.headers["authorization"] == "Bearer old":
            return refusal(401, {"errors": [{"message": "Expired access token."}]}, **CHALLENGE)
        following = {"next": f"{API}/users?page={int(page) + 1}"} if page != "3" else {}
        return linked([{"page": page}], first=f"{API}/users", **following)

    async with wired(answer, tokens=("old", "new")) as (wire, canvas):
        rows = await wire.rows("users", Thing)

    assert [row["page"] for row in rows] == ["1", "2", "3"]
    sent = [request.headers["authorization"] for request in canvas.requests]
    assert sent == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]


# ---- refusals


@pytest.mark.parametrize(
    "message", ["Invalid access token.", "Expired access token.", "Revoked access token."]
)
async def test_a_401_with_a_challenge_means_that_the_token_is_lost(message: str) -> None:
    lost = refusal(401, {"errors": [{"message": message}]}, **CHALLENGE)
    async with wired(lost) as (wire, canvas):
        with pytest.raises(SessionLost):
            await wire.get("users/self", Thing)

    assert len(canvas.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_without_a_challenge_is_a_missing_permission(status: int) -> None:
    message = "user not authorized to perform that action"
    body = {"status": "unauthorized", "errors": [{"message": message}]}
    async with wired(refusal(status, body)) as (wire, canvas):
        with pytest.raises(ProviderForbidden) as refused:
            await wire.get("accounts/1/users", Thing)

    assert refused.value.message == f"Canvas does not permit this: {message}"
    assert not isinstance(refused.value, ScopesMissing)
    assert len(canvas.requests) == 1


async def test_an_unknown_user_to_act_as_is_a_missing_permission() -> None:
    async with wired(refusal(401, {"errors": "Invalid as_user_id"})) as (wire, _):
        with pytest.raises(ProviderForbidden, match=r"permit this: Invalid as_user_id$"):
            await wire.get("users/self", Thing)


@pytest.mark.parametrize("status", [401, 403])
async def test_missing_scopes_are_named_with_the_call_they_would_be_for(status: int) -> None:
    body = {"errors": [{"message": "Insufficient scopes on access token."}]}
    async with wired(refusal(status, body)) as (wire, _):
        with pytest.raises(ScopesMissing) as refused:
            await wire.get("users/12345/page_views", Thing, params={"page": "secret"})

    assert refused.value.message == (
        "The access token's scopes are not enough for GET /api/v1/users/:id/page_views"
    )


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<!doctype html><title>Log in</title>"),
        httpx.Response(200, content=b"  <html></html>", headers={"content-type": "text/plain"}),
        httpx.Response(302, headers={"location": f"{URL}/login"}),
        httpx.Response(302, headers={"location": "https://sso.example.net/saml?secret=1"}),
        httpx.Response(401, html="<html>proxy</html>"),
    ],
)
async def test_what_is_not_the_api_is_called_so(answer: httpx.Response) -> None:
    async with wired(answer) as (wire, canvas):
        with pytest.raises(ProviderBadResponse, match="not a Canvas API"):
            await wire.get("users/self", Thing)

    assert len(canvas.requests) == 1


async def test_a_maintenance_page_is_an_outage() -> None:
    async with wired(httpx.Response(503, html="<h1>503</h1>")) as (wire, _):
        with pytest.raises(ProviderUnavailable):
            await wire.get("users/self", Thing)


async def test_what_is_not_found_is_none_where_that_may_be() -> None:
    missing = refusal(404, {"errors": [{"message": "The specified resource does not exist."}]})
    async with wired(missing) as (wire, _):
        assert await wire.find("users/9", Thing) is None
        with pytest.raises(NotThere):
            await wire.get("users/9", Thing)


async def test_what_a_release_does_not_know_may_be_not_found_in_html() -> None:
    async with wired(httpx.Response(404, html="<html>Page Not Found</html>")) as (wire, _):
        assert await wire.find("accounts/1/roles", Thing) is None


@pytest.mark.parametrize("status", [400, 409, 422])
async def test_any_other_refusal_is_told_shortly(status: int) -> None:
    async with wired(refusal(status, {"errors": "No <b>bold</b> here"})) as (wire, _):
        with pytest.raises(ProviderBadResponse) as refused:
            await wire.get("users/self", Thing)

    assert refused.value.message == (
        f"Canvas refused the request: it did not say why (status {status})"
    )


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ({"errors": [{"message": "One."}, {"message": "Two"}]}, "One; Two"),
        ({"errors": [{"message": "One", "error_code": "x"}], "error_report_id": 7}, "One"),
        ({"errors": "A string"}, "A string"),
        ({"errors": ["A", "B"]}, "A; B"),
        (
            {"errors": {"name": [{"attribute": "name", "type": "blank", "message": "is blank"}]}},
            "is blank",
        ),
        (
            {
                "errors": {
                    "user": {},
                    "pseudonym": {"unique_id": [{"attribute": "unique_id", "message": "taken"}]},
                }
            },
            "taken",
        ),
        (
            {"errors": [{"field": "search_term", "code": "invalid", "message": "2 or more"}]},
            "2 or more",
        ),
        ({"message": "Can't add: concluded course."}, "Can't add: concluded course"),
        ({"error": "no current invitation"}, "no current invitation"),
        ({"error": "invalid_grant", "error_description": "code not found"}, "code not found"),
        ({"error": {"message": "no progress"}}, "no progress"),
        ({"errors": []}, None),
        ({"status": 5, "base": ["is off"]}, "is off"),
        ({}, None),
        ([], None),
        (None, None),
        (5, None),
        ({"message": "See https://canvas.test/x?verifier=abc now"}, "See … now"),
        ({"message": f"Token {TOKEN} is bad"}, "Token … is bad"),
        ({"message": "a <script>"}, None),
        ({"message": "line\nbreak\u0007"}, "line break"),
        ({"message": "long " * 100}, f"{('long ' * 40)[:199]}…"),
    ],
)
def test_every_form_of_error_becomes_a_short_safe_text(body: object, shown: str | None) -> None:
    assert problem_of(response_of(400, body)) == shown


def test_a_plain_text_becomes_a_short_safe_text() -> None:
    assert problem_of(Response(status=403, body=b"Nope.\n")) == "Nope"
    assert problem_of(Response(status=403, body=b"")) is None
    assert problem_of(Response(status=403, body=b"<html>x")) is None
    assert problem_of(Response(status=403, body=b"\xff\xfe no")) == "\ufffd\ufffd no"


def test_problems_are_told_by_field() -> None:
    nested = {
        "user": {},
        "pseudonym": {
            "unique_id": [{"attribute": "unique_id", "type": "taken", "message": "In use."}]
        },
        "communication_channel": {"address": [{"message": "is bad"}]},
    }
    by_name = {"errors": [{"field": "search_term", "message": "too short"}]}

    assert problems_by_field(response_of(400, {"errors": nested})) == {
        "unique_id": "In use",
        "address": "is bad",
    }
    assert problems_by_field(response_of(400, by_name)) == {"search_term": "too short"}
    assert problems_by_field(response_of(400, {"errors": "text"})) == {}
    assert problems_by_field(response_of(400, ["text"])) == {}
    assert problems_by_field(Response(status=400, body=b"text")) == {}


async def test_a_grant_without_a_token_is_lost_before_anything_is_sent() -> None:
    async with wired(ok({}), tokens=("",)) as (wire, canvas):
        with pytest.raises(SessionLost):
            await wire.get("users/self", Thing)

    assert canvas.requests == []


async def test_a_token_can_be_tried_before_it_is_anybodys() -> None:
    async with wired(refusal(401, {}, **CHALLENGE)) as (wire, canvas):
        with pytest.raises(SessionLost):
            await wire.holding(Secret("8~new")).get("users/self", Thing)

    assert [request.headers["authorization"] for request in canvas.requests] == ["Bearer 8~new"]


# ---- rate


def throttled(status: int, **headers: str) -> httpx.Response:
    text = THROTTLED if status == 403 else "429 Too Many Requests (Rate Limit Exceeded)\n"
    return httpx.Response(status, text=text, headers={"x-rate-limit-remaining": "-40", **headers})


@pytest.mark.parametrize("status", [403, 429])
def test_a_call_that_came_too_early_is_made_again_later(status: int) -> None:
    async def story() -> tuple[list[float], Thing]:
        times = list[float]()

        def answer(_request: httpx.Request) -> httpx.Response:
            times.append(asyncio.get_running_loop().time())
            return throttled(status) if len(times) < 3 else ok({"id": "1"})

        async with wired(answer) as (wire, _):
            found: Thing = await wire.get("users/self", Thing)
            return times, found

    times, found = run_virtually(story())

    first, second = (later - earlier for earlier, later in pairwise(times))
    assert found == {"id": "1"}
    assert 1 <= first < 7
    assert 2 <= second < 9


def test_a_write_that_came_too_early_is_made_again() -> None:
    async def story() -> int:
        async with wired(throttled(429), ok({})) as (wire, canvas):
            await wire.send("POST", "courses/1/enrollments")
            return len(canvas.requests)

    assert run_virtually(story()) == 2


def test_a_wait_the_provider_asks_for_is_kept() -> None:
    async def story() -> float:
        async with wired(throttled(429, **{"retry-after": "17"}), ok({})) as (wire, _):
            await wire.get("users/self", Thing)
            return asyncio.get_running_loop().time()

    assert run_virtually(story()) >= 17


@pytest.mark.parametrize("status", [403, 429])
def test_a_call_that_always_comes_too_early_ends_with_when_to_come_back(status: int) -> None:
    async def story() -> tuple[ProviderError, int]:
        async with wired(throttled(status)) as (wire, canvas):
            with pytest.raises(ProviderRateLimited) as refused:
                await wire.get("users/self", Thing)
            return refused.value, len(canvas.requests)

    error, calls = run_virtually(story())

    assert 2 <= calls <= 5
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds >= 4


def test_a_call_is_made_five_times_at_most() -> None:
    async def story() -> int:
        async with wired(throttled(429), total_seconds=600) as (wire, canvas):
            with pytest.raises(ProviderRateLimited):
                await wire.get("users/self", Thing)
            return len(canvas.requests)

    assert run_virtually(story()) == 5


def test_nobody_waits_longer_than_the_deadline_allows() -> None:
    async def story() -> tuple[int, float]:
        async with wired(throttled(429, **{"retry-after": "20"})) as (wire, canvas):
            with deadline(10), pytest.raises(ProviderRateLimited) as refused:
                await wire.get("users/self", Thing)
            assert refused.value.retry_after_seconds == 20
            return len(canvas.requests), asyncio.get_running_loop().time()

    assert run_virtually(story()) == (1, 0)


def test_nobody_waits_longer_than_they_have_patience_for() -> None:
    async def story() -> tuple[int, float]:
        async with wired(throttled(429, **{"retry-after": "20"})) as (wire, canvas):
            for wait_seconds in (20, 15):
                with patience(10), pytest.raises(ProviderRateLimited) as refused:
                    await wire.get("users/self", Thing)
                assert refused.value.retry_after_seconds == wait_seconds
                await asyncio.sleep(5)
            return len(canvas.requests), asyncio.get_running_loop().time()

    assert run_virtually(story()) == (1, 10)


def test_at_most_six_calls_are_under_way_and_all_are_made() -> None:
    async def story() -> tuple[int, int]:
        running = most = made = 0

        async def answer(_request: httpx.Request) -> httpx.Response:
            nonlocal running, most, made
            running, made = running + 1, made + 1
            most = max(most, running)
            await asyncio.sleep(0.1)
            running -= 1
            return ok({}, **{"x-rate-limit-remaining": "600"})

        async with wired(answer) as (wire, _):  # type: ignore[arg-type]  # httpx awaits it
            await asyncio.gather(*(wire.get("users/self", Thing) for _ in range(40)))
        return most, made

    assert run_virtually(story()) == (6, 40)


def test_a_call_whose_turn_does_not_come_in_time_is_told_when_to_come_back() -> None:
    async def story() -> tuple[ProviderError, int]:
        slow = {"x-rate-limit-remaining": "-5000"}
        async with wired(ok({}, **slow)) as (wire, canvas):
            await wire.get("users/self", Thing)
            with deadline(5), pytest.raises(ProviderRateLimited) as refused:
                await wire.get("users/self", Thing)
            assert asyncio.get_running_loop().time() == 5
            return refused.value, len(canvas.requests)

    error, calls = run_virtually(story())

    assert calls == 1
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds > 400


def test_a_users_token_has_a_bucket_of_its_own_and_a_masquerade_shares_the_services() -> None:
    async def story() -> list[float]:
        waits = list[float]()
        for name in ("user:5", "masquerade:5", "service"):
            slow = ok({}, **{"x-rate-limit-remaining": "-50"})
            async with wired(slow) as (service, canvas):
                other = CanvasWire(
                    service._provider,
                    http=service._http,
                    subject=Subject.parse(name),
                    authorised=service._authorised,
                )
                await service.get("users/self", Thing)
                begun_at = asyncio.get_running_loop().time()
                await other.get("users/self", Thing)
                waits.append(asyncio.get_running_loop().time() - begun_at)
                assert len(canvas.requests) == 2
        return waits

    own, masquerade, service = run_virtually(story())

    assert own == 0
    assert masquerade == service > 9
