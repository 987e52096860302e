"""Global ids: opaque to callers, exact for every external id a provider may give."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resolvers.errors import BadInput
from storage.people import Pair

USER = "User"
COURSE = "Course"
ENROLLMENT = "Enrollment"
PROVIDER = "Provider"
PERSON = "Person"
USER_MATCH = "UserMatch"

ON_BEHALF_OF = "On-Behalf-Of"
"""The header that names the users a request acts for."""

_NOT_OURS = "This is not an id the gateway gave"
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_MAX_SUBJECTS = 20
_MAX_SUBJECT_CHARACTERS = 255
_TYPE_NAMES = frozenset({USER, COURSE, ENROLLMENT, PROVIDER, PERSON, USER_MATCH})


@dataclass(frozen=True, slots=True)
class GlobalId:
    """What a global id says.

    Attributes:
        type_name: GraphQL type of the object.
        provider_id: Whose object it is; of a person, who is nobody's, its own id.
        local_id: Its id within the provider; empty for the provider itself, and for a person.
    """

    type_name: str
    provider_id: str
    local_id: str = ""

    def encode(self) -> str:
        """Return the id as callers see it."""
        return encoded(self.type_name, self.provider_id, self.local_id)


def encoded(type_name: str, provider_id: str, local_id: str = "") -> str:
    """Return the id of what ``GlobalId`` says; every row of an answer may need one."""
    text = f"{type_name}:{provider_id}:{local_id}".encode("utf-8", "surrogatepass")
    return binascii.b2a_base64(text, newline=False).translate(_URL_SAFE, b"=").decode()


def decode(text: str, *, argument: str, type_name: str | None = None) -> GlobalId:
    """Return what a global id says.

    Args:
        text: The id as the caller gave it.
        argument: Where it was given, for the error.
        type_name: The type it must be of, if only one will do.

    Raises:
        BadInput: It is none of the gateway's ids, or of another type.
    """
    parts = _decoded(text).split(":", 2)
    if len(parts) != 3 or parts[0] not in _TYPE_NAMES or not parts[1]:  # noqa: PLR2004 - type:provider:id
        raise BadInput(argument, _NOT_OURS)
    found = GlobalId(*parts)
    if type_name is not None and found.type_name != type_name:
        raise BadInput(argument, f"This is the id of a {found.type_name}, not of a {type_name}")
    return found


def read_subjects(headers: Sequence[str]) -> Mapping[str, str]:
    """Return external ids of users by provider id, as the header ``On-Behalf-Of`` gives them.

    Args:
        headers: The header's values, each a list of global ids with commas between; none at all
            for a request that acts for the organisation.

    Raises:
        BadInput: One is not the id of a user, two are of one provider, or they are too many.
    """
    given = [text for header in headers for part in header.split(",") if (text := part.strip())]
    if headers and not given:
        raise BadInput(ON_BEHALF_OF, "The global id of a user is needed here; or leave it out")
    if len(given) > _MAX_SUBJECTS:
        raise BadInput(ON_BEHALF_OF, f"{len(given)} users are too many, at most {_MAX_SUBJECTS}")
    subjects: dict[str, str] = {}
    for text in given:
        user = decode(text, argument=ON_BEHALF_OF, type_name=USER)
        if not _can_be_acted_for(user.local_id):
            raise BadInput(ON_BEHALF_OF, _NOT_OURS)
        if user.provider_id in subjects:
            raise BadInput(ON_BEHALF_OF, "Two of the users are of one provider; name one of each")
        subjects[user.provider_id] = user.local_id
    return subjects


def enrollment_id(provider_id: str, user_id: str, local_id: str) -> GlobalId:
    """Return the global id of an enrollment, which names its user: that is how it is found."""
    return GlobalId(ENROLLMENT, provider_id, f"{len(user_id)}:{user_id}{local_id}")


def enrollment_parts(found: GlobalId, *, argument: str) -> tuple[str, str]:
    """Return user id and the enrollment's own id from an enrollment's global id.

    Raises:
        BadInput: It does not hold them.
    """
    length, colon, rest = found.local_id.partition(":")
    if not colon or not length.isascii() or not length.isdigit() or len(length) > 6:  # noqa: PLR2004 - no id is that long
        raise BadInput(argument, _NOT_OURS)
    return rest[: int(length)], rest[int(length) :]


def match_id(pair: Pair) -> GlobalId:
    """Return the global id of two accounts of different providers together."""
    (provider_id, one), (other_provider_id, other) = pair
    return GlobalId(USER_MATCH, provider_id, f"{len(one)}:{one}{other_provider_id}:{other}")


def match_parts(found: GlobalId, *, argument: str) -> Pair:
    """Return the two accounts that a match is about.

    Raises:
        BadInput: It does not hold them.
    """
    one, rest = enrollment_parts(found, argument=argument)
    other_provider_id, colon, other = rest.partition(":")
    if not colon or not other_provider_id or found.provider_id >= other_provider_id:
        raise BadInput(argument, _NOT_OURS)
    return (found.provider_id, one), (other_provider_id, other)


def _can_be_acted_for(user_id: str) -> bool:
    """Whether a session can be kept under the id: no provider has others, but anybody can write."""
    return 0 < len(user_id) <= _MAX_SUBJECT_CHARACTERS and user_id.isprintable()


def _decoded(text: str) -> str:
    """Return the text inside, or nothing for what no id encodes to."""
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        inside = raw.decode("utf-8", "surrogatepass")
    except (ValueError, binascii.Error):
        return ""
    # One object has one id: no padding, spare bits or ignored characters.
    return inside if urlsafe_b64encode(raw).rstrip(b"=").decode() == text else ""
