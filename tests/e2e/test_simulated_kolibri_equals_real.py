"""The simulated Kolibri answers as a real one does: same requests to both, answers compared.

Point `KOLIBRI_LAB_HOME` and `KOLIBRI_LAB_URL` at a real Kolibri that
`python -m simulators.kolibri.real up` has brought up; without them the test brings one up itself,
below `KOLIBRI_HOME_ROOT` (default `.kolibri`), and stops it at the end. The first time that
installs Kolibri from PyPI, which takes a minute.

What may differ is written down in one place: the constants and functions under "What may differ".
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import httpx
import pytest
from real_servers import Kolibri as RealKolibri

from simulators.kolibri.app import running
from simulators.kolibri.lab import describe_lab
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
VERSION = "0.19.5"
TASK = "kolibri.core.logger.tasks.exportsummarylogcsv"
NOBODY = "0" * 32
DATES = {"start_date": "2020-01-01T00:00:00", "end_date": "2030-12-31T00:00:00", "locale": "en"}


# ---- the two servers ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_lab(kolibri: RealKolibri) -> tuple[str, dict[str, Any]]:
    """Give the real server's URL and its `lab.json`."""
    return kolibri.url, dict(kolibri.lab)


@dataclass
class Server:
    """One of the two servers, with a cookie jar for each of its visitors."""

    url: str
    lab: Mapping[str, Any]
    jars: dict[str, httpx.AsyncClient] = field(default_factory=dict)
    etag: str = ""
    job_id: str = ""
    names: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        plain = ("people", "collections", "memberships", "roles", "lessons", "exams")
        kinds = {kind: self.lab[kind] for kind in (*plain, "course_sessions")}
        kinds["facilities"] = {key: row["id"] for key, row in self.lab["facilities"].items()}
        kinds["datasets"] = {key: row["dataset"] for key, row in self.lab["facilities"].items()}
        self.names = {
            id_: f"<{kind} {key}>" for kind, rows in kinds.items() for key, id_ in rows.items()
        }

    def fill(self, text: str) -> str:
        """Replace `{kind:key}` by this server's id."""

        def look_up(found: re.Match[str]) -> str:
            kind, key = found.groups()
            if kind == "facilities":
                return str(self.lab["facilities"][key]["id"])
            return str(self.lab[kind][key])

        text = text.replace("{etag}", self.etag).replace("{job}", self.job_id)
        return re.sub(r"\{(\w+):([^}]+)\}", look_up, text)

    def jar(self, visitor: str) -> httpx.AsyncClient:
        if visitor not in self.jars:
            self.jars[visitor] = httpx.AsyncClient(base_url=self.url, timeout=60)
        return self.jars[visitor]


@contextlib.asynccontextmanager
async def both_servers(real: tuple[str, dict[str, Any]]) -> AsyncIterator[tuple[Server, Server]]:
    """Start the simulator and give (real, simulated)."""
    kolibri = Kolibri(build_population(), version=VERSION)
    async with running(kolibri) as url:
        servers = (Server(*real), Server(url, describe_lab(kolibri)))
        try:
            yield servers
        finally:
            for server in servers:
                for jar in server.jars.values():
                    await jar.aclose()


# ---- the requests ------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One request by one visitor. `content` is a raw body; `csrf=False` leaves the token out."""

    visitor: str
    method: str
    path: str
    body: Any = None
    content: tuple[str, bytes] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    csrf: bool = True
    in_order_of: str | None = None

    def __str__(self) -> str:
        return f"{self.visitor}: {self.method} {self.path}"


def get(visitor: str, path: str, **more: Any) -> Step:
    return Step(visitor, "GET", path, **more)


def log_in(visitor: str, username: str, password: str = "reed-Warbler-77", **more: Any) -> Step:
    body = {"username": username, "password": password, **more}
    return Step(visitor, "POST", "/api/auth/session/", body)


def heartbeat(visitor: str, **more: Any) -> Step:
    return Step(visitor, "PUT", "/api/auth/session/current/", {"active": False}, **more)


def start_export(visitor: str, facility: str = "{facilities:a}", **more: Any) -> Step:
    body = {"type": TASK, "facility": facility, **DATES}
    return Step(visitor, "POST", "/api/tasks/tasks/", body | more)


ROOT_PASSWORD = "black-Kite-42"
SESSION = "/api/auth/session/"
USERS = "/api/auth/facilityuser/"
VISITORS = {
    "admin": "service_admin",
    "coach": "service_coach",
    "class coach": "coach_algebra",
    "librarian": "librarian",
    "learner": "plato",
}

LOGINS = [
    log_in("nobody", "root_user", "wrong"),
    log_in("nobody", "who-is-this"),
    log_in("nobody", "admin_b", facility="{facilities:a}"),
    log_in("nobody", "has_left"),
    log_in("nobody", "root_user", ""),
    Step("nobody", "POST", SESSION, {"username": "root_user"}),
    Step("nobody", "POST", SESSION, {}),
    Step("nobody", "POST", SESSION, {"username": None, "password": "x"}),
    Step("nobody", "POST", SESSION, {"username": 5, "password": "x"}),
    Step("nobody", "POST", SESSION, [1]),
    log_in("nobody", "root_user", ROOT_PASSWORD, facility=NOBODY),
    log_in("nobody", "root_user", ROOT_PASSWORD, facility="not-an-id"),
    log_in("nobody", "root_user", ROOT_PASSWORD, facility=None),
    Step("nobody", "POST", SESSION, content=("application/json", b"{broken")),
    Step("nobody", "POST", SESSION, content=("text/plain", b"username=root_user")),
    Step("nobody", "POST", "/api/auth/session", {"username": "root_user"}),
    Step(
        "nobody",
        "POST",
        SESSION + "?prevalidate=true",
        {"username": "root_user", "password": ROOT_PASSWORD},
    ),
    Step(
        "form",
        "POST",
        SESSION,
        content=(
            "application/x-www-form-urlencoded",
            b"username=root_user&password=" + ROOT_PASSWORD.encode(),
        ),
    ),
    log_in("no password", "sans_code", "", facility="{facilities:b}"),
    log_in("any password", "learner03", "anything", facility="{facilities:b}"),
    log_in("no password staff", "admin_b", "", facility="{facilities:b}"),
    log_in("other case", "PLATO"),
    log_in("unicode", "王小明"),
    log_in("unicode case", "ösp"),
    log_in("padded", "  plato  "),
    log_in("elsewhere", "root_user", ROOT_PASSWORD, facility="{facilities:b}"),
    log_in("admin of b", "admin_b", facility="{facilities:b}"),
    log_in("root", "root_user", ROOT_PASSWORD),
    *(log_in(visitor, username) for visitor, username in VISITORS.items()),
]

SESSIONS = [
    heartbeat("nobody"),
    heartbeat("nobody", csrf=False),
    heartbeat("root"),
    Step("root", "PUT", "/api/auth/session/anything/", {"active": False}),
    heartbeat("root", csrf=False),
    heartbeat("root", headers={"X-CSRFToken": "a" * 64}, csrf=False),
    heartbeat("root", headers={"X-CSRFToken": "short"}, csrf=False),
    Step("root", "POST", SESSION, {"username": "plato", "password": "x"}, csrf=False),
    get("root", "/api/auth/session/current/"),
    get("nobody", SESSION),
    heartbeat("learner"),
    log_in("leaver", "plato"),
    Step("leaver", "DELETE", "/api/auth/session/current/", csrf=False),
    Step("leaver", "DELETE", "/api/auth/session/current/"),
    heartbeat("leaver"),
    get("leaver", USERS),
]

# A session that the server does not know is what an expired one looks like.
LOST = [
    get("lost 1", USERS),
    get("lost 2", USERS + "?page_size=500"),
    get("lost 3", USERS + "{people:a:plato}/"),
    get("lost 4", "/coach/api/classsummary/{collections:algebra}/"),
    heartbeat("lost 5"),
    get("lost 6", "/api/content/channel/"),
    get("lost 7", "/api/content/channel-thumbnail/{channels:png}/"),
    get("lost 8", "/api/auth/facility/"),
    get("lost 9", "/nothing/here/"),
    get("lost 10", "/api/public/info/"),
    start_export("lost 11"),
    get("lost 12", "/facility/api/downloadcsvfile/summary/{facilities:a}/"),
    Step("lost 13", "POST", USERS, {"username": "x", "full_name": "x", "password": "x"}),
    get("lost 14", "/api/public/v1/channels"),
    get("lost 15", "/api/public/v1/facility/"),
    get("lost 16", "/api/public/v2/channel/"),
    get("lost 17", "/api/tasks/tasks/0123/"),
]

USER_LISTS = [
    get("root", USERS, in_order_of="username"),
    get("root", USERS + "?page_size=1000", in_order_of="username"),
    get("root", USERS + "?page_size=9&page=1", in_order_of="username"),
    get("root", USERS + "?page_size=2&page=1", in_order_of="username"),
    get("root", USERS + "?page_size=100000", in_order_of="username"),
    get("admin", USERS + "?page_size=50&page=2", in_order_of="username"),
    *(
        get("root", USERS + query)
        for query in (
            "?page_size=5&page=99",
            "?page_size=5&page=0",
            "?page_size=5&page=-1",
            "?page_size=5&page=last",
            "?page_size=5&page=",
            "?page_size=0",
            "?page_size=-1",
            "?page_size=abc",
            "?page=3",
            "?ordering=nonsense",
            "?ordering=roles",
            "?ordering=id,username",
            "?ordering=",
            "?user_type=learner",
            "?user_type=coach",
            "?user_type=admin",
            "?user_type=superuser",
            "?user_type=classroom%20assignable%20coach",
            "?user_type=nonsense",
            "?user_type__in=admin,superuser",
            "?user_type__in=nonsense",
            "?exclude_user_type=learner",
            "?exclude_user_type=coach",
            "?exclude_user_type=superuser",
            "?member_of={facilities:b}",
            "?member_of={collections:algebra}",
            "?member_of={collections:quick}&page_size=100",
            "?member_of=nonsense",
            f"?member_of={NOBODY}",
            "?exclude_member_of={collections:algebra}",
            "?exclude_coach_for={collections:algebra}",
            "?related_to__in={collections:algebra},{collections:b1}",
            "?related_to__in=nonsense",
            "?by_ids={people:a:plato},{people:b:learner03}",
            "?by_ids={people:a:has_left}",
            f"?by_ids={NOBODY}",
            "?by_ids=",
            "?by_ids=abc",
            "?search=plato",
            "?search=MARY",
            "?search=mary,jones",
            "?search=ösp",
            "?search=ÖSP",
            "?search=<i>",
            "?search=%25",
            "?search=K-0001",
            "?facility={facilities:b}&page_size=3",
            "?username=plato&page_size=3",
            "?date_joined__gte=2025-02-03T09:00:00Z",
            "?date_joined__lte=2025-02-03T08:03:00Z",
            "?date_joined__gte=nonsense",
            "?member_of=nonsense&user_type=nonsense",
            "?by_ids=abc&member_of=nonsense",
        )
    ),
    *(
        get("admin", f"{USERS}?ordering={sign}{name}&page_size=20", in_order_of=name)
        for name in ("full_name", "date_joined")
        for sign in ("", "-")
    ),
    get("admin", USERS + "?ordering=username&page_size=30", in_order_of="username"),
    get("admin", USERS + "?ordering=-username&page_size=30", in_order_of="username"),
    get("admin", USERS + "?ordering=id"),
    get("root", USERS + "{people:a:plato}/"),
    get("root", USERS + "{people:a:root_user}/"),
    get("root", USERS + "{people:a:has_left}/"),
    get("root", USERS + f"{NOBODY}/"),
    get("root", USERS + "nonsense/"),
    get("admin", USERS + "{people:b:learner03}/"),
    get("learner", USERS + "{people:a:coach_algebra}/"),
    get("root", "/api/auth/deletedfacilityuser/"),
    get("admin", "/api/auth/deletedfacilityuser/?page_size=5"),
    get("learner", "/api/auth/deletedfacilityuser/"),
]

CLASS_LISTS = [
    get("root", path)
    for path in (
        "/api/auth/classroom/",
        "/api/auth/classroom/?page_size=1",
        "/api/auth/classroom/?parent={facilities:b}",
        "/api/auth/classroom/?parent=nonsense",
        "/api/auth/classroom/?parent={collections:algebra}",
        "/api/auth/classroom/{collections:algebra}/",
        "/api/auth/classroom/{collections:quick}/",
        "/api/auth/classroom/nonsense/",
        "/api/auth/learnergroup/",
        "/api/auth/learnergroup/?parent={collections:algebra}",
        "/api/auth/learnergroup/?parent=nonsense",
        "/api/auth/membership/",
        "/api/auth/membership/?page_size=2",
        "/api/auth/membership/?collection={collections:algebra}",
        "/api/auth/membership/?collection={collections:picked}",
        "/api/auth/membership/?user={people:a:plato}",
        "/api/auth/membership/?user={people:a:has_left}",
        "/api/auth/membership/?user_ids={people:a:plato},{people:b:learner03}",
        "/api/auth/membership/?user_ids=nonsense",
        "/api/auth/membership/?by_ids={memberships:a:plato>algebra}",
        "/api/auth/membership/?collection=nonsense&user=nonsense",
        "/api/auth/membership/{memberships:a:plato>algebra}/",
        f"/api/auth/membership/{NOBODY}/",
        "/api/auth/role/",
        "/api/auth/role/?user={people:a:coach_algebra}",
        "/api/auth/role/?collection={facilities:a}",
        "/api/auth/role/?kind=coach",
        "/api/auth/role/?kind=nonsense",
        "/api/auth/role/?user_ids={people:a:coach_algebra}",
        "/api/auth/facility/",
        "/api/auth/facility/{facilities:b}/",
        "/api/auth/facility/nonsense/",
        "/api/public/v1/facility/",
        "/api/lessons/lesson/",
        "/api/lessons/lesson/?collection={collections:nature}",
        "/api/exams/exam/",
        "/api/exams/exam/?collection={collections:empty}",
        "/api/courses/coursesession/",
        "/api/courses/coursesession/?collection={collections:nature}",
        "/api/courses/coursesession/?collection=nonsense",
        "/api/courses/coursesession/{course_sessions:session_quick}/",
        "/api/courses/coursesession/nonsense/",
        "/api/courses/coursesession/{course_sessions:session_farming}/last_unit_test/",
        "/api/courses/coursesession/{course_sessions:session_quick}/last_unit_test/",
        "/coach/api/classsummary/{collections:algebra}/",
        "/coach/api/classsummary/{collections:nature}/",
        "/coach/api/classsummary/{collections:empty}/",
        "/coach/api/classsummary/{collections:b1}/",
        f"/coach/api/classsummary/{NOBODY}/",
        "/coach/api/classsummary/nonsense/",
        "/nothing/here",
        "/nothing/here/",
        "/api/nothing/",
        "/api/public/info/",
        "/api/public/info/?v=3",
        "/api/public/info",
        "/api/auth/facilityuser?page_size=3",
    )
]

MAY = [
    get(visitor, path)
    for visitor in ("nobody", *VISITORS, "admin of b")
    for path in (
        USERS,
        "/api/auth/classroom/",
        "/api/auth/learnergroup/",
        "/api/auth/membership/",
        "/api/auth/role/",
        "/api/auth/facility/",
        "/api/lessons/lesson/",
        "/api/exams/exam/",
        "/api/courses/coursesession/",
        "/coach/api/classsummary/{collections:algebra}/",
        "/coach/api/classsummary/{collections:nature}/",
    )
] + [
    # Not by the one who may: what that gives depends on whether there was an export before.
    get(visitor, "/facility/api/downloadcsvfile/summary/{facilities:b}/")
    for visitor in ("nobody", *VISITORS)
]

WRITES = [
    Step(visitor, method, path, body)
    for visitor in ("nobody", "learner", "class coach", "coach", "librarian")
    for method, path, body in (
        ("POST", USERS, {"username": "new", "full_name": "New", "password": "x"}),
        ("POST", "/api/auth/classroom/", {"name": "New", "parent": "{facilities:a}"}),
    )
] + [
    Step("root", "POST", USERS, {"username": "new"}, csrf=False),
    Step("root", "DELETE", "/api/public/info/"),
    Step("nobody", "POST", "/api/content/channel/", {}),
]

CONTENT = [
    get("nobody", path)
    for path in (
        "/api/content/channel/",
        "/api/content/channel/?available=true",
        "/api/content/channel/?available=false",
        "/api/content/channel/?available=nonsense",
        "/api/content/channel/?contains_exercise=true",
        "/api/content/channel/?contains_quiz=true",
        "/api/content/channel/?ids={channels:png}",
        "/api/content/channel/{channels:png}/",
        "/api/content/channel/{channels:none}/",
        "/api/content/channel/nonsense/",
        "/api/public/v2/channel/",
        "/api/public/v2/channel/?available=true",
        "/api/public/v2/channel/{channels:png}/",
        "/api/public/v2/channel/{channels:broken}/",
        "/api/public/v2/channel/{channels:text_svg}/",
        "/api/public/v2/channel/{channels:large}/",
        "/api/public/v2/channel/{channels:webp}/",
        "/api/public/v1/channels",
        "/api/public/v1/channels/",
        "/api/public/v1/channels?keyword=ALGEBRA",
        "/api/public/v1/channels?language=es",
        "/api/public/v3/channels",
        "/api/content/channel-thumbnail/nonsense/",
        *(
            f"/api/content/channel-thumbnail/{{channels:{key}}}/"
            for key in (
                "png jpeg svg large webp none broken text_svg absent course".split()  # noqa: SIM905 - readable
            )
        ),
    )
] + [
    get(visitor, path, headers={"If-None-Match": tag})
    for visitor, path, tag in (
        ("nobody", "/api/content/channel/", "{etag}"),
        ("root", "/api/content/channel/{channels:png}/", "{etag}"),
        ("nobody", "/api/public/v2/channel/", "{etag}"),
        ("nobody", "/api/content/channel/", '"1.0"'),
        ("nobody", "/api/content/channel/", 'W/"1.0", {etag}'),
    )
]

DOWNLOAD = "/facility/api/downloadcsvfile/"
REFUSED_TASKS = [
    start_export("root", "nonsense"),
    start_export("root", NOBODY),
    start_export("root", type="nonsense"),
    start_export("root", start_date=None),
    Step("root", "POST", "/api/tasks/tasks/", {"type": TASK, "facility": "{facilities:a}"}),
    Step("root", "POST", "/api/tasks/tasks/", {}),
    Step("root", "POST", "/api/tasks/tasks/", {"type": TASK}, csrf=False),
    start_export("nobody"),
    *(start_export(visitor) for visitor in VISITORS if visitor != "admin"),
    start_export("admin", "{facilities:b}"),
    get("root", "/api/tasks/tasks/nonsense/"),
    get("root", DOWNLOAD + "nonsense/{facilities:a}/"),
    get("root", DOWNLOAD + f"summary/{NOBODY}/"),
    get("root", DOWNLOAD + "summary/nonsense/"),
    get("admin of b", DOWNLOAD + "summary/{facilities:a}/"),
]


# ---- what may differ ---------------------------------------------------------------------

# Headers that are compared; the others are the web server's own (Server, Date, Connection) or
# follow from the body (Content-Length).
HEADERS = (
    "content-type",
    "vary",
    "allow",
    "cache-control",
    "location",
    "content-disposition",
    "content-language",
    "content-encoding",
    "retry-after",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "access-control-allow-origin",
)
# Fields that tell the time, or how far a task happens to be, or name the installation.
VARYING = ("server_time", "scheduled_datetime", "instance_id", "percentage")
_HEX = re.compile(r"\b[0-9a-f]{32}\b")
_FILE_ID = re.compile(r"_[0-9a-f]{4}_content")
SHARED_IDS = {
    identifier
    for channel in build_population().channels
    for node in channel.nodes
    for identifier in (channel.id, node.id, node.content_id)
}


def comparable(server: Server, value: Any, key: str = "") -> Any:
    """Turn an answer's body into what must be equal on both servers.

    Ids that each server makes up become the names that `lab.json` gives them, or "<made up>".
    Lists whose order Kolibri leaves open (everything but pages of users, compared apart) are
    sorted.
    """
    if key in VARYING:
        return type(value).__name__ if key != "percentage" else "number"
    if key == "extra_metadata" and isinstance(value, dict):
        return {name: comparable(server, one) for name, one in value.items()}
    if isinstance(value, dict):
        return {name: comparable(server, one, name) for name, one in value.items()}
    if isinstance(value, list):
        return sorted((comparable(server, one) for one in value), key=_sort_key)
    if isinstance(value, str):
        return comparable_text(server, value)
    return value


def _sort_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def comparable_text(server: Server, text: str) -> str:
    def name_of(found: re.Match[str]) -> str:
        identifier = found.group()
        if identifier in SHARED_IDS or identifier == NOBODY:
            return identifier
        return server.names.get(identifier, "<made up>")

    return _FILE_ID.sub("_<id>_content", _HEX.sub(name_of, text))


def comparable_body(server: Server, reply: httpx.Response) -> Any:
    kind = reply.headers.get("content-type", "").split(";")[0]
    if kind == "application/json":
        return comparable(server, reply.json())
    if kind == "text/csv":
        rows = list(csv.reader(io.StringIO(reply.content.decode("utf-8"))))
        body = [[comparable_text(server, cell) for cell in row] for row in rows]
        return {"header": body[0], "rows": sorted(body[1:])}
    if kind == "text/html" and reply.content:
        # The text of Django's own error pages does not matter to any client; which page does.
        return re.findall(r"<title>(.*?)</title>", reply.text)
    return reply.content


def comparable_cookies(reply: httpx.Response) -> list[dict[str, str]]:
    """Return the cookies set, with their attributes but without value and date."""
    found = []
    for line in reply.headers.get_list("set-cookie"):
        for name, morsel in SimpleCookie(line).items():
            attributes = {key: str(value) for key, value in morsel.items() if value}
            attributes.pop("expires", None)
            found.append({"name": name, "empty": str(not morsel.value), **attributes})
    return sorted(found, key=_sort_key)


def comparable_reply(server: Server, reply: httpx.Response) -> dict[str, Any]:
    headers = {
        name: comparable_text(server, reply.headers[name])
        for name in HEADERS
        if name in reply.headers
    }
    if "allow" in headers:  # some of Django's views keep their methods in a set
        headers["allow"] = " ".join(sorted(headers["allow"].split(", ")))
    return {
        "status": reply.status_code,
        "headers": headers,
        "has etag": "etag" in reply.headers,
        "cookies": comparable_cookies(reply),
        "body": comparable_body(server, reply),
    }


# ---- comparing ---------------------------------------------------------------------------


async def send(server: Server, step: Step) -> httpx.Response:
    jar = server.jar(step.visitor)
    headers = {name: server.fill(value) for name, value in step.headers.items()}
    if step.visitor.startswith("lost"):
        jar.cookies.set("kolibri", "0123456789abcdefghijklmnopqrstuv", domain="127.0.0.1")
    token = jar.cookies.get("kolibri_csrftoken")
    if token and step.csrf and step.method != "GET":
        headers["X-CSRFToken"] = token
    content = None
    if step.body is not None:
        headers["Content-Type"] = "application/json"
        content = server.fill(json.dumps(step.body)).encode()
    elif step.content is not None:
        headers["Content-Type"], content = step.content
    path = server.fill(step.path)
    reply = await jar.request(step.method, path, content=content, headers=headers)
    server.etag = reply.headers.get("etag", server.etag)
    return reply


def differences(path: str, real: Any, simulated: Any) -> list[str]:
    """Return one line for each place in which two comparable values differ."""
    if isinstance(real, dict) and isinstance(simulated, dict):
        return [
            line
            for key in sorted(real.keys() | simulated.keys())
            for line in differences(
                f"{path}.{key}", real.get(key, "<absent>"), simulated.get(key, "<absent>")
            )
        ]
    if isinstance(real, list) and isinstance(simulated, list) and len(real) == len(simulated):
        return [
            line
            for index, (one, other) in enumerate(zip(real, simulated, strict=True))
            for line in differences(f"{path}[{index}]", one, other)
        ]
    if real == simulated and type(real) is type(simulated):
        return []
    return [f"{path}: real {str(real)[:300]!r}, simulated {str(simulated)[:300]!r}"]


async def compare(servers: tuple[Server, Server], steps: list[Step]) -> list[str]:
    """Send each request to both servers and return what differs."""
    found = []
    for step in steps:
        real, simulated = [await send(server, step) for server in servers]
        pair = [
            comparable_reply(server, reply)
            for server, reply in zip(servers, (real, simulated), strict=True)
        ]
        lines = differences("", *pair)
        if step.in_order_of is not None:
            lines += differences(
                f" order of {step.in_order_of}",
                _column(real, step.in_order_of),
                _column(simulated, step.in_order_of),
            )
        found += [f"{step}{line}" for line in lines]
    return found


def report(steps: list[Step], found: list[str]) -> str:
    return "\n".join([f"{len(found)} differences over {len(steps)} requests", *found])


def _column(reply: httpx.Response, name: str) -> list[str]:
    body = reply.json()
    rows = body["results"] if isinstance(body, dict) else body
    return [str(row[name]).lower() for row in rows]


async def export(server: Server, visitor: str, facility: str, **dates: str) -> httpx.Response:
    """Start an export, wait for it, and return the last answer about it."""
    started = await send(server, start_export(visitor, facility, **dates))
    server.job_id = started.json()["id"]
    while True:
        reply = await send(server, get(visitor, "/api/tasks/tasks/{job}/"))
        if reply.json()["status"] not in {"QUEUED", "RUNNING"}:
            return reply


async def crawl(server: Server, query: str) -> list[str]:
    """Return the user names of all pages, in the order in which they came."""
    names: list[str] = []
    page = pages = 1
    while page <= pages:
        reply = await send(server, get("root", f"{USERS}?{query}&page={page}"))
        body = reply.json()
        pages = body["total_pages"]
        names += [f"{row['username']} in {row['facility']}" for row in body["results"]]
        page += 1
    return names


# ---- the claims --------------------------------------------------------------------------


async def test_every_request_is_answered_alike(
    real_lab: tuple[str, dict[str, Any]],
) -> None:
    steps = LOGINS + SESSIONS + LOST + USER_LISTS + CLASS_LISTS + MAY + WRITES + CONTENT
    steps += REFUSED_TASKS
    async with both_servers(real_lab) as servers:
        found = await compare(servers, steps)

    assert len(steps) == 351
    assert not found, report(steps, found)


async def test_exports_are_alike(real_lab: tuple[str, dict[str, Any]]) -> None:
    found: list[str] = []
    async with both_servers(real_lab) as servers:
        await compare(servers, LOGINS)
        for visitor, facility in (
            ("admin", "{facilities:a}"),
            ("admin of b", "{facilities:b}"),
            ("root", "{facilities:b}"),
        ):
            pair = [
                comparable_reply(server, await export(server, visitor, facility))
                for server in servers
            ]
            found += differences(f"{visitor} exports {facility}", *pair)
            steps = [
                get(other, DOWNLOAD + f"summary/{facility}/")
                for other in (visitor, "nobody", "learner", "coach", "librarian")
            ]
            steps += [
                get("coach", "/api/tasks/tasks/{job}/"),
                get("nobody", "/api/tasks/tasks/{job}/"),
            ]
            found += await compare(servers, steps)
        few_days = {"start_date": "2025-03-10T00:00:00", "end_date": "2025-03-12T00:00:00"}
        for server in servers:
            await export(server, "admin", "{facilities:a}", **few_days)
        found += await compare(servers, [get("admin", DOWNLOAD + "summary/{facilities:a}/")])

    assert not found, report([], found)


@pytest.mark.parametrize(
    "query", ["page_size=7", "page_size=25&ordering=id", "page_size=10&ordering=-full_name"]
)
async def test_a_crawl_meets_everybody_once(
    real_lab: tuple[str, dict[str, Any]], query: str
) -> None:
    async with both_servers(real_lab) as servers:
        await compare(servers, [log_in("root", "root_user", ROOT_PASSWORD)])
        real, simulated = [
            sorted(comparable_text(server, name) for name in await crawl(server, query))
            for server in servers
        ]

    assert len(real) == len(set(real)) == 77
    assert simulated == real


async def test_both_hold_the_same_number_of_everything(
    real_lab: tuple[str, dict[str, Any]],
) -> None:
    async with both_servers(real_lab) as (real, simulated):
        assert real.lab["counts"] == simulated.lab["counts"]
