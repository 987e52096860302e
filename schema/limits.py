"""Limits on documents, found out in one pass that is linear in the document.

Fragments are weighed once each and their weights added where they are spread, so a small
document that stands for a huge one is recognised without being unfolded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

from resolvers.errors import RequestLimitExceeded


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentLimits:
    """How large a document may be; all counts are of the document as unfolded, unless said.

    Attributes:
        max_bytes: Of the text.
        max_tokens: Of the text.
        max_depth: Fields inside fields; introspection is not counted.
        max_fields: Fields.
        max_aliases: Fields with an alias.
        max_root_fields: Fields of the operation itself.
        max_directives: Directives in the text.
        max_repeats: Fields of one response name in the text.
        max_fragments: Named fragments in the text, which bounds how long a chain of them is.
    """

    max_bytes: int = 131_072
    max_tokens: int = 10_000
    max_depth: int = 16
    max_fields: int = 2_000
    max_aliases: int = 200
    max_root_fields: int = 50
    max_directives: int = 100
    max_repeats: int = 300
    max_fragments: int = 100


@dataclass(frozen=True, slots=True)
class _Weight:
    depth: int = 0
    fields: int = 0
    aliases: int = 0
    roots: int = 0


def check_document(document: DocumentNode, limits: DocumentLimits) -> None:
    """Refuse a document that is larger than allowed.

    Raises:
        RequestLimitExceeded: It is; the message says in what.
    """
    fragments = sum(isinstance(one, FragmentDefinitionNode) for one in document.definitions)
    _refuse("fragments", fragments, limits.max_fragments)
    weigher = _Weigher(document, limits)
    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            weight = weigher.weigh(definition.selection_set)
            _refuse("deep in fields", weight.depth, limits.max_depth)
            _refuse("fields", weight.fields, limits.max_fields)
            _refuse("aliases", weight.aliases, limits.max_aliases)
            _refuse("fields at the root", weight.roots, limits.max_root_fields)
    _refuse("directives", weigher.directives, limits.max_directives)


_LIMIT_BY_WORDS = {
    "fragments": "fragments",
    "deep in fields": "depth",
    "fields": "fields",
    "aliases": "aliases",
    "fields at the root": "root_fields",
    "directives": "directives",
}


def _refuse(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise RequestLimitExceeded(
            f"The document is larger than allowed: {found} {what}, at most {limit}",
            limit=_LIMIT_BY_WORDS.get(what, "repeats"),
        )


class _Weigher:
    """Weighs selection sets; each fragment once.

    Recursion is as deep as the document is nested, which the parser has bounded, plus one step
    for each fragment inside another, which ``max_fragments`` bounds.
    """

    def __init__(self, document: DocumentNode, limits: DocumentLimits) -> None:
        self.directives = 0
        self._limits = limits
        self._repeats: dict[str, int] = {}
        self._weights: dict[str, _Weight | None] = {}
        self._fragments: Mapping[str, FragmentDefinitionNode] = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }

    def weigh(self, selection_set: SelectionSetNode) -> _Weight:
        depth = fields = aliases = roots = 0
        for weight in self._weights_in(selection_set):
            depth = max(depth, weight.depth)
            fields += weight.fields
            aliases += weight.aliases
            roots += weight.roots
        return _Weight(depth, fields, aliases, roots)

    def _weights_in(self, selection_set: SelectionSetNode) -> Iterable[_Weight]:
        for selection in selection_set.selections:
            self.directives += len(selection.directives or ())
            if isinstance(selection, FieldNode):
                yield self._field(selection)
            elif isinstance(selection, FragmentSpreadNode):
                yield self._fragment(selection.name.value)
            elif isinstance(selection, InlineFragmentNode):
                yield self.weigh(selection.selection_set)

    def _field(self, field: FieldNode) -> _Weight:
        name = (field.alias or field.name).value
        self._repeats[name] = repeats = self._repeats.get(name, 0) + 1
        _refuse(f"times {name}", repeats, self._limits.max_repeats)
        inside = _Weight() if field.selection_set is None else self.weigh(field.selection_set)
        aliased = 0 if field.alias is None else 1
        # Introspection is deep by nature; validation has a limit of its own for it.
        depth = 1 if field.name.value in {"__schema", "__type"} else inside.depth + 1
        return _Weight(depth, inside.fields + 1, inside.aliases + aliased, 1)

    def _fragment(self, name: str) -> _Weight:
        fragment = self._fragments.get(name)
        if fragment is None:
            return _Weight()  # validation will say that there is none
        if name not in self._weights:
            self._weights[name] = None  # inside itself: validation will say so
            self._weights[name] = self.weigh(fragment.selection_set)
        return self._weights[name] or _Weight()
