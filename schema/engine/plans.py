"""Plans: what an operation asks for, worked out once for every time it is executed.

A plan is a tree of blocks. A block is one object type with one selection set; for each of its
fields it knows how the values are had, and what shape they must have. For what are plain
attributes, it holds a generated function that makes the answer's row out of an object.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property, lru_cache
from types import CodeType, GeneratorType, NoneType
from typing import Any, ClassVar, Final
from weakref import WeakValueDictionary

import msgspec
from graphql import (
    BooleanValueNode,
    DocumentNode,
    FieldNode,
    FloatValueNode,
    GraphQLEnumType,
    GraphQLField,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    IntValueNode,
    NullValueNode,
    StringValueNode,
    Undefined,
    is_abstract_type,
    specified_scalar_types,
)
from graphql.execution import Executor
from graphql.execution.collect_fields import FieldDetails, collect_fields
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField

from schema.engine.batches import (
    RECORD,
    Batching,
    View,
    batching_of,
    gives_records,
    is_lasting,
    path_read,
    view_of,
)

_STRAWBERRY: Final = "strawberry-definition"
_MAX_INT: Final = 2**31
_MAX_INLINE: Final = 3
_EXACT_CLASSES: Final = {"String": str, "ID": str, "Int": int, "Float": float, "Boolean": bool}
_IN_RANGE: Final = {
    "Int": f"or not {-_MAX_INT} <= {{0}} < {_MAX_INT} ",
    "Float": "or {0} - {0} != 0.0 ",  # neither endless nor not a number
}


_CONSTANTS: Final = (
    BooleanValueNode,
    FloatValueNode,
    IntValueNode,
    NullValueNode,
    StringValueNode,
)


class Surprise(Exception):
    """A value that the fast way does not take; the exact way finds out what it means."""


class Raised:
    """What was raised where a value was expected."""

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


class Kind(StrEnum):
    """What a type is, apart from whether it may be null."""

    LEAF = "leaf"
    LIST = "list"
    OBJECT = "object"
    ABSTRACT = "abstract"


class How(StrEnum):
    """How a field's values are had.

    TYPENAME: The plan knows it. ATTRIBUTE: Read from the object. METHOD: A method that takes
    nothing but the object. BATCHED: One call for all objects. RESOLVER: Its ordinary resolver.
    """

    TYPENAME = "typename"
    ATTRIBUTE = "attribute"
    METHOD = "method"
    BATCHED = "batched"
    RESOLVER = "resolver"


class Rows(StrEnum):
    """What the answer's objects are: dictionaries, or structs that are only good for JSON."""

    DICTS = "dicts"
    STRUCTS = "structs"


class Admission:
    """Which classes of objects are taken for an object type without looking at each object."""

    def __init__(self, object_type: GraphQLObjectType) -> None:
        self.classes: set[type] = set()
        self._bases: tuple[type, ...] | None = None
        if object_type.is_type_of is not None:
            self._bases = _bases_by_strawberry(object_type)

    @property
    def is_by_class(self) -> bool:
        """Whether a class can tell; otherwise each object is asked about."""
        return self._bases is None or bool(self._bases)

    def knows(self, cls: type) -> bool:
        """Whether every object of the class is one of the type."""
        if cls in self.classes:
            return True
        good = (
            _is_plain(cls)
            and not issubclass(cls, BaseException)
            and (self._bases is None or issubclass(cls, self._bases))
        )
        if good:
            self.classes.add(cls)
        return good


@dataclass(slots=True, eq=False)
class Shape:
    """A type, unwrapped once: may it be null, and what is it then?"""

    type: Any
    nonnull: bool
    kind: Kind
    of: Shape | None = None
    admission: Admission | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    enum: type[Enum] | None = None

    @property
    def exact_class(self) -> type | None:
        """The class whose values need no coercion; they may still be out of range."""
        return _EXACT_CLASSES.get(self.type.name) if _is_specified(self.type) else None

    @property
    def innermost(self) -> Shape:
        """What it is a list of, or itself."""
        return self if self.of is None else self.of.innermost

    def coerced(self, value: Any) -> Any:
        """Return a leaf as the answer holds it.

        Raises:
            TypeError: Or whatever the scalar raises: the value is none of the type.
        """
        return Executor.complete_leaf_value(self.type, value)


@dataclass(slots=True, eq=False)
class Field:
    """A field of a block.

    Attributes:
        view: What shows the records that it gives; ``None`` when it gives objects.
        is_inline: Whether it is read where the row is made.
        is_placeless: Whether what comes of it is the same wherever its object stands.
        arguments: What its resolver is given, once that is known to be the same every time.
    """

    key: str
    name: str
    parent_type: GraphQLObjectType
    details: list[FieldDetails]
    definition: GraphQLField
    shape: Shape
    how: How
    attribute: str = ""
    method: Callable[[Any], Any] | None = None
    batching: Batching | None = None
    view: type[View] | None = None
    is_lasting: bool = True
    is_inline: bool = False
    is_placeless: bool = False
    arguments: dict[str, Any] | None = None
    _blocks: dict[str, Block] = field(default_factory=dict)

    @property
    def nodes(self) -> list[FieldNode]:
        """The field's nodes in the document."""
        return [details.node for details in self.details]

    @property
    def names_no_variables(self) -> bool:
        """Whether the document gives its arguments as they are; some that it does may be missed."""
        given = self.details[0].node.arguments or ()
        return all(isinstance(argument.value, _CONSTANTS) for argument in given)


@dataclass(eq=False)
class Block:
    """An object type with one selection set.

    Attributes:
        fetched: Places of the fields whose values are fetched as columns, one value an object.
        is_placeless: Whether no field, here or below, looks where in the answer it is, or how
            often; then what comes of an object is the same wherever it stands.
        is_lasting: Whether every field, here and below, only reads or is ``LASTING``.
        make: Makes the answer's object out of all of its values.
    """

    object_type: GraphQLObjectType
    fields: list[Field]
    fetched: list[int]
    is_placeless: bool
    is_lasting: bool
    make: Callable[..., Any]

    def source(self, view: type[View] | None = None) -> str:
        """Return the text of ``rows``, or with a view of ``rows_of_records``."""
        return _Writer(view).of_many(self)

    @cached_property
    def rows(self) -> Callable[..., list[Any]]:
        """Makes the answer's objects out of objects and their fetched columns; raises Surprise."""
        writer = _Writer()
        return writer.compiled(writer.of_many(self))

    @cached_property
    def rows_of_records(self) -> Callable[..., list[Any]]:
        """Makes them out of the records that the objects would show."""
        writer = _Writer(view_of(self.object_type))
        return writer.compiled(writer.of_many(self))

    @cached_property
    def row(self) -> Callable[[Any], Any]:
        """Makes one out of an object without fetched values."""
        writer = _Writer()
        return writer.compiled(writer.of_one(self))


class Plan:
    """A compiled operation."""

    def __init__(
        self, schema: GraphQLSchema, document: DocumentNode, executor: Executor[Any], rows: Rows
    ) -> None:
        self.document = document
        self.rows = rows
        self._schema = schema
        self._admissions: dict[str, Admission] = {}
        root_type = schema.get_root_type(executor.operation.operation)
        assert root_type is not None  # noqa: S101 - as was validated
        grouped, _, _ = collect_fields(
            schema, executor.fragments, executor.variable_values, root_type, executor.operation
        )
        self.root = self._block(root_type, grouped, executor)

    @property
    def is_lasting(self) -> bool:
        """Whether the operation may be answered as before while nothing it reads has changed."""
        return self.root.is_lasting

    def block_of(
        self, found: Field, object_type: GraphQLObjectType, executor: Executor[Any]
    ) -> Block:
        """Return what is asked of an object of some type below a field."""
        block = found._blocks.get(object_type.name)  # noqa: SLF001 - a field's blocks are the plan's
        if block is None:
            grouped, _, _ = executor.collect_subfields(object_type, found.details)
            block = self._block(object_type, grouped, executor)
            found._blocks[object_type.name] = block  # noqa: SLF001 - the same
        return block

    def admission_of(self, object_type: GraphQLObjectType) -> Admission:
        """Return which classes are taken for an object type."""
        admission = self._admissions.get(object_type.name)
        if admission is None:
            admission = self._admissions[object_type.name] = Admission(object_type)
        return admission

    def complete(self, executor: Executor[Any]) -> None:
        """Compile what is asked of every possible type, which else waits for the first of each."""
        waiting = [self.root]
        while waiting:
            for found in waiting.pop().fields:
                innermost = found.shape.innermost
                if innermost.kind is Kind.ABSTRACT:
                    for object_type in self._schema.get_possible_types(innermost.type):
                        self.block_of(found, object_type, executor)
                waiting.extend(found._blocks.values())  # noqa: SLF001 - as above

    def explained(self, *, source: bool = False) -> str:
        """Return the plan for a person, as far as it is compiled.

        Args:
            source: Also the functions that make the rows.
        """
        return "\n".join(_explained(self.root, self.root.object_type.name, 0, source=source))

    def _block(
        self,
        object_type: GraphQLObjectType,
        grouped: Mapping[str, list[FieldDetails]],
        executor: Executor[Any],
    ) -> Block:
        fields = [
            self._field(object_type, key, details, definition, executor)
            for key, details in grouped.items()
            if (definition := self._schema.get_field(object_type, details[0].node.name.value))
        ]
        fetched = [place for place, found in enumerate(fields) if not found.is_inline]
        return Block(
            object_type=object_type,
            fields=fields,
            fetched=fetched,
            is_placeless=all(found.is_placeless for found in fields),
            is_lasting=all(map(_lasts, fields)),
            make=_maker(fields, self.rows, object_type.name),
        )

    def _field(
        self,
        parent_type: GraphQLObjectType,
        key: str,
        details: list[FieldDetails],
        definition: GraphQLField,
        executor: Executor[Any],
    ) -> Field:
        name = details[0].node.name.value
        shape = self._shape(definition.type)
        found = Field(key, name, parent_type, details, definition, shape, How.RESOLVER)
        _find_how(found)
        inner = shape.innermost
        self._find_view(found, inner)
        if inner.kind is Kind.OBJECT:
            below = self.block_of(found, inner.type, executor)
            inlinable = not below.fetched and self.admission_of(inner.type).is_by_class
        else:
            inlinable = inner.kind is Kind.LEAF
        can_be_read = found.how is How.TYPENAME or (
            found.how is How.ATTRIBUTE
            and found.view is None
            and all(map(_is_name, found.attribute.split(".")))
        )
        found.is_inline = can_be_read and inlinable
        found.is_placeless = self._is_placeless(found)
        return found

    def _find_view(self, found: Field, inner: Shape) -> None:
        """Find what shows the records that a field gives, if it does."""
        defined = found.definition.extensions.get(_STRAWBERRY)
        if found.name == "__typename" or not gives_records(getattr(defined, "metadata", {})):
            return
        view = view_of(inner.type) if inner.kind is Kind.OBJECT else None
        if view is not None and inner.admission is not None and inner.admission.knows(view):
            found.view = view
        else:  # its resolver makes the objects
            found.how, found.batching, found.attribute = How.RESOLVER, None, ""

    def _is_placeless(self, found: Field) -> bool:
        if found.how is How.RESOLVER or (found.batching is not None and found.batching.every_place):
            return False
        inner = found.shape.innermost
        if inner.kind is Kind.LEAF:
            return True
        if inner.kind is not Kind.OBJECT or not self.admission_of(inner.type).is_by_class:
            return False
        return found._blocks[inner.type.name].is_placeless  # noqa: SLF001 - compiled before

    def _shape(self, graphql_type: Any) -> Shape:
        nonnull = isinstance(graphql_type, GraphQLNonNull)
        if nonnull:
            graphql_type = graphql_type.of_type
        if isinstance(graphql_type, GraphQLList):
            return Shape(graphql_type, nonnull, Kind.LIST, of=self._shape(graphql_type.of_type))
        if isinstance(graphql_type, GraphQLObjectType):
            admission = self.admission_of(graphql_type)
            return Shape(graphql_type, nonnull, Kind.OBJECT, admission=admission)
        if is_abstract_type(graphql_type):
            return Shape(graphql_type, nonnull, Kind.ABSTRACT)
        shape = Shape(graphql_type, nonnull, Kind.LEAF)
        if isinstance(graphql_type, GraphQLEnumType):
            _learn_members(shape, graphql_type)
        return shape


def _lasts(found: Field) -> bool:
    inner = found.shape.innermost
    if not found.is_lasting or inner.kind is Kind.ABSTRACT:
        return False
    return inner.kind is Kind.LEAF or found._blocks[inner.type.name].is_lasting  # noqa: SLF001 - compiled before


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def is_awaitable_class(cls: type) -> bool:
    """Whether objects of a class may be awaitable; each of them tells."""
    return hasattr(cls, "__await__") or cls is GeneratorType or hasattr(cls, "__getattr__")


def _is_plain(cls: type) -> bool:
    return not is_awaitable_class(cls) and cls not in {NoneType, type(Undefined), Raised}


def is_record_class(cls: type) -> bool:
    """Whether objects of a class may be records, and are nothing that has a meaning by itself."""
    return _is_plain(cls) and not issubclass(cls, BaseException) and cls not in {list, tuple}


def _bases_by_strawberry(object_type: GraphQLObjectType) -> tuple[type, ...]:
    """Return the classes that Strawberry's own check looks for; none when the check is another."""
    definition = object_type.extensions.get(_STRAWBERRY)
    if not isinstance(definition, StrawberryObjectDefinition):
        return ()
    if definition.is_type_of is not None or definition.concrete_of is not None:
        return ()
    return (definition.origin, *(interface.origin for interface in definition.interfaces))


def _is_specified(graphql_type: Any) -> bool:
    """Whether a type is one of GraphQL's own scalars, and not another of the same name."""
    if not isinstance(graphql_type, GraphQLScalarType):
        return False
    specified = specified_scalar_types.get(graphql_type.name)
    return specified is not None and (
        graphql_type is specified
        or graphql_type.coerce_output_value == specified.coerce_output_value
    )


def _learn_members(shape: Shape, graphql_type: GraphQLEnumType) -> None:
    """Note the names of a Python enumeration's members, if it is one."""
    members = getattr(graphql_type, "wrapped_cls", None)
    if not (isinstance(members, type) and issubclass(members, Enum)):
        return
    shape.enum = members
    names = {}
    for member in members:
        try:
            names[id(member)] = shape.coerced(member)
        except Exception:  # noqa: BLE001, S112 - a member without a name is found out when it comes
            continue
    shape.names = names


def _find_how(found: Field) -> None:
    """Find out how a field's values are had."""
    if found.name == "__typename":
        found.how = How.TYPENAME
        return
    defined = found.definition.extensions.get(_STRAWBERRY)
    resolve = found.definition.resolve
    found.is_lasting = isinstance(defined, StrawberryField) and is_lasting(defined.metadata)
    if not isinstance(defined, StrawberryField) or resolve is None or defined.extensions:
        return
    if defined.base_resolver is None:
        # Strawberry's name for a resolver that does nothing but read an attribute.
        is_basic = getattr(resolve, "__name__", "") == "_get_basic_result"
        if is_basic and defined.default_resolver is getattr and defined.python_name:
            found.how, found.attribute = How.ATTRIBUTE, defined.python_name
            found.is_lasting = True
        return
    if getattr(resolve, "__name__", "") not in {"_resolver", "_async_resolver"}:
        return
    resolver = defined.base_resolver
    taken = [name for name in resolver.reserved_parameters.values() if name is not None]
    found.batching = batching_of(defined.metadata)
    if found.batching is not None:
        found.how = How.BATCHED
    elif path := path_read(defined.metadata):
        found.how, found.attribute, found.is_lasting = How.ATTRIBUTE, path, True
    elif taken == [resolver.self_parameter] and not resolver.arguments:
        if _handles_exceptions(resolve):
            return
        assert callable(resolver.wrapped_func)  # noqa: S101 - Strawberry has bound it
        found.how, found.method, found.is_lasting = How.METHOD, resolver.wrapped_func, True


def _handles_exceptions(resolve: Callable[..., Any]) -> bool:
    """Whether Strawberry turns exceptions of this resolver into results."""
    names = resolve.__code__.co_freevars
    cells = resolve.__closure__ or ()
    found = dict(zip(names, cells, strict=True)).get("field_exception_handlers")
    return found is None or bool(found.cell_contents)


class Row(msgspec.Struct, gc=False):
    """An object of the answer; only good for being counted and written.

    Attributes:
        values: How many fields it has, and those of the objects inside that are always there.
        optional: How many values are in what an attribute holds, by its name, if that is not null.
        containers: Names of the attributes that may hold any number of values.
    """

    values: ClassVar[int] = 0
    optional: ClassVar[Mapping[str, int]] = {}
    containers: ClassVar[Sequence[str]] = ()


def _maker(fields: Sequence[Field], rows: Rows, name: str) -> Callable[..., Any]:
    keys = [found.key for found in fields]
    if rows is Rows.DICTS:
        return lambda *values: dict(zip(keys, values, strict=True))
    values, optional, containers = len(fields), {}, []
    for place, found in enumerate(fields):
        inside = _values_inside(found)
        if inside is None:
            containers.append(f"f{place}")
        elif found.shape.nonnull or not inside:
            values += inside
        else:
            optional[f"f{place}"] = inside
    return _row_class(name, tuple(keys), values, tuple(optional.items()), tuple(containers))


def _row_class(
    name: str,
    keys: tuple[str, ...],
    values: int,
    optional: tuple[tuple[str, int], ...],
    containers: tuple[str, ...],
) -> type[Any]:
    """Return the class of an answer's rows; plans whose rows are alike share it."""
    alike = (name, keys, values, optional, containers)
    found: type[Any] | None = _row_classes.get(alike)
    if found is None:
        found = _row_classes[alike] = msgspec.defstruct(
            name,
            [(f"f{place}", Any) for place in range(len(keys))],
            bases=(Row,),
            namespace={"values": values, "optional": dict(optional), "containers": containers},
            rename={f"f{place}": key for place, key in enumerate(keys)},
            gc=False,
        )
    return found


_row_classes: WeakValueDictionary[tuple[object, ...], type[Any]] = WeakValueDictionary()
"""Those of the plans there are. A class takes as much memory as all else that a block needs."""


def _values_inside(found: Field) -> int | None:
    """Return how many values are in what a field gives, if it is not null.

    ``None`` when one has to look.
    """
    shape = found.shape
    if shape.kind is Kind.LEAF:
        return None if _is_open(shape) else 0
    if shape.kind is not Kind.OBJECT:
        return None
    below = found._blocks[shape.type.name].make  # noqa: SLF001 - compiled before
    if not isinstance(below, type) or not issubclass(below, Row):
        return None
    if below.optional or below.containers:
        return None
    return below.values


def _is_open(shape: Shape) -> bool:
    """Whether a leaf may be more than one value: what a custom scalar is written as, who knows."""
    is_custom = shape.kind is Kind.LEAF and shape.exact_class is None
    return is_custom and not isinstance(shape.type, GraphQLEnumType)


class _Writer:
    """Writes the function that makes rows of the answer out of objects.

    What objects hold whose fields are all attributes is made in the same function, down to a few
    levels; in lists, and further down, it is made by a function of its own. What comes again, with
    no more than one other in between, is made once: the roles in a course are those of students
    and of teachers.

    Args:
        view: What shows the objects, when they are records.
    """

    def __init__(self, view: type[View] | None = None) -> None:
        self._globals: dict[str, Any] = {"Surprise": Surprise, "nothing": object()}
        self._variables = 0
        self._view = view
        self._before: list[str] | None = None

    def of_many(self, block: Block) -> str:
        """Return the text of a function that takes objects, and a column for each field fetched."""
        values = [f"v{place}" for place in block.fetched]
        columns = [f"c{place}" for place in block.fetched]
        each, among = "o", "objects"
        if values:
            each = f"o, {', '.join(values)}"
            among = f"zip(objects, {', '.join(columns)})"
        self._before = []
        lines, made = self._made(block, "o", 0)
        body = "".join(f"        {line}\n" for line in [*lines, f"add({made})"])
        before = "".join(f"    {line}\n" for line in self._before)
        return (
            f"def made({', '.join(['objects', *columns])}):\n"
            "    rows = []\n"
            "    add = rows.append\n"
            f"{before}"
            f"    for {each} in {among}:\n{body}"
            "    return rows\n"
        )

    def of_one(self, block: Block) -> str:
        """Return the text of a function that takes an object of which no field is fetched."""
        lines, made = self._made(block, "o", 0)
        body = "".join(f"    {line}\n" for line in [*lines, f"return {made}"])
        return f"def made(o):\n{body}"

    def compiled(self, source: str) -> Callable[..., Any]:
        """Return the function that was written."""
        exec(_compiled(source), self._globals)  # noqa: S102 - written above, of names that are checked
        # Taken out, so that the function goes with its plan, and not when the collector comes by.
        made: Callable[..., Any] = self._globals.pop("made")
        return made

    def _made(self, block: Block, of: str, depth: int) -> tuple[list[str], str]:
        """Return lines that read and check what an object holds, and the expression of its row."""
        values: list[str] = []
        lines: list[str] = []
        holders = {"" if depth or self._view is None else RECORD: of}
        for place, found in enumerate(block.fields):
            value = f"v{place}" if not depth else self._variable()
            if place not in block.fetched and found.how is How.TYPENAME:
                value = repr(block.object_type.name)
            elif place not in block.fetched:
                holder, _, attribute = found.attribute.rpartition(".")
                lines.append(f"{value} = {self._held(holder, holders, lines)}.{attribute}")
                lines.extend(self._checked(found.shape, value, found, depth))
            values.append(value)
        if isinstance(block.make, type):
            return lines, f"{self._named('make', block.make)}({', '.join(values)})"
        pairs = zip(block.fields, values, strict=True)
        return lines, f"{{{', '.join(f'{found.key!r}: {value}' for found, value in pairs)}}}"

    def _held(self, path: str, holders: dict[str, str], lines: list[str]) -> str:
        """Return the variable of what is at a path, which is read once."""
        if path not in holders:
            if path:
                above, _, attribute = path.rpartition(".")
                made = f"{self._held(above, holders, lines)}.{attribute}"
            else:
                made = f"{self._named('view', self._view)}({holders[RECORD]})"
            holders[path] = self._variable()
            lines.append(f"{holders[path]} = {made}")
        return holders[path]

    def _variable(self) -> str:
        self._variables += 1
        return f"a{self._variables}"

    def _named(self, what: str, value: Any) -> str:
        name = f"{what}{len(self._globals)}"
        self._globals[name] = value
        return name

    def _checked(self, shape: Shape, value: str, found: Field, depth: int) -> Iterator[str]:
        """Yield the lines that make a variable's value what the answer holds."""
        if shape.kind is Kind.LEAF:
            condition, coerced = self._leaf(shape, value)
            yield f"if {condition}:"
            yield f"    {value} = {coerced}"
            return
        if shape.kind is Kind.OBJECT:
            word, kept = "if", ""
            if self._before is not None:
                last, kept, other, other_kept = (self._variable() for _ in range(4))
                self._before.append(f"{last} = {kept} = {other} = {other_kept} = nothing")
                yield f"if {value} is {last}:"
                yield f"    {value} = {kept}"
                yield f"elif {value} is {other}:"
                yield f"    {value} = {other_kept}"
                word = "elif"
            yield f"{word} {self._is_object(shape, value)}:"
            below = found._blocks[shape.type.name]  # noqa: SLF001 - compiled before
            if depth < _MAX_INLINE:
                lines, made = self._made(below, value, depth + 1)
                yield from (f"    {line}" for line in lines)
            else:
                made = f"{self._named('row', below.row)}({value})"
            if kept:
                yield f"    {other}, {other_kept} = {last}, {kept}"
                yield f"    {last}, {kept} = {value}, {made}"
                made = kept
            yield f"    {value} = {made}"
        else:
            listed = self._named("is_list", _list_check(nonnull=shape.nonnull))
            assert shape.of is not None  # noqa: S101 - it is a list
            yield f"if type({value}) is list or {listed}({value}):"
            yield f"    {value} = [{self._item(shape.of, found)} for x in {value}]"
        yield "else:"
        yield f"    {value} = None"

    def _item(self, shape: Shape, found: Field) -> str:
        """Return the expression that makes an item ``x`` what the answer holds."""
        if shape.kind is Kind.LEAF:
            condition, coerced = self._leaf(shape, "x")
            return f"{coerced} if {condition} else x"
        if shape.kind is Kind.OBJECT:
            row = self._named("row", found._blocks[shape.type.name].row)  # noqa: SLF001 - compiled before
            return f"{row}(x) if {self._is_object(shape, 'x')} else None"
        name = f"item{len(self._globals)}"
        self._globals[name] = None
        body = "".join(f"    {line}\n" for line in self._checked(shape, "x", found, _MAX_INLINE))
        exec(compile(f"def {name}(x):\n{body}    return x\n", "<plan>", "exec"), self._globals)  # noqa: S102 - as in compiled
        return f"{name}(x)"

    def _leaf(self, shape: Shape, value: str) -> tuple[str, str]:
        """Return when a value is not yet what the answer holds, and what it is then."""
        guard = "" if shape.nonnull else f" and {value} is not None"
        other = self._named("other", _leaf_check(shape))
        if shape.enum is not None and shape.names:
            members = self._named("enum", shape.enum)
            names = self._named("names", shape.names)
            # Members are looked up by identity: many enumerations have a slow hash.
            named = f"{names}[id({value})] if type({value}) is {members} else {other}({value})"
            return f"True{guard}", f"({named})"
        exact = shape.exact_class
        if exact is None:
            return f"True{guard}", f"{other}({value})"
        condition = f"(type({value}) is not {exact.__name__} "
        condition += _IN_RANGE.get(shape.type.name, "").format(value)
        return f"{condition.rstrip()}){guard}", f"{other}({value})"

    def _is_object(self, shape: Shape, value: str) -> str:
        """Return the expression of whether a value is an object of the type."""
        admission = shape.admission
        assert admission is not None  # noqa: S101 - it is an object
        classes = self._named("classes", admission.classes)
        other = self._named("is_object", _object_check(admission, nonnull=shape.nonnull))
        return f"type({value}) in {classes} or {other}({value})"


@lru_cache(maxsize=500)
def _compiled(source: str) -> CodeType:
    """Return the code of a text; rows that are made alike differ in what the names stand for."""
    return compile(source, "<plan>", "exec")


def _leaf_check(shape: Shape) -> Callable[[Any], Any]:
    """Return what coerces a leaf that is not exactly of the type's class."""

    def other(value: Any) -> Any:
        if value is None or value is Undefined:
            if shape.nonnull:
                raise Surprise
            return None
        if isinstance(value, Exception) or (
            is_awaitable_class(type(value)) or hasattr(value, "__await__")
        ):
            raise Surprise
        return shape.coerced(value)

    return other


def _object_check(admission: Admission, *, nonnull: bool) -> Callable[[Any], bool]:
    def is_object(value: Any) -> bool:
        if value is None and not nonnull:
            return False
        if admission.knows(type(value)):
            return True
        raise Surprise

    return is_object


def _list_check(*, nonnull: bool) -> Callable[[Any], bool]:
    def is_list(value: Any) -> bool:
        if value is None and not nonnull:
            return False
        if type(value) is tuple:
            return True
        raise Surprise

    return is_list


def _explained(
    block: Block, place: str, depth: int, *, source: bool, view: type[View] | None = None
) -> Iterator[str]:
    indent = "  " * depth
    way = "rows from columns" if block.fetched else "rows from objects alone"
    yield f"{indent}{place}: {way}"
    if source:
        yield from (f"{indent}    | {line}" for line in block.source(view).splitlines())
    for found in block.fields:
        alias = "" if found.key == found.name else f" = {found.name}"
        how = f"{found.how} in the row" if found.is_inline else f"column by {found.how}"
        yield f"{indent}  {found.key}{alias}: {found.definition.type}, {how}"
        for name, below in found._blocks.items():  # noqa: SLF001 - a field's blocks are the plan's
            yield from _explained(below, name, depth + 2, source=source, view=found.view)
