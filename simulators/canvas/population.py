"""What a simulated Canvas holds: a small data set of odd cases, and a large one by seed.

Identifiers are local numbers plus `shard` x 10^13, as Canvas's global ids are; shard 1000 puts
every id above 2^53, where a double can no longer hold it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

SHARD_SIZE = 10**13
ACCOUNT_ROLE = "AccountMembership"
BUILT_IN_ROLES = (
    ("AccountAdmin", "Account Admin"),
    (ACCOUNT_ROLE, "Account Membership"),
    ("StudentEnrollment", "Student"),
    ("TeacherEnrollment", "Teacher"),
    ("TaEnrollment", "TA"),
    ("DesignerEnrollment", "Designer"),
    ("ObserverEnrollment", "Observer"),
)
"""Canvas's own roles by number, from 1: each one's name and what people read."""

SMALL_START = "2025-01-06T08:00:00Z"
_LARGE_USERS, _LARGE_COURSES, _LARGE_ENROLLMENTS = 10_000, 1_000, 60_000


@dataclass(slots=True, kw_only=True)
class Login:
    """A further way for a user to log in, beside the `login_id` that Canvas shows."""

    id: int
    unique_id: str
    sis_user_id: str | None = None
    authentication_provider_id: int | None = None


@dataclass(slots=True, kw_only=True)
class User:
    """An account; `login_id` None means that it has no pseudonym, so it cannot log in."""

    id: int
    name: str
    sortable_name: str
    short_name: str
    login_id: str | None
    email: str | None = None
    sis_user_id: str | None = None
    integration_id: str | None = None
    uuid: str = ""
    created_at: str = SMALL_START
    last_login: str | None = None
    avatar_url: str | None = None
    workflow_state: str = "registered"
    merged_into_id: int | None = None
    is_admin: bool = False
    authentication_provider_id: int | None = None
    more_logins: list[Login] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Course:
    """A course; `image` is "stored" (on the second origin), a teacher's own URL, or None.

    `restricted` says to whom only the id is shown: "", "members", or "everyone".
    """

    id: int
    name: str
    course_code: str
    workflow_state: str = "available"
    public_description: str | None = None
    image: str | None = None
    sis_course_id: str | None = None
    start_at: str | None = None
    end_at: str | None = None
    created_at: str = SMALL_START
    updated_at: str = SMALL_START
    restricted: str = ""
    nicknames: dict[int, str] = field(default_factory=dict)
    modules: int = 0
    uuid: str = ""


@dataclass(slots=True, kw_only=True)
class Term:
    """When courses are held; there is one."""

    id: int
    name: str = "Default Term"
    start_at: str | None = None
    end_at: str | None = None


@dataclass(slots=True, kw_only=True)
class Section:
    """A part of a course; enrollments are made in sections."""

    id: int
    course_id: int
    name: str
    sis_section_id: str | None = None
    workflow_state: str = "active"


@dataclass(slots=True, kw_only=True)
class Role:
    """What somebody is in a course or an account; custom ones are based on a built-in kind."""

    id: int
    name: str
    label: str
    base_type: str
    workflow_state: str = "active"


@dataclass(slots=True, kw_only=True)
class Enrollment:
    """One user's place in one section, with the kind, the role's name and the state."""

    id: int
    user_id: int
    course_id: int
    section_id: int
    type: str = "StudentEnrollment"
    role: str = ""
    state: str = "active"
    associated_user_id: int | None = None
    created_at: str = SMALL_START
    updated_at: str = SMALL_START
    start_at: str | None = None
    end_at: str | None = None
    last_activity_at: str | None = None
    total_activity_seconds: int | None = 0
    current_score: float | None = None
    final_score: float | None = None
    completed_requirements: int = 0
    completed_at: str | None = None


@dataclass(slots=True, kw_only=True)
class Assignment:
    """Something a student hands in."""

    id: int
    course_id: int
    name: str
    points: float = 10.0
    due_at: str | None = None


@dataclass(slots=True, kw_only=True)
class Submission:
    """One student's answer to one assignment; every student has one, mostly unsubmitted."""

    id: int
    assignment_id: int
    course_id: int
    user_id: int
    workflow_state: str = "unsubmitted"
    submitted_at: str | None = None
    graded_at: str | None = None
    score: float | None = None
    attempt: int | None = None
    late: bool = False
    missing: bool = False
    excused: bool = False


@dataclass(slots=True, kw_only=True)
class PageView:
    """One page that one user looked at."""

    id: str
    user_id: int
    course_id: int
    created_at: str
    interaction_seconds: float


class Population:
    """All rows of one Canvas, with the indexes that its lists read."""

    def __init__(self, *, shard: int = 0) -> None:
        self.shard = shard
        self.account_id = self.number(1)
        self.term = Term(id=self.number(1))
        self.users: dict[int, User] = {}
        self.courses: dict[int, Course] = {}
        self.sections: dict[int, Section] = {}
        self.enrollments: dict[int, Enrollment] = {}
        self.assignments: dict[int, Assignment] = {}
        self.submissions: dict[int, Submission] = {}
        self.page_views: list[PageView] = []
        self.roles: dict[str, Role] = {}
        for name, label in BUILT_IN_ROLES:
            base = ACCOUNT_ROLE if name.startswith("Account") else name
            self.add_role(name, base, label=label, workflow_state="built_in")
        self.enrollments_by_user: defaultdict[int, list[Enrollment]] = defaultdict(list)
        self.enrollments_by_course: defaultdict[int, list[Enrollment]] = defaultdict(list)
        self.sections_by_course: defaultdict[int, list[Section]] = defaultdict(list)
        self.submissions_by_course: defaultdict[int, list[Submission]] = defaultdict(list)

    def number(self, local: int) -> int:
        """Return the id of this local number."""
        return self.shard * SHARD_SIZE + local

    def add_user(self, name: str, login_id: str | None, **more: object) -> User:
        """Add an account; `sortable_name` and `short_name` default as Canvas derives them."""
        local = len(self.users) + 1
        words = name.split()
        sortable = f"{words[-1]}, {' '.join(words[:-1])}" if len(words) > 1 else name.strip()
        user = User(
            id=self.number(local),
            name=name,
            sortable_name=sortable,
            short_name=name,
            login_id=login_id,
            uuid=f"user-uuid-{local}",
        )
        _assign(user, more)
        self.users[user.id] = user
        return user

    def add_course(self, name: str, course_code: str, **more: object) -> Course:
        """Add a course with one section of the same name."""
        local = len(self.courses) + 1
        course = Course(
            id=self.number(local), name=name, course_code=course_code, uuid=f"course-uuid-{local}"
        )
        _assign(course, more)
        self.courses[course.id] = course
        self.add_section(course, name)
        return course

    def add_section(self, course: Course, name: str, **more: object) -> Section:
        """Add a section to a course."""
        section = Section(id=self.number(len(self.sections) + 1), course_id=course.id, name=name)
        _assign(section, more)
        self.sections[section.id] = section
        self.sections_by_course[course.id].append(section)
        return section

    def add_role(self, name: str, base_type: str, **more: object) -> Role:
        """Add a role based on a kind of enrollment; its label is its name unless said otherwise."""
        number = self.number(len(self.roles) + 1)
        role = Role(id=number, name=name, label=name, base_type=base_type)
        _assign(role, more)
        self.roles[name] = role
        return role

    def role_of(self, enrollment: Enrollment) -> Role:
        """Return an enrollment's role; a name not seen before becomes a custom role."""
        kind = enrollment.type.replace("StudentView", "Student")
        name = kind if enrollment.role == enrollment.type else enrollment.role
        return self.roles.get(name) or self.add_role(name, kind)

    def add_enrollment(self, user: User, section: Section, **more: object) -> Enrollment:
        """Enroll a user in a section, as an active student unless said otherwise."""
        enrollment = Enrollment(
            id=self.number(len(self.enrollments) + 1),
            user_id=user.id,
            course_id=section.course_id,
            section_id=section.id,
        )
        _assign(enrollment, more)
        enrollment.role = enrollment.role or enrollment.type
        self.role_of(enrollment)
        self.enrollments[enrollment.id] = enrollment
        self.enrollments_by_user[user.id].append(enrollment)
        self.enrollments_by_course[section.course_id].append(enrollment)
        return enrollment

    def add_assignment(self, course: Course, name: str, **more: object) -> Assignment:
        """Add an assignment to a course."""
        assignment = Assignment(
            id=self.number(len(self.assignments) + 1), course_id=course.id, name=name
        )
        _assign(assignment, more)
        self.assignments[assignment.id] = assignment
        return assignment

    def add_submission(self, assignment: Assignment, user: User, **more: object) -> Submission:
        """Add a student's submission, unsubmitted unless said otherwise."""
        submission = Submission(
            id=self.number(len(self.submissions) + 1),
            assignment_id=assignment.id,
            course_id=assignment.course_id,
            user_id=user.id,
        )
        _assign(submission, more)
        self.submissions[submission.id] = submission
        self.submissions_by_course[submission.course_id].append(submission)
        return submission

    def user_by_login(self, login_id: str) -> User | None:
        """Find a living account by its login, which ignores case."""
        wanted = login_id.casefold()
        for user in self.living_users():
            names = [user.login_id or "", *(login.unique_id for login in user.more_logins)]
            if wanted in (name.casefold() for name in names):
                return user
        return None

    def living_users(self) -> Iterator[User]:
        """Walk the accounts that are not deleted, by id."""
        return (user for user in self.users.values() if user.workflow_state != "deleted")


def build_population(*, shard: int = 0) -> Population:
    """Return the small data set: every odd case once, in courses that a test can count."""
    people = Population(shard=shard)
    _add_small_users(people)
    _add_small_courses(people)
    _add_small_enrollments(people)
    _add_small_work(people)
    return people


def add_people_of_kolibri(people: Population) -> None:
    """Add a class of people who have an account of the simulated Kolibri too, as schools do it.

    Their names are shortened, turned round, spelt without accents, or in another script; one is
    the name of two learners there, so nobody can say which of them it is.
    """
    homeroom = people.add_course("Homeroom 7b", "HOME-7B")
    section = next(row for row in people.sections.values() if row.course_id == homeroom.id)
    for name, login in (
        ("Anna Sklodowska", "asklodowska"),
        ("Jose Luis Rodriguez", "jlrodriguez"),
        ("Minako Oba", "moba"),
        ("Wanjiru Kamau", "wkamau"),
        ("Siobhan O'Neill", "soneill"),
        ("Hanspeter Vogel", "hpvogel"),
        ("Anneke van den Berg", "anneke"),
        ("Anna Akhmatova", "aakhmatova"),
        ("Swietoslawa Gzegzolka", "sgzegzolka"),
        ("Isil Gunes", "igunes"),
        ("Gita Schaefer", "gschaefer"),
        ("Femi Lim", "flim"),
        ("Mary Jones", "mjones"),
    ):
        email = f"{login}@example.org"
        people.add_enrollment(people.add_user(name, login, email=email), section)
    teacher = people.add_user("Zahra El Idrissi", "zelidrissi", email="zelidrissi@example.org")
    people.add_enrollment(teacher, section, type="TeacherEnrollment")


def build_large_population(
    seed: int = 1,
    *,
    shard: int = 0,
    users: int = _LARGE_USERS,
    courses: int = _LARGE_COURSES,
    enrollments: int = _LARGE_ENROLLMENTS,
) -> Population:
    """Return a data set of a size; one seed, one data set.

    Every course has a teacher of its own, so there must be more users than courses.
    """
    dice = random.Random(seed)
    people = Population(shard=shard)
    people.add_user("Ada Admin", "ada", email="ada@canvas.test", is_admin=True)
    for number in range(2, users + 1):
        people.add_user(
            f"Given{number} Family{dice.randrange(2000)}",
            f"user{number}",
            email=f"user{number}@canvas.test",
            sis_user_id=f"S{number:06}",
        )
    for number in range(1, courses + 1):
        people.add_course(f"Course {number:04}", f"C{number:04}", modules=number % 5)
    members, sections = list(people.users.values())[1:], list(people.sections.values())
    for user in members[: len(sections)]:
        section = sections[len(people.enrollments)]
        people.add_enrollment(user, section, type="TeacherEnrollment")
    learners, taken = members[len(sections) :], set[tuple[int, int]]()
    while len(people.enrollments) < enrollments:
        user, section = dice.choice(learners), dice.choice(sections)
        if (user.id, section.id) not in taken:
            taken.add((user.id, section.id))
            people.add_enrollment(
                user,
                section,
                state="completed" if dice.random() < 0.1 else "active",
                current_score=float(dice.randrange(101)),
                total_activity_seconds=dice.randrange(90_000),
            )
    return people


def _assign(row: object, more: dict[str, object]) -> None:
    for name, value in more.items():
        setattr(row, name, value)


def _add_small_users(people: Population) -> None:
    add = people.add_user
    add("Ada Admin", "ada", email="ada@canvas.test", is_admin=True, sis_user_id="ADM/1")
    add("Teresa Núñez", "teresa", email="teresa@canvas.test", last_login="2025-02-03T09:00:00Z")
    add(
        "Cody Houston Cutrer",
        "cody",
        email="cody@canvas.test",
        sis_user_id="SIS-3",
        integration_id="INT-3",
    )
    add("John St. Clair", "john", sortable_name="St. Clair, John", email="john@canvas.test")
    add("María del Carmen Núñez", None, sortable_name="María del Carmen Núñez")
    add("Chi Min Ho", "CHI@canvas.test", sortable_name="Ho, Chi, Min")
    add("Prince", "prince", email="not-the-login@canvas.test")
    add("Jefferson Cutrer IV", "jefferson", sortable_name="Cutrer, Jefferson, IV")
    add("  Extra   Spaces ", "spaces", sortable_name="  Spaces,   Extra ")
    add("Gone User", "gone", workflow_state="deleted")
    add("Test Student", None)
    add("Olga Observer", "olga", email="olga@canvas.test")
    add("", "nameless", sortable_name="", short_name="")
    add("Merged User", None, workflow_state="deleted", merged_into_id=people.number(3))
    add("Tim Assistant", "tim", email="tim@canvas.test")


def _add_small_courses(people: Population) -> None:
    add = people.add_course
    algebra = add(
        "Algebra",
        "ALG-1",
        public_description="<p>Numbers &amp; letters</p>",
        image="stored",
        sis_course_id="SIS/ALG",
        start_at="2025-01-06T02:00:00-06:00",
        end_at="2025-06-30T00:00:00Z",
        modules=4,
        nicknames={people.number(3): "Maths with Teresa"},
    )
    people.add_section(algebra, "Algebra, evening", sis_section_id="SEC-EVE")
    add("Biology", "BIO-1", image="http://images.example.org/frog.png")
    add("Chemistry", "CHE-1", restricted="members")
    add("Hidden physics", "PHY-1", restricted="everyone")
    add("Deleted drama", "DRA-1", workflow_state="deleted")
    add("Concluded civics", "CIV-1", workflow_state="completed", end_at="2024-12-20T00:00:00.500Z")
    add("Draft of dance", "DAN-1", workflow_state="claimed")
    add("Empty ethics", "ETH-1", public_description=None)


def _add_small_enrollments(people: Population) -> None:
    users, sections = list(people.users.values()), list(people.sections.values())
    cody, john, maria, chi, prince, jefferson = (users[index] for index in (2, 3, 4, 5, 6, 7))
    algebra, evening, biology, chemistry, physics, _, civics, dance, _ = sections
    add = people.add_enrollment
    for section in (algebra, evening, biology, dance):
        add(users[1], section, type="TeacherEnrollment")
    add(
        cody,
        algebra,
        current_score=91.5,
        final_score=80.0,
        last_activity_at="2025-02-04T10:00:00Z",
        total_activity_seconds=3600,
        completed_requirements=4,
        completed_at="2025-02-04T10:00:00Z",
    )
    add(cody, evening, current_score=91.5, final_score=80.0, total_activity_seconds=1200)
    add(john, algebra, completed_requirements=1, total_activity_seconds=None)
    add(maria, algebra, state="invited")
    add(chi, algebra, state="inactive")
    add(prince, algebra, state="completed", end_at="2025-03-01T00:00:00Z")
    add(jefferson, algebra, state="rejected")
    add(users[10], algebra, type="StudentViewEnrollment")
    add(users[11], algebra, type="ObserverEnrollment", associated_user_id=cody.id)
    add(users[14], algebra, type="TaEnrollment", role="Lab assistant")
    add(cody, biology, current_score=0.0, final_score=0.0)
    add(john, chemistry)
    add(john, physics)
    add(cody, civics, state="completed")
    add(jefferson, biology, state="deleted")


def _add_small_work(people: Population) -> None:
    users, courses = list(people.users.values()), list(people.courses.values())
    algebra = courses[0]
    tests = [people.add_assignment(algebra, f"Test {number}") for number in range(1, 4)]
    done = {"submitted_at": "2025-02-01T10:00:00Z", "attempt": 1}
    add = people.add_submission
    graded_at = "2025-02-02T10:00:00Z"
    add(tests[0], users[2], workflow_state="graded", score=9.0, graded_at=graded_at, **done)
    add(tests[1], users[2], workflow_state="submitted", late=True, **done)
    add(tests[2], users[2], workflow_state="pending_review", **done)
    add(tests[0], users[3], missing=True)
    add(tests[1], users[3], workflow_state="graded", excused=True, graded_at=graded_at)
    people.page_views.extend(
        PageView(
            id=f"00000000-0000-4000-8000-{number:012}",
            user_id=users[2].id,
            course_id=algebra.id,
            created_at=f"2025-02-0{number}T10:00:00Z",
            interaction_seconds=30.5,
        )
        for number in range(1, 4)
    )
