"""Write the data set of `population.py` into a real Kolibri, through Kolibri's own models.

Runs inside Kolibri's virtual environment, on a provisioned home that no server is using:

    KOLIBRI_HOME=/some/home /some/venv/bin/python -I real_seed.py [--bulk-users N]

Everything is looked up by its natural key first, so that a second run adds nothing. At the end it
writes `lab.json` into the home, in the shape of `lab.py`: Kolibri makes up most ids itself, anew in
each home. Media files are not made; channels only claim to have them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Django models can be imported only after Kolibri has been initialised, so imports are local, and
# no type checker here knows Kolibri.
# ruff: noqa: PLC0415
# mypy: disable-error-code="import-not-found, import-untyped"

if TYPE_CHECKING:
    from types import ModuleType

    from simulators.kolibri.population import Channel, Node, Person, Population, SummaryLog

_BULK_BATCH = 1000


def main() -> int:
    """Seed the home that KOLIBRI_HOME names."""
    parser = argparse.ArgumentParser(description="Seed a Kolibri home.")
    parser.add_argument("--bulk-users", type=int, default=0)
    chosen = parser.parse_args()
    home = Path(os.environ["KOLIBRI_HOME"])
    data = _load_population_module()

    from kolibri.main import initialize

    initialize(skip_update=True)
    seed = _Seed(data, data.build_population(bulk_users=chosen.bulk_users))
    seed.run()
    description = json.dumps(seed.describe(), ensure_ascii=False, indent=1)
    (home / "lab.json").write_text(description, encoding="utf-8")
    print(json.dumps(seed.describe()["counts"]))
    return 0


def _load_population_module() -> ModuleType:
    """Load the file beside this one; the repository itself is not importable from here."""
    path = Path(__file__).with_name("population.py")
    spec = importlib.util.spec_from_file_location("population", path)
    if spec is None or spec.loader is None:
        message = f"Cannot load {path}"
        raise ImportError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules["population"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


class _Seed:
    """One run over one data set; the mappings lead from the data set's keys to Kolibri's rows."""

    def __init__(self, data: Any, population: Population) -> None:
        self.data = data
        self.population = population
        self.facilities: dict[str, Any] = {}
        self.people: dict[str, Any] = {}
        self.collections: dict[str, Any] = {}
        self.lessons: dict[str, Any] = {}
        self.exams: dict[str, Any] = {}
        self.course_sessions: dict[str, Any] = {}

    def run(self) -> None:
        """Write everything, in the order in which things need each other."""
        from django.db import transaction

        with transaction.atomic():
            self._write_facilities()
        self._write_channels()
        self._write_people()
        with transaction.atomic():
            self._write_collections()
            self._write_roles()
        self._write_memberships()
        with transaction.atomic():
            self._write_lessons()
            self._write_exams()
            self._write_course_sessions()
            self._write_activity()
            self._write_exam_results()
        self._write_help_needed()
        self._delete_the_deleted()

    # ---- people and collections --------------------------------------------------------

    def _write_facilities(self) -> None:
        from kolibri.core.auth.models import Facility
        from kolibri.core.device.models import DeviceSettings
        from kolibri.core.device.utils import create_facility

        for facility in self.population.facilities:
            row = Facility.objects.filter(name=facility.name).first()
            self.facilities[facility.key] = row or create_facility(facility.name, facility.preset)
        settings = DeviceSettings.objects.get()
        settings.name = self.data.DEVICE_NAME
        # Provisioning leaves this open, and then Kolibri takes whichever facility's id is lowest.
        settings.default_facility = self.facilities[self.population.facilities[0].key]
        settings.save()

    def _write_people(self) -> None:
        from django.contrib.auth.hashers import make_password
        from django.db import transaction

        # One hash for everybody: hashing is most of the time that seeding takes.
        hashed = make_password(self.data.PASSWORD)
        known = {(row.facility_id, row.username): row for row in _all_users()}
        people = self.population.people
        for start in range(0, len(people), _BULK_BATCH):
            with transaction.atomic():
                for person in people[start : start + _BULK_BATCH]:
                    if person.deleted_at is None or _has_soft_delete():
                        self._write_person(person, hashed, known)

    def _write_person(self, person: Person, hashed: str, known: dict[tuple[str, str], Any]) -> None:
        from kolibri.core.auth.models import FacilityUser
        from kolibri.core.device.models import DevicePermissions

        facility = self.facilities[person.facility]
        row = known.get((facility.id, person.username))
        if row is None:
            row = FacilityUser(
                facility=facility,
                dataset_id=facility.dataset_id,
                username=person.username,
                full_name=person.full_name,
                id_number=person.id_number,
                gender=person.gender,
                birth_year=person.birth_year,
                date_joined=person.joined_at,
                password="NOT_SPECIFIED" if person.password is None else hashed,
            )
            row.save()
        elif person.username == self.data.SUPERUSER_USERNAME:  # made by provisioning
            FacilityUser.objects.filter(pk=row.pk).update(date_joined=person.joined_at)
        if person.is_superuser or person.can_manage_content:
            DevicePermissions.objects.get_or_create(
                user=row, defaults={"is_superuser": person.is_superuser, "can_manage_content": True}
            )
        self.people[person.key] = row

    def _delete_the_deleted(self) -> None:
        for person in self.population.people:
            row = self.people.get(person.key)
            if person.deleted_at is not None and row is not None and row.date_deleted is None:
                row.date_deleted = person.deleted_at
                row.save()

    def _write_collections(self) -> None:
        from kolibri.core.auth.models import Classroom, LearnerGroup

        for item in self.population.collections:
            if item.kind == "adhoclearnersgroup":
                continue  # made together with its course session
            if item.kind == "classroom":
                model, parent = Classroom, self.facilities[item.parent]
            else:
                model, parent = LearnerGroup, self.collections[item.parent]
            row = model.objects.filter(parent=parent, name=item.name).first()
            self.collections[item.key] = row or model.objects.create(parent=parent, name=item.name)

    def _collection(self, key: str) -> Any:
        return self.facilities.get(key) or self.collections[key]

    def _write_roles(self) -> None:
        from kolibri.core.auth.models import Role

        for role in self.population.roles:
            Role.objects.get_or_create(
                user=self.people[role.person],
                collection=self._collection(role.collection),
                kind=role.kind,
            )

    def _write_memberships(self) -> None:
        from django.db import transaction
        from kolibri.core.auth.models import Membership

        known = set(Membership.objects.values_list("user_id", "collection_id"))
        rows = [
            (self.people[one.person], self.collections[one.collection])
            for one in self.population.memberships
            if one.person in self.people and one.collection in self.collections
        ]
        rows = [(user, item) for user, item in rows if (user.id, item.id) not in known]
        for start in range(0, len(rows), _BULK_BATCH):
            with transaction.atomic():
                for user, item in rows[start : start + _BULK_BATCH]:
                    Membership(user=user, collection=item).save()

    # ---- content -----------------------------------------------------------------------

    def _write_channels(self) -> None:
        from django.db import transaction
        from kolibri.core.content.models import ChannelMetadata, ContentCacheKey
        from kolibri.core.content.utils.annotation import set_channel_ancestors

        before = ChannelMetadata.objects.count()
        for order, channel in enumerate(self.population.channels):
            if not ChannelMetadata.objects.filter(id=channel.id).exists():
                with transaction.atomic():
                    self._write_channel(channel, order)
                set_channel_ancestors(channel.id)  # has its own connection, so not in between
        if ChannelMetadata.objects.count() != before:
            ContentCacheKey.update_cache_key()

    def _write_channel(self, channel: Channel, order: int) -> None:
        from kolibri.core.content.models import ChannelMetadata, ContentNode, Language

        names = {"en": "English", "es": "Español", "ar": "العربية", "fr": "Français"}
        language, _ = Language.objects.get_or_create(
            id=channel.language,
            defaults={"lang_code": channel.language, "lang_name": names[channel.language]},
        )
        tree = _nested(channel.nodes[0], channel)
        ContentNode.objects.bulk_create(ContentNode.objects.build_tree_nodes(tree))
        row = ChannelMetadata.objects.create(
            id=channel.id,
            name=channel.name,
            description=channel.description,
            tagline=channel.tagline,
            version=channel.version,
            thumbnail=channel.thumbnail,
            last_updated=channel.updated_at,
            min_schema_version="1",
            root_id=channel.nodes[0].id,
            published_size=channel.published_size,
            total_resource_count=channel.resource_count,
            order=order,
            public=channel.public,
        )
        if hasattr(row, "included_categories"):  # not before 0.18
            row.included_categories = ",".join(channel.categories)
            row.included_grade_levels = ",".join(channel.grade_levels)
            row.save()
        row.included_languages.add(language)

    # ---- lessons, exams, courses -------------------------------------------------------

    def _write_lessons(self) -> None:
        from kolibri.core.lessons.models import Lesson, LessonAssignment

        admin = self.people["a:service_admin"]
        for lesson in self.population.lessons:
            item = self.collections[lesson.collection]
            row = Lesson.objects.filter(title=lesson.title, collection=item).first()
            if row is None:
                row = Lesson.objects.create(
                    title=lesson.title,
                    description=lesson.description,
                    collection=item,
                    created_by=admin,
                    is_active=lesson.active,
                    resources=[_resource(node) for node in lesson.nodes],
                )
                target = self.collections[lesson.assigned_to]
                LessonAssignment.objects.create(lesson=row, collection=target, assigned_by=admin)
                Lesson.objects.filter(pk=row.pk).update(date_created=lesson.created_at)
            self.lessons[lesson.key] = row

    def _write_exams(self) -> None:
        from kolibri.core.exams.models import Exam, ExamAssignment

        admin = self.people["a:service_admin"]
        for exam in self.population.exams:
            item = self.collections[exam.collection]
            row = Exam.objects.filter(title=exam.title, collection=item).first()
            if row is None:
                row = Exam.objects.create(
                    title=exam.title,
                    collection=item,
                    creator=admin,
                    active=exam.active,
                    archive=exam.archive,
                    seed=7,
                    data_model_version=3,
                    question_sources=exam.question_sources,
                )
                ExamAssignment.objects.create(exam=row, collection=item, assigned_by=admin)
                Exam.objects.filter(pk=row.pk).update(
                    date_created=exam.created_at,
                    date_activated=exam.created_at if exam.active else None,
                    date_archived=exam.created_at if exam.archive else None,
                )
            self.exams[exam.key] = row

    def _write_course_sessions(self) -> None:
        if not _has_courses():
            return
        from kolibri.core.courses.models import (
            CourseSession,
            CourseSessionAssignment,
            UnitTestAssignment,
        )

        admin = self.people["a:service_admin"]
        for one in self.population.course_sessions:
            item = self.collections[one.collection]
            row = CourseSession.objects.filter(course=one.course.id, collection=item).first()
            if row is None:
                row = CourseSession.objects.create(
                    course=one.course.id,
                    title=one.course.title,
                    description=one.course.description,
                    collection=item,
                    is_active=one.active,
                    created_by=admin,
                    channel_version=4,
                )
                target = self._assigned_to(one.assigned_to, item)
                CourseSessionAssignment.objects.create(
                    course_session=row, collection=target, assigned_by=admin
                )
                if one.pre_test is not None:
                    person, unit = one.pre_test
                    UnitTestAssignment.objects.create(
                        course_session=row,
                        unit_contentnode_id=unit.id,
                        test_type="pre",
                        collection=item,
                        activated_by=self.people[person],
                        closed=True,
                    )
                CourseSession.objects.filter(pk=row.pk).update(date_created=one.created_at)
            self._note_hidden_group(one.assigned_to, item)
            self.course_sessions[one.key] = row

    def _assigned_to(self, key: str, classroom: Any) -> Any:
        """Return the class or group, making a hidden group as Kolibri's own code does."""
        if key in self.collections:
            return self.collections[key]
        from kolibri.core.auth.utils.users import create_adhoc_group_for_learners

        members = [one.person for one in self.population.memberships if one.collection == key]
        return create_adhoc_group_for_learners(classroom, [self.people[one] for one in members])

    def _note_hidden_group(self, key: str, classroom: Any) -> None:
        if key not in self.collections:
            from kolibri.core.auth.models import AdHocGroup

            self.collections[key] = AdHocGroup.objects.get(parent=classroom)

    # ---- activity ----------------------------------------------------------------------

    def _write_activity(self) -> None:
        from kolibri.core.logger.models import ContentSummaryLog

        known = set(ContentSummaryLog.objects.values_list("user_id", "content_id"))
        for log in self.population.summary_logs:
            user = self.people.get(log.person)
            if user is not None and (user.id, log.content_id) not in known:
                self._write_log(log, user)

    def _write_log(self, log: SummaryLog, user: Any) -> None:
        from kolibri.core.logger.models import (
            AttemptLog,
            ContentSessionLog,
            ContentSummaryLog,
            MasteryLog,
        )

        shared = {
            "user": user,
            "start_timestamp": log.started_at,
            "end_timestamp": log.ended_at,
            "time_spent": log.time_spent_seconds,
        }
        content = {
            "content_id": log.content_id,
            "channel_id": log.channel_id,
            "progress": log.progress,
            "kind": log.kind,
        }
        context = {"context": {"node_id": log.node.id}} if log.node else {}
        session = ContentSessionLog.objects.create(**shared, **content, extra_fields=context)
        summary = ContentSummaryLog.objects.create(
            **shared, **content, completion_timestamp=log.completed_at
        )
        if log.kind == "exercise":
            mastery = MasteryLog.objects.create(
                **shared,
                summarylog=summary,
                mastery_criterion={"type": "m_of_n", "m": 3, "n": 5},
                completion_timestamp=log.completed_at,
                mastery_level=1,
                complete=log.progress >= 1,
            )
            AttemptLog.objects.create(
                **shared,
                item=self.data.hex_id("item", log.content_id),
                completion_timestamp=log.ended_at,
                complete=True,
                correct=1,
                answer={},
                simple_answer="",
                interaction_history=[],
                masterylog=mastery,
                sessionlog=session,
            )

    def _write_exam_results(self) -> None:
        from kolibri.core.logger.models import (
            AttemptLog,
            ContentSessionLog,
            ContentSummaryLog,
            MasteryLog,
        )

        for number, result in enumerate(self.population.exam_results):
            exam, user = self.exams[result.exam], self.people[result.person]
            if ContentSummaryLog.objects.filter(user=user, content_id=exam.id).exists():
                continue
            times = {
                "user": user,
                "start_timestamp": result.started_at,
                "end_timestamp": result.ended_at,
                "time_spent": 1200,
            }
            content = {
                "content_id": exam.id,
                "channel_id": None,
                "kind": "quiz",
                "progress": int(result.complete),
            }
            done_at = result.ended_at if result.complete else None
            session = ContentSessionLog.objects.create(**times, **content)
            summary = ContentSummaryLog.objects.create(
                **times, **content, completion_timestamp=done_at
            )
            mastery = MasteryLog.objects.create(
                **times,
                summarylog=summary,
                mastery_criterion={"type": "quiz", "coach_assigned": True},
                completion_timestamp=done_at,
                mastery_level=-(number + 1),
                complete=result.complete,
            )
            questions = exam.question_sources[0]["questions"]
            for question, correct in zip(questions, result.answers):  # noqa: B905 - fewer answers
                AttemptLog.objects.create(
                    **times,
                    item=question["item"],
                    completion_timestamp=result.ended_at,
                    complete=True,
                    correct=int(correct),
                    answer={},
                    simple_answer="",
                    interaction_history=[],
                    masterylog=mastery,
                    sessionlog=session,
                )

    def _write_help_needed(self) -> None:
        from kolibri.core.notifications.models import LearnerProgressNotification

        for one in self.population.help_needed:
            LearnerProgressNotification.objects.get_or_create(
                notification_object="Resource",
                notification_event="HelpNeeded",
                user_id=self.people[one.person].id,
                classroom_id=self.collections["algebra"].id,
                contentnode_id=one.node.id,
                lesson_id=self.lessons[one.lesson].id,
                defaults={
                    "assignment_collections": [self.collections["algebra"].id],
                    "reason": "MultipleUnsuccessfulAttempts",
                    "timestamp": one.at + timedelta(),
                },
            )

    # ---- lab.json ----------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return the shape of `lab.json`."""
        import kolibri
        from kolibri.core.auth.models import Classroom, FacilityUser, Membership, Role
        from kolibri.core.content.models import ChannelMetadata
        from kolibri.core.logger.models import ContentSummaryLog

        users = {row.id: key for key, row in self.people.items()}
        places = {row.id: key for key, row in (self.facilities | self.collections).items()}
        return {
            "version": kolibri.__version__,
            "superuser": {
                "username": self.data.SUPERUSER_USERNAME,
                "password": self.data.SUPERUSER_PASSWORD,
            },
            "password": self.data.PASSWORD,
            "facilities": {
                key: {"id": row.id, "name": row.name, "dataset": row.dataset_id}
                for key, row in self.facilities.items()
            },
            "people": _ids(self.people),
            "collections": _ids(self.collections),
            "memberships": {
                f"{users[row.user_id]}>{places[row.collection_id]}": row.id
                for row in Membership.objects.all()
            },
            "roles": {
                f"{users[row.user_id]}>{places[row.collection_id]}>{row.kind}": row.id
                for row in Role.objects.all()
            },
            "lessons": _ids(self.lessons),
            "exams": _ids(self.exams),
            "course_sessions": _ids(self.course_sessions),
            "channels": {channel.key: channel.id for channel in self.population.channels},
            "counts": {
                "users": FacilityUser.objects.count(),
                "classrooms": Classroom.objects.count(),
                "memberships": Membership.objects.count(),
                "roles": Role.objects.count(),
                "channels": ChannelMetadata.objects.count(),
                "course_sessions": len(self.course_sessions),
                "summary_logs": ContentSummaryLog.objects.exclude(kind="quiz").count(),
            },
        }


def _ids(rows: dict[str, Any]) -> dict[str, str]:
    return {key: row.id for key, row in rows.items()}


def _has_soft_delete() -> bool:
    """Return whether this release keeps deleted users (0.19 and later)."""
    from kolibri.core.auth.models import FacilityUser

    return hasattr(FacilityUser, "all_objects")


def _all_users() -> list[Any]:
    from kolibri.core.auth.models import FacilityUser

    manager = FacilityUser.all_objects if _has_soft_delete() else FacilityUser.objects
    return list(manager.all())


def _has_courses() -> bool:
    """Return whether this release knows course sessions (0.19 and later)."""
    return importlib.util.find_spec("kolibri.core.courses") is not None


def _resource(node: Node) -> dict[str, str]:
    return {
        "contentnode_id": node.id,
        "content_id": node.content_id,
        "channel_id": node.channel_id,
    }


def _nested(node: Node, channel: Channel) -> dict[str, Any]:
    """Return the tree below a node in the form that Kolibri's tree builder takes."""
    children = [one for one in channel.nodes if one.parent_id == node.id]
    row: dict[str, Any] = {
        "id": node.id,
        "content_id": node.content_id,
        "channel_id": node.channel_id,
        "title": node.title,
        "description": node.description,
        "kind": node.kind,
        "lang_id": channel.language,
        "available": node.available,
        "options": {},
        "children": [_nested(child, channel) | {"parent_id": node.id} for child in children],
    }
    if node.modality is not None and _has_courses():
        row["modality"] = node.modality
    return row


if __name__ == "__main__":
    sys.exit(main())
