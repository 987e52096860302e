"""Input types of the API, each read into the record the resolvers take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import strawberry

from resolvers import roster
from resolvers.context import ProviderChanges, ProviderDraft
from resolvers.errors import BadInput
from resolvers.loaders import ExternalKey
from resolvers.roster import CourseOrderField, EnrollmentOrderField, UserOrderField
from schema import global_ids
from schema.enums import OrderDirection
from storage.credentials import Secret
from storage.records import (
    CourseKind,
    CourseState,
    EnrollmentSource,
    EnrollmentState,
    RoleValue,
)

T = TypeVar("T")

_PROVIDER_IDS = (
    "Only these providers, by the product's own ids; null for all that are not disabled."
)
_ANY_OF = "Any of these; null for all."


@strawberry.input(
    description="Which users. Conditions all have to hold; an empty list lets nothing through."
)
class UserFilter:
    """Which users."""

    provider_ids: list[strawberry.ID] | None = strawberry.field(
        default=None, description=_PROVIDER_IDS
    )
    user_ids: list[strawberry.ID] | None = strawberry.field(
        default=None, description="Only these users, by global id; null for all."
    )
    usernames: list[str] | None = strawberry.field(
        default=None, description="Only these usernames, compared exactly; null for all."
    )
    search: str | None = strawberry.field(
        default=None,
        description="Part of display name or username, blind to case and accents.",
    )
    roles: list[RoleValue] | None = strawberry.field(default=None, description=_ANY_OF)
    active: bool | None = strawberry.field(
        default=None, description="Only accounts that can, or cannot, be used; null for all."
    )

    @staticmethod
    def record_of(given: UserFilter | None) -> roster.UserFilter:
        """Return the filter as the resolvers take it.

        Raises:
            BadInput: A global id is none.
        """
        if given is None:
            return roster.ANY_USER
        return roster.UserFilter(
            provider_ids=_tuple_of(given.provider_ids),
            user_ids=_keys_of(given.user_ids, global_ids.USER, "filter.userIds"),
            usernames=_tuple_of(given.usernames),
            search=given.search,
            roles=_tuple_of(given.roles),
            active=given.active,
        )


@strawberry.input(
    description="Which courses. Conditions all have to hold; an empty list lets nothing through."
)
class CourseFilter:
    """Which courses."""

    provider_ids: list[strawberry.ID] | None = strawberry.field(
        default=None, description=_PROVIDER_IDS
    )
    kinds: list[CourseKind] | None = strawberry.field(default=None, description=_ANY_OF)
    states: list[CourseState] | None = strawberry.field(default=None, description=_ANY_OF)
    search: str | None = strawberry.field(
        default=None,
        description="Part of title or course code, blind to case and accents.",
    )

    @staticmethod
    def record_of(given: CourseFilter | None) -> roster.CourseFilter:
        """Return the filter as the resolvers take it."""
        if given is None:
            return roster.ANY_COURSE
        return roster.CourseFilter(
            provider_ids=_tuple_of(given.provider_ids),
            kinds=_tuple_of(given.kinds),
            states=_tuple_of(given.states),
            search=given.search,
        )


@strawberry.input(
    description="Which enrollments. Conditions all have to hold; an empty list lets nothing"
    " through. Naming users or courses is much cheaper than not."
)
class EnrollmentFilter:
    """Which enrollments."""

    provider_ids: list[strawberry.ID] | None = strawberry.field(
        default=None, description=_PROVIDER_IDS
    )
    user_ids: list[strawberry.ID] | None = strawberry.field(
        default=None, description="Only of these users, by global id; null for all."
    )
    course_ids: list[strawberry.ID] | None = strawberry.field(
        default=None, description="Only in these courses, by global id; null for all."
    )
    roles: list[RoleValue] | None = strawberry.field(default=None, description=_ANY_OF)
    states: list[EnrollmentState] | None = strawberry.field(default=None, description=_ANY_OF)
    sources: list[EnrollmentSource] | None = strawberry.field(default=None, description=_ANY_OF)

    @staticmethod
    def record_of(given: EnrollmentFilter | None) -> roster.EnrollmentFilter:
        """Return the filter as the resolvers take it.

        Raises:
            BadInput: A global id is none.
        """
        if given is None:
            return roster.ANY_ENROLLMENT
        return roster.EnrollmentFilter(
            provider_ids=_tuple_of(given.provider_ids),
            user_ids=_keys_of(given.user_ids, global_ids.USER, "filter.userIds"),
            course_ids=_keys_of(given.course_ids, global_ids.COURSE, "filter.courseIds"),
            roles=_tuple_of(given.roles),
            states=_tuple_of(given.states),
            sources=_tuple_of(given.sources),
        )


@strawberry.input(
    description="Order of users. Any but PROVIDER ascending reads the whole lists of providers"
    " that do not sort by themselves."
)
class UserOrder:
    """Order of users."""

    field: UserOrderField = strawberry.field(
        default=UserOrderField.PROVIDER, description="By what."
    )
    direction: OrderDirection = strawberry.field(
        default=OrderDirection.ASC, description="Which end comes first."
    )


@strawberry.input(
    description="Order of courses. Any but PROVIDER ascending reads the whole lists of providers"
    " that do not sort by themselves; with totalCount, of all."
)
class CourseOrder:
    """Order of courses."""

    field: CourseOrderField = strawberry.field(
        default=CourseOrderField.PROVIDER, description="By what."
    )
    direction: OrderDirection = strawberry.field(
        default=OrderDirection.ASC, description="Which end comes first."
    )


@strawberry.input(
    description="Order of enrollments. Any but PROVIDER ascending reads all that the filter's"
    " userIds or courseIds name, or else the providers' whole lists."
)
class EnrollmentOrder:
    """Order of enrollments."""

    field: EnrollmentOrderField = strawberry.field(
        default=EnrollmentOrderField.PROVIDER, description="By what."
    )
    direction: OrderDirection = strawberry.field(
        default=OrderDirection.ASC, description="Which end comes first."
    )


@strawberry.input(description="A named value.")
class NamedValue:
    """A named value."""

    name: str = strawberry.field(description="As the platform's page in the documentation says.")
    value: str = strawberry.field(description="The value.")


@strawberry.input(description="How the gateway logs in. Sealed when stored and never shown again.")
class CredentialsInput:
    """How the gateway logs in."""

    username: str | None = strawberry.field(
        default=None, description="Short for the value named username."
    )
    password: str | None = strawberry.field(
        default=None, description="Short for the value named password."
    )
    api_key: str | None = strawberry.field(
        default=None, description="Short for the value named api_key."
    )
    values: list[NamedValue] | None = strawberry.field(
        default=None, description="Whatever else the platform asks for."
    )

    def sealed(self) -> Secret[Mapping[str, str]]:
        """Return the values under their names.

        Raises:
            BadInput: A name is given twice.
        """
        short = {
            "username": self.username,
            "password": self.password,
            "api_key": self.api_key,
        }
        values = {name: value for name, value in short.items() if value is not None}
        return Secret(_named(self.values, "input.credentials.values", values))


@strawberry.input(description="A provider to be registered.")
class RegisterProviderInput:
    """A provider to be registered."""

    provider_id: strawberry.ID = strawberry.field(
        description="The product's own id for it: 1 to 64 letters, digits, - or _."
    )
    platform: str = strawberry.field(description="Kind of software, in lower case: kolibri.")
    name: str | None = strawberry.field(
        default=None, description="For a person; null for what the installation calls itself."
    )
    base_url: str = strawberry.field(description="Where it is reached, http or https.")
    account_id: str | None = strawberry.field(
        default=None,
        description="Which part of the installation is meant (Kolibri: the facility id).",
    )
    options: list[NamedValue] | None = strawberry.field(
        default=None, description="Settings the platform understands."
    )
    credentials: CredentialsInput = strawberry.field(description="How the gateway logs in.")

    def record(self) -> ProviderDraft:
        """Return the draft the registration takes.

        Raises:
            BadInput: A name is given twice.
        """
        return ProviderDraft(
            id=self.provider_id,
            platform=self.platform,
            name=self.name,
            base_url=self.base_url,
            account_id=self.account_id,
            options=_named(self.options, "input.options"),
            credentials=self.credentials.sealed(),
        )


@strawberry.input(description="Changes to a provider; null leaves as it is.")
class UpdateProviderInput:
    """Changes to a provider."""

    provider_id: strawberry.ID = strawberry.field(description="The product's own id for it.")
    name: str | None = strawberry.field(default=None, description="For a person.")
    base_url: str | None = strawberry.field(default=None, description="Where it is reached.")
    account_id: str | None = strawberry.field(
        default=None, description="Which part of the installation is meant; empty for none."
    )
    options: list[NamedValue] | None = strawberry.field(
        default=None, description="Replaces all options."
    )
    credentials: CredentialsInput | None = strawberry.field(
        default=None,
        description="Those given take the place of the stored ones; the gateway logs in with them"
        " at once.",
    )
    disabled: bool | None = strawberry.field(
        default=None, description="True stops every call to it, false starts them again."
    )
    expected_revision: int | None = strawberry.field(
        default=None, description="Refuse when the provider is at another revision."
    )

    def record(self) -> ProviderChanges:
        """Return the changes the registration takes.

        Raises:
            BadInput: A name is given twice.
        """
        return ProviderChanges(
            name=self.name,
            base_url=self.base_url,
            account_id=self.account_id,
            options=None if self.options is None else _named(self.options, "input.options"),
            credentials=None if self.credentials is None else self.credentials.sealed(),
            disabled=self.disabled,
            expected_revision=self.expected_revision,
        )


def _tuple_of(given: Sequence[T] | None) -> tuple[T, ...] | None:
    return None if given is None else tuple(given)


def _keys_of(
    given: Sequence[strawberry.ID] | None, type_name: str, argument: str
) -> tuple[ExternalKey, ...] | None:
    if given is None:
        return None
    found = (
        global_ids.decode(text, argument=f"{argument}[{index}]", type_name=type_name)
        for index, text in enumerate(given)
    )
    return tuple((key.provider_id, key.local_id) for key in found)


def _named(
    given: Sequence[NamedValue] | None, argument: str, values: Mapping[str, str] | None = None
) -> dict[str, str]:
    named = dict(values or {})
    for entry in given or ():
        if entry.name in named:
            raise BadInput(argument, f"{entry.name} is given twice")
        named[entry.name] = entry.value
    return named
