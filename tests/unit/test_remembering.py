"""How much of answers is remembered, and of what asked for them."""

from dataclasses import replace
from math import inf

from resolvers.caching import Basis
from resolvers.operations import OperationKind
from schema.engine import Written
from schema.remembering import Asked, Key, Prepared, Remembered, Repeated, _Answer


def an_answer(size: int) -> _Answer:
    return _Answer(
        written=Written([b"{}"], 0), basis=Basis(), providers=(), icons=0, until=inf, size=size
    )


def test_no_more_is_remembered_than_there_is_room_for_and_what_was_used_last_stays() -> None:
    remembered = Remembered(1_000)
    keys: list[Key] = [(f"query {number}", None, b"", "key", frozenset()) for number in range(12)]

    for key in keys:
        remembered.put(key, an_answer(300))
        if remembered.get(keys[0]) is not None:
            remembered.note_use(keys[0])

    assert remembered.held_bytes == 900
    assert [key for key in keys if remembered.get(key) is not None] == [keys[0], *keys[-2:]]


def test_an_answer_takes_the_place_of_the_one_before() -> None:
    remembered = Remembered(1_000)
    key: Key = ("query", None, b"", "key", frozenset())

    remembered.put(key, an_answer(300))
    remembered.put(key, an_answer(200))
    held = remembered.held_bytes
    remembered.forget(key)

    assert (held, remembered.held_bytes) == (200, 0)


def a_request(*, is_prepared: bool = True) -> Asked:
    asked = Asked({"query": "{ users }"})
    if is_prepared:
        key: Key = ("{ users }", None, b"", "key", frozenset())
        asked.prepared = Prepared(key=key, kind=OperationKind.QUERY, name=None, cost=1)
    return asked


def test_a_request_is_known_again_by_its_body_once_it_was_answered_from_memory() -> None:
    repeated = Repeated()
    known = a_request()

    repeated.keep(b"known", known)
    repeated.keep(b"executed", a_request(is_prepared=False))
    repeated.keep(b"l" * 4_001, a_request())
    repeated.keep(b"", a_request())  # of a GET

    assert repeated.find(b"known") is known
    assert [repeated.find(body) for body in (b"executed", b"l" * 4_001, b"")] == [None] * 3


def test_of_requests_those_used_last_are_known() -> None:
    repeated = Repeated()
    for number in range(502):
        repeated.keep(b"%d" % number, a_request())
        repeated.find(b"0")

    assert [number for number in range(5) if repeated.find(b"%d" % number)] == [0, 3, 4]


def test_a_long_answer_takes_the_place_of_others_once_it_was_asked_for_before() -> None:
    remembered = Remembered(64_000)
    keys: list[Key] = [
        (f"query {number}", None, b"", "key", frozenset()) for number in range(1_003)
    ]
    at_first = remembered.room_for(keys[0])

    remembered.put(keys[1], an_answer(2_000))
    beside_another = remembered.room_for(keys[0])
    remembered.put(keys[2], an_answer(62_000))
    when_full = remembered.room_for(keys[0])
    remembered.note_long(keys[0])
    noted = [remembered.room_for(key) for key in keys[:4]]
    for key in keys[3:]:
        remembered.note_long(key)

    assert (at_first, beside_another, when_full) == (64_000, 62_000, 1_000)
    assert noted == [64_000, 64_000, 64_000, 1_000]
    assert remembered.room_for(keys[0]) == 1_000  # of so many, the last thousand are known
    assert remembered.room_for(keys[-1]) == 64_000


def test_what_is_too_old_to_be_given_again_makes_room() -> None:
    remembered = Remembered(64_000)
    old: Key = ("old", None, b"", "key", frozenset())
    young: Key = ("young", None, b"", "key", frozenset())
    remembered.put(old, replace(an_answer(40_000), until=0.0))
    remembered.put(young, an_answer(4_000))

    remembered.forget_old()

    assert (remembered.get(old), remembered.held_bytes) == (None, 4_000)
    assert remembered.get(young) is not None
