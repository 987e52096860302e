"""A seeded population of people with accounts on five platforms, for trying out matching.

    from simulators.people import populate
    campus = populate(8000, seed=21)
    campus.accounts["kolibri"]      # accounts; .person says whose each is

Schools of some 300 people in 24 locales, with siblings, twins, namesakes and parents' e-mail
addresses. Each platform knows other fields and writes names its own way: nicknames, swapped
order, initials, typing errors, lost accents, class labels, native or one of several Latin
spellings; some people have two accounts on one platform. Classes and facilities have opaque
ids, other ones on each platform.

``half="held-out"`` draws from the other half of every name table, uses other nicknames, other
username templates and another fifth platform, and makes half as many errors again.

Names: from the Faker package (MIT) and the US Census 2010 surname counts (public domain);
English nicknames from the nicknames package (Apache-2.0); Arabic, Devanagari, Chinese and
Korean names with their Latin spellings were written for this file.
"""

from __future__ import annotations

import json
import random
import unicodedata
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Final, Literal, NamedTuple

Half = Literal["development", "held-out"]

_NAMES: Final = Path(__file__).with_name("people_names.json")
_ENGLISH_SHARE: Final = 0.3
_SCHOOL_SIZE: Final = 300
_CLASS_SIZE: Final = 25
_YEAR: Final = 2026
_SPACE: Final = " "
_NATIVE: Final = frozenset({"ru", "uk", "el", "ar", "hi", "zh", "ko", "ja"})
_FAMILY_FIRST: Final = frozenset({"zh", "ko", "ja"})
_SUBJECTS: Final = ("mathematics", "reading", "science", "history")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """One part of a name: as its people write it, and how it is put in Latin letters."""

    native: str
    latin: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Person:
    """Somebody, as they are."""

    number: int
    school: int
    level: int | None
    classroom: str
    locale: str
    gender: str
    given: Spelling
    middle: Spelling | None
    family: Spelling
    birth_year: int
    birth_day: int
    identifier: str
    email: str
    parent_email: str | None
    taste: float
    login: str
    relation: str = ""

    @property
    def role(self) -> str:
        """The unified word for what they are."""
        return "TEACHER" if self.level is None else "STUDENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformAccount:
    """An account as a platform would report it; ``None`` is what it does not report."""

    person: int
    provider_id: str
    external_id: str
    display_name: str | None = None
    given_name: str | None = None
    middle_name: str | None = None
    family_name: str | None = None
    username: str | None = None
    email: str | None = None
    identifiers: tuple[str, ...] = ()
    birth_year: int | None = None
    gender: str | None = None
    roles: tuple[str, ...] = ()
    time_zone: str | None = None
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Campus:
    """The people, and their accounts by platform."""

    people: Sequence[Person]
    accounts: Mapping[str, Sequence[PlatformAccount]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Habits:
    """How often a platform reports each thing, and how its people write."""

    name: str
    share: float
    split_names: bool = False
    native: float = 0.4
    username: float = 1.0
    email: float = 0.0
    synthetic_email: float = 0.0
    identifier: float = 0.0
    birth_year: float = 0.0
    gender: float = 0.0
    time_zone: bool = False
    courses: bool = False
    numbers: float = 0.0


_PLATFORMS: Final = (
    _Habits(name="kolibri", share=0.6, birth_year=0.6, gender=0.7, identifier=0.15, native=0.55),
    _Habits(name="kolibri2", share=0.4, birth_year=0.6, gender=0.7, identifier=0.15, native=0.45),
    _Habits(
        name="canvas",
        share=0.7,
        split_names=True,
        email=0.8,
        identifier=0.6,
        time_zone=True,
        courses=True,
        native=0.15,
        numbers=0.25,
    ),
    _Habits(
        name="moodle",
        share=0.5,
        split_names=True,
        email=0.95,
        synthetic_email=0.35,
        identifier=0.4,
        time_zone=True,
        courses=True,
        native=0.3,
        numbers=0.15,
    ),
    _Habits(name="classroom", share=0.45, username=0.0, email=1.0, courses=True, native=0.2),
    _Habits(
        name="openedx",
        share=0.45,
        email=0.9,
        birth_year=0.4,
        gender=0.4,
        courses=True,
        native=0.2,
        numbers=0.05,
    ),
)


def populate(
    count: int,
    *,
    seed: int,
    half: Half = "development",
    platforms: Sequence[str] | None = None,
    coverage: float = 1.0,
    errors: float | None = None,
) -> Campus:
    """Return people and their accounts, always the same for the same arguments.

    ``platforms`` names those wanted (five by default), ``coverage`` multiplies the share of
    people each has, ``errors`` how often something is written wrong (1, in the held-out half 1.5).
    """
    names = _Names(half)
    people = _People(names, random.Random(f"{seed}-{half}-people"), count).make()
    fifth = "openedx" if half == "held-out" else "classroom"
    chosen = platforms or ("kolibri", "kolibri2", "canvas", "moodle", fifth)
    worse = errors or (1.5 if half == "held-out" else 1.0)
    accounts = {}
    for habits in _PLATFORMS:
        if habits.name in chosen:
            choose = random.Random(f"{seed}-{half}-{habits.name}")
            habits = replace(habits, share=min(1.0, habits.share * coverage))  # noqa: PLW2901
            accounts[habits.name] = _Registrar(habits, names, choose, worse).register(people)
    return Campus(people=people, accounts={name: accounts[name] for name in chosen})


class _Tables(NamedTuple):
    locales: Mapping[str, Mapping[str, str]]
    nicknames: Mapping[str, str]


@cache
def _tables() -> _Tables:
    read = json.loads(_NAMES.read_text(encoding="utf-8"))
    return _Tables(read["locales"], read["nicknames"])


class _Names:
    """The names of one half: every other one of each table."""

    def __init__(self, half: Half) -> None:
        self.half = half
        self._offset = int(half == "held-out")
        loaded = _tables().locales
        self.locales = list(loaded)
        self._parts = {
            (locale, kind): [self._spelling(locale, name) for name in self._mine(text)]
            for locale, table in loaded.items()
            for kind, text in table.items()
        }
        self._weights = {
            key: list(accumulate((rank + 4.0) ** -0.75 for rank in range(len(names))))
            for key, names in self._parts.items()
        }
        self.nicknames = {
            full: short.split("|")[self._offset :: 2] or short.split("|")
            for full, short in _tables().nicknames.items()
        }

    def _mine(self, text: str) -> list[str]:
        return text.split("|")[self._offset :: 2]

    @staticmethod
    def _spelling(locale: str, name: str) -> Spelling:
        native, _, latin = name.partition("=")
        if latin:
            return Spelling(native=native, latin=tuple(latin.split(",")))
        if locale in {"ru", "uk", "el"}:
            return Spelling(native=native, latin=_romanised(native, locale))
        return Spelling(native=native, latin=(native,))

    def draw(self, choose: random.Random, locale: str, kind: str) -> Spelling:
        """Return a name, common ones more often."""
        weights = self._weights[locale, kind]
        at = bisect(weights, choose.random() * weights[-1])
        return self._parts[locale, kind][at]

    def family(self, choose: random.Random, locale: str) -> tuple[Spelling, Spelling]:
        """Return a family name as its men and as its women have it."""
        weights = self._weights[locale, "l"]
        at = bisect(weights, choose.random() * weights[-1])
        of_women = self._parts.get((locale, "lf"), self._parts[locale, "l"])
        return self._parts[locale, "l"][at], of_women[at % len(of_women)]


_CYRILLIC: Final = dict(
    zip(
        "абвгдеёжзийклмнопрстуфхцчшщъыьэюяґєії",
        "a,b,v,g,d,e,yo,zh,z,i,y,k,l,m,n,o,p,r,s,t,u,f,kh,ts,ch,sh,shch,,y,,e,yu,ya,g,ye,i,yi".split(
            ","
        ),
        strict=True,
    )
)
_GREEK: Final = dict(
    zip(
        "αβγδεζηθικλμνξοπρστυφχψως",
        "a v g d e z i th i k l m n x o p r s t y f ch ps o s".split(),
        strict=True,
    )
)


def _romanised(name: str, locale: str) -> tuple[str, ...]:
    """Return three ways in which a name is put in Latin letters, the usual one first."""
    if locale == "el":
        plain = "".join(
            c for c in unicodedata.normalize("NFD", name.lower()) if not unicodedata.combining(c)
        )
        text = plain
        for pair, sound in (("ου", "ou"), ("μπ", "b"), ("ντ", "nt"), ("γγ", "ng"), ("ευ", "ef")):
            text = text.replace(pair, sound)
        text = text.replace("αυ", "af")
        usual = "".join(_GREEK.get(c, c) for c in text)
        forms = (
            usual,
            usual.replace("ch", "h").replace("x", "ks").replace("y", "i"),
            usual.replace("f", "ph").replace("gi", "yi").replace("ch", "kh"),
        )
    else:
        letters = dict(_CYRILLIC)
        if locale == "uk":
            letters |= {"г": "h", "и": "y"}
        usual = "".join(letters.get(c, c) for c in name.lower())
        forms = (
            usual,
            usual.replace("yu", "iu").replace("ya", "ia").replace("yo", "e").replace("kh", "h"),
            usual.replace("iy", "y").replace("shch", "sch").replace("zh", "j").replace("ts", "c"),
        )
    return tuple(dict.fromkeys(form.title() for form in forms))


class _People:
    """Makes the people, school by school."""

    def __init__(self, names: _Names, choose: random.Random, count: int) -> None:
        self._names = names
        self._choose = choose
        self._count = count
        self._people: list[Person] = []

    def make(self) -> list[Person]:
        school = 0
        while len(self._people) < self._count:
            self._make_school(school, min(_SCHOOL_SIZE, self._count - len(self._people)))
            school += 1
        return self._people

    def _locale(self) -> str:
        if self._choose.random() < _ENGLISH_SHARE:
            return "en"
        return self._choose.choice([name for name in self._names.locales if name != "en"])

    def _make_school(self, school: int, size: int) -> None:
        choose, home = self._choose, self._locale()
        end = len(self._people) + size
        while len(self._people) < end:
            locale = home if choose.random() < 0.8 else self._locale()
            family = self._names.family(choose, locale)
            first = self._person(school, locale, family)
            kin = choose.random()
            if kin < 0.015:
                self._twin(first, family)
            elif kin < 0.16:
                for _ in range(choose.choice([1, 1, 1, 2])):
                    sibling = self._person(school, locale, family)
                    sibling.relation = first.relation = "sibling"
                    if first.parent_email and choose.random() < 0.7:
                        sibling.parent_email = first.parent_email
            elif kin < 0.165:
                self._namesake(first)
        del self._people[end:]

    def _person(self, school: int, locale: str, family: tuple[Spelling, Spelling]) -> Person:
        choose, number = self._choose, len(self._people)
        gender = choose.choice("mf")
        level = None if choose.random() < 0.08 else choose.randint(1, 6)
        age = choose.randint(25, 60) if level is None else level + 9 + choose.choice([0, 0, 0, 1])
        classes = max(1, _SCHOOL_SIZE // 6 // _CLASS_SIZE)
        given = self._names.draw(choose, locale, gender)
        middle = self._names.draw(choose, locale, gender) if choose.random() < 0.3 else None
        person = Person(
            number=number,
            school=school,
            level=level,
            classroom=f"{level}{'abcdef'[choose.randrange(classes)]}" if level else "staff",
            locale=locale,
            gender=gender,
            given=given,
            middle=None if locale in _FAMILY_FIRST else middle,
            family=family[gender == "f"],
            birth_year=_YEAR - age,
            birth_day=choose.randint(1, 31),
            identifier=f"{100000 + school * 7:06d}{choose.randrange(10**4):04d}",
            email="",
            parent_email=None,
            taste=choose.random(),
            login="",
        )
        person.login = _username(person, self._names.half, choose)
        domain = f"school{school}.org" if choose.random() < 0.6 else "mail.net"
        person.email = f"{_username(person, self._names.half, choose)}@{domain}"
        if level and choose.random() < 0.15:
            person.parent_email = f"{_ascii(family[0].latin[0])}{choose.randrange(999)}@mail.net"
        self._people.append(person)
        return person

    def _twin(self, first: Person, family: tuple[Spelling, Spelling]) -> None:
        twin = self._person(first.school, first.locale, family)
        twin.level, twin.classroom = first.level, first.classroom
        twin.birth_year, twin.birth_day = first.birth_year, first.birth_day
        twin.parent_email = first.parent_email
        twin.relation = first.relation = "twin"

    def _namesake(self, first: Person) -> None:
        """Add a father and son, or cousins, of one name."""
        other = self._person(first.school, first.locale, (first.family, first.family))
        other.given, other.gender = first.given, first.gender
        other.relation = first.relation = "namesake"


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower())
    plain = plain.translate(str.maketrans("ıłøđßəæ", "ilodsaa"))
    return "".join(c for c in plain if "a" <= c <= "z")


def _username(person: Person, half: Half, choose: random.Random) -> str:
    given, family = _ascii(person.given.latin[0]), _ascii(person.family.latin[0])
    given, family = given or "u", family or "x"
    number = choose.randrange(1, 100)
    if half == "development":
        templates = (
            f"{given}.{family}",
            f"{given[0]}{family}",
            f"{given}{family[0]}",
            f"{family}{given[0]}",
            f"{given}{family}",
            f"{given}{number}",
            f"{given}_{family}{person.birth_year % 100}",
            f"{given[0]}{family}{number}",
        )
    else:
        templates = (
            f"{family}.{given}",
            f"{given[:3]}{family[:3]}{number}",
            f"{given}-{family}",
            f"{given[0]}.{family}",
            f"{family}{given[:2]}",
            f"{given}{person.birth_year}",
            f"{family}_{given}",
            f"{given}{family}{number:02d}",
        )
    login = choose.choice(templates)
    if choose.random() < 0.12:
        word = choose.choice(("dragon", "star", "tiger", "rocket", "panda", "sky", "ninja", "moon"))
        login = f"{word}{choose.randrange(10000)}"
    return login


@dataclass(slots=True)
class _Registrar:
    """Writes people down as one platform has them."""

    habits: _Habits
    names: _Names
    choose: random.Random
    worse: float
    _labels: dict[tuple[str, int, str], str] = field(default_factory=dict)

    def _maybe(self, chance: float) -> bool:
        """Return whether something goes wrong, which by itself has this chance."""
        return self.choose.random() < chance * self.worse

    def register(self, people: Sequence[Person]) -> list[PlatformAccount]:
        accounts = []
        for person in people:
            if self.choose.random() < self.habits.share:
                accounts.append(self._account(person))
                if self._maybe(0.02):
                    accounts.append(self._account(person))
        self.choose.shuffle(accounts)
        return accounts

    def _account(self, person: Person) -> PlatformAccount:
        habits, choose = self.habits, self.choose
        given, middle, family = self._name(person)
        native = habits.native if person.locale in _NATIVE else 0.0
        if choose.random() < native:
            given, family, middle = person.given.native, person.family.native, ""
        whole = self._whole(person, given, middle, family)
        reported = choose.random
        gender = person.gender if not self._maybe(0.01) else choose.choice("mf")
        year = person.birth_year
        if self._maybe(0.03):
            year += choose.choice([-1, 1, -10, choose.randint(-5, 5)])
        number = self._typed(person.identifier) if self._maybe(0.04) else person.identifier
        if self._maybe(0.1):
            number = number.lstrip("1").zfill(10)
        username = self._login(person)
        email = self._email(person)
        split = habits.split_names and given != family and not self._maybe(0.03)
        return PlatformAccount(
            person=person.number,
            provider_id=habits.name,
            external_id=f"{choose.getrandbits(64):016x}",
            display_name=whole,
            given_name=given if split else None,
            middle_name=middle or None if split else None,
            family_name=family if split else None,
            username=username if reported() < habits.username else None,
            email=email if reported() < habits.email else None,
            identifiers=(number,) if reported() < habits.identifier else (),
            birth_year=year if reported() < habits.birth_year else None,
            gender=("MALE" if gender == "m" else "FEMALE") if reported() < habits.gender else None,
            roles=(person.role if not self._maybe(0.01) else "STUDENT",),
            time_zone=self._zone(person) if habits.time_zone else None,
            groups=self._groups(person),
        )

    def _name(self, person: Person) -> tuple[str, str, str]:
        choose = self.choose
        given = self._latin(person, person.given)
        family = self._latin(person, person.family)
        middle = self._latin(person, person.middle) if person.middle else ""
        if middle and choose.random() < 0.6:
            middle = middle[0] if choose.random() < 0.3 else ""
        if self._maybe(0.10):
            given = self._short(given)
        if self._maybe(0.015):
            family = self.names.family(choose, person.locale)[0].latin[0]
        if _SPACE in family and self._maybe(0.3):
            family = family.split()[-1]
        if self._maybe(0.05):
            given = self._typed(given)
        if self._maybe(0.06):
            family = self._typed(family)
        if choose.random() < 0.35:
            given, middle, family = (_without_accents(part) for part in (given, middle, family))
        return given, middle, family

    def _latin(self, person: Person, part: Spelling) -> str:
        if len(part.latin) == 1:
            return part.latin[0]
        if self._maybe(0.3):
            return self.choose.choice(part.latin)
        return part.latin[int(person.taste * len(part.latin))]

    def _short(self, given: str) -> str:
        known = self.names.nicknames.get(given.lower())
        if known and self.choose.random() < 0.8:
            return self.choose.choice(known).title()
        return given[: self.choose.randint(3, 5)] if len(given) > 4 else given

    def _whole(self, person: Person, given: str, middle: str, family: str) -> str:
        choose = self.choose
        joined = "" if family and ord(family[0]) > 0x3000 else _SPACE
        first = person.locale in _FAMILY_FIRST and choose.random() < 0.6
        if self._maybe(0.04):
            return given
        if self._maybe(0.03):
            given = given[0] + choose.choice(["", "."])
            joined = _SPACE
        elif self._maybe(0.02):
            family = family[0]
            joined = _SPACE
        if joined == "":
            name = family + given
        elif self._maybe(0.04):
            name = f"{family}, {given}"
        elif first or self._maybe(0.08):
            name = f"{family} {given}"
        else:
            name = _SPACE.join(part for part in (given, middle, family) if part)
        if self._maybe(0.05):
            label = person.classroom.upper()
            name += choose.choice((f" {label}", f" ({label})", f" - class {label}"))
        case = choose.random()
        if case < 0.06:
            return name.upper()
        return name.lower() if case < 0.14 else name

    def _typed(self, text: str) -> str:
        """Return the text with one typing error."""
        if len(text) < 3:
            return text
        at = self.choose.randrange(1, len(text))
        kind = self.choose.randrange(4)
        near = chr(ord(text[at]) + self.choose.choice([-1, 1])) if text[at].isalnum() else text[at]
        if kind == 0:
            return text[:at] + text[at + 1 :]
        if kind == 1:
            return text[:at] + text[at] + text[at:]
        if kind == 2 and at + 1 < len(text):
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        return text[:at] + near + text[at + 1 :]

    def _login(self, person: Person) -> str:
        choose = self.choose
        if choose.random() < self.habits.numbers:
            return person.identifier
        login = person.login
        if choose.random() < 0.6:
            login = _username(person, self.names.half, choose)
        if self._maybe(0.06):
            login += str(choose.randrange(10))
        return login.upper() if choose.random() < 0.03 else login

    def _email(self, person: Person) -> str:
        choose = self.choose
        if choose.random() < self.habits.synthetic_email:
            return f"{_username(person, self.names.half, choose)}@{self.habits.name}.invalid"
        if person.parent_email and choose.random() < 0.6:
            return person.parent_email
        if choose.random() < 0.4:
            return f"{_username(person, self.names.half, choose)}@mail.net"
        return person.email

    def _zone(self, person: Person) -> str | None:
        """Return the time zone; many accounts have their platform's default, or none."""
        if self.choose.random() < 0.3:
            return None
        return "UTC" if self.choose.random() < 0.3 else f"Zone/{person.school % 12}"

    def _groups(self, person: Person) -> tuple[str, ...]:
        facility = self._label("facility", person.school, "")
        if self._maybe(0.06):
            return (facility,)
        classroom = person.classroom
        if self._maybe(0.05) and person.level:
            classroom = f"{person.level}{self.choose.choice('ab')}"
        if not self.habits.courses:
            return facility, self._label("class", person.school, classroom)
        subjects = self.choose.sample(_SUBJECTS, self.choose.randint(1, 3))
        return tuple(self._label(subject, person.school, classroom) for subject in subjects)

    def _label(self, kind: str, school: int, name: str) -> str:
        key = (kind, school, name)
        if key not in self._labels:
            self._labels[key] = f"{self.choose.getrandbits(48):012x}"
        return self._labels[key]


def _without_accents(text: str) -> str:
    plain = unicodedata.normalize("NFD", text)
    if plain and ord(plain[0]) > 0x250:
        return text
    return "".join(c for c in plain if not unicodedata.combining(c))
