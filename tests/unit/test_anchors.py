"""Places in numbered lists: how they are written, and which page is asked for to find them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.anchors import ANCHORS, Anchor, ByMark, Stretch, anchors_of, page_over, read_behind


@given(offset=st.integers(0, 10**12 - 1), marks=st.lists(st.text(min_size=1), max_size=4))
def test_an_anchor_is_read_as_it_was_written(offset: int, marks: list[str]) -> None:
    anchor = Anchor(offset, tuple(marks))

    assert Anchor.parse(str(anchor)) == anchor


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "x;a", "9" * 13, "\N{SUPERSCRIPT TWO}"])
def test_what_is_no_number_is_no_anchor(text: str) -> None:
    assert Anchor.parse(text) is None


def test_each_row_is_anchored_by_itself_and_those_before_it() -> None:
    anchors = anchors_of(["a", "b", "c", "d"], offset=7)

    assert ANCHORS == 3
    assert anchors == [
        Anchor(8, ("a",)),
        Anchor(9, ("a", "b")),
        Anchor(10, ("a", "b", "c")),
        Anchor(11, ("b", "c", "d")),
    ]


@given(offset=st.integers(0, 3000), limit=st.integers(1, 120), most=st.integers(1, 110))
def test_the_page_over_a_stretch_holds_its_first_row(offset: int, limit: int, most: int) -> None:
    size, page = page_over(offset, limit, most=most)

    assert 1 <= size <= most
    assert (page - 1) * size <= offset < page * size


@given(offset=st.integers(0, 3000))
def test_a_page_of_a_hundred_always_leaves_room_for_half_of_it(offset: int) -> None:
    size, page = page_over(offset, 103, most=100)

    assert page * size - offset >= 50


async def test_a_place_whose_anchors_are_all_gone_is_believed_by_its_number() -> None:
    calls: list[tuple[int, int]] = []

    async def read(offset: int, limit: int) -> Stretch[str]:
        calls.append((offset, limit))
        rows = [f"r{number}" for number in range(200)]
        return Stretch(
            rows=rows[offset : offset + limit], offset=offset, more=offset + limit < len(rows)
        )

    find: ByMark[str] = ByMark(str)

    behind = await read_behind(
        Anchor(100, ("gone", "too", "all")), 4, read=read, mark_of=str, find=find
    )

    assert list(behind.rows) == ["r100", "r101", "r102", "r103"]
    assert calls == [(97, 7), (47, 50), (97, 50), (147, 50)]
