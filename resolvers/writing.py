"""Writes at providers: what may be asked, each carried out once however often it is asked for.

A write looks before it changes anything, so that asking twice does no harm. With an idempotency
key the second asking costs no upstream call either: it gets the first one's answer, from whichever
gateway has it. Once begun, a write is finished, also when the caller hangs up.

Refusals that were to be expected are answers and not errors.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from math import ceil
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import msgspec
import structlog

from resolvers.context import RequestContext, Scope
from resolvers.loaders import ExternalKey
from sessions.base import (
    Capability,
    EnrollmentEnding,
    Login,
    NewEnrollment,
    NewLogin,
    NewUser,
    ProviderSession,
    Written,
)
from sessions.errors import ProviderError, ProviderRejected, ProviderTimeout
from sessions.http import deadline
from sessions.metering import current_meter, uncapped
from storage.errors import StorageError
from storage.idempotency import (
    Answered,
    IdempotencyStore,
    NoProvider,
    OtherInput,
    WriteClaim,
    WriteName,
)
from storage.records import Enrollment, RoleValue, User

T = TypeVar("T")

_BAD_INPUT: Final = "BAD_INPUT"
_KEY_FIELD: Final = "idempotency_key"
_MAX_CHARACTERS: Final = 255
_UNSEEN: Final = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})  # joiners, Cf, are parts of names
_KEY: Final = re.compile(r"[\x21-\x7e]{1,128}")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_LOCALE: Final = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8})*")
_TIME_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+)*")

_log = structlog.get_logger("writing")


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRefusal:
    """Why a write was not carried out.

    Attributes:
        code: One of the stable error codes.
        message: For a person.
        field: Name of the input at fault (``username``, ``course_id``), if one is.
        retryable: Whether the same request may succeed later; then it is not known whether the
            write was carried out after all.
        retry_after_seconds: How long to wait before, if that is known.
        provider_id: Whose refusal it is, or who was to be written to.
    """

    code: str
    message: str
    field: str | None = None
    retryable: bool = False
    retry_after_seconds: int | None = None
    provider_id: str | None = None


Outcome: TypeAlias = Written[T] | WriteRefusal


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrollmentWish:
    """Who is to be enrolled in what; the rest as in ``NewEnrollment``."""

    user: ExternalKey
    course: ExternalKey
    role: RoleValue = RoleValue.STUDENT
    source_role: str | None = None
    section_id: str | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    notify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndingWish:
    """Which enrollment is to end, and how.

    Attributes:
        user: Whose it is.
        enrollment_id: Its own id at the provider.
        course: What it is in; ``None`` to have it looked up.
    """

    user: ExternalKey
    enrollment_id: str
    course: ExternalKey | None = None
    ending: EnrollmentEnding


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteTerms:
    """How long things may take.

    Attributes:
        lease_seconds: A gateway that crashed holds a write up for so long.
        write_seconds: For all upstream calls of one write; well within the lease.
        patience_seconds: How long to wait for a write that another gateway carries out.
        look_seconds: The first wait before looking whether it has; later ones are longer, up to
            ten times.
        shutdown_seconds: How long writes under way may take when the gateway stops.
    """

    lease_seconds: float = 60
    write_seconds: float = 40
    patience_seconds: float = 20
    look_seconds: float = 0.05
    shutdown_seconds: float = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Generic[T]):
    """One write, ready to be carried out.

    Attributes:
        kind: What record it answers with.
        provider_id: Where it writes.
        act: Carries it out; raises ``ProviderError`` when it cannot.
        name: By what it is known when it is asked for again; ``None`` when it will not be.
        input_sha256: Hash of all that is asked for.
    """

    kind: type[T]
    provider_id: str
    act: Callable[[], Awaitable[Written[T]]]
    name: WriteName | None
    input_sha256: str


class Writes:
    """Carries writes out; made by ``open_writes``.

    Args:
        store: Where it is kept what came of them.
        terms: How long things may take.
    """

    def __init__(self, store: IdempotencyStore, terms: WriteTerms) -> None:
        self._store = store
        self._terms = terms
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running: dict[WriteName, tuple[str, asyncio.Task[Any]]] = {}

    async def carry_out(self, write: Write[T]) -> Outcome[T]:
        """Return what came of a write; begin it only if nobody has.

        A caller who is cancelled does not cancel the write.

        Raises:
            StorageError: What came of earlier ones cannot be read.
        """
        name = write.name
        if name is None:
            outcome, _ = await asyncio.shield(self._started(self._acted(write)))
            return outcome
        sha256, task = self._running.get(name, (write.input_sha256, None))
        if sha256 != write.input_sha256:
            return _other_input(write)
        if task is None:
            task = self._started(self._once(write, name))
            self._running[name] = (sha256, task)

            def forget(_done: object) -> None:
                del self._running[name]

            task.add_done_callback(forget)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Let writes under way end, for a while."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self._terms.shutdown_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _once(self, write: Write[T], name: WriteName) -> Outcome[T]:
        """Carry a write out under a claim, or return what is already known of it.

        A claim that is not given back ends by itself. It is left so when the gateway is stopped
        in the middle: the provider may still be at work, and whoever looks later sees more.
        """
        claim = await self._claimed(write, name)
        if not isinstance(claim, WriteClaim):
            return claim
        outcome, is_lasting = await self._acted(write)
        try:
            if is_lasting:
                await self._store.keep(claim, msgspec.json.encode(_kept(outcome)))
            else:
                await self._store.free(claim)
        except StorageError as error:  # the write stands; the next one to ask finds that out
            _log.warning("write_not_noted", provider_id=write.provider_id, problem=error.message)
        return outcome

    async def _claimed(self, write: Write[T], name: WriteName) -> WriteClaim | Outcome[T]:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._terms.patience_seconds
        pause = self._terms.look_seconds
        while True:
            standing = await self._store.claim(
                name, write.input_sha256, lease_seconds=self._terms.lease_seconds
            )
            if isinstance(standing, WriteClaim):
                return standing
            if isinstance(standing, Answered):
                return _outcome(standing.answer, write.kind)
            if isinstance(standing, OtherInput):
                return _other_input(write)
            if isinstance(standing, NoProvider):
                return _not_found(write.provider_id, "provider_id")
            if loop.time() + pause > ends_at:
                return WriteRefusal(
                    code="PROVIDER_TIMEOUT",
                    message="An earlier request with this key is still being carried out",
                    field=_KEY_FIELD,
                    retryable=True,
                    retry_after_seconds=max(1, ceil(standing.leased_seconds)),
                    provider_id=write.provider_id,
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, 10 * self._terms.look_seconds)

    async def _acted(self, write: Write[T]) -> tuple[Outcome[T], bool]:
        """Return what came of a write, and whether asking again would come to the same."""
        seconds = self._terms.write_seconds
        try:
            if (meter := current_meter()) is not None:
                meter.require_call(write.provider_id)
            # A deadline of its own: the request's must not leave it half done, nor its budget.
            with deadline(seconds, nested=False), uncapped():
                async with asyncio.timeout(seconds):
                    return await write.act(), True
        except ProviderError as error:
            return _refusal_of(error, write.provider_id), isinstance(error, ProviderRejected)
        except TimeoutError:
            late = ProviderTimeout(f"This was not done within {seconds:g} seconds")
            return _refusal_of(late, write.provider_id), False


@asynccontextmanager
async def open_writes(
    store: IdempotencyStore, terms: WriteTerms = WriteTerms()
) -> AsyncIterator[Writes]:
    """Lend what carries writes out; at the end, those under way may end first."""
    writes = Writes(store, terms)
    try:
        yield writes
    finally:
        await writes.aclose()


# ---- what can be asked for -----------------------------------------------------------------


async def create_user(
    context: RequestContext, provider_id: str, user: NewUser, *, key: str | None
) -> Outcome[User]:
    """Create an account, unless it is there.

    Args:
        context: Of the request.
        provider_id: Where.
        user: The account as asked for.
        key: The idempotency key, if one was given.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.WRITE_USERS)
    wanted = replace(
        user,
        username=user.username.strip(),
        display_name=user.display_name.strip(),
        given_name=_trimmed(user.given_name),
        family_name=_trimmed(user.family_name),
        email=_trimmed(user.email),
        sis_id=_trimmed(user.sis_id),
        locale=_trimmed(user.locale),
        time_zone=_trimmed(user.time_zone),
    )
    problems = [
        *_text_problems("username", wanted.username, required=True),
        *_text_problems("display_name", wanted.display_name, required=True),
        *_text_problems("given_name", wanted.given_name),
        *_text_problems("family_name", wanted.family_name),
        *_text_problems("email", wanted.email, form=_EMAIL, example="name@example.org"),
        *_text_problems("sis_id", wanted.sis_id),
        *_text_problems("locale", wanted.locale, form=_LOCALE, example="en-GB"),
        *_text_problems("time_zone", wanted.time_zone, form=_TIME_ZONE, example="Europe/Paris"),
    ]
    return await _carried_out(
        context,
        _Wish(
            mutation="createUser",
            kind=User,
            capability=Capability.USER_WRITES,
            provider_id=provider_id,
            place="provider_id",
            key=key,
            problems=problems,
            input=wanted,
            act=lambda session: session.create_user(wanted),
        ),
    )


async def create_login(
    context: RequestContext, provider_id: str, login: NewLogin, *, key: str | None
) -> Outcome[Login]:
    """Give a user a further login, unless they have it.

    Args:
        context: Of the request.
        provider_id: Where the user is.
        login: The login as asked for.
        key: The idempotency key, if one was given.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.WRITE_USERS)
    wanted = replace(
        login,
        username=login.username.strip(),
        sis_id=_trimmed(login.sis_id),
        identity_provider=_trimmed(login.identity_provider),
    )
    problems = [
        *_text_problems("user_id", wanted.user_id, required=True),
        *_text_problems("username", wanted.username, required=True),
        *_text_problems("sis_id", wanted.sis_id),
        *_text_problems("identity_provider", wanted.identity_provider),
    ]
    return await _carried_out(
        context,
        _Wish(
            mutation="createLogin",
            kind=Login,
            capability=Capability.USER_WRITES,
            provider_id=provider_id,
            place="user_id",
            key=key,
            problems=problems,
            input=wanted,
            act=lambda session: session.create_login(wanted),
        ),
    )


async def enroll(
    context: RequestContext, wish: EnrollmentWish, *, key: str | None
) -> Outcome[Enrollment]:
    """Give a user an active place in a course, unless they have it.

    Args:
        context: Of the request.
        wish: What is asked for.
        key: The idempotency key, if one was given.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.WRITE_ENROLLMENTS)
    (user_provider_id, user_id), (provider_id, course_id) = wish.user, wish.course
    wanted = NewEnrollment(
        user_id=user_id,
        course_id=course_id,
        role=wish.role,
        source_role=_trimmed(wish.source_role),
        section_id=_trimmed(wish.section_id),
        starts_at=wish.starts_at,
        ends_at=wish.ends_at,
        notify=wish.notify,
    )
    problems = [
        *_text_problems("user_id", user_id, required=True),
        *_text_problems("course_id", course_id, required=True),
        *_place_problems("user_id", user_provider_id, provider_id),
        *_text_problems("source_role", wanted.source_role),
        *_text_problems("section_id", wanted.section_id),
        *_date_problems(wish.starts_at, wish.ends_at),
    ]
    return await _carried_out(
        context,
        _Wish(
            mutation="enrollUser",
            kind=Enrollment,
            capability=Capability.ENROLLMENT_WRITES,
            provider_id=provider_id,
            place="course_id",
            key=key,
            problems=problems,
            input=wanted,
            act=lambda session: session.enroll(wanted),
        ),
    )


async def end_enrollment(
    context: RequestContext, wish: EndingWish, *, key: str | None
) -> Outcome[Enrollment]:
    """End an enrollment, unless it has ended so; ``created`` says whether anything changed.

    Args:
        context: Of the request.
        wish: What is asked for.
        key: The idempotency key, if one was given.

    Raises:
        Forbidden: A scope is missing.
    """
    context.require(Scope.WRITE_ENROLLMENTS)
    provider_id, _ = wish.user
    problems = [
        *_text_problems("enrollment_id", wish.enrollment_id, required=True),
        *_place_problems("course_id", (wish.course or wish.user)[0], provider_id),
    ]
    return await _carried_out(
        context,
        _Wish(
            mutation="endEnrollment",
            kind=Enrollment,
            capability=Capability.ENROLLMENT_WRITES,
            provider_id=provider_id,
            place="enrollment_id",
            key=key,
            problems=problems,
            input=wish,
            act=lambda session: _ended(session, wish),
        ),
    )


async def _ended(session: ProviderSession, wish: EndingWish) -> Written[Enrollment]:
    """End an enrollment, whose course is looked up if it was not named."""
    _, user_id = wish.user
    if wish.course is not None:
        pair = (user_id, wish.course[1])
        return await session.end_enrollment(pair, wish.enrollment_id, wish.ending)
    found = (await session.fetch_enrollments_by_user([user_id])).get(user_id, ())
    for enrollment in found:
        if enrollment.id == wish.enrollment_id:
            pair = (user_id, enrollment.course_id)
            return await session.end_enrollment(pair, wish.enrollment_id, wish.ending)
    raise ProviderRejected(
        "There is no such enrollment",
        provider_id=session.provider.id,
        field="enrollment_id",
    )


# ---- carrying it out -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish(Generic[T]):
    """One mutation as asked for.

    Attributes:
        mutation: Its name.
        kind: What record it answers with.
        capability: What the provider's platform must be able to do.
        provider_id: Where it writes.
        place: The input that says where.
        key: The idempotency key, if one was given.
        problems: What is wrong with the input, each with its field.
        input: All that is asked for, in the form in which the same is equal.
        act: Carries it out.
    """

    mutation: str
    kind: type[T]
    capability: Capability
    provider_id: str
    place: str
    key: str | None
    problems: list[tuple[str, str]]
    input: object
    act: Callable[[ProviderSession], Awaitable[Written[T]]]


async def _carried_out(context: RequestContext, wish: _Wish[T]) -> Outcome[T]:
    for place, problem in [*_key_problems(wish.key), *wish.problems]:
        return WriteRefusal(
            code=_BAD_INPUT, message=problem, field=place, provider_id=wish.provider_id
        )
    provider = await context.find_provider(wish.provider_id)
    if provider is None:
        return _not_found(wish.provider_id, wish.place)
    platform = context.platform_of(provider.id)
    if context.writes is None or platform is None or wish.capability not in platform.capabilities:
        title = provider.platform if platform is None else platform.title
        return WriteRefusal(
            code="NOT_SUPPORTED",
            message=f"{title} providers do not support {wish.mutation}",
            field=wish.place,
            provider_id=provider.id,
        )
    outcome = await context.writes.carry_out(_write_of(context, wish))
    if not isinstance(outcome, WriteRefusal) or outcome.retryable:
        await context.note_write(provider.id)
    return outcome


def _write_of(context: RequestContext, wish: _Wish[T]) -> Write[T]:
    subject = context.subject_of(wish.provider_id)

    async def act() -> Written[T]:
        async with context.session(wish.provider_id) as session:
            return await wish.act(session)

    name = None
    if wish.key is not None:
        name = WriteName(
            caller=context.access.key_id,
            mutation=wish.mutation,
            provider_id=wish.provider_id,
            key=wish.key,
        )
    asked = msgspec.json.encode([subject, wish.input])
    return Write(
        kind=wish.kind,
        provider_id=wish.provider_id,
        act=act,
        name=name,
        input_sha256=hashlib.sha256(asked).hexdigest(),
    )


class _Kept(msgspec.Struct, Generic[T], frozen=True):
    """What is kept of an outcome: one or the other."""

    record: T | None = None
    created: bool = False
    refusal: WriteRefusal | None = None


def _kept(outcome: Outcome[T]) -> _Kept[T]:
    if isinstance(outcome, WriteRefusal):
        return _Kept(refusal=outcome)
    return _Kept(record=outcome.record, created=outcome.created)


def _outcome(answer: bytes, kind: type[T]) -> Outcome[T]:
    kept: _Kept[T] = msgspec.json.decode(answer, type=_Kept[kind])  # type: ignore[valid-type]  # known only now
    if kept.record is None:
        return cast("WriteRefusal", kept.refusal)  # one of the two was kept
    return Written(kept.record, kept.created)


def _refusal_of(error: ProviderError, provider_id: str) -> WriteRefusal:
    return WriteRefusal(
        code=error.code,
        message=error.message,
        field=error.field if isinstance(error, ProviderRejected) else None,
        retryable=error.retryable,
        retry_after_seconds=error.retry_after_seconds,
        provider_id=error.provider_id or provider_id,
    )


def _other_input(write: Write[Any]) -> WriteRefusal:
    return WriteRefusal(
        code=_BAD_INPUT,
        message="This key was used for another input; a key serves one write for a day",
        field=_KEY_FIELD,
        provider_id=write.provider_id,
    )


def _not_found(provider_id: str, place: str) -> WriteRefusal:
    return WriteRefusal(
        code="PROVIDER_NOT_FOUND",
        message="No such provider is registered",
        field=place,
        provider_id=provider_id,
    )


# ---- what is wrong with an input -----------------------------------------------------------


def _trimmed(text: str | None) -> str | None:
    """Return the text without white space around it; ``None`` for a blank one."""
    return (text or "").strip() or None


def _key_problems(key: str | None) -> Iterator[tuple[str, str]]:
    if key is not None and not _KEY.fullmatch(key):
        yield _KEY_FIELD, "A key is 1 to 128 visible ASCII characters"


def _text_problems(
    place: str,
    text: str | None,
    *,
    required: bool = False,
    form: re.Pattern[str] | None = None,
    example: str = "",
) -> Iterator[tuple[str, str]]:
    if not text:
        if required:
            yield place, "This must not be blank"
    elif len(text) > _MAX_CHARACTERS:
        yield place, f"This must not be longer than {_MAX_CHARACTERS} characters"
    elif any(unicodedata.category(character) in _UNSEEN for character in text):
        yield place, "This must not hold control characters or line breaks"
    elif form is not None and not form.fullmatch(text):
        yield place, f"This must look like {example}"


def _place_problems(
    place: str, provider_id: str, other_provider_id: str
) -> Iterator[tuple[str, str]]:
    if provider_id != other_provider_id:
        yield place, "All ids must be of the same provider"


def _date_problems(
    starts_at: datetime | None, ends_at: datetime | None
) -> Iterator[tuple[str, str]]:
    if starts_at is not None and ends_at is not None and ends_at <= starts_at:
        yield "ends_at", "This must be after startsAt"
