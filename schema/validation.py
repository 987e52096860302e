"""Validation of documents by the rules of ``graphql-core``, at a fraction of their cost.

The rules are the library's own, all but one; how they are driven is not. The library asks each of
thirty rules at each node whether it has anything to say there; here that is looked up once for
each kind of node. Its rule that fields of one name can be merged compares every pair of them; here
each is compared with the first, which is enough, because what is compared are equalities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeAlias

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLNamedType,
    GraphQLOutputType,
    GraphQLSchema,
    GraphQLWrappingType,
    InlineFragmentNode,
    ListValueNode,
    Node,
    ObjectValueNode,
    OperationDefinitionNode,
    OverlappingFieldsCanBeMergedRule,
    SelectionSetNode,
    TypeInfo,
    ValidationContext,
    VariableNode,
    get_named_type,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
    specified_rules,
)
from graphql.language.ast import QUERY_DOCUMENT_KEYS
from graphql.language.visitor import SKIP, Visitor
from graphql.validation import ASTValidationRule
from graphql.validation.validate import ValidationAbortedError
from graphql.validation.validation_context import VariableUsage, VariableUsageVisitor

_ABORTED: Final = "Too many validation errors, error limit reached. Validation aborted."
_KEYS: Final = {
    kind: tuple(key for key in keys if key not in {"description", "name", "alias"})
    for kind, keys in QUERY_DOCUMENT_KEYS.items()
}
"""Where to go on from a node of each kind; no rule has anything to say about names."""

_RULES: Final[Sequence[type[ASTValidationRule]]] = tuple(
    rule for rule in specified_rules if rule is not OverlappingFieldsCanBeMergedRule
)

_Handler: TypeAlias = Callable[..., Any]
_Handlers: TypeAlias = tuple[
    Callable[[Node], None] | None,
    Sequence[tuple[int, _Handler]],
    Sequence[tuple[int, _Handler]],
    Callable[[], None] | None,
    tuple[str, ...],
]


def validate(
    schema: GraphQLSchema, document: DocumentNode, *, max_errors: int
) -> Sequence[GraphQLError]:
    """Return what is wrong with a document, at most ``max_errors`` and one that says so.

    The document must have been limited before: what is done is linear in its fields as unfolded,
    and recursion as deep as its brackets.
    """
    errors: list[GraphQLError] = []

    def on_error(error: GraphQLError) -> None:
        if len(errors) >= max_errors:
            raise ValidationAbortedError(_ABORTED)
        errors.append(error)

    type_info = TypeInfo(schema)
    context = _Context(schema, document, type_info, on_error)
    rules: list[Visitor] = [rule(context) for rule in _RULES]
    try:
        _Walk(rules, type_info).walk(document, None, None, [])
        if not errors:  # what is compared must be known
            _Merging(schema, document, on_error).check()
    except ValidationAbortedError as error:
        errors.append(error.with_traceback(None))
    return errors


class _Context(ValidationContext):
    """What rules may ask; knows nodes by identity, where the library hashes all that is in them."""

    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        type_info: TypeInfo,
        on_error: Callable[[GraphQLError], None],
    ) -> None:
        super().__init__(schema, document, type_info, on_error)
        self._usages: dict[int, list[VariableUsage]] = {}
        self._all_usages: dict[int, list[VariableUsage]] = {}
        self._spreads: dict[int, list[FragmentSpreadNode]] = {}

    def get_variable_usages(
        self, node: OperationDefinitionNode | FragmentDefinitionNode | SelectionSetNode
    ) -> list[VariableUsage]:
        """Return the variables used in an operation or a fragment."""
        usages = self._usages.get(id(node))
        if usages is None:
            fragment = node if isinstance(node, FragmentDefinitionNode) else None
            visitor = VariableUsageVisitor(self._type_info, fragment)
            _Walk([visitor], self._type_info).walk(node, None, None, [])
            usages = self._usages[id(node)] = visitor.usages
        return usages

    def get_recursive_variable_usages(
        self, operation: OperationDefinitionNode
    ) -> list[VariableUsage]:
        """Return the variables an operation and its fragments use."""
        usages = self._all_usages.get(id(operation))
        if usages is None:
            usages = [*self.get_variable_usages(operation)]
            for fragment in self.get_recursively_referenced_fragments(operation):
                usages += self.get_variable_usages(fragment)
            self._all_usages[id(operation)] = usages
        return usages

    def get_fragment_spreads(self, node: SelectionSetNode) -> list[FragmentSpreadNode]:
        """Return the spreads in a selection, those of fragments inside not included."""
        spreads = self._spreads.get(id(node))
        if spreads is None:
            spreads = self._spreads[id(node)] = [*_spreads_in(node)]
        return spreads


def _spreads_in(selection_set: SelectionSetNode) -> Iterable[FragmentSpreadNode]:
    waiting = [selection_set]
    while waiting:
        for selection in waiting.pop().selections:
            if isinstance(selection, FragmentSpreadNode):
                yield selection
            elif selection.selection_set is not None:  # type: ignore[attr-defined]  # both others have one
                waiting.append(selection.selection_set)  # type: ignore[attr-defined]  # the same


class _Walk:
    """Takes rules through a tree, as ``visit`` with a ``ParallelVisitor`` does.

    Paths are not made: no rule of the library reads them.
    """

    def __init__(self, rules: Sequence[Visitor], type_info: TypeInfo) -> None:
        self._rules = rules
        self._type_info = type_info
        self._skipping: list[bool] = [False] * len(rules)
        self._handlers: dict[str, _Handlers] = {}

    def walk(  # noqa: C901, PLR0912 - in one piece, because it is gone through for each node
        self, node: Node, key: int | str | None, parent: Any, ancestors: list[Any]
    ) -> None:
        """Visit a node and what is in it."""
        skipping = self._skipping
        handlers = self._handlers.get(node.kind)
        if handlers is None:
            handlers = self._handlers[node.kind] = self._handlers_of(node.kind)
        enter_type, enters, leaves, leave_type, keys = handlers
        if enter_type is not None:
            enter_type(node)
        skipped: list[int] = []
        for index, enter in enters:
            if not skipping[index]:
                action = enter(node, key, parent, (), ancestors)
                if action is SKIP:  # nothing else is done by the library's rules
                    skipped.append(index)
                    skipping[index] = True
        if keys:
            if parent is not None:
                ancestors.append(parent)
            for inside_key in keys:
                inside = getattr(node, inside_key)
                if inside.__class__ is tuple:
                    if inside:
                        ancestors.append(node)
                        for index, item in enumerate(inside):
                            self.walk(item, index, inside, ancestors)
                        ancestors.pop()
                elif inside is not None:
                    self.walk(inside, inside_key, node, ancestors)
            if parent is not None:
                ancestors.pop()
        for index, leave in leaves:
            if not skipping[index]:
                leave(node, key, parent, (), ancestors)
        for index in skipped:
            skipping[index] = False
        if leave_type is not None:
            leave_type()

    def _handlers_of(self, kind: str) -> _Handlers:
        enters, leaves = _handler_names(kind, tuple(type(rule) for rule in self._rules))
        return (
            getattr(self._type_info, f"enter_{kind}", None),
            [(index, getattr(self._rules[index], name)) for index, name in enters],
            [(index, getattr(self._rules[index], name)) for index, name in leaves],
            getattr(self._type_info, f"leave_{kind}", None),
            _KEYS.get(kind, ()),
        )


@cache
def _handler_names(
    kind: str, rules: Sequence[type[Visitor]]
) -> tuple[Sequence[tuple[int, str]], Sequence[tuple[int, str]]]:
    """Return which rules have something to say where a node begins, and where it ends."""
    # The one rule that wants to see nodes of any kind looks at their directives.
    any_kind = "directives" in QUERY_DOCUMENT_KEYS.get(kind, ())
    found: list[list[tuple[int, str]]] = []
    for moment in ("enter", "leave"):
        names = (f"{moment}_{kind}", moment) if any_kind else (f"{moment}_{kind}",)
        found.append(
            [
                (index, name)
                for index, rule in enumerate(rules)
                for name in names
                if hasattr(rule, name)
            ]
        )
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class _Field:
    """A field where it is selected: on which type, and what it gives there."""

    parent: GraphQLNamedType
    node: FieldNode
    type: GraphQLOutputType


_Sets: TypeAlias = Sequence[tuple[GraphQLNamedType, SelectionSetNode]]


class _Merging:
    """Checks that fields of one response name are one field, in a document that is right otherwise.

    Fields of one name must be alike in shape whatever object they are of; those that can be of one
    object must be the same field with the same arguments, and so must what is selected in them.
    Selections that are merged are looked at once, however many ways lead to them.

    Source:
        https://spec.graphql.org/draft/#sec-Field-Selection-Merging
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        document: DocumentNode,
        on_error: Callable[[GraphQLError], None],
    ) -> None:
        self._schema = schema
        self._document = document
        self._on_error = on_error
        self._seen: set[tuple[bool, frozenset[int]]] = set()
        self._reported: set[int] = set()
        self._calls: dict[int, object] = {}
        self._fragments: Mapping[str, FragmentDefinitionNode] = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }

    def check(self) -> None:
        """Report every field that cannot be merged with the first of its name."""
        for definition in self._document.definitions:
            if isinstance(definition, OperationDefinitionNode):
                root = self._schema.get_root_type(definition.operation)
                assert root is not None  # noqa: S101 - a rule has made sure of it
                self._check([(root, definition.selection_set)], shapes_only=False)

    def _check(self, sets: _Sets, *, shapes_only: bool) -> None:
        key = (shapes_only, frozenset(id(selection_set) for _, selection_set in sets))
        if key in self._seen:
            return
        self._seen.add(key)
        for name, fields in self._fields_of(sets).items():
            if len(fields) > 1:
                self._compare(name, fields, _shape_conflict)
            groups = [fields] if shapes_only else _of_one_object(fields)
            for group in groups:
                if not shapes_only and len(group) > 1:
                    self._compare(name, group, self._call_conflict)
                self._check(_inside(group), shapes_only=shapes_only)
            if len(groups) > 1:
                self._check(_inside(fields), shapes_only=True)

    def _compare(
        self,
        name: str,
        fields: Sequence[_Field],
        conflict: Callable[[_Field, _Field], str | None],
    ) -> None:
        first = fields[0]
        for field in fields[1:]:
            if field.node is first.node or id(field.node) in self._reported:
                continue
            reason = conflict(first, field)
            if reason is not None:
                self._reported.add(id(field.node))
                message = (
                    f"Fields '{name}' conflict because {reason}. Use different aliases on the"
                    " fields to fetch both if this was intentional."
                )
                self._on_error(GraphQLError(message, [first.node, field.node]))

    def _call_conflict(self, one: _Field, other: _Field) -> str | None:
        if one.node.name.value != other.node.name.value:
            return f"'{one.node.name.value}' and '{other.node.name.value}' are different fields"
        if self._call(one.node) != self._call(other.node):
            return "they have differing arguments"
        if _is_streamed(one.node) or _is_streamed(other.node):
            return "they have overlapping stream directives"
        return None

    def _call(self, node: FieldNode) -> object:
        """Return something that is equal for equal arguments."""
        if not node.arguments:
            return None
        call = self._calls.get(id(node))
        if call is None:
            call = self._calls[id(node)] = frozenset(
                (argument.name.value, _canonical(argument.value)) for argument in node.arguments
            )
        return call

    def _fields_of(self, sets: _Sets) -> Mapping[str, list[_Field]]:
        """Return the fields selected, by response name, fragments unfolded."""
        fields: dict[str, list[_Field]] = {}
        waiting = [*reversed(sets)]
        spread: set[str] = set()
        while waiting:
            parent, selection_set = waiting.pop()
            for selection in selection_set.selections:
                if isinstance(selection, FieldNode):
                    definition = self._schema.get_field(parent, selection.name.value)  # type: ignore[arg-type]  # fields are on composite types
                    assert definition is not None  # noqa: S101 - a rule has made sure of it
                    name = (selection.alias or selection.name).value
                    found = _Field(parent, selection, definition.type)
                    fields.setdefault(name, []).append(found)
                elif isinstance(selection, InlineFragmentNode):
                    condition = selection.type_condition
                    inside = parent if condition is None else self._type(condition.name.value)
                    waiting.append((inside, selection.selection_set))
                elif selection.name.value not in spread:  # type: ignore[attr-defined]  # a spread
                    name = selection.name.value  # type: ignore[attr-defined]  # the same
                    spread.add(name)
                    fragment = self._fragments[name]
                    inside = self._type(fragment.type_condition.name.value)
                    waiting.append((inside, fragment.selection_set))
        return fields

    def _type(self, name: str) -> GraphQLNamedType:
        return self._schema.type_map[name]


def _inside(fields: Sequence[_Field]) -> _Sets:
    return [
        (get_named_type(field.type), field.node.selection_set)
        for field in fields
        if field.node.selection_set is not None
    ]


def _of_one_object(fields: Sequence[_Field]) -> Sequence[Sequence[_Field]]:
    """Return groups of those that can be of one object: an object has one concrete type."""
    if all(field.parent is fields[0].parent for field in fields):
        return [fields]
    anywhere: list[_Field] = []
    by_type: dict[str, list[_Field]] = {}
    for field in fields:
        if is_abstract_type(field.parent):
            anywhere.append(field)
        else:
            by_type.setdefault(field.parent.name, []).append(field)
    return [[*anywhere, *concrete] for concrete in by_type.values()] or [anywhere]


def _shape_conflict(one: _Field, other: _Field) -> str | None:
    if one.type is other.type or _is_alike(one.type, other.type):
        return None
    return f"they return conflicting types '{one.type}' and '{other.type}'"


def _is_alike(one: GraphQLOutputType, other: GraphQLOutputType) -> bool:
    """Whether values of both types are written alike: the fields inside are compared elsewhere."""
    for is_wrapped in (is_non_null_type, is_list_type):
        if is_wrapped(one) or is_wrapped(other):
            both = is_wrapped(one) and is_wrapped(other)
            return both and _is_alike(_unwrapped(one), _unwrapped(other))
    return one is other if is_leaf_type(one) or is_leaf_type(other) else True


def _unwrapped(type_: GraphQLOutputType) -> GraphQLOutputType:
    assert isinstance(type_, GraphQLWrappingType)  # noqa: S101 - it was looked at
    inside: GraphQLOutputType = type_.of_type
    return inside


def _is_streamed(node: FieldNode) -> bool:
    return any(directive.name.value == "stream" for directive in node.directives or ())


def _canonical(value: Node) -> object:
    if isinstance(value, ListValueNode):
        return tuple(map(_canonical, value.values))
    if isinstance(value, ObjectValueNode):
        return frozenset((field.name.value, _canonical(field.value)) for field in value.fields)
    if isinstance(value, VariableNode):
        return ("$", value.name.value)
    return (value.kind, getattr(value, "value", None))
