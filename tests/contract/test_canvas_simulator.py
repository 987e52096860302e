"""Independent clients, written against the real Canvas, get along with the simulated one."""

import warnings
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from authlib.integrations.base_client import OAuthError  # type: ignore[import-untyped] # no stubs
from authlib.integrations.requests_client import OAuth2Session  # type: ignore[import-untyped] # same
from canvasapi import Canvas as CanvasClient  # type: ignore[import-untyped] # has no stubs
from canvasapi import exceptions

from simulators.canvas.app import running_in_thread
from simulators.canvas.population import build_large_population, build_population
from simulators.canvas.state import ADMIN_TOKEN, CLIENT_ID, CLIENT_SECRET, Canvas, VirtualClock

CALLBACK = "http://127.0.0.1/oauth/callback"


@pytest.fixture
def canvas() -> Canvas:
    return Canvas(build_population(), clock=VirtualClock())


@pytest.fixture
def url(canvas: Canvas) -> Iterator[str]:
    with running_in_thread(canvas) as url:
        yield url


def connect(url: str, token: str = ADMIN_TOKEN) -> CanvasClient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # canvasapi warns of http://
        return CanvasClient(url, token)


def test_canvasapi_walks_users_courses_and_enrollments(canvas: Canvas, url: str) -> None:
    client = connect(url)

    users = list(client.get_account(1).get_users(sort="id", include=["email"], per_page=4))
    courses = list(client.get_account(1).get_courses(per_page=3))
    enrollments = list(courses[0].get_enrollments(per_page=2))

    assert [user.id for user in users] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15]
    assert users[2].email == "cody@canvas.test"
    assert [course.id for course in courses] == [1, 2, 3, 4, 6, 7, 8]
    assert len(enrollments) == 10
    assert canvas.counts.calls["GET", "/api/v1/courses/:course_id/enrollments"] == 5


def test_canvasapi_enrolls_concludes_and_creates(canvas: Canvas, url: str) -> None:
    client = connect(url)
    course = client.get_course(8)

    user = client.get_account(1).create_user({"unique_id": "new"}, user={"name": "New Person"})
    enrollment = course.enroll_user(
        user, enrollment={"type": "StudentEnrollment", "enrollment_state": "active"}
    )
    enrollment.deactivate("conclude")

    assert canvas.population.enrollments[enrollment.id].state == "completed"
    assert canvas.population.users[user.id].login_id == "new"


def test_canvasapi_reads_what_one_user_may_see(canvas: Canvas, url: str) -> None:
    client = connect(url, canvas.issue_token(3))

    me = client.get_current_user()
    courses = list(me.get_courses())
    submissions = list(courses[0].get_multiple_submissions(student_ids=[3]))

    assert (me.id, [course.name for course in courses]) == (
        3, ["Maths with Teresa", "Biology", "Concluded civics"],
    )  # fmt: skip
    assert len(submissions) == 3


def test_canvasapi_names_the_errors(canvas: Canvas, url: str) -> None:
    client = connect(url)

    with pytest.raises(exceptions.InvalidAccessToken):
        connect(url, "wrong").get_current_user()
    with pytest.raises(exceptions.ResourceDoesNotExist):
        client.get_course(99)
    with pytest.raises(exceptions.Forbidden):
        list(connect(url, canvas.issue_token(3)).get_account(1).get_users())
    canvas.fail("throttled")
    with pytest.raises(exceptions.RateLimitExceeded):
        client.get_course(1)
    canvas.fail("status", status=503)
    with pytest.raises(exceptions.CanvasException):
        client.get_course(1)


def test_canvasapi_asks_graphql(url: str) -> None:
    client = connect(url)

    body = client.graphql("query($id: ID!) { course(id: $id) { _id name } }", variables={"id": 1})

    assert body == {"data": {"course": {"_id": "1", "name": "Algebra"}}}


def test_canvasapi_walks_the_large_data_set(url: str, canvas: Canvas) -> None:
    canvas.population = build_large_population()
    client = connect(url)

    courses = list(client.get_account(1).get_courses(per_page=100))

    assert len({course.id for course in courses}) == 1_000
    assert canvas.counts.total() == 11
    assert canvas.counts.throttled == 0


def test_authlib_logs_in_with_pkce_refreshes_and_revokes(canvas: Canvas, url: str) -> None:
    with OAuth2Session(
        CLIENT_ID,
        CLIENT_SECRET,
        redirect_uri=CALLBACK,
        code_challenge_method="S256",
        token_endpoint_auth_method="client_secret_post",
    ) as session:
        verifier = "v" * 48
        page, state = session.create_authorization_url(
            f"{url}/login/oauth2/auth", code_verifier=verifier
        )
        back = requests.get(page, allow_redirects=False, timeout=5).headers["Location"]
        token = dict(
            session.fetch_token(
                f"{url}/login/oauth2/token",
                authorization_response=back.replace("http:", "https:"),
                code_verifier=verifier,
                state=state,
            )
        )
        me = session.get(f"{url}/api/v1/users/self").json()
        renewed = session.refresh_token(f"{url}/login/oauth2/token", token["refresh_token"])
        gone = session.delete(f"{url}/login/oauth2/token")
        with pytest.raises(OAuthError, match="invalid_request"):
            session.refresh_token(f"{url}/login/oauth2/token", token["refresh_token"])

    assert me["id"] == 3
    assert renewed["access_token"] != token["access_token"]
    assert renewed["refresh_token"] == token["refresh_token"]  # kept by the client
    assert gone.status_code == 200
    assert canvas.counts.grants == {"authorization_code": 1, "refresh_token": 1}


def test_authlib_is_told_of_a_wrong_verifier_and_of_denial(canvas: Canvas, url: str) -> None:
    with OAuth2Session(
        CLIENT_ID, CLIENT_SECRET, redirect_uri=CALLBACK, code_challenge_method="S256"
    ) as session:
        page, _ = session.create_authorization_url(
            f"{url}/login/oauth2/auth", code_verifier="v" * 48
        )
        back = requests.get(page, allow_redirects=False, timeout=5).headers["Location"]
        code = parse_qs(urlsplit(back).query)["code"][0]
        with pytest.raises(OAuthError, match="invalid_grant"):
            session.fetch_token(f"{url}/login/oauth2/token", code=code, code_verifier="w" * 48)
        canvas.consent = "deny"
        denied = requests.get(page, allow_redirects=False, timeout=5).headers["Location"]

    assert parse_qs(urlsplit(denied).query)["error"] == ["access_denied"]
    assert canvas.counts.grants == {}
