"""Records: the frozen values that cross package borders.

Names follow OneRoster 1.2 (https://www.imsglobal.org/spec/oneroster/v1p2). ``None`` always
means "not reported by the provider", never zero, false or empty. External ids are strings,
unique only together with their provider id. Instants are aware UTC datetimes.

What providers have is kept by the hundred thousand, so those records are structs: two thirds of a
dataclass, and nothing to the garbage collector (``gc=False``). That is safe because they hold
texts, numbers, instants and other records, and never themselves. ``msgspec.structs.replace`` makes
a changed copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec


class RoleValue(StrEnum):
    """A role as every platform's own words are mapped to it (OneRoster 1.2 role enumeration)."""

    STUDENT = "STUDENT"
    TEACHER = "TEACHER"
    TEACHING_ASSISTANT = "TEACHING_ASSISTANT"
    AIDE = "AIDE"
    DESIGNER = "DESIGNER"
    PROCTOR = "PROCTOR"
    OBSERVER = "OBSERVER"
    GUARDIAN = "GUARDIAN"
    ADMINISTRATOR = "ADMINISTRATOR"
    MEMBER = "MEMBER"
    OTHER = "OTHER"


class CourseKind(StrEnum):
    """What kind of thing users enroll in.

    CLASS has a roster (OneRoster Class, Kolibri classroom); COURSE is taught along a plan
    (Canvas course, Kolibri course session); LIBRARY is self-paced content (Kolibri channel).
    """

    CLASS = "CLASS"
    COURSE = "COURSE"
    LIBRARY = "LIBRARY"


class CourseState(StrEnum):
    """Where a course is in its life; UNKNOWN when the provider's word has no counterpart."""

    TEMPLATE = "TEMPLATE"
    UPCOMING = "UPCOMING"
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    COMPLETED = "COMPLETED"
    ARCHIVED = "ARCHIVED"
    UNKNOWN = "UNKNOWN"


class EnrollmentState(StrEnum):
    """Where an enrollment is in its life; UNKNOWN when the provider does not say."""

    ACTIVE = "ACTIVE"
    UPCOMING = "UPCOMING"
    PENDING = "PENDING"
    INACTIVE = "INACTIVE"
    COMPLETED = "COMPLETED"
    DROPPED = "DROPPED"
    UNKNOWN = "UNKNOWN"


class EnrollmentSource(StrEnum):
    """ROSTER: somebody enrolled the user; ACTIVITY: derived from what the user did."""

    ROSTER = "ROSTER"
    ACTIVITY = "ACTIVITY"


class ProgressMethod(StrEnum):
    """REPORTED by the provider, or DERIVED by the gateway from finer records."""

    REPORTED = "REPORTED"
    DERIVED = "DERIVED"


class IdentifierType(StrEnum):
    """What an identifier other than the external id identifies (after OneRoster userIds)."""

    SCHOOL_ID = "SCHOOL_ID"
    SIS_ID = "SIS_ID"
    STATE_ID = "STATE_ID"
    USER_MASTER = "USER_MASTER"
    ORGANISATION = "ORGANISATION"
    OTHER = "OTHER"


class Gender(StrEnum):
    """A gender, in the words of OneRoster 1.2; UNSPECIFIED is what the user chose to say."""

    FEMALE = "FEMALE"
    MALE = "MALE"
    OTHER = "OTHER"
    UNSPECIFIED = "UNSPECIFIED"


class DataSource(StrEnum):
    """LIVE: read for this request; CACHE: earlier, still fresh; STALE: too old, source down."""

    LIVE = "LIVE"
    CACHE = "CACHE"
    STALE = "STALE"


class SessionState(StrEnum):
    """State of one session (see docs/architecture.md, "Sessions")."""

    EMPTY = "EMPTY"
    ACTIVE = "ACTIVE"
    REFRESHING = "REFRESHING"
    BACKOFF = "BACKOFF"
    REAUTH_REQUIRED = "REAUTH_REQUIRED"
    DISABLED = "DISABLED"


class ProviderState(StrEnum):
    """PENDING: registered, not yet proven; ACTIVE: reached, version read, logged in once."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    DISABLED = "DISABLED"


class Provenance(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a record comes from.

    Attributes:
        provider_id: The product's own id of the provider, such as ``"1"``.
        external_id: The id the provider gave, or the derived one when it has none.
        source_type: The provider's own word for the thing: ``facilityuser``, ``channel``.
        fetched_at: When the gateway read it.
        modified_at: When the provider says it last changed.
        via: Whether it was read for this request or earlier.
    """

    provider_id: str
    external_id: str
    source_type: str
    fetched_at: datetime
    modified_at: datetime | None = None
    via: DataSource = DataSource.LIVE

    @property
    def stale(self) -> bool:
        """Whether a newer answer was wanted and could not be had."""
        return self.via is DataSource.STALE


class Role(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A unified role beside the provider's own word for it."""

    value: RoleValue
    source_value: str


class Identifier(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An identifier other than the external id; ``namespace`` says within what it is unique."""

    type: IdentifierType
    value: str
    namespace: str | None = None


class User(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An account as one provider knows it.

    ``display_name`` is the provider's text untouched and may be empty. The name parts are
    ``None`` unless they can be told with confidence. ``locale`` is BCP 47, ``time_zone`` IANA.
    """

    provider_id: str
    external_id: str
    username: str | None
    display_name: str
    given_name: str | None = None
    middle_name: str | None = None
    family_name: str | None = None
    email: str | None = None
    identifiers: tuple[Identifier, ...] = ()
    roles: tuple[Role, ...] = ()
    active: bool | None = None
    locale: str | None = None
    time_zone: str | None = None
    birth_year: int | None = None
    gender: Gender | None = None
    last_activity_at: datetime | None = None
    provenance: Provenance


class IconSource(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a course's icon can be had.

    Attributes:
        reference: A data URI, or a URL relative to or below the provider's base URL. Hostile
            until decoded and verified.
        fallback_references: Tried in order when ``reference`` gives no usable image.
        version: Changes when the icon may have changed (a content version, an ETag); with the
            reference it is the key under which the outcome is remembered.
    """

    reference: str
    fallback_references: tuple[str, ...] = ()
    version: str | None = None


class Course(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What users of one provider enroll in."""

    provider_id: str
    external_id: str
    kind: CourseKind
    title: str
    course_code: str | None = None
    description: str | None = None
    language: str | None = None
    state: CourseState
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    url: str | None = None
    icon: IconSource | None = None
    resource_count: int | None = None
    identifiers: tuple[Identifier, ...] = ()
    provenance: Provenance


class Score(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A result in xAPI's terms; ``scaled`` is between -1 and 1."""

    raw: float | None = None
    min: float | None = None
    max: float | None = None
    scaled: float | None = None
    grade: str | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How far a user is in a course; ``ratio`` is between 0 and 1."""

    ratio: float | None = None
    completed_count: int | None = None
    total_count: int | None = None
    completed: bool | None = None
    completed_at: datetime | None = None
    time_spent_seconds: int | None = None
    score: Score | None = None
    method: ProgressMethod


class MilestoneState(StrEnum):
    """How far one piece of a user's work is.

    OPEN: not handed in; SUBMITTED: handed in; IN_REVIEW: marks are not final; GRADED: done;
    EXCUSED: the user need not; UNKNOWN: the provider's word has no counterpart.
    """

    OPEN = "OPEN"
    SUBMITTED = "SUBMITTED"
    IN_REVIEW = "IN_REVIEW"
    GRADED = "GRADED"
    EXCUSED = "EXCUSED"
    UNKNOWN = "UNKNOWN"


class Milestone(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One piece of work of one user in one course (Canvas: a submission to an assignment).

    Attributes:
        title: Of the piece of work; ``None`` when only its id is known.
        attempt: How often it was handed in; ``None`` when not reported.
        late: Handed in after it was due.
        missing: Due, and not handed in.
    """

    provider_id: str
    external_id: str
    user_id: str
    course_id: str
    title: str | None = None
    state: MilestoneState
    due_at: datetime | None = None
    submitted_at: datetime | None = None
    graded_at: datetime | None = None
    score: Score | None = None
    attempt: int | None = None
    late: bool | None = None
    missing: bool | None = None
    provenance: Provenance


class Section(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A part of a course that enrollments are made in."""

    provider_id: str
    external_id: str
    course_id: str
    title: str
    identifiers: tuple[Identifier, ...] = ()
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    provenance: Provenance


class Activity(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing a user did at a provider (Canvas: a page view).

    Attributes:
        course_id: External id of the course it was done in, if in one.
        seconds: How long it took, as reported.
    """

    provider_id: str
    external_id: str
    user_id: str
    course_id: str | None = None
    kind: str
    at: datetime
    seconds: float | None = None
    provenance: Provenance


class Enrollment(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One user's place in one course, with a role.

    ``id`` is unique within the provider and stable: the external id where the provider has
    one, else derived from user, course and role. ``user_id`` and ``course_id`` are external ids,
    and so is ``section_id``, the part of the course it is in.
    """

    provider_id: str
    id: str
    external_id: str | None
    user_id: str
    course_id: str
    section_id: str | None = None
    role: Role
    state: EnrollmentState
    source: EnrollmentSource
    enrolled_at: datetime | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    last_activity_at: datetime | None = None
    progress: Progress | None = None
    provenance: Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One registered installation of a platform; its credentials are kept apart, sealed.

    Attributes:
        id: The product's own id, ``[A-Za-z0-9_-]{1,64}``.
        platform: Name of the platform, such as ``kolibri``.
        base_url: Origin and optional path prefix, no credentials, no trailing slash.
        account_id: Which part of the installation is meant (Kolibri: the facility id).
        options: Settings of this provider the platform understands, such as a role map.
        version: The software version last read from it.
        revision: Raised by every change that its sessions must notice; what a check found does not.
        problem: Why the last check failed, for a person.
        writes: Raised whenever the gateway wrote there, or an import found a change, so that what
            was read before is known to be out of date.
    """

    id: str
    platform: str
    name: str
    base_url: str
    account_id: str | None = None
    options: Mapping[str, str]
    state: ProviderState
    version: str | None = None
    revision: int
    problem: str | None = None
    created_at: datetime
    updated_at: datetime
    checked_at: datetime | None = None
    writes: int = 0
