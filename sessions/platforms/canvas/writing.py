"""Writing to Canvas: users, logins and enrollments, each looked for before it is made.

Canvas knows no idempotency keys. So every write looks first, and looks again when the answer to a
write was lost: what is there then counts as written, and nothing is sent a second time. The wire
repeats a write only when Canvas refused it unseen, as too early or for a token that no longer
holds. Parameters go in the body, never in the address, which is logged on the way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final, TypeVar

import msgspec

from sessions.base import (
    EnrollmentEnding,
    Login,
    NewEnrollment,
    NewLogin,
    NewUser,
    Pair,
    Written,
)
from sessions.errors import (
    ProviderBadResponse,
    ProviderRejected,
    ProviderUnavailable,
)
from sessions.http import Params, ParamValue, Response
from sessions.platforms.canvas.reading import USER_PARAMS
from sessions.platforms.canvas.rows import (
    LIVE_STATES,
    ROLES,
    Converter,
    CourseRow,
    EnrollmentRow,
    UserRow,
    row_order,
)
from sessions.platforms.canvas.wire import (
    CanvasWire,
    NotThere,
    problem_of,
    problems_by_field,
    segment,
)
from storage.records import Enrollment, EnrollmentState, Provider, User

T = TypeVar("T")

_ACTIVE: Final = "active"
_INACTIVE: Final = "inactive"
_DELETED: Final = "deleted"
_ALL_STATES: Final = (*LIVE_STATES, _DELETED)
_BEST_FIRST: Final = (_ACTIVE, _INACTIVE, "invited", "creation_pending", "completed")
_ENDINGS: Final = {
    EnrollmentEnding.CONCLUDE: ("conclude", "completed"),
    EnrollmentEnding.DEACTIVATE: ("inactivate", _INACTIVE),
    EnrollmentEnding.REMOVE: ("delete", _DELETED),
}
_TYPES: Final = {role: type_ for type_, role in ROLES.items()}
_USER_FIELDS: Final = {
    "unique_id": "username",
    "sis_user_id": "sis_id",
    "name": "display_name",
    "sortable_name": "family_name",
    "address": "email",
    "path": "email",
    "locale": "locale",
    "time_zone": "time_zone",
}
_LOGIN_FIELDS: Final = {
    "unique_id": "username",
    "sis_user_id": "sis_id",
    "authentication_provider_id": "identity_provider",
}


class _LoginRow(msgspec.Struct, frozen=True, gc=False):
    """One way to log in; Canvas calls it a pseudonym."""

    id: str
    user_id: str
    unique_id: str
    sis_user_id: str | None = None
    authentication_provider_id: str | None = None
    authentication_provider_type: str | None = None
    workflow_state: str | None = None


class _RoleRow(msgspec.Struct, frozen=True, gc=False):
    """A role of the account, or one Canvas comes with."""

    id: str
    role: str | None = None
    label: str | None = None
    base_role_type: str | None = None


class _WantedRole(msgspec.Struct, frozen=True):
    """As what a user is to be enrolled; ``id`` only for a custom role."""

    type: str
    name: str
    id: str | None = None

    def is_that_of(self, row: EnrollmentRow) -> bool:
        """Whether an enrollment is in this role."""
        return row.type == self.type and (row.role or row.type) == self.name


class CanvasWriting:
    """Writes to one Canvas on behalf of one subject.

    Args:
        provider: The installation; ``account_id`` says where users are created.
        wire: How it is called.
        converter: Makes records of what it answers.
    """

    def __init__(self, provider: Provider, *, wire: CanvasWire, converter: Converter) -> None:
        self._provider = provider
        self._wire = wire
        self._converter = converter
        self._account = f"accounts/{segment(provider.account_id or 'self')}"

    # ---- users

    async def create_user(self, user: NewUser) -> Written[User]:
        """Create an account, unless one with this username and SIS id is there.

        Where no SIS id is given, or Canvas shows none, the name tells whether it is the same user.

        Raises:
            ProviderRejected: Username or SIS id are somebody else's, or Canvas's rules forbid it.
            ProviderForbidden: The subject may not.
            ProviderError: As for every call; then it may have been created all the same.

        Source:
            https://canvas.instructure.com/doc/api/users.html#method.users.create
        """
        there = await self._find_user(user)
        if there is not None:
            return Written(self._converter.user(there), created=False)

        async def send() -> UserRow:
            path = f"{self._account}/users"
            response = await self._wire.send("POST", path, form=_user_form(user))
            return self._accepted(response, fields=_USER_FIELDS).decode(UserRow)

        try:
            row = await _written(send, lambda: self._find_user(user))
        except ProviderRejected as refusal:
            # Somebody may have created it since we looked.
            meanwhile = await self._find_user(user) if refusal.field in _UNIQUE else None
            if meanwhile is None:
                raise
            return Written(self._converter.user(meanwhile), created=False)
        return Written(self._converter.user(row), created=True)

    async def _find_user(self, user: NewUser) -> UserRow | None:
        """Return the account if it is there.

        Raises:
            ProviderRejected: Its username or SIS id belong to somebody else.

        Source:
            https://canvas.instructure.com/doc/api/users.html#method.users.api_show
            https://canvas.instructure.com/doc/api/file.object_ids.html
        """
        row = await self._user_by(f"sis_login_id:{user.username}")
        if row is not None:
            if _is_same(row, user):
                return row
            raise self._rejected("This username belongs to somebody else", "username")
        if user.sis_id is None:
            return None
        row = await self._user_by(f"sis_user_id:{user.sis_id}")
        if row is None:
            return None
        if (row.login_id or "").casefold() == user.username.casefold() and _is_same(row, user):
            return row  # it came between the two looks
        raise self._rejected(
            "This SIS id belongs to a user with another username: give them a further login"
            " instead",
            "sis_id",
        )

    async def _user_by(self, name: str) -> UserRow | None:
        return await self._wire.find(f"users/{segment(name)}", UserRow, params=USER_PARAMS)

    # ---- logins

    async def create_login(self, login: NewLogin) -> Written[Login]:
        """Give a user a further login, unless they have it.

        Raises:
            ProviderRejected: It belongs to somebody else, there is no such user, or Canvas's rules
                forbid it.
            ProviderForbidden: The subject may not.
            ProviderError: As for every call; then it may have been created all the same.

        Source:
            https://canvas.instructure.com/doc/api/logins.html#method.pseudonyms.create
        """
        there = await self._find_login(login)
        if there is not None:
            return Written(there, created=False)

        async def send() -> Login:
            form = {
                "user[id]": login.user_id,
                "login[unique_id]": login.username,
                "login[sis_user_id]": login.sis_id,
                "login[authentication_provider_id]": login.identity_provider,
            }
            response = await self._wire.send("POST", f"{self._account}/logins", form=form)
            accepted = self._accepted(response, fields=_LOGIN_FIELDS, missing="user_id")
            return _login(accepted.decode(_LoginRow))

        try:
            made = await _written(send, lambda: self._find_login(login))
        except ProviderRejected as refusal:
            meanwhile = await self._find_login(login) if refusal.field in _UNIQUE else None
            if meanwhile is None:
                raise
            return Written(meanwhile, created=False)
        return Written(made, created=True)

    async def _find_login(self, login: NewLogin) -> Login | None:
        """Return the login if the user has it.

        Raises:
            ProviderRejected: There is no such user.

        Source:
            https://canvas.instructure.com/doc/api/logins.html#method.pseudonyms.index
        """
        try:
            rows = await self._wire.rows(f"users/{segment(login.user_id)}/logins", _LoginRow)
        except NotThere as error:
            raise self._rejected("Canvas has no such user, or hides it", "user_id") from error
        return next((_login(row) for row in rows if _is_same_login(row, login)), None)

    # ---- enrollments

    async def enroll(self, wanted: NewEnrollment) -> Written[Enrollment]:
        """Give a user an active place in a course, unless they have it.

        An inactive one is made active again. For any other Canvas is asked for an active one; what
        it makes of that is in the record's state: an invitation can stay one until the user
        accepts it, and a user who never logged in may have to do that first.

        Raises:
            ProviderRejected: There is no such user, course, section or role, or Canvas's rules
                forbid it.
            ProviderForbidden: The subject may not.
            ProviderError: As for every call; then it may have been done all the same.

        Source:
            https://canvas.instructure.com/doc/api/enrollments.html#method.enrollments_api.create
            https://canvas.instructure.com/doc/api/enrollments.html#method.enrollments_api.reactivate
        """
        role = await self._role(wanted)
        pair = (wanted.user_id, wanted.course_id)
        rows = await self._places(pair)
        states_before = {row.id: row.enrollment_state for row in rows}
        there = _best(rows, wanted, role)
        if there is not None and there.enrollment_state == _ACTIVE:
            return Written(self._converter.enrollment(there), created=False)

        def is_new(row: EnrollmentRow) -> bool:
            return states_before.get(row.id) != row.enrollment_state

        async def send() -> EnrollmentRow:
            path = f"courses/{segment(wanted.course_id)}/enrollments"
            if there is not None and there.enrollment_state == _INACTIVE:
                again = f"{path}/{segment(there.id)}/reactivate"
                return self._enrollment(await self._wire.send("PUT", again))
            form = _enrollment_form(wanted, role)
            missing = "user_id" if wanted.section_id is None else "section_id"
            return self._enrollment(await self._wire.send("POST", path, form=form), missing=missing)

        async def look() -> EnrollmentRow | None:
            found = _best(await self._places(pair), wanted, role)
            return found if found is not None and is_new(found) else None

        row = await _written(send, look)
        return Written(self._converter.enrollment(row), created=is_new(row))

    async def end_enrollment(
        self, pair: Pair, enrollment_id: str, ending: EnrollmentEnding
    ) -> Written[Enrollment]:
        """End an enrollment, unless it has ended so; ``created`` says whether anything changed.

        Raises:
            ProviderRejected: There is no such enrollment, it was removed, or Canvas's rules forbid
                it.
            ProviderForbidden: The subject may not.
            ProviderError: As for every call; then it may have ended all the same.

        Source:
            https://canvas.instructure.com/doc/api/enrollments.html#method.enrollments_api.destroy
        """
        task, state = _ENDINGS[ending]
        there = await self._find_place(pair, enrollment_id)
        if there is not None and there.enrollment_state == state:
            return Written(self._ended(there), created=False)
        if there is None or there.enrollment_state == _DELETED:
            raise self._rejected("Canvas has no such enrollment", "enrollment_id")

        async def send() -> EnrollmentRow:
            path = f"courses/{segment(pair[1])}/enrollments/{segment(enrollment_id)}"
            response = await self._wire.send("DELETE", path, form={"task": task})
            return self._enrollment(response, missing="enrollment_id")

        async def look() -> EnrollmentRow | None:
            found = await self._find_place(pair, enrollment_id)
            if found is None and state == _DELETED:  # not every release lists what was removed
                return msgspec.structs.replace(there, enrollment_state=_DELETED)
            return found if found is not None and found.enrollment_state == state else None

        return Written(self._ended(await _written(send, look)), created=True)

    async def _role(self, wanted: NewEnrollment) -> _WantedRole:
        """Return the role to enroll in; Canvas is asked only about a custom one.

        Raises:
            ProviderRejected: There is none such.

        Source:
            https://canvas.instructure.com/doc/api/roles.html#method.role_overrides.api_index
        """
        word = wanted.source_role or _TYPES.get(wanted.role)
        if word is None:
            raise self._rejected(f"Canvas has no role like {wanted.role}", "role")
        if word in ROLES:
            return _WantedRole(type=word, name=word)
        params = {"show_inherited": True}
        for row in await self._wire.rows(f"{self._account}/roles", _RoleRow, params=params):
            name, type_ = row.role or row.label or "", row.base_role_type
            if type_ in ROLES and word in {row.id, row.role, row.label}:
                return _WantedRole(type=type_, name=name, id=row.id)
        raise self._rejected("Canvas has no such role for enrollments", "source_role")

    async def _places(self, pair: Pair) -> list[EnrollmentRow]:
        """Return every place a user has or had in a course.

        Raises:
            ProviderRejected: There is no such course or user.

        Source:
            https://canvas.instructure.com/doc/api/enrollments.html#method.enrollments_api.index
        """
        user_id, course_id = pair
        params: list[tuple[str, ParamValue]] = [("user_id", user_id)]
        params += [("state[]", state) for state in _ALL_STATES]
        path = f"courses/{segment(course_id)}"
        try:
            return await self._wire.rows(f"{path}/enrollments", EnrollmentRow, params=params)
        except NotThere as error:
            has_course = await self._wire.find(path, CourseRow) is not None
            what = "user" if has_course else "course"
            raise self._rejected(f"Canvas has no such {what}, or hides it", f"{what}_id") from error

    async def _find_place(self, pair: Pair, enrollment_id: str) -> EnrollmentRow | None:
        return next((row for row in await self._places(pair) if row.id == enrollment_id), None)

    # ---- what an answer means

    def _ended(self, row: EnrollmentRow) -> Enrollment:
        record = self._converter.enrollment(row)
        gone = row.enrollment_state == _DELETED
        return msgspec.structs.replace(record, state=EnrollmentState.DROPPED) if gone else record

    def _enrollment(self, response: Response, *, missing: str | None = None) -> EnrollmentRow:
        return self._accepted(response, missing=missing).decode(EnrollmentRow)

    def _accepted(
        self,
        response: Response,
        *,
        fields: Mapping[str, str] | None = None,
        missing: str | None = None,
    ) -> Response:
        """Return the answer to a write that was carried out.

        Args:
            response: The answer.
            fields: Canvas's names of inputs to ours.
            missing: The input that is at fault when something is not there.

        Raises:
            ProviderRejected: It was not, for the reason Canvas gives.
        """
        if response.status < HTTPStatus.BAD_REQUEST:
            return response
        if response.status == HTTPStatus.NOT_FOUND:
            raise self._rejected("Canvas has no such thing, or hides it", missing)
        named = problems_by_field(response)
        for theirs, ours in (fields or {}).items():
            if theirs in named:
                raise self._rejected(f"Canvas refused this: {named[theirs]}", ours)
        problem = problem_of(response) or "it did not say why"
        raise self._rejected(f"Canvas refused this: {problem}", None)

    def _rejected(self, message: str, field: str | None) -> ProviderRejected:
        return ProviderRejected(message, provider_id=self._provider.id, field=field)


_UNIQUE: Final = frozenset({"username", "sis_id"})


async def _written(send: Callable[[], Awaitable[T]], look: Callable[[], Awaitable[T | None]]) -> T:
    """Send a write; when its answer is lost, return what is there.

    Raises:
        ProviderError: The answer was lost, and nothing is there.
    """
    try:
        return await send()
    except (ProviderUnavailable, ProviderBadResponse):
        found = await look()
        if found is None:
            raise
        return found


def _user_form(user: NewUser) -> Params:
    form: dict[str, ParamValue] = {
        "user[name]": user.display_name,
        "user[locale]": user.locale,
        "user[time_zone]": user.time_zone,
        # Without a message to the user there is nothing they could register with.
        "user[skip_registration]": not user.notify,
        "pseudonym[unique_id]": user.username,
        "pseudonym[sis_user_id]": user.sis_id,
        "pseudonym[send_confirmation]": user.notify,
    }
    if user.given_name and user.family_name:
        form["user[sortable_name]"] = f"{user.family_name}, {user.given_name}"
    if user.email is not None:
        form["communication_channel[type]"] = "email"
        form["communication_channel[address]"] = user.email
        form["communication_channel[skip_confirmation]"] = not user.notify
    return form


def _enrollment_form(wanted: NewEnrollment, role: _WantedRole) -> Params:
    return {
        "enrollment[user_id]": wanted.user_id,
        "enrollment[type]": role.type,
        "enrollment[role_id]": role.id,
        "enrollment[enrollment_state]": _ACTIVE,  # Canvas would only invite
        "enrollment[course_section_id]": wanted.section_id,
        "enrollment[start_at]": _text_of(wanted.starts_at),
        "enrollment[end_at]": _text_of(wanted.ends_at),
        "enrollment[notify]": wanted.notify,
    }


def _text_of(instant: datetime | None) -> str | None:
    if instant is None:
        return None
    return instant.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _is_same(row: UserRow, user: NewUser) -> bool:
    """Whether the account of a username is that of the user who is to be created."""
    if user.sis_id is not None and row.sis_user_id is not None:
        return row.sis_user_id == user.sis_id
    return _folded(user.display_name) in {_folded(row.name or ""), _folded(row.short_name or "")}


def _is_same_login(row: _LoginRow, login: NewLogin) -> bool:
    providers = {row.authentication_provider_id, row.authentication_provider_type}
    return (
        row.workflow_state != _DELETED
        and row.unique_id.casefold() == login.username.casefold()
        and (login.identity_provider is None or login.identity_provider in providers)
        and (login.sis_id is None or login.sis_id == row.sis_user_id)
    )


def _login(row: _LoginRow) -> Login:
    return Login(id=row.id, user_id=row.user_id, username=row.unique_id)


def _best(
    rows: Sequence[EnrollmentRow], wanted: NewEnrollment, role: _WantedRole
) -> EnrollmentRow | None:
    """Return the place that is, or is nearest to, the one wanted; any section's if none is."""
    fitting = [
        row
        for row in rows
        if role.is_that_of(row) and wanted.section_id in {None, row.course_section_id}
    ]
    return min(fitting, key=lambda row: (_rank(row), row_order(row)), default=None)


def _rank(row: EnrollmentRow) -> int:
    state = row.enrollment_state
    return _BEST_FIRST.index(state) if state in _BEST_FIRST else len(_BEST_FIRST)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()
