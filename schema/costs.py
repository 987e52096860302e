"""What an operation costs: the values its answer can hold at most, and those it did hold.

A value is a field of an object, or an item of a list: that is what resolving, completing and
writing an answer takes time for. The estimate multiplies what is in a list by the list's size,
which every list field of the schema declares (``ListSize``): an argument such as ``first``, or a
size to be assumed. Fragments are estimated once each. What depends on variables is kept as a sum
over them, so that a document is gone through once, and a request only puts its variables in.

Source:
    https://ibm.github.io/graphql-specs/cost-spec.html (the directive's name and arguments)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeAlias

import strawberry
from graphql import (
    ArgumentNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_input_object_type,
    is_interface_type,
    is_introspection_type,
    is_list_type,
    is_object_type,
)
from strawberry.schema_directive import Location

from schema.engine import Row, Written


@strawberry.schema_directive(
    locations=[Location.FIELD_DEFINITION],
    name="listSize",
    description="How many items a list is taken to have, where the cost of an operation is"
    " estimated.",
)
class ListSize:
    """How many items a list is taken to have.

    Attributes:
        assumed_size: So many, if no argument says.
        slicing_arguments: As many as these arguments say, or hold if they are lists.
        sized_fields: It is not this field that has the items, but these fields of its object.
    """

    assumed_size: int | None = strawberry.directive_field(
        name="assumedSize",
        default=strawberry.UNSET,
    )
    slicing_arguments: list[str] | None = strawberry.directive_field(
        name="slicingArguments",
        default=strawberry.UNSET,
    )
    sized_fields: list[str] | None = strawberry.directive_field(
        name="sizedFields",
        default=strawberry.UNSET,
    )


PAGE: Final = ListSize(slicing_arguments=["first"], sized_fields=["nodes", "edges"])
"""Of a field that gives a page: ``first`` rows, as nodes, as edges, or both."""

EDGES: Final = ListSize(slicing_arguments=["first"], sized_fields=["edges"])
"""Of a field that gives a page of edges only."""


class SizeUnknown(Exception):
    """A list field of the schema does not say how many items it is taken to have."""


@dataclass(frozen=True, slots=True)
class _Size:
    """How many items a list has: a number, or what a variable says."""

    number: int
    variable: str | None = None

    def among(self, sizes: Mapping[str, int | None]) -> int:
        """Return how many, for these values of the variables."""
        said = None if self.variable is None else sizes.get(self.variable)
        return self.number if said is None else said


@dataclass(frozen=True, slots=True)
class Estimate:
    """A cost: a number, and so many times the costs of what is in lists sized by variables.

    Attributes:
        number: What does not depend on a variable.
        lists: The others.
        rows: Of one item of those lists whose size the field around says.
    """

    number: int = 0
    lists: tuple[tuple[int, _Size, Estimate], ...] = ()
    rows: Estimate | None = None

    def plus(self, other: Estimate) -> Estimate:
        """Return the sum."""
        rows = self.rows
        if other.rows is not None:
            rows = other.rows if rows is None else rows.plus(other.rows)
        return Estimate(self.number + other.number, self.lists + other.lists, rows)

    def times(self, size: _Size) -> Estimate:
        """Return the cost of a list of such items."""
        if size.variable is not None:
            return Estimate(0, ((1, size, self),))
        lists = tuple((size.number * count, inner, item) for count, inner, item in self.lists)
        return Estimate(size.number * self.number, lists)

    def among(self, sizes: Mapping[str, int | None]) -> int:
        """Return the cost for these values of the variables."""
        cost = self.number
        for count, size, item in self.lists:
            cost += count * size.among(sizes) * item.among(sizes)
        return cost


@dataclass(frozen=True, slots=True)
class _ListField:
    """What is known of a field whose cost is multiplied: which argument says by how much."""

    size: int
    arguments: Mapping[str, int]
    sizes_inside: frozenset[str]


class CostModel:
    """The sizes of all lists of a schema.

    Args:
        schema: Made by Strawberry.
        max_cost: The most that one operation may be estimated at; 0 for any.

    Raises:
        SizeUnknown: One of them does not say how many items it is taken to have.
    """

    def __init__(self, schema: GraphQLSchema, *, max_cost: int = 0) -> None:
        self.schema = schema
        self.max_cost = max_cost
        self._fields: dict[int, _ListField] = {}
        sized: set[tuple[str, str]] = set()
        for type_ in _types_with_fields(schema):
            for name, definition in type_.fields.items():
                found = self._read(schema, type_, name, definition)
                if found is not None:
                    self._fields[id(definition)] = found
                    inside = get_named_type(definition.type).name
                    sized.update((inside, field_name) for field_name in found.sizes_inside)
        for type_ in _types_with_fields(schema):
            for name, definition in type_.fields.items():
                is_known = id(definition) in self._fields or (type_.name, name) in sized
                if is_list_type(get_nullable_type(definition.type)) and not is_known:
                    raise SizeUnknown(
                        f"{type_.name}.{name} is a list and does not say how many items it is"
                        " taken to have; give its field directives=[ListSize(assumed_size=...)]"
                    )

    def list_field(self, definition: GraphQLField) -> _ListField | None:
        """Return what is known of a field's size; ``None`` when it says nothing of sizes."""
        return self._fields.get(id(definition))

    @staticmethod
    def _read(
        schema: GraphQLSchema, type_: GraphQLNamedType, name: str, definition: GraphQLField
    ) -> _ListField | None:
        if is_introspection_type(type_):
            size = _introspected(schema, name)
            return None if size is None else _ListField(size, {}, frozenset())
        declared = getattr(definition.extensions.get("strawberry-definition"), "directives", ())
        for directive in declared:
            if isinstance(directive, ListSize):
                arguments = directive.slicing_arguments or ()
                return _ListField(
                    directive.assumed_size or 0,
                    {argument: _default_of(definition, argument) for argument in arguments},
                    frozenset(directive.sized_fields or ()),
                )
        return None


_Type: TypeAlias = GraphQLObjectType | GraphQLInterfaceType


def _types_with_fields(schema: GraphQLSchema) -> Iterator[_Type]:
    for type_ in schema.type_map.values():
        if is_object_type(type_) or is_interface_type(type_):
            yield type_


def _default_of(definition: GraphQLField, argument: str) -> int:
    default = definition.args[argument].default_value
    return default if isinstance(default, int) else 0


def _introspected(schema: GraphQLSchema, name: str) -> int | None:
    """Return how many items a list of introspection has: exactly, or on average, rounded up."""
    types = schema.type_map.values()
    objects = [*_types_with_fields(schema)]
    inputs = [type_ for type_ in types if is_input_object_type(type_)]
    fields = [definition for type_ in objects for definition in type_.fields.values()]
    counts = {
        "types": len(schema.type_map),
        "directives": len(schema.directives),
        "fields": _mean(len(fields), len(types)),
        "inputFields": _mean(sum(len(type_.fields) for type_ in inputs), len(types)),
        "args": _mean(sum(len(definition.args) for definition in fields), len(fields)),
    }
    others = dict.fromkeys(("interfaces", "possibleTypes", "enumValues", "locations"), 2)
    return (counts | others).get(name)


def _mean(total: int, count: int) -> int:
    return -(-total // max(count, 1))


@dataclass(slots=True)
class DocumentCosts:
    """The costs of a document's operations, each found out when it is first asked for.

    The document must have been validated.
    """

    model: CostModel
    document: DocumentNode
    _operations: dict[int, tuple[Estimate, Mapping[str, ValueNode | None]]] = field(
        default_factory=dict
    )
    _fragments: dict[str, Estimate] = field(default_factory=dict)
    _fields: dict[int, tuple[Estimate, bool]] = field(default_factory=dict)

    def estimate(self, operation: OperationDefinitionNode, variables: Mapping[str, Any]) -> int:
        """Return what an operation costs at most, with these variables as they were sent."""
        known = self._operations.get(id(operation))
        if known is None:
            known = self._operations[id(operation)] = (
                self._of_selection(operation.selection_set, self._root(operation)),
                {
                    definition.variable.name.value: definition.default_value
                    for definition in operation.variable_definitions or ()
                },
            )
        cost, defaults = known
        return cost.among(_sizes_of(defaults, variables)) if cost.lists else cost.number

    def costliest(
        self, operation: OperationDefinitionNode, variables: Mapping[str, Any]
    ) -> tuple[str, int]:
        """Return the path of the deepest field that makes up most of the cost, and its part."""
        sizes = _sizes_of(self._operations[id(operation)][1], variables)
        most = self.estimate(operation, variables)
        path: list[str] = []
        found = most
        selection, type_ = operation.selection_set, self._root(operation)
        times, rows = 1, 1
        while True:
            weighed = [
                (times * (rows if is_row else 1) * cost.among(sizes), field, definition, is_row)
                for field, definition, cost, is_row in self._priced(selection, type_)
            ]
            part, field, definition, is_row = max(weighed, key=lambda one: one[0])
            if part * 2 < most:
                break
            found = part
            path.append((field.alias or field.name).value)
            if field.selection_set is None:
                break
            size = self._size_of(field, definition)
            times *= rows if is_row else 1
            of_list = size is not None and not self._sizes_inside(definition)
            times *= size.among(sizes) if size is not None and of_list else 1
            rows = size.among(sizes) if size is not None and not of_list else 1
            selection, type_ = field.selection_set, get_named_type(definition.type)
        return ".".join(path), found

    def _priced(
        self, selection: SelectionSetNode, type_: GraphQLNamedType
    ) -> Iterator[tuple[FieldNode, GraphQLField, Estimate, bool]]:
        """Yield each field, what it costs, and whether that is for each row of the field around."""
        for chosen in selection.selections:
            if isinstance(chosen, FieldNode):
                definition = self._definition(chosen, type_)
                yield chosen, definition, *self._of_field(chosen, definition)
            elif isinstance(chosen, InlineFragmentNode):
                condition = chosen.type_condition
                inside = type_ if condition is None else self._type(condition.name.value)
                yield from self._priced(chosen.selection_set, inside)
            else:
                fragment = self._fragment(chosen.name.value)  # type: ignore[attr-defined]  # a spread
                inside = self._type(fragment.type_condition.name.value)
                yield from self._priced(fragment.selection_set, inside)

    def _of_selection(self, selection: SelectionSetNode, type_: GraphQLNamedType) -> Estimate:
        total = Estimate()
        for chosen in selection.selections:
            if isinstance(chosen, FieldNode):
                cost, is_row = self._of_field(chosen, self._definition(chosen, type_))
                total = total.plus(Estimate(rows=cost) if is_row else cost)
            elif isinstance(chosen, InlineFragmentNode):
                condition = chosen.type_condition
                inside = type_ if condition is None else self._type(condition.name.value)
                total = total.plus(self._of_selection(chosen.selection_set, inside))
            else:
                total = total.plus(self._of_fragment(chosen.name.value))  # type: ignore[attr-defined]  # a spread
        return total

    def _of_fragment(self, name: str) -> Estimate:
        known = self._fragments.get(name)
        if known is None:
            fragment = self._fragment(name)
            type_ = self._type(fragment.type_condition.name.value)
            known = self._fragments[name] = self._of_selection(fragment.selection_set, type_)
        return known

    def _of_field(self, chosen: FieldNode, definition: GraphQLField) -> tuple[Estimate, bool]:
        """Return what a field costs, and whether that is for each row of the field around."""
        known = self._fields.get(id(chosen))
        if known is None:
            known = self._fields[id(chosen)] = self._find_out(chosen, definition)
        return known

    def _find_out(self, chosen: FieldNode, definition: GraphQLField) -> tuple[Estimate, bool]:
        inside = _ONE
        if chosen.selection_set is not None:
            named = get_named_type(definition.type)
            inside = self._of_selection(chosen.selection_set, named).plus(_ONE)
        size = self._size_of(chosen, definition)
        if size is None:
            return inside, is_list_type(get_nullable_type(definition.type))
        if not self._sizes_inside(definition):
            return inside.times(size), False
        alone = Estimate(inside.number, inside.lists)
        return (alone if inside.rows is None else alone.plus(inside.rows.times(size))), False

    def _sizes_inside(self, definition: GraphQLField) -> bool:
        found = self.model.list_field(definition)
        return found is not None and bool(found.sizes_inside)

    def _size_of(self, chosen: FieldNode, definition: GraphQLField) -> _Size | None:
        found = self.model.list_field(definition)
        if found is None:
            return None
        for argument in chosen.arguments or ():
            if argument.name.value in found.arguments:
                return _size_said(argument, found.arguments[argument.name.value])
        return _Size(max(found.arguments.values(), default=found.size))

    def _definition(self, chosen: FieldNode, type_: GraphQLNamedType) -> GraphQLField:
        definition = self.model.schema.get_field(type_, chosen.name.value)  # type: ignore[arg-type]  # it has fields
        assert definition is not None  # noqa: S101 - validation has made sure of it
        return definition

    def _fragment(self, name: str) -> FragmentDefinitionNode:
        return next(
            definition
            for definition in self.document.definitions
            if isinstance(definition, FragmentDefinitionNode) and definition.name.value == name
        )

    def _root(self, operation: OperationDefinitionNode) -> GraphQLNamedType:
        root = self.model.schema.get_root_type(operation.operation)
        assert root is not None  # noqa: S101 - validation has made sure of it
        return root

    def _type(self, name: str) -> GraphQLNamedType:
        return self.model.schema.type_map[name]


_ONE: Final = Estimate(1)


def _size_said(argument: ArgumentNode, default: int) -> _Size:
    value = argument.value
    if isinstance(value, VariableNode):
        return _Size(default, value.name.value)
    said = _number_of(value)
    return _Size(default if said is None else said)


def _number_of(value: ValueNode | None) -> int | None:
    if isinstance(value, IntValueNode):
        return _within(int(value.value) if len(value.value) < _MOST_DIGITS else _MOST_ROWS)
    return len(value.values) if isinstance(value, ListValueNode) else None


def _within(number: int) -> int:
    return min(max(number, 0), _MOST_ROWS)


_MOST_DIGITS: Final = 12
_MOST_ROWS: Final = 10_000
"""As GATEWAY_MAX_PAGE_SIZE can be at most: who asks for more gets an error, and no rows."""


def _sizes_of(
    defaults: Mapping[str, ValueNode | None], variables: Mapping[str, Any]
) -> Mapping[str, int | None]:
    """Return what each variable says of a size; ``None`` for what the field has by itself."""
    sizes: dict[str, int | None] = {}
    for name, default in defaults.items():
        if name not in variables:
            sizes[name] = _number_of(default)
            continue
        value = variables[name]
        is_number = isinstance(value, int) and not isinstance(value, bool)
        length = len(value) if isinstance(value, list) else None
        sizes[name] = _within(value) if is_number else length
    return sizes


def count_values(answer: object) -> int:
    """Return how many values an answer holds: fields of objects and items of lists.

    Objects are dicts or structs, as they are executed.
    """
    if isinstance(answer, Written):
        return answer.values
    total = 0
    waiting: Sequence[Any] = [answer]
    while waiting:
        inside: list[Any] = []
        kinds = {*map(type, waiting)}
        counts = {kind: len(waiting) for kind in kinds}  # of one kind, as most often
        for kind, count in (counts if len(kinds) == 1 else Counter(map(type, waiting))).items():
            if kind in _LEAVES:
                continue
            if issubclass(kind, Row):
                total += count * kind.values
                if not (kind.optional or kind.containers):
                    continue
            alike = waiting
            if count < len(waiting):
                alike = [value for value in waiting if value.__class__ is kind]
            counted, found = _looked_into(kind, alike)
            total += counted
            inside += found
        waiting = inside
    return total


def _looked_into(kind: type, alike: Sequence[Any]) -> tuple[int, Iterable[Any]]:
    """Return how many values things of a kind hold, and those that one has to look into.

    What rows hold in any case is counted already.
    """
    if issubclass(kind, Row):
        nulls = {name: [*map(attrgetter(name), alike)].count(None) for name in kind.optional}
        counted = sum(values * (len(alike) - nulls[name]) for name, values in kind.optional.items())
        inside = chain.from_iterable(map(attrgetter(name), alike) for name in kind.containers)
        return counted, inside
    if kind is Written:
        return sum(one.values for one in alike), ()
    if kind is list:
        return sum(map(len, alike)) - len(alike), chain.from_iterable(alike)
    if kind is dict:
        return sum(map(len, alike)), chain.from_iterable(map(dict.values, alike))
    return 0, ()


_LEAVES: Final = frozenset({str, int, float, bool, type(None)})
"""What nothing is inside of; they are most of an answer, and passed over at once."""
