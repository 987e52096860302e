"""What Canvas answers, and what it means in the unified model.

Two habits of Canvas shape this module. What the caller may not see is mostly a missing key,
sometimes null, and both mean "not reported". And a course that is closed to the caller by its dates
is an id and nothing else.

Source:
    https://canvas.instructure.com/doc/api/users.html
    https://canvas.instructure.com/doc/api/courses.html
    https://canvas.instructure.com/doc/api/enrollments.html
    https://canvas.instructure.com/doc/api/submissions.html
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urlsplit

import msgspec

from sessions.mapping import instant, role_map
from storage.records import (
    Activity,
    Course,
    CourseKind,
    CourseState,
    Enrollment,
    EnrollmentSource,
    EnrollmentState,
    IconSource,
    Identifier,
    IdentifierType,
    Milestone,
    MilestoneState,
    Progress,
    ProgressMethod,
    Provenance,
    Provider,
    Role,
    RoleValue,
    Score,
    Section,
    User,
)

ROLES: Final = {
    "StudentEnrollment": RoleValue.STUDENT,
    "TeacherEnrollment": RoleValue.TEACHER,
    "TaEnrollment": RoleValue.TEACHING_ASSISTANT,
    "DesignerEnrollment": RoleValue.DESIGNER,
    "ObserverEnrollment": RoleValue.OBSERVER,
}
"""Canvas's enrollment types; a custom role is always based on one of them."""

TEST_STUDENT: Final = "StudentViewEnrollment"
"""Type of the place a teacher takes to see the course as a student would; nobody's enrollment."""

LIVE_STATES: Final = (
    "active",
    "invited",
    "creation_pending",
    "completed",
    "inactive",
    "rejected",
)
"""States an enrollment may have that is still there."""

ICON: Final = "course-image/"
"""Begins the reference to a course's image: the course's id follows, as its URL would not last."""

_ENROLLMENT_STATES = {
    "active": EnrollmentState.ACTIVE,
    "invited": EnrollmentState.PENDING,
    "creation_pending": EnrollmentState.PENDING,
    "completed": EnrollmentState.COMPLETED,
    "inactive": EnrollmentState.INACTIVE,
    "rejected": EnrollmentState.DROPPED,
}
_COURSE_STATES = {
    "available": CourseState.ACTIVE,
    "created": CourseState.INACTIVE,
    "claimed": CourseState.INACTIVE,
    "completed": CourseState.COMPLETED,
}
_MILESTONE_STATES = {
    "unsubmitted": MilestoneState.OPEN,
    "submitted": MilestoneState.SUBMITTED,
    "pending_review": MilestoneState.IN_REVIEW,
    "graded": MilestoneState.GRADED,
}
_DELETED = "deleted"
_SUFFIX = re.compile(
    r"(?:[js]n?r|esq)\.?|junior|senior|esquire|ii|iii|iv|v|vi", flags=re.IGNORECASE
)
_NAME_AND_SUFFIX = 3  # words: in "Ramesh V" the last one is a name


class _Row(msgspec.Struct, frozen=True, gc=False):
    """JSON from Canvas: unknown keys are ignored, missing ones are as good as null."""


class UserRow(_Row, frozen=True):
    """A user, as much of one as the caller may see."""

    id: str
    name: str | None = None
    sortable_name: str | None = None
    short_name: str | None = None
    login_id: str | None = None
    email: str | None = None
    sis_user_id: str | None = None
    integration_id: str | None = None
    uuid: str | None = None
    workflow_state: str | None = None
    merged_into_user_id: str | None = None

    @property
    def is_gone(self) -> bool:
        """Whether it was deleted, or merged into another; most releases do not show it then."""
        return self.workflow_state == _DELETED or self.merged_into_user_id is not None


class TermRow(_Row, frozen=True):
    """A term; courses without dates of their own have those of their term."""

    start_at: str | None = None
    end_at: str | None = None


class ProgressRow(_Row, frozen=True):
    """How many requirements of a course's modules one student has met."""

    requirement_count: int | None = None
    requirement_completed_count: int | None = None
    completed_at: str | None = None


class CourseRow(_Row, frozen=True):
    """A course; of one that is closed to the caller by its dates, only the id."""

    id: str
    name: str | None = None
    original_name: str | None = None
    course_code: str | None = None
    workflow_state: str | None = None
    public_description: str | None = None
    image_download_url: str | None = None
    start_at: str | None = None
    end_at: str | None = None
    updated_at: str | None = None
    sis_course_id: str | None = None
    integration_id: str | None = None
    uuid: str | None = None
    template: bool | None = None
    access_restricted_by_date: bool | None = None
    term: TermRow | None = None
    course_progress: ProgressRow | None = None


class GradesRow(_Row, frozen=True):
    """A student's marks; ``current`` leaves out what is not graded, ``final`` counts it as 0."""

    current_score: float | None = None
    current_grade: str | None = None
    final_score: float | None = None
    final_grade: str | None = None


class EnrollmentRow(_Row, frozen=True):
    """One user's place in one section of a course."""

    id: str
    user_id: str
    course_id: str
    type: str
    course_section_id: str | None = None
    role: str | None = None
    enrollment_state: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    start_at: str | None = None
    end_at: str | None = None
    last_activity_at: str | None = None
    total_activity_time: float | None = None
    grades: GradesRow | None = None


class SectionRow(_Row, frozen=True):
    """A part of a course that enrollments are made in."""

    id: str
    course_id: str
    name: str | None = None
    sis_section_id: str | None = None
    integration_id: str | None = None
    start_at: str | None = None
    end_at: str | None = None


class AssignmentRow(_Row, frozen=True):
    """Something to hand in."""

    id: str
    name: str | None = None
    due_at: str | None = None
    points_possible: float | None = None


class SubmissionRow(_Row, frozen=True):
    """What one student handed in for one assignment; there is one also for nothing yet."""

    id: str
    assignment_id: str
    user_id: str
    workflow_state: str | None = None
    submitted_at: str | None = None
    graded_at: str | None = None
    cached_due_date: str | None = None
    score: float | None = None
    grade: str | None = None
    attempt: int | None = None
    late: bool | None = None
    missing: bool | None = None
    excused: bool | None = None


class PageViewLinks(_Row, frozen=True):
    """Whose page view it is and where; ids that the string form of ids leaves alone."""

    user: int | str | None = None
    context: int | str | None = None


class PageViewRow(_Row, frozen=True):
    """One page that one user looked at."""

    id: str
    created_at: str | None = None
    interaction_seconds: float | None = None
    context_type: str | None = None
    links: PageViewLinks | None = None


class AccountRow(_Row, frozen=True):
    """An account: what Canvas calls an installation and its parts."""

    id: str
    name: str | None = None


class RoleRow(_Row, frozen=True):
    """A role of an account; those Canvas comes with are ``built_in``."""

    workflow_state: str | None = None
    base_role_type: str | None = None

    @property
    def is_custom(self) -> bool:
        """Whether enrollments may have it and Canvas does not come with it."""
        return self.workflow_state != "built_in" and self.base_role_type != "AccountMembership"


class BulkProgressRow(_Row, frozen=True):
    """One student's progress among those of a course; errors have none of its fields."""

    id: str
    progress: ProgressRow | None = None


# ---- rows to records ---------------------------------------------------------------------


class Converter:
    """Turns rows of one installation into records.

    Args:
        provider: Its options may map roles.
        root: Where pages for people are.
    """

    def __init__(self, provider: Provider, *, root: str) -> None:
        self._provider_id = provider.id
        self._root = root
        self._roles = role_map(ROLES, provider.options)

    def user(self, row: UserRow) -> User:
        """Return a user; the email is the email, never the login."""
        display_name = row.short_name or row.name or ""
        parts = name_parts(row.sortable_name or row.name or "")
        return User(
            provider_id=self._provider_id,
            external_id=row.id,
            username=row.login_id or None,
            display_name=display_name,
            given_name=parts.given,
            family_name=parts.family,
            email=row.email or None,
            identifiers=_identifiers(
                ("sis_user_id", row.sis_user_id),
                ("integration_id", row.integration_id),
                ("uuid", row.uuid),
            ),
            provenance=self._provenance(row.id, "user"),
        )

    def courses(self, rows: Iterable[CourseRow]) -> list[Course]:
        """Return courses that are not deleted."""
        return [self._course(row) for row in rows if row.workflow_state != _DELETED]

    def _course(self, row: CourseRow) -> Course:
        term = row.term or TermRow()
        state = _COURSE_STATES.get(row.workflow_state or "", CourseState.UNKNOWN)
        return Course(
            provider_id=self._provider_id,
            external_id=row.id,
            kind=CourseKind.COURSE,
            title=row.original_name or row.name or f"Course {row.id}, closed at present",
            course_code=row.course_code or None,
            description=plain_text(row.public_description or "") or None,
            state=CourseState.TEMPLATE if row.template else state,
            starts_at=instant(row.start_at) or instant(term.start_at),
            ends_at=instant(row.end_at) or instant(term.end_at),
            url=f"{self._root}/courses/{row.id}",
            icon=_icon(row),
            identifiers=_identifiers(
                ("sis_course_id", row.sis_course_id),
                ("integration_id", row.integration_id),
                ("uuid", row.uuid),
            ),
            provenance=self._provenance(row.id, "course", modified_at=row.updated_at),
        )

    def enrollments(self, rows: Iterable[EnrollmentRow]) -> list[Enrollment]:
        """Return enrollments by id, without those deleted and those of test students.

        A user with several in one course keeps them all: they are in other sections or roles.
        """
        return [self.enrollment(row) for row in kept(rows)]

    def enrollment(self, row: EnrollmentRow) -> Enrollment:
        """Return one enrollment."""
        return Enrollment(
            provider_id=self._provider_id,
            id=row.id,
            external_id=row.id,
            user_id=row.user_id,
            course_id=row.course_id,
            section_id=row.course_section_id,
            role=self._role(row),
            state=_ENROLLMENT_STATES.get(row.enrollment_state or "", EnrollmentState.UNKNOWN),
            source=EnrollmentSource.ROSTER,
            enrolled_at=instant(row.created_at),
            starts_at=instant(row.start_at),
            ends_at=instant(row.end_at),
            last_activity_at=instant(row.last_activity_at),
            progress=_enrollment_progress(row),
            provenance=self._provenance(row.id, row.type, modified_at=row.updated_at),
        )

    def _role(self, row: EnrollmentRow) -> Role:
        word = row.role or row.type
        value = self._roles.get(word) or self._roles.get(row.type, RoleValue.OTHER)
        return Role(value=value, source_value=word)

    def milestones(
        self,
        rows: Iterable[SubmissionRow],
        assignments: Mapping[str, AssignmentRow],
        *,
        course_id: str,
    ) -> list[Milestone]:
        """Return one student's milestones in the order in which they are due."""
        found = [
            self._milestone(row, assignments.get(row.assignment_id), course_id=course_id)
            for row in rows
        ]
        return sorted(found, key=_due_order)

    def _milestone(
        self, row: SubmissionRow, assignment: AssignmentRow | None, *, course_id: str
    ) -> Milestone:
        state = _MILESTONE_STATES.get(row.workflow_state or "", MilestoneState.UNKNOWN)
        points = assignment.points_possible if assignment else None
        due_at = row.cached_due_date or (assignment.due_at if assignment else None)
        return Milestone(
            provider_id=self._provider_id,
            external_id=row.id,
            user_id=row.user_id,
            course_id=course_id,
            title=(assignment.name or None) if assignment else None,
            state=MilestoneState.EXCUSED if row.excused else state,
            due_at=instant(due_at),
            submitted_at=instant(row.submitted_at),
            graded_at=instant(row.graded_at),
            score=_score(row.score, grade=row.grade, most=points),
            attempt=row.attempt,
            late=row.late,
            missing=row.missing,
            provenance=self._provenance(row.id, "submission"),
        )

    def sections(self, rows: Iterable[SectionRow]) -> list[Section]:
        """Return sections by title."""
        found = [
            Section(
                provider_id=self._provider_id,
                external_id=row.id,
                course_id=row.course_id,
                title=row.name or f"Section {row.id}",
                identifiers=_identifiers(
                    ("sis_section_id", row.sis_section_id), ("integration_id", row.integration_id)
                ),
                starts_at=instant(row.start_at),
                ends_at=instant(row.end_at),
                provenance=self._provenance(row.id, "section"),
            )
            for row in rows
        ]
        return sorted(found, key=lambda section: (section.title.casefold(), section.external_id))

    def activities(self, rows: Iterable[PageViewRow], *, user_id: str) -> list[Activity]:
        """Return page views, newest first; one without an instant is left out."""
        found = []
        for row in rows:
            at = instant(row.created_at)
            if at is None:
                continue
            context = row.links.context if row.links and row.context_type == "Course" else None
            found.append(
                Activity(
                    provider_id=self._provider_id,
                    external_id=row.id,
                    user_id=user_id,
                    course_id=None if context is None else str(context),
                    kind="page_view",
                    at=at,
                    seconds=row.interaction_seconds,
                    provenance=self._provenance(row.id, "page_view"),
                )
            )
        return sorted(found, key=lambda activity: activity.at, reverse=True)

    def _provenance(
        self, external_id: str, source_type: str, *, modified_at: str | None = None
    ) -> Provenance:
        return Provenance(
            provider_id=self._provider_id,
            external_id=external_id,
            source_type=source_type,
            fetched_at=datetime.now(UTC),
            modified_at=instant(modified_at),
        )


def kept(rows: Iterable[EnrollmentRow]) -> list[EnrollmentRow]:
    """Return each enrollment once, by id, without those deleted and those of test students."""
    found = {
        row.id: row for row in rows if row.type != TEST_STUDENT and row.enrollment_state != _DELETED
    }
    return sorted(found.values(), key=row_order)


def progress(row: ProgressRow) -> Progress | None:
    """Return how far a student is; ``None`` where there is nothing to be met, or an error."""
    total, done = row.requirement_count, row.requirement_completed_count
    if not total or done is None:
        return None
    completed_at = instant(row.completed_at)
    return Progress(
        ratio=min(1.0, done / total),
        completed_count=done,
        total_count=total,
        completed=completed_at is not None or done >= total,
        completed_at=completed_at,
        method=ProgressMethod.REPORTED,
    )


def _enrollment_progress(row: EnrollmentRow) -> Progress | None:
    marks = row.grades or GradesRow()
    score = _score(marks.current_score, grade=marks.current_grade, most=100.0)
    if score is None and row.total_activity_time is None:
        return None
    seconds = row.total_activity_time
    return Progress(
        time_spent_seconds=None if seconds is None else round(seconds),
        score=score,
        method=ProgressMethod.REPORTED,
    )


def _score(raw: float | None, *, grade: str | None, most: float | None) -> Score | None:
    """Return marks; extra credit lets them pass the most there is, but ``scaled`` ends at 1."""
    if raw is None and grade is None:
        return None
    scaled = None if raw is None or not most else max(-1.0, min(1.0, raw / most))
    return Score(raw=raw, min=0.0, max=most, scaled=scaled, grade=grade)


def _icon(row: CourseRow) -> IconSource | None:
    """Return where an image can be had for longer than its URL lasts, which is signed."""
    if not row.image_download_url:
        return None
    bare = row.image_download_url.partition("#")[0].partition("?")[0]
    version = hashlib.sha256(bare.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return IconSource(reference=f"{ICON}{row.id}", version=version)


def _identifiers(*named: tuple[str, str | None]) -> tuple[Identifier, ...]:
    return tuple(
        Identifier(
            type=IdentifierType.SIS_ID if name.startswith("sis_") else IdentifierType.OTHER,
            value=value,
            namespace=name,
        )
        for name, value in named
        if value
    )


def _due_order(milestone: Milestone) -> tuple[bool, datetime, tuple[int, str]]:
    due_at = milestone.due_at
    never = datetime.max.replace(tzinfo=UTC)
    return due_at is None, due_at or never, number_order(milestone.external_id)


# ---- names, roles, instants --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NameParts:
    """Parts of a name in Canvas's sense, where given names are all but the family name."""

    given: str | None = None
    family: str | None = None
    suffix: str | None = None


def name_parts(text: str) -> NameParts:
    """Read a sortable name, ``Family, Given Names, Suffix``, or one in reading order.

    Without a comma the last word is the family name, as Canvas itself has it; one word alone is a
    given name.
    """
    family, *others = (" ".join(piece.split()) for piece in text.split(","))
    if not others:
        return _unsorted_parts(family.split())
    words = " ".join(others).split()
    suffix = words.pop() if len(words) > 1 and _SUFFIX.fullmatch(words[-1]) else None
    return NameParts(" ".join(words) or None, family or None, suffix)


def _unsorted_parts(words: Sequence[str]) -> NameParts:
    suffix = None
    if len(words) >= _NAME_AND_SUFFIX and _SUFFIX.fullmatch(words[-1]):
        *words, suffix = words
    if len(words) <= 1:
        return NameParts(given=words[0] if words else None)
    return NameParts(" ".join(words[:-1]), words[-1], suffix)


def number_order(external_id: str) -> tuple[int, str]:
    """Return what ids are ordered by: as numbers, also those too long for one."""
    return len(external_id), external_id


def row_order(row: EnrollmentRow | SectionRow | UserRow) -> tuple[int, str]:
    """Return what rows are ordered by: their ids."""
    return number_order(row.id)


class _Text(HTMLParser):
    """Gathers what a person would read; what starts a line in HTML starts one here."""

    _SILENT: Final[Collection[str]] = frozenset({"script", "style", "template"})
    _BREAKS: Final[Collection[str]] = frozenset(
        {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol"}
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - theirs
        self._silent += tag in self._SILENT
        self.pieces.append("\n" if tag in self._BREAKS else "")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in self._SILENT))
        self.pieces.append("\n" if tag in self._BREAKS else "")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.pieces.append(data)


def plain_text(html: str) -> str:
    """Return the text in a piece of HTML that somebody typed, one paragraph per line."""
    reader = _Text()
    reader.feed(html)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.pieces).splitlines())
    return "\n".join(line for line in lines if line)


def is_web_address(text: str) -> bool:
    """Whether an image's address is one that can be fetched."""
    try:
        return urlsplit(text).scheme.lower() in {"http", "https"}
    except ValueError:
        return False
