"""Starting early what hangs on a list, so that each provider's chain of reads runs at its own pace.

GraphQL resolves a list before the fields of its rows: a slow provider's users would hold up
everybody's enrollments, and their courses after that. What a query wants of the rows is therefore
begun as soon as one provider's rows are here, by the same loaders whose answers the fields then
find waiting. Only rows that are certain to be given are followed, and only whole lists, so that
nothing is read that would not be read anyway, nor in more calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from resolvers.context import RequestContext, Scope
from resolvers.errors import RequestRefused
from resolvers.loaders import Outcomes, Soon, after
from sessions.errors import ProviderError
from storage.records import Course, Enrollment, User


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a query wants of each row of a list by further reads; ``None`` for what it does not.

    Attributes:
        enrollments: Of each enrollment of a user or course.
        user: Of the user of an enrollment.
        course: Of its course.
    """

    enrollments: Wanted | None = None
    user: Wanted | None = None
    course: Wanted | None = None


NOTHING = Wanted()


def follow(
    context: RequestContext, wanted: Wanted, rows: Sequence[User | Course | Enrollment]
) -> None:
    """Begin to read what is wanted of one provider's rows, all of a kind, and of what that is.

    What cannot be had is told by the fields that ask for it.
    """
    if not rows or wanted == NOTHING:
        return
    loaders = context.loaders
    reads = context.access.allows
    if isinstance(rows[0], Enrollment):
        places = [row for row in rows if isinstance(row, Enrollment)]
        if wanted.user is not None and reads(Scope.READ_USERS):
            users = loaders.user_by_id.load_each((row.provider_id, row.user_id) for row in places)
            _follow(context, wanted.user, users)
        if wanted.course is not None and reads(Scope.READ_COURSES):
            courses = loaders.course_by_id.load_each(
                (row.provider_id, row.course_id) for row in places
            )
            _follow(context, wanted.course, courses)
    elif wanted.enrollments is not None and reads(Scope.READ_ENROLLMENTS):
        of_users = isinstance(rows[0], User)
        loader = loaders.enrollments_by_user if of_users else loaders.enrollments_by_course
        lists = loader.load_each((row.provider_id, row.external_id or "") for row in rows)
        _follow(context, wanted.enrollments, after(lists, _joined))


def _follow(
    context: RequestContext,
    wanted: Wanted,
    found: Soon[Outcomes[User] | Outcomes[Course] | Outcomes[Enrollment]],
) -> None:
    """Follow what was found, at once or in a task of its own."""
    if not isinstance(found, Awaitable):
        follow(context, wanted, _there(found))
    else:
        context.loaders.start(_follow_later(context, wanted, found))


async def _follow_later(
    context: RequestContext,
    wanted: Wanted,
    found: Awaitable[Outcomes[User] | Outcomes[Course] | Outcomes[Enrollment]],
) -> None:
    with suppress(ProviderError, RequestRefused):
        follow(context, wanted, _there(await found))


def _there(
    found: Outcomes[User] | Outcomes[Course] | Outcomes[Enrollment],
) -> Sequence[User | Course | Enrollment]:
    """Return what could be had, each once."""
    rows = {id(row): row for row in found if isinstance(row, User | Course | Enrollment)}
    return [*rows.values()]


def _joined(lists: Outcomes[Sequence[Enrollment]]) -> Outcomes[Enrollment]:
    return [row for rows in lists if isinstance(rows, Sequence) for row in rows]
