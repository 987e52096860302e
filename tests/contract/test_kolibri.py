"""Kolibri keeps every platform's promises, and its own habits do not bite.

Against the simulator in three releases; with ``-m e2e`` also against a real server.
"""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from real_servers import Kolibri as RealKolibri
from session_contract import (
    Conversation,
    Installation,
    SessionContract,
    all_pages,
    converse,
    forget_shared,
    without_times,
)

from sessions.base import Grant, NewGrant
from sessions.errors import (
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ReauthRequired,
    SessionLost,
)
from sessions.platforms.kolibri import ACTIVITY, PLATFORM, KolibriSession
from simulators.kolibri import population as data
from simulators.kolibri.app import running
from simulators.kolibri.state import Kolibri
from storage.records import (
    CourseKind,
    CourseState,
    DataSource,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    Identifier,
    IdentifierType,
    ProgressMethod,
    Role,
    RoleValue,
)

VERSIONS = ("0.17.0", "0.18.4", "0.19.5")
NOBODY = "0" * 32

USERS = "GET /api/auth/facilityuser/"
MEMBERSHIPS = "GET /api/auth/membership/"
CLASSES = "GET /api/auth/classroom/"
CHANNELS = "GET /api/content/channel/"
HEARTBEAT = "PUT /api/auth/session/current/"
LOGIN = "POST /api/auth/session/"


@dataclass(frozen=True, kw_only=True)
class SimulatedInstallation(Installation):
    kolibri: Kolibri

    async def lose_sessions(self) -> None:
        assert self.kolibri.delete_sessions() > 0

    def id_of(self, key: str) -> str:
        return self.kolibri.ids[key]


@dataclass(frozen=True, kw_only=True)
class RealInstallation(Installation):
    home: Path

    async def lose_sessions(self) -> None:
        with closing(sqlite3.connect(self.home / "sessions.sqlite3")) as database:
            assert database.execute("DELETE FROM kolibriauth_session").rowcount > 0
            database.commit()


@cache
def the_population() -> data.Population:
    return data.build_population()


@asynccontextmanager
async def simulated(
    version: str = "0.19.5",
    *,
    username: str = data.SUPERUSER_USERNAME,
    password: str = data.SUPERUSER_PASSWORD,
    population: data.Population | None = None,
    **changes: Any,
) -> AsyncIterator[SimulatedInstallation]:
    kolibri = Kolibri(population or the_population(), version=version, export_polls=1)
    async with running(kolibri) as url:
        installation = SimulatedInstallation(
            platform=PLATFORM,
            base_url=url,
            credentials={"username": username, "password": password},
            wrong_credentials={"username": username, "password": "canary-wrong-Passw0rd"},
            unknown_user_id=NOBODY,
            unknown_course_id=f"channel:{NOBODY}",
            role_words=frozenset({"superuser", "admin", "coach", "learner"}),
            kolibri=kolibri,
        )
        yield replace(installation, **changes)


@pytest.fixture(params=VERSIONS)
async def any_kolibri(request: pytest.FixtureRequest) -> AsyncIterator[SimulatedInstallation]:
    async with simulated(request.param) as installation:
        yield installation


@pytest.fixture
async def kolibri() -> AsyncIterator[SimulatedInstallation]:
    async with simulated() as installation:
        yield installation


class SimulatedContract(SessionContract):
    version = ""

    @pytest.fixture
    async def installation(self) -> AsyncIterator[Installation]:
        async with simulated(self.version) as installation:
            yield installation


class TestKolibri017(SimulatedContract):
    version = "0.17.0"


class TestKolibri018(SimulatedContract):
    version = "0.18.4"


class TestKolibri019(SimulatedContract):
    version = "0.19.5"


@pytest.mark.e2e
class TestRealKolibri(SessionContract):
    @pytest.fixture
    def installation(self, real_kolibri: RealKolibri) -> Installation:
        account = real_kolibri.lab["superuser"]
        superuser = {name: account[name] for name in ("username", "password")}
        return RealInstallation(
            platform=PLATFORM,
            base_url=real_kolibri.url,
            credentials=superuser,
            wrong_credentials={**superuser, "password": "canary-wrong-Passw0rd"},
            unknown_user_id=NOBODY,
            unknown_course_id=f"channel:{NOBODY}",
            role_words=frozenset({"superuser", "admin", "coach", "learner"}),
            home=real_kolibri.home,
        )


# ---- 1 to 3: the session's end does not look like one ------------------------------------


async def test_an_expired_session_never_shows_an_empty_roster(
    any_kolibri: SimulatedInstallation,
) -> None:
    async with converse(any_kolibri) as talk:
        before = await talk.session.list_users(position=None, limit=1000)
        any_kolibri.kolibri.session_age = -1  # what is prolonged now has ended already
        await talk.session.keep_alive(await talk.authorization.current())
        any_kolibri.kolibri.session_age = 1200

        after = await talk.session.list_users(position=None, limit=1000)

    assert len(before.items) == len(after.items) > 60
    assert any_kolibri.kolibri.counts.logins == 2


async def test_a_poisoned_session_is_known_by_its_heartbeat_and_cured_by_a_login(
    any_kolibri: SimulatedInstallation,
) -> None:
    async with converse(any_kolibri) as talk:
        before = await talk.session.list_users(position=None, limit=1000)
        any_kolibri.kolibri.poison_cache(data.SUPERUSER_USERNAME)  # 200, empty, cookie untouched
        talk.forget_calls()

        after = await talk.session.list_users(position=None, limit=1000)

    assert len(after.items) == len(before.items)
    assert talk.called()[HEARTBEAT] == 1
    assert talk.called()[LOGIN] == 1


async def test_a_user_not_found_by_a_poisoned_session_is_looked_for_again(
    any_kolibri: SimulatedInstallation,
) -> None:
    async with converse(any_kolibri) as talk:
        users = (await talk.session.list_users(position=None, limit=2)).items
        any_kolibri.kolibri.poison_cache(data.SUPERUSER_USERNAME)

        found = await talk.session.fetch_users([user.external_id for user in users])

    assert set(found) == {user.external_id for user in users}
    assert any_kolibri.kolibri.counts.logins == 2


async def test_a_page_past_the_end_is_empty_only_if_the_session_lives(
    kolibri: SimulatedInstallation,
) -> None:
    async with converse(kolibri) as talk:
        await talk.session.check()
        talk.forget_calls()

        page = await talk.session.list_users(position="1000", limit=100)

    assert (list(page.items), page.next_position, page.total) == ([], None, None)
    assert talk.called()[HEARTBEAT] == 1


async def test_only_the_heartbeat_prolongs_a_session_and_it_is_not_counted_as_use(
    kolibri: SimulatedInstallation,
) -> None:
    async with converse(kolibri) as talk:
        grant = await talk.authorization.current()
        (state,) = kolibri.kolibri.sessions.values()
        state.expires_at -= 600
        ends_at = state.expires_at

        await talk.session.list_users(position=None, limit=5)
        unmoved = state.expires_at == ends_at
        kept = await talk.session.keep_alive(grant)

    assert unmoved
    assert state.expires_at > ends_at + 599
    assert kept.lifetime_seconds == 1200
    assert talk.called()[HEARTBEAT] == 1


async def test_a_heartbeat_refused_for_its_csrf_token_means_the_session_is_lost(
    kolibri: SimulatedInstallation,
) -> None:
    async with converse(kolibri) as talk:
        grant = await talk.authorization.current()
        values = {**grant.secret.reveal(), "csrf_token": "not a token"}

        with pytest.raises(SessionLost):
            await talk.session.keep_alive(replace(grant, secret=type(grant.secret)(values)))


async def test_a_grant_of_another_release_is_replaced_by_a_login(
    kolibri: SimulatedInstallation,
) -> None:
    async with converse(kolibri) as talk:
        grant = await talk.authorization.current()
        talk.authorization.store(NewGrant(secret=type(grant.secret)({"cookie": "old"})))

        page = await talk.session.list_users(position=None, limit=5)

    assert len(page.items) == 5
    assert talk.authorization.logins == 2


async def test_a_new_login_sends_no_earlier_cookie(kolibri: SimulatedInstallation) -> None:
    async with converse(kolibri) as talk:
        first = await talk.authorization.current()
        await talk.authorization.replace(first)

    # a login that carries a session's cookie would end that session
    assert len(kolibri.kolibri.sessions) == 2


# ---- 4: thumbnails -----------------------------------------------------------------------


async def test_icons_are_links_with_a_fallback_since_0171_and_data_before(
    any_kolibri: SimulatedInstallation,
) -> None:
    channel_id = any_kolibri.id_of("png")
    async with converse(any_kolibri) as talk:
        courses = await talk.session.fetch_courses(
            [f"channel:{channel_id}", f"channel:{any_kolibri.id_of('none')}"]
        )

    icon = courses[f"channel:{channel_id}"].icon
    assert icon is not None
    assert courses[f"channel:{any_kolibri.id_of('none')}"].icon is None
    if any_kolibri.kolibri.profile.version == "0.17.0":
        assert icon.reference.startswith("data:image/png;base64,")
        assert icon.fallback_references == ()
    else:
        assert icon.reference == f"/api/content/channel-thumbnail/{channel_id}/"
        assert icon.fallback_references == (f"/api/public/v2/channel/{channel_id}/",)
    assert icon.version


async def test_an_icon_is_fetched_without_the_session(kolibri: SimulatedInstallation) -> None:
    async with converse(kolibri) as talk:
        reference = f"/api/content/channel-thumbnail/{kolibri.id_of('png')}/"

        content = await talk.session.fetch_file(reference, max_bytes=100_000)

    assert content.startswith(b"\x89PNG")
    assert kolibri.kolibri.counts.logins == 0


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("/api/content/channel-thumbnail/{broken}/", "Kolibri gave no file (status 500)"),
        ("/api/content/channel-thumbnail/{none}/", "Kolibri gave no file (status 404)"),
        ("javascript:alert(1)", "The icon's address is not a web address"),
        ("data:image/png;base64,AAAA", "The icon's address is not a web address"),
    ],
)
async def test_what_is_no_icon_is_refused_by_name(
    kolibri: SimulatedInstallation, reference: str, problem: str
) -> None:
    path = reference.format(broken=kolibri.id_of("broken"), none=kolibri.id_of("none"))
    async with converse(kolibri) as talk:
        with pytest.raises(ProviderBadResponse) as refused:
            await talk.session.fetch_file(path, max_bytes=100_000)

    assert refused.value.message == problem
    assert kolibri.kolibri.counts.total() <= 1


async def test_an_icon_elsewhere_is_not_fetched(kolibri: SimulatedInstallation) -> None:
    async with converse(kolibri) as talk:
        for reference in ("http://169.254.169.254/latest/", "//example.org/icon.png"):
            with pytest.raises(ProviderError) as refused:
                await talk.session.fetch_file(reference, max_bytes=1000)
            assert refused.value.code == "BAD_INPUT"

    assert talk.calls == []


async def test_an_oversized_icon_is_refused(kolibri: SimulatedInstallation) -> None:
    async with converse(kolibri) as talk:
        with pytest.raises(ProviderBadResponse):
            await talk.session.fetch_file(
                f"/api/content/channel-thumbnail/{kolibri.id_of('large')}/", max_bytes=1000
            )


# ---- 5 and 6: parameters that are ignored, lists without pages ---------------------------


async def test_users_by_id_never_bring_everybody(any_kolibri: SimulatedInstallation) -> None:
    async with converse(any_kolibri) as talk:
        users = (await talk.session.list_users(position=None, limit=30)).items
        ids = [user.external_id for user in users]
        talk.forget_calls()

        few = await talk.session.fetch_users(ids[:4])
        calls_for_few = talk.called()
        talk.forget_calls()
        many = await talk.session.fetch_users(ids)
        calls_for_many = talk.called()

    assert set(few) == set(ids[:4])
    assert set(many) == set(ids)
    if any_kolibri.kolibri.profile.bulk_filters:
        assert calls_for_few == {USERS: 1}
    else:
        assert calls_for_few == {"GET /api/auth/facilityuser/{id}/": 4}
    assert calls_for_many == {USERS: 1}


async def test_two_hundred_ids_go_into_one_call() -> None:
    population = data.build_population(bulk_users=450)
    bulk = population.facilities[2].id
    async with (
        simulated(population=population, account_id=bulk) as installation,
        converse(installation) as talk,
    ):
        users = await all_pages(talk.session.list_users, limit=1000)
        talk.forget_calls()

        found = await talk.session.fetch_users([user.external_id for user in users])

    assert len(found) == len(users) >= 450
    assert talk.called() == {USERS: -(-len(users) // 200)}


async def test_users_have_the_birth_year_and_gender_that_kolibri_has(
    any_kolibri: SimulatedInstallation,
) -> None:
    kept = {
        one.username: (one.birth_year, one.gender)
        for one in any_kolibri.kolibri.population.people
        if one.facility == "a" and one.deleted_at is None
    }
    async with converse(any_kolibri) as talk:
        users = (await talk.session.list_users(position=None, limit=1000)).items

    said = {
        user.username: (
            str(user.birth_year) if user.birth_year else "",
            user.gender.value if user.gender else "",
        )
        for user in users
        if user.username in kept
    }
    unsaid = ("NOT_SPECIFIED", "DEFERRED")
    assert said == {
        name: (
            "" if year in unsaid else year,
            {"NOT_SPECIFIED": "UNSPECIFIED", "DEFERRED": ""}.get(gender, gender),
        )
        for name, (year, gender) in kept.items()
    }
    assert sum(user.birth_year is not None for user in users) > 20


async def test_every_list_of_users_is_paged(any_kolibri: SimulatedInstallation) -> None:
    async with converse(any_kolibri) as talk:
        first = await talk.session.list_users(position=None, limit=10)
        talk.forget_calls()

        second = await talk.session.list_users(position=first.next_position, limit=10)

    assert (len(first.items), len(second.items)) == (10, 10)
    assert first.total == second.total
    assert second.next_position == "20"
    assert talk.called() == {USERS: 1}


@pytest.mark.parametrize("limit", [1, 7, 30, 1000])
async def test_users_that_come_and_go_between_two_pages_hide_and_double_none(limit: int) -> None:
    async with simulated(population=data.build_population()) as kolibri, converse(kolibri) as talk:
        pretended = kolibri.kolibri
        before = [u.external_id for u in await all_pages(talk.session.list_users, limit=1000)]
        gone: set[str] = set()
        found: list[str] = []
        position = None
        while True:
            page = await talk.session.list_users(position=position, limit=limit)
            found += [user.external_id for user in page.items]
            if page.next_position is None:
                break
            position = page.positions[-1]
            for offset in (0, 1, 40):  # one long given, one just given, one to come
                account = pretended.find_account(before[(len(found) - 1 + offset) % len(before)])
                if account is not None and account.username != data.SUPERUSER_USERNAME:
                    gone.add(account.id)
                    pretended.remove_user(account.username, facility=account.facility_id)
            if len(found) % 2:
                pretended.add_user(f"new{len(found)}", "New")

    times = Counter(found)
    staying = [user_id for user_id in before if user_id not in gone]
    assert {user_id: times[user_id] for user_id in staying} == dict.fromkeys(staying, 1)
    assert max(times.values()) == 1


@pytest.mark.parametrize(("limit", "calls"), [(10, 7), (7, 10), (1000, 1)])
async def test_going_on_behind_a_row_is_one_call_a_page(
    kolibri: SimulatedInstallation, limit: int, calls: int
) -> None:
    async with converse(kolibri) as talk:
        everybody = [u.external_id for u in await all_pages(talk.session.list_users, limit=1000)]
        talk.forget_calls()
        found: list[str] = []
        position = None
        while True:
            page = await talk.session.list_users(position=position, limit=limit)
            found += [user.external_id for user in page.items]
            if page.next_position is None:
                break
            position = page.positions[-1]

    assert found == everybody
    assert page.total == len(everybody)
    assert talk.called() == {USERS: calls}


async def test_before_0_18_no_row_has_a_position(kolibri: SimulatedInstallation) -> None:
    async with simulated("0.17.0") as old, converse(old) as talk, converse(kolibri) as newer:
        known = await newer.session.list_users(position=None, limit=10)
        page = await talk.session.list_users(position=None, limit=10)
        behind = await talk.session.list_users(position=known.positions[4], limit=5)

    assert page.positions == ()  # they come by username, which may change
    assert without_times(behind.items) == without_times(page.items[5:])


async def test_courses_and_enrollments_have_a_position_behind_each(
    kolibri: SimulatedInstallation,
) -> None:
    async with converse(kolibri) as talk:
        courses = await talk.session.list_courses(position=None, limit=1000)
        other_courses = await talk.session.list_courses(position=courses.positions[2], limit=1000)
        places = await talk.session.list_enrollments(position=None, limit=1000)
        other_places = await talk.session.list_enrollments(position=places.positions[2], limit=1000)

    assert len(courses.positions) == len(courses.items)
    assert without_times(other_courses.items) == without_times(courses.items[3:])
    assert len(places.positions) == len(places.items)
    assert without_times(other_places.items) == without_times(places.items[3:])


async def test_a_position_of_another_list_is_refused(kolibri: SimulatedInstallation) -> None:
    async with converse(kolibri) as talk:
        with pytest.raises(ProviderBadResponse, match="not one of this list"):
            await talk.session.list_users(position="classroom:1", limit=10)


# ---- 7, 8: nothing is written ------------------------------------------------------------


async def test_nothing_is_written_but_sessions_and_the_export(
    kolibri: SimulatedInstallation,
) -> None:
    async with converse(kolibri) as talk:
        await talk.session.check()
        await all_pages(talk.session.list_users, limit=25)
        await all_pages(talk.session.list_courses, limit=25)
        await all_pages(talk.session.list_enrollments, limit=25)
        await talk.session.log_out(NewGrant(secret=(await talk.authorization.current()).secret))

    writes = {call for call in talk.called() if not call.startswith("GET ")}
    assert writes <= {
        LOGIN,
        HEARTBEAT,
        "DELETE /api/auth/session/current/",
        "POST /api/tasks/tasks/",
        "POST /api/tasks/tasks/{id}/clear/",
    }


# ---- 9: activity comes from the export ---------------------------------------------------


async def activity_of(talk: Conversation) -> list[Enrollment]:
    rows = await all_pages(talk.session.list_enrollments, limit=1000)
    return [row for row in rows if row.source is EnrollmentSource.ACTIVITY]


def logs_by_place(installation: SimulatedInstallation, facility: str) -> Mapping[Any, Any]:
    """The data set's own account of who did what, for users and channels that exist."""
    kolibri = installation.kolibri
    places: dict[tuple[str, str], list[data.SummaryLog]] = {}
    for log in kolibri.population.summary_logs:
        account = kolibri.find_account(kolibri.ids[log.person])
        if account and account.facility_id == facility and log.channel_id in kolibri.channels:
            places.setdefault((account.id, log.channel_id), []).append(log)
    return places


async def test_activity_is_exactly_what_users_did_in_channels_that_exist(
    any_kolibri: SimulatedInstallation,
) -> None:
    expected = logs_by_place(any_kolibri, any_kolibri.id_of("a"))
    async with converse(any_kolibri) as talk:
        rows = await activity_of(talk)

    found = {(row.user_id, row.course_id.removeprefix("channel:")): row for row in rows}
    assert len(found) == len(rows) == len(expected) > 20
    assert found.keys() == expected.keys()
    for place, logs in expected.items():
        row, progress = found[place], found[place].progress
        assert progress is not None
        total = any_kolibri.kolibri.channels[place[1]].resource_count
        done = sum(int(log.progress * 10000 + 1e-9) / 10000 for log in logs)
        assert progress.ratio == pytest.approx(min(1, done / total), abs=0.001)
        assert progress.completed_count == sum(log.progress >= 1 for log in logs)
        assert progress.total_count == total
        assert progress.method is ProgressMethod.DERIVED
        assert progress.time_spent_seconds == pytest.approx(
            sum(log.time_spent_seconds for log in logs), abs=len(logs)
        )
        assert row.enrolled_at == min(log.started_at for log in logs)
        assert row.last_activity_at == max(log.ended_at for log in logs)
        assert row.provenance.via is DataSource.CACHE
        assert row.role == Role(value=RoleValue.STUDENT, source_value="learner")


async def test_one_export_serves_every_reading(kolibri: SimulatedInstallation) -> None:
    async with converse(kolibri) as talk:
        first = await activity_of(talk)
        forget_shared(talk)
        second = await activity_of(talk)

    assert [row.id for row in first] == [row.id for row in second]
    assert talk.exports.runs == {ACTIVITY: 1}
    assert talk.called()["POST /api/tasks/tasks/"] == 1


async def test_a_name_used_anew_does_not_inherit_what_its_first_owner_did() -> None:
    async with simulated() as installation:
        (gone,) = [a for a in installation.kolibri.deleted_accounts() if a.facility_id]
        heir = installation.kolibri.add_user(gone.username, "New Owner")
        async with converse(installation) as talk:
            rows = await talk.session.fetch_enrollments_by_user([heir.id])

    assert rows == {heir.id: []}


async def test_a_coach_reads_rosters_without_activity_and_a_check_says_so() -> None:
    async with (
        simulated(username="service_coach", password=data.PASSWORD) as installation,
        converse(installation) as talk,
    ):
        check = await talk.session.check()
        users = await all_pages(talk.session.list_users, limit=1000)
        rows = await all_pages(talk.session.list_enrollments, limit=1000)
        with pytest.raises(ProviderForbidden):
            await talk.session.export(ACTIVITY)

    assert check.account == "Facility coach, reading Kasese Riverside School"
    assert len(check.missing) == 1
    assert check.missing[0].startswith("The role of facility admin, to export activity")
    assert len(users) > 60
    assert {row.course_id.partition(":")[0] for row in rows} == {"classroom", "coursesession"}
    assert talk.called()["POST /api/tasks/tasks/"] == 0


# ---- 10 and the account ------------------------------------------------------------------


async def test_after_a_password_change_one_login_is_tried_and_named_refused(
    any_kolibri: SimulatedInstallation,
) -> None:
    in_facility = replace(any_kolibri, account_id=any_kolibri.id_of("a"))
    async with converse(in_facility) as talk:
        await talk.session.list_users(position=None, limit=5)
        any_kolibri.kolibri.change_password(data.SUPERUSER_USERNAME, "another-Passw0rd")

        with pytest.raises(ReauthRequired, match=r"^The password is not that of this user"):
            await talk.session.list_users(position=None, limit=5)

    assert any_kolibri.kolibri.counts.login_attempts == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"password": "wrong"}, "The password is not that of this user in the default facility"),
        ({"password": ""}, "The username or the password is missing"),
        (
            {"username": "nobody_here"},
            "No user of this name is in the default facility; the server",
        ),
        ({"username": "admin_b"}, "No user of this name is in the default facility; the server"),
        ({"account_id": NOBODY}, f"This server has no facility {NOBODY}; it has Kasese Riverside"),
        ({"account_id": "Lycée"}, "This server has no facility lycée; it has Kasese Riverside"),
    ],
)
@pytest.mark.parametrize("version", ["0.18.4", "0.19.5"])
async def test_what_is_wrong_with_a_login_is_named(
    version: str, changes: Mapping[str, str], message: str
) -> None:
    async with simulated(version, username="service_admin") as installation:
        credentials = {"username": "service_admin", "password": data.PASSWORD, **changes}
        async with converse(installation, credentials=credentials) as talk:
            with pytest.raises(ReauthRequired) as refused:
                await talk.session.list_users(position=None, limit=5)

    assert refused.value.message.startswith(message)
    assert installation.kolibri.counts.login_attempts <= 1
    assert installation.kolibri.counts.logins == 0


async def test_017_cannot_tell_a_wrong_password_without_a_facility() -> None:
    async with (
        simulated("0.17.0", username="service_admin", password="wrong") as installation,
        converse(installation) as talk,
    ):
        with pytest.raises(ReauthRequired) as refused:
            await talk.session.check()

    assert refused.value.message.startswith(
        "Username or password are wrong, or the user is not in the default facility; the server has"
    )


async def test_the_facilities_on_offer_are_named_with_their_ids(
    kolibri: SimulatedInstallation,
) -> None:
    wrong = replace(kolibri, account_id=NOBODY)
    async with converse(wrong) as talk:
        with pytest.raises(ReauthRequired) as refused:
            await talk.session.check()

    assert refused.value.message == (
        f"This server has no facility {NOBODY}; it has "
        f"Kasese Riverside School ({kolibri.id_of('a')}), Lycée Félix Éboué ({kolibri.id_of('b')})"
    )


@pytest.mark.parametrize(
    ("username", "scope"),
    [("librarian", "itself"), ("learner02", "itself"), ("coach_algebra", "its own classes")],
)
async def test_an_account_without_the_right_role_is_told_which_it_needs(
    username: str, scope: str
) -> None:
    async with (
        simulated(username=username, password=data.PASSWORD) as installation,
        converse(installation) as talk,
    ):
        with pytest.raises(ProviderForbidden) as refused:
            await talk.session.check()
        with pytest.raises(ProviderForbidden):
            await talk.session.list_users(position=None, limit=5)

    assert refused.value.message == (
        f"The account may read only {scope}: it needs the role of facility admin "
        "in Kasese Riverside School"
    )


async def test_rights_taken_away_are_noticed_at_the_next_heartbeat() -> None:
    async with (
        simulated(username="service_admin", password=data.PASSWORD) as installation,
        converse(installation) as talk,
    ):
        grant = await talk.authorization.current()
        kolibri = installation.kolibri
        kolibri.roles_of(kolibri.ids["a:service_admin"]).clear()

        talk.authorization.store(await talk.session.keep_alive(grant))

        with pytest.raises(ProviderForbidden, match="may read only itself"):
            await talk.session.list_users(position=None, limit=5)


async def test_a_check_names_server_release_and_facility(
    any_kolibri: SimulatedInstallation,
) -> None:
    async with converse(any_kolibri) as talk:
        check = await talk.session.check()

    assert check.version == any_kolibri.kolibri.profile.version
    assert check.name == data.DEVICE_NAME
    assert check.account == "Superuser, reading Kasese Riverside School"
    assert check.missing == ()
    assert any_kolibri.kolibri.counts.logins == 1


# ---- facilities --------------------------------------------------------------------------


async def everything(installation: Installation) -> dict[str, set[str]]:
    async with converse(installation) as talk:
        users = await all_pages(talk.session.list_users, limit=1000)
        courses = await all_pages(talk.session.list_courses, limit=1000)
        enrollments = await all_pages(talk.session.list_enrollments, limit=1000)
    return {
        "users": {user.external_id for user in users},
        "classes": {c.external_id for c in courses if c.kind is not CourseKind.LIBRARY},
        "enrollments": {row.id for row in enrollments},
    }


async def test_two_facilities_are_kept_apart_for_a_superuser_who_sees_both(
    any_kolibri: SimulatedInstallation,
) -> None:
    server = any_kolibri.kolibri
    facility_a, facility_b = any_kolibri.id_of("a"), any_kolibri.id_of("b")

    of_a = await everything(replace(any_kolibri, account_id=facility_a))
    of_b = await everything(replace(any_kolibri, account_id=facility_b.upper()))
    by_default = await everything(any_kolibri)

    for facility, found in ((facility_a, of_a), (facility_b, of_b)):
        accounts = {account.id for account in server.accounts() if account.facility_id == facility}
        classrooms = [c for c in server.collections_of_kind("classroom") if c.parent == facility]
        assert found["users"] == accounts
        assert found["classes"] >= {f"classroom:{classroom.id}" for classroom in classrooms}
    assert by_default == of_a
    assert of_a["users"].isdisjoint(of_b["users"])
    assert of_a["classes"].isdisjoint(of_b["classes"])
    assert of_a["enrollments"].isdisjoint(of_b["enrollments"])


async def test_a_user_of_the_other_facility_is_unknown_here(
    any_kolibri: SimulatedInstallation,
) -> None:
    elsewhere = any_kolibri.id_of("b:admin_b")
    async with converse(any_kolibri) as talk:
        users = await talk.session.fetch_users([elsewhere])
        rows = await talk.session.fetch_enrollments_by_user([elsewhere])

    assert (users, rows) == ({}, {})


# ---- users, courses and enrollments as records -------------------------------------------


async def test_every_user_is_given_as_kolibri_has_it(any_kolibri: SimulatedInstallation) -> None:
    server = any_kolibri.kolibri
    async with converse(any_kolibri) as talk:
        users = {u.external_id: u for u in await all_pages(talk.session.list_users, limit=1000)}

    for account in server.accounts():
        if account.facility_id != any_kolibri.id_of("a"):
            assert account.id not in users
            continue
        user = users[account.id]
        kinds = {role.kind for role in server.roles_of(account.id)}
        kinds |= {"superuser"} if account.is_superuser else set()
        assert (user.display_name, user.username) == (account.full_name, account.username)
        assert {role.source_value for role in user.roles} == (kinds or {"learner"})
        assert user.email is None
        assert user.active is True
        assert user.identifiers == (
            (
                Identifier(
                    type=IdentifierType.SCHOOL_ID,
                    value=account.id_number,
                    namespace=account.facility_id,
                ),
            )
            if account.id_number
            else ()
        )
    names = [user.display_name for user in users.values()]
    assert "" in names
    assert len(names) > len(set(names))


async def test_roles_are_mapped_and_a_provider_may_map_them_otherwise() -> None:
    options = {"role.coach": "TEACHING_ASSISTANT", "role.learner": "MEMBER", "other": "x"}
    async with simulated(options=options) as installation, converse(installation) as talk:
        await talk.session.check()
        coach = installation.id_of("a:coach_algebra")
        pupil = installation.id_of("a:learner02")
        users = await talk.session.fetch_users([coach, pupil])
        rows = await talk.session.fetch_enrollments_by_user([coach])

    assert users[coach].roles == (
        Role(value=RoleValue.TEACHING_ASSISTANT, source_value="coach"),
        Role(value=RoleValue.TEACHER, source_value="classroom assignable coach"),
    )
    assert users[pupil].roles == (Role(value=RoleValue.MEMBER, source_value="learner"),)
    assert [row.role.value for row in rows[coach] if row.source is EnrollmentSource.ROSTER] == [
        RoleValue.TEACHING_ASSISTANT
    ]


async def test_an_option_that_names_no_role_fails_the_check() -> None:
    async with (
        simulated(options={"role.coach": "HEAD"}) as installation,
        converse(installation) as talk,
    ):
        with pytest.raises(ProviderError, match=r"^The option role\.coach must be one of"):
            await talk.session.check()


async def test_every_class_channel_and_course_session_is_a_course(
    any_kolibri: SimulatedInstallation,
) -> None:
    server = any_kolibri.kolibri
    async with converse(any_kolibri) as talk:
        page = await talk.session.list_courses(position=None, limit=1000)
        talk.forget_calls()
        forget_shared(talk)
        again = await talk.session.list_courses(position=None, limit=1000)

    by_kind = {
        kind: {c.external_id: c for c in page.items if c.kind is kind}
        for kind in (CourseKind.CLASS, CourseKind.LIBRARY, CourseKind.COURSE)
    }
    classes = [c for c in server.collections_of_kind("classroom") if c.facility == server.ids["a"]]
    sessions = server.population.course_sessions if server.profile.courses else []
    assert {(id_, c.title) for id_, c in by_kind[CourseKind.CLASS].items()} == {
        (f"classroom:{row.id}", row.name) for row in classes
    }
    assert {(id_, c.title) for id_, c in by_kind[CourseKind.LIBRARY].items()} == {
        (f"channel:{row.id}", row.name) for row in server.channels.values()
    }
    assert by_kind[CourseKind.COURSE].keys() == {f"coursesession:{row.id}" for row in sessions}
    assert len(again.items) == page.total == len(page.items)
    expected_calls = {CLASSES: 1, CHANNELS: 1}
    if server.profile.courses:
        expected_calls["GET /api/courses/coursesession/"] = 1
    assert talk.called() == expected_calls


async def test_channels_are_sent_again_only_when_kolibri_marks_its_content_as_changed() -> None:
    people = data.build_population()
    channels = people.channels
    async with simulated(population=people) as installation, converse(installation) as talk:
        channel_id = installation.id_of("png")
        place = next(index for index, row in enumerate(channels) if row.id == channel_id)

        async def title() -> str:
            found = await talk.session.fetch_courses([f"channel:{channel_id}"])
            forget_shared(talk)
            return found[f"channel:{channel_id}"].title

        first = await title()
        channels[place] = replace(channels[place], name="Renamed")
        same_mark = await title()
        installation.kolibri.content_changed_at += 1
        other_mark = await title()

    assert (first, same_mark, other_mark) == (first, first, "Renamed")
    assert talk.called()[CHANNELS] == 3


async def test_a_channel_tells_what_kolibri_tells(kolibri: SimulatedInstallation) -> None:
    channel = kolibri.kolibri.channels[kolibri.id_of("png")]
    absent = f"channel:{kolibri.id_of('absent')}"
    async with converse(kolibri) as talk:
        courses = await talk.session.fetch_courses([f"channel:{channel.id}", absent])

    course = courses[f"channel:{channel.id}"]
    assert course.description == channel.description
    assert course.language == channel.language
    assert course.resource_count == channel.resource_count > 0
    assert course.state is CourseState.ACTIVE
    assert course.url == f"{kolibri.base_url}/viewcontent?node_id={channel.nodes[0].id}"
    assert course.provenance.modified_at == channel.updated_at
    assert courses[absent].state is CourseState.INACTIVE
    assert courses[absent].resource_count == 0


async def test_every_membership_and_coach_is_an_enrollment_in_its_class(
    any_kolibri: SimulatedInstallation,
) -> None:
    server = any_kolibri.kolibri
    classes = {
        row.id for row in server.collections_of_kind("classroom") if row.facility == server.ids["a"]
    }
    async with converse(any_kolibri) as talk:
        rows = await all_pages(talk.session.list_enrollments, limit=1000)

    in_classes = [row for row in rows if row.course_id.startswith("classroom:")]
    learners = {
        (row.external_id, row.user_id, row.course_id)
        for row in in_classes
        if row.role.value is RoleValue.STUDENT
    }
    coaches = {
        (row.user_id, row.course_id)
        for row in in_classes
        if row.role == Role(value=RoleValue.TEACHER, source_value="coach")
    }
    assert learners == {
        (m.id, m.person, f"classroom:{m.collection}")
        for m in server.memberships.values()
        if m.collection in classes and server.find_account(m.person)
    }
    assert coaches == {
        (role.person, f"classroom:{role.collection}")
        for role in server.roles.values()
        if role.collection in classes
    }
    assert {row.enrolled_at for row in in_classes} == {None}
    assert {row.source for row in in_classes} == {EnrollmentSource.ROSTER}


async def test_a_deleted_users_membership_is_no_enrollment(kolibri: SimulatedInstallation) -> None:
    deleted = {account.id for account in kolibri.kolibri.deleted_accounts()}
    still_members = [
        row
        for row in kolibri.kolibri.memberships.values()
        if row.person in deleted and kolibri.kolibri.collections[row.collection].kind == "classroom"
    ]
    async with converse(kolibri) as talk:
        rows = await all_pages(talk.session.list_enrollments, limit=1000)
        by_course = await talk.session.fetch_enrollments_by_course(
            [f"classroom:{row.collection}" for row in still_members]
        )
        by_user = await talk.session.fetch_enrollments_by_user(deleted)

    assert len(still_members) == 1
    assert deleted.isdisjoint(row.user_id for row in rows)
    assert deleted.isdisjoint(row.user_id for found in by_course.values() for row in found)
    assert by_user == {}


async def test_a_course_session_enrolls_class_group_and_chosen_learners_once_each(
    kolibri: SimulatedInstallation,
) -> None:
    server = kolibri.kolibri
    async with converse(kolibri) as talk:
        rows = await talk.session.fetch_enrollments_by_course(
            [f"coursesession:{row.id}" for row in server.population.course_sessions]
        )

    for session in server.population.course_sessions:
        members = {account.id for account in server.people_of(server.ids[session.assigned_to])}
        found = rows[f"coursesession:{session.id}"]
        assert {row.user_id for row in found} == members
        assert len(found) == len(members) > 0
        expected = EnrollmentState.ACTIVE if session.active else EnrollmentState.INACTIVE
        assert {row.state for row in found} == {expected}


# ---- calls -------------------------------------------------------------------------------


@pytest.mark.parametrize("bulk_users", [0, 400, 990])
async def test_a_nested_query_costs_four_calls_whatever_the_number_of_users(
    bulk_users: int,
) -> None:
    population = data.build_population(bulk_users=bulk_users)
    facility = population.facilities[-1].id if bulk_users else population.facilities[0].id
    async with (
        simulated(population=population, account_id=facility) as installation,
        converse(installation) as talk,
    ):
        await talk.exports.read(ACTIVITY)
        forget_shared(talk)
        talk.forget_calls()

        page = await talk.session.list_users(position=None, limit=1000)
        enrollments, _ = await asyncio.gather(
            talk.session.fetch_enrollments_by_user([user.external_id for user in page.items]),
            talk.session.fetch_enrollments_by_user([page.items[0].external_id]),
        )
        course_ids = {row.course_id for rows in enrollments.values() for row in rows}
        halves = sorted(course_ids)[::2], sorted(course_ids)[1::2]
        await asyncio.gather(*(talk.session.fetch_courses(half) for half in halves))

    calls = talk.called()
    calls[MEMBERSHIPS] -= 1  # of the second caller, who asked for another set of users
    assert page.total == len(page.items) >= max(60, bulk_users)
    assert len(course_ids) > 1
    assert calls == {USERS: 1, MEMBERSHIPS: 1, CLASSES: 1, CHANNELS: 1}


@pytest.mark.parametrize(
    ("offset", "limit", "calls"),
    [
        (0, 10, 1),
        (20, 10, 1),
        (13, 10, 1),
        (60, 33, 1),
        (66, 1000, 1),
        (11, 2, 2),
        (59, 3, 2),
        (1, 1000, 1),
    ],
)
async def test_a_page_costs_at_most_two_calls_wherever_it_begins(
    kolibri: SimulatedInstallation, offset: int, limit: int, calls: int
) -> None:
    async with converse(kolibri) as talk:
        everybody = [u.external_id for u in await all_pages(talk.session.list_users, limit=1000)]
        talk.forget_calls()

        page = await talk.session.list_users(position=str(offset), limit=limit)

    assert [user.external_id for user in page.items] == everybody[offset : offset + limit]
    assert talk.called() == {USERS: calls}


async def test_the_rosters_of_classes_cost_three_calls_and_those_of_one_class_are_filtered(
    any_kolibri: SimulatedInstallation,
) -> None:
    courses = [f"classroom:{any_kolibri.id_of(key)}" for key in ("algebra", "nature")]
    async with converse(any_kolibri) as talk:
        await talk.session.check()
        talk.forget_calls()

        both = await talk.session.fetch_enrollments_by_course(courses)
        calls, read = talk.called(), sum(call.body_bytes for call in talk.calls)
        forget_shared(talk)
        talk.forget_calls()
        one = await talk.session.fetch_enrollments_by_course(courses[:1])

    expected = {CLASSES: 1, MEMBERSHIPS: 1}
    if any_kolibri.kolibri.profile.soft_delete:
        expected["GET /api/auth/deletedfacilityuser/"] = 1
    assert calls == talk.called() == expected
    assert sum(call.body_bytes for call in talk.calls) < read
    assert [row.id for row in one[courses[0]]] == [row.id for row in both[courses[0]]]
    assert len(one[courses[0]]) > 20


async def test_a_course_session_that_the_export_lacks_is_looked_for_at_the_server(
    kolibri: SimulatedInstallation,
) -> None:
    known = f"coursesession:{kolibri.id_of('session_farming')}"
    async with converse(kolibri) as talk:
        await talk.exports.read(ACTIVITY)
        forget_shared(talk)
        talk.forget_calls()

        found = await talk.session.fetch_courses([known])
        calls_for_known = talk.called()
        missing = await talk.session.fetch_courses([f"coursesession:{NOBODY}"])

    assert (list(found), missing) == ([known], {})
    assert calls_for_known == {}
    assert talk.called() == {"GET /api/courses/coursesession/": 1, CLASSES: 1}


async def test_classes_and_channels_are_shared_for_a_moment_only(
    kolibri: SimulatedInstallation,
) -> None:
    class Forgetful(KolibriSession):
        shared_seconds = 0.0

    forgetful = replace(kolibri, platform=replace(PLATFORM, session=Forgetful))
    wanted = [f"classroom:{kolibri.id_of('algebra')}", f"channel:{kolibri.id_of('png')}"]
    async with converse(kolibri) as talk, converse(forgetful) as forgetful_talk:
        for session in (talk.session, forgetful_talk.session):
            for _ in range(3):
                await session.fetch_courses(wanted)

    assert (talk.called()[CLASSES], talk.called()[CHANNELS]) == (1, 1)
    assert (forgetful_talk.called()[CLASSES], forgetful_talk.called()[CHANNELS]) == (3, 3)


async def test_what_is_shared_is_forgotten_with_the_grant(kolibri: SimulatedInstallation) -> None:
    wanted = [f"classroom:{kolibri.id_of('algebra')}"]
    async with converse(kolibri) as talk:
        await talk.session.fetch_courses(wanted)
        forget_shared(talk)
        await talk.session.fetch_courses(wanted)

    assert talk.called()[CLASSES] == 2


async def test_a_shared_read_survives_the_caller_who_began_it(
    kolibri: SimulatedInstallation,
) -> None:
    kolibri.kolibri.latency_by_path["/api/auth/classroom/"] = 0.1
    wanted = [f"classroom:{kolibri.id_of('algebra')}"]
    async with converse(kolibri) as talk:
        await talk.authorization.current()
        impatient = asyncio.create_task(talk.session.fetch_courses(wanted))
        patient = asyncio.create_task(talk.session.fetch_courses(wanted))
        await asyncio.sleep(0.05)
        impatient.cancel()

        found = await patient

    assert impatient.cancelled()
    assert set(found) == set(wanted)
    assert talk.called()[CLASSES] == 1


async def test_an_outage_is_an_error_and_not_an_empty_answer(
    kolibri: SimulatedInstallation,
) -> None:
    async with converse(kolibri) as talk:
        await talk.session.check()
        kolibri.kolibri.fail(100, status=503, retry_after_seconds=30, path="/api/auth/membership")

        with pytest.raises(ProviderError) as failed:
            await talk.session.list_enrollments(position=None, limit=10)
        page = await talk.session.list_users(position=None, limit=10)

    assert failed.value.code == "PROVIDER_UNAVAILABLE"
    assert failed.value.retry_after_seconds == 30
    assert len(page.items) == 10
    assert kolibri.kolibri.counts.logins == 1


async def test_a_login_tells_grants_apart_by_version(kolibri: SimulatedInstallation) -> None:
    async with converse(kolibri) as talk:
        first = await talk.authorization.current()
        second = await talk.authorization.replace(first)

    assert isinstance(second, Grant)
    assert (first.version, second.version) == (1, 2)
    assert first.secret != second.secret


async def test_an_empty_facility_is_believed_after_its_heartbeat() -> None:
    population = data.build_population()
    only = {"a:root_user"}
    population = replace(
        population,
        memberships=[],
        roles=[],
        people=[person for person in population.people if person.key in only],
        collections=[],
        lessons=[],
        exams=[],
        exam_results=[],
        course_sessions=[],
        summary_logs=[],
    )
    async with simulated(population=population) as installation, converse(installation) as talk:
        await talk.authorization.current()
        talk.forget_calls()
        page = await talk.session.list_enrollments(position=None, limit=10)

    assert (list(page.items), page.total) == ([], 0)
    assert talk.called()[HEARTBEAT] >= 1
