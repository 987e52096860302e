"""Who may ask for which field: one rule for each that reaches beyond the object it stands on.

Resolvers refuse by themselves what a key may not do; this is what they are held to. The schema is
not built while a field has no rule, and a test asks for every field with every set of scopes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import strawberry
from strawberry.types.base import StrawberryObjectDefinition

from resolvers.context import RequestContext, Scope
from resolvers.errors import Forbidden

_ROOTS: Final = ("Query", "Mutation", "Subscription")

NO_LEARNERS: Final = "Learners read their own rows and change nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may ask for a field.

    Attributes:
        scopes: What a key needs, all of it; beside what the object that the field is of needs.
        any_of: What a key needs one of.
        learners: Whether learners may, of their own.
    """

    scopes: frozenset[Scope] = frozenset()
    any_of: frozenset[Scope] = frozenset()
    learners: bool = False

    def check(self, context: RequestContext) -> None:
        """Let a request pass that may ask for the field.

        Raises:
            Forbidden: It may not.
        """
        if context.is_learners and not self.learners:
            raise Forbidden(NO_LEARNERS)
        for scope in sorted(self.scopes):
            context.require(scope)


def _needs(*scopes: Scope, learners: bool = False) -> Rule:
    return Rule(scopes=frozenset(scopes), learners=learners)


_OPEN: Final = _needs(learners=True)
_OPERATORS: Final = _needs()
_USERS: Final = _needs(Scope.READ_USERS, learners=True)
_COURSES: Final = _needs(Scope.READ_COURSES, learners=True)
_ENROLLMENTS: Final = _needs(Scope.READ_ENROLLMENTS, learners=True)
_PROVIDERS: Final = _needs(Scope.READ_PROVIDERS)
_CHANGES: Final = Rule(
    any_of=frozenset({Scope.READ_USERS, Scope.READ_COURSES, Scope.READ_ENROLLMENTS})
)
_WRITES_PROVIDERS: Final = _needs(Scope.WRITE_PROVIDERS)
_WRITES_USERS: Final = _needs(Scope.WRITE_USERS)
_WRITES_ENROLLMENTS: Final = _needs(Scope.WRITE_ENROLLMENTS)
_PEOPLE: Final = _needs(Scope.READ_USERS)
_WRITES_PEOPLE: Final = _needs(Scope.READ_USERS, Scope.WRITE_PEOPLE)

RULES: Final[Mapping[str, Rule]] = {
    "Query.node(Provider)": _OPEN,
    "Query.node(User)": _USERS,
    "Query.node(Course)": _COURSES,
    "Query.node(Enrollment)": _ENROLLMENTS,
    "Query.node(Person)": _PEOPLE,
    "Query.nodes(Provider)": _OPEN,
    "Query.nodes(User)": _USERS,
    "Query.nodes(Course)": _COURSES,
    "Query.nodes(Enrollment)": _ENROLLMENTS,
    "Query.nodes(Person)": _PEOPLE,
    "Query.providers": _OPEN,
    "Query.provider": _OPEN,
    "Query.user": _USERS,
    "Query.users": _USERS,
    "Query.course": _COURSES,
    "Query.courses": _COURSES,
    "Query.enrollments": _ENROLLMENTS,
    "Query.changes": _CHANGES,
    "Query.auditLog": _needs(Scope.ADMIN),
    "Query.people": _PEOPLE,
    "Query.userMatches": _PEOPLE,
    "Query.matchUser": _PEOPLE,
    "Query.matchRun": _PEOPLE,
    "Query.matchRuns": _PEOPLE,
    "Query.peopleDecisions": _PEOPLE,
    "Provider.baseUrl": _OPERATORS,
    "Provider.accountId": _OPERATORS,
    "Provider.version": _OPERATORS,
    "Provider.problem": _OPERATORS,
    "Provider.capabilities": _OPEN,
    "Provider.sessions": _PROVIDERS,
    "Provider.health": _PROVIDERS,
    "Provider.lastImport": _PROVIDERS,
    "ProviderSession.authorizationUrl": _PROVIDERS,
    "User.provider": _OPEN,
    "User.enrollments": _ENROLLMENTS,
    "User.activity": _ENROLLMENTS,
    "User.person": _PEOPLE,
    "User.matches": _PEOPLE,
    "Course.provider": _OPEN,
    "Course.iconUrl": _OPEN,
    "Course.icon": _OPEN,
    "Course.enrollments": _ENROLLMENTS,
    "Course.sections": _COURSES,
    "Enrollment.provider": _OPEN,
    "Enrollment.user": _USERS,
    "Enrollment.course": _COURSES,
    "Enrollment.section": _COURSES,
    "Enrollment.milestones": _ENROLLMENTS,
    "Enrollment.progress": _ENROLLMENTS,
    "Mutation.registerProvider": _WRITES_PROVIDERS,
    "Mutation.updateProvider": _WRITES_PROVIDERS,
    "Mutation.removeProvider": _WRITES_PROVIDERS,
    "Mutation.checkProvider": _WRITES_PROVIDERS,
    "Mutation.refreshProvider": _WRITES_PROVIDERS,
    "Mutation.revokeSession": _WRITES_PROVIDERS,
    "Mutation.beginAuthorization": _needs(Scope.ACT_AS_USERS),
    "Mutation.createUser": _WRITES_USERS,
    "Mutation.createLogin": _WRITES_USERS,
    "Mutation.enrollUser": _WRITES_ENROLLMENTS,
    "Mutation.endEnrollment": _WRITES_ENROLLMENTS,
    "Mutation.startMatchRun": _WRITES_PEOPLE,
    "Mutation.confirmMatch": _WRITES_PEOPLE,
    "Mutation.rejectMatch": _WRITES_PEOPLE,
    "Mutation.linkUsers": _WRITES_PEOPLE,
    "Mutation.unlinkUser": _WRITES_PEOPLE,
    "Mutation.mergePeople": _WRITES_PEOPLE,
    "Mutation.undoDecision": _WRITES_PEOPLE,
    "Subscription.importProgress": _PROVIDERS,
    "Subscription.matchRunProgress": _PEOPLE,
    "Subscription.changes": _CHANGES,
}
"""By field; in brackets what is asked for, where that makes a difference."""

REACHED_BY: Final[Mapping[str, frozenset[Scope]]] = {
    "ProviderSession": frozenset({Scope.READ_PROVIDERS}),
    "User": frozenset({Scope.READ_USERS}),
    "Course": frozenset({Scope.READ_COURSES}),
    "Enrollment": frozenset({Scope.READ_ENROLLMENTS}),
}
"""What a key needs to come by an object in the first place."""


def field_of(rule: str) -> str:
    """Return the field that a rule is about."""
    return rule.partition("(")[0]


def fields_that_need_a_rule(schema: strawberry.Schema) -> Iterator[str]:
    """Yield every root field, and every other that is more than a part of its object."""
    for each in schema.schema_converter.type_map.values():
        of = each.definition
        if not isinstance(of, StrawberryObjectDefinition) or of.is_input:
            continue
        for field in of.fields:
            resolver = field.base_resolver
            reaches = resolver is not None and resolver.info_parameter is not None
            if of.name in _ROOTS or reaches:
                name = schema.config.name_converter.get_graphql_name(field)
                yield f"{of.name}.{name}"


def check_rules(schema: strawberry.Schema) -> None:
    """Let a schema pass whose fields all have a rule.

    Raises:
        LookupError: One has none, so that nobody decided who may ask for it.
    """
    ruled = {*map(field_of, RULES)}
    missing = sorted({*fields_that_need_a_rule(schema)} - ruled)
    if missing:
        raise LookupError(
            f"No rule says who may ask for {', '.join(missing)}: see schema/access.py"
        )
