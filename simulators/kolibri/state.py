"""What a simulated Kolibri server knows, and what tests may look at or break.

`Kolibri` is the server without HTTP: accounts, sessions, permissions, export jobs, call counts
and faults. Tests that run the simulator in their own process read and change it directly; others
use the `/_control/` routes of `app.py`, which do the same.
"""

from __future__ import annotations

import secrets
import string
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from simulators.kolibri import population as data
from simulators.kolibri.versions import PROFILES, Profile

SESSION_AGE_SECONDS = 1200.0
USER_CACHE_SECONDS = 300.0
_JOB_MAX_SECONDS = 2.0
_ALPHABET = string.ascii_letters + string.digits

Row = TypeVar("Row", data.Membership, data.Role)

READERS = ("admin", "coach")
"""Role kinds that let their holder read what belongs to a collection."""


@dataclass(slots=True, kw_only=True)
class Account:
    """A user as the server keeps it; `login_version` grows when the password changes."""

    id: str
    facility_id: str
    username: str
    full_name: str
    joined_at: datetime
    password: str | None
    id_number: str = ""
    gender: str = ""
    birth_year: str = ""
    is_superuser: bool = False
    can_manage_content: bool = False
    deleted_at: datetime | None = None
    login_version: int = 0


@dataclass(slots=True, kw_only=True)
class Session:
    """One row of the server's session table."""

    account_id: str
    login_version: int
    expires_at: float


@dataclass(slots=True, kw_only=True)
class Job:
    """One export task. `polls` counts how often somebody asked how it is going."""

    id: str
    kind: str
    facility_id: str
    started_by: Account
    arguments: dict[str, object]
    created_at: float
    polls: int = 0
    done: bool = False


@dataclass(slots=True, kw_only=True)
class Outage:
    """Answer the next `remaining` requests whose path starts with `path` with `status`."""

    remaining: int
    status: int = 503
    retry_after_seconds: int | None = 10
    path: str = "/"


@dataclass(slots=True, kw_only=True)
class Counts:
    """What clients have done since the start or the last `reset`."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    logins: int = 0
    login_attempts: int = 0
    logins_running: int = 0
    max_concurrent_logins: int = 0
    requests_running: int = 0
    max_concurrent_requests: int = 0

    def total(self, path: str | None = None, method: str | None = None) -> int:
        """Count calls, all of them or those of one path pattern and one method."""
        return sum(
            count
            for (called_method, called_path), count in self.calls.items()
            if path in {None, called_path} and method in {None, called_method}
        )


class Kolibri:
    """A Kolibri server's memory.

    Args:
        population: What it holds; see `build_population`.
        version: One of `PROFILES`.
        session_age: Seconds until an untouched session ends; a real Kolibri has 1200.
        clock: Where "now" comes from, in seconds since 1970.
        export_polls: How often a client must ask before an export is done.
    """

    def __init__(
        self,
        population: data.Population,
        *,
        version: str = "0.19.5",
        session_age: float = SESSION_AGE_SECONDS,
        clock: Callable[[], float] = time.time,
        export_polls: int = 2,
    ) -> None:
        self.population = population
        self.profile: Profile = PROFILES[version]
        self.session_age = session_age
        self.clock = clock
        self.export_polls = export_polls
        self.counts = Counts()
        self.latency_seconds = 0.0
        self.login_latency_seconds = 0.0
        self.latency_by_path: dict[str, float] = {}
        self.outages: list[Outage] = []
        self.content_changed_at = data.EPOCH.timestamp()
        self.instance_id = data.hex_id("instance")
        self.sessions: dict[str, Session] = {}
        self.jobs: dict[str, Job] = {}
        self.exports: dict[tuple[str, str], tuple[str, str, bytes]] = {}
        self._user_cache: dict[str, tuple[Account | None, float]] = {}
        self._load()

    # ---- people ------------------------------------------------------------------------

    def accounts(self) -> list[Account]:
        """Return the accounts that are not deleted, in the order in which they joined."""
        return [account for account in self._accounts.values() if account.deleted_at is None]

    def deleted_accounts(self) -> list[Account]:
        """Return the deleted accounts."""
        return [account for account in self._accounts.values() if account.deleted_at is not None]

    def find_account(self, account_id: str) -> Account | None:
        """Return the account of this id unless it is deleted."""
        account = self._accounts.get(account_id)
        return None if account is None or account.deleted_at is not None else account

    def is_known_account(self, account_id: str) -> bool:
        """Return whether there is such an account, deleted or not."""
        return account_id in self._accounts

    def find_username(self, username: str, facility: str | None = None) -> Account | None:
        """Return the account of this name in a facility, by default the first."""
        facility_id = self.facility_id(facility)
        for account in self.accounts():
            if account.facility_id == facility_id and account.username == username:
                return account
        return None

    def facility_id(self, facility: str | None) -> str:
        """Turn a facility's key, name or id into its id; None is the default facility."""
        if facility is None:
            return self.population.facilities[0].id
        for known in self.population.facilities:
            if facility in {known.key, known.id, known.name}:
                return known.id
        message = f"No facility {facility!r}"
        raise KeyError(message)

    def owner_of(self, log: data.SummaryLog) -> Account | None:
        """Return who did this, deleted users included; None where the release has no such user."""
        return self._accounts.get(self.ids[log.person])

    def add_user(
        self,
        username: str,
        full_name: str,
        *,
        facility: str | None = None,
        password: str = data.PASSWORD,
    ) -> Account:
        """Add a learner to a facility, as an administrator would."""
        account = Account(
            id=uuid.uuid4().hex,
            facility_id=self.facility_id(facility),
            username=username,
            full_name=full_name,
            joined_at=datetime.fromtimestamp(self.clock(), tz=UTC),
            password=password,
        )
        self._accounts[account.id] = account
        return account

    def remove_user(self, username: str, *, facility: str | None = None) -> None:
        """Delete a user; memberships and activity stay, as they do in Kolibri."""
        account = self._require(username, facility)
        account.deleted_at = datetime.fromtimestamp(self.clock(), tz=UTC)
        self.save(account)

    def change_password(self, username: str, password: str, *, facility: str | None = None) -> None:
        """Change a user's password; the user's sessions end when they are next used."""
        account = self._require(username, facility)
        account.password = password
        account.login_version += 1
        self.save(account)

    def save(self, account: Account) -> None:
        """Note that the account was written, which makes Kolibri forget its cached copy."""
        self._user_cache.pop(account.id, None)

    def poison_cache(self, username: str, *, facility: str | None = None) -> None:
        """Make the user's valid sessions answer as anonymous until the user is next saved.

        This happens on a real Kolibri when, after any save of the user, a session with an old
        password asks first.
        """
        account = self._require(username, facility)
        self._user_cache[account.id] = (None, self.clock() + USER_CACHE_SECONDS)

    # ---- sessions ----------------------------------------------------------------------

    def log_in(self, account: Account, old_key: str | None) -> str:
        """Open a session and return its key; the session that asked for it ends."""
        if old_key is not None:
            self.sessions.pop(old_key, None)
        key = "".join(secrets.choice(_ALPHABET).lower() for _ in range(32))
        self.sessions[key] = Session(
            account_id=account.id,
            login_version=account.login_version,
            expires_at=self.clock() + self.session_age,
        )
        self.save(account)  # a login writes the time of the last login
        self.counts.logins += 1
        return key

    def keep_alive(self, key: str) -> None:
        """Move the session's end to a full age from now."""
        self.sessions[key].expires_at = self.clock() + self.session_age

    def delete_sessions(self) -> int:
        """Delete every session, as losing the session database would; return how many."""
        count = len(self.sessions)
        self.sessions.clear()
        return count

    def read_session(self, key: str | None) -> tuple[Account | None, bool]:
        """Return who the session speaks for, and whether the session itself still exists."""
        session = self.sessions.get(key) if key else None
        if key is None or session is None:
            return None, False
        if session.expires_at <= self.clock():
            del self.sessions[key]
            return None, False
        cached = self._user_cache.get(session.account_id)
        if cached is not None and cached[1] > self.clock():
            return cached[0], True
        account = self.find_account(session.account_id)
        stale = account is not None and account.login_version != session.login_version
        if stale:
            del self.sessions[key]
            account = None
        self._user_cache[session.account_id] = (account, self.clock() + USER_CACHE_SECONDS)
        return account, not stale

    # ---- collections, memberships, roles -----------------------------------------------

    def people_of(self, collection_id: str) -> list[Account]:
        """Return the members of a class or group who are not deleted."""
        members = (self.find_account(user) for user in self._members[collection_id])
        return [member for member in members if member is not None]

    def member_ids(self, collection_id: str) -> Collection[str]:
        """Return the user ids of all memberships of a collection, deleted users' included."""
        return self._members[collection_id]

    def collections_of(self, account_id: str) -> Collection[str]:
        """Return the ids of the classes and groups the user is a member of."""
        return self._collections[account_id]

    def roles_of(self, account_id: str) -> list[data.Role]:
        """Return the user's roles; ids in them are ids, not keys."""
        return self._roles[account_id]

    def collections_of_kind(self, kind: str) -> list[data.Collection]:
        """Return the collections of one kind; ids in them are ids, not keys."""
        return [collection for collection in self.collections.values() if collection.kind == kind]

    # ---- permissions -------------------------------------------------------------------

    def kinds_of(self, account: Account | None) -> list[str]:
        """Return the words that the session answer uses for what the user is."""
        if account is None:
            return ["anonymous"]
        kinds = sorted({role.kind for role in self.roles_of(account.id)})
        if account.is_superuser:
            kinds.insert(0, "superuser")
        return kinds or ["learner"]

    def reads_whole_facility(self, account: Account) -> bool:
        """Return whether the user is an admin or coach of the own facility."""
        return any(
            role.collection == account.facility_id and role.kind in READERS
            for role in self.roles_of(account.id)
        )

    def coached(self, account: Account) -> set[str]:
        """Return the ids of the classes the user coaches, and of the groups within them."""
        classes = {role.collection for role in self.roles_of(account.id) if role.kind == "coach"}
        groups = {item.id for item in self.collections.values() if item.parent in classes}
        return classes | groups

    def may_read_in(self, account: Account | None, facility_id: str, collection_id: str) -> bool:
        """Return whether roles let the user read what belongs to this collection."""
        if account is None:
            return False
        if account.is_superuser:
            return True
        if facility_id == account.facility_id and self.reads_whole_facility(account):
            return True
        return collection_id in self.coached(account)

    def is_admin_of(self, account: Account | None, facility_id: str) -> bool:
        """Return whether the user may administer the facility."""
        if account is None:
            return False
        return account.is_superuser or any(
            role.kind == "admin" and role.collection == facility_id
            for role in self.roles_of(account.id)
        )

    def readable_accounts(self, reader: Account | None) -> list[Account]:
        """Return the users that this user may read."""
        if reader is None:
            return []
        if reader.is_superuser:
            return self.accounts()
        if self.reads_whole_facility(reader):
            return [
                account for account in self.accounts() if account.facility_id == reader.facility_id
            ]
        coached = self.coached(reader)
        ids = {reader.id}.union(*(self.member_ids(collection) for collection in coached))
        return [account for account in self.accounts() if account.id in ids]

    def readable_memberships(self, reader: Account | None) -> list[data.Membership]:
        """Return the memberships that this user may read; ids in them are ids, not keys."""
        return [
            row
            for row in self.memberships.values()
            if self._may_read_row(reader, row.person, row.collection)
        ]

    def readable_roles(self, reader: Account | None) -> list[data.Role]:
        """Return the roles that this user may read; ids in them are ids, not keys."""
        return [
            row
            for row in self.roles.values()
            if self._may_read_row(reader, row.person, row.collection)
        ]

    def _may_read_row(self, reader: Account | None, person: str, collection: str) -> bool:
        if reader is None:
            return False
        facility_id = self.facility_of(collection)
        return person == reader.id or self.may_read_in(reader, facility_id, collection)

    def facility_of(self, collection_id: str) -> str:
        """Return the facility a collection lies in; a facility lies in itself."""
        collection = self.collections.get(collection_id)
        return collection.facility if collection else collection_id

    # ---- export jobs -------------------------------------------------------------------

    def start_job(self, kind: str, account: Account, arguments: dict[str, object]) -> Job:
        """Queue an export of a facility's summary logs."""
        job = Job(
            id=uuid.uuid4().hex,
            kind=kind,
            facility_id=str(arguments["facility"]),
            started_by=account,
            arguments=arguments,
            created_at=self.clock(),
        )
        self.jobs[job.id] = job
        return job

    def due_jobs(self) -> list[Job]:
        """Return the jobs that have run long enough, or been asked for often enough, to end."""
        return [
            job
            for job in self.jobs.values()
            if not job.done
            and (
                job.polls >= self.export_polls or self.clock() - job.created_at >= _JOB_MAX_SECONDS
            )
        ]

    # ---- faults ------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget all counts and faults; sessions and data stay."""
        running = self.counts.requests_running
        self.counts = Counts(requests_running=running)
        self.latency_seconds = self.login_latency_seconds = 0.0
        self.latency_by_path.clear()
        self.outages.clear()

    def fail(
        self,
        count: int,
        *,
        status: int = 503,
        retry_after_seconds: int | None = 10,
        path: str = "/",
    ) -> None:
        """Answer the next `count` requests below `path` with an error."""
        self.outages.append(
            Outage(
                remaining=count, status=status, retry_after_seconds=retry_after_seconds, path=path
            )
        )

    def take_outage(self, path: str) -> Outage | None:
        """Return the outage that this request falls into, and use it up."""
        for outage in self.outages:
            if outage.remaining > 0 and path.startswith(outage.path):
                outage.remaining -= 1
                return outage
        return None

    # ---- loading -----------------------------------------------------------------------

    def _require(self, username: str, facility: str | None) -> Account:
        account = self.find_username(username, facility)
        if account is None:
            message = f"No user {username!r}"
            raise KeyError(message)
        return account

    def _load(self) -> None:
        population = self.population
        self.ids = {
            item.key: item.id
            for items in (
                population.facilities,
                population.people,
                population.collections,
                population.channels,
                population.lessons,
                population.exams,
                population.course_sessions,
            )
            for item in items
        }
        self.nodes = {node.id: node for channel in population.channels for node in channel.nodes}
        self.channels = {channel.id: channel for channel in population.channels}
        self._accounts = {
            person.id: _account(person, self.ids)
            for person in population.people
            if person.deleted_at is None or self.profile.soft_delete
        }
        self.collections = {
            item.id: replace(item, parent=self.ids[item.parent], facility=self.ids[item.facility])
            for item in population.collections
            if item.kind != "adhoclearnersgroup" or self.profile.courses
        }
        self.memberships = self._known_rows(population.memberships)
        self.roles = self._known_rows(population.roles)
        self._index()

    def _known_rows(self, rows: Iterable[Row]) -> dict[str, Row]:
        """Turn keys into ids, and leave out rows of what this release does not have."""
        turned = (
            replace(row, person=self.ids[row.person], collection=self.ids[row.collection])
            for row in rows
        )
        facilities = {facility.id for facility in self.population.facilities}
        return {
            row.id: row
            for row in turned
            if row.person in self._accounts
            and (row.collection in self.collections or row.collection in facilities)
        }

    def _index(self) -> None:
        self._members: dict[str, list[str]] = defaultdict(list)
        self._collections: dict[str, list[str]] = defaultdict(list)
        self._roles: dict[str, list[data.Role]] = defaultdict(list)
        for membership in self.memberships.values():
            self._members[membership.collection].append(membership.person)
            self._collections[membership.person].append(membership.collection)
        for role in self.roles.values():
            self._roles[role.person].append(role)


def _account(person: data.Person, ids: dict[str, str]) -> Account:
    return Account(
        id=person.id,
        facility_id=ids[person.facility],
        username=person.username,
        full_name=person.full_name,
        joined_at=person.joined_at,
        password=person.password,
        id_number=person.id_number,
        gender=person.gender,
        birth_year=person.birth_year,
        is_superuser=person.is_superuser,
        can_manage_content=person.can_manage_content,
        deleted_at=person.deleted_at,
    )
