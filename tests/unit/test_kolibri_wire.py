"""Kolibri's wire in all its forms: what is read, what is refused, what is worked around."""

import base64
import csv
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.header import Header
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.addresses import AddressPolicy
from sessions.base import Export, Grant
from sessions.errors import (
    ProviderAuthFailed,
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderTimeout,
    ProviderUnavailable,
    ReauthRequired,
)
from sessions.http import ProviderHttp, Response
from sessions.platforms.kolibri import (
    PLATFORM,
    KolibriSession,
    _Account,
    _as_table_cell,
    _bytes_of_data_uri,
    _condense,
    _days_of,
    _facility_id,
    _problem_ids,
    _Reach,
    _release,
    _UserRow,
    _Window,
)
from storage.credentials import Secret
from storage.records import Gender, Provider, ProviderState

URL = "http://kolibri.test:8080/school"
FACILITY, CLASS, ME, PUPIL = "a" * 32, "c" * 32, "b" * 32, "d" * 32
CHANNEL = "e" * 32

Answer = Callable[[httpx.Request], httpx.Response]


def answers(status: int = 200, **response: Any) -> Answer:
    return lambda _: httpx.Response(status, **response)


INFO = {"application": "kolibri", "kolibri_version": "0.19.5", "device_name": "Server"}
STATE = {"user_id": ME, "kind": ["admin"], "facility_id": FACILITY}
COOKIES = [("Set-Cookie", "kolibri=s3ssion; Path=/"), ("Set-Cookie", "kolibri_csrftoken=t0ken")]


def user_row(user_id: str = ME, **changes: Any) -> dict[str, Any]:
    row = {
        "id": user_id,
        "facility": FACILITY,
        "username": "admin",
        "full_name": "Ada Min",
        "roles": [{"id": "1" * 32, "kind": "admin", "collection": FACILITY}],
    }
    return {**row, **changes}


class PretendKolibri:
    """Answers by path; ``calls`` counts what was asked."""

    def __init__(self, **routes: Answer) -> None:
        self.calls: Counter[str] = Counter()
        self.requests: list[httpx.Request] = []
        self.routes: dict[str, Answer] = {
            "GET /api/public/info/": answers(json=INFO),
            "GET /api/public/v1/facility/": answers(json=[{"id": FACILITY, "name": "School"}]),
            "POST /api/auth/session/": answers(json=STATE, headers=COOKIES),
            "PUT /api/auth/session/current/": answers(json=STATE),
            f"GET /api/auth/facilityuser/{ME}/": answers(json=user_row()),
            **routes,
        }

    def __call__(self, request: httpx.Request) -> httpx.Response:
        route = f"{request.method} {request.url.path.removeprefix('/school')}"
        self.calls[route] += 1
        self.requests.append(request)
        answer = self.routes.get(route, answers(404, html="<h1>Not Found</h1>"))
        return answer(request)


class Authorization:
    def __init__(self) -> None:
        self.session: KolibriSession | None = None
        self.grant: Grant | None = None

    async def current(self) -> Grant:
        return self.grant or await self.replace(None)

    async def replace(self, lost: Grant | None, *, again: bool = False) -> Grant:
        assert self.session is not None
        granted = await self.session.log_in(
            Secret({"username": "admin", "password": "canary-Passw0rd"})
        )
        version = 1 if lost is None else lost.version + 1
        self.grant = Grant(version=version, secret=granted.secret)
        return self.grant


class Exports:
    def __init__(self, export: Export | None) -> None:
        self.export = export

    async def read(self, name: str) -> Export | None:
        return self.export if name == "activity" else None


@asynccontextmanager
async def session_with(
    kolibri: PretendKolibri,
    *,
    session_type: type[KolibriSession] = KolibriSession,
    export: Export | None = None,
) -> AsyncIterator[KolibriSession]:
    now = datetime.now(UTC)
    provider = Provider(
        id="1",
        platform="kolibri",
        name="School",
        base_url=URL,
        options={},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=now,
        updated_at=now,
    )
    async with ProviderHttp.open(
        URL, provider_id="1", policy=AddressPolicy(), transport=httpx.MockTransport(kolibri)
    ) as http:
        authorization = Authorization()
        session = session_type(
            provider, http=http, authorization=authorization, exports=Exports(export)
        )
        authorization.session = session
        yield session


# ---- is it a Kolibri ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (answers(html="<h1>Router</h1>"), "answered HTML, not JSON"),
        (answers(404, json={}), "answered 404 when asked for its version"),
        (answers(json={"name": "Moodle"}), "No Kolibri answers at this address: it is another"),
        (answers(json=[1, 2]), "answered JSON of another form"),
        (answers(302, headers={"Location": "http://elsewhere.test/x?y=1"}), "elsewhere.test"),
        (answers(json={**INFO, "kolibri_version": "0.16.2"}), "Kolibri 0.16.2 is too old: 0.17"),
        (answers(json={**INFO, "kolibri_version": "unknown"}), "Kolibri unknown is too old"),
    ],
)
async def test_what_is_no_kolibri_or_too_old_is_refused_before_any_login(
    info: Answer, message: str
) -> None:
    kolibri = PretendKolibri(**{"GET /api/public/info/": info})
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderBadResponse) as refused:
            await session.check()

    assert message in refused.value.message
    assert "y=1" not in refused.value.message
    assert kolibri.calls["POST /api/auth/session/"] == 0


async def test_a_server_below_a_path_is_called_below_it() -> None:
    kolibri = PretendKolibri()
    async with session_with(kolibri) as session:
        check = await session.check()

    assert (check.version, check.name) == ("0.19.5", "Server")
    assert {request.url.path[:8] for request in kolibri.requests} == {"/school/"}


# ---- logging in --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (
            answers(401, json=[{"id": "INVALID_CREDENTIALS", "metadata": {}}]),
            ReauthRequired,
            "The password is not that of this user in facility School",
        ),
        (
            answers(400, json=[{"id": "MISSING_PASSWORD", "metadata": {}}]),
            ReauthRequired,
            "The password is missing",
        ),
        (
            answers(400, json=[{"id": "PASSWORD_NOT_SPECIFIED", "metadata": {}}]),
            ReauthRequired,
            "This user has no password yet: set one in Kolibri",
        ),
        (
            answers(400, json=[{"id": "NOT_FOUND", "metadata": {"field": "username"}}]),
            ReauthRequired,
            (
                "No user of this name is in facility School; the server has School "
                f"({FACILITY}): give the id of the right one as account id"
            ),
        ),
        (answers(400, json=["No"]), ProviderAuthFailed, "Kolibri refused the login (status 400)"),
        (answers(403, html="<p>"), ProviderAuthFailed, "Kolibri refused the login (status 403)"),
        (
            answers(json={**STATE, "user_id": None}, headers=COOKIES),
            ProviderBadResponse,
            "Kolibri accepted the login but gave no session",
        ),
        (
            answers(json=STATE),
            ProviderBadResponse,
            "Kolibri accepted the login but gave no session",
        ),
    ],
)
async def test_a_failed_login_is_explained_once_and_without_secrets(
    answer: Answer, error: type[ProviderError], message: str
) -> None:
    kolibri = PretendKolibri(**{"POST /api/auth/session/": answer})
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderError) as refused:
            await session.list_users(position=None, limit=10)

    assert type(refused.value) is error
    assert refused.value.message == message
    assert kolibri.calls["POST /api/auth/session/"] == 1


async def test_the_only_facility_is_named_in_the_login() -> None:
    kolibri = PretendKolibri()
    async with session_with(kolibri) as session:
        await session.check()

    (login,) = [request for request in kolibri.requests if request.method == "POST"]
    assert json.loads(login.content)["facility"] == FACILITY
    assert "cookie" not in login.headers


async def test_calls_carry_the_session_and_writes_the_csrf_token() -> None:
    kolibri = PretendKolibri()
    async with session_with(kolibri) as session:
        grant = Grant(
            version=1,
            secret=(await session.log_in(Secret({"username": "a", "password": "b"}))).secret,
        )
        await session.keep_alive(grant)

    read, write = kolibri.requests[3], kolibri.requests[4]
    assert (read.method, write.method) == ("GET", "PUT")
    assert "kolibri=s3ssion" in read.headers["cookie"]
    assert "x-csrftoken" not in read.headers
    assert write.headers["x-csrftoken"] == "t0ken"
    assert json.loads(write.content) == {"active": False}


async def test_a_failed_look_at_the_release_does_not_fail_the_heartbeat() -> None:
    kolibri = PretendKolibri()
    async with session_with(kolibri) as session:
        granted = await session.log_in(Secret({"username": "a", "password": "b"}))
        kolibri.routes["GET /api/public/info/"] = answers(404)

        kept = await session.keep_alive(Grant(version=1, secret=granted.secret))

    assert kept.secret.reveal()["version"] == "0.19.5"


async def test_an_upgrade_is_noticed_by_the_heartbeat() -> None:
    kolibri = PretendKolibri()
    async with session_with(kolibri) as session:
        granted = await session.log_in(Secret({"username": "a", "password": "b"}))
        kolibri.routes["GET /api/public/info/"] = answers(json={**INFO, "kolibri_version": "0.20"})

        kept = await session.keep_alive(Grant(version=1, secret=granted.secret))

    assert kept.secret.reveal()["version"] == "0.20"


async def test_a_heartbeat_that_is_no_heartbeat_is_a_bad_response() -> None:
    kolibri = PretendKolibri()
    async with session_with(kolibri) as session:
        granted = await session.log_in(Secret({"username": "a", "password": "b"}))
        kolibri.routes["PUT /api/auth/session/current/"] = answers(415, json={"detail": "No"})

        with pytest.raises(ProviderBadResponse, match="answered 415 when asked for a heartbeat"):
            await session.keep_alive(Grant(version=1, secret=granted.secret))


# ---- answers that are not as promised ----------------------------------------------------


async def test_a_missing_field_is_named_with_its_path() -> None:
    rows = {"count": 1, "results": [{"id": PUPIL, "facility": FACILITY}]}
    kolibri = PretendKolibri(**{"GET /api/auth/facilityuser/": answers(json=rows)})
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderBadResponse, match="username"):
            await session.list_users(position=None, limit=10)


async def test_new_fields_do_no_harm() -> None:
    rows = {"count": 1, "results": [user_row(PUPIL, new_in_0_20={"a": 1})], "next": None}
    kolibri = PretendKolibri(**{"GET /api/auth/facilityuser/": answers(json=rows)})
    async with session_with(kolibri) as session:
        page = await session.list_users(position=None, limit=10)

    assert [user.external_id for user in page.items] == [PUPIL]


@pytest.mark.parametrize(
    ("year", "gender", "said"),
    [
        ("2010", "FEMALE", (2010, Gender.FEMALE)),
        ("1987", "MALE", (1987, Gender.MALE)),
        ("NOT_SPECIFIED", "NOT_SPECIFIED", (None, Gender.UNSPECIFIED)),
        ("DEFERRED", "DEFERRED", (None, None)),
        ("", "", (None, None)),
        (None, None, (None, None)),
        ("٢٠١٠", "female", (None, None)),
    ],
)
async def test_birth_year_and_gender_are_what_the_user_said(
    year: str | None, gender: str | None, said: tuple[int | None, Gender | None]
) -> None:
    rows = {"count": 1, "results": [user_row(PUPIL, birth_year=year, gender=gender)]}
    kolibri = PretendKolibri(**{"GET /api/auth/facilityuser/": answers(json=rows)})
    async with session_with(kolibri) as session:
        (user,) = (await session.list_users(position=None, limit=10)).items

    assert (user.birth_year, user.gender) == said


async def test_users_nobody_asked_for_are_refused() -> None:
    rows = {"count": 2, "results": [user_row(PUPIL), user_row("f" * 32)]}
    kolibri = PretendKolibri(**{"GET /api/auth/facilityuser/": answers(json=rows)})
    async with session_with(kolibri) as session:
        with pytest.raises(
            ProviderBadResponse, match=r"^Kolibri gave other users than those asked"
        ):
            await session.fetch_users([PUPIL])


async def test_rows_of_another_facility_are_left_out() -> None:
    rows = {"count": 2, "results": [user_row(PUPIL), user_row("f" * 32, facility="9" * 32)]}
    kolibri = PretendKolibri(**{"GET /api/auth/facilityuser/": answers(json=rows)})
    async with session_with(kolibri) as session:
        page = await session.list_users(position=None, limit=10)

    assert [user.external_id for user in page.items] == [PUPIL]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (answers(403, json=[{"id": "PERMISSION_DENIED"}]), "The account may not read users"),
        (answers(400, json=[]), "kolibri.test:8080 answered 400 when asked for users"),
        (answers(404, json=[]), "kolibri.test:8080 answered 404 when asked for users"),
    ],
)
async def test_a_refused_list_is_an_error_and_not_empty(answer: Answer, message: str) -> None:
    kolibri = PretendKolibri(**{"GET /api/auth/facilityuser/": answer})
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderError) as refused:
            await session.list_users(position=None, limit=10)

    assert refused.value.message == message


async def test_a_session_that_is_lost_at_once_again_is_not_replaced_for_ever() -> None:
    lost = answers(403, json=[{"id": "NOT_AUTHENTICATED", "metadata": {}}])
    kolibri = PretendKolibri(**{"GET /api/auth/facilityuser/": lost})
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderAuthFailed):
            await session.list_users(position=None, limit=10)

    assert kolibri.calls["POST /api/auth/session/"] == 4  # three replacements, then an end


async def test_an_account_that_may_not_read_itself_may_read_nobody() -> None:
    kolibri = PretendKolibri(**{f"GET /api/auth/facilityuser/{ME}/": answers(404, json=[])})
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderForbidden, match=r"^The account may read only itself"):
            await session.list_users(position=None, limit=10)

    assert kolibri.calls["GET /api/auth/facilityuser/"] == 0


async def test_a_login_whose_session_is_gone_at_once_may_be_tried_later() -> None:
    lost = answers(404, headers=[("Set-Cookie", 'kolibri=""; Max-Age=0; Path=/')])
    kolibri = PretendKolibri(**{f"GET /api/auth/facilityuser/{ME}/": lost})
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderUnavailable, match="ended the session it had just granted"):
            await session.log_in(Secret({"username": "admin", "password": "canary-Passw0rd"}))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'[{"id": "NOT_FOUND", "metadata": {"view": "x"}}, {"id": "REQUIRED"}]', True),
        (b'{"id": "NOT_FOUND", "metadata": {}}', True),
        (b'["Invalid pk"]', False),
        (b'{"detail": "JSON parse error"}', False),
        (b"<h1>Not Found</h1>", False),
        (b"", False),
        (b'[{"non_field_errors": ["x"]}]', False),
        (b'[{"id": 7}, null]', False),
        (b"\xff\xfe", False),
    ],
)
def test_problems_are_read_from_every_shape(body: bytes, *, found: bool) -> None:
    assert ("NOT_FOUND" in _problem_ids(Response(status=404, body=body))) is found
    assert _problem_ids(Response(status=200, body=body)) == set()


# ---- the export --------------------------------------------------------------------------

TITLES = [
    "Facility name",
    "Username",
    "Channel id",
    "Content id",
    "Time of first interaction",
    "Time of last interaction",
    "Time of completion",
    "Time Spent (sec)",
    "Progress (0-1)",
]


def line(username: str, content: str, **changes: str) -> dict[str, str]:
    values = {
        "Facility name": "School",
        "Username": username,
        "Channel id": CHANNEL,
        "Content id": content,
        "Time of first interaction": "2026-03-01 08:00:00+00:00",
        "Time of last interaction": "2026-03-02 09:00:00.500000+00:00",
        "Time of completion": "",
        "Time Spent (sec)": "12.5",
        "Progress (0-1)": "0.2500",
    }
    return values | changes


def table(*lines: Mapping[str, str], titles: list[str] = TITLES) -> str:
    rows = [titles, *([row[title] for title in titles] for row in lines)]
    return "\r\n".join(",".join(f'"{value}"' for value in row) for row in rows) + "\r\n"


def user(username: str, user_id: str = PUPIL, joined: str | None = None) -> _UserRow:
    return msgspec.convert(
        user_row(user_id, username=username, date_joined=joined, roles=[]), type=_UserRow
    )


def condensed(*lines: Mapping[str, str], users: list[_UserRow], reused: str = "") -> Any:
    channels, by_user = _condense(table(*lines), users=users, reused_names={reused})
    return channels, {user_id: msgspec.to_builtins(rows) for user_id, rows in by_user.items()}


def test_activity_is_summed_by_user_and_channel() -> None:
    done = {"Progress (0-1)": "1.0000", "Time of completion": "2026-03-05 10:00:00+00:00"}
    channels, by_user = condensed(
        line("pupil", "one"), line("pupil", "two", **done), users=[user("pupil")]
    )

    first = datetime(2026, 3, 1, 8, tzinfo=UTC).timestamp()
    last = datetime(2026, 3, 2, 9, 0, 0, 500000, tzinfo=UTC).timestamp()
    completed = datetime(2026, 3, 5, 10, tzinfo=UTC).timestamp()
    assert channels == [CHANNEL]
    assert by_user == {PUPIL: [[0, 1.25, 1, first, last, completed, 25.0]]}


def test_a_row_that_comes_once_per_role_counts_once() -> None:
    _, by_user = condensed(line("coach", "one"), line("coach", "one"), users=[user("coach")])

    assert by_user[PUPIL][0][1] == 0.25


def test_rows_of_nobody_are_left_out() -> None:
    assert condensed(line("gone", "one"), users=[user("pupil")]) == ([], {})


@pytest.mark.parametrize(
    ("username", "cell"),
    [
        ("@home", "'@home"),
        ("-x|y", "'-x\\|y"),
        ("=1+1", "'=1+1"),
        ("-12.5", "-12.5"),
        ("'quoted", "'quoted"),
        ("plain|x", "plain|x"),
        ("", ""),
    ],
)
def test_usernames_are_found_as_kolibri_guards_them_in_tables(username: str, cell: str) -> None:
    assert _as_table_cell(username) == cell
    _, by_user = condensed(line(cell, "one"), users=[user(username)])
    assert set(by_user) == {PUPIL}


def test_a_reused_name_counts_from_when_its_present_owner_joined() -> None:
    heir = user("pupil", joined="2026-03-01T08:00:01Z")
    later = {"Time of first interaction": "2026-03-01 08:00:02+00:00"}

    _, by_user = condensed(
        line("pupil", "one"), line("pupil", "two", **later), users=[heir], reused="pupil"
    )

    assert by_user[PUPIL][0][1] == 0.25


@pytest.mark.parametrize("broken", ["Progress (0-1)", "Time Spent (sec)", "Username"])
def test_a_table_of_another_form_is_refused(broken: str) -> None:
    titles = [title for title in TITLES if title != broken]
    with pytest.raises(KeyError):
        _condense(table(line("p", "1"), titles=titles), users=[user("p")], reused_names=())


def test_a_value_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="often"):
        condensed(line("p", "1", **{"Progress (0-1)": "often"}), users=[user("p")])


def test_a_broken_table_is_refused() -> None:
    with pytest.raises(csv.Error):
        _condense('Username\r\n"open', users=[], reused_names=())


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("School_aaaa_content_summary_logs_from_1970-01-01_to_2099-12-31.csv", True),
        ("مدرسة_aaaa_content_summary_logs_from_1970-01-01_to_2099-12-31.csv", True),
        ("Since 2020-02-02_aaaa_summary_from_1970-01-01_to_2099-12-31.csv", True),
        ("School_aaaa_content_summary_logs_from_2026-01-01_to_2026-06-30.csv", False),
        ("School.csv", False),
    ],
)
def test_the_days_of_a_file_are_read_from_its_name(name: str, *, days: bool) -> None:
    header = f"attachment; filename={name}"
    if not name.isascii():  # as Django writes it
        header = Header(header, "utf-8", maxlinelen=1000).encode()

    found = _days_of(Response(status=200, headers={"content-disposition": header}))

    assert (found == ("1970-01-01", "2099-12-31")) is days


TASK = "/api/tasks/tasks/"
OURS = "attachment; filename=S_from_1970-01-01_to_2099-12-31.csv"
THEIRS = "attachment; filename=S_from_2026-01-01_to_2026-02-01.csv"


def exporting(*names: str, statuses: tuple[str, ...] = ("COMPLETED",)) -> PretendKolibri:
    """A Kolibri whose downloads have these names in turn, and its tasks these states."""
    downloads, states = iter(names), iter(statuses)
    content = b"\xef\xbb\xbf" + table(line("admin", "one")).encode()
    empty: Answer = answers(json=[])
    users = answers(json={"count": 1, "results": [user_row()]})
    return PretendKolibri(
        **{
            f"POST {TASK}": answers(json={"id": "7", "status": "QUEUED"}),
            f"GET {TASK}7/": lambda _: httpx.Response(
                200, json={"id": "7", "status": next(states, "COMPLETED")}
            ),
            f"GET /facility/api/downloadcsvfile/summary/{FACILITY}/": lambda _: httpx.Response(
                200, content=content, headers={"Content-Disposition": next(downloads)}
            ),
            "GET /api/auth/facilityuser/": users,
            "GET /api/auth/deletedfacilityuser/": empty,
            "GET /api/courses/coursesession/": empty,
            "GET /api/auth/classroom/": empty,
        }
    )


async def test_an_export_asks_for_all_time_in_english_and_clears_up_behind_it() -> None:
    kolibri = exporting(OURS, statuses=("QUEUED", "RUNNING", "COMPLETED"))
    async with session_with(kolibri) as session:
        body = await session.export("activity")

    start = next(r for r in kolibri.requests if r.url.path == f"/school{TASK}")
    assert json.loads(start.content) == {
        "type": "kolibri.core.logger.tasks.exportsummarylogcsv",
        "facility": FACILITY,
        "start_date": "1970-01-01T12:00:00+00:00",
        "end_date": "2099-12-31T12:00:00+00:00",
        "locale": "en",
    }
    assert kolibri.calls[f"GET {TASK}7/"] == 3
    assert kolibri.calls[f"POST {TASK}7/clear/"] == 1
    content = msgspec.msgpack.decode(body)
    assert content["channels"] == [CHANNEL]
    assert list(content["by_user"]) == [ME]


async def test_a_file_that_another_export_put_in_place_is_not_taken_for_ours() -> None:
    kolibri = exporting(THEIRS, OURS)
    async with session_with(kolibri) as session:
        body = await session.export("activity")

    assert kolibri.calls[f"POST {TASK}"] == 2
    assert msgspec.msgpack.decode(body)["facility"] == FACILITY


async def test_an_export_gives_up_when_others_get_in_its_way_twice() -> None:
    kolibri = exporting(THEIRS, THEIRS)
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderUnavailable, match=r"^Somebody else's export"):
            await session.export("activity")


@pytest.mark.parametrize("status", ["FAILED", "CANCELED"])
async def test_a_failed_task_fails_the_export(status: str) -> None:
    async with session_with(exporting(statuses=("RUNNING", status))) as session:
        with pytest.raises(ProviderUnavailable, match=r"^Kolibri's export of activity failed$"):
            await session.export("activity")


async def test_an_export_that_never_ends_is_given_up() -> None:
    class Impatient(KolibriSession):
        export_patience_seconds = 0.0

    kolibri = exporting(statuses=("RUNNING",) * 10)
    async with session_with(kolibri, session_type=Impatient) as session:
        with pytest.raises(ProviderTimeout, match="did not end in time"):
            await session.export("activity")


async def test_a_missing_file_fails_the_export() -> None:
    kolibri = exporting()
    kolibri.routes[f"GET /facility/api/downloadcsvfile/summary/{FACILITY}/"] = answers(404)
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderBadResponse, match="answered 404 when asked for the download"):
            await session.export("activity")


async def test_a_table_in_another_language_fails_the_export() -> None:
    kolibri = exporting()
    kolibri.routes[f"GET /facility/api/downloadcsvfile/summary/{FACILITY}/"] = answers(
        content=b"Nom,Utilisateur\r\na,b\r\n", headers={"Content-Disposition": OURS}
    )
    async with session_with(kolibri) as session:
        with pytest.raises(ProviderBadResponse, match=r"another form than expected$"):
            await session.export("activity")


@pytest.mark.parametrize(
    "body",
    [
        b"not msgpack at all",
        msgspec.msgpack.encode({"facility": FACILITY, "of_another_release": 1}),
        msgspec.msgpack.encode(
            {"facility": "9" * 32, "channels": [], "by_user": {}, "course_sessions": []}
        ),
    ],
)
async def test_an_export_of_another_release_or_facility_is_not_read(body: bytes) -> None:
    kolibri = exporting()
    kolibri.routes["GET /api/content/channel/"] = answers(
        json=[{"id": CHANNEL, "name": "Maths", "root": "1" * 32}]
    )
    kolibri.routes["GET /api/auth/membership/"] = answers(json=[])
    export = Export(body=body, fetched_at=datetime.now(UTC))
    async with session_with(kolibri, export=export) as session:
        page = await session.list_enrollments(position=None, limit=10)

    assert (list(page.items), page.total) == ([], 0)


# ---- icons -------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200, 256))
ENCODED = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        (f"data:image/png;base64,{ENCODED}", PNG),
        (f"DATA:image/png;BASE64,{ENCODED}", PNG),
        (f"data:image/png;base64,{ENCODED.rstrip('=')}", PNG),
        (f"data:;base64,{base64.urlsafe_b64encode(PNG).decode()}", PNG),
        (f"data:image/png;base64,{ENCODED[:20]} \n{ENCODED[20:]}", PNG),
        (f"data:image/png;base64,{ENCODED.replace('+', '%2B').replace('/', '%2F')}", PNG),
        ("data:image/svg+xml;utf8,%3Csvg%3E", b"<svg>"),
        ("data:image/svg+xml;utf8,<svg>", b"<svg>"),
        ("data:image/png;base64,A", None),
        ("data:image/png;base64,!!!!", None),
        ("data:image/png;base64", None),
        ("http://kolibri.test/icon.png", None),
        ("", None),
    ],
)
def test_data_uris_are_read_in_every_form(uri: str, content: bytes | None) -> None:
    assert _bytes_of_data_uri(uri) == content


async def test_the_copy_of_an_icon_in_the_public_api_is_read_as_bytes() -> None:
    path = f"/school/api/public/v2/channel/{CHANNEL}/"
    data_uri = f"data:image/png;base64,{ENCODED.rstrip('=')}"
    kolibri = PretendKolibri(
        **{f"GET {path.removeprefix('/school')}": answers(json={"thumbnail": data_uri})}
    )
    async with session_with(kolibri) as session:
        content = await session.fetch_file(path, max_bytes=1000)
        with pytest.raises(ProviderBadResponse, match=r"not readable$"):
            await session.fetch_file(path, max_bytes=len(PNG) - 1)

    assert content == PNG
    assert ["cookie" in request.headers for request in kolibri.requests] == [False, False]


# ---- small readings ----------------------------------------------------------------------


@given(st.integers(0, 5000), st.integers(1, 1200))
def test_pages_cover_the_stretch_and_little_more(offset: int, limit: int) -> None:
    window = _Window.over(offset, limit)

    first_row = (window.page - 1) * window.size
    assert first_row + window.skip == offset
    assert window.skip < window.size
    assert first_row + window.pages * window.size >= offset + limit
    assert limit <= window.size <= 2 * limit
    assert window.pages in {1, 2}
    if offset % limit == 0:
        assert (window.size, window.pages) == (limit, 1)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("0.19.5", (0, 19)),
        ("0.17", (0, 17)),
        ("0.18.0b2.dev0+git", (0, 18)),
        ("1.0.0", (1, 0)),
        ("", (0, 0)),
        ("dev", (0, 0)),
    ],
)
def test_releases_are_read_from_versions(version: str, release: tuple[int, int]) -> None:
    assert _release(version) == release


@pytest.mark.parametrize(
    ("text", "facility_id"),
    [
        ("F2575B75-0000-4000-8000-000000000001", "f2575b75000040008000000000000001"),
        (" f2575b75 ", "f2575b75"),
        ("", None),
        ("  ", None),
        (None, None),
    ],
)
def test_a_facility_id_is_read_however_it_is_written(
    text: str | None, facility_id: str | None
) -> None:
    assert _facility_id(text) == facility_id


def account(grant_version: int = 1) -> _Account:
    return _Account(
        cookie="c",
        csrf_token="t",
        user_id=ME,
        facility_id=FACILITY,
        kinds="admin",
        reach=_Reach.ADMIN,
        version="0.19.5",
        grant_version=grant_version,
    )


def test_an_account_shows_no_secret_and_survives_its_grant() -> None:
    secret = account().grant().secret

    assert _Account.of(secret, grant_version=1) == account()
    assert "cookie" not in repr(account())
    assert "csrf" not in repr(account())


def test_the_platform_asks_for_no_more_than_it_needs() -> None:
    asked = [(item.name, item.required, item.secret) for item in PLATFORM.credential_fields]

    assert asked == [
        ("username", True, False),
        ("password", True, True),
        ("account_id", False, False),
    ]
    assert PLATFORM.export_seconds == {"activity": 1800}
    assert (PLATFORM.heartbeat_seconds, PLATFORM.page_size, PLATFORM.concurrency) == (300, 1000, 4)
