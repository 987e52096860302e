"""What both databases promise of trusted documents."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from storage.database import Database
from storage.documents import DocumentDraft, DocumentStore


def draft(number: int) -> DocumentDraft:
    text = f"query Q{number} {{ a }} # 🦉"
    return DocumentDraft(id=f"{number:064x}", text=text, names=(f"Q{number}", "Other"))


@pytest.fixture
def store(any_database: Database) -> DocumentStore:
    return DocumentStore(any_database)


async def test_documents_are_kept_once_for_each_client(store: DocumentStore) -> None:
    first = await store.register([draft(1), draft(2)], client="web@1")
    again = await store.register([draft(2), draft(3)], client="web@1")
    others = await store.register([draft(2)], client="")

    listed = await store.list_all()
    assert (first, again, others) == (2, 1, 1)
    assert [(one.client, one.id, one.text, one.names) for one in listed] == [
        (client, draft(number).id, draft(number).text, draft(number).names)
        for client, number in [("", 2), ("web@1", 1), ("web@1", 2), ("web@1", 3)]
    ]
    assert all(abs(datetime.now(UTC) - one.registered_at) < timedelta(minutes=1) for one in listed)


async def test_documents_are_removed_by_id_by_client_or_both(store: DocumentStore) -> None:
    for client in ("a", "b"):
        await store.register([draft(number) for number in range(1200)], client=client)

    both = await store.remove([draft(1).id, draft(9999).id], client="a")
    by_id = await store.remove([draft(number).id for number in range(2, 1100)])
    by_client = await store.remove(client="a")
    everything = await store.remove()

    assert (both, by_id, by_client, everything) == (1, 2 * 1098, 101, 102)
    assert await store.list_all() == []


async def test_every_change_raises_the_revision_and_nothing_else_does(store: DocumentStore) -> None:
    revisions = [await store.get_revision()]
    for change in (
        store.register([draft(1)], client="a"),
        store.register([draft(1)], client="a"),
        store.register([], client="a"),
        store.register([draft(1)], client="b"),
        store.remove([draft(2).id]),
        store.remove([draft(1).id]),
    ):
        await change
        revisions.append(await store.get_revision())

    assert revisions == [0, 1, 1, 1, 2, 2, 3]


async def test_writers_at_once_lose_nothing(store: DocumentStore) -> None:
    orders = [
        [draft(number) for number in range(20)],
        [draft(number) for number in range(19, 0, -1)],
    ]

    new = await asyncio.gather(*(store.register(orders[n % 2], client="a") for n in range(8)))

    assert sum(new) == 20
    assert len(await store.list_all()) == 20
