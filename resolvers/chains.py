"""Starting early what hangs on a list, so that each provider's chain of reads runs at its own pace.

GraphQL resolves a list before the fields of its rows: a slow provider's users would hold up
everybody's enrollments, and their courses after that. What a query wants of the rows is therefore
begun as soon as one provider's rows are here, by the same loaders whose answers the fields then
find waiting. Only rows that are certain to be given are followed, and only whole lists, so that
nothing is read that would not be read anyway, nor in more calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import TypeVar

from resolvers.context import RequestContext, Scope
from resolvers.errors import RequestRefused
from resolvers.loaders import Outcomes, Soon
from sessions.errors import ProviderError
from storage.records import Course, Enrollment, User

T = TypeVar("T")
V = TypeVar("V")


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
    context: RequestContext,
    wanted: Wanted,
    provider_id: str,
    rows: Sequence[User | Course | Enrollment],
) -> None:
    """Begin to read what is wanted of one provider's rows, all of a kind, and of what that is.

    What cannot be had is told by the fields that ask for it. Where no other provider holds up the
    rows' own fields, they are about to ask, and need no chain.
    """
    if not rows or wanted == NOTHING:
        return
    loaders = context.loaders
    reads = context.access.allows

    def ids(name: str) -> Iterable[str]:
        """Return what a whole roster's rows say, each once: very many may say the same."""
        return dict.fromkeys(map(attrgetter(name), rows))

    if isinstance(rows[0], Enrollment):
        if wanted.user is not None and reads(Scope.READ_USERS):
            users = loaders.user_by_id.load_of(provider_id, ids("user_id"))
            _follow(context, wanted.user, provider_id, users, _there)
        if wanted.course is not None and reads(Scope.READ_COURSES):
            courses = loaders.course_by_id.load_of(provider_id, ids("course_id"))
            _follow(context, wanted.course, provider_id, courses, _there)
    elif wanted.enrollments is not None and reads(Scope.READ_ENROLLMENTS):
        of_users = isinstance(rows[0], User)
        loader = loaders.enrollments_by_user if of_users else loaders.enrollments_by_course
        lists = loader.load_of(provider_id, ids("external_id"))
        _follow(context, wanted.enrollments, provider_id, lists, _joined)


def _follow(
    context: RequestContext,
    wanted: Wanted,
    provider_id: str,
    found: Soon[Outcomes[V]],
    rows_of: Callable[[Outcomes[V]], Sequence[User | Course | Enrollment]],
) -> None:
    """Follow what was found, at once or in a task of its own."""
    if isinstance(found, Awaitable):

        async def follow_later(found: Awaitable[Outcomes[V]]) -> None:
            with suppress(ProviderError, RequestRefused):
                follow(context, wanted, provider_id, rows_of(await found))

        context.loaders.start(follow_later(found))
    elif wanted != NOTHING:
        follow(context, wanted, provider_id, rows_of(found))


def _there(found: Outcomes[T]) -> Sequence[T]:
    """Return what could be had."""
    return [row for row in found if row is not None and not isinstance(row, BaseException)]


def _joined(lists: Outcomes[Sequence[T]]) -> Sequence[T]:
    return [*chain.from_iterable(_there(lists))]
