"""Fields whose values are had in one step: loaded for all parents at once, or only read.

Both are ordinary Strawberry fields, whoever executes them; a plan knows them by their metadata.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Final, TypeAlias, get_args, get_origin

import strawberry
from graphql import GraphQLNamedType, Undefined, get_named_type
from strawberry.types import Info

_LIST: Final = re.compile(r"(?:\w+\.)*(?:list|List|Sequence)\[(.*)\]", re.DOTALL)
_BATCHED: Final = "batched"
_READ: Final = "read"
_RECORDS: Final = "records"
_STRAWBERRY: Final = "strawberry-definition"
RECORD: Final = "record"

Apart: TypeAlias = Callable[[Any], object]
"""Tells a parent's batch; those of different batches are loaded by calls of their own."""

_waiting: dict[tuple[object, ...], _Batch] = {}
"""Batches of fields that are executed object by object, until the loop comes round."""


class Parents:
    """Every parent of one level, given to a batched field's resolver in place of one."""

    __slots__ = ("rows",)

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows


class Spread(Sequence[Any]):
    """What a batched field gives where few things stand in very many places.

    It stands for a list with one thing for each key. Each is completed once, unless something
    below it looks where it is.

    Args:
        values: The things, by key.
        keys: Of the thing for each parent, in their order.
    """

    __slots__ = ("keys", "values")

    def __init__(self, values: Mapping[Any, Any], keys: Sequence[Any]) -> None:
        self.values = values
        self.keys = keys

    def __len__(self) -> int:
        """Return how many parents there are."""
        return len(self.keys)

    def __getitem__(self, place: Any) -> Any:
        """Return what is for the parent, or parents, at a place."""
        if isinstance(place, slice):
            return Spread(self.values, self.keys[place])
        return self.values[self.keys[place]]

    def __iter__(self) -> Iterator[Any]:
        """Yield what is for each parent."""
        return map(self.values.__getitem__, self.keys)


class View:
    """An object of the API that shows one record, and knows nothing else.

    Its constructor takes the record alone, and holds it as ``record``. Where a field gives records
    in place of views, a plan reads them as they are, and makes views for those fields only that
    are resolved by one.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Batching:
    """How a batched field is loaded.

    Attributes:
        apart: Whose parents are loaded apart; ``None`` when all are loaded together.
        every_place: Whether a parent is given as often as it stands in the answer, and not once.
        may_repeat: Whether a parent may be given more than once.
        takes_records: Whether parents are given as the records that they show.
    """

    apart: Apart | None = None
    every_place: bool = False
    may_repeat: bool = False
    takes_records: bool = False


LASTING: Final[Mapping[Any, Any]] = {"lasting": True}
"""Metadata of a field that gives the same again as long as whoever asks says that nothing changed.

An operation of such fields, and of those that only read, may be answered with what it was
answered before: ``Plan.is_lasting`` tells.
"""


def batched(
    load: Callable[..., Any],
    *,
    apart: Apart | None = None,
    every_place: bool = False,
    may_repeat: bool = False,
    takes_records: bool = False,
    gives_records: bool = False,
    lasting: bool = False,
    **options: Any,
) -> Any:
    """Return a Strawberry field that is loaded for many parents by one call.

    Args:
        load: Takes the parents, ``info`` and the field's arguments, and returns, perhaps later,
            a list aligned with the parents, or a ``Spread``; an exception in it is that parent's
            error. Annotated as ``list[T]`` or ``Sequence[T]`` for a field of type ``T``.
        apart: Gives, for a parent, what tells its batch from others: parents for which that
            differs are loaded by calls of their own, and none waits for those of another.
        every_place: Give a parent as often as it stands in the answer: for a loader that has to
            know how much comes to be in it.
        may_repeat: Some parents may be given more than once: for a loader to which that is no more
            work, and that spares everybody the search for those that are the same.
        takes_records: Parents are ``View``s, and ``load`` and ``apart`` are given their records.
        gives_records: The field's type is a ``View``, or a list of them, and ``load`` gives
            records in their places.
        lasting: As a field with the metadata ``LASTING``.
        **options: Given to ``strawberry.field``, such as the description.

    A compiled plan calls it once for each level of an answer (and batch, with ``apart``), with
    each parent once; ``info`` is that of the first parent. Where GraphQL executes object by
    object, the parents of one field that are asked for in one turn of the event loop make one
    batch.

    Raises:
        TypeError: The annotation is no list.
    """

    def resolve(self: Any, info: Info[Any, Any], **arguments: Any) -> Any:
        if isinstance(self, Parents):
            return load(self.rows, info, **arguments)
        parent = self.record if takes_records else self
        found = _joined(load, None if apart is None else apart(parent), parent, info, arguments)
        return _viewed_later(found, info) if gives_records else found

    parents, info, *arguments = inspect.signature(load).parameters.values()
    of_one = [
        parents.replace(name="self", annotation=inspect.Parameter.empty),
        info.replace(name="info", annotation=Info),
        *arguments,
    ]
    returned = _item_of(load)
    resolve.__signature__ = inspect.Signature(of_one, return_annotation=returned)  # type: ignore[attr-defined]
    resolve.__annotations__ = {
        **{argument.name: argument.annotation for argument in arguments},
        "return": returned,
    }
    resolve.__name__ = load.__name__
    resolve.__module__ = load.__module__
    resolve.__doc__ = load.__doc__
    batching = Batching(apart, every_place, may_repeat or every_place, takes_records)
    metadata = {_BATCHED: batching, _RECORDS: gives_records, **(LASTING if lasting else {})}
    return strawberry.field(resolver=resolve, metadata=metadata, **options)


def reads(path: str, *, view: type[View] | None = None, **options: Any) -> Any:
    """Return a Strawberry field that is an attribute of something its object holds.

    Args:
        path: Names with dots between, such as ``record.title``; read from left to right.
        view: The field's type, or that of its items, where what is read are records.
        **options: Given to ``strawberry.field``, such as the description.

    The field's type is the annotation beside it. A plan reads it where it makes the row, as it
    does the object's own attributes, and it is no argument of the type's constructor.

    Raises:
        ValueError: The path is none.
    """
    if not all(map(str.isidentifier, path.split("."))):
        raise ValueError(f"{path!r} is no path of attributes")
    read = attrgetter(path)

    def resolve(self: Any) -> Any:
        return read(self) if view is None else viewed(view, read(self))

    del resolve.__annotations__["return"]  # the annotation beside the field is its type
    metadata = {_READ: path, _RECORDS: view is not None}
    return strawberry.field(resolver=resolve, metadata=metadata, **options)


def batching_of(metadata: Mapping[Any, Any]) -> Batching | None:
    """Return how a Strawberry field of this metadata is loaded, if ``batched`` made it."""
    return metadata.get(_BATCHED)


def is_lasting(metadata: Mapping[Any, Any]) -> bool:
    """Whether a Strawberry field of this metadata is ``LASTING``."""
    return bool(metadata.get("lasting"))


def path_read(metadata: Mapping[Any, Any]) -> str:
    """Return the path that a Strawberry field of this metadata reads; empty if it does not."""
    path: str = metadata.get(_READ, "")
    return path


def gives_records(metadata: Mapping[Any, Any]) -> bool:
    """Whether a Strawberry field of this metadata gives records in the places of views."""
    return bool(metadata.get(_RECORDS))


def view_of(object_type: GraphQLNamedType) -> type[View] | None:
    """Return the class of a type whose objects are views; ``None`` if they are not."""
    definition = object_type.extensions.get(_STRAWBERRY)
    origin = getattr(definition, "origin", None)
    return origin if isinstance(origin, type) and issubclass(origin, View) else None


def viewed(view: Callable[[Any], Any], found: Any) -> Any:
    """Return what was found, with views in the places of records; errors and nulls are left."""
    if type(found) in {list, tuple}:
        return [viewed(view, one) for one in found]
    if found is None or found is Undefined or isinstance(found, BaseException):
        return found
    return view(found)


def _viewed(found: Any, info: Info[Any, Any]) -> Any:
    """Return the same where a field is executed object by object."""
    view = view_of(get_named_type(info._raw_info.return_type))  # noqa: SLF001 - Strawberry gives no other way to the type
    assert view is not None  # noqa: S101 - as ``gives_records`` promises
    return viewed(view, found)


async def _viewed_later(found: Awaitable[Any], info: Info[Any, Any]) -> Any:
    return _viewed(await found, info)


def aligned(found: Any, parents: Sequence[Any]) -> Sequence[Any]:
    """Return what was loaded, as long as there is one thing for each parent.

    Raises:
        TypeError: There is not.
    """
    if not isinstance(found, Sequence) or len(found) != len(parents):
        count = len(found) if isinstance(found, Sequence) else f"a {type(found).__name__}"
        raise TypeError(f"A batched field returned {count} for {len(parents)} parents")
    return found


@dataclass(slots=True)
class _Batch:
    load: Callable[..., Any]
    info: Info[Any, Any]
    arguments: Mapping[str, Any]
    parents: list[Any] = field(default_factory=list)
    answers: list[asyncio.Future[Any]] = field(default_factory=list)

    async def answer(self) -> None:
        try:
            found = self.load(self.parents, self.info, **self.arguments)
            if inspect.isawaitable(found):
                found = await found
            rows = aligned(found, self.parents)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the batch
            rows = [error] * len(self.parents)
        for answer, row in zip(self.answers, rows, strict=True):
            if not answer.done():
                answer.set_result(row)


def _joined(
    load: Callable[..., Any],
    apart: object,
    parent: Any,
    info: Info[Any, Any],
    arguments: Mapping[str, Any],
) -> Awaitable[Any]:
    """Put a parent into the batch of its place in the answer."""
    loop = asyncio.get_running_loop()
    place = tuple(step for step in info.path.as_list() if isinstance(step, str))
    key = (loop, id(info.operation), id(info.context), load, place, apart)
    batch = _waiting.get(key)
    if batch is None:
        batch = _waiting[key] = _Batch(load, info, arguments)
        loop.call_soon(_begin, key)
    answer: asyncio.Future[Any] = loop.create_future()
    batch.parents.append(parent)
    batch.answers.append(answer)
    return answer


_running: set[asyncio.Task[None]] = set()


def _begin(key: tuple[object, ...]) -> None:
    task = asyncio.ensure_future(_waiting.pop(key).answer())
    _running.add(task)
    task.add_done_callback(_running.discard)


def _item_of(load: Callable[..., Any]) -> Any:
    annotation = load.__annotations__.get("return")
    if isinstance(annotation, str):
        found = _LIST.fullmatch(annotation.strip())
        if found is not None:
            return found[1]
    elif get_origin(annotation) in {list, Sequence}:
        [item] = get_args(annotation)
        return item
    module = sys.modules[load.__module__].__name__
    raise TypeError(f"{module}.{load.__qualname__} returns no list[...] by its annotation")
