"""Limits on documents and variables, each found out in time linear in what was sent.

The text is looked through before it is parsed, so that a document too long or too deep costs no
parsing. The tree is then weighed in one pass: fragments once each, their weights added where they
are spread, so a small document that stands for a huge one is recognised without being unfolded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from graphql import (
    DirectiveNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
)

from resolvers.errors import RequestLimitExceeded

_INTROSPECTION: Final = frozenset({"__schema", "__type"})
_OPENING: Final = frozenset("{[(")
_CLOSING: Final = frozenset("}])")
# No part of it can be matched in two ways, so that no text makes it try again, and what is between
# tokens is no part of it, or blanks at the end would be tried from each of them; a string that does
# not end is one token, and the parser's to complain of.
_TOKEN: Final = re.compile(
    r"""\#[^\r\n]*+
      | \"{3}(?:[^"\\]|\\"{3}|\\|"(?!""))*+(?:\"{3})?
      | "(?:[^"\\\r\n]|\\.)*+"?
      | \.\.\.
      | [\w.+-]++
      | (?P<mark>[^\s,\ufeff])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """How large a document may be, and what comes with it.

    Of the text, as it was sent:

    Attributes:
        max_bytes: Bytes.
        max_tokens: Names, numbers, strings, punctuation and comments.
        max_lines: Lines.
        max_nesting: Brackets of any kind inside each other.
        max_selections: Fields, spreads and inline fragments.
        max_operations: Operations.
        max_fragments: Named fragments, which bounds how long a chain of them is.
        max_directives: Directives.
        max_variables: Variables that one operation declares, and that are sent.
        max_list_items: Values in one list, in the text or in a variable.
        max_object_fields: Members of one object, in the text or in a variable.
        max_values: Values in all variables together.
        max_value_depth: Lists and objects inside each other in a variable.

    Of each operation with its fragments unfolded:

    Attributes:
        max_depth: Fields inside fields; introspection is not counted.
        max_introspection_depth: Fields inside fields of introspection.
        max_fields: Fields, spreads and inline fragments.
        max_aliases: Fields with an alias.
        max_root_fields: Fields of the operation itself.
        max_cost: What the operation is estimated to cost; 0 for any.
    """

    max_bytes: int = 16_000
    max_tokens: int = 800
    max_lines: int = 1_600
    max_nesting: int = 40
    max_selections: int = 320
    max_operations: int = 20
    max_fragments: int = 50
    max_directives: int = 50
    max_variables: int = 50
    max_list_items: int = 1_000
    max_object_fields: int = 50
    max_values: int = 5_000
    max_value_depth: int = 8
    max_depth: int = 16
    max_introspection_depth: int = 20
    max_fields: int = 2_000
    max_aliases: int = 100
    max_root_fields: int = 50
    max_cost: int = 6_000_000

    @classmethod
    def of_tokens(cls, max_tokens: int) -> DocumentLimits:
        """Return limits for documents of so many tokens; those of the text grow with it."""
        return cls(
            max_bytes=20 * max_tokens,
            max_tokens=max_tokens,
            max_lines=2 * max_tokens,
            max_selections=2 * max_tokens // 5,
        )


@dataclass(frozen=True, slots=True)
class _Weight:
    depth: int = 0
    introspection_depth: int = 0
    fields: int = 0
    aliases: int = 0
    roots: int = 0


def check_text(text: str, limits: DocumentLimits) -> None:
    """Refuse a document for what can be seen without parsing it.

    Raises:
        RequestLimitExceeded: It is too long or too deep; the message says in what.
    """
    if len(text) > limits.max_bytes // 4:  # fewer characters cannot be more bytes
        size = len(text.encode("utf-8", "surrogatepass"))
        _refuse("document_bytes", "bytes", size, limits.max_bytes)
    _refuse("lines", "lines", text.count("\n") + text.count("\r") + 1, limits.max_lines)
    depth = 0
    for count, token in enumerate(_TOKEN.finditer(text), start=1):
        if count > limits.max_tokens:
            raise RequestLimitExceeded(
                f"The document is larger than allowed: more than {limits.max_tokens} tokens",
                limit="tokens",
            )
        mark = token["mark"]
        if mark in _OPENING:
            depth += 1
            _refuse("nesting", "brackets inside each other", depth, limits.max_nesting)
        elif mark in _CLOSING:
            depth -= 1


def check_document(document: DocumentNode, limits: DocumentLimits) -> None:
    """Refuse a document that is larger than allowed.

    Raises:
        RequestLimitExceeded: It is; the message says in what.
    """
    operations = [one for one in document.definitions if isinstance(one, OperationDefinitionNode)]
    fragments = [one for one in document.definitions if isinstance(one, FragmentDefinitionNode)]
    _refuse("operations", "operations", len(operations), limits.max_operations)
    _refuse("fragments", "fragments", len(fragments), limits.max_fragments)
    weigher = _Weigher(fragments, limits)
    for fragment in fragments:
        weigher.weigh_fragment(fragment.name.value)
    for operation in operations:
        weigher.note_variables(operation)
        weigher.note_directives(operation.directives)
        weight = weigher.weigh(operation.selection_set)
        _refuse("depth", "deep in fields", weight.depth, limits.max_depth)
        deepest = limits.max_introspection_depth
        _refuse("introspection_depth", "deep in introspection", weight.introspection_depth, deepest)
        _refuse("fields", "fields and fragments", weight.fields, limits.max_fields)
        _refuse("aliases", "aliases", weight.aliases, limits.max_aliases)
        _refuse("root_fields", "fields at the root", weight.roots, limits.max_root_fields)


def check_variables(variables: Mapping[str, Any], limits: DocumentLimits) -> None:
    """Refuse variables that hold more than allowed.

    Raises:
        RequestLimitExceeded: They do; the message says in what, and in which variable.
    """
    count = 0
    if len(variables) > limits.max_variables:
        raise RequestLimitExceeded(
            f"variables: {len(variables)} are more than the {limits.max_variables} allowed",
            limit="variables",
        )
    for name, variable in variables.items():
        level: list[Any] = [variable]
        depth = 0
        while level:
            inside: list[Any] = []
            for value in level:
                if isinstance(value, list):
                    _refuse_list(f"variables.{name[:_SHOWN]}", len(value), limits)
                    inside += value
                elif isinstance(value, dict):
                    _refuse_object(f"variables.{name[:_SHOWN]}", len(value), limits)
                    inside += value.values()
            count += len(level)
            if count + len(inside) > limits.max_values:
                raise RequestLimitExceeded(
                    f"variables: They hold more than the {limits.max_values} values allowed",
                    limit="values",
                )
            if inside and depth >= limits.max_value_depth:
                raise RequestLimitExceeded(
                    f"variables.{name[:_SHOWN]}: It is nested deeper than"
                    f" {limits.max_value_depth} levels",
                    limit="value_depth",
                )
            level = inside
            depth += 1


_SHOWN: Final = 64
"""How much of a name is shown."""


def _refuse(limit: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise RequestLimitExceeded(
            f"The document is larger than allowed: {found} {what}, at most {most}", limit=limit
        )


def _refuse_list(where: str, found: int, limits: DocumentLimits) -> None:
    if found > limits.max_list_items:
        raise RequestLimitExceeded(
            f"{where}: {found} values are more than the {limits.max_list_items} one list may hold",
            limit="list_items",
        )


def _refuse_object(where: str, found: int, limits: DocumentLimits) -> None:
    if found > limits.max_object_fields:
        raise RequestLimitExceeded(
            f"{where}: {found} members are more than the {limits.max_object_fields} one object may"
            " have",
            limit="object_fields",
        )


class _Weigher:
    """Weighs selection sets; each fragment once.

    Recursion is as deep as the document is nested, which ``max_nesting`` bounds, plus one step for
    each fragment inside another, which ``max_fragments`` bounds.
    """

    def __init__(self, fragments: Iterable[FragmentDefinitionNode], limits: DocumentLimits) -> None:
        self._limits = limits
        self._selections = self._directives = 0
        self._weights: dict[str, _Weight | None] = {}
        self._fragments = {fragment.name.value: fragment for fragment in fragments}

    def note_variables(self, operation: OperationDefinitionNode) -> None:
        """Count what an operation declares."""
        definitions = operation.variable_definitions or ()
        _refuse(
            "variables", "variables in one operation", len(definitions), self._limits.max_variables
        )
        for definition in definitions:
            self.note_directives(definition.directives)
            self._note_value(definition.variable.name.value, definition.default_value)

    def note_directives(self, directives: Iterable[DirectiveNode] | None) -> None:
        """Count directives wherever they may be."""
        for directive in directives or ():
            self._directives += 1
            _refuse("directives", "directives", self._directives, self._limits.max_directives)
            for argument in directive.arguments or ():
                self._note_value(argument.name.value, argument.value)

    def weigh_fragment(self, name: str) -> _Weight:
        """Return the weight of a fragment where it is spread."""
        fragment = self._fragments.get(name)
        if fragment is None:
            return _Weight()  # validation will say that there is none
        if name not in self._weights:
            self._weights[name] = None  # inside itself: validation will say so
            self.note_directives(fragment.directives)
            self._weights[name] = self.weigh(fragment.selection_set)
        return self._weights[name] or _Weight()

    def weigh(self, selection_set: SelectionSetNode) -> _Weight:
        """Return the weight of all that is selected."""
        depth = introspection_depth = fields = aliases = roots = 0
        for weight in self._weights_in(selection_set):
            depth = max(depth, weight.depth)
            introspection_depth = max(introspection_depth, weight.introspection_depth)
            fields += weight.fields + 1
            aliases += weight.aliases
            roots += weight.roots
        return _Weight(depth, introspection_depth, fields, aliases, roots)

    def _weights_in(self, selection_set: SelectionSetNode) -> Iterable[_Weight]:
        for selection in selection_set.selections:
            self._selections += 1
            _refuse("selections", "selections", self._selections, self._limits.max_selections)
            self.note_directives(selection.directives)
            if isinstance(selection, FieldNode):
                yield self._weigh_field(selection)
            elif isinstance(selection, FragmentSpreadNode):
                yield self.weigh_fragment(selection.name.value)
            elif isinstance(selection, InlineFragmentNode):
                yield self.weigh(selection.selection_set)

    def _weigh_field(self, field: FieldNode) -> _Weight:
        for argument in field.arguments or ():
            self._note_value(argument.name.value, argument.value)
        inside = _Weight() if field.selection_set is None else self.weigh(field.selection_set)
        aliases = inside.aliases + (field.alias is not None)
        if (
            field.name.value in _INTROSPECTION
        ):  # deep by nature, so its depth has a limit of its own
            return _Weight(1, inside.depth + 1, inside.fields, aliases, 1)
        return _Weight(inside.depth + 1, inside.introspection_depth, inside.fields, aliases, 1)

    def _note_value(self, name: str, value: ValueNode | None) -> None:
        if isinstance(value, ListValueNode):
            _refuse_list(name[:_SHOWN], len(value.values), self._limits)
            for item in value.values:
                self._note_value(name, item)
        elif isinstance(value, ObjectValueNode):
            _refuse_object(name[:_SHOWN], len(value.fields), self._limits)
            for field in value.fields:
                self._note_value(field.name.value, field.value)
