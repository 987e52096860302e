"""The audit log in the API: every mutation is noted in it, and administrators read it."""

# Strawberry types its decorators as Any when they take only keywords.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import datetime
from enum import Enum
from typing import Any, Final

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver
from strawberry.types import Info
from strawberry.utils.str_converters import to_camel_case

from resolvers import auditing
from resolvers.auditing import HIDDEN, MAX_CHARACTERS, AuditNote, origin_of
from resolvers.errors import BadInput
from schema import global_ids
from schema.access import RULES
from schema.costs import ListSize
from schema.enums import ErrorCode, error_code
from schema.types import Node, PageInfo
from storage import audit
from storage.audit import AuditDraft, AuditOutcome

_INPUT: Final = "input"
_SHOWN: Final = frozenset(
    {
        "accept_drop",
        "account_id",
        "decision_id",
        "disabled",
        "ending",
        "ends_at",
        "expected_model_version",
        "expected_overlap",
        "expected_revision",
        "id",
        "keep_apart",
        "link_above",
        "notify",
        "platform",
        "provider_id",
        "provider_ids",
        "role",
        "section_id",
        "source_role",
        "starts_at",
        "subject",
    }
)
"""Arguments whose values are kept. Any other may hold a secret or a person's data."""

_GLOBAL_IDS: Final = ("enrollment_id", "user_id", "course_id", "match_id", "into_id")
_LISTS_OF_GLOBAL_IDS: Final = ("user_ids", "from_ids")
_ADDRESSES: Final = frozenset({"base_url"})


class Audited(FieldExtension):
    """Notes a mutation in the audit log: before anything is done, and what came of it."""

    async def resolve_async(
        self, next_: AsyncExtensionResolver, source: Any, info: Info[Any, Any], **kwargs: Any
    ) -> Any:
        """Carry the mutation out, surrounded by its entry."""
        context = info.context
        rule = RULES[f"Mutation.{info.field_name}"]
        if context.is_learners or context.audit is None:
            rule.check(context)  # learners are many, and none may: they are not worth an entry
            return await next_(source, info, **kwargs)
        given = dict(_given(kwargs))
        draft = AuditDraft(
            caller=context.access.key_id,
            subject=_subject_of(context.subjects),
            action=info.field_name,
            target=_target_of(given),
            arguments={to_camel_case(name): _shown(name, value) for name, value in given.items()},
            request_id=context.request_id,
        )
        async with context.audit.noting(draft) as note:
            rule.check(context)
            result = await next_(source, info, **kwargs)
            _take(note, result)
        return result


AUDITED: Final[list[FieldExtension]] = [Audited()]
"""What every mutation's ``extensions`` are."""


def _given(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every argument that was given; in the place of the input object its fields."""
    for name, value in arguments.items():
        if name == _INPUT:
            yield from _given({each.name: getattr(value, each.name) for each in fields(value)})
        elif value is not None and value is not strawberry.UNSET:
            yield name, value


def _shown(name: str, value: object) -> str:
    if name in _GLOBAL_IDS:
        return _named(str(value)) or HIDDEN
    if name in _LISTS_OF_GLOBAL_IDS and isinstance(value, list):
        return ",".join(_named(str(each)) or HIDDEN for each in value)[:MAX_CHARACTERS]
    if name in _ADDRESSES:
        return origin_of(str(value))
    if name not in _SHOWN:
        return HIDDEN
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, Enum):
        value = value.value
    return str(value)[:MAX_CHARACTERS]


def _target_of(given: Mapping[str, Any]) -> str | None:
    for name in _GLOBAL_IDS:
        if name in given:
            return _named(str(given[name]))
    provider_id = given.get("provider_id")
    return None if provider_id is None else f"provider:{provider_id}"[:MAX_CHARACTERS]


def _named(text: str) -> str | None:
    """Return what a global id says, as the log writes it; ``None`` for one that is none."""
    try:
        found = global_ids.decode(text, argument="id")
    except BadInput:
        return None
    parts = [found.type_name.lower(), found.provider_id, *([found.local_id] * bool(found.local_id))]
    return ":".join(parts)[:MAX_CHARACTERS]


def _subject_of(subjects: Mapping[str, str]) -> str | None:
    return ",".join(f"user:{key}:{value}" for key, value in sorted(subjects.items())) or None


def _take(note: AuditNote, result: object) -> None:
    """Note what a mutation answered: a refusal has a code, anything else what was changed."""
    code = getattr(result, "code", None)
    if isinstance(code, ErrorCode):
        note.refused(code.value, retryable=getattr(result, "retryable", False))
        return
    nodes = (getattr(result, name, None) for name in ("enrollment", "user", "provider", "person"))
    changed = next((node for node in nodes if isinstance(node, Node)), None)
    note.done(target=None if changed is None else _named(changed.encoded_id))


@strawberry.type(description="Something given to a mutation, as the audit log keeps it.")
class AuditArgument:
    """Something given to a mutation."""

    name: str = strawberry.field(description="Of the argument or input field.")
    value: str = strawberry.field(
        description="As it was given; *** for what may be a secret or a person's data."
    )


strawberry.enum(AuditOutcome, description="What came of something in the audit log.")
_outcome: Any = AuditOutcome.__strawberry_definition__  # type: ignore[attr-defined]  # put there by strawberry.enum
for _value in _outcome.values:
    _value.description = {
        "BEGUN": "Not known: it is under way, the gateway was stopped, the caller hung up, or"
        " something unexpected happened.",
        "DONE": "It was carried out.",
        "REFUSED": "Nothing was changed.",
        "FAILED": "A provider failed on the way; it may have been carried out all the same.",
    }[_value.name]


@strawberry.type(description="One mutation, or one change of a key, in the audit log.")
class AuditEdge:
    """One entry of the audit log."""

    cursor: str = strawberry.field(description="What to give as after for what comes behind it.")
    at: datetime = strawberry.field(description="When it was begun.")
    caller: str = strawberry.field(
        description="Id of the API key; or bootstrap, dev, command-line, callback, or jwt: and a"
        " hash of who the token is for."
    )
    subject: str | None = strawberry.field(
        description="The users it was done for; null for the organisation."
    )
    action: str = strawberry.field(
        description="The mutation's name, or createKey, replaceKey, revokeKey and the like."
    )
    target: str | None = strawberry.field(
        description="What was changed, such as provider:1, user:1:42 or key:abcd1234; null when"
        " nothing was named."
    )
    arguments: list[AuditArgument] = strawberry.field(
        directives=[ListSize(assumed_size=10)], description="What was given."
    )
    outcome: AuditOutcome = strawberry.field(description="What came of it.")
    code: ErrorCode | None = strawberry.field(
        description="Why it was REFUSED or FAILED; null when it was not."
    )
    request_id: str | None = strawberry.field(
        description="As in the answer's X-Request-ID and in the log; null on the command line."
    )

    @classmethod
    def from_record(cls, cursor: str, record: audit.AuditEntry) -> AuditEdge:
        """Build the type from its record."""
        return cls(
            cursor=cursor,
            at=record.at,
            caller=record.caller,
            subject=record.subject,
            action=record.action,
            target=record.target,
            arguments=[
                AuditArgument(name=name, value=value) for name, value in record.arguments.items()
            ],
            outcome=record.outcome,
            code=error_code(record.code),
            request_id=record.request_id,
        )


@strawberry.type(description="A page of the audit log, oldest first.")
class AuditConnection:
    """A page of the audit log."""

    edges: list[AuditEdge] = strawberry.field(description="The entries of this page, in order.")
    page_info: PageInfo = strawberry.field(description="Where this page lies in the log.")

    @classmethod
    def from_record(cls, record: auditing.AuditPage, *, after: str | None) -> AuditConnection:
        """Build the type from its record."""
        edges = [AuditEdge.from_record(cursor, entry) for cursor, entry in record.entries]
        return cls(
            edges=edges,
            page_info=PageInfo(
                has_next_page=record.has_next,
                has_previous_page=after is not None,
                start_cursor=edges[0].cursor if edges else None,
                end_cursor=edges[-1].cursor if edges else after,
            ),
        )
