"""What can be changed: the fields of ``Mutation``. Expected refusals are part of the result."""

# Strawberry types its decorators as Any when they take only keywords.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import strawberry

from resolvers import authorizing, importing
from resolvers import context as contexts
from resolvers.context import RequestContext, Scope
from schema import global_ids
from schema.auditing import AUDITED
from schema.costs import ListSize
from schema.enums import ErrorCode, error_code
from schema.imports import ImportRequested, ImportRun, RefreshProviderInput
from schema.inputs import RegisterProviderInput, UpdateProviderInput
from schema.people import PeopleMutation
from schema.roster_mutations import RosterMutation
from schema.types import GatewayInfo, Provider
from storage import records

_PROVIDER_ID = "The product's own id for the provider."


@strawberry.type(description="A provider as it is after the change.")
class ProviderPayload:
    """A provider as it is after the change."""

    provider: Provider = strawberry.field(description="The provider.")


@strawberry.type(description="Why nothing was changed.")
class ProviderRefused:
    """Why nothing was changed."""

    code: ErrorCode = strawberry.field(description="For logic.")
    message: str = strawberry.field(description="For a person: exactly what failed.")
    field: str | None = strawberry.field(
        description="The input at fault, such as baseUrl or credentials.password; null when"
        " none is."
    )
    retryable: bool = strawberry.field(description="Whether the same request may succeed later.")

    @classmethod
    def from_record(cls, record: contexts.Refusal) -> ProviderRefused:
        """Build the type from its record."""
        return cls(
            code=error_code(record.code) or ErrorCode.INTERNAL,
            message=record.message,
            field=None if record.field is None else _as_in_the_api(record.field),
            retryable=record.retryable,
        )


@strawberry.type(description="A provider that was removed, with everything kept of it.")
class ProviderRemoved:
    """A provider that was removed."""

    provider_id: strawberry.ID = strawberry.field(description=_PROVIDER_ID)


@strawberry.type(description="What a check of a provider found.")
class ProviderChecked:
    """What a check of a provider found."""

    provider: Provider = strawberry.field(description="The provider as it is after the check.")
    version: str = strawberry.field(description="Software version it reports.")
    name: str = strawberry.field(description="What the installation calls itself.")
    account: str = strawberry.field(description="What the account may see, for a person.")
    missing: list[str] = strawberry.field(
        directives=[ListSize(assumed_size=5)],
        description="Permissions the account lacks, each with its consequence.",
    )

    @classmethod
    def from_record(cls, record: contexts.ProviderCheckReport) -> ProviderChecked:
        """Build the type from its record."""
        return cls(
            provider=Provider.from_record(record.provider),
            version=record.version,
            name=record.name,
            account=record.account,
            missing=list(record.missing),
        )


@strawberry.type(description="A session that was ended.")
class SessionRevoked:
    """A session that was ended."""

    provider_id: strawberry.ID = strawberry.field(description=_PROVIDER_ID)
    subject: str = strawberry.field(description="On whose behalf it was held.")


@strawberry.input(description="Who is to let the gateway act for them.")
class BeginAuthorizationInput:
    """Who is to let the gateway act for them."""

    provider_id: strawberry.ID = strawberry.field(description=_PROVIDER_ID)
    user_id: strawberry.ID | None = strawberry.field(
        default=None,
        description="Global id of the provider's user whose consent is wanted; anybody else's is"
        " then not accepted. Null for whoever opens the address.",
    )

    def user(self) -> tuple[str, str] | None:
        """Return provider and external id of the user, if one is named.

        Raises:
            BadInput: It is no user's id.
        """
        if self.user_id is None:
            return None
        found = global_ids.decode(self.user_id, argument="input.userId", type_name=global_ids.USER)
        return found.provider_id, found.local_id


@strawberry.type(description="Where a user lets the gateway act for them.")
class AuthorizationBegun:
    """Where a user lets the gateway act for them."""

    authorization_url: str = strawberry.field(
        description="To be opened in the user's browser, which is sent to the provider and back."
        " It can be opened any number of times, and nothing is kept until it is."
    )
    expires_at: datetime = strawberry.field(description="Until when it can be opened.")

    @classmethod
    def from_record(cls, record: contexts.AuthorizationLink) -> AuthorizationBegun:
        """Build the type from its record."""
        return cls(authorization_url=record.url, expires_at=record.expires_at)


ProviderResult = Annotated[
    ProviderPayload | ProviderRefused,
    strawberry.union("ProviderResult", description="The changed provider, or why not."),
]
RemoveProviderResult = Annotated[
    ProviderRemoved | ProviderRefused,
    strawberry.union("RemoveProviderResult", description="What was removed, or why not."),
]
CheckProviderResult = Annotated[
    ProviderChecked | ProviderRefused,
    strawberry.union("CheckProviderResult", description="What was found, or what failed."),
]
RevokeSessionResult = Annotated[
    SessionRevoked | ProviderRefused,
    strawberry.union("RevokeSessionResult", description="What was ended, or why not."),
]
RefreshProviderResult = Annotated[
    ImportRequested | ProviderRefused,
    strawberry.union("RefreshProviderResult", description="The import, or why there is none."),
]
BeginAuthorizationResult = Annotated[
    AuthorizationBegun | ProviderRefused,
    strawberry.union("BeginAuthorizationResult", description="Where to send the user, or why not."),
]


@strawberry.type(
    description="What can be changed. Needs the scope write:providers, unless another is named."
)
class Mutation(RosterMutation, PeopleMutation):
    """What can be changed."""

    @strawberry.mutation(
        extensions=AUDITED,
        description="Reach a provider, log in and store it. One of the same id is replaced.",
    )
    async def register_provider(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            RegisterProviderInput, strawberry.argument(description="The provider.")
        ],
    ) -> ProviderResult:
        """Register a provider."""
        context = info.context
        context.require(Scope.WRITE_PROVIDERS)
        if not context.access.sees(input.provider_id):
            return _NOT_FOUND
        return _result(context, await context.registration.register(input.record()))

    @strawberry.mutation(
        extensions=AUDITED,
        description="Change a provider. New credentials or a new address are tried first; a"
        " session waiting for new credentials is cured.",
    )
    async def update_provider(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            UpdateProviderInput, strawberry.argument(description="The changes.")
        ],
    ) -> ProviderResult:
        """Change a provider."""
        context = info.context
        context.require(Scope.WRITE_PROVIDERS)
        if not context.access.sees(input.provider_id):
            return _NOT_FOUND
        changed = await context.registration.update(input.provider_id, input.record())
        return _result(context, changed)

    @strawberry.mutation(
        extensions=AUDITED, description="Log out of a provider and forget everything kept of it."
    )
    async def remove_provider(
        self,
        info: GatewayInfo,
        provider_id: Annotated[strawberry.ID, strawberry.argument(description=_PROVIDER_ID)],
    ) -> RemoveProviderResult:
        """Remove a provider."""
        context = info.context
        context.require(Scope.WRITE_PROVIDERS)
        seen = context.access.sees(provider_id)
        if not seen or not await context.registration.remove(provider_id):
            return _NOT_FOUND
        context.forget_providers()
        return ProviderRemoved(provider_id=provider_id)

    @strawberry.mutation(
        extensions=AUDITED, description="Reach a provider, read its version and log in, now."
    )
    async def check_provider(
        self,
        info: GatewayInfo,
        provider_id: Annotated[strawberry.ID, strawberry.argument(description=_PROVIDER_ID)],
    ) -> CheckProviderResult:
        """Check a provider."""
        context = info.context
        context.require(Scope.WRITE_PROVIDERS)
        if not context.access.sees(provider_id):
            return _NOT_FOUND
        found = await context.registration.check(provider_id)
        context.forget_providers()
        if isinstance(found, contexts.Refusal):
            return ProviderRefused.from_record(found)
        return ProviderChecked.from_record(found)

    @strawberry.mutation(
        extensions=AUDITED,
        description="Import a provider now: read it whole, keep it, and tell what changed. While an"
        " import of it is under way, that one is given.",
    )
    async def refresh_provider(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            RefreshProviderInput, strawberry.argument(description="Which provider.")
        ],
    ) -> RefreshProviderResult:
        """Import a provider."""
        found = await importing.refresh(
            info.context, input.provider_id, accept_drop=input.accept_drop
        )
        if isinstance(found, contexts.Refusal):
            return ProviderRefused.from_record(found)
        run, already = found
        return ImportRequested(run=ImportRun.from_record(run), already_under_way=already)

    @strawberry.mutation(
        extensions=AUDITED, description="End a session and log out; the next query logs in again."
    )
    async def revoke_session(
        self,
        info: GatewayInfo,
        provider_id: Annotated[strawberry.ID, strawberry.argument(description=_PROVIDER_ID)],
        subject: Annotated[
            str,
            strawberry.argument(
                description="On whose behalf: service, or user: and a user's external id. A user's"
                " grant is ended at the provider too; they have to sign in again."
            ),
        ] = "service",
    ) -> RevokeSessionResult:
        """End a session."""
        context = info.context
        context.require(Scope.WRITE_PROVIDERS)
        seen = context.access.sees(provider_id)
        if not seen or not await context.registration.revoke(provider_id, subject):
            return _NO_SESSION
        return SessionRevoked(provider_id=provider_id, subject=subject)

    @strawberry.mutation(
        extensions=AUDITED,
        description="Make an address at which a user lets the gateway act for them, for the first"
        " time or again. Needs the scope act:users instead of write:providers.",
    )
    async def begin_authorization(
        self,
        info: GatewayInfo,
        input: Annotated[  # noqa: A002 - Relay's name
            BeginAuthorizationInput, strawberry.argument(description="The provider and the user.")
        ],
    ) -> BeginAuthorizationResult:
        """Make an address for a user to open."""
        context = info.context
        context.require(Scope.ACT_AS_USERS)
        begun = await authorizing.begin_authorization(context, input.provider_id, input.user())
        if isinstance(begun, contexts.Refusal):
            return ProviderRefused.from_record(begun)
        return AuthorizationBegun.from_record(begun)


_NOT_FOUND = ProviderRefused(
    code=ErrorCode.PROVIDER_NOT_FOUND,
    message="No such provider is registered",
    field="providerId",
    retryable=False,
)
_NO_SESSION = ProviderRefused(
    code=ErrorCode.PROVIDER_NOT_FOUND,
    message="The gateway holds no such session",
    field="providerId",
    retryable=False,
)


def _result(
    context: RequestContext, found: records.Provider | contexts.Refusal
) -> ProviderPayload | ProviderRefused:
    context.forget_providers()
    if isinstance(found, contexts.Refusal):
        return ProviderRefused.from_record(found)
    return ProviderPayload(provider=Provider.from_record(found))


def _as_in_the_api(name: str) -> str:
    """Return ``base_url`` as ``baseUrl``; ``credentials.api_key`` as ``credentials.apiKey``."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)
