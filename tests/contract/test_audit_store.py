"""What the store of the audit log promises, on every database."""

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import update

from storage.audit import AuditDraft, AuditEntry, AuditOutcome, AuditStore
from storage.database import Database
from storage.tables import audit, database_now

DRAFT = AuditDraft(
    caller="abcd1234",
    subject="user:1:42",
    action="enrollUser",
    target="course:1:7",
    arguments={"role": "STUDENT", "idempotencyKey": "***"},
    request_id="request-1",
)


async def test_an_entry_is_there_before_anything_is_done_and_says_then_what_came_of_it(
    any_database: Database,
) -> None:
    store = AuditStore(any_database)

    entry_id = await store.begin(DRAFT)
    (begun,) = await store.list_entries(limit=10)
    await store.finish(entry_id, AuditOutcome.FAILED, code="PROVIDER_TIMEOUT", target=None)
    (finished,) = await store.list_entries(limit=10)

    assert begun == AuditEntry(
        id=entry_id,
        at=begun.at,
        caller="abcd1234",
        subject="user:1:42",
        action="enrollUser",
        target="course:1:7",
        arguments={"role": "STUDENT", "idempotencyKey": "***"},
        outcome=AuditOutcome.BEGUN,
        code=None,
        request_id="request-1",
    )
    assert (finished.outcome, finished.code) == (AuditOutcome.FAILED, "PROVIDER_TIMEOUT")
    assert (finished.target, finished.at) == ("course:1:7", begun.at)


async def test_entries_come_in_order_by_caller_and_time_a_page_at_a_time(
    any_database: Database,
) -> None:
    store = AuditStore(any_database)
    ids = [
        await store.begin(AuditDraft(caller=caller, action=f"action{number}"))
        for number, caller in enumerate(["one", "other", "one", "one"])
    ]
    async with any_database.transaction() as connection:
        for age, entry_id in enumerate(reversed(ids)):
            aged = update(audit).where(audit.c.id == entry_id)
            await connection.execute(aged.values(at=database_now() - 60 * age))
    (*_, last) = await store.list_entries(limit=10)

    first = await store.list_entries(caller="one", limit=2)
    rest = await store.list_entries(caller="one", after=first[-1].id, limit=2)
    since = await store.list_entries(since=last.at - timedelta(seconds=90), limit=10)
    later = await store.list_entries(since=last.at + timedelta(seconds=1), limit=10)

    assert [entry.id for entry in first] == [ids[0], ids[2]]
    assert [entry.id for entry in rest] == [ids[3]]
    assert [entry.id for entry in since] == ids[2:]
    assert later == []


async def test_old_entries_are_forgotten_and_no_others(any_database: Database) -> None:
    store = AuditStore(any_database)
    old, new = [await store.begin(DRAFT) for _ in range(2)]
    async with any_database.transaction() as connection:
        await connection.execute(
            update(audit).where(audit.c.id == old).values(at=database_now() - 86_401)
        )

    swept = await store.sweep(kept_seconds=86_400)
    again = await store.sweep(kept_seconds=86_400)

    assert (swept, again) == (1, 0)
    assert [entry.id for entry in await store.list_entries(limit=10)] == [new]


async def test_text_that_no_database_takes_is_escaped(any_database: Database) -> None:
    store = AuditStore(any_database)
    target = "user:\ud800\0é"

    entry_id = await store.begin(replace(DRAFT, target=target, subject=target))
    await store.finish(entry_id, AuditOutcome.REFUSED, code="BAD_INPUT", target=None)
    (begun,) = await store.list_entries(limit=10)
    await store.finish(entry_id, AuditOutcome.REFUSED, code="BAD_INPUT", target=f"{target}!")
    (ended,) = await store.list_entries(limit=10)

    assert (begun.subject, begun.target) == ("user:\\ud800\\x00é",) * 2
    assert ended.target == "user:\\ud800\\x00é!"
