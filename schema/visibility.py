"""How much of the schema a key is shown: all of it with the scope ``introspect``, else nothing.

A key without it gets no introspection and no suggestion of names it did not write itself.
"""

from __future__ import annotations

import re
from typing import Final

from graphql import GraphQLError

from resolvers.context import Access, Scope
from resolvers.errors import Forbidden

# A name is written out in a document or it is not in it: what lacks both words asks for neither.
_INTROSPECTION: Final = re.compile(r"\b__(?:schema|type)\b")
_SUGGESTION: Final = re.compile(r" Did you mean [^?]*\?")


def check_introspection(document: str, access: Access) -> None:
    """Let a document pass that does not ask for the schema, or may.

    Raises:
        Forbidden: It does, and may not.
    """
    if not sees_schema(access) and _INTROSPECTION.search(document):
        raise Forbidden(f"Introspection needs a key with the scope {Scope.INTROSPECT}")


def sees_schema(access: Access) -> bool:
    """Whether a caller is shown the schema."""
    return access.allows(Scope.INTROSPECT)


def without_suggestion(error: GraphQLError) -> GraphQLError:
    """Return what GraphQL objects to a document, without names that the document does not hold."""
    if "Did you mean" not in error.message:
        return error
    return GraphQLError(
        suggestionless(error.message),
        nodes=error.nodes,
        source=error.source,
        positions=error.positions,
    )


def suggestionless(message: str) -> str:
    """Return a message of GraphQL's without its suggestion."""
    return _SUGGESTION.sub("", message)
