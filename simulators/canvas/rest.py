"""Canvas's REST resources: what each one answers, to whom, and how its list is paged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from simulators.canvas.population import (
    ACCOUNT_ROLE,
    SMALL_START,
    Assignment,
    Course,
    Enrollment,
    Login,
    PageView,
    Role,
    Section,
    Submission,
    User,
)
from simulators.canvas.wire import (
    ENROLLED,
    Answer,
    Call,
    Refusal,
    bookmarked,
    errors,
    instant,
    not_found,
    numbered,
    page_size,
)

Handler = Callable[[Call], Answer]
_SHORT = {
    "student": "StudentEnrollment",
    "teacher": "TeacherEnrollment",
    "ta": "TaEnrollment",
    "observer": "ObserverEnrollment",
    "designer": "DesignerEnrollment",
    "student_view": "StudentViewEnrollment",
}
_ENDINGS = {
    "conclude": "completed",
    "delete": "deleted",
    "inactivate": "inactive",
    "deactivate": "inactive",
}


def route_of(method: str, path: str) -> tuple[str, dict[str, str], Handler] | None:
    """Find the resource of a raw path: its pattern, its parameters decoded, its handler."""
    parts = path.removeprefix("/api/v1/").rstrip("/").split("/")
    for pattern, handler in _ROUTES_BY_SHAPE.get((method, len(parts)), ()):
        params = _match(pattern.split("/"), parts)
        if params is not None:
            return f"/api/v1/{pattern}", params, handler
    return None


def _match(pattern: Sequence[str], parts: Sequence[str]) -> dict[str, str] | None:
    params = dict[str, str]()
    for wanted, part in zip(pattern, parts, strict=True):
        if wanted.startswith(":"):
            params[wanted[1:]] = unquote(part)
        elif wanted != part:
            return None
    return params


# ---- users ---------------------------------------------------------------------------------


def _accounts(call: Call) -> Answer:
    """List the accounts that the caller may administer."""
    accounts = [call.server.population.account_id] if call.is_admin else []
    return numbered(call, accounts, _account_json)


def _account(call: Call) -> Answer:
    return Answer(body=_account_json(call.account()))


def _account_json(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "name": "Simulated",
        "workflow_state": "active",
        "parent_account_id": None,
        "root_account_id": None,
        "default_time_zone": "America/Denver",
    }


def _account_users(call: Call) -> Answer:
    call.account()
    call.require_admin()
    users = list(call.server.population.users.values())
    if not call.flag("include_deleted_users"):
        users = [user for user in users if user.workflow_state != "deleted"]
    users = _searched(call, users, lambda u: (u.name, u.sortable_name, u.login_id or ""))
    kind = call.text("enrollment_type")
    if kind is not None:
        users = [user for user in users if _has_enrollment(call, user, _SHORT.get(kind, kind))]
    sort = call.text("sort")
    descending = call.text("order") == "desc"
    if sort == "id" and not descending:
        return bookmarked(call, users, lambda u: user_json(call, u), key=lambda u: u.id)
    keys: dict[str, Callable[[User], Any]] = {
        "email": lambda u: u.email or "",
        "sis_id": lambda u: u.sis_user_id or "",
        "integration_id": lambda u: u.integration_id or "",
        "last_login": lambda u: u.last_login or "",
        "id": lambda u: u.id,
    }
    # They come by id, and so stay those that are otherwise equal.
    by_name: Callable[[User], Any] = lambda u: u.sortable_name.casefold()  # noqa: E731
    users.sort(key=keys.get(sort or "", by_name), reverse=descending)
    if sort == "id":
        return bookmarked(call, users, lambda u: user_json(call, u), key=lambda u: -u.id)
    pages = call.server.profile.sorted_users_pages
    if pages is not None:
        users = users[: pages * page_size(call)]
    return numbered(call, users, lambda u: user_json(call, u), knows_last=False)


def _has_enrollment(call: Call, user: User, kind: str) -> bool:
    rows = call.server.population.enrollments_by_user[user.id]
    return any(row.type == kind and row.state != "deleted" for row in rows)


def _searched(call: Call, rows: list[Any], texts: Callable[[Any], tuple[str, ...]]) -> list[Any]:
    """Keep the rows that hold the search term; a number that is an id finds just that row."""
    term = call.text("search_term")
    if term is None:
        return rows
    shortest = call.server.profile.search_minimum
    if term.isdigit() and (same := [row for row in rows if row.id == call.number(term)]):
        return same
    if len(term) < shortest:
        message = f"{shortest} or more characters is required"
        problem = {"field": "search_term", "code": "invalid", "message": message}
        raise Refusal(400, {"errors": [problem]})
    wanted = term.casefold()
    return [row for row in rows if any(wanted in text.casefold() for text in texts(row))]


def _user(call: Call) -> Answer:
    gone = _deleted_user(call)
    if gone is not None:
        more = {"workflow_state": "deleted", "merged_into_user_id": gone.merged_into_id}
        return Answer(body=user_json(call, gone) | more)
    user = _visible_user(call)
    more = {"effective_locale": "en"} if user is call.caller else {}
    return Answer(body=user_json(call, user) | more)


def _deleted_user(call: Call) -> User | None:
    """Find a deleted user, where an administrator is still told of them."""
    if not call.is_admin or not call.server.profile.shows_deleted_users:
        return None
    user = call.server.population.users.get(call.number(call.params["user_id"]) or 0)
    return user if user is not None and user.workflow_state == "deleted" else None


def _profile(call: Call) -> Answer:
    user = _visible_user(call)
    body = user_json(call, user) | {"primary_email": user.email, "login_id": user.login_id}
    return Answer(body=body | {"time_zone": "Etc/UTC", "bio": None})


def _visible_user(call: Call) -> User:
    user = call.user()
    if not call.is_admin and user is not call.caller:
        raise call.denied()
    return user


def user_json(call: Call, user: User, course: Course | None = None) -> dict[str, Any]:
    """Return a user as the caller may see them; what they may not see is a missing key."""
    is_staff = call.is_admin or (course is not None and call.is_staff(course))
    include = call.texts("include")
    body: dict[str, Any] = {
        "id": user.id,
        "name": user.name,
        "created_at": user.created_at,
        "sortable_name": user.sortable_name,
        "short_name": user.short_name,
    }
    if call.is_admin:
        body["sis_user_id"] = user.sis_user_id
        body["integration_id"] = user.integration_id
    if is_staff and user.login_id is not None:
        body["login_id"] = user.login_id
    if "email" in include and (is_staff or user is call.caller):
        body["email"] = user.email
    if "avatar_url" in include:
        body["avatar_url"] = user.avatar_url
    if "last_login" in include and call.is_admin:
        body["last_login"] = user.last_login
    if "uuid" in include:
        body["uuid"] = user.uuid
    if "time_zone" in include:
        body["time_zone"] = "Etc/UTC"
    return body


def _user_logins(call: Call) -> Answer:
    user = _visible_user(call)
    return numbered(call, _logins(user), lambda login: _login_json(call, user, login))


def _logins(user: User) -> list[Login]:
    """Return all logins of a user, the one that Canvas shows first."""
    if user.login_id is None:
        return list(user.more_logins)
    first = Login(
        id=user.id,
        unique_id=user.login_id,
        sis_user_id=user.sis_user_id,
        authentication_provider_id=user.authentication_provider_id,
    )
    return [first, *user.more_logins]


def _login_json(call: Call, user: User, login: Login) -> dict[str, Any]:
    return {
        "id": login.id,
        "user_id": user.id,
        "account_id": call.server.population.account_id,
        "unique_id": login.unique_id,
        "sis_user_id": login.sis_user_id,
        "authentication_provider_id": login.authentication_provider_id,
        "workflow_state": "active",
    }


def _create_user(call: Call) -> Answer:
    call.account()
    call.require_admin()
    login_id = call.text("pseudonym[unique_id]")
    _require_free_login(call, login_id)
    people = call.server.population
    name = call.text("user[name]") or login_id or ""
    user = people.add_user(
        name,
        login_id,
        email=call.text("communication_channel[address]"),
        sis_user_id=call.text("pseudonym[sis_user_id]"),
        integration_id=call.text("pseudonym[integration_id]"),
        created_at=instant(call.server.clock()),
        authentication_provider_id=call.number(
            call.text("pseudonym[authentication_provider_id]") or ""
        ),
    )
    user.short_name = call.text("user[short_name]") or user.short_name
    user.sortable_name = call.text("user[sortable_name]") or user.sortable_name
    return Answer(body=user_json(call, user))


def _create_login(call: Call) -> Answer:
    """Give a user one more login; the first one is what Canvas then shows as `login_id`."""
    call.account()
    call.require_admin()
    user = call.user(call.text("user[id]") or "")
    login_id = call.text("login[unique_id]") or ""
    _require_free_login(call, login_id)
    sis_user_id = call.text("login[sis_user_id]")
    provider_id = call.number(call.text("login[authentication_provider_id]") or "")
    if user.login_id is None:
        user.login_id, user.sis_user_id = login_id, sis_user_id or user.sis_user_id
        user.authentication_provider_id = provider_id
    else:
        number = len(call.server.population.users) + 1_000_000 + len(user.more_logins)
        user.more_logins.append(
            Login(
                id=call.server.population.number(number),
                unique_id=login_id,
                sis_user_id=sis_user_id,
                authentication_provider_id=provider_id,
            )
        )
    return Answer(body=_login_json(call, user, _logins(user)[-1]))


def _require_free_login(call: Call, login_id: str | None) -> None:
    kind = None
    if not login_id:
        kind, message = "blank", "Login is required"
    elif call.server.population.user_by_login(login_id) is not None:
        kind, message = "taken", "ID already in use for this account and authentication provider"
    if kind is not None:
        problem = {"attribute": "unique_id", "type": kind, "message": message}
        nested = {"user": {}, "pseudonym": {"unique_id": [problem]}, "observee": {}}
        raise Refusal(400, {"errors": nested})


# ---- roles ---------------------------------------------------------------------------------


def _account_roles(call: Call) -> Answer:
    """List the active roles; "inactive" as a state shows those that are no longer given."""
    account = call.account()
    call.require_admin()
    states = set(call.texts("state")) or {"active"}
    shown = states | ({"built_in"} if "active" in states else set())
    roles = [
        role
        for role in call.server.population.roles.values()
        if role.workflow_state in shown and role.name != ACCOUNT_ROLE
    ]
    return numbered(call, roles, lambda role: _role_json(role, account))


def _role_json(role: Role, account: int) -> dict[str, Any]:
    is_account_role = role.base_type == ACCOUNT_ROLE
    permission = {"enabled": is_account_role, "locked": False, "readonly": False, "explicit": False}
    return {
        "id": role.id,
        "role": role.name,
        "label": role.label,
        "base_role_type": role.base_type,
        "is_account_role": is_account_role,
        "account": _account_json(account),
        "workflow_state": role.workflow_state,
        "created_at": SMALL_START,
        "last_updated_at": SMALL_START,
        "permissions": {"read_roster": permission | {"enabled": True}, "manage_sis": permission},
    }


# ---- courses -------------------------------------------------------------------------------


def _account_courses(call: Call) -> Answer:
    call.account()
    call.require_admin()
    people = call.server.population
    states = set(call.texts("state"))
    courses = list(people.courses.values())
    if states:
        courses = [c for c in courses if c.workflow_state in states or "all" in states]
    else:
        courses = [c for c in courses if c.workflow_state != "deleted"]
    if call.flag("published"):
        courses = [c for c in courses if c.workflow_state in {"available", "completed"}]
    if call.flag("with_enrollments"):
        courses = [c for c in courses if people.enrollments_by_course[c.id]]
    courses = _searched(call, courses, lambda c: (c.name, c.course_code))
    teachers = {call.number(each) for each in call.texts("by_teachers")}
    if teachers:
        courses = [c for c in courses if teachers & set(_teacher_ids(call, c))]
    term = call.text("enrollment_term_id")
    if term is not None and call.number(term) != people.term.id:
        courses = []
    if call.text("sort") == "course_name":
        courses.sort(key=lambda c: (c.name.casefold(), c.id))
    if call.text("sort") == "sis_course_id":
        courses.sort(key=lambda c: (c.sis_course_id or "", c.id))
    if call.text("order") == "desc":
        courses.reverse()
    return numbered(call, courses, lambda c: _account_course_json(call, c))


def _account_course_json(call: Call, course: Course) -> dict[str, Any]:
    """Return a course as the list of an account has it: sections cannot be included there."""
    body = course_json(call, course, call.caller)
    body.pop("sections", None)
    return body


def _own_courses(call: Call) -> Answer:
    return _list_courses(call, call.caller)


def _user_courses(call: Call) -> Answer:
    return _list_courses(call, _visible_user(call))


def _list_courses(call: Call, user: User) -> Answer:
    people = call.server.population
    seen = dict[int, Course]()
    for row in people.enrollments_by_user[user.id]:
        course = people.courses[row.course_id]
        if row.state in ENROLLED | {"completed"} and course.workflow_state != "deleted":
            seen[course.id] = course
    return numbered(call, list(seen.values()), lambda c: course_json(call, c, user))


def _course(call: Call) -> Answer:
    return Answer(body=course_json(call, call.course(), call.caller))


def course_json(call: Call, course: Course, subject: User) -> dict[str, Any]:
    """Return a course as the caller may see it, with the progress of `subject` if included."""
    if call.is_restricted(course):
        return {"id": course.id, "access_restricted_by_date": True}
    include, people = call.texts("include"), call.server.population
    nickname = course.nicknames.get(call.caller.id)
    body: dict[str, Any] = {
        "id": course.id,
        "name": nickname or course.name,
        "account_id": people.account_id,
        "root_account_id": people.account_id,
        "uuid": course.uuid,
        "start_at": course.start_at,
        "end_at": course.end_at,
        "created_at": course.created_at,
        "course_code": course.course_code,
        "enrollment_term_id": people.term.id,
        "is_public": False,
        "workflow_state": course.workflow_state,
        "time_zone": "America/Denver",
        "default_view": "modules",
        "enrollments": [
            {"type": row.type.removesuffix("Enrollment").lower(), "enrollment_state": row.state}
            for row in people.enrollments_by_user[subject.id]
            if row.course_id == course.id and row.state != "deleted"
        ],
    }
    if nickname is not None:
        body["original_name"] = course.name
    if call.is_admin:
        body["sis_course_id"] = course.sis_course_id
    rows = people.enrollments_by_course[course.id]
    if "public_description" in include:
        body["public_description"] = course.public_description
    if "course_image" in include:
        body["image_download_url"] = image_url(call, course)
    if "term" in include:
        term = people.term
        body["term"] = {"id": term.id, "name": term.name, "workflow_state": "active"}
        body["term"] |= {"start_at": term.start_at, "end_at": term.end_at}
    if "total_students" in include:
        learners = {r.user_id for r in rows if r.type == "StudentEnrollment"}
        body["total_students"] = len(learners)
    if "teachers" in include:
        body |= _teachers(call, course)
    if "syllabus_body" in include:
        body["syllabus_body"] = None
    if "storage_quota_used_mb" in include and call.is_admin:
        body["storage_quota_used_mb"] = 0
    if "account_name" in include:
        body["account_name"] = "Simulated"
    if "concluded" in include:
        body["concluded"] = course.workflow_state == "completed"
    if "course_progress" in include:
        body["course_progress"] = _progress_json(call, course, subject)
    if "sections" in include:
        mine = {r.section_id for r in rows if r.user_id == subject.id}
        sections = people.sections_by_course[course.id]
        body["sections"] = [{"id": s.id, "name": s.name} for s in sections if s.id in mine]
    return body


def image_url(call: Call, course: Course) -> str | None:
    """Return where a course's image is: on the second origin, or wherever a teacher typed."""
    if course.image != "stored":
        return course.image
    path, ends = f"/files/{course.id}/course.png", ""
    lifetime = call.server.profile.image_url_seconds
    if lifetime is not None:
        ends = str(int(call.server.clock() + lifetime))
    signed = call.server.sign(f"{path}{ends}")
    return f"{call.server.images_url}{path}?expires={ends}&verifier={signed}"


def _teacher_ids(call: Call, course: Course) -> list[int]:
    rows = call.server.population.enrollments_by_course[course.id]
    found = [r.user_id for r in rows if r.type == "TeacherEnrollment" and r.state == "active"]
    return list(dict.fromkeys(found))


def _teachers(call: Call, course: Course) -> dict[str, Any]:
    users, ids = call.server.population.users, _teacher_ids(call, course)
    limit = call.text("teacher_limit")
    if limit is not None and limit.isdecimal() and len(ids) > int(limit):
        return {"teacher_count": len(ids)}
    return {"teachers": [{"id": i, "display_name": users[i].short_name} for i in ids if i in users]}


def _progress_json(call: Call, course: Course, user: User) -> dict[str, Any]:
    rows = call.server.population.enrollments_by_user[user.id]
    mine = [r for r in rows if r.course_id == course.id and r.type == "StudentEnrollment"]
    if course.modules == 0 or not mine:
        reason = "progress available because this course is not module based"
        if course.modules:
            reason = "progress available because this user is not a student in this course"
        return {"error": {"message": f"no {reason}"}}
    best = max(mine, key=lambda row: row.completed_requirements)
    done = best.completed_requirements
    following = f"{call.origin}/courses/{course.id}/modules" if done < course.modules else None
    return {
        "requirement_count": course.modules,
        "requirement_completed_count": done,
        "next_requirement_url": following,
        "completed_at": best.completed_at,
    }


def _user_progress(call: Call) -> Answer:
    _require_resource(is_there=call.server.profile.progress_resources)
    course, user = call.course(), call.user()
    if user is not call.caller and not call.is_staff(course):
        raise call.denied()
    return Answer(body=_progress_json(call, course, user))


def _require_resource(*, is_there: bool) -> None:
    """Refuse as an installation does that has no such resource."""
    if not is_there:
        raise not_found()


def _bulk_progress(call: Call) -> Answer:
    _require_resource(is_there=call.server.profile.progress_resources)
    course = call.course()
    if not call.is_staff(course):
        raise call.denied()
    users = call.server.population.users
    students = {r.user_id: users[r.user_id] for r in _students(call, course)}
    return numbered(
        call,
        sorted(students.values(), key=lambda user: user.id),
        lambda u: {
            "id": u.id,
            "display_name": u.short_name,
            "progress": _progress_json(call, course, u),
        },
    )


def _students(call: Call, course: Course) -> list[Enrollment]:
    rows = call.server.population.enrollments_by_course[course.id]
    return [r for r in rows if r.type == "StudentEnrollment" and r.state in ENROLLED]


def _course_users(call: Call) -> Answer:
    course, people = call.course(), call.server.population
    if not call.reads_roster(course):
        raise call.denied()
    kinds = {_SHORT.get(kind, kind) for kind in call.texts("enrollment_type")}
    states = set(call.texts("enrollment_state")) or ENROLLED
    roles = set(call.texts("enrollment_role"))
    role_id, only = call.text("enrollment_role_id"), call.texts("user_ids")
    numbers = {call.number(each) for each in only}
    ids = {
        row.user_id
        for row in people.enrollments_by_course[course.id]
        if row.state in states
        and (row.type in kinds if kinds else row.type != "StudentViewEnrollment")
        and (not roles or people.role_of(row).name in roles)
        and (role_id is None or people.role_of(row).id == call.number(role_id))
        and (not only or row.user_id in numbers)
    }
    users = sorted((people.users[i] for i in ids), key=lambda u: (u.sortable_name, u.id))
    users = _searched(call, users, lambda u: (u.name, u.login_id or ""))
    return numbered(call, users, lambda u: _member_json(call, u, course), knows_last=False)


def _member_json(call: Call, user: User, course: Course) -> dict[str, Any]:
    body = user_json(call, user, course)
    if "enrollments" in call.texts("include"):
        rows = call.server.population.enrollments_by_user[user.id]
        mine = [r for r in rows if r.course_id == course.id and r.state in ENROLLED]
        body["enrollments"] = [enrollment_json(call, row, with_user=False) for row in mine]
    return body


def _sections(call: Call) -> Answer:
    course = call.course()
    rows = [s for s in call.server.population.sections_by_course[course.id] if _alive(s)]
    return numbered(call, rows, lambda s: _section_json(call, s))


def _alive(section: Section) -> bool:
    return section.workflow_state != "deleted"


def _section_json(call: Call, section: Section) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": section.id,
        "course_id": section.course_id,
        "name": section.name,
        "start_at": None,
        "end_at": None,
        "nonxlist_course_id": None,
    }
    return body | ({"sis_section_id": section.sis_section_id} if call.is_admin else {})


# ---- enrollments ---------------------------------------------------------------------------


def _course_enrollments(call: Call) -> Answer:
    course = call.course()
    if not call.reads_roster(course):
        raise call.denied()
    rows = call.server.population.enrollments_by_course[course.id]
    default = ENROLLED | ({"inactive"} if call.is_admin else frozenset())
    return _list_enrollments(call, rows, default)


def _section_enrollments(call: Call) -> Answer:
    section = _named_section(call)
    rows = call.server.population.enrollments_by_course[section.course_id]
    default = ENROLLED | ({"inactive"} if call.is_admin else frozenset())
    return _list_enrollments(call, [r for r in rows if r.section_id == section.id], default)


def _named_section(call: Call) -> Section:
    named = call.params["section_id"]
    sections, number = call.server.population.sections, call.number(named)
    found = sections.get(number) if number is not None else None
    prefix, _, value = named.partition(":")
    if prefix == "sis_section_id":
        found = next((s for s in sections.values() if s.sis_section_id == value), None)
    if found is None or not _alive(found):
        raise not_found()
    call.params["course_id"] = str(found.course_id)
    call.course()
    return found


def _user_enrollments(call: Call) -> Answer:
    user = _visible_user(call)
    rows = call.server.population.enrollments_by_user[user.id]
    return _list_enrollments(call, rows, ENROLLED)


def _list_enrollments(call: Call, rows: Sequence[Enrollment], default: frozenset[str]) -> Answer:
    states, kinds = _wanted_states(call) or default, set(call.texts("type"))
    roles, people = set(call.texts("role")), call.server.population
    only = call.text("user_id")
    user_ids = {call.user(only).id} if only is not None else None
    sis = set(call.texts("sis_user_id"))
    if sis:
        user_ids = {u.id for u in people.living_users() if u.sis_user_id in sis}
    course_ids, section_ids = set(call.texts("sis_course_id")), set(call.texts("sis_section_id"))
    wanted = sorted(
        (
            row
            for row in rows
            if state_of(call, row) in states
            and (people.role_of(row).name in roles if roles else not kinds or row.type in kinds)
            and (user_ids is None or row.user_id in user_ids)
            and (not course_ids or people.courses[row.course_id].sis_course_id in course_ids)
            and (not section_ids or people.sections[row.section_id].sis_section_id in section_ids)
        ),
        key=lambda row: row.id,
    )
    return bookmarked(
        call, wanted, lambda r: enrollment_json(call, r, with_user=True), key=lambda r: r.id
    )


def _wanted_states(call: Call) -> frozenset[str]:
    states = set(call.texts("state"))
    special = {state for state in states if state.startswith("current_and_")}
    if special:
        if call.params.get("user_id", "self") == "self":
            raise Refusal(400, errors("Invalid state for this list"))
        states |= ENROLLED
        states |= {"creation_pending"} if "current_and_future" in special else set()
        states |= {"completed"} if "current_and_concluded" in special else set()
        states |= {"inactive"} if "current_and_invited" not in special else set()
    return frozenset(states)


def state_of(call: Call, row: Enrollment) -> str:
    """Return an enrollment's state: deleted too when its course or its section is."""
    people = call.server.population
    gone = people.courses[row.course_id].workflow_state == "deleted"
    return "deleted" if gone or not _alive(people.sections[row.section_id]) else row.state


def enrollment_json(call: Call, row: Enrollment, *, with_user: bool) -> dict[str, Any]:
    """Return an enrollment as the caller may see it; grades exist for students only."""
    people = call.server.population
    course, user = people.courses[row.course_id], people.users[row.user_id]
    role = people.role_of(row)
    reads = row.user_id == call.caller.id or call.is_staff(course)
    body: dict[str, Any] = {
        "id": row.id,
        "root_account_id": people.account_id,
        "user_id": row.user_id,
        "course_id": row.course_id,
        "course_section_id": row.section_id,
        "associated_user_id": row.associated_user_id,
        "limit_privileges_to_course_section": False,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        "start_at": row.start_at,
        "end_at": row.end_at,
        "type": row.type,
        "role": role.name,
        "role_id": role.id,
        "enrollment_state": state_of(call, row),
        "html_url": f"{call.origin}/courses/{row.course_id}/users/{row.user_id}",
    }
    if reads:
        body["last_activity_at"] = row.last_activity_at
        body["last_attended_at"] = None
        body["total_activity_time"] = call.total_activity_seconds(row)
    if row.type in {"StudentEnrollment", "StudentViewEnrollment"}:
        body["grades"] = _grades(call, row, reads=reads)
    if call.is_admin:
        body["sis_user_id"] = user.sis_user_id
        body["sis_course_id"] = course.sis_course_id
        body["sis_section_id"] = people.sections[row.section_id].sis_section_id
    include = call.texts("include")
    if with_user:
        body["user"] = user_json(call, user, course)
    if "group_ids" in include and with_user:
        body["user"]["group_ids"] = []
    if "locked" in include and with_user:
        body["user"]["locked"] = False
    if "can_be_removed" in include:
        body["can_be_removed"] = call.is_staff(course)
    if "observed_users" in include and row.type == "ObserverEnrollment":
        observed = people.users.get(row.associated_user_id or 0)
        body["observed_user"] = None if observed is None else user_json(call, observed, course)
    return body


def _grades(call: Call, row: Enrollment, *, reads: bool) -> dict[str, Any]:
    url = f"{call.origin}/courses/{row.course_id}/grades/{row.user_id}"
    if not reads:
        return {"html_url": url}
    grades = {
        "html_url": url,
        "current_score": row.current_score,
        "current_grade": letter(row.current_score),
        "final_score": row.final_score,
        "final_grade": letter(row.final_score),
    }
    return grades | ({"current_points": None} if "current_points" in call.texts("include") else {})


def letter(score: float | None) -> str | None:
    """Return the mark of a score in the default grading scheme, cut short."""
    if score is None:
        return None
    return next((mark for least, mark in ((90, "A"), (80, "B"), (70, "C")) if score >= least), "F")


def _account_enrollment(call: Call) -> Answer:
    call.account()
    call.require_admin()
    return Answer(body=enrollment_json(call, _named_enrollment(call), with_user=False))


def _named_enrollment(call: Call, course: Course | None = None) -> Enrollment:
    number = call.number(call.params["enrollment_id"])
    row = call.server.population.enrollments.get(number or 0)
    if row is None or (course is not None and row.course_id != course.id):
        raise not_found()
    return row


def _enroll_in_course(call: Call) -> Answer:
    course = call.course()
    sections, named = call.server.population.sections, call.text("enrollment[course_section_id]")
    section = call.server.population.sections_by_course[course.id][0]
    if named is not None:
        found = sections.get(call.number(named) or 0)
        if found is None or found.course_id != course.id:
            raise not_found()
        section = found
    return _enroll(call, course, section)


def _enroll_in_section(call: Call) -> Answer:
    section = _named_section(call)
    return _enroll(call, call.server.population.courses[section.course_id], section)


def _enroll(call: Call, course: Course, section: Section) -> Answer:
    if not call.is_staff(course):
        raise call.denied()
    if not any(name.startswith("enrollment[") for name, _ in [*call.form, *call.query]):
        raise _message("No parameters given")
    named = call.text("enrollment[user_id]")
    if named is None:
        raise _message("Can't create an enrollment without a user. Include enrollment[user_id]")
    user = call.user(named)
    if course.workflow_state == "completed":
        raise _message("Can't add an enrollment to a concluded course.")
    role = _wanted_role(call)
    state = call.text("enrollment[enrollment_state]") or "invited"
    if state not in {"active", "invited", "inactive"}:
        raise _message("Invalid enrollment_state")
    people, now = call.server.population, instant(call.server.clock())
    place = (section.id, role.name)
    rows = people.enrollments_by_user[user.id]
    same = next((r for r in rows if (r.section_id, people.role_of(r).name) == place), None)
    if call.server.profile.repeats_enrollments and same is not None and same.state != "deleted":
        same = None
    row = same or people.add_enrollment(
        user, section, type=role.base_type, role=role.name, created_at=now
    )
    row.state = state
    row.updated_at = now
    row.start_at = call.text("enrollment[start_at]") or row.start_at
    row.end_at = call.text("enrollment[end_at]") or row.end_at
    return Answer(body=enrollment_json(call, row, with_user=False))


def _wanted_role(call: Call) -> Role:
    """Return the role to enroll with: the one named, or the built-in one of the kind asked for."""
    roles, kind = call.server.population.roles, call.text("enrollment[type]")
    number, name = call.text("enrollment[role_id]"), call.text("enrollment[role]")
    if kind is not None and kind not in _SHORT.values():
        raise _message("Invalid type")
    if number is None and name is None:
        return roles[(kind or "StudentEnrollment").replace("StudentView", "Student")]
    found = roles.get(name or "")
    if number is not None:
        found = next((r for r in roles.values() if r.id == call.number(number)), None)
    if found is None or found.base_type == ACCOUNT_ROLE:
        raise _message("Invalid role")
    if found.workflow_state == "inactive":
        raise _message("Cannot create an enrollment with this role because it is inactive.")
    if kind not in {None, found.base_type}:
        raise _message("The specified type must match the base type for the role")
    return found


def _message(text: str) -> Refusal:
    return Refusal(400, {"message": text})


def _end_enrollment(call: Call) -> Answer:
    course = call.course()
    if not call.is_staff(course):
        raise call.denied()
    row = _named_enrollment(call, course)
    task = call.text("task") or "conclude"
    if task not in _ENDINGS:
        raise _message(f"Unknown task {task}")
    row.state, row.updated_at = _ENDINGS[task], instant(call.server.clock())
    return Answer(body=enrollment_json(call, row, with_user=False))


def _reactivate(call: Call) -> Answer:
    course = call.course()
    if not call.is_staff(course):
        raise call.denied()
    row = _named_enrollment(call, course)
    if row.state != "inactive":
        raise _message("enrollment not inactive")
    row.state, row.updated_at = "active", instant(call.server.clock())
    return Answer(body=enrollment_json(call, row, with_user=False))


def _accept(call: Call) -> Answer:
    return _answer_invitation(call, "active")


def _reject(call: Call) -> Answer:
    return _answer_invitation(call, "rejected")


def _answer_invitation(call: Call, state: str) -> Answer:
    row = _named_enrollment(call, call.course())
    if row.user_id != call.caller.id:
        raise call.denied()
    if row.state != "invited":
        raise Refusal(400, {"error": "no current invitation"})
    row.state, row.updated_at = state, instant(call.server.clock())
    return Answer(body={"success": True})


# ---- work and activity ---------------------------------------------------------------------


def _assignments(call: Call) -> Answer:
    course = call.course()
    rows = [a for a in call.server.population.assignments.values() if a.course_id == course.id]
    return numbered(call, rows, _assignment_json)


def _assignment_json(assignment: Assignment) -> dict[str, Any]:
    return {
        "id": assignment.id,
        "course_id": assignment.course_id,
        "name": assignment.name,
        "points_possible": assignment.points,
        "due_at": assignment.due_at,
        "published": True,
    }


def _modules(call: Call) -> Answer:
    """List modules, each with one requirement; with `student_id` also how far that one got."""
    course, named = call.course(), call.text("student_id")
    student = call.user(named) if named is not None else None
    if student is not None and student is not call.caller and not call.is_staff(course):
        raise call.denied()
    return numbered(
        call, range(1, course.modules + 1), lambda n: _module_json(call, course, n, student)
    )


def _module_json(call: Call, course: Course, number: int, student: User | None) -> dict[str, Any]:
    module_id = course.id * 100 + number
    body: dict[str, Any] = {
        "id": module_id,
        "name": f"Module {number}",
        "position": number,
        "items_count": 1,
    }
    requirement: dict[str, Any] = {"type": "must_view"}
    if student is not None:
        rows = call.server.population.enrollments_by_user[student.id]
        done = [r.completed_requirements for r in rows if r.course_id == course.id]
        is_done = max(done, default=0) >= number
        body["state"] = "completed" if is_done else "unlocked"
        requirement["completed"] = is_done
    if "items" in call.texts("include"):
        item = {"id": module_id * 10, "module_id": module_id, "title": f"Page {number}"}
        body["items"] = [item | {"type": "Page", "completion_requirement": requirement}]
    return body


def _submissions(call: Call) -> Answer:
    course, people = call.course(), call.server.population
    asked = call.texts("student_ids")
    wanted: set[int | None] = {call.number(each) for each in asked} or {call.caller.id}
    if "all" in asked:
        wanted = {row.user_id for row in people.submissions_by_course[course.id]}
    if wanted - {call.caller.id} and not call.is_staff(course):
        raise call.denied()
    assignments = {call.number(each) for each in call.texts("assignment_ids")}
    rows = [
        row
        for row in people.submissions_by_course[course.id]
        if row.user_id in wanted
        and call.text("workflow_state") in {None, row.workflow_state}
        and (not assignments or row.assignment_id in assignments)
        and since(call.text("submitted_since"), row.submitted_at)
        and since(call.text("graded_since"), row.graded_at)
    ]
    if not call.flag("grouped"):
        return numbered(call, rows, _submission_json)
    grouped: dict[int, list[Submission]] = defaultdict(list)
    for row in rows:
        grouped[row.user_id].append(row)
    return numbered(
        call,
        list(grouped.items()),
        lambda item: {
            "user_id": item[0],
            "submissions": [_submission_json(row) for row in item[1]],
        },
    )


def since(start: str | None, moment: str | None) -> bool:
    """Whether something happened after a time; anything did when no time is asked for."""
    if start is None:
        return True
    try:
        return moment is not None and datetime.fromisoformat(moment) > datetime.fromisoformat(start)
    except (ValueError, TypeError):
        raise Refusal(400, errors("Invalid datetime")) from None


def _submission_json(row: Submission) -> dict[str, Any]:
    return {
        "id": row.id,
        "assignment_id": row.assignment_id,
        "user_id": row.user_id,
        "workflow_state": row.workflow_state,
        "submitted_at": row.submitted_at,
        "graded_at": row.graded_at,
        "score": row.score,
        "attempt": row.attempt,
        "late": row.late,
        "missing": row.missing,
        "excused": row.excused,
    }


def _page_views(call: Call) -> Answer:
    user = _visible_user(call)
    rows = [view for view in call.server.population.page_views if view.user_id == user.id]
    return numbered(call, rows, _page_view_json, knows_last=False)


def _page_view_json(view: PageView) -> dict[str, Any]:
    return {
        "id": view.id,
        "created_at": view.created_at,
        "interaction_seconds": view.interaction_seconds,
        "context_type": "Course",
        "links": {"user": view.user_id, "context": view.course_id},
    }


def _course_activity(call: Call) -> Answer:
    """Count the views of a course by day."""
    _require_resource(is_there=call.server.profile.analytics)
    course = call.course()
    if not call.is_staff(course):
        raise call.denied()
    views = [v for v in call.server.population.page_views if v.course_id == course.id]
    days = Counter(view.created_at[:10] for view in views)
    rows = [{"date": day, "views": n, "participations": 0} for day, n in sorted(days.items())]
    return Answer(body=rows, rows=len(rows))


def _student_summaries(call: Call) -> Answer:
    _require_resource(is_there=call.server.profile.analytics)
    course = call.course()
    if not call.is_staff(course):
        raise call.denied()
    views = call.server.population.page_views
    ids = sorted({row.user_id for row in _students(call, course)})
    return numbered(
        call,
        ids,
        lambda user_id: {
            "id": user_id,
            "page_views": sum((v.user_id, v.course_id) == (user_id, course.id) for v in views),
            "participations": 0,
        },
    )


def _user_activity(call: Call) -> Answer:
    _require_resource(is_there=call.server.profile.analytics)
    course, user = call.course(), call.user()
    if user is not call.caller and not call.is_staff(course):
        raise call.denied()
    views = call.server.population.page_views
    mine = [view for view in views if (view.user_id, view.course_id) == (user.id, course.id)]
    hours = {view.created_at.replace("Z", "-06:00"): 1 for view in mine}
    return Answer(body={"page_views": hours, "participations": []})


_ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "accounts"): _accounts,
    ("GET", "accounts/:account_id"): _account,
    ("GET", "accounts/:account_id/users"): _account_users,
    ("POST", "accounts/:account_id/users"): _create_user,
    ("GET", "accounts/:account_id/courses"): _account_courses,
    ("GET", "accounts/:account_id/roles"): _account_roles,
    ("GET", "accounts/:account_id/enrollments/:enrollment_id"): _account_enrollment,
    ("POST", "accounts/:account_id/logins"): _create_login,
    ("GET", "users/:user_id"): _user,
    ("GET", "users/:user_id/profile"): _profile,
    ("GET", "users/:user_id/courses"): _user_courses,
    ("GET", "users/:user_id/enrollments"): _user_enrollments,
    ("GET", "users/:user_id/logins"): _user_logins,
    ("GET", "users/:user_id/page_views"): _page_views,
    ("GET", "courses"): _own_courses,
    ("GET", "courses/:course_id"): _course,
    ("GET", "courses/:course_id/users"): _course_users,
    ("GET", "courses/:course_id/users/:user_id/progress"): _user_progress,
    ("GET", "courses/:course_id/bulk_user_progress"): _bulk_progress,
    ("GET", "courses/:course_id/sections"): _sections,
    ("GET", "courses/:course_id/enrollments"): _course_enrollments,
    ("POST", "courses/:course_id/enrollments"): _enroll_in_course,
    ("DELETE", "courses/:course_id/enrollments/:enrollment_id"): _end_enrollment,
    ("PUT", "courses/:course_id/enrollments/:enrollment_id/reactivate"): _reactivate,
    ("POST", "courses/:course_id/enrollments/:enrollment_id/accept"): _accept,
    ("POST", "courses/:course_id/enrollments/:enrollment_id/reject"): _reject,
    ("GET", "courses/:course_id/assignments"): _assignments,
    ("GET", "courses/:course_id/modules"): _modules,
    ("GET", "courses/:course_id/students/submissions"): _submissions,
    ("GET", "courses/:course_id/analytics/activity"): _course_activity,
    ("GET", "courses/:course_id/analytics/student_summaries"): _student_summaries,
    ("GET", "courses/:course_id/analytics/users/:user_id/activity"): _user_activity,
    ("GET", "sections/:section_id/enrollments"): _section_enrollments,
    ("POST", "sections/:section_id/enrollments"): _enroll_in_section,
}
_ROUTES_BY_SHAPE: dict[tuple[str, int], list[tuple[str, Handler]]] = defaultdict(list)
for (_verb, _pattern), _handler in _ROUTES.items():
    _ROUTES_BY_SHAPE[_verb, len(_pattern.split("/"))].append((_pattern, _handler))
