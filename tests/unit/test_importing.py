from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pretend_roster import NOW, a_course, a_user, an_enrollment

from resolvers.importing import (
    RosterRecord,
    content_of,
    is_drop,
    record_of,
    seconds_to_start,
)
from storage.imports import RosterKind
from storage.records import (
    DataSource,
    Identifier,
    IdentifierType,
    Progress,
    ProgressMethod,
    Score,
)

DAY = 86_400
LATER = NOW + timedelta(days=1)
RICH_USER = a_user(
    "1",
    1,
    username=None,
    display_name="Zoë ☃ \N{GRINNING FACE}",
    identifiers=(Identifier(type=IdentifierType.SIS_ID, value="7", namespace="sis"),),
    active=False,
    last_activity_at=datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC),
)
RICH_ENROLLMENT = an_enrollment(
    "1",
    "u1",
    "c1",
    progress=Progress(
        ratio=0.25, method=ProgressMethod.DERIVED, score=Score(raw=3, max=4, scaled=0.75)
    ),
)
RECORDS: list[tuple[RosterKind, RosterRecord]] = [
    (RosterKind.USERS, RICH_USER),
    (RosterKind.COURSES, a_course("1", 1, resource_count=0, description="")),
    (RosterKind.ENROLLMENTS, RICH_ENROLLMENT),
]


@pytest.mark.parametrize(("kind", "record"), RECORDS)
def test_a_record_is_given_back_as_it_was_but_for_when_and_how_it_was_read(
    kind: RosterKind, record: RosterRecord
) -> None:
    found = record_of(kind, content_of(record).record, at=LATER)

    provenance = replace(record.provenance, fetched_at=LATER, via=DataSource.CACHE)
    assert found == replace(record, provenance=provenance)


@pytest.mark.parametrize(("kind", "record"), RECORDS)
def test_when_and_how_it_was_read_is_no_part_of_the_content(
    kind: RosterKind, record: RosterRecord
) -> None:
    provenance = replace(record.provenance, fetched_at=LATER, via=DataSource.STALE)

    assert content_of(replace(record, provenance=provenance)) == content_of(record)


def test_everything_else_is_part_of_the_content() -> None:
    changed = [
        replace(RICH_USER, display_name="Zoe"),
        replace(RICH_USER, active=None),
        replace(RICH_USER, identifiers=()),
        replace(RICH_USER, last_activity_at=None),
        replace(RICH_USER, provenance=replace(RICH_USER.provenance, modified_at=NOW)),
    ]

    hashes = {content_of(record).sha256 for record in [RICH_USER, *changed]}

    assert len(hashes) == 1 + len(changed)


def test_what_a_record_does_not_have_is_not_kept_so_that_a_new_field_changes_no_hash() -> None:
    kept = msgspec.msgpack.decode(content_of(a_user("1", 1, username=None)).record)

    assert set(kept) == {
        "provider_id",
        "external_id",
        "username",
        "display_name",
        "roles",
        "provenance",
    }


def test_an_enrollment_is_known_by_its_own_id() -> None:
    record = an_enrollment("1", "u1", "c1", id="derived", external_id=None)

    assert content_of(record).external_id == "derived"


@pytest.mark.parametrize(
    ("before", "now", "drop"),
    [
        (0, 0, False),
        (0, 5, False),
        (1, 0, True),
        (1, 1, False),
        (2, 1, False),
        (3, 1, True),
        (100, 50, False),
        (100, 49, True),
        (100, 0, True),
        (100, 300, False),
    ],
)
def test_less_than_half_of_what_was_there_is_a_drop(before: int, now: int, *, drop: bool) -> None:
    assert is_drop(before, now) is drop


def test_a_thousand_providers_start_evenly_over_the_day() -> None:
    midnight = 20_000 * DAY
    minutes = [
        int(seconds_to_start(str(number), interval_seconds=DAY, now=midnight) // 60)
        for number in range(1, 1001)
    ]

    hours = Counter(minute // 60 for minute in minutes)
    expected = 1000 / 24
    chi_square = sum((hours[hour] - expected) ** 2 / expected for hour in range(24))
    assert chi_square < 41.64  # exceeded once in a hundred times by chance, with 23 degrees
    assert max(Counter(minutes).values()) <= 5
    assert len(set(minutes)) > 680  # 720 are to be expected, of 1440


@given(
    st.text(min_size=1),
    st.integers(1, 720).map(lambda hours: hours * 3600),
    st.integers(0, 2**32),
    st.integers(0, 7200),
)
def test_turns_are_an_interval_apart_wherever_one_asks_from(
    provider_id: str, interval: int, now: int, at_least: int
) -> None:
    wait = seconds_to_start(provider_id, interval_seconds=interval, now=now, at_least=at_least)
    turn = now + wait

    assert at_least <= wait < at_least + interval
    assert seconds_to_start(provider_id, interval_seconds=interval, now=turn - 1) == 1
    assert seconds_to_start(provider_id, interval_seconds=interval, now=turn + 1) == interval - 1
