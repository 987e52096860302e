"""Canvas's rows as records: names, dates, marks, and what is merely not told."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.platforms.canvas.rows import (
    Converter,
    CourseRow,
    EnrollmentRow,
    NameParts,
    PageViewRow,
    ProgressRow,
    SubmissionRow,
    UserRow,
    is_web_address,
    name_parts,
    plain_text,
    progress,
)
from storage.records import (
    CourseState,
    EnrollmentState,
    MilestoneState,
    Provider,
    ProviderState,
    RoleValue,
    Score,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PROVIDER = Provider(
    id="7",
    platform="canvas",
    name="",
    base_url="https://canvas.test",
    options={},
    state=ProviderState.ACTIVE,
    revision=1,
    created_at=NOW,
    updated_at=NOW,
)
CONVERTER = Converter(PROVIDER, root="https://canvas.test")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Cutrer, Cody Houston", NameParts("Cody Houston", "Cutrer")),
        ("St. Clair, John", NameParts("John", "St. Clair")),
        ("John St. Clair", NameParts("John St.", "Clair")),
        ("Cutrer, Jefferson, IV", NameParts("Jefferson", "Cutrer", "IV")),
        ("Jefferson Thomas Cutrer IV", NameParts("Jefferson Thomas", "Cutrer", "IV")),
        ("Ho, Chi, Min", NameParts("Chi Min", "Ho")),
        ("  Spaces,   Extra ", NameParts("Extra", "Spaces")),
        ("  Extra   Spaces ", NameParts("Extra", "Spaces")),
        ("Prince", NameParts("Prince")),
        ("", NameParts()),
        ("   ", NameParts()),
        ("María del Carmen Núñez", NameParts("María del Carmen", "Núñez")),
        ("Smith,", NameParts(None, "Smith")),
        (", Ann", NameParts("Ann", None)),
        (",", NameParts()),
        ("Smith, Jr.", NameParts("Jr.", "Smith")),
        ("Smith, John jr.", NameParts("John", "Smith", "jr.")),
        ("Ramesh V", NameParts("Ramesh", "V")),
    ],
)
def test_names_are_read_as_canvas_writes_them(text: str, parts: NameParts) -> None:
    assert name_parts(text) == parts


@given(st.text())
def test_no_name_is_lost_or_invented(text: str) -> None:
    parts = name_parts(text)
    words = [
        word for part in (parts.given, parts.family, parts.suffix) for word in (part or "").split()
    ]

    assert sorted(words) == sorted(text.replace(",", " , ").replace(",", " ").split())


def test_a_name_falls_back_to_the_one_in_reading_order() -> None:
    user = CONVERTER.user(UserRow(id="1", name="Cody Houston Cutrer", short_name=""))

    assert (user.display_name, user.given_name, user.family_name) == (
        "Cody Houston Cutrer",
        "Cody Houston",
        "Cutrer",
    )


@pytest.mark.parametrize(
    "body", [b'{"id":"1"}', b'{"id":"1","name":null,"login_id":null,"email":null,"uuid":null}']
)
def test_a_missing_key_is_as_good_as_null(body: bytes) -> None:
    row = msgspec.json.decode(body, type=UserRow)

    user = CONVERTER.user(row)

    assert (user.username, user.email, user.display_name) == (None, None, "")
    assert user.identifiers == ()


def test_a_course_takes_its_terms_dates_where_it_has_none() -> None:
    row = msgspec.json.decode(
        b'{"id":"1","name":"A","term":{"start_at":"2025-01-01T00:00:00Z","end_at":null},'
        b'"end_at":"2025-02-01T00:00:00Z"}',
        type=CourseRow,
    )

    (course,) = CONVERTER.courses([row])

    assert course.starts_at == datetime(2025, 1, 1, tzinfo=UTC)
    assert course.ends_at == datetime(2025, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "template", "shown"),
    [
        ("available", None, CourseState.ACTIVE),
        ("created", False, CourseState.INACTIVE),
        ("claimed", False, CourseState.INACTIVE),
        ("completed", False, CourseState.COMPLETED),
        ("available", True, CourseState.TEMPLATE),
        ("brand-new-word", None, CourseState.UNKNOWN),
        (None, None, CourseState.UNKNOWN),
    ],
)
def test_states_of_courses(state: str | None, template: bool | None, shown: CourseState) -> None:  # noqa: FBT001 - a parameter
    (course,) = CONVERTER.courses([CourseRow(id="1", workflow_state=state, template=template)])

    assert course.state is shown


def test_a_deleted_course_is_left_out() -> None:
    assert CONVERTER.courses([CourseRow(id="1", workflow_state="deleted")]) == []


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("active", EnrollmentState.ACTIVE),
        ("invited", EnrollmentState.PENDING),
        ("creation_pending", EnrollmentState.PENDING),
        ("completed", EnrollmentState.COMPLETED),
        ("inactive", EnrollmentState.INACTIVE),
        ("rejected", EnrollmentState.DROPPED),
        ("brand-new-word", EnrollmentState.UNKNOWN),
        (None, EnrollmentState.UNKNOWN),
    ],
)
def test_states_of_enrollments(state: str | None, shown: EnrollmentState) -> None:
    row = EnrollmentRow(
        id="1", user_id="2", course_id="3", type="StudentEnrollment", enrollment_state=state
    )

    (enrollment,) = CONVERTER.enrollments([row])

    assert enrollment.state is shown


def test_deleted_enrollments_and_test_students_are_left_out_and_doubles_are_one() -> None:
    def row(id_: str, type_: str = "StudentEnrollment", state: str = "active") -> EnrollmentRow:
        return EnrollmentRow(id=id_, user_id="2", course_id="3", type=type_, enrollment_state=state)

    rows = [
        row("10"),
        row("9"),
        row("10"),
        row("7", state="deleted"),
        row("8", "StudentViewEnrollment"),
    ]

    assert [each.id for each in CONVERTER.enrollments(rows)] == ["9", "10"]


def test_an_unknown_type_is_another_role_with_its_own_word() -> None:
    row = EnrollmentRow(id="1", user_id="2", course_id="3", type="RobotEnrollment")

    role = CONVERTER.enrollment(row).role

    assert (role.value, role.source_value) == (RoleValue.OTHER, "RobotEnrollment")


def test_extra_credit_passes_the_most_there_is_but_not_the_scale() -> None:
    row = msgspec.json.decode(
        b'{"id":"1","user_id":"2","course_id":"3","type":"StudentEnrollment",'
        b'"grades":{"html_url":"x","current_score":104.5,"current_grade":"A+"}}',
        type=EnrollmentRow,
    )

    found = CONVERTER.enrollment(row).progress

    assert found is not None
    assert found.score == Score(raw=104.5, min=0.0, max=100.0, scaled=1.0, grade="A+")
    assert found.time_spent_seconds is None


def test_a_mark_without_a_number_is_kept() -> None:
    row = SubmissionRow(id="1", assignment_id="5", user_id="2", grade="pass", workflow_state="odd")

    (milestone,) = CONVERTER.milestones([row], {}, course_id="3")

    assert milestone.score == Score(min=0.0, grade="pass")
    assert (milestone.title, milestone.due_at) == (None, None)
    assert milestone.state is MilestoneState.UNKNOWN


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"no progress available because this course is not module based"}}',
        b'{"requirement_count":0,"requirement_completed_count":0}',
        b'{"requirement_count":3,"requirement_completed_count":null}',
        b"{}",
    ],
)
def test_no_progress_is_none_and_not_zero(body: bytes) -> None:
    assert progress(msgspec.json.decode(body, type=ProgressRow)) is None


def test_progress_never_passes_the_whole() -> None:
    found = progress(ProgressRow(requirement_count=2, requirement_completed_count=3))

    assert found is not None
    assert (found.ratio, found.completed, found.completed_at) == (1.0, True, None)


def test_a_page_view_outside_courses_has_no_course_and_one_without_a_time_is_left_out() -> None:
    rows = msgspec.json.decode(
        b'[{"id":"a"},{"id":"b","created_at":"2025-01-01T00:00:00Z","context_type":"UserProfile",'
        b'"links":{"user":9007199254740993,"context":5}},'
        b'{"id":"c","created_at":"2025-01-02T00:00:00Z","context_type":"Course",'
        b'"links":{"context":"10000000000000001"}}]',
        type=list[PageViewRow],
    )

    found = CONVERTER.activities(rows, user_id="2")

    assert [(each.external_id, each.course_id) for each in found] == [
        ("c", "10000000000000001"),
        ("b", None),
    ]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Numbers &amp; letters</p>", "Numbers & letters"),
        ("<h2>A</h2><ul><li>b</li><li>c</li></ul>", "A\nb\nc"),
        ("one<br>two", "one\ntwo"),
        ("<script>alert(1)</script>x<style>y{}</style>", "x"),
        ("plain < text", "plain < text"),
        ("<p>open <b>tags", "open tags"),
        ("</script>after", "after"),
        ("", ""),
    ],
)
def test_html_that_somebody_typed_becomes_text(html: str, text: str) -> None:
    assert plain_text(html) == text


@given(st.text())
def test_no_html_breaks_the_reader(html: str) -> None:
    assert "\n\n" not in plain_text(html)


def test_only_web_addresses_can_be_fetched() -> None:
    assert is_web_address("HTTPS://a.test/x.png")
    assert not is_web_address("data:image/png;base64,AA")
    assert not is_web_address("http://[")
