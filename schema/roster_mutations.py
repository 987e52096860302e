"""What can be written at providers: the fields of ``Mutation`` about users and enrollments."""

# Strawberry types its decorators as Any when they take only keywords.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import strawberry
from strawberry.types.enum import StrawberryEnumDefinition

from resolvers import writing
from resolvers.context import Scope
from resolvers.errors import BadInput
from resolvers.loaders import ExternalKey
from resolvers.writing import EndingWish, EnrollmentWish, WriteRefusal
from schema import global_ids
from schema.auditing import AUDITED
from schema.enums import ErrorCode, error_code
from schema.scalars import read_instant
from schema.types import Enrollment, GatewayInfo, User
from sessions import base
from sessions.base import EnrollmentEnding, NewLogin, NewUser
from storage.records import RoleValue

_IDEMPOTENCY_KEY = (
    "1 to 128 visible ASCII characters of the caller's choice, a new one for every write. Asked"
    " for again with the same key within 24 hours, the first answer is given and nothing is sent"
    " to the provider."
)
_NOTIFY = "Whether the provider may write to the user about it."
_USER_ID = "Global id of the user."

strawberry.enum(EnrollmentEnding, description="How an enrollment ends.")
_ending: StrawberryEnumDefinition = EnrollmentEnding.__strawberry_definition__  # type: ignore[attr-defined]  # put there by strawberry.enum
for _value in _ending.values:
    _value.description = {
        "CONCLUDE": "It is over and stays on record.",
        "DEACTIVATE": "It is suspended; enrolling again makes it active.",
        "REMOVE": "It is taken back, as if it had not been.",
    }[_value.name]


@strawberry.input(description="An account to be created.")
class CreateUserInput:
    """An account to be created."""

    provider_id: strawberry.ID = strawberry.field(
        description="Where, by the product's own id for the provider."
    )
    username: str = strawberry.field(
        description="What the user logs in with; unique at the provider."
    )
    display_name: str = strawberry.field(description="Full name in reading order.")
    given_name: str | None = strawberry.field(
        default=None, description="With familyName, says how the user is sorted."
    )
    family_name: str | None = strawberry.field(
        default=None, description="With givenName, says how the user is sorted."
    )
    email: str | None = strawberry.field(default=None, description="Null for none.")
    sis_id: str | None = strawberry.field(
        default=None, description="Id in the student information system; null for none."
    )
    locale: str | None = strawberry.field(
        default=None, description="BCP 47 language tag; null for the provider's default."
    )
    time_zone: str | None = strawberry.field(
        default=None, description="IANA time zone name; null for the provider's default."
    )
    notify: bool = strawberry.field(default=False, description=_NOTIFY)
    idempotency_key: str | None = strawberry.field(default=None, description=_IDEMPOTENCY_KEY)

    def record(self) -> NewUser:
        """Return the account the resolvers take."""
        return NewUser(
            username=self.username,
            display_name=self.display_name,
            given_name=self.given_name,
            family_name=self.family_name,
            email=self.email,
            sis_id=self.sis_id,
            locale=self.locale,
            time_zone=self.time_zone,
            notify=self.notify,
        )


@strawberry.input(description="A further way for a user to log in.")
class CreateLoginInput:
    """A further way for a user to log in."""

    user_id: strawberry.ID = strawberry.field(description=_USER_ID)
    username: str = strawberry.field(
        description="What the user logs in with; unique at the provider."
    )
    sis_id: str | None = strawberry.field(
        default=None, description="Id in the student information system; null for none."
    )
    identity_provider: str | None = strawberry.field(
        default=None,
        description="How the login is checked, in the provider's words (Canvas: id or type of the"
        " authentication provider); null for the provider's default.",
    )
    idempotency_key: str | None = strawberry.field(default=None, description=_IDEMPOTENCY_KEY)

    def record(self) -> tuple[str, NewLogin]:
        """Return the provider's id and the login the resolvers take.

        Raises:
            BadInput: The id is not one of a user.
        """
        provider_id, user_id = _key_of(self.user_id, global_ids.USER, "userId")
        login = NewLogin(
            user_id=user_id,
            username=self.username,
            sis_id=self.sis_id,
            identity_provider=self.identity_provider,
        )
        return provider_id, login


@strawberry.input(description="A place in a course to be given to a user of the same provider.")
class EnrollUserInput:
    """A place in a course to be given to a user."""

    user_id: strawberry.ID = strawberry.field(description=_USER_ID)
    course_id: strawberry.ID = strawberry.field(description="Global id of the course.")
    role: RoleValue = strawberry.field(
        default=RoleValue.STUDENT, description="As what; refused where the provider has none such."
    )
    source_role: str | None = strawberry.field(
        default=None,
        description="The provider's own word, where its finer roles matter; wins over role.",
    )
    section_id: str | None = strawberry.field(
        default=None,
        description="External id of a section of the course; null for the provider's choice.",
    )
    starts_at: datetime | None = strawberry.field(
        default=None, description="Null for the course's own dates."
    )
    ends_at: datetime | None = strawberry.field(
        default=None, description="After startsAt; null for the course's own dates."
    )
    notify: bool = strawberry.field(default=False, description=_NOTIFY)
    idempotency_key: str | None = strawberry.field(default=None, description=_IDEMPOTENCY_KEY)

    def record(self) -> EnrollmentWish:
        """Return the wish the resolvers take.

        Raises:
            BadInput: An id is not one of a user, or of a course; a date is none.
        """
        return EnrollmentWish(
            user=_key_of(self.user_id, global_ids.USER, "userId"),
            course=_key_of(self.course_id, global_ids.COURSE, "courseId"),
            role=self.role,
            source_role=self.source_role,
            section_id=self.section_id,
            starts_at=read_instant(self.starts_at, "startsAt"),
            ends_at=read_instant(self.ends_at, "endsAt"),
            notify=self.notify,
        )


@strawberry.input(description="An enrollment to be ended.")
class EndEnrollmentInput:
    """An enrollment to be ended."""

    enrollment_id: strawberry.ID = strawberry.field(description="Global id of the enrollment.")
    course_id: strawberry.ID | None = strawberry.field(
        default=None,
        description="Global id of its course, which spares the gateway a look at the user's"
        " enrollments; null to have it looked up.",
    )
    ending: EnrollmentEnding = strawberry.field(
        default=EnrollmentEnding.CONCLUDE, description="How it ends."
    )
    idempotency_key: str | None = strawberry.field(default=None, description=_IDEMPOTENCY_KEY)

    def record(self) -> EndingWish:
        """Return the wish the resolvers take.

        Raises:
            BadInput: An id is not one of an enrollment, or of a course.
        """
        argument = "enrollmentId"
        found = global_ids.decode(
            self.enrollment_id, argument=argument, type_name=global_ids.ENROLLMENT
        )
        user_id, enrollment_id = global_ids.enrollment_parts(found, argument=argument)
        course = None
        if self.course_id is not None:
            course = _key_of(self.course_id, global_ids.COURSE, "courseId")
        return EndingWish(
            user=(found.provider_id, user_id),
            enrollment_id=enrollment_id,
            course=course,
            ending=self.ending,
        )


@strawberry.type(description="One way for a user to log in.")
class Login:
    """One way for a user to log in."""

    external_id: str = strawberry.field(description="The provider's own id, exactly.")
    username: str = strawberry.field(description="What the user logs in with.")

    @classmethod
    def from_record(cls, record: base.Login) -> Login:
        """Build the type from its record."""
        return cls(external_id=record.id, username=record.username)


@strawberry.type(description="An account as it is at the provider now.")
class CreateUserPayload:
    """An account as it is at the provider now."""

    user: User = strawberry.field(description="The account.")
    created: bool = strawberry.field(description="False when it was there before.")


@strawberry.type(description="A login as it is at the provider now.")
class CreateLoginPayload:
    """A login as it is at the provider now."""

    login: Login = strawberry.field(description="The login.")
    created: bool = strawberry.field(description="False when the user had it before.")


@strawberry.type(description="An enrollment as it is at the provider now.")
class EnrollUserPayload:
    """An enrollment as it is at the provider now."""

    enrollment: Enrollment = strawberry.field(
        description="The enrollment. PENDING when the provider leaves it to the user to accept it."
    )
    created: bool = strawberry.field(
        description="False when nothing had to be changed: the user had the place before."
    )


@strawberry.type(description="An enrollment as it ended.")
class EndEnrollmentPayload:
    """An enrollment as it ended."""

    enrollment: Enrollment = strawberry.field(description="The enrollment.")
    changed: bool = strawberry.field(description="False when it had ended so before.")


@strawberry.type(description="Why nothing was written.")
class WriteRefused:
    """Why nothing was written."""

    code: ErrorCode = strawberry.field(description="For logic.")
    message: str = strawberry.field(
        description="For a person: what is wrong, in the provider's own words where it said so."
    )
    field: str | None = strawberry.field(
        description="The input at fault, such as username; null when none is."
    )
    retryable: bool = strawberry.field(
        description="Whether the same request may succeed later. Then it may also have been"
        " carried out after all: ask again with the same idempotencyKey, and it is looked for"
        " before anything is sent."
    )
    retry_after_seconds: int | None = strawberry.field(
        description="How long to wait before; null when that is not known."
    )
    provider_id: strawberry.ID | None = strawberry.field(
        description="The product's own id of the provider; null when no provider was named."
    )

    @classmethod
    def from_record(cls, record: WriteRefusal) -> WriteRefused:
        """Build the type from its record."""
        return cls(
            code=error_code(record.code) or ErrorCode.INTERNAL,
            message=record.message,
            field=None if record.field is None else _as_in_the_api(record.field),
            retryable=record.retryable,
            retry_after_seconds=record.retry_after_seconds,
            provider_id=None if record.provider_id is None else strawberry.ID(record.provider_id),
        )


CreateUserResult = Annotated[
    CreateUserPayload | WriteRefused,
    strawberry.union("CreateUserResult", description="The account, or why there is none."),
]
CreateLoginResult = Annotated[
    CreateLoginPayload | WriteRefused,
    strawberry.union("CreateLoginResult", description="The login, or why there is none."),
]
EnrollUserResult = Annotated[
    EnrollUserPayload | WriteRefused,
    strawberry.union("EnrollUserResult", description="The enrollment, or why there is none."),
]
EndEnrollmentResult = Annotated[
    EndEnrollmentPayload | WriteRefused,
    strawberry.union("EndEnrollmentResult", description="The enrollment, or why it goes on."),
]


@strawberry.type
class RosterMutation:
    """What can be written at providers; a part of ``Mutation``."""

    @strawberry.mutation(
        extensions=AUDITED,
        description="Create an account at a provider, unless it is there: the same username with"
        " the same SIS id, or without one with the same name. Needs the scope write:users.",
    )
    async def create_user(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            CreateUserInput, strawberry.argument(description="The account.")
        ],
    ) -> CreateUserResult:
        """Create a user."""
        context, key = info.context, input.idempotency_key
        found = await writing.create_user(context, input.provider_id, input.record(), key=key)
        if isinstance(found, WriteRefusal):
            return WriteRefused.from_record(found)
        return CreateUserPayload(user=User.from_record(found.record), created=found.created)

    @strawberry.mutation(
        extensions=AUDITED,
        description="Give a user a further way to log in, unless they have it. Needs the scope"
        " write:users.",
    )
    async def create_login(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            CreateLoginInput, strawberry.argument(description="The login.")
        ],
    ) -> CreateLoginResult:
        """Create a login."""
        context, key = info.context, input.idempotency_key
        context.require(Scope.WRITE_USERS)
        try:
            provider_id, login = input.record()
        except BadInput as error:
            return _refused(error)
        found = await writing.create_login(context, provider_id, login, key=key)
        if isinstance(found, WriteRefusal):
            return WriteRefused.from_record(found)
        return CreateLoginPayload(login=Login.from_record(found.record), created=found.created)

    @strawberry.mutation(
        extensions=AUDITED,
        description="Give a user an active place in a course, unless they have it. Needs the scope"
        " write:enrollments.",
    )
    async def enroll_user(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            EnrollUserInput, strawberry.argument(description="The place.")
        ],
    ) -> EnrollUserResult:
        """Enroll a user."""
        context, key = info.context, input.idempotency_key
        context.require(Scope.WRITE_ENROLLMENTS)
        try:
            wish = input.record()
        except BadInput as error:
            return _refused(error)
        found = await writing.enroll(context, wish, key=key)
        if isinstance(found, WriteRefusal):
            return WriteRefused.from_record(found)
        return EnrollUserPayload(
            enrollment=Enrollment.from_record(found.record), created=found.created
        )

    @strawberry.mutation(
        extensions=AUDITED,
        description="End an enrollment, unless it has ended so. Needs the scope write:enrollments.",
    )
    async def end_enrollment(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            EndEnrollmentInput, strawberry.argument(description="The enrollment and its ending.")
        ],
    ) -> EndEnrollmentResult:
        """End an enrollment."""
        context, key = info.context, input.idempotency_key
        context.require(Scope.WRITE_ENROLLMENTS)
        try:
            wish = input.record()
        except BadInput as error:
            return _refused(error)
        found = await writing.end_enrollment(context, wish, key=key)
        if isinstance(found, WriteRefusal):
            return WriteRefused.from_record(found)
        return EndEnrollmentPayload(
            enrollment=Enrollment.from_record(found.record), changed=found.created
        )


def _key_of(text: str, type_name: str, argument: str) -> ExternalKey:
    found = global_ids.decode(text, argument=argument, type_name=type_name)
    return found.provider_id, found.local_id


def _refused(error: BadInput) -> WriteRefused:
    return WriteRefused(
        code=ErrorCode.BAD_INPUT,
        message=error.message.removeprefix(f"{error.argument}: "),
        field=error.argument,
        retryable=False,
        retry_after_seconds=None,
        provider_id=None,
    )


def _as_in_the_api(name: str) -> str:
    """Return ``course_id`` as ``courseId``."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)
