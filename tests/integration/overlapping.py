"""A Kolibri and a Canvas of one school: many of the same people, written down twice."""

from collections.abc import Mapping
from dataclasses import replace

from simulators.canvas import population as canvas_data
from simulators.kolibri.population import Person, Population, build_population, learners_of_a

STRANGERS = ("Theodora Quill", "Ottoline Vance", "Barnaby Marsh")
NAMES = (
    "Amina Okonjo", "Bartholomew Finch", "Chiara Bellandi", "Dmitri Volkov", "Esperanza Quiroga",
    "Farouk Haddad", "Greta Lindqvist", "Hamish MacAllister", "Ilse Vanderhoeven", "Joaquin Ibarra",
    "Kavita Deshmukh", "Leopold Habsberg", "Marisol Fuentes", "Nkechi Obiora", "Oskar Thorvaldsen",
    "Priyanka Raghunathan", "Quentin Delacroix", "Rosalind Pemberton", "Stanislav Kowalczyk",
    "Tomoko Fujiwara", "Ulrike Zimmermann", "Valentina Moretti", "Wolfgang Eisenhardt",
    "Ximena Castellanos", "Yusuf Karadeniz", "Zenobia Achterberg", "Alistair Drummond",
    "Beatriz Carvalho", "Cornelius Vandermeer", "Dagny Halvorsen",
)  # fmt: skip


def kolibri_school() -> Population:
    """Return the Kolibri's people, thirty of them of names that hardly anybody has."""
    school = build_population()
    ordinary = [one for one in learners_of_a(school) if one.username.startswith("learner")]
    named = dict(zip((one.key for one in ordinary[-len(NAMES) :]), NAMES, strict=True))
    school.people[:] = [
        replace(one, full_name=named[one.key]) if one.key in named else one for one in school.people
    ]
    return school


def same_people(school: Population) -> Mapping[str, Person]:
    """Return the Kolibri's people who have a Canvas account too, by its login there."""
    people = {one.full_name: one for one in school.people}
    return {_plain(name): people[name] for name in NAMES}


def canvas_school(school: Population) -> canvas_data.Population:
    """Return a Canvas where the same people are ordered and numbered otherwise.

    Every third has the Kolibri's number as SIS id. One Mary Jones stands against the Kolibri's
    two, and three people are nobody there.
    """
    canvas = canvas_data.Population()
    canvas.add_user("Winifred Oakes", "operator", is_admin=True)
    for at, (login, person) in enumerate(same_people(school).items()):
        given, family = person.full_name.split()
        canvas.add_user(
            f"{family} {given}" if at % 2 else person.full_name,
            login,
            email=f"{login}@school.org",
            sis_user_id=person.id_number or None if at % 3 == 0 else None,
        )
    canvas.add_user("Mary Jones", "mary.jones")
    for name in STRANGERS:
        canvas.add_user(name, _plain(name))
    return canvas


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalpha())
