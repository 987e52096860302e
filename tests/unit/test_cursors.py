from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolvers.collation import fold, sort_key
from resolvers.cursors import CursorSealer
from resolvers.errors import BadInput
from schema import global_ids
from schema.global_ids import GlobalId
from storage.credentials import Secret

JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(state=JSON, key=st.binary(min_size=1), query=st.text())
def test_a_cursor_opens_to_the_state_it_was_sealed_with(
    state: object, key: bytes, query: str
) -> None:
    sealer = CursorSealer(Secret(key), query)
    cursor = sealer.seal(state)

    assert sealer.open(cursor) == state
    assert not cursor.startswith("-"), "a command line would take it for an option"


@given(
    at=st.integers(min_value=0),
    new=st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
)
def test_a_cursor_with_one_character_changed_is_refused(at: int, new: str) -> None:
    sealer = CursorSealer(Secret(b"key"), "users")
    cursor = sealer.seal([1, "a", None])
    at %= len(cursor)
    changed = cursor[:at] + new + cursor[at + 1 :]

    if changed != cursor:
        with pytest.raises(BadInput, match=r"^after: This cursor is damaged"):
            sealer.open(changed)


@given(text=st.text())
def test_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^after: "):
        CursorSealer(Secret(b"key"), "users").open(text)


def test_a_truncated_padded_or_endless_cursor_is_refused() -> None:
    sealer = CursorSealer(Secret(b"key"), "users")
    cursor = sealer.seal([1])

    for wrong in ("", cursor[:-1], cursor + "=", cursor + "A", "A" * 100_000, cursor + "\n"):
        with pytest.raises(BadInput):
            sealer.open(wrong)


def test_a_cursor_of_another_key_or_query_is_refused() -> None:
    cursor = CursorSealer(Secret(b"key"), "users").seal([1])

    for sealer in (CursorSealer(Secret(b"kez"), "users"), CursorSealer(Secret(b"key"), "usert")):
        with pytest.raises(BadInput):
            sealer.open(cursor)


def test_a_cursor_with_its_signature_first_is_of_an_earlier_release() -> None:
    sealer = CursorSealer(Secret(b"key"), "users")
    padded = sealer.seal([1, "a"]) + "=="
    sealed = urlsafe_b64decode(padded[: len(padded) // 4 * 4])
    former = urlsafe_b64encode(sealed[-16:] + sealed[:-16]).rstrip(b"=").decode()

    with pytest.raises(BadInput, match=r"^after: This cursor was given by an earlier release"):
        sealer.open(former)


# Text


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("José ŁUCZAK", "jose luczak"),
        ("  two\t words ", "two words"),
        ("Straße", "strasse"),
        ("İstanbul Iğd\N{LATIN SMALL LETTER DOTLESS I}r", "istanbul igdir"),
        ("Ærø Þór Œuvre", "aero thor oeuvre"),
        ("ﬁn \N{FULLWIDTH LATIN CAPITAL LETTER F}ull", "fin full"),
        ("Nguyễn Thị Ánh", "nguyen thi anh"),
        ("Żółć", "zolc"),
        ("مُحَمَّد", "محمد"),
        ("がか", "がか"),
        ("हिन्दी", "हिन्दी"),
        ("ที่", "ที่"),
        ("한국", "한국"),
        ("zero\u200bwidth", "zerowidth"),
        ("", ""),
    ],
)
def test_text_is_folded_for_comparison(text: str, folded: str) -> None:
    assert fold(text) == folded


@given(text=st.text())
def test_folding_twice_is_folding_once(text: str) -> None:
    assert fold(fold(text)) == fold(text)


def test_a_sort_key_is_bounded() -> None:
    assert sort_key("Ä" * 1000) == "a" * 200


# Ids


@given(
    external_id=st.text(alphabet=st.characters()),
    type_name=st.sampled_from(["User", "Course", "Provider"]),
)
def test_a_global_id_comes_back_exactly(external_id: str, type_name: str) -> None:
    given_id = GlobalId(type_name, "provider-1_A", external_id)

    assert global_ids.decode(given_id.encode(), argument="id") == given_id


@given(user_id=st.text(max_size=50), local_id=st.text(max_size=50))
def test_an_enrollments_global_id_names_its_user(user_id: str, local_id: str) -> None:
    encoded = global_ids.enrollment_id("1", user_id, local_id).encode()

    found = global_ids.decode(encoded, argument="id", type_name="Enrollment")

    assert global_ids.enrollment_parts(found, argument="id") == (user_id, local_id)


@given(text=st.text())
def test_text_that_is_no_global_id_is_refused_or_comes_back_exactly(text: str) -> None:
    try:
        found = global_ids.decode(text, argument="ids[3]")
    except BadInput as error:
        refused = error.message
    else:
        refused = "" if found.encode() == text else "another id"
    assert refused in {"", "ids[3]: This is not an id the gateway gave"}
