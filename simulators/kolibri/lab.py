"""The ids and credentials of everything in a running server, under the data set's own keys.

The real server writes the same shape to `lab.json`, so that a test can talk to either.
"""

from __future__ import annotations

from typing import Any

from simulators.kolibri import population as data
from simulators.kolibri.state import Kolibri


def describe_lab(kolibri: Kolibri) -> dict[str, Any]:
    """Return the shape of `lab.json` for a simulated server."""
    population = kolibri.population
    return {
        "version": kolibri.profile.version,
        "superuser": {
            "username": data.SUPERUSER_USERNAME,
            "password": data.SUPERUSER_PASSWORD,
        },
        "password": data.PASSWORD,
        "facilities": {
            item.key: {"id": item.id, "name": item.name, "dataset": item.dataset_id}
            for item in population.facilities
        },
        "people": {
            item.key: item.id
            for item in population.people
            if item.deleted_at is None or kolibri.profile.soft_delete
        },
        "collections": {
            item.key: item.id for item in population.collections if item.id in kolibri.collections
        },
        "memberships": {
            f"{item.person}>{item.collection}": item.id
            for item in population.memberships
            if item.id in kolibri.memberships
        },
        "roles": {
            f"{item.person}>{item.collection}>{item.kind}": item.id for item in population.roles
        },
        "lessons": {item.key: item.id for item in population.lessons},
        "exams": {item.key: item.id for item in population.exams},
        "course_sessions": {
            item.key: item.id for item in population.course_sessions if kolibri.profile.courses
        },
        "channels": {item.key: item.id for item in population.channels},
        "counts": {
            "users": len(kolibri.accounts()),
            "classrooms": len(kolibri.collections_of_kind("classroom")),
            "memberships": len(kolibri.memberships),
            "roles": len(kolibri.roles),
            "channels": len(population.channels),
            "course_sessions": len(population.course_sessions) if kolibri.profile.courses else 0,
            "summary_logs": len(population.summary_logs),
        },
    }
