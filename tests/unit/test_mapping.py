"""Roles an operator may map otherwise, and instants as platforms write them."""

from datetime import UTC, datetime

import pytest

from sessions.errors import NotSupported
from sessions.mapping import check_role_options, instant, role_map
from storage.records import Provider, ProviderState, RoleValue

NOW = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-01-06T08:00:00Z", datetime(2025, 1, 6, 8, tzinfo=UTC)),
        ("2025-01-06T02:00:00-06:00", datetime(2025, 1, 6, 8, tzinfo=UTC)),
        ("2025-01-06T08:00:00.500Z", datetime(2025, 1, 6, 8, 0, 0, 500_000, tzinfo=UTC)),
        ("2025-01-06 08:00:00", datetime(2025, 1, 6, 8, tzinfo=UTC)),
        ("2025-01-06", datetime(2025, 1, 6, tzinfo=UTC)),
        ("2026-11-23 19:53:23.000000(UTC)", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("tomorrow", None),
        ("", None),
        (None, None),
    ],
)
def test_instants_are_read_with_offsets_and_fractions_or_not_at_all(
    text: str | None, expected: datetime | None
) -> None:
    assert instant(text) == expected


def test_an_operator_maps_words_the_platform_has_and_words_of_their_own() -> None:
    usual = {"coach": RoleValue.TEACHER, "learner": RoleValue.STUDENT}
    options = {"role.coach": "AIDE", "role.guest": "OBSERVER", "role.x": "KING", "other": "AIDE"}

    mapped = role_map(usual, options)

    assert mapped == {
        "coach": RoleValue.AIDE,
        "learner": RoleValue.STUDENT,
        "guest": RoleValue.OBSERVER,
    }
    assert usual["coach"] is RoleValue.TEACHER


def test_a_role_that_does_not_exist_is_named_with_those_that_do() -> None:
    provider = Provider(
        id="1",
        platform="kolibri",
        name="School",
        base_url="https://kolibri.example",
        options={"role.coach\x1b": "KING"},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )

    with pytest.raises(NotSupported, match=r"^The option role\.coach must be one of STUDENT, TEA"):
        check_role_options(provider)
