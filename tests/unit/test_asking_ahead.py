"""Which providers a walk asks at once: those that will be needed, as far as is known."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from resolvers.cursors import CursorSealer
from resolvers.paging import Connection, PageRequest, walk_providers
from sessions.base import Page
from storage.credentials import Secret
from storage.records import Provider, ProviderState

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
SEALER = CursorSealer(Secret(b"key"), "a list")


def a_provider(number: int) -> Provider:
    return Provider(
        id=str(number),
        platform="pretend",
        name="",
        base_url="http://a.example",
        options={},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=BEGINNING + timedelta(days=number),
        updated_at=BEGINNING,
    )


PROVIDERS = [a_provider(number) for number in range(4)]


class Lists:
    """Each provider has ten rows; nobody answers before the gate is opened."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.prefetched: list[tuple[str, str, int]] = []
        self.gate = asyncio.Event()

    async def fetch(self, provider_id: str, position: str | None, limit: int) -> Page[str]:
        self.asked.append((provider_id, position))
        await self.gate.wait()
        start = int(position or 0)
        rows = [f"{provider_id}-{number}" for number in range(start, min(start + limit, 10))]
        return Page(items=rows, next_position=str(start + limit) if start + limit < 10 else None)

    def prefetch(self, provider_id: str, position: str, limit: int) -> None:
        self.prefetched.append((provider_id, position, limit))


async def walked(
    lists: Lists, *, first: int, lengths: Mapping[str, int | None], after: str | None = None
) -> Connection[str]:
    request = PageRequest.checked(first=first, after=after, sealer=SEALER, max_page_size=100)
    return await walk_providers(
        PROVIDERS,
        fetch_page=lists.fetch,
        id_of=lambda row: row,
        limit_of=lambda _provider: 10,
        request=request,
        patience_seconds=60,
        wants_total=False,
        length_of=lambda provider: lengths.get(provider.id),
        prefetch=lists.prefetch,
    )


@pytest.mark.parametrize(
    ("first", "lengths", "asked"),
    [
        (5, {}, ["0"]),  # nothing is remembered: wait and see
        (5, dict.fromkeys("0123", 0), ["0", "1", "2", "3"]),  # nothing is known of anybody yet
        (5, dict.fromkeys("0123", 10), ["0"]),
        (10, dict.fromkeys("0123", 10), ["0", "1"]),  # only the second tells whether there is more
        (25, dict.fromkeys("0123", 10), ["0", "1", "2"]),
        (25, {"0": 10, "1": 0, "2": 20, "3": 10}, ["0", "1", "2"]),
        (100, dict.fromkeys("0123", 10), ["0", "1", "2", "3"]),
    ],
)
async def test_providers_whose_rows_will_be_needed_are_asked_at_once(
    first: int, lengths: Mapping[str, int | None], asked: list[str]
) -> None:
    lists = Lists()
    walk = asyncio.create_task(walked(lists, first=first, lengths=lengths))
    for _ in range(5):
        await asyncio.sleep(0)

    assert [provider_id for provider_id, _position in lists.asked] == asked
    lists.gate.set()
    connection = await walk
    assert len(connection.nodes) == min(first, 40)
    assert len(lists.asked) == len(set(lists.asked))


async def test_who_is_walking_gets_the_next_page_read_ahead_and_who_only_looks_does_not() -> None:
    lists = Lists()
    lists.gate.set()
    known: dict[str, Any] = dict.fromkeys("0123", 10)

    first = await walked(lists, first=3, lengths=known)
    looked = list(lists.prefetched)
    second = await walked(lists, first=3, lengths=known, after=first.end_cursor)

    assert looked == []
    assert list(second.nodes) == ["0-3", "0-4", "0-5"]
    assert [(provider_id, limit) for provider_id, _position, limit in lists.prefetched] == [
        ("0", 3)
    ]
    position = lists.prefetched[0][1]
    third = await walked(lists, first=3, lengths=known, after=second.end_cursor)
    assert list(third.nodes) == ["0-6", "0-7", "0-8"]
    assert lists.asked[-1] == ("0", position)
