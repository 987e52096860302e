"""Whole lists of a provider as files: CSV or newline-delimited JSON, page by page.

CSV holds exactly what the provider holds, quoted after RFC 4180. A text that begins with ``=`` or
the like is a formula to a spreadsheet; ``for_spreadsheets`` puts an apostrophe before it, which
changes the value and is therefore not done unasked, and a byte order mark at the start.
"""

from __future__ import annotations

import csv
import io
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, TypeVar

import msgspec

from resolvers import roster
from resolvers.context import RequestContext
from sessions.base import Page
from storage.records import Course, Enrollment, User

T = TypeVar("T")

Row: TypeAlias = Mapping[str, Any]
Progress: TypeAlias = Callable[[int, int | None], None]
"""Hears how many rows were written, and of how many, where the provider says."""

_BYTE_ORDER_MARK: Final = "\ufeff".encode()
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")


class ExportKind(StrEnum):
    """What can be exported."""

    USERS = "users"
    COURSES = "courses"
    ENROLLMENTS = "enrollments"


class ExportForm(StrEnum):
    """CSV with a head line, or one JSON object a line."""

    CSV = "csv"
    NDJSON = "ndjson"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOrder:
    """What is wanted.

    Attributes:
        for_spreadsheets: Whether CSV texts that a spreadsheet would compute are made harmless.
    """

    kind: ExportKind
    provider_id: str
    form: ExportForm
    for_spreadsheets: bool = False


async def export(
    context: RequestContext, order: ExportOrder, output: BinaryIO, *, progress: Progress
) -> int:
    """Write every row to the output, in the provider's order, and return how many there were.

    Raises:
        ProviderError: The provider could not answer; what was written so far is incomplete.
        OSError: The output could not be written.
    """
    columns = _COLUMNS[order.kind]
    cell = _harmless_cell if order.for_spreadsheets else _cell
    written = 0
    if order.form is ExportForm.CSV:
        output.write(_BYTE_ORDER_MARK if order.for_spreadsheets else b"")
        output.write(_csv([columns]))
    pages = _pages(context, order)
    async with aclosing(pages):
        async for rows, total in pages:
            if order.form is ExportForm.CSV:
                output.write(_csv([cell(row[name]) for name in columns] for row in rows))
            else:
                output.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
            written += len(rows)
            progress(written, total)
    return written


@dataclass(frozen=True, slots=True, kw_only=True)
class _IconicCourse:
    """A course with the address of its icon."""

    course: Course
    icon_url: str | None


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Lend a file that takes its place, whole and durable, only if the block ends well.

    It is readable by its owner only: rosters are personal data.

    Raises:
        OSError: It cannot be written; whatever was there before is as it was.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else instant.isoformat().replace("+00:00", "Z")


_USER_COLUMNS: Final[Mapping[str, Callable[[User], Any]]] = {
    "provider_id": lambda user: user.provider_id,
    "external_id": lambda user: user.external_id,
    "username": lambda user: user.username,
    "display_name": lambda user: user.display_name,
    "given_name": lambda user: user.given_name,
    "middle_name": lambda user: user.middle_name,
    "family_name": lambda user: user.family_name,
    "email": lambda user: user.email,
    "roles": lambda user: [role.value.value for role in user.roles],
    "source_roles": lambda user: [role.source_value for role in user.roles],
    "identifiers": lambda user: [identifier.value for identifier in user.identifiers],
    "active": lambda user: user.active,
    "locale": lambda user: user.locale,
    "time_zone": lambda user: user.time_zone,
    "birth_year": lambda user: user.birth_year,
    "gender": lambda user: None if user.gender is None else user.gender.value,
    "last_activity_at": lambda user: _instant(user.last_activity_at),
    "source_type": lambda user: user.provenance.source_type,
    "fetched_at": lambda user: _instant(user.provenance.fetched_at),
    "modified_at": lambda user: _instant(user.provenance.modified_at),
}
_COURSE_COLUMNS: Final[Mapping[str, Callable[[_IconicCourse], Any]]] = {
    "provider_id": lambda iconic: iconic.course.provider_id,
    "external_id": lambda iconic: iconic.course.external_id,
    "kind": lambda iconic: iconic.course.kind.value,
    "title": lambda iconic: iconic.course.title,
    "course_code": lambda iconic: iconic.course.course_code,
    "description": lambda iconic: iconic.course.description,
    "language": lambda iconic: iconic.course.language,
    "state": lambda iconic: iconic.course.state.value,
    "starts_at": lambda iconic: _instant(iconic.course.starts_at),
    "ends_at": lambda iconic: _instant(iconic.course.ends_at),
    "url": lambda iconic: iconic.course.url,
    "icon_url": lambda iconic: iconic.icon_url,
    "resource_count": lambda iconic: iconic.course.resource_count,
    "identifiers": lambda iconic: [each.value for each in iconic.course.identifiers],
    "source_type": lambda iconic: iconic.course.provenance.source_type,
    "fetched_at": lambda iconic: _instant(iconic.course.provenance.fetched_at),
    "modified_at": lambda iconic: _instant(iconic.course.provenance.modified_at),
}
_ENROLLMENT_COLUMNS: Final[Mapping[str, Callable[[Enrollment], Any]]] = {
    "provider_id": lambda row: row.provider_id,
    "id": lambda row: row.id,
    "external_id": lambda row: row.external_id,
    "user_id": lambda row: row.user_id,
    "course_id": lambda row: row.course_id,
    "role": lambda row: row.role.value.value,
    "source_role": lambda row: row.role.source_value,
    "state": lambda row: row.state.value,
    "source": lambda row: row.source.value,
    "enrolled_at": lambda row: _instant(row.enrolled_at),
    "starts_at": lambda row: _instant(row.starts_at),
    "ends_at": lambda row: _instant(row.ends_at),
    "last_activity_at": lambda row: _instant(row.last_activity_at),
    "progress_ratio": lambda row: row.progress and row.progress.ratio,
    "completed_count": lambda row: row.progress and row.progress.completed_count,
    "total_count": lambda row: row.progress and row.progress.total_count,
    "completed": lambda row: row.progress and row.progress.completed,
    "completed_at": lambda row: row.progress and _instant(row.progress.completed_at),
    "time_spent_seconds": lambda row: row.progress and row.progress.time_spent_seconds,
    "score_scaled": lambda row: row.progress and row.progress.score and row.progress.score.scaled,
    "source_type": lambda row: row.provenance.source_type,
    "fetched_at": lambda row: _instant(row.provenance.fetched_at),
}
_COLUMNS: Final[Mapping[ExportKind, Sequence[str]]] = {
    ExportKind.USERS: tuple(_USER_COLUMNS),
    ExportKind.COURSES: tuple(_COURSE_COLUMNS),
    ExportKind.ENROLLMENTS: tuple(_ENROLLMENT_COLUMNS),
}


def _rows(columns: Mapping[str, Callable[[T], Any]], items: Sequence[T]) -> Sequence[Row]:
    return [{name: read(item) for name, read in columns.items()} for item in items]


async def _pages(
    context: RequestContext, order: ExportOrder
) -> AsyncGenerator[tuple[Sequence[Row], int | None], None]:
    """Yield rows page by page, each with the length of the whole list where that is known."""
    if order.kind is ExportKind.USERS:
        users = roster.list_user_pages(context, order.provider_id)
        async with aclosing(users):
            async for page in users:
                yield _rows(_USER_COLUMNS, page.items), page.total
    elif order.kind is ExportKind.COURSES:
        courses = roster.list_course_pages(context, order.provider_id)
        async with aclosing(courses):
            async for course_page in courses:
                yield await _course_rows(context, course_page), course_page.total
    else:
        enrollments = roster.list_enrollment_pages(context, order.provider_id)
        async with aclosing(enrollments):
            async for enrollment_page in enrollments:
                rows = _rows(_ENROLLMENT_COLUMNS, enrollment_page.items)
                yield rows, enrollment_page.total


async def _course_rows(context: RequestContext, page: Page[Course]) -> Sequence[Row]:
    urls: Sequence[str | None] = [None] * len(page.items)
    if context.icons is not None:
        wanted = [(course, roster.DEFAULT_ICON_WIDTH) for course in page.items]
        urls = await context.icons.urls(wanted)
    iconic = [
        _IconicCourse(course=course, icon_url=url)
        for course, url in zip(page.items, urls, strict=True)
    ]
    return _rows(_COURSE_COLUMNS, iconic)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(str(part) for part in value)
    return str(value)


def _harmless_cell(value: object) -> str:
    text = _cell(value)
    is_formula = not isinstance(value, int | float) and text.startswith(_FORMULA_STARTS)
    return f"'{text}" if is_formula else text


def _csv(lines: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    return text.getvalue().encode()
