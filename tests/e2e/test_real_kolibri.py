"""The main job on real input: a Kolibri nobody here wrote, read through GraphQL and REST."""

import concurrent.futures
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
from real_servers import Gateway, Kolibri, RecordingProxy, recording_proxy

from simulators.kolibri.population import build_population

pytestmark = pytest.mark.e2e

USERS = """
query Users($providers: [ID!], $after: String) {
  users(filter: {providerIds: $providers}, first: 500, after: $after) {
    totalCount
    nodes {
      externalId username displayName active
      roles { value sourceValue }
      provider { providerId }
      provenance { externalId sourceType via stale fetchedAt }
      enrollments(first: 500) {
        nodes { source role { value sourceValue } course { externalId kind title iconUrl } }
      }
    }
    sources { status code }
    pageInfo { hasNextPage endCursor }
  }
}
"""
COURSES = """
query Courses($providers: [ID!]) {
  courses(filter: {providerIds: $providers}, first: 500) {
    nodes { externalId kind title iconUrl }
  }
}
"""
NESTED = """
{ users(first: 500) { nodes { displayName enrollments { nodes { course { title iconUrl } } } } } }
"""


@pytest.fixture
def proxy(kolibri: Kolibri) -> Iterator[RecordingProxy]:
    with recording_proxy(kolibri.url) as recorder:
        yield recorder


class Truth:
    """What Kolibri's own database holds, of one facility."""

    def __init__(self, kolibri: Kolibri, facility_name: str) -> None:
        self._database = sqlite3.connect(f"file:{kolibri.database}?mode=ro", uri=True)
        try:
            (self.facility_id,) = self._rows(
                "select id from kolibriauth_collection where kind='facility' and name=?",
                facility_name,
            )[0]
            self.users = {
                row[0]: row[1:]
                for row in self._rows(
                    "select id, username, full_name from kolibriauth_facilityuser"
                    " where facility_id=? and date_deleted is null",
                    self.facility_id,
                )
            }
            self.classes = dict(
                self._rows(
                    "select id, name from kolibriauth_collection"
                    " where kind='classroom' and parent_id=?",
                    self.facility_id,
                )
            )
            self.memberships = Counter(
                (user, collection)
                for user, collection in self._rows(
                    "select user_id, collection_id from kolibriauth_membership"
                )
                if user in self.users and collection in self.classes
            )
            self.roles = Counter(
                (user, collection, kind)
                for user, collection, kind in self._rows(
                    "select user_id, collection_id, kind from kolibriauth_role"
                )
                if user in self.users
            )
            self.channels = dict(self._rows("select id, name from content_channelmetadata"))
        finally:
            self._database.close()

    def _rows(self, statement: str, *values: str) -> list[Any]:
        return self._database.execute(statement, values).fetchall()


def _register(gateway: Gateway, url: str, kolibri: Kolibri, **changes: str) -> None:
    account = {
        "url": url,
        "username": "service_admin",
        "password": str(kolibri.lab["password"]),
        **changes,
    }
    answer = gateway.add_provider(account.pop("id", "1"), **account)
    assert answer.status_code == 200, answer.text


def _all_users(gateway: Gateway, *providers: str) -> list[dict[str, Any]]:
    users: list[dict[str, Any]] = []
    after = None
    while True:
        page = gateway.data_of(USERS, providers=list(providers), after=after)["users"]
        assert [source["status"] for source in page["sources"]] == ["OK"] * len(providers)
        users += page["nodes"]
        if not page["pageInfo"]["hasNextPage"]:
            return users
        after = page["pageInfo"]["endCursor"]


def _external(prefix: str, ids: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}:{external_id}": name for external_id, name in ids.items()}


def test_every_account_class_membership_and_role_of_the_database_is_in_the_answer(
    kolibri: Kolibri, gateway: Callable[..., Gateway], proxy: RecordingProxy
) -> None:
    program = gateway()
    _register(program, proxy.url, kolibri)
    truth = Truth(kolibri, str(kolibri.lab["facilities"]["a"]["name"]))

    users = _all_users(program, "1")
    courses = program.data_of(COURSES, providers=["1"])["courses"]["nodes"]

    assert {u["externalId"]: (u["username"], u["displayName"]) for u in users} == truth.users
    assert len(users) == len(truth.users)
    titles = {c["externalId"]: c["title"] for c in courses if c["kind"] == "CLASS"}
    assert titles == _external("classroom", truth.classes)
    channels = {c["externalId"]: c["title"] for c in courses if c["kind"] == "LIBRARY"}
    assert channels == _external("channel", truth.channels)
    members = Counter(
        (u["externalId"], e["course"]["externalId"].removeprefix("classroom:"))
        for u in users
        for e in u["enrollments"]["nodes"]
        if e["course"]["kind"] == "CLASS" and e["role"]["value"] == "STUDENT"
    )
    assert members == truth.memberships
    coaches = {
        (u["externalId"], e["course"]["externalId"].removeprefix("classroom:"))
        for u in users
        for e in u["enrollments"]["nodes"]
        if e["role"]["value"] == "TEACHER"
    }
    assert coaches == {
        (user, collection)
        for user, collection, kind in truth.roles
        if kind == "coach" and collection in truth.classes
    }
    for user in users:
        kinds = {kind for holder, _, kind in truth.roles if holder == user["externalId"]}
        given = {role["sourceValue"] for role in user["roles"]}
        assert kinds <= given, user
        assert given <= kinds | {"learner", "superuser"}, user
        assert user["provenance"]["externalId"] == user["externalId"]
        assert user["provenance"]["sourceType"] == "facilityuser"
        assert (user["provenance"]["via"], user["provenance"]["stale"]) == ("LIVE", False)


def test_two_facilities_of_one_server_are_kept_apart(
    kolibri: Kolibri, gateway: Callable[..., Gateway]
) -> None:
    program = gateway()
    facilities = kolibri.lab["facilities"]
    superuser = kolibri.lab["superuser"]
    for key in ("a", "b"):
        _register(
            program,
            kolibri.url,
            kolibri,
            id=key,
            account_id=facilities[key]["id"],
            username=superuser["username"],
            password=superuser["password"],
        )

    for key in ("a", "b"):
        truth = Truth(kolibri, facilities[key]["name"])
        users = _all_users(program, key)
        courses = program.data_of(COURSES, providers=[key])["courses"]["nodes"]

        assert {u["externalId"]: (u["username"], u["displayName"]) for u in users} == truth.users
        titles = {c["externalId"]: c["title"] for c in courses if c["kind"] == "CLASS"}
        assert titles == _external("classroom", truth.classes)
        assert {u["provider"]["providerId"] for u in users} == {key}


def test_two_hundred_callers_on_a_cold_gateway_cost_one_login(
    kolibri: Kolibri, gateway: Callable[..., Gateway], proxy: RecordingProxy
) -> None:
    program = gateway()
    _register(program, proxy.url, kolibri)
    program.data_of('mutation { revokeSession(providerId: "1") { __typename } }')
    proxy.calls.clear()

    def ask(_: int) -> int:
        answer = program.data_of("{ users(first: 10) { nodes { externalId } } }")
        return len(answer["users"]["nodes"])

    with concurrent.futures.ThreadPoolExecutor(200) as callers:
        counts = list(callers.map(ask, range(200)))

    assert counts == [10] * 200
    assert proxy.log_ins == 1


def test_the_nested_query_costs_four_upstream_calls(
    kolibri: Kolibri, gateway: Callable[..., Gateway], proxy: RecordingProxy
) -> None:
    program = gateway()
    _register(program, proxy.url, kolibri)
    program.data_of(NESTED)  # waits for the first activity export and decodes the icons
    time.sleep(3)  # whatever is remembered within a request is forgotten
    proxy.calls.clear()

    program.data_of(NESTED)

    assert sorted(path.partition("?")[0] for _, path, _ in proxy.calls) == [
        "/api/auth/classroom/",
        "/api/auth/facilityuser/",
        "/api/auth/membership/",
        "/api/content/channel/",
    ]


def test_a_restarted_gateway_uses_the_stored_session(
    kolibri: Kolibri, gateway: Callable[..., Gateway], proxy: RecordingProxy
) -> None:
    program = gateway()
    _register(program, proxy.url, kolibri)
    before = len(_all_users(program, "1"))
    assert program.stop() == 0
    proxy.calls.clear()

    program.start()

    assert len(_all_users(program, "1")) == before
    assert proxy.log_ins == 0


def test_each_of_the_icon_cases_is_served_or_refused_for_its_reason(
    kolibri: Kolibri, gateway: Callable[..., Gateway]
) -> None:
    program = gateway()
    _register(program, kolibri.url, kolibri)

    courses = program.data_of(COURSES, providers=["1"])["courses"]["nodes"]

    served = {c["title"]: c["iconUrl"] for c in courses if c["kind"] == "LIBRARY"}
    names = {channel.key: channel.name for channel in build_population().channels}
    assert {title: url is not None for title, url in served.items()} == {
        names["png"]: True,
        names["jpeg"]: True,
        names["svg"]: False,  # active content
        names["large"]: True,
        names["webp"]: True,  # a WebP that says JPEG: the bytes decide
        names["none"]: False,
        names["broken"]: False,
        names["text_svg"]: False,  # active content, not even base64
        names["course"]: True,  # the same bytes as the first
        names["absent"]: True,  # its files are missing, its icon is not
    }
    assert served[names["png"]] == served[names["course"]]
    for url in served.values():
        if url is not None:
            icon = httpx.get(url)
            assert icon.status_code == 200
            assert icon.headers["content-type"] == "image/webp"
            assert icon.content[:4] + icon.content[8:12] == b"RIFFWEBP"
            assert icon.headers["x-content-type-options"] == "nosniff"
            assert "immutable" in icon.headers["cache-control"]
            again = httpx.get(url, headers={"If-None-Match": icon.headers["etag"]})
            assert again.status_code == 304
