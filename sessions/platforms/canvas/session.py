"""One conversation with one Canvas: for the organisation, for a user, or as a user."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from sessions.base import (
    Authorization,
    AuthorizedUser,
    Code,
    CodeRequest,
    EnrollmentEnding,
    Exports,
    Grant,
    ListOrder,
    Login,
    NewEnrollment,
    NewGrant,
    NewLogin,
    NewUser,
    Page,
    Pair,
    ProviderCheck,
    ProviderSession,
    Subject,
    SubjectKind,
    Written,
)
from sessions.errors import (
    ProviderBadResponse,
    ProviderForbidden,
    ReauthRequired,
    SessionLost,
)
from sessions.http import Params, ProviderHttp
from sessions.mapping import check_role_options, printable
from sessions.platforms.canvas import oauth
from sessions.platforms.canvas.graph import Abilities, find_abilities
from sessions.platforms.canvas.reading import (
    EVERY_COURSE,
    USER_PARAMS,
    Known,
    Reader,
)
from sessions.platforms.canvas.rows import (
    ICON,
    AccountRow,
    Converter,
    CourseRow,
    RoleRow,
    UserRow,
    is_web_address,
)
from sessions.platforms.canvas.wire import (
    ACCESS_TOKEN,
    CanvasWire,
    NotThere,
    ScopesMissing,
    segment,
)
from sessions.platforms.canvas.writing import CanvasWriting
from sessions.sharing import together
from storage.credentials import Secret
from storage.records import (
    Activity,
    Course,
    Enrollment,
    Milestone,
    Progress,
    Provider,
    Section,
    User,
)

T = TypeVar("T")

GRAPHQL: Final = "graphql"
"""Option: ``never`` keeps to REST; and the name under which a grant holds GraphQL's abilities."""

NEVER: Final = "never"

_USER_ID: Final = "user_id"
_ACCOUNT_ID: Final = "account_id"
_COURSES: Final = "courses"
_PROBLEM: Final = "graphql_problem"
_ROLE_STATES: Final = (("state[]", "active"), ("state[]", "inactive"), ("show_inherited", "true"))
_LEARNED_SECONDS: Final = 24 * 60 * 60.0
_IMAGE_SECONDS: Final = 120.0
_IMAGES_KEPT: Final = 2000
_CHECKED_USERS: Final = 10
# What a user must show for the permission to be there, and what is lost where nobody shows it.
_SHOWN_BY_USERS: Final = (
    ("email", "Users - view primary email address: without it users have no email"),
    ("login_id", "Users - view login IDs: without it users have no username"),
    ("sis_user_id", "SIS Data - read: without it users have no SIS id"),
)


class CanvasSession(ProviderSession):
    """One token at one Canvas.

    Lists that several fields of one query need are shared for ``shared_seconds``, with nobody but
    the callers of this session: what a user may see is no one else's business.
    """

    shared_seconds: ClassVar[float] = 2.0

    def __init__(
        self,
        provider: Provider,
        *,
        http: ProviderHttp,
        authorization: Authorization,
        exports: Exports,
        subject: Subject = Subject(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(
            provider, http=http, authorization=authorization, exports=exports, subject=subject
        )
        self._wire = CanvasWire(provider, http=http, subject=subject, authorised=self.authorised)
        converter = Converter(provider, root=self._wire.root)
        self._reader = Reader(
            provider,
            subject=subject,
            wire=self._wire,
            converter=converter,
            known=self._get_known,
            shared_seconds=self.shared_seconds,
            saw_courses=self._keep_images,
        )
        self._writing = CanvasWriting(provider, wire=self._wire, converter=converter)
        self._images: dict[str, tuple[str, float]] = {}

    # ---- transitions

    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        """Prove the service's token, and learn what decides how Canvas is read.

        Raises:
            ReauthRequired: The token does not hold, or sees no such account; a user must
                authorise the gateway anew.
            ProviderBadResponse: This is no Canvas.
        """
        if self.subject.kind is SubjectKind.USER:
            raise self._refused("This user must authorise the gateway in Canvas")
        token = credentials.reveal().get("api_key", "").strip()
        if not token:
            raise self._refused("The access token is missing")
        try:
            return await self._learn(token)
        except SessionLost:
            raise self._refused("Canvas does not accept the access token") from None

    async def keep_alive(self, grant: Grant) -> NewGrant:
        """Prove that the token still holds; of the service's, learn again what decides the rest.

        Raises:
            SessionLost: It does not.
        """
        token = grant.secret.reveal().get(ACCESS_TOKEN)
        if not token:
            raise SessionLost
        if self.subject.kind is SubjectKind.SERVICE:
            return await self._learn(token)
        await self._wire.holding(Secret(token)).get("users/self", UserRow)
        return NewGrant(secret=grant.secret)

    async def log_out(self, grant: NewGrant) -> None:
        """Revoke a user's grant; the service's token is the operator's, and stays."""
        if self.subject.kind is SubjectKind.USER:
            await oauth.revoke(self._http, grant)

    def can_renew(self, grant: Grant) -> bool:
        """Whether the grant holds a refresh token."""
        return oauth.can_renew(grant)

    async def renew(self, grant: Grant, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        """Exchange the grant's refresh token."""
        return await oauth.renew(self._http, self.provider, grant=grant, credentials=credentials)

    def authorization_url(
        self, request: CodeRequest, credentials: Secret[Mapping[str, str]]
    ) -> str:
        """Return the address at which a user authorises the gateway."""
        return oauth.authorization_url(self.provider, request, credentials)

    async def redeem(self, code: Code, credentials: Secret[Mapping[str, str]]) -> AuthorizedUser:
        """Exchange an authorisation code for a user's grant."""
        return await oauth.redeem(self._http, self.provider, code=code, credentials=credentials)

    # ---- what a login learns

    async def _learn(self, token: str) -> NewGrant:
        """Find out what this token is for, all at once; it holds for a day, as roles may come.

        Raises:
            SessionLost: The token does not hold.
            ProviderBadResponse: This is no Canvas.

        Source:
            https://canvas.instructure.com/doc/api/users.html#method.users.api_show
        """
        wire = CanvasWire(
            self.provider, http=self._http, subject=Subject(), authorised=self.authorised
        ).holding(Secret(token))
        user = await wire.find("users/self", UserRow)
        if user is None:
            raise self._bad("This is not a Canvas API: it does not tell whose token this is")
        async with together() as tasks:
            account = tasks.create_task(self._find_account(wire))
            courses = tasks.create_task(self._count_courses(wire))
            problem = tasks.create_task(self._graphql_problem(wire))
            abilities = tasks.create_task(self._find_abilities(wire))
        lacking = None if abilities.result() else "This Canvas's GraphQL lacks what is needed"
        grant = {
            ACCESS_TOKEN: token,
            _USER_ID: user.id,
            _ACCOUNT_ID: account.result().id,
            _COURSES: courses.result(),
            GRAPHQL: str(abilities.result()),
            _PROBLEM: problem.result() or lacking or "",
        }
        return NewGrant(secret=Secret(grant), lifetime_seconds=_LEARNED_SECONDS)

    async def _find_account(self, wire: CanvasWire) -> AccountRow:
        """Find the account that is meant.

        Source:
            https://canvas.instructure.com/doc/api/accounts.html#method.accounts.show
        """
        row = await wire.find(self._account, AccountRow)
        if row is None:
            raise self._refused(
                "Canvas has no such account, or the access token does not see it: look at the "
                "number after /accounts/ in the address of its admin page"
            )
        return row

    async def _count_courses(self, wire: CanvasWire) -> str:
        """Count the account's courses by the number of the last page; empty if that is not told."""
        params: Params = (*EVERY_COURSE, ("per_page", 1))
        try:
            listed = await wire.page(f"{self._account}/courses", CourseRow, params=params)
        except (ProviderForbidden, NotThere):
            return ""
        last = listed.last or (1 if listed.following is None else None)
        return "" if last is None else str(last if listed.items else 0)

    async def _graphql_problem(self, wire: CanvasWire) -> str | None:
        """Tell why GraphQL must not be used for enrollments, whatever it can do.

        Source:
            https://canvas.instructure.com/doc/api/roles.html#method.role_overrides.api_index
        """
        if self.provider.options.get(GRAPHQL) == NEVER:
            return "The option graphql is never"
        try:
            rows = await wire.rows(f"{self._account}/roles", RoleRow, params=_ROLE_STATES)
        except (ProviderForbidden, NotThere):
            return "The access token may not read roles, so there may be custom ones"
        if any(row.is_custom for row in rows):
            return "The account has custom roles, whose names GraphQL does not tell"
        return None

    async def _find_abilities(self, wire: CanvasWire) -> Abilities:
        if self.provider.options.get(GRAPHQL) == NEVER:
            return Abilities()
        return await find_abilities(wire)

    async def _get_known(self) -> Known:
        grant = await self._authorization.current()
        values = grant.secret.reveal()
        courses = values.get(_COURSES, "")
        return Known(
            account=self._account,
            account_number=values.get(_ACCOUNT_ID, ""),
            courses=int(courses) if courses.isdecimal() else None,
            abilities=Abilities.parse(values.get(GRAPHQL, "")),
            graphql_problem=values.get(_PROBLEM, "Nothing is known of this Canvas's GraphQL")
            or None,
            version=grant.version,
        )

    # ---- reading

    async def check(self) -> ProviderCheck:
        """Read the account's name, and what the token may see of its users.

        Canvas tells its version nowhere.

        Raises:
            ProviderForbidden: The token may not list the account's users.
            NotSupported: An option names a role that does not exist.
        """
        check_role_options(self.provider)
        if self.subject.kind is not SubjectKind.SERVICE:
            user = await self._wire.get("users/self", UserRow)
            name = printable(user.name or user.id)
            return ProviderCheck(version="unknown", name="Canvas", account=f"Canvas user {name}")
        account = await self._wire.get(self._account, AccountRow)
        name = printable(account.name or account.id)
        params: Params = (("sort", "id"), *USER_PARAMS, ("per_page", _CHECKED_USERS))
        try:
            users = await self._wire.page(f"{self._account}/users", dict[str, Any], params=params)
        except ScopesMissing:
            raise
        except ProviderForbidden as error:
            raise ProviderForbidden(
                f"The access token may not list the users of the account {name}: create one for a "
                "user with the permission Users - view list",
                provider_id=self.provider.id,
            ) from error
        missing = [
            sentence
            for key, sentence in _SHOWN_BY_USERS
            if not any(key in row for row in users.items)
        ]
        if not await self._may_list_courses():
            missing.append("Courses - view list: without it there are no courses and enrollments")
        return ProviderCheck(
            version="unknown",
            name=name,
            account=f"Access token of an admin, reading the account {name}",
            missing=tuple(missing),
        )

    async def _may_list_courses(self) -> bool:
        try:
            await self._wire.page(f"{self._account}/courses", CourseRow, params={"per_page": 1})
        except ProviderForbidden:
            return False
        return True

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        """Return users by id."""
        return await self._reader.list_users(position=position, limit=limit)

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        """Return users by id; those hidden from the subject are left out."""
        return await self._reader.fetch_users(user_ids)

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        """Return courses by id; of a user's session, in Canvas's order."""
        return await self._reader.list_courses(position=position, limit=limit)

    async def list_sorted_courses(
        self, order: ListOrder, *, position: str | None, limit: int
    ) -> Page[Course]:
        """Return courses by title, as Canvas compares them."""
        return await self._reader.list_sorted_courses(order, position=position, limit=limit)

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        """Return courses by id; those hidden from the subject are left out."""
        return await self._reader.fetch_courses(course_ids)

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        """Return enrollments by course and id."""
        return await self._reader.list_enrollments(position=position, limit=limit)

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each user's enrollments by id."""
        return await self._reader.fetch_enrollments_by_user(user_ids)

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        """Return each course's enrollments by id."""
        return await self._reader.fetch_enrollments_by_course(course_ids)

    async def fetch_progress(self, pairs: Collection[Pair]) -> Mapping[Pair, Progress]:
        """Return how far users are in the modules of courses."""
        return await self._reader.fetch_progress(pairs)

    async def fetch_milestones(self, pairs: Collection[Pair]) -> Mapping[Pair, Sequence[Milestone]]:
        """Return submissions to assignments."""
        return await self._reader.fetch_milestones(pairs)

    async def fetch_sections_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Section]]:
        """Return each course's sections by title."""
        return await self._reader.fetch_sections_by_course(course_ids)

    async def fetch_activity_by_user(
        self, user_ids: Collection[str], *, limit: int
    ) -> Mapping[str, Sequence[Activity]]:
        """Return each user's latest page views."""
        return await self._reader.fetch_activity_by_user(user_ids, limit=limit)

    # ---- writing

    async def create_user(self, user: NewUser) -> Written[User]:
        """Create an account, unless it is there."""
        return await self._changing(self._writing.create_user(user))

    async def create_login(self, login: NewLogin) -> Written[Login]:
        """Give a user a further login, unless they have it."""
        return await self._changing(self._writing.create_login(login))

    async def enroll(self, enrollment: NewEnrollment) -> Written[Enrollment]:
        """Give a user an active place in a course, unless they have it."""
        return await self._changing(self._writing.enroll(enrollment))

    async def end_enrollment(
        self, pair: Pair, enrollment_id: str, ending: EnrollmentEnding
    ) -> Written[Enrollment]:
        """End an enrollment, unless it has ended so."""
        return await self._changing(self._writing.end_enrollment(pair, enrollment_id, ending))

    async def _changing(self, write: Awaitable[T]) -> T:
        """Wait for a write, and let nobody be given what was read before it."""
        try:
            return await write
        finally:
            self._reader.forget()

    # ---- images

    async def fetch_file(self, reference: str, *, max_bytes: int) -> bytes:
        """Return a course's image, from wherever it is now and as a stranger would.

        Its address was typed by a teacher or is signed and soon ends, so it is asked for anew
        unless a listing told it within the last two minutes. No token goes along, not even to
        Canvas's own host.

        Raises:
            ProviderBadResponse: There is no such image, or it is not one, or too large.
            ProviderAddressRefused: It leads where the gateway may not call.
        """
        course_id = reference.removeprefix(ICON)
        if course_id == reference or not course_id:
            raise self._bad("The icon is not a course's image")
        url = await self._image_url(course_id)
        if url is None or not is_web_address(url):
            raise self._bad("The course has no image that can be fetched")
        response = await self._http.download(url, max_body_bytes=max_bytes)
        media_type = response.headers.get("content-type", "")
        if not media_type.lower().startswith("image/"):
            raise self._bad("The course's image is not an image")
        return response.body

    async def _image_url(self, course_id: str) -> str | None:
        url, kept_at = self._images.get(course_id, ("", 0.0))
        if url and asyncio.get_running_loop().time() - kept_at < _IMAGE_SECONDS:
            return url
        row = await self._reader.find_course(course_id)
        if row is None:
            return None
        self._keep_images([row])
        return row.image_download_url

    def _keep_images(self, rows: Collection[CourseRow]) -> None:
        now = asyncio.get_running_loop().time()
        found = {row.id: (row.image_download_url, now) for row in rows if row.image_download_url}
        kept = {**self._images, **found}
        self._images = dict(list(kept.items())[-_IMAGES_KEPT:])

    # ---- errors

    @property
    def _account(self) -> str:
        return f"accounts/{segment(self.provider.account_id or 'self')}"

    def _refused(self, message: str) -> ReauthRequired:
        return ReauthRequired(message, provider_id=self.provider.id)

    def _bad(self, message: str) -> ProviderBadResponse:
        return ProviderBadResponse(message, provider_id=self.provider.id)
