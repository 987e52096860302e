"""Three simulated Canvas instances that can be spoilt one by one, and what is asked of them.

For stories over several providers: beside them stands a Kolibri, simulated or real.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulators.canvas.population import build_large_population, build_population
from simulators.canvas.state import ADMIN_TOKEN, Canvas

KOLIBRI = "1"
SPOILT = "2"
CANVASES = ("2", "3", "4")
EVERYBODY = (KOLIBRI, *CANVASES)

USERS_PATH = "/api/v1/accounts/self/users"
COURSES_PATH = "/api/v1/accounts/self/courses"

UNION = """query ($ids: [ID!]!) {
  users(filter: {providerIds: $ids}, first: 1000) {
    nodes { id provider { providerId } } sources { providerId status code }
  }
  courses(filter: {providerIds: $ids}, first: 1000) {
    nodes { id provider { providerId } } sources { providerId status code }
  }
  enrollments(filter: {providerIds: $ids}, first: 1000) {
    nodes { id user { provider { providerId } } course { id } }
    sources { providerId status code }
  }
}"""
COURSES = """query ($ids: [ID!]!) {
  courses(filter: {providerIds: $ids}, first: 1000) { nodes { id title } }
}"""
IN_TROUBLE = """query ($ids: [ID!]!) {
  users(filter: {providerIds: $ids}, first: 1000) {
    nodes { id displayName provider { providerId } enrollments(first: 100) { nodes { id } } }
    sources { providerId status code retryable retryAfterSeconds }
  }
  courses(filter: {providerIds: $ids}, first: 1000, maxAge: 0) {
    nodes { id title }
    sources { providerId status code }
  }
}"""
USERS_AND_COURSES = """query ($ids: [ID!]!) {
  users(filter: {providerIds: $ids}, first: 1000) { nodes { id } sources { status code } }
  courses(filter: {providerIds: $ids}, first: 1000) { nodes { id } sources { status code } }
}"""

_MANY = 1_000_000
_FOREVER_SECONDS = 3600.0


def three_canvases() -> dict[str, Canvas]:
    """Return one of every odd case, and two of different sizes, by provider id."""
    populations = (
        build_population(),
        build_large_population(2, users=30, courses=10, enrollments=60),
        build_large_population(3, users=40, courses=20, enrollments=90),
    )
    return dict(zip(CANVASES, map(Canvas, populations), strict=True))


def canvas_account(provider_id: str, url: str) -> dict[str, str]:
    """Return what a Canvas is registered with."""
    return {"id": provider_id, "type": "canvas", "url": url, "api_key": ADMIN_TOKEN}


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """One way for a Canvas to be of no use, and what a caller is told of it.

    Attributes:
        spoil: Lets it begin; ``None`` where the server is to be stopped.
        retry_after: What the caller may be told.
    """

    name: str
    spoil: Callable[[Canvas], None] | None
    code: str
    retryable: bool = True
    retry_after: Sequence[int | None] = (None,)


def _failing(kind: str, **how: Any) -> Callable[[Canvas], None]:
    return lambda canvas: canvas.fail(kind, count=_MANY, **how)


def _throttling(status: int, *, says_when: bool) -> Callable[[Canvas], None]:
    def spoil(canvas: Canvas) -> None:
        canvas.profile = replace(canvas.profile, throttled_status=status, retry_after=says_when)
        canvas.fail("throttled", count=_MANY)

    return spoil


TROUBLES = (
    # Two lists, each asked for three times: the last of these may meet an open breaker.
    Trouble(
        name="killed",
        spoil=None,
        code="PROVIDER_UNAVAILABLE",
        retry_after=(None, *range(1, 61)),
    ),
    Trouble(name="hung", spoil=_failing("drop", seconds=_FOREVER_SECONDS), code="PROVIDER_TIMEOUT"),
    Trouble(name="slow", spoil=_failing("slow", seconds=10), code="PROVIDER_TIMEOUT"),
    Trouble(name="garbage", spoil=_failing("html"), code="PROVIDER_BAD_RESPONSE", retryable=False),
    # What its bucket needs to have room again for whoever is in line, or the first pause.
    Trouble(
        name="throttled with 403",
        spoil=_throttling(403, says_when=False),
        code="PROVIDER_RATE_LIMITED",
        retry_after=(*range(2, 6), 10),
    ),
    Trouble(
        name="throttled with 429",
        spoil=_throttling(429, says_when=True),
        code="PROVIDER_RATE_LIMITED",
        retry_after=(5,),
    ),
)


def flap(canvas: Canvas, *paths: str) -> None:
    """Let every second call to each of the paths fail, the first one too."""
    for path in paths:
        for turn in range(50):
            canvas.fail("status", path=path, status=503, after=turn)


def check_trouble(
    trouble: Trouble,
    answer: Mapping[str, Any],
    *,
    before: Mapping[str, Any],
    others: Mapping[str, Any],
) -> None:
    """Assert what is given when one provider of four is in trouble.

    Its users were never read and are missing; its courses were, and are given as they were then.

    Args:
        trouble: Which.
        answer: To ``IN_TROUBLE``, of all.
        before: To ``COURSES``, of all, before the trouble began.
        others: To ``IN_TROUBLE``, of all but the one in trouble.
    """
    assert "errors" not in before
    assert "errors" not in others
    users, courses = answer["data"]["users"], answer["data"]["courses"]
    statuses = {source["providerId"]: source for source in users["sources"]}
    spoilt = statuses.pop(SPOILT)
    assert users["nodes"] == others["data"]["users"]["nodes"]
    assert {row["provider"]["providerId"] for row in users["nodes"]} == set(statuses)
    assert all(row["enrollments"] is not None for row in users["nodes"])
    assert {source["status"] for source in statuses.values()} == {"OK"}
    assert (spoilt["status"], spoilt["code"]) == ("FAILED", trouble.code)
    assert spoilt["retryable"] is trouble.retryable
    assert spoilt["retryAfterSeconds"] in trouble.retry_after, spoilt

    assert courses["nodes"] == before["data"]["courses"]["nodes"]
    assert {
        source["providerId"]: (source["status"], source["code"]) for source in courses["sources"]
    } == dict.fromkeys(statuses, ("OK", None)) | {SPOILT: ("STALE", trouble.code)}

    (error,) = answer["errors"]
    assert error["path"] == ["users"]
    assert error["extensions"] == {
        "code": trouble.code,
        "providerId": SPOILT,
        "retryable": trouble.retryable,
        "retryAfterSeconds": spoilt["retryAfterSeconds"],
    }


def counted(answer: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows each list of an answer to ``UNION`` has, after a look at them all."""
    assert "errors" not in answer, answer["errors"]
    for found in answer["data"].values():
        ids = [row["id"] for row in found["nodes"]]
        assert len(set(ids)) == len(ids)
        assert {source["status"] for source in found["sources"]} == {"OK"}
    return {name: len(found["nodes"]) for name, found in answer["data"].items()}


def check_union(whole: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> None:
    """Assert that an answer to ``UNION`` of all holds the rows of each one's own, and no others."""
    counted(whole)
    for name, found in whole["data"].items():
        rows = [row for part in parts for row in part["data"][name]["nodes"]]
        assert found["nodes"] == rows, name
