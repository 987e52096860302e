"""Names are told apart where they can be, and left alone where they cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.names import UNTOLD, ParsedName, parse_name

TOLD = {
    # a comma
    "Cutrer, Cody Houston": ("Cody", "Houston", "Cutrer", None),
    "St. Clair, John": ("John", None, "St. Clair", None),
    "Cutrer, Jefferson, IV": ("Jefferson", None, "Cutrer", "IV"),
    "Ho, Chi, Min": ("Chi", "Min", "Ho", None),
    "O'Brien, Seán": ("Seán", None, "O'Brien", None),
    "de la Cruz, Juan": ("Juan", None, "de la Cruz", None),
    "van der Berg, Anneke": ("Anneke", None, "van der Berg", None),
    "García, María de los Ángeles": ("María de los Ángeles", None, "García", None),
    "Smith, Dr. John": ("John", None, "Smith", None),
    "Smith, John Jr.": ("John", None, "Smith", "Jr."),
    "王, 小明": ("小明", None, "王", None),
    "王\uff0c小明": ("小明", None, "王", None),
    "Толстой, Лев Николаевич": ("Лев", "Николаевич", "Толстой", None),
    # suffixes
    "Jefferson Thomas Cutrer IV": ("Jefferson", "Thomas", "Cutrer", "IV"),
    "John Smith Jr": ("John", None, "Smith", "Jr"),
    "John Smith, Jr.": ("John", None, "Smith", "Jr."),
    "Jane Doe, PhD": ("Jane", None, "Doe", "PhD"),
    "Martin Luther King, Jr., PhD": ("Martin", "Luther", "King", "Jr., PhD"),
    "John Smith V": ("John", None, "Smith", "V"),
    "Ramesh V": ("Ramesh", None, "V", None),
    "Kim Sr": ("Kim", None, None, "Sr"),
    # one word
    "Sukarno": ("Sukarno", None, None, None),
    "Zoë": ("Zoë", None, None, None),
    "नागार्जुन": ("नागार्जुन", None, None, None),
    # two and three words
    "Jean-Luc Picard": ("Jean-Luc", None, "Picard", None),
    "  Jean-Luc   Picard ": ("Jean-Luc", None, "Picard", None),
    "Mary Jane Watson": ("Mary", "Jane", "Watson", None),
    "MARY JANE WATSON": ("MARY", "JANE", "WATSON", None),
    "Łukasz Żółć": ("Łukasz", None, "Żółć", None),
    "Aïcha Ben-Salah": ("Aïcha", None, "Ben-Salah", None),
    "Ben Smith": ("Ben", None, "Smith", None),
    "Kealoha Ka\u02bbahumanu": ("Kealoha", None, "Ka\u02bbahumanu", None),
    "Dr. Jane Smith": ("Jane", None, "Smith", None),
    # initials
    "J. R. R. Tolkien": ("J.", "R. R.", "Tolkien", None),
    "George H. W. Bush": ("George", "H. W.", "Bush", None),
    # particles
    "Juan de la Cruz": ("Juan", None, "de la Cruz", None),
    "Jan van der Berg": ("Jan", None, "van der Berg", None),
    "John St. Clair": ("John", None, "St. Clair", None),
    "Mohammed al-Fayed": ("Mohammed", None, "al-Fayed", None),
    "Mohammed Al Fayed": ("Mohammed", None, "Al Fayed", None),
    "Al Gore": ("Al", None, "Gore", None),
    "José Ortega y Gasset": ("José", None, "Ortega y Gasset", None),
    # capitals
    "KIM Min-jun": ("Min-jun", None, "KIM", None),
    "Jean DUPONT": ("Jean", None, "DUPONT", None),
    "Charles de GAULLE": ("Charles", None, "de GAULLE", None),
    # patronymics
    "Ahmad bin Abdullah": ("Ahmad", None, None, None),
    "Siti binti Ahmad": ("Siti", None, None, None),
    "Wanjirũ wa Kamau": ("Wanjirũ", None, None, None),
    "Лев Николаевич Толстой": ("Лев", "Николаевич", "Толстой", None),
    "Толстой Лев Николаевич": ("Лев", "Николаевич", "Толстой", None),
    "Beethoven, Ludwig van": ("Ludwig", None, None, None),
}

NOT_TOLD = [
    "",
    "   ",
    "李小龙",
    "김철수",
    "さくら",
    "علي بن أبي طالب",
    "محمد بن سلمى",
    "ЛЕВ ТОЛСТОЙ",
    "Nguyễn Văn An",
    "Ōe Kenzaburō",
    "Muhammad Ali bin Hassan",
    "Abdul Kalam",
    "María José García López",
    "María de los Ángeles García",
    "João da Silva Santos",
    "van Gogh",
    "Vincent van",
    "Dr. Okafor",
    "JD Salinger",
    "Test <b>Html</b>",
    "Anna 😀 Emoji",
    "X Æ A-12",
    "Jean DUPONT Martin",
    "Tom and Jerry",
    "Service Account (admin)",
    "learner16",
    "cruz@example.org",
    "Smith,",
    ", John",
    ",",
    "A, B, C, D",
    "- -",
    "PhD",
    "Mr.",
]


@pytest.mark.parametrize(("name", "parts"), TOLD.items())
def test_names_that_can_be_told_are(name: str, parts: tuple[str | None, ...]) -> None:
    given_name, middle, family, suffix = parts

    parsed = parse_name(name)

    assert parsed == ParsedName(given=given_name, middle=middle, family=family, suffix=suffix)


@pytest.mark.parametrize("name", NOT_TOLD)
def test_names_that_cannot_be_told_are_left_alone(name: str) -> None:
    assert parse_name(name) == UNTOLD


@pytest.mark.parametrize(
    ("name", "misread_as"),
    [
        ("Kim Minjun", ParsedName(given="Kim", family="Minjun")),
        (
            "Gabriel García Márquez",
            ParsedName(given="Gabriel", middle="García", family="Márquez"),
        ),
        ("García, María José", ParsedName(given="María", middle="José", family="García")),
    ],
)
def test_what_the_documentation_admits_to_get_wrong_is_all_it_says(
    name: str, misread_as: ParsedName
) -> None:
    assert parse_name(name) == misread_as


def parts_of(parsed: ParsedName) -> list[str]:
    parts = (parsed.given, parsed.middle, parsed.family, parsed.suffix)
    return [part for part in parts if part is not None]


words = st.sampled_from(
    tuple("Ana María de la van DUPONT KIM bin J. Jr. PhD III V".split())  # noqa: SIM905 - a line
    + tuple("Лев Николаевич 李 小龙 علي y , \uff0c <b> 😀 St. Dr.".split())  # noqa: SIM905 - shorter
)


@given(st.one_of(st.text(), st.lists(words, max_size=7).map(" ".join)))
def test_whatever_the_text_the_parts_are_pieces_of_it(text: str) -> None:
    collapsed = " ".join(text.split())

    parts = parts_of(parse_name(text))

    assert all(part and part in collapsed for part in parts)
    assert all(part == " ".join(part.split()) for part in parts)


@given(st.lists(words, max_size=7), st.sampled_from([" ", "  ", "\t", "\n", "\u00a0"]))
def test_white_space_makes_no_difference(parts: list[str], space: str) -> None:
    assert parse_name(space + space.join(parts) + space) == parse_name(" ".join(parts))


@given(st.lists(words, max_size=5).map(" ".join))
def test_no_part_is_told_of_text_with_markup_or_emoji(text: str) -> None:
    for foreign in ("<b>x</b>", "😀", "a1", "x@y", "(x)"):
        assert parse_name(f"{text} {foreign}") == UNTOLD
