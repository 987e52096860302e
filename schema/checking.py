"""What is wrong with a document, or soon will be, told to whoever writes documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import strawberry
from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    assert_valid_schema,
    build_schema,
    validate,
)
from graphql.validation import NoDeprecatedCustomRule

from resolvers.errors import RequestLimitExceeded
from schema.execution import GatewaySchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found, a line each; a place is source, line and column.

    Attributes:
        broken: Why the document would be refused.
        deprecated: What it uses that will be removed.
    """

    broken: Sequence[str]
    deprecated: Sequence[str]


class DocumentChecker:
    """Checks documents against a schema, and against the gateway's own limits.

    Args:
        schema: From ``build_schema``.
        sdl: Another schema, whose fields and types count instead of its own.

    Raises:
        GraphQLError: The other schema is not SDL.
        TypeError: It is no schema.
    """

    def __init__(self, schema: strawberry.Schema, sdl: str | None = None) -> None:
        if not isinstance(schema, GatewaySchema):
            raise TypeError("The schema comes from build_schema")
        self._documents = schema.documents
        own = schema.documents.schema
        self._schema = own if sdl is None else _with_directives_of(build_schema(sdl), own)
        assert_valid_schema(self._schema)

    def check(self, text: str, document: DocumentNode) -> Findings:
        """Return what is wrong with a document.

        Args:
            text: As it will be sent.
            document: The same, parsed; its nodes tell the places.
        """
        return Findings(
            broken=[*self._limits(text), *map(_line, validate(self._schema, document))],
            deprecated=[*map(_line, validate(self._schema, document, [NoDeprecatedCustomRule]))],
        )

    def _limits(self, text: str) -> Iterable[str]:
        try:
            read = self._documents.read(text)
        except RequestLimitExceeded as error:
            yield error.message
            return
        # It could be parsed before, when tokens were not counted.
        yield from (one.message for one in read.errors if isinstance(one, GraphQLSyntaxError))


def _with_directives_of(schema: GraphQLSchema, own: GraphQLSchema) -> GraphQLSchema:
    """Return a schema with directives the gateway knows, which are not all written out in SDL."""
    known = {directive.name for directive in schema.directives}
    more = [directive for directive in own.directives if directive.name not in known]
    options = schema.to_kwargs()
    options["directives"] = (*schema.directives, *more)
    return GraphQLSchema(**options)


def _line(error: GraphQLError) -> str:
    node = next(iter(error.nodes or ()), None)
    if node is None or node.loc is None:
        return error.message
    place = node.loc.source.get_location(node.loc.start)
    return f"{node.loc.source.name}:{place.line}:{place.column}: {error.message}"
