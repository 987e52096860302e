import asyncio
from collections.abc import Mapping, Sequence

import pytest

from resolvers.loaders import BatchLoader, ExternalKey, RowLoader, when_there
from sessions.errors import ProviderError, ProviderUnavailable


class Shelf:
    """Fetches what is asked, and remembers each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[ExternalKey]]] = []
        self.failures: dict[str, Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}

    async def fetch(self, group: str, keys: Sequence[ExternalKey]) -> Mapping[ExternalKey, str]:
        self.calls.append((group, list(keys)))
        if group in self.gates:
            await self.gates[group].wait()
        if group in self.failures:
            raise self.failures[group]
        return {key: f"{key[0]}/{key[1]}" for key in keys if key[1] != "unknown"}

    def loader(self) -> BatchLoader[ExternalKey, str]:
        return BatchLoader(group_of=lambda key: key[0], fetch=self.fetch)


async def test_keys_asked_together_are_one_call_per_provider_with_these_ids_only() -> None:
    shelf = Shelf()
    loader = shelf.loader()

    values = await loader.load_many([("a", "1"), ("b", "1"), ("a", "2"), ("a", "1")])

    assert values == ["a/1", "b/1", "a/2", "a/1"]
    assert shelf.calls == [("a", [("a", "1"), ("a", "2")]), ("b", [("b", "1")])]


async def test_keys_that_come_a_few_turns_of_the_loop_apart_share_a_call() -> None:
    shelf = Shelf()
    loader = shelf.loader()

    async def load_after(turns: int) -> str | None:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await loader.load(("a", str(turns)))

    values = await asyncio.gather(*map(load_after, range(5)))

    assert values == [f"a/{turn}" for turn in range(5)]
    assert len(shelf.calls) == 1


async def test_a_key_the_provider_does_not_know_loads_as_none() -> None:
    assert await Shelf().loader().load(("a", "unknown")) is None


async def test_a_failing_provider_fails_its_own_keys_only() -> None:
    shelf = Shelf()
    shelf.failures["a"] = ProviderUnavailable("Down", provider_id="a")
    loader = shelf.loader()

    answers = await asyncio.gather(
        loader.load(("a", "1")), loader.load(("b", "1")), return_exceptions=True
    )

    assert isinstance(answers[0], ProviderError)
    assert answers[1] == "b/1"


async def test_a_slow_provider_does_not_hold_up_anothers_keys() -> None:
    shelf = Shelf()
    shelf.gates["a"] = asyncio.Event()
    loader = shelf.loader()
    slow = loader.load(("a", "1"))

    quick = await loader.load(("b", "1"))

    assert quick == "b/1"
    assert not slow.done()
    shelf.gates["a"].set()
    assert await slow == "a/1"


async def test_a_key_is_fetched_once_per_request_and_failures_are_remembered() -> None:
    shelf = Shelf()
    shelf.failures["b"] = ProviderUnavailable("Down")
    loader = shelf.loader()
    for key in (("a", "1"), ("b", "1")) * 2:
        await asyncio.gather(loader.load(key), return_exceptions=True)

    assert [group for group, _keys in shelf.calls] == ["a", "b"]


async def test_a_primed_key_costs_no_call_and_does_not_replace_one_asked_for() -> None:
    shelf = Shelf()
    loader = shelf.loader()
    asked = loader.load(("a", "1"))
    loader.prime({("a", "1"): "primed", ("a", "2"): "primed"})

    assert await asked == "a/1"
    assert await loader.load(("a", "2")) == "primed"
    assert shelf.calls == [("a", [("a", "1")])]


async def test_cancelling_ends_the_calls_under_way() -> None:
    shelf = Shelf()
    shelf.gates["a"] = asyncio.Event()
    loader = shelf.loader()
    waiting = loader.load(("a", "1"))
    await asyncio.sleep(0.01)

    loader.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_unexpected_error_reaches_every_key_of_its_call() -> None:
    shelf = Shelf()
    shelf.failures["a"] = LookupError("bug")
    loader = shelf.loader()

    answers = await asyncio.gather(
        loader.load(("a", "1")), loader.load(("a", "2")), return_exceptions=True
    )

    assert [type(answer) for answer in answers] == [LookupError, LookupError]


async def test_a_cancelled_loader_has_let_go_of_what_it_found() -> None:
    shelf = Shelf()
    loader = shelf.loader()
    await loader.load_many([("a", "1")])

    loader.cancel()
    again = await loader.load_many([("a", "1")])

    assert again == ["a/1"]
    assert shelf.calls == [("a", [("a", "1")])] * 2


async def test_cancelling_a_loader_leaves_what_was_given_up_alone() -> None:
    shelf = Shelf()
    shelf.gates["a"] = asyncio.Event()
    loader = shelf.loader()
    given_up = loader.load(("a", "1"))
    waiting = loader.load(("a", "2"))
    await asyncio.sleep(0.01)

    given_up.cancel()
    shelf.gates["a"].set()

    assert await waiting == "a/2"
    assert given_up.cancelled()


async def test_of_several_keys_each_comes_to_its_own_value_or_error_in_their_order() -> None:
    shelf = Shelf()
    shelf.failures["b"] = ProviderUnavailable("Down")
    loader = shelf.loader()
    loader.prime({("a", "primed"): "known"})

    keys = [("a", "1"), ("b", "1"), ("a", "unknown"), ("a", "primed"), ("a", "1")]
    found = await when_there(loader.load_each(keys))
    again = await when_there(loader.load_each(keys))

    assert found == again == ["a/1", shelf.failures["b"], None, "known", "a/1"]
    assert shelf.calls == [("a", [("a", "1"), ("a", "unknown")]), ("b", [("b", "1")])]


async def test_one_key_and_several_share_a_call_and_what_it_came_to() -> None:
    shelf = Shelf()
    loader = shelf.loader()

    alone = loader.load(("a", "1"))
    together = await when_there(loader.load_each([("a", "1"), ("a", "2")]))

    assert (await alone, together) == ("a/1", ["a/1", "a/2"])
    assert await loader.load(("a", "2")) == "a/2"
    assert shelf.calls == [("a", [("a", "1"), ("a", "2")])]


async def test_who_waits_for_several_keys_is_told_when_they_are_given_up() -> None:
    shelf = Shelf()
    shelf.gates["a"] = asyncio.Event()
    loader = shelf.loader()

    waiting = asyncio.ensure_future(when_there(loader.load_each([("a", "1")])))
    for _ in range(5):
        await asyncio.sleep(0)
    loader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert loader.load(("a", "1")).cancelled()


async def test_who_no_longer_waits_for_several_keys_takes_them_from_nobody() -> None:
    shelf = Shelf()
    shelf.gates["a"] = asyncio.Event()
    loader = shelf.loader()

    left, stayed = (
        asyncio.ensure_future(when_there(loader.load_each([("a", "1")]))) for _ in range(2)
    )
    for _ in range(5):
        await asyncio.sleep(0)
    left.cancel()
    shelf.gates["a"].set()

    assert await stayed == ["a/1"]
    assert left.cancelled()


async def test_very_many_keys_are_looked_for_in_turns_and_the_missing_fetched_by_one_call() -> None:
    shelf, looked = Shelf(), list[int]()

    def at_hand(_group: str, keys: Sequence[ExternalKey]) -> Mapping[ExternalKey, str]:
        looked.append(len(keys))
        return {key: f"kept {key[1]}" for key in keys if int(key[1]) % 2}

    loader: BatchLoader[ExternalKey, str] = BatchLoader(
        group_of=lambda key: key[0], fetch=shelf.fetch, at_hand=at_hand
    )
    keys = [("a", str(number)) for number in range(2500)]

    found = await when_there(loader.load_each(keys))
    again = loader.load_each(keys[:5])

    assert found[:2] == ["a/0", "kept 1"]
    assert found[-2:] == ["a/2498", "kept 2499"]
    assert again == found[:5]  # at once
    assert looked == [1000, 1000, 500]
    assert [(group, len(some)) for group, some in shelf.calls] == [("a", 1250)]


async def test_what_is_at_hand_needs_no_turn_and_no_call() -> None:
    shelf = Shelf()
    loader: BatchLoader[ExternalKey, str] = BatchLoader(
        group_of=lambda key: key[0],
        fetch=shelf.fetch,
        at_hand=lambda _group, keys: dict.fromkeys(keys, "kept"),
    )

    assert loader.load_each([("a", "1"), ("b", "2")]) == ["kept", "kept"]
    assert shelf.calls == []


class Kept:
    """A shelf that has some ids of every provider, and notes what it is asked."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        self.looks: list[str] = []
        self.series: set[tuple[str, ...]] = set()

    def at_hand(self, provider_id: str, keys: Sequence[ExternalKey]) -> Mapping[ExternalKey, str]:
        self.looks.append("each")
        return {key: f"{provider_id}/{key[1]}" for key in keys if key[1] in self.ids}

    def together(self, provider_id: str, ids: tuple[str, ...]) -> Sequence[str] | None:
        self.looks.append("together")
        return [f"{provider_id}/{key}" for key in ids] if ids in self.series else None

    async def put_together(self, _provider_id: str, ids: tuple[str, ...]) -> None:
        self.series.add(ids)


IDS = tuple(map(str, range(60)))
ROWS = [f"a/{key}" for key in IDS]


async def test_very_many_that_are_kept_are_had_by_one_look_the_second_time() -> None:
    kept, fetched = Kept(IDS), Shelf()
    first, second = (RowLoader(fetch=fetched.fetch, shelf=kept) for _ in range(2))
    assert await when_there(first.load_of("a", IDS)) == ROWS
    kept.looks.clear()

    assert second.load_of("a", IDS) == ROWS
    assert second.load_of("a", [*IDS]) == ROWS

    assert kept.looks == ["together"]
    assert fetched.calls == []


async def test_what_was_fetched_is_not_put_together() -> None:
    kept, fetched = Kept(IDS[1:]), Shelf()
    loader = RowLoader(fetch=fetched.fetch, shelf=kept)

    assert await when_there(loader.load_of("a", IDS)) == ROWS

    assert fetched.calls == [("a", [("a", "0")])]
    assert kept.series == set()


async def test_what_was_had_together_is_known_one_by_one_too() -> None:
    kept, fetched = Kept(()), Shelf()
    kept.series.add(IDS)
    loader = RowLoader(fetch=fetched.fetch, shelf=kept)
    loader.prime_later(["b/1"], lambda row: (row[0], row[2:]))
    assert await when_there(loader.load_of("b", ["1"])) == ["b/1"]
    other = RowLoader(fetch=fetched.fetch, shelf=kept)
    assert other.load_of("a", IDS) == ROWS

    assert await other.load(("a", "7")) == "a/7"
    assert await when_there(other.load_of("a", ["8"])) == ["a/8"]
    assert await when_there(other.load_of("a", IDS)) == ROWS
    assert fetched.calls == []


async def test_nothing_is_had_together_where_some_of_it_was_had_before() -> None:
    kept, fetched = Kept(()), Shelf()
    kept.series.add(IDS)
    loader = RowLoader(fetch=fetched.fetch, shelf=kept)
    loader.prime_later(["a/primed"], lambda _row: ("a", "0"))

    found = await when_there(loader.load_of("a", IDS))

    assert found == ["a/primed", *ROWS[1:]]
    loader.cancel()
    assert loader.load_of("a", IDS) == ROWS
