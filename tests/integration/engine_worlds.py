"""Random schemas, data and operations, executed by graphql-core and by plans, and compared.

A world is made from a number. Its schema is made twice: once as it is, with coroutines, promises,
asynchronous generators and batched fields, and once calm, with the same values given at once. An
execution of one field after the other, which the calm schema gets from graphql-core, has one
answer, to the last byte: a plan must give it for both. What graphql-core itself makes of promises
has the same data; which of several errors below one nulled place are told, and in which order,
depends on which promise is kept first.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import sys
import types
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Annotated, Any, Optional, Union

import msgspec
import strawberry
from graphql import (
    DocumentNode,
    ExecutionResult,
    Executor,
    GraphQLError,
    GraphQLSchema,
    Undefined,
    parse,
    validate,
)
from strawberry.schema.config import StrawberryConfig
from strawberry.types import Info

from schema.costs import count_values
from schema.engine import Engine, Rows, Spread, View, Written, batched, pieces_of, reads
from schema.engine.batches import viewed

DOCUMENTS_PER_WORLD = 20
DATA_PER_DOCUMENT = 25
BATCHED = ("batched", "batched apart", "batched for every place", "batched and spread")
_SCALARS = ("str", "int", "float", "bool", "ID", "Odd")


class Odd:
    """A custom scalar's Python side."""


def _odd(value: Any) -> Any:
    if value == 13:
        raise ValueError("13 is unlucky")
    if value == 14:
        return None
    return {"odd": value} if isinstance(value, int) else [repr(type(value).__name__)]


_ODD = strawberry.scalar(name="Odd", serialize=_odd, parse_value=lambda value: value)


@dataclass(frozen=True)
class Type:
    """A type of a field: what it is called in Python, or a list of something."""

    nullable: bool
    name: str = ""
    of: Type | None = None

    @property
    def innermost(self) -> Type:
        return self if self.of is None else self.of.innermost

    def annotation(self) -> str:
        inner = self.name if self.of is None else f"list[{self.of.annotation()}]"
        return f"Optional[{inner}]" if self.nullable else inner


@dataclass(frozen=True)
class FieldSpec:
    name: str
    type: Type
    how: str
    gives_records: bool = False
    takes_records: bool = False
    may_repeat: bool = False

    @property
    def graphql_name(self) -> str:
        head, *rest = self.name.split("_")
        return head + "".join(part.capitalize() for part in rest)


@dataclass
class TypeSpec:
    name: str
    fields: list[FieldSpec]
    interfaces: list[str] = field(default_factory=list)
    asks: bool = False
    slots: bool = False
    views: bool = False


class Promise:
    """Awaitable, as often as one likes."""

    def __init__(self, value: Any, turns: int) -> None:
        self.value = value
        self.turns = turns

    def __repr__(self) -> str:
        return repr(self.value)  # so that a text that quotes it is the same

    def __await__(self) -> Generator[Any, Any, Any]:
        for _ in range(self.turns):
            yield from asyncio.sleep(0).__await__()
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Lazy:
    """Iterable, as often as one likes, perhaps until it breaks."""

    def __init__(self, items: list[Any], *, broken: bool) -> None:
        self.items = items
        self.broken = broken

    def __repr__(self) -> str:
        return "something iterable"

    def __iter__(self) -> Iterator[Any]:
        yield from self.items
        if self.broken:
            raise ValueError("the iterator broke")


class Stream(Lazy):
    """The same, asynchronously."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            await asyncio.sleep(0)
            yield item
        if self.broken:
            raise ValueError("the iterator broke")


class World:
    """A schema, and the values its fields have."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = self.rng = Random(seed)
        self.faults = rng.choice([0.0, 0.0, 0.01, 0.05, 0.2])
        self.calm_by_nature = rng.random() < 0.4
        self.enums = [f"E{n}" for n in range(rng.randint(1, 2))]
        self.enum_kinds = [rng.choice(["plain", "str", "int"]) for _ in self.enums]
        self.interfaces = [TypeSpec(f"I{n}", []) for n in range(rng.randint(1, 2))]
        self.objects = [TypeSpec(f"T{n}", []) for n in range(rng.randint(2, 5))]
        self.unions = {
            f"U{n}": rng.sample([one.name for one in self.objects], 2)
            for n in range(rng.randint(0, 2))
        }
        for spec in self.interfaces:
            spec.fields = [self._field(spec.name, n) for n in range(rng.randint(1, 3))]
        for spec in self.objects:
            spec.interfaces = [one.name for one in self.interfaces if rng.random() < 0.6]
            # Strawberry's unions take no promise of is_type_of.
            in_union = any(spec.name in names for names in self.unions.values())
            spec.asks = rng.random() < 0.25 and not in_union
            spec.fields = [self._field(spec.name, n) for n in range(rng.randint(2, 6))]
            spec.views = rng.random() < 0.5 and not spec.asks and not spec.interfaces
        for place, spec in enumerate(self.objects):
            spec.fields = [self._of_records(found, spec, place) for found in spec.fields]
        self.query = TypeSpec("Query", [self._field("Query", n) for n in range(rng.randint(3, 6))])

    def fields_of(self, name: str) -> list[FieldSpec]:
        """Return the fields of a type, inherited ones first."""
        spec = self.spec(name)
        inherited = [found for base in spec.interfaces for found in self.spec(base).fields]
        return [*inherited, *spec.fields]

    def spec(self, name: str) -> TypeSpec:
        specs = (self.query, *self.objects, *self.interfaces)
        return next(spec for spec in specs if spec.name == name)

    def possible(self, name: str) -> list[str]:
        if name in self.unions:
            return self.unions[name]
        if name.startswith("I") and name != "ID":
            return [spec.name for spec in self.objects if name in spec.interfaces]
        return [name]

    def _field(self, owner: str, number: int) -> FieldSpec:
        rng = self.rng
        name = f"{owner.lower()}_{rng.choice(['alpha', 'beta', 'class', 'x'])}{number}"
        how = rng.choices(
            [
                "attribute",
                "read",
                "method",
                "info",
                "arguments",
                "async",
                "stream",
                *BATCHED,
                "path",
            ],
            [6, 2, 3, 1, 1, 1, 1, 0.6, 0.4, 0.4, 0.6, 0.5],
        )[0]
        if how == "path":
            return FieldSpec(name, Type(nullable=False, name="str"), how)
        return FieldSpec(name, self._type(2), how)

    def _of_records(self, found: FieldSpec, owner: TypeSpec, place: int) -> FieldSpec:
        """Return a field as one that takes and gives records, where it can."""
        how = "read" if owner.views and found.how == "attribute" else found.how
        viewed_types = [
            spec.name
            for number, spec in enumerate(self.objects)
            if spec.views and (how in BATCHED or (how == "read" and number < place))
        ]
        return replace(
            found,
            how=how,
            gives_records=found.type.innermost.name in viewed_types and self.rng.random() < 0.7,
            takes_records=how in BATCHED and owner.views and self.rng.random() < 0.7,
            may_repeat=self.rng.random() < 0.3,
        )

    def _type(self, lists: int) -> Type:
        rng = self.rng
        nullable = rng.random() < 0.55
        if lists and rng.random() < 0.3:
            return Type(nullable, of=self._type(lists - 1))
        roll = rng.random()
        if roll < 0.45:
            return Type(nullable, rng.choice([*_SCALARS, *self.enums]))
        names = [spec.name for spec in self.objects]
        if roll > 0.8:
            names = [*self.unions, *(spec.name for spec in self.interfaces)]
        return Type(nullable, rng.choice(names))


class Values:
    """What a world's fields give: as it is, or calm."""

    def __init__(self, world: World, *, calm: bool) -> None:
        self.world = world
        self.calm = calm
        self.classes: dict[str, type] = {}

    def of(self, parent: Any, spec: FieldSpec, extra: str = "") -> Any:
        """Return a field's value; the same for the same object."""
        rng = Random(f"{self.world.seed}/{_key(parent, spec)}/{spec.name}/{extra}")
        if rng.random() < self.world.faults / 2:
            error = rng.choice([ValueError("resolver"), GraphQLError("resolver"), KeyError("k")])
            raise error
        records = spec.gives_records
        promises = not self.calm_world and not records
        return self.value(rng, spec.type, depth=2, promises=promises, records=records)

    @property
    def calm_world(self) -> bool:
        return self.world.calm_by_nature

    def value(
        self, rng: Random, kind: Type, *, depth: int, promises: bool, records: bool = False
    ) -> Any:
        if rng.random() < self.world.faults:
            return self._fault(rng, depth, promises=promises)
        if promises and rng.random() < 0.05:
            turns = rng.randint(0, 3)
            kept = self.value(rng, kind, depth=depth, promises=False)
            return kept if self.calm else Promise(kept, turns)
        if kind.nullable and rng.random() < 0.15:
            return None
        if kind.of is not None:
            return self._list(rng, kind.of, depth, promises=promises, records=records)
        return self._named(rng, kind.name, depth, records=records)

    def _list(self, rng: Random, kind: Type, depth: int, *, promises: bool, records: bool) -> Any:
        most = 3 if depth > 0 else 1
        items = [
            self.value(rng, kind, depth=depth, promises=promises, records=records)
            for _ in range(rng.randint(0, most))
        ]
        if items and rng.random() < 0.1:
            items.append(items[0])
        roll = rng.random()
        if roll < 0.75:
            return items
        if roll < 0.82 or records:
            return tuple(items)
        if roll < 0.86:
            return deque(items)
        if roll < 0.9:
            return Lazy(items, broken=False)
        if roll < 0.92:
            return Lazy(items, broken=bool(self.world.faults))
        return self._stream(items, broken=bool(self.world.faults) and rng.random() < 0.2)

    def _stream(self, items: list[Any], *, broken: bool) -> Any:
        if self.calm or self.calm_world:
            return Lazy(items, broken=broken)
        return Stream(items, broken=broken)

    def _named(self, rng: Random, name: str, depth: int, *, records: bool) -> Any:
        if name in {"str", "ID"}:
            return rng.choice(["a", "ü", "", "long " * 3, "0"])
        if name == "int":
            too_long = [2**31, -(2**31) - 1] if self.world.faults else []
            return rng.choice([0, 1, -5, 2**31 - 1, -(2**31), *too_long])
        if name == "float":
            no_numbers = [float("nan"), float("-inf")] if self.world.faults else []
            return rng.choice([0.5, -1.25, 1e300, 3, 0.0, *no_numbers])
        if name == "bool":
            return rng.random() < 0.5
        if name == "Odd":
            return rng.choice([1, 2, "x", None, 13, 14]) if self.world.faults else 1
        if name in self.world.enums:
            members: Any = self.classes[name]
            return rng.choice([*members])
        possible = self.world.possible(name)
        if not possible:
            return None
        return self.instance(rng, rng.choice(possible), depth, as_record=records)

    def instance(self, rng: Random, name: str, depth: int, *, as_record: bool = False) -> Any:
        made: Any = object.__new__(self.classes[name])
        held = types.SimpleNamespace()
        if self.world.spec(name).views:
            made.record = held
            held._seed = rng.randint(0, 10**9)
        else:
            made._seed = rng.randint(0, 10**9)
            made.held = held
        inner = Random(made._seed)
        for spec in self.world.fields_of(name):
            if spec.how not in {"attribute", "read"}:
                continue
            holder = made if spec.how == "attribute" else held
            if self.world.faults and inner.random() < self.world.faults / 4:
                continue  # a missing attribute
            kind = spec.type
            if depth <= 0 and kind.name not in {*_SCALARS, *self.world.enums}:
                shallow: Any = [] if kind.of is not None else None
                setattr(holder, spec.name, shallow)
                continue
            records = spec.gives_records
            promises = not self.calm_world and inner.random() < 0.1 and not records
            value = self.value(inner, kind, depth=depth - 1, promises=promises, records=records)
            setattr(holder, spec.name, value)
        return held if as_record else made

    def _fault(self, rng: Random, depth: int, *, promises: bool) -> Any:
        roll = rng.randint(0, 11)
        if roll == 0:
            return None
        if roll == 1:
            return ValueError("a value that is an error")
        if roll == 2:
            return GraphQLError("a value that is GraphQL's error")
        if roll == 3:
            return Undefined
        if roll == 4:
            broken, turns = RuntimeError("a broken promise"), rng.randint(0, 2)
            return Promise(broken, turns) if promises and not self.calm else broken
        if roll == 5:
            return rng.choice([2**40, float("nan"), float("inf"), True, 7])
        if roll == 6:
            return rng.choice(["text", b"bytes", "A"])
        if roll == 7:
            return {"a": 1}
        if roll == 8:
            return [1, None, "x"]
        if roll == 9 and depth > 0:
            return self.instance(rng, rng.choice(self.world.objects).name, depth - 1)
        if roll == 10:
            return Lazy([], broken=False)
        return [[]]


def schema_of(world: World, *, calm: bool) -> tuple[strawberry.Schema, Values]:
    """Build a world's schema."""
    values = Values(world, calm=calm)
    name = f"engine_world_{world.seed}_{'calm' if calm else 'wild'}"
    module = types.ModuleType(name)
    sys.modules[name] = module
    space = module.__dict__
    space.update(Optional=Optional, ID=strawberry.ID, Odd=Odd, Info=Info, strawberry=strawberry)
    for enum_name, kind in zip(world.enums, world.enum_kinds, strict=True):
        members = {"A": 1, "B": 2} if kind != "str" else {"A": "a", "B": "b"}
        base = {"plain": enum.Enum, "str": enum.StrEnum, "int": enum.IntEnum}[kind]
        made = base(enum_name, members, module=name)
        space[enum_name] = values.classes[enum_name] = strawberry.enum(made)
    given = types.new_class(
        "Given",
        (),
        {},
        lambda body: body.update(
            __module__=name,
            __annotations__={"number": "int", "words": "Optional[list[str]]"},
            number=1,
            words=None,
        ),
    )
    space["Given"] = strawberry.input(given)
    for spec in world.interfaces:
        space[spec.name] = strawberry.interface(_class(spec, (), values, name))
    for spec in (*world.objects, world.query):
        bases = tuple(space[base] for base in spec.interfaces)
        made_type = strawberry.type(_class(spec, bases, values, name))
        space[spec.name] = values.classes[spec.name] = made_type
    for union, members_of in world.unions.items():
        classes = tuple(space[one] for one in members_of)
        space[union] = Annotated[Union[classes], strawberry.union(union)]  # noqa: UP007 - of a tuple
    schema = strawberry.Schema(
        query=space["Query"],
        types=[space[spec.name] for spec in world.objects],
        config=StrawberryConfig(scalar_map={Odd: _ODD}),
    )
    return schema, values


def forget(world: World) -> None:
    """Take a world's modules out of Python's."""
    for mood in ("calm", "wild"):
        sys.modules.pop(f"engine_world_{world.seed}_{mood}", None)


def _class(spec: TypeSpec, bases: tuple[type, ...], values: Values, module: str) -> type:
    annotations: dict[str, str] = {}
    body: dict[str, Any] = {"__module__": module, "__annotations__": annotations}
    for found in spec.fields:
        if found.how == "attribute" and spec.name != "Query":
            annotations[found.name] = found.type.annotation()
        elif found.how == "read" and spec.name != "Query":
            annotations[found.name] = found.type.annotation()
            path = f"{'record' if spec.views else 'held'}.{found.name}"
            view = values.classes[found.type.innermost.name] if found.gives_records else None
            body[found.name] = reads(path, view=view)
        else:
            body[found.name] = _resolver(found, values, module)
    if spec.views:
        body.update(__init__=_hold, _seed=property(_seed_of_record))
        bases = (*bases, View)
    if spec.asks:
        body["is_type_of"] = classmethod(_asker(values))
    return type(spec.name, bases, body)


def _hold(self: Any, record: Any) -> None:
    self.record = record


def _seed_of_record(self: Any) -> int:
    seed: int = self.record._seed
    return seed


def _asker(values: Values) -> Callable[..., Any]:
    def is_type_of(cls: type, value: Any, info: Any) -> Any:
        rng = Random(f"{getattr(value, '_seed', 0)}/{info.path.as_list()}")
        verdict: Any = isinstance(value, cls)
        if rng.random() < values.world.faults / 4:
            verdict = LookupError("nobody knows what it is")
        if not values.calm and not values.calm_world and rng.random() < 0.5:
            return Promise(verdict, 1)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    return is_type_of


def _resolver(spec: FieldSpec, values: Values, module: str) -> Any:
    how = spec.how
    quiet = values.calm or values.calm_world
    resolve: Callable[..., Any]
    if how == "path":

        def resolve_path(self: Any, info: Info) -> str:
            variables = sorted(info.variable_values.items(), key=str)
            raw = info._raw_info
            parent = raw.parent_type.name
            place, count = info.path.as_list(), len(raw.field_nodes)
            return f"{place} {info.field_name} {parent} {variables} {count}"

        resolve = resolve_path
    elif how == "info":

        def resolve_with_info(self: Any, info: Info) -> Any:
            return values.of(self, spec, str(len(info.path.as_list())))

        resolve = resolve_with_info
    elif how == "arguments":

        def resolve_with_arguments(
            self: Any,
            size: int = 3,
            word: str | None = None,
            given: Any = None,
            letters: list[str | None] | None = None,
        ) -> Any:
            number = None if given is None else (given.number, given.words)
            return values.of(self, spec, f"{size}/{word}/{number}/{letters}")

        resolve_with_arguments.__annotations__["given"] = "Optional[Given]"
        resolve = resolve_with_arguments
    elif how == "stream" and spec.type.of is not None:

        async def resolve_stream(self: Any) -> Any:
            for item in _listed(values, self, spec):
                await asyncio.sleep(0)
                yield item

        def resolve_list(self: Any) -> Any:
            yield from _listed(values, self, spec)

        resolve = resolve_list if quiet else resolve_stream
    elif how == "async" and not quiet:

        async def resolve_later(self: Any) -> Any:
            await asyncio.sleep(0)
            found = values.of(self, spec)
            # What a coroutine returns is not waited for once more.
            return found.value if isinstance(found, Promise) else found

        resolve = resolve_later
    elif how in BATCHED and not quiet:

        async def load(parents: Sequence[Any], info: Info) -> Any:
            await asyncio.sleep(0)
            if how == "batched and spread":
                keys = [_key(parent, spec) for parent in parents]
                by_key = dict(zip(keys, parents, strict=True))
                outcomes = {key: _outcome(values, each, spec) for key, each in by_key.items()}
                return Spread(outcomes, keys)
            return [_outcome(values, parent, spec) for parent in parents]

        load.__annotations__ = {"return": f"list[{spec.type.annotation()}]"}
        load.__module__ = module
        records: dict[str, Any] = {
            "gives_records": spec.gives_records,
            "takes_records": spec.takes_records,
            "may_repeat": spec.may_repeat,
        }
        if how == "batched apart":
            return batched(load, apart=lambda parent: getattr(parent, "_seed", 0) % 3, **records)
        return batched(load, every_place=how == "batched for every place", **records)
    else:

        def resolve_simply(self: Any) -> Any:
            found = values.of(self.record if spec.takes_records else self, spec)
            if spec.gives_records:
                return viewed(values.classes[spec.type.innermost.name], found)
            return found

        resolve = resolve_simply
    if how != "path":
        resolve.__annotations__["return"] = spec.type.annotation()
    resolve.__module__ = module
    return strawberry.field(resolver=resolve)


def _listed(values: Values, parent: Any, spec: FieldSpec) -> list[Any]:
    found = values.of(parent, spec)
    if isinstance(found, Promise):
        found = found.value
    if isinstance(found, Lazy) and not found.broken:
        found = found.items
    if isinstance(found, Exception):
        raise found
    if not isinstance(found, list):
        raise TypeError("no list to stream")
    return found


def _key(parent: Any, spec: FieldSpec) -> int:
    """Return what decides about a field's value; of many objects the same where it is spread."""
    seed: int = getattr(parent, "_seed", 0)
    return seed % 3 if spec.how == "batched and spread" else seed


def _outcome(values: Values, parent: Any, spec: FieldSpec) -> Any:
    try:
        found = values.of(parent, spec)
    except Exception as error:
        return error
    # What a batch gives is not waited for once more.
    return found.value if isinstance(found, Promise) else found


class Writer:
    """Writes a random operation."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.rng = rng
        self.variables: dict[str, tuple[str, Any]] = {}
        self.fragments: dict[str, str] = {}
        self.left = 40

    def operation(self) -> tuple[str, dict[str, Any]]:
        body = self.selections("Query", 4)
        given: dict[str, Any] = {}
        declared = []
        for name, (declaration, value) in self.variables.items():
            declared.append(f"${name}: {declaration}")
            if value is not Undefined:
                given[name] = value
        head = f"query Q({', '.join(declared)}) " if declared else ""
        return "\n".join([head + body, *self.fragments.values()]), given

    def selections(self, type_name: str, depth: int) -> str:
        parts = []
        fields = [] if type_name in self.world.unions else self.world.fields_of(type_name)
        for _ in range(self.rng.randint(1, 5)):
            self.left -= 1
            roll = self.rng.random()
            if roll < 0.1 or not fields:
                parts.append(self.rng.choice(["__typename", "kind: __typename"]))
            elif roll < 0.2 and depth > 1 and self.left > 0:
                parts.append(self.inline(type_name, depth))
            elif roll < 0.28 and depth > 1 and self.left > 0:
                parts.append(self.spread(type_name, depth))
            else:
                parts.append(self.field(self.rng.choice(fields), depth))
        if type_name in self.world.unions or type_name.startswith("I"):
            parts.extend(self.inline(type_name, depth) for _ in range(2) if depth > 1)
        return f"{{ {' '.join(part for part in parts if part) or '__typename'} }}"

    def field(self, spec: FieldSpec, depth: int) -> str:
        inner = spec.type
        while inner.of is not None:
            inner = inner.of
        is_leaf = inner.name in {*_SCALARS, *self.world.enums}
        if not is_leaf and (depth <= 1 or self.left <= 0):
            return ""
        name = spec.graphql_name
        arguments, suffix = self.arguments() if spec.how == "arguments" else ("", "")
        alias = f"{name}{suffix}: " if suffix else ""
        if not suffix and self.rng.random() < 0.15:
            alias = f"{name}_again: "
        below = "" if is_leaf else self.selections(inner.name, depth - 1)
        return f"{alias}{name}{arguments}{self.directive()} {below}"

    def arguments(self) -> tuple[str, str]:
        roll = self.rng.randint(0, 7)
        if roll == 0:
            return "", ""
        if roll == 1:
            return '(size: 7, word: "w")', "L"
        if roll == 2:
            self.variables["size"] = ("Int! = 4", self.rng.choice([5, Undefined]))
            return "(size: $size)", "S"
        if roll == 3:
            self.variables["word"] = ("String", self.rng.choice(["ü", None, Undefined]))
            return "(word: $word)", "W"
        if roll == 4:
            self.variables["given"] = ("Given", {"number": 3, "words": ["a"]})
            return "(given: $given)", "G"
        if roll == 5:
            return '(given: {number: 2, words: ["x", "y"]}, letters: ["p", null])', "O"
        if roll == 6:
            self.variables["number"] = ("Int", self.rng.choice([None, 2, Undefined]))
            return "(given: {number: $number})", "N"  # a null here is this field's error
        return '(letters: "one")', "C"

    def directive(self) -> str:
        roll = self.rng.random()
        if roll > 0.12:
            return ""
        word = self.rng.choice(["skip", "include"])
        if roll < 0.04:
            return f" @{word}(if: {self.rng.choice(['true', 'false'])})"
        name = self.rng.choice(["yes", "no"])
        default = self.rng.choice(["", " = true"])
        if default and self.rng.random() < 0.5:
            self.variables.setdefault(name, (f"Boolean!{default}", Undefined))
        elif self.rng.random() < 0.03:
            self.variables.setdefault(name, ("Boolean = false", Undefined))
        else:
            self.variables.setdefault(name, ("Boolean!", self.rng.random() < 0.5))
        return f" @{word}(if: ${name})"

    def inline(self, type_name: str, depth: int) -> str:
        if self.rng.random() < 0.15:
            return f"...{self.directive()} {self.selections(type_name, depth - 1)}"
        target = self.rng.choice(self.world.possible(type_name) or [type_name])
        return f"... on {target}{self.directive()} {self.selections(target, depth - 1)}"

    def spread(self, type_name: str, depth: int) -> str:
        name = f"F{type_name}"
        if self.fragments.get(name) == "":
            return ""  # inside itself
        if name not in self.fragments:
            self.fragments[name] = ""
            body = self.selections(type_name, min(depth - 1, 2))
            self.fragments[name] = f"fragment {name} on {type_name} {body}"
        return f"...{name}{self.directive()}"


@dataclass
class Tally:
    """What was compared.

    Answers to a world with promises are compared with graphql-core's to its twin without;
    ``as_promised`` counts those that only graphql-core's to the world itself is equal to.
    """

    operations: int = 0
    with_errors: int = 0
    with_promises: int = 0
    as_promised: int = 0
    by_plan: int = 0
    redone: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    fallbacks: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.operations += other.operations
        self.with_errors += other.with_errors
        self.with_promises += other.with_promises
        self.as_promised += other.as_promised
        self.by_plan += other.by_plan
        self.redone += other.redone
        self.refused += other.refused
        self.failures += other.failures
        self.fallbacks += other.fallbacks


async def compare_world(
    seed: int, documents: int = DOCUMENTS_PER_WORLD, data: int = DATA_PER_DOCUMENT
) -> Tally:
    """Execute random operations in a random world; tells each that is answered otherwise.

    Args:
        seed: The world's number.
        documents: How many.
        data: With how many objects at the root each of them is executed.
    """
    world = World(seed)
    tally = Tally()
    try:
        wild, values = schema_of(world, calm=False)
        calm, calm_values = schema_of(world, calm=True)
        engines = [Engine(one._schema) for one in (wild, calm)]
        writer_rng = Random(seed * 7919 + 1)
        for number in range(documents):
            text, variables = Writer(world, writer_rng).operation()
            document = parse(text)
            if validate(calm._schema, document):
                tally.refused += 1
                continue
            for _ in range(data):
                root_seed = writer_rng.randint(0, 10**9)
                case = _Case(document, variables, root_seed, writer_rng.choice([*Rows]))
                problem = await _compare(case, (wild, values), (calm, calm_values), engines, tally)
                if problem:
                    tally.failures.append(
                        f"seed {seed} document {number}: {problem}\n{text}\n{variables}"
                    )
    finally:
        forget(world)
    return tally


@dataclass(frozen=True)
class _Case:
    document: DocumentNode
    variables: Mapping[str, Any]
    root_seed: int
    rows: Rows


async def _compare(
    case: _Case,
    wild: tuple[strawberry.Schema, Values],
    calm: tuple[strawberry.Schema, Values],
    engines: Sequence[Engine],
    tally: Tally,
) -> str:
    tally.operations += 1
    expected = await _by_core(case, *calm)
    wanted = _bytes(expected)
    tally.with_errors += bool(expected.errors)
    is_calm = wild[1].calm_world
    tally.with_promises += not is_calm
    (schema, values), engine = (calm, engines[1]) if is_calm else (wild, engines[0])
    found = await engine.execute(case.document, _executor(case, schema, values), rows=case.rows)
    tally.by_plan += not found.fallback
    tally.redone += bool(found.redone)
    tally.fallbacks.update([found.fallback] if found.fallback else [])
    assert isinstance(found.result, ExecutionResult)
    # What graphql-core executes of promises has its own order of errors.
    if (is_calm or not found.fallback) and (answer := _bytes(found.result)) != wanted:
        # No type's promised verdict is waited for once another type claims the object, so what
        # would be raised in there is not told.
        if not is_calm:
            expected = await _by_core(case, *wild)
        if answer != _bytes(expected):
            return f"{case.rows}\n core {wanted!r}\n plan {answer!r}"
        tally.as_promised += 1
    if problem := _miswritten(found.result.data):
        return problem
    if not is_calm and case.root_seed % 4 == 0:  # it takes long
        return _disagreement(expected, await _by_core(case, *wild))
    return ""


def _miswritten(data: Any) -> str:
    """Return what is wrong with data written in pieces, given again as written, or counted."""
    at_once = msgspec.json.encode({"data": data})
    pieces = [*pieces_of({"data": data}, rows=1, piece_bytes=1)]
    if b"".join(pieces) != at_once:
        return f"in pieces {pieces!r}\n at once {at_once!r}"
    values = count_values(data)
    again = {"data": Written([*pieces_of(data, rows=2)], values)}
    if b"".join(pieces_of(again)) != at_once:
        return f"given again as written it is not {at_once!r}"
    counted = {count_values(msgspec.json.decode(at_once)["data"]), count_values(again) - 1}
    return "" if counted == {values} else f"{values} values counted, and {counted} as written"


def _executor(case: _Case, schema: strawberry.Schema, values: Values) -> Executor[Any]:
    graphql_schema: GraphQLSchema = schema._schema
    executor = schema.execution_context_class.build(
        graphql_schema,
        case.document,
        root_value=_root(values, case),
        raw_variable_values=dict(case.variables),
        operation_extensions={},
    )
    assert isinstance(executor, Executor), executor
    return executor


async def _by_core(case: _Case, schema: strawberry.Schema, values: Values) -> ExecutionResult:
    found = _executor(case, schema, values).execute_operation()
    if inspect.isawaitable(found):
        found = await found
    assert isinstance(found, ExecutionResult)
    return found


def _root(values: Values, case: _Case) -> Any:
    return values.instance(Random(case.root_seed), "Query", 3)


def _bytes(result: ExecutionResult) -> bytes:
    errors = [error.formatted for error in result.errors or ()]
    causes = [type(error.original_error).__name__ for error in result.errors or ()]
    answer = msgspec.json.encode({"data": result.data, "errors": errors, "causes": causes})
    return answer.replace(b"_calm.", b"_wild.")  # messages may quote the module


def _data(result: ExecutionResult) -> bytes:
    return _bytes(ExecutionResult(result.data, None))


def _disagreement(expected: ExecutionResult, found: ExecutionResult) -> str:
    """Return how two answers differ beyond what the order of promises explains."""
    if expected.data != found.data and _data(expected) != _data(found):
        return f"core with promises\n calm {_bytes(expected)!r}\n wild {_bytes(found)!r}"
    nulled = [
        {_nulled(expected.data, error.path) for error in one.errors or ()}
        for one in (expected, found)
    ]
    if not nulled[0] <= nulled[1]:
        return f"core with promises tells nothing of {nulled[0] - nulled[1]}"
    return ""


def _nulled(data: Any, path: Sequence[str | int] | None) -> tuple[str | int, ...]:
    """Return the place an error made null."""
    place: list[str | int] = []
    for step in path or ():
        if data is None:
            break
        place.append(step)
        data = data[step] if not isinstance(data, str) else None
    return tuple(place)
