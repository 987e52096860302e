"""How much of answers is remembered."""

from math import inf

from resolvers.caching import Basis
from schema.engine import Written
from schema.remembering import Remembered, _Answer


def an_answer(size: int) -> _Answer:
    return _Answer(
        written=Written([b"{}"], 0), basis=Basis(), providers=(), icons=0, until=inf, size=size
    )


def test_no_more_is_remembered_than_there_is_room_for_and_what_was_used_last_stays() -> None:
    remembered = Remembered(1_000)
    keys = [(f"query {number}", None, b"", "key", ()) for number in range(12)]

    for key in keys:
        remembered.put(key, an_answer(300))
        if remembered.get(keys[0]) is not None:
            remembered.note_use(keys[0])

    assert remembered.held_bytes == 900
    assert [key for key in keys if remembered.get(key) is not None] == [keys[0], *keys[-2:]]


def test_an_answer_takes_the_place_of_the_one_before() -> None:
    remembered = Remembered(1_000)
    key = ("query", None, b"", "key", ())

    remembered.put(key, an_answer(300))
    remembered.put(key, an_answer(200))
    held = remembered.held_bytes
    remembered.forget(key)

    assert (held, remembered.held_bytes) == (200, 0)
