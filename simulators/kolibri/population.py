"""The one data set that the simulated and the real Kolibri both hold.

Pure data and the standard library only: `real_seed.py` loads this file inside Kolibri's own
virtual environment. Two calls of `build_population()` give equal results; nothing depends on the
clock or on chance.

What is in it, and the trap each part sets:

- two facilities, so that one server holds two usernames spelled alike; the second one lets
  learners in without a password;
- names that are empty, single, three-part, `Last, First`, doubled, padded, HTML, emoji or in
  other scripts, and usernames to match;
- staff of every kind Kolibri knows, and a deleted learner whose membership and activity remain;
- ten channels, one for each way an icon can be right or wrong;
- activity of two facilities, of a coach, of the deleted learner, and in a channel that has since
  been removed;
- course sessions for a class, for a group, and for two hand-picked learners (a hidden group whose
  memberships appear in the membership list).

Ids of channels, nodes and content are the same on both servers. All other ids belong to the
simulator: a real Kolibri makes its own, and `lab.json` says which.
"""

from __future__ import annotations

import base64
import random
import struct
import uuid
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

PASSWORD = "reed-Warbler-77"
"""Everybody's password, except the first superuser's and the passwordless learner's."""

SUPERUSER_USERNAME = "root_user"
SUPERUSER_PASSWORD = "black-Kite-42"

DEVICE_NAME = "simulated-kolibri"
EPOCH = datetime(2025, 2, 3, 8, 0, tzinfo=timezone.utc)  # noqa: UP017 - Kolibri may run on 3.10
"""When the school opened: no instant in the data is earlier."""

BULK_CLASS_SIZE = 250
EXAM_QUESTIONS = 6


@dataclass(frozen=True, kw_only=True)
class Facility:
    """A school. `preset` decides its settings; `formal` ones let learners in without password."""

    key: str
    id: str
    dataset_id: str
    name: str
    preset: str

    @property
    def passwordless(self) -> bool:
        """Whether learners may log in without a password."""
        return self.preset == "formal"


@dataclass(frozen=True, kw_only=True)
class Person:
    """An account. `password` is None where none was ever set."""

    key: str
    id: str
    facility: str
    username: str
    full_name: str
    joined_at: datetime
    password: str | None = PASSWORD
    id_number: str = ""
    gender: str = ""
    birth_year: str = ""
    is_superuser: bool = False
    can_manage_content: bool = False
    deleted_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A class, a learner group, or a hidden `adhoclearnersgroup`; `parent` is a key."""

    key: str
    id: str
    kind: str
    name: str
    parent: str
    facility: str


@dataclass(frozen=True, kw_only=True)
class Membership:
    """One person's place in one collection; both are keys."""

    id: str
    person: str
    collection: str


@dataclass(frozen=True, kw_only=True)
class Role:
    """One person's role in one collection or facility; both are keys."""

    id: str
    person: str
    collection: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """A topic or a resource in a channel's tree; `level` 0 is the channel's root."""

    id: str
    content_id: str
    channel_id: str
    parent_id: str | None
    level: int
    title: str
    description: str
    kind: str
    available: bool
    modality: str | None = None


@dataclass(frozen=True, kw_only=True)
class Channel:
    """A published body of content. `public` None means that it was never said."""

    key: str
    id: str
    name: str
    description: str
    tagline: str
    language: str
    thumbnail: str
    public: bool | None
    available: bool
    version: int
    published_size: int
    updated_at: datetime
    categories: tuple[str, ...]
    grade_levels: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def resources(self) -> tuple[Node, ...]:
        """Everything in the tree that is not a topic."""
        return tuple(node for node in self.nodes if node.kind != "topic")

    @property
    def resource_count(self) -> int:
        """Resources a learner can open; none while the files are missing."""
        return len(self.resources) if self.available else 0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Resources assigned to a class or a group; `collection` and `assigned_to` are keys."""

    key: str
    id: str
    title: str
    description: str
    collection: str
    assigned_to: str
    active: bool
    created_at: datetime
    nodes: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class Exam:
    """A quiz of six questions from two exercises."""

    key: str
    id: str
    title: str
    collection: str
    active: bool
    archive: bool
    created_at: datetime
    question_sources: list[dict[str, object]]


@dataclass(frozen=True, kw_only=True)
class ExamResult:
    """What one learner answered in one exam: `answers` has one truth value per question."""

    person: str
    exam: str
    complete: bool
    started_at: datetime
    ended_at: datetime
    answers: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class CourseSession:
    """A course of a channel given to a class, a group, or (through a hidden group) to learners."""

    key: str
    id: str
    course: Node
    collection: str
    assigned_to: str
    active: bool
    created_at: datetime
    pre_test: tuple[str, Node] | None = None


@dataclass(frozen=True, kw_only=True)
class SummaryLog:
    """What one person did with one resource. `node` is None where the channel is gone."""

    id: str
    person: str
    channel_id: str
    content_id: str
    node: Node | None
    kind: str
    progress: float
    time_spent_seconds: float
    started_at: datetime
    ended_at: datetime

    @property
    def completed_at(self) -> datetime | None:
        """When progress reached 1."""
        return self.ended_at if self.progress >= 1 else None


@dataclass(frozen=True, kw_only=True)
class HelpNeeded:
    """A learner got an exercise wrong several times in a lesson."""

    person: str
    node: Node
    lesson: str
    at: datetime


@dataclass(kw_only=True)
class Population:
    """Everything one server holds, in the order in which it was made."""

    facilities: list[Facility] = field(default_factory=list)
    people: list[Person] = field(default_factory=list)
    collections: list[Collection] = field(default_factory=list)
    memberships: list[Membership] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)
    exams: list[Exam] = field(default_factory=list)
    exam_results: list[ExamResult] = field(default_factory=list)
    course_sessions: list[CourseSession] = field(default_factory=list)
    summary_logs: list[SummaryLog] = field(default_factory=list)
    help_needed: list[HelpNeeded] = field(default_factory=list)


def hex_id(*parts: object) -> str:
    """Return the 32 hex digits that stand for these words, the same on every run."""
    name = "/".join(str(part) for part in parts)
    return uuid.uuid5(uuid.NAMESPACE_URL, f"learning-gateway/simulated-kolibri/{name}").hex


def build_population(*, bulk_users: int = 0) -> Population:
    """Build the data set, with `bulk_users` more learners in a third facility, 250 to a class."""
    population = Population()
    _add_facilities(population)
    _add_staff(population)
    _add_learners(population)
    _add_classes(population)
    _add_channels(population)
    _add_lessons_and_exams(population)
    _add_course_sessions(population)
    _add_activity(population)
    if bulk_users:
        _add_bulk(population, bulk_users)
    return population


def _facility(key: str, name: str, preset: str) -> Facility:
    return Facility(
        key=key,
        id=hex_id("facility", key),
        dataset_id=hex_id("dataset", key),
        name=name,
        preset=preset,
    )


def _add_facilities(population: Population) -> None:
    population.facilities += [
        _facility("a", "Kasese Riverside School", "nonformal"),
        _facility("b", "Lycée Félix Éboué", "formal"),
    ]


def _person(
    population: Population, facility: str, username: str, full_name: str, **more: object
) -> str:
    key = f"{facility}:{username}"
    joined_at = EPOCH + timedelta(minutes=len(population.people))
    population.people.append(
        Person(
            key=key,
            id=hex_id("person", key),
            facility=facility,
            username=username,
            full_name=full_name,
            joined_at=joined_at,
            **more,  # type: ignore[arg-type]  # the callers below name real fields
        )
    )
    return key


def _add_role(population: Population, person: str, collection: str, kind: str) -> None:
    role_id = hex_id("role", person, collection, kind)
    population.roles.append(Role(id=role_id, person=person, collection=collection, kind=kind))


def _add_member(population: Population, person: str, collection: str) -> None:
    membership_id = hex_id("membership", person, collection)
    population.memberships.append(
        Membership(id=membership_id, person=person, collection=collection)
    )


def _add_staff(population: Population) -> None:
    root = _person(
        population,
        "a",
        SUPERUSER_USERNAME,
        SUPERUSER_USERNAME,
        password=SUPERUSER_PASSWORD,
        gender="DEFERRED",
        birth_year="DEFERRED",
        is_superuser=True,
        can_manage_content=True,
    )
    second = _person(
        population,
        "a",
        "second_root",
        "Ingrid Second-Root",
        is_superuser=True,
        can_manage_content=True,
    )
    admin = _person(population, "a", "service_admin", "Service Account (admin)")
    coach = _person(population, "a", "service_coach", "Service Account (coach)")
    _person(population, "a", "coach_algebra", "Zahra El-Idrissi")
    _person(population, "a", "coach_nature", "Trần Thị Hạnh")
    _person(population, "a", "librarian", "Lena Librarian", can_manage_content=True)
    other = _person(population, "b", "admin_b", "Éloïse Marchand")
    for person, facility, kind in (
        (root, "a", "admin"),
        (second, "a", "admin"),
        (admin, "a", "admin"),
        (coach, "a", "coach"),
        (other, "b", "admin"),
    ):
        _add_role(population, person, facility, kind)


# Names in other scripts are the point, however much they look like Latin letters.
# ruff: noqa: RUF001
_ODD_NAMES = (
    "Plato",
    "王小明",
    "Anna Maria Sklodowska",
    "José Luis Rodríguez Peña",
    "Ōba Minako",
    "Wanjirũ wa Kamau",
    "O'Neill, Siobhán",
    "Hans-Peter  Vogel",
    "محمد بن سلمى",
    "АННА АХМАТОВА",
    "Ösp",
    "Chloë",
    "मीराबाई",
    "Nora <i>Italic</i>",
    "Timo 🦊 Fox",
    "van der Berg, Anneke",
    "Świętosława Gżegżółka",
    "Işıl Ğüneş",
    "R2 Æ D-2",
    " Padded Front",
    "Mary Jones",
    "Mary Jones",
    "",
)
_ODD_USERNAMES = {0: "plato", 1: "王小明", 8: "محمد_1", 10: "Ösp", 15: "anneke@example.org"}
_GIVEN = (
    "Abla",
    "Bruno",
    "Célia",
    "Dawit",
    "Edda",
    "Femi",
    "Gita",
    "Hugo",
    "Imani",
    "Jaro",
    "Kiri",
)
_MIDDLE = ("", "", "B.", "Luise", "ibn")
_FAMILY = ("Adeyemi", "Schäfer", "Lim", "Costa", "Rahman", "Nowak", "Traoré", "Otieno", "Ivanova")
_GENDERS = ("FEMALE", "MALE", "NOT_SPECIFIED", "")


def _ordinary_name(number: int) -> str:
    parts = (
        _GIVEN[number % len(_GIVEN)],
        _MIDDLE[number % len(_MIDDLE)],
        _FAMILY[number % len(_FAMILY)],
    )
    return " ".join(part for part in parts if part)


def _add_learners(population: Population) -> None:
    for number in range(60):
        odd = number < len(_ODD_NAMES)
        _person(
            population,
            "a",
            _ODD_USERNAMES.get(number, f"learner{number:02d}"),
            _ODD_NAMES[number] if odd else _ordinary_name(number),
            id_number=f"K-{number:04d}" if number % 3 else "",
            gender=_GENDERS[number % 4],
            birth_year=str(2008 + number % 8) if number % 5 else "NOT_SPECIFIED",
        )
    for number in range(8):
        _person(population, "b", f"learner{number:02d}", f"Élève Numéro {number}")
    _person(population, "b", "sans_code", "Sans Code", password=None)
    _person(population, "a", "has_left", "Left The School", deleted_at=EPOCH + timedelta(days=60))


def learners_of_a(population: Population) -> list[Person]:
    """Return facility A's 60 learners in the order in which the classes take them."""
    staff = {role.person for role in population.roles}
    return [
        person
        for person in population.people
        if person.facility == "a"
        and person.key not in staff
        and not person.can_manage_content
        and not person.username.startswith("coach_")
        and person.deleted_at is None
    ]


def _add_collection(
    population: Population,
    key: str,
    name: str,
    *,
    parent: str,
    facility: str,
    kind: str = "classroom",
) -> None:
    population.collections.append(
        Collection(
            key=key,
            id=hex_id("collection", key),
            kind=kind,
            name=name,
            parent=parent,
            facility=facility,
        )
    )


def _add_classes(population: Population) -> None:
    learners = learners_of_a(population)
    _add_collection(population, "algebra", "Year 7 Algebra", parent="a", facility="a")
    _add_collection(population, "nature", "Sciences 6ème — groupe C", parent="a", facility="a")
    _add_collection(population, "farming", "فصل الزراعة / Farming", parent="a", facility="a")
    _add_collection(population, "empty", "Class with nobody", parent="a", facility="a")
    _add_collection(population, "b1", "CE1 B", parent="b", facility="b")
    for key, first, last in (("algebra", 0, 30), ("nature", 20, 50), ("farming", 45, 55)):
        for learner in learners[first:last]:
            _add_member(population, learner.key, key)
    _add_member(population, "a:has_left", "algebra")
    for number in range(8):
        _add_member(population, f"b:learner{number:02d}", "b1")
    for key, name, first, last in (("quick", "Quick — 1st", 0, 10), ("steady", "Steady", 10, 20)):
        _add_collection(population, key, name, parent="algebra", facility="a", kind="learnergroup")
        for learner in learners[first:last]:
            _add_member(population, learner.key, key)
    for person, key in (("a:coach_algebra", "algebra"), ("a:coach_nature", "nature")):
        _add_role(population, person, "a", "classroom assignable coach")
        _add_role(population, person, key, "coach")


_JPEG = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZG"
    "NywtQFdBRkxOUlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09P"
    "T09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAwADADASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAA"
    "AAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEII0KxwRVS0fAk"
    "M2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWGh4iJipKT"
    "lJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QA"
    "HwEAAwEBAQEBAQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdh"
    "cRMiMoEIFEKRobHBCSMzUvAVYnLRChYkNOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hp"
    "anN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk"
    "5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwCSiiprS1lvJ1hgXLHqewHqa8FK+iPabtqyGiuptPD1rGim5LSv"
    "j5huwoPtjmnz+H7GRf3QeFgDgq2Rn3z/APWrf6tO1zD6zC9jk6Ks31jPYSiOcDkZVl5DVWrFpp2ZummroK6nw3ar"
    "HYm4KrvlJw3cKOMfmD+lctXWeHJ1k0wRcBomIIzzg85/U/lW2Gtz6mGJvyaFXxT4l/4R37L/AKH9o+0b/wDlrs27"
    "dvsc/eqv4Z8Xf2/qMlp9g+z7IjJu87fnBAxjaPWjxn4dvNf+x/Y5YE8jfu81iM7tuMYB9DVbwh4Uv9C1WW6u5rZ0"
    "eAxgRMxOSynuB6V7CVP2d3uedrc6DXLVbjTZW2rviG9WPbHX9K46u01idYNLnJwS67ACcZJ4/wDr/hXF15OKtzI9"
    "DDX5WFWdPvZLC6E0YDcYZT/EPT2qtRXOm07o6Gk1ZnY2ms2Vwi7pVifGWVzjH49DT59WsIFy1wjkg4EZ3E/l0/Gu"
    "Loro+tStsc/1aN9y9qeoyajKrMgREHyqDnGevNUaKK55ScndnRGKirI//9k="
)
_WEBP = (
    "UklGRmgBAABXRUJQVlA4IFwBAAAwCACdASowADAAPqlCmUmmI6IhMcwAwBUJbACqjAEoa5AN5rJU94pnoDPCDfrk"
    "ZfacXPxdngmE3cKwlfwI0u5/HvVB5gGjKa7wAAD+DCT+Obn9l9Y5mYXcnHv4i58H/00j/40j/40jq3qaaDCrjW/d"
    "0y5Bt8De2ULzmNLCCvrtQjnIRR1ovjqycNndYyeq37uXB570ww4+gtrloBBjWeLfgoIXWJj/LasaO5YDf88V2DXv"
    "28ITn9OeH2r2vu/Te7//+Iir8LP/i63/5jP/7AmfwMf/6c/+6Vf+g3dB5H80FwHnvNKOkPnmAWnvVpFUgta6ZQFG"
    "GJ6BFtrMD3Rkl73guUgQju11FlrefyY4y/ldKufVM6QyW8PrNOyyw4SDWSLFTQBp4sGTDf2cXxuhc8F58m4FCbJ9"
    "RHJ2hwRsmYmH+MQwNO/5hBMsMY0lsp4i/Yq/vx4dKAPymq9AAAA="
)
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="48" height="48">'
    '<rect width="48" height="48" fill="#369"/><script>alert("channel")</script>'
    '<circle cx="24" cy="24" r="12" fill="#fe9"/></svg>'
)


def _png(*, side: int, rgb: tuple[int, int, int], noise: bool = False) -> bytes:
    """Draw a square PNG: one colour, or noise that does not compress."""
    chance = random.Random(11)
    rows = []
    for _ in range(side):
        row = chance.randbytes(side * 3) if noise else bytes(rgb) * side
        rows.append(b"\0" + row)

    def chunk(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body) & 0xFFFFFFFF
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"".join(rows), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def _data_uri(label: str, content: bytes) -> str:
    return f"data:{label};base64,{base64.b64encode(content).decode()}"


def _add_channels(population: Population) -> None:
    png = _data_uri("image/png", _png(side=32, rgb=(150, 40, 70)))
    big = _data_uri("image/png", _png(side=256, rgb=(0, 0, 0), noise=True))
    svg = _data_uri("image/svg+xml", _SVG.encode())
    for channel in (
        _channel("png", "Algebra for Year 7", "en", png, topics=4, resources=9),
        _channel(
            "jpeg",
            "Ciencias — Tercera edición",
            "es",
            f"data:image/jpeg;base64,{_JPEG}",
            topics=4,
            resources=9,
        ),
        _channel("svg", "قناة الطبيعة", "ar", svg),
        _channel("large", "Géographie & cartes (très grand logo)", "fr", big, public=False),
        _channel("webp", "Says JPEG, is WebP", "en", f"data:image/jpg;base64,{_WEBP}", public=None),
        _channel("none", "No icon at all", "en", ""),
        _channel("broken", "Icon cut short", "en", "data:image/png;base64,iVBORw0KGgo"),
        _channel("text_svg", "Icon as plain text", "en", f"data:image/svg+xml;utf8,{_SVG}"),
        _channel("absent", "Files were never copied", "en", png, available=False),
        _channel("course", "Farming course", "en", png, course=True),
    ):
        population.channels.append(channel)


def _channel(
    key: str,
    name: str,
    language: str,
    thumbnail: str,
    *,
    public: bool | None = True,
    available: bool = True,
    topics: int = 1,
    resources: int = 6,
    course: bool = False,
) -> Channel:
    channel_id = hex_id("channel", key)
    tree = _Tree(channel_id, available=available)
    root = tree.add("root", name, kind="topic", parent=None)
    if course:
        _grow_course(tree, root)
    else:
        _grow_topics(tree, root, topics=topics, resources=resources)
    return Channel(
        key=key,
        id=channel_id,
        name=name,
        description=f"About {name}",
        tagline=f"Tagline of {key}",
        language=language,
        thumbnail=thumbnail,
        public=public,
        available=available,
        version=4,
        published_size=1000 * len(tree.nodes) if available else 0,
        updated_at=EPOCH + timedelta(days=1),
        categories=("d&WXdXWF.qs0Xlaxq", "PbGoe2MV") if key == "png" else (),
        grade_levels=("H64ZOHfi",) if key == "png" else (),
        nodes=tuple(tree.nodes),
    )


class _Tree:
    """A channel's nodes, in the order of the tree."""

    def __init__(self, channel_id: str, *, available: bool) -> None:
        self.channel_id = channel_id
        self.available = available
        self.nodes: list[Node] = []

    def add(
        self, path: str, title: str, *, kind: str, parent: Node | None, modality: str | None = None
    ) -> Node:
        node = Node(
            id=hex_id("node", self.channel_id, path),
            content_id=hex_id("content", self.channel_id, path),
            channel_id=self.channel_id,
            parent_id=parent.id if parent else None,
            level=parent.level + 1 if parent else 0,
            title=title,
            description=f"Description of {title}",
            kind=kind,
            available=self.available,
            modality=modality,
        )
        self.nodes.append(node)
        return node


_KINDS = ("video", "exercise", "document", "html5", "audio", "exercise")


def _grow_topics(tree: _Tree, root: Node, *, topics: int, resources: int) -> None:
    for topic_number in range(1, topics + 1):
        topic = tree.add(
            f"t{topic_number}", f"{root.title}: part {topic_number}", kind="topic", parent=root
        )
        for number in range(1, resources + 1):
            kind = _KINDS[(number - 1) % len(_KINDS)]
            tree.add(
                f"t{topic_number}/{number}",
                f"{kind.title()} {topic_number}.{number}",
                kind=kind,
                parent=topic,
            )


def _grow_course(tree: _Tree, root: Node) -> None:
    course = tree.add("course", "Soil and Water", kind="topic", parent=root, modality="COURSE")
    for unit_number in (1, 2):
        unit = tree.add(
            f"u{unit_number}", f"Unit {unit_number}", kind="topic", parent=course, modality="UNIT"
        )
        for lesson_number in (1, 2):
            path = f"u{unit_number}/l{lesson_number}"
            lesson = tree.add(
                path,
                f"Lesson {unit_number}.{lesson_number}",
                kind="topic",
                parent=unit,
                modality="LESSON",
            )
            for kind in ("video", "exercise", "document"):
                tree.add(
                    f"{path}/{kind}",
                    f"{kind.title()} of {lesson.title}",
                    kind=kind,
                    parent=lesson,
                )


def channel_by_key(population: Population, key: str) -> Channel:
    """Return the channel of this icon case."""
    return next(channel for channel in population.channels if channel.key == key)


def _add_lessons_and_exams(population: Population) -> None:
    algebra = channel_by_key(population, "png").resources
    science = channel_by_key(population, "jpeg").resources
    for number, (key, title, collection, assigned_to, active, nodes) in enumerate(
        (
            ("fractions", "Fractions", "algebra", "algebra", True, algebra[:4]),
            ("decimals", "Décimaux", "algebra", "quick", True, algebra[4:8]),
            ("draft", "Not ready yet", "algebra", "algebra", False, algebra[8:10]),
            ("cells", "La célula", "nature", "nature", True, science[:5]),
            ("hollow", "Lesson without resources", "nature", "nature", True, ()),
        )
    ):
        population.lessons.append(
            Lesson(
                key=key,
                id=hex_id("lesson", key),
                title=title,
                description=f"Lesson: {title}",
                collection=collection,
                assigned_to=assigned_to,
                active=active,
                created_at=EPOCH + timedelta(days=10, minutes=number),
                nodes=nodes,
            )
        )
    exercises = [node for node in algebra if node.kind == "exercise"][:2]
    for number, (key, title, active, archive) in enumerate(
        (
            ("midterm", "Midterm", True, False),
            ("closed", "Closed", True, True),
            ("unopened", "Unopened", False, False),
        )
    ):
        population.exams.append(
            Exam(
                key=key,
                id=hex_id("exam", key),
                title=title,
                collection="algebra",
                active=active,
                archive=archive,
                created_at=EPOCH + timedelta(days=12, minutes=number),
                question_sources=_question_sources(key, exercises),
            )
        )


def _question_sources(key: str, exercises: list[Node]) -> list[dict[str, object]]:
    questions = []
    for node in exercises:
        for number in range(EXAM_QUESTIONS // 2):
            question_id = hex_id("question", node.id, number)
            questions.append(
                {
                    "exercise_id": node.id,
                    "question_id": question_id,
                    "title": node.title,
                    "counter_in_exercise": number + 1,
                    "item": f"{node.content_id}:{question_id}",
                }
            )
    return [
        {
            "section_id": hex_id("section", key),
            "section_title": "Section 1",
            "description": "",
            "question_count": len(questions),
            "learners_see_fixed_order": True,
            "questions": questions,
        }
    ]


def _add_course_sessions(population: Population) -> None:
    nodes = channel_by_key(population, "course").nodes
    course = next(node for node in nodes if node.modality == "COURSE")
    first_unit = next(node for node in nodes if node.modality == "UNIT")
    _add_collection(
        population, "picked", "Ad hoc", parent="nature", facility="a", kind="adhoclearnersgroup"
    )
    for learner in learners_of_a(population)[40:42]:
        _add_member(population, learner.key, "picked")
    for number, (collection, assigned_to, active) in enumerate(
        (("farming", "farming", True), ("algebra", "quick", True), ("nature", "picked", False))
    ):
        key = f"session_{assigned_to}"
        population.course_sessions.append(
            CourseSession(
                key=key,
                id=hex_id("course_session", key),
                course=course,
                collection=collection,
                assigned_to=assigned_to,
                active=active,
                created_at=EPOCH + timedelta(days=20, minutes=number),
                pre_test=("a:service_admin", first_unit) if number == 0 else None,
            )
        )


def _add_activity(population: Population) -> None:
    learners = learners_of_a(population)
    algebra = channel_by_key(population, "png").resources[:12]
    science = channel_by_key(population, "jpeg").resources[:12]
    farming = channel_by_key(population, "course").resources
    for number, learner in enumerate(learners[:54]):
        for index, node in enumerate(algebra if number < 30 else science):
            if (number + 2 * index) % 3:
                half_done = (number * 5 + index) % 4 == 0
                _add_log(
                    population,
                    learner.key,
                    node,
                    round(0.1 + 0.06 * index, 2) if half_done else 1.0,
                )
        for node in farming[: max(0, number - 44)]:
            _add_log(population, learner.key, node, 1.0)
    for number in range(4):
        for node in algebra[: number + 1]:
            _add_log(population, f"b:learner{number:02d}", node, 0.5)
    _add_log(population, "a:coach_algebra", algebra[0], 1.0)
    _add_log(population, "a:root_user", algebra[0], 0.25)
    _add_log(population, "a:has_left", algebra[0], 1.0)
    _add_log(population, learners[3].key, None, 0.75)
    _add_exam_results(population, learners)
    for learner in (learners[1], learners[7]):
        population.help_needed.append(
            HelpNeeded(
                person=learner.key,
                node=algebra[1],
                lesson="fractions",
                at=EPOCH + timedelta(days=40),
            )
        )


def _add_log(population: Population, person: str, node: Node | None, progress: float) -> None:
    number = len(population.summary_logs)
    started_at = EPOCH + timedelta(days=30 + number % 50, minutes=7 * number % 400)
    seconds = 60.0 + 13 * (number % 21)
    population.summary_logs.append(
        SummaryLog(
            id=hex_id("summary", person, node.content_id if node else "gone"),
            person=person,
            channel_id=node.channel_id if node else hex_id("channel", "removed"),
            content_id=node.content_id if node else hex_id("content", "removed"),
            node=node,
            kind=node.kind if node else "video",
            progress=progress,
            time_spent_seconds=seconds,
            started_at=started_at,
            ended_at=started_at + timedelta(seconds=seconds),
        )
    )


def _add_exam_results(population: Population, learners: list[Person]) -> None:
    for exam, count in (("midterm", 12), ("closed", 16)):
        for number, learner in enumerate(learners[:count]):
            complete = number % 5 != 0
            started_at = EPOCH + timedelta(days=50, minutes=number)
            answered = EXAM_QUESTIONS if complete else EXAM_QUESTIONS // 2
            population.exam_results.append(
                ExamResult(
                    person=learner.key,
                    exam=exam,
                    complete=complete,
                    started_at=started_at,
                    ended_at=started_at + timedelta(minutes=20),
                    answers=tuple((number + question) % 3 > 0 for question in range(answered)),
                )
            )


def _add_bulk(population: Population, count: int) -> None:
    population.facilities.append(_facility("bulk", "Bulk Facility", "nonformal"))
    admin = _person(population, "bulk", "bulk_admin", "Bulk Admin")
    _add_role(population, admin, "bulk", "admin")
    for number in range(count):
        class_number = number // BULK_CLASS_SIZE
        key = f"bulk{class_number:03d}"
        if number % BULK_CLASS_SIZE == 0:
            _add_collection(
                population, key, f"Bulk class {class_number:03d}", parent="bulk", facility="bulk"
            )
        person = _person(
            population,
            "bulk",
            f"bulk{number:05d}",
            f"{_ordinary_name(number)} {number:05d}",
            id_number=str(100000 + number),
        )
        _add_member(population, person, key)
