"""Enumerations of the API: those of the records, described, and the error codes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum

import strawberry
from strawberry.types.enum import StrawberryEnumDefinition

from resolvers.paging import SourceState
from resolvers.roster import CourseOrderField, EnrollmentOrderField, UserOrderField
from sessions.base import Capability
from sessions.resilience import BreakerState
from storage.imports import ChangeType, ImportState, RosterKind
from storage.records import (
    CourseKind,
    CourseState,
    DataSource,
    EnrollmentSource,
    EnrollmentState,
    Gender,
    IdentifierType,
    MilestoneState,
    ProgressMethod,
    ProviderState,
    RoleValue,
    SessionState,
)


class ErrorCode(StrEnum):
    """Stable codes in ``extensions.code`` of errors and in refusals."""

    PROVIDER_NOT_FOUND = "PROVIDER_NOT_FOUND"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    PROVIDER_TIMEOUT = "PROVIDER_TIMEOUT"
    PROVIDER_RATE_LIMITED = "PROVIDER_RATE_LIMITED"
    PROVIDER_AUTH_FAILED = "PROVIDER_AUTH_FAILED"
    REAUTH_REQUIRED = "REAUTH_REQUIRED"
    PROVIDER_FORBIDDEN = "PROVIDER_FORBIDDEN"
    PROVIDER_BAD_RESPONSE = "PROVIDER_BAD_RESPONSE"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    BAD_INPUT = "BAD_INPUT"
    NOT_FOUND = "NOT_FOUND"
    CONFLICT = "CONFLICT"
    BAD_MEDIA = "BAD_MEDIA"
    REQUEST_LIMIT_EXCEEDED = "REQUEST_LIMIT_EXCEEDED"
    DOCUMENT_NOT_FOUND = "DOCUMENT_NOT_FOUND"
    DOCUMENT_NOT_TRUSTED = "DOCUMENT_NOT_TRUSTED"
    PERSISTED_QUERY_NOT_FOUND = "PERSISTED_QUERY_NOT_FOUND"
    GATEWAY_OVERLOADED = "GATEWAY_OVERLOADED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    INTERNAL = "INTERNAL"


def error_code(code: str | None) -> ErrorCode | None:
    """Return the code as the API has it; INTERNAL for one a platform made up."""
    if code is None:
        return None
    return ErrorCode(code) if code in ErrorCode.__members__ else ErrorCode.INTERNAL


class OrderDirection(StrEnum):
    """Which end of an order comes first."""

    ASC = "ASC"
    DESC = "DESC"


def _describe(enum: type[Enum], description: str, values: Mapping[str, str]) -> None:
    described = strawberry.enum(enum, description=description)
    definition: StrawberryEnumDefinition = described.__strawberry_definition__  # type: ignore[attr-defined]  # put there by strawberry.enum
    for value in definition.values:
        value.description = values[value.name]


_DESCRIPTIONS: dict[type[Enum], tuple[str, dict[str, str]]] = {
    ErrorCode: (
        "What went wrong. Branch on this, never on a message.",
        {
            "PROVIDER_NOT_FOUND": "No provider of that id, or the key may not see it.",
            "PROVIDER_UNAVAILABLE": "The provider was not reached or answered with a failure.",
            "PROVIDER_TIMEOUT": "The provider gave no complete answer in time.",
            "PROVIDER_RATE_LIMITED": "The provider asks to be left alone for a while.",
            "PROVIDER_AUTH_FAILED": "The provider refuses the stored credentials.",
            "REAUTH_REQUIRED": "Only new credentials or a new consent will help.",
            "PROVIDER_FORBIDDEN": "The account is logged in but lacks a permission.",
            "PROVIDER_BAD_RESPONSE": "The provider's answer is not what its platform promises.",
            "NOT_SUPPORTED": "The platform cannot do this.",
            "BAD_INPUT": "The document, a variable or an argument is wrong; the message says it.",
            "NOT_FOUND": "There is no person, match run or decision of that id, or the key may not"
            " see it.",
            "CONFLICT": "It does not go with what was decided before; nothing was changed.",
            "BAD_MEDIA": "A file is not what it claims to be, or too large.",
            "REQUEST_LIMIT_EXCEEDED": "The request would cost more than one request may.",
            "DOCUMENT_NOT_FOUND": "No registered document has the hash that was sent.",
            "DOCUMENT_NOT_TRUSTED": "Only registered documents are served, and this is none.",
            "PERSISTED_QUERY_NOT_FOUND": "The hash is not known: send it with the document.",
            "GATEWAY_OVERLOADED": "The gateway has too much to do; ask again after Retry-After.",
            "UNAUTHENTICATED": "The key is missing or not valid.",
            "FORBIDDEN": "The key lacks a scope, or this is not done on behalf of users; the"
            " message says which.",
            "INTERNAL": "A fault of the gateway, logged under the id in the message.",
        },
    ),
    OrderDirection: (
        "Which end of an order comes first.",
        {"ASC": "Smallest first.", "DESC": "Largest first."},
    ),
    UserOrderField: (
        "What users are ordered by.",
        {
            "PROVIDER": "Provider by provider in order of registration; the cheapest by far.",
            "DISPLAY_NAME": "By display name, blind to case and accents.",
            "USERNAME": "By username, blind to case and accents; users without one come last,"
            " whichever end comes first.",
            "MODIFIED": "By when the provider says they last changed (provenance.modifiedAt);"
            " users of whom it does not say come last, whichever end comes first.",
        },
    ),
    CourseOrderField: (
        "What courses are ordered by.",
        {
            "PROVIDER": "Provider by provider in order of registration; the cheapest by far.",
            "TITLE": "By title, blind to case and accents; courses of a provider that sorts"
            " by itself come in its own alphabet.",
            "MODIFIED": "By when the provider says they last changed (provenance.modifiedAt);"
            " courses of which it does not say come last, whichever end comes first.",
        },
    ),
    EnrollmentOrderField: (
        "What enrollments are ordered by.",
        {
            "PROVIDER": "Provider by provider in order of registration; the cheapest by far.",
            "MODIFIED": "By when the provider says they last changed (provenance.modifiedAt);"
            " enrollments of which it does not say come last, whichever end comes first.",
        },
    ),
    SourceState: (
        "How a provider took part in a list.",
        {
            "OK": "It answered, now or so lately that its answer is kept.",
            "STALE": "It did not; its rows are an earlier answer, see asOf.",
            "FAILED": "It did not; its rows are missing from this page.",
            "NOT_ASKED": "It was not needed for this page; its turn comes later.",
        },
    ),
    Capability: (
        "What a provider can be asked for.",
        {
            "USERS": "Users.",
            "COURSES": "Courses.",
            "ENROLLMENTS": "Enrollments.",
            "PROGRESS": "Progress of users in courses.",
            "ICONS": "Icons of courses.",
            "SECTIONS": "Sections of courses.",
            "MILESTONES": "What users have handed in and been given marks for.",
            "ACTIVITY": "What users did, one by one.",
            "USER_WRITES": "Creating users and logins.",
            "ENROLLMENT_WRITES": "Enrolling users and ending enrollments.",
        },
    ),
    RoleValue: (
        "A role, in the words of OneRoster 1.2.",
        {
            "STUDENT": "Learns.",
            "TEACHER": "Teaches and is responsible.",
            "TEACHING_ASSISTANT": "Helps to teach.",
            "AIDE": "Helps a learner.",
            "DESIGNER": "Makes the course.",
            "PROCTOR": "Watches over tests.",
            "OBSERVER": "Looks on.",
            "GUARDIAN": "Is responsible for a learner.",
            "ADMINISTRATOR": "Runs the installation or a part of it.",
            "MEMBER": "Belongs, with no more said.",
            "OTHER": "A role with no counterpart here; see its source value.",
        },
    ),
    Gender: (
        "A gender, in the words of OneRoster 1.2.",
        {
            "FEMALE": "Female.",
            "MALE": "Male.",
            "OTHER": "Another one.",
            "UNSPECIFIED": "The user chose not to say.",
        },
    ),
    CourseKind: (
        "What kind of thing users enroll in.",
        {
            "CLASS": "A group of learners with a roster, such as a Kolibri classroom.",
            "COURSE": "Something taught along a plan, such as a Canvas course.",
            "LIBRARY": "Content for one's own pace, such as a Kolibri channel.",
        },
    ),
    CourseState: (
        "Where a course is in its life.",
        {
            "TEMPLATE": "A model for courses to come.",
            "UPCOMING": "Not begun.",
            "ACTIVE": "Open.",
            "INACTIVE": "Closed for now, or not published.",
            "COMPLETED": "Over.",
            "ARCHIVED": "Put away.",
            "UNKNOWN": "The provider does not say, or in a word with no counterpart here.",
        },
    ),
    EnrollmentState: (
        "Where an enrollment is in its life.",
        {
            "ACTIVE": "In force.",
            "UPCOMING": "Not begun.",
            "PENDING": "Waits for somebody to agree.",
            "INACTIVE": "Suspended.",
            "COMPLETED": "Ended with the course done.",
            "DROPPED": "Ended before.",
            "UNKNOWN": "The provider does not say, or in a word with no counterpart here.",
        },
    ),
    EnrollmentSource: (
        "How the gateway knows of an enrollment.",
        {
            "ROSTER": "Somebody enrolled the user.",
            "ACTIVITY": "Derived from what the user did.",
        },
    ),
    ProgressMethod: (
        "Who worked out a progress.",
        {
            "REPORTED": "The provider.",
            "DERIVED": "The gateway, from finer records of the provider.",
        },
    ),
    MilestoneState: (
        "How far one piece of a user's work is.",
        {
            "OPEN": "Not handed in.",
            "SUBMITTED": "Handed in.",
            "IN_REVIEW": "Looked at; the marks are not final.",
            "GRADED": "Done, with its marks.",
            "EXCUSED": "The user need not do it.",
            "UNKNOWN": "The provider does not say, or in a word with no counterpart here.",
        },
    ),
    IdentifierType: (
        "What an identifier identifies.",
        {
            "SCHOOL_ID": "A number the school or site gives.",
            "SIS_ID": "An id in a student information system.",
            "STATE_ID": "A number an authority gives.",
            "USER_MASTER": "An id shared by all systems of an organisation.",
            "ORGANISATION": "An id an organisation gives.",
            "OTHER": "Anything else.",
        },
    ),
    DataSource: (
        "When the gateway read what it answers.",
        {
            "LIVE": "For this request.",
            "CACHE": "Earlier, and it is still fresh.",
            "STALE": "Earlier; something newer was wanted and could not be had.",
        },
    ),
    ProviderState: (
        "Where a provider is in its life.",
        {
            "PENDING": "Registered, and not yet reached.",
            "ACTIVE": "Reached, its version read, logged in.",
            "DISABLED": "Switched off by an operator; left out of lists unless named.",
        },
    ),
    BreakerState: (
        "Whether calls reach a provider.",
        {
            "CLOSED": "They do.",
            "OPEN": "It failed; calls are refused at once until it is tried again.",
            "HALF_OPEN": "One call is under way to find out whether it is back; all others are"
            " refused.",
        },
    ),
    SessionState: (
        "Where a session is in its life.",
        {
            "EMPTY": "Nobody has logged in yet.",
            "ACTIVE": "Logged in.",
            "REFRESHING": "Logging in or being prolonged at this moment.",
            "BACKOFF": "Failed, and tried again later by itself.",
            "REAUTH_REQUIRED": "Waits for new credentials.",
            "DISABLED": "Its provider is switched off.",
        },
    ),
    RosterKind: (
        "The lists of a provider.",
        {"USERS": "Its users.", "COURSES": "Its courses.", "ENROLLMENTS": "Its enrollments."},
    ),
    ImportState: (
        "Where an import is in its life.",
        {
            "QUEUED": "Asked for, and about to begin.",
            "RUNNING": "The provider is being read.",
            "HELD": "Read, and not applied: less than half of a list is left. The next import is"
            " applied when the provider shows more again, or when it is told to accept the drop.",
            "DONE": "Applied.",
            "FAILED": "The provider could not be read; nothing was changed.",
        },
    ),
    ChangeType: (
        "What an import found.",
        {
            "CREATED": "It is new.",
            "UPDATED": "It is not as it was.",
            "DELETED": "It is gone.",
        },
    ),
}

# As a decorator would, for enumerations defined elsewhere: before any type names them.
for _enum, (_description, _values) in _DESCRIPTIONS.items():
    _describe(_enum, _description, _values)
