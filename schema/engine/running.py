"""Executes a plan breadth first, and puts the answer together from the inside out.

Values come in columns: one for each field of a block, with one value for each of its objects. A
column is resolved by as few calls as its field allows, and completed as a whole. What must be
waited for is taken up in waves: whatever arrives in the same turn of the event loop goes on
together, and nothing waits for what it does not need.

Errors travel as values. A `Flaw` stands where a value could not be had, or holds one beside what
went wrong inside it; where blocks and lists are put together, in the order of the document, the
specification's rules decide how far a failure reaches and which errors are told. So the answer is
the one that an execution of one field after the other gives.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate, chain
from operator import attrgetter
from types import NoneType
from typing import Any, Final, NamedTuple, TypeAlias

from graphql import (
    ExecutionResult,
    FieldNode,
    GraphQLError,
    GraphQLObjectType,
    Undefined,
    get_argument_values,
)
from graphql.error import located_error
from graphql.execution import Executor
from graphql.pyutils import Path, is_async_iterable, is_awaitable, is_iterable
from graphql.pyutils import inspect as inspected

from schema.engine.batches import RECORD, Batching, Parents, Spread, View, aligned, viewed
from schema.engine.plans import (
    Admission,
    Block,
    Field,
    How,
    Kind,
    Plan,
    Raised,
    Shape,
    is_awaitable_class,
    is_record_class,
)

_SLICE: Final = 512
_SAMPLE: Final = 256
_OF_RECORD: Final = f"{RECORD}."
_record_of: Final = attrgetter(RECORD)
_TURN_SECONDS: Final = 0.005
_LISTS: Final = frozenset({list, tuple})
_IMMUTABLE: Final = (str, int, float, bool, NoneType)

Then: TypeAlias = Callable[[list[Any], bool], None]
"""Takes a finished column, and whether there are flaws in it."""

PathAt: TypeAlias = Callable[[int], "Path | None"]
"""Where one of a column's values is in the answer; worked out when somebody looks."""


class _Fault(NamedTuple):
    """An error, and where it is below the place at which it is told of."""

    error: Exception
    nodes: list[FieldNode]
    keys: tuple[str | int, ...] = ()

    def below(self, key: str | int) -> _Fault:
        return _Fault(self.error, self.nodes, (key, *self.keys))


class _Flaw:
    """A value with the errors inside it; when it failed, there is no value."""

    __slots__ = ("failed", "faults", "value")

    def __init__(self, value: Any, faults: list[_Fault], *, failed: bool) -> None:
        self.value = value
        self.faults = faults
        self.failed = failed


class _Drained(NamedTuple):
    """What an iterator gave until it ended or failed."""

    items: list[Any]
    failure: Exception | None


class _Run:
    """A block being executed for some objects, or for the records that a view would show."""

    __slots__ = (
        "_objects",
        "are_distinct",
        "block",
        "columns",
        "fast",
        "flawed",
        "path_at",
        "rows",
        "then",
        "view",
        "waiting",
    )

    def __init__(
        self,
        block: Block,
        rows: Sequence[Any],
        path_at: PathAt,
        then: Then,
        *,
        are_distinct: bool,
        view: type[View] | None,
    ) -> None:
        self.block = block
        self.rows = rows
        self.view: Any = view
        self._objects: Sequence[Any] | None = rows if view is None else None
        self.are_distinct = are_distinct
        self.path_at = path_at
        self.then = then
        self.columns: list[list[Any] | None] = [None] * len(block.fields)
        self.waiting = 1
        self.flawed = False
        self.fast = True

    @property
    def objects(self) -> Sequence[Any]:
        """The objects, made when a field is resolved by them."""
        if self._objects is None:
            self._objects = list(map(self.view, self.rows))
        return self._objects

    def parents_of(self, batching: Batching | None) -> Sequence[Any] | None:
        """Return what a batched field is loaded for; ``None`` if that cannot be told."""
        if batching is None or not batching.takes_records:
            return self.objects
        if self.view is not None:
            return self.rows
        try:
            return list(map(_record_of, self.rows))
        except Exception:  # noqa: BLE001 - found out object by object
            return None

    @property
    def make_rows(self) -> Callable[..., list[Any]]:
        """Makes the answer's rows out of ``rows``."""
        return self.block.rows if self.view is None else self.block.rows_of_records

    def read(self, path: str) -> tuple[Callable[[Any], Any], Sequence[Any]]:
        """Return what reads an attribute, and from which things."""
        if self.view is not None and path.startswith(_OF_RECORD):
            return attrgetter(path.removeprefix(_OF_RECORD)), self.rows
        return attrgetter(path), self.objects


class _Parts:
    """A column that is finished part by part."""

    __slots__ = ("flawed", "outs", "then", "waiting")

    def __init__(self, size: int, then: Then) -> None:
        self.outs: list[Any] = [None] * size
        self.flawed = False
        self.waiting = 1
        self.then = then

    def part(self, places: Sequence[int]) -> Then:
        self.waiting += 1

        def finish(outs: list[Any], flawed: bool) -> None:  # noqa: FBT001 - as every Then
            for place, out in zip(places, outs, strict=True):
                self.outs[place] = out
            self.flawed |= flawed
            self.end()

        return finish

    def fail(self, place: int, flaw: _Flaw) -> None:
        self.outs[place] = flaw
        self.flawed = True

    def end(self, count: int = 1) -> None:
        self.waiting -= count
        if self.waiting == 0:
            self.then(self.outs, self.flawed)


class _Wait:
    """Those of a column's values that are waited for."""

    __slots__ = ("arrived", "receive")

    def __init__(self, receive: Callable[[list[int], list[Any]], None]) -> None:
        self.receive = receive
        self.arrived: list[tuple[int, asyncio.Future[Any]]] = []


class Execution:
    """One execution of a plan.

    Attributes:
        redone: For how many objects the fast way met a surprise, and the exact way was taken.
    """

    def __init__(self, plan: Plan, executor: Executor[Any]) -> None:
        self.redone = 0
        self._plan = plan
        self._executor = executor
        self._not_awaitable: set[type] = set()
        self._futures: set[asyncio.Future[Any]] = set()
        self._awaited = 0
        self._woken: dict[_Wait, None] = {}
        self._bell: asyncio.Future[None] | None = None
        self._work: deque[Callable[[], None]] = deque()
        self._result: ExecutionResult | None = None

    async def result(self) -> ExecutionResult:
        """Return the answer."""
        began_at = time.monotonic()
        try:
            self._start(self._plan.root, [self._executor.root_value], _nowhere, self._finish)
            while self._result is None:
                if self._woken:
                    self._wake()
                elif not self._work:
                    self._bell = asyncio.get_running_loop().create_future()
                    await self._bell
                    began_at = time.monotonic()
                else:
                    self._work.popleft()()
                    if time.monotonic() - began_at > _TURN_SECONDS:
                        await asyncio.sleep(0)
                        began_at = time.monotonic()
        finally:
            if self._futures:
                await self._give_up()
        return self._result

    async def _give_up(self) -> None:
        """End what is still waited for; nothing is, unless the execution was cut short."""
        left = [*self._futures]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _finish(self, outs: list[Any], flawed: bool) -> None:  # noqa: FBT001 - as every Then
        [out] = outs
        if not flawed:
            self._result = ExecutionResult(out, None)
            return
        errors = [located_error(fault.error, fault.nodes, [*fault.keys]) for fault in out.faults]
        self._result = ExecutionResult(None if out.failed else out.value, errors)

    # Blocks

    def _start(
        self,
        block: Block,
        rows: Sequence[Any],
        path_at: PathAt,
        then: Then,
        *,
        are_distinct: bool = False,
        view: type[View] | None = None,
    ) -> None:
        """Execute a block for some objects, or for the records that a view would show."""
        if not rows:
            then([], False)
            return
        run = _Run(block, rows, path_at, then, are_distinct=are_distinct, view=view)
        self._fetch_each(run, block.fetched)
        self._settle_run(run)

    def _start_those_there(
        self, field: Field, shape: Shape, raws: list[Any], path_at: PathAt, then: Then
    ) -> None:
        """Execute a block for a column of objects, some of which are null and are left so."""
        places = [place for place, raw in enumerate(raws) if raw is not None]
        parts = _Parts(len(raws), then)
        if places:
            some = [raws[place] for place in places]
            self._start_distinct(field, shape, some, _some(path_at, places), parts.part(places))
        parts.end()

    def _start_distinct(
        self, field: Field, shape: Shape, raws: list[Any], path_at: PathAt, then: Then
    ) -> None:
        """Execute a block once for each object, where the same ones come again and again."""
        block, view = self._plan.block_of(field, shape.type, self._executor), field.view
        if not block.is_placeless or (shape is not field.shape and _seem_distinct(raws)):
            self._start(block, raws, path_at, then, view=view)
            return
        ids = list(map(id, raws))
        if len(set(ids)) == len(ids):
            self._start(block, raws, path_at, then, are_distinct=True, view=view)
            return
        distinct = dict(zip(ids, raws, strict=True))

        def spread(outs: list[Any], flawed: bool) -> None:  # noqa: FBT001 - as every Then
            by_id = dict(zip(distinct, outs, strict=True))
            then(list(map(by_id.__getitem__, ids)), flawed)

        keys = [*distinct]
        self._start(
            block,
            [*distinct.values()],
            lambda place: path_at(ids.index(keys[place])),
            spread,
            are_distinct=True,
            view=view,
        )

    def _fetch_each(self, run: _Run, places: Sequence[int]) -> None:
        """Begin columns: at once what is loaded, so that it is loaded together."""
        run.waiting += len(places)
        for place in places:
            fetch = partial(self._fetch, run, place)
            if run.block.fields[place].how is How.BATCHED:
                fetch()
            else:
                self._in_turn(len(run.rows), fetch)

    def _in_turn(self, size: int, step: Callable[[], None]) -> None:
        """Take a step: now, or where it is a long one, once others have had their turn."""
        if size > _SLICE:
            self._work.append(step)
        else:
            step()

    def _fetch(self, run: _Run, place: int) -> None:
        """Begin a column."""
        field = run.block.fields[place]
        key, owner, above = field.key, field.parent_type.name, run.path_at

        def path_at(place: int) -> Path:
            return Path(above(place), key, owner)

        def finish(outs: list[Any], flawed: bool) -> None:  # noqa: FBT001 - as every Then
            run.columns[place] = outs
            run.flawed |= flawed
            self._settle_run(run)

        parents = run.parents_of(field.batching) if field.how is How.BATCHED else None
        if parents is not None:
            self._load(field, parents, path_at, finish, are_distinct=run.are_distinct)
            return

        def settle(raws: list[Any]) -> None:
            self._settle(field, field.shape, raws, path_at, finish)

        if field.method is not None and len(run.rows) > _SLICE:
            self._call(field.method, run.objects, [], settle)
        else:
            settle(self._resolved(field, run, path_at))

    def _settle_run(self, run: _Run) -> None:
        """Put a block's rows together, once all of its columns are there."""
        run.waiting -= 1
        if run.waiting:
            return
        if run.fast and not run.flawed:
            if len(run.rows) > _SLICE:
                self._work.append(partial(self._build, run, []))
                return
            try:
                outs = run.make_rows(run.rows, *_given(run))
            except Exception:  # noqa: BLE001 - whatever surprises, the exact way tells what it is
                self._redo(run)
            else:
                run.then(outs, False)
        elif any(column is None for column in run.columns):
            self._redo(run)
        elif not run.columns:
            run.then([run.block.make() for _ in run.rows], False)
        elif run.flawed:
            outs = [*_exact(run)]
            run.then(outs, any(type(out) is _Flaw for out in outs))
        else:
            run.then(list(map(run.block.make, *run.columns)), False)  # type: ignore[arg-type]

    def _build(self, run: _Run, outs: list[Any]) -> None:
        """Make one slice of a long list's rows."""
        here = slice(len(outs), len(outs) + _SLICE)
        try:
            outs += run.make_rows(run.rows[here], *(given[here] for given in _given(run)))
        except Exception:  # noqa: BLE001 - as in _settle_run
            self._redo(run)
            return
        if len(outs) < len(run.rows):
            self._work.append(partial(self._build, run, outs))
        else:
            run.then(outs, False)

    def _redo(self, run: _Run) -> None:
        """Read as columns what was to be read while making the rows."""
        self.redone += len(run.rows)
        run.fast = False
        run.waiting = 1
        missing = [place for place, column in enumerate(run.columns) if column is None]
        self._fetch_each(run, missing)
        self._settle_run(run)

    # Resolving

    def _call(
        self,
        method: Callable[[Any], Any],
        rows: Sequence[Any],
        raws: list[Any],
        then: Callable[[list[Any]], None],
    ) -> None:
        """Call the method of one slice of a long list's objects."""
        raws += _called_each(method, rows[len(raws) : len(raws) + _SLICE])
        if len(raws) < len(rows):
            self._work.append(partial(self._call, method, rows, raws, then))
        else:
            then(raws)

    def _resolved(self, field: Field, run: _Run, path_at: Callable[[int], Path]) -> list[Any]:
        """Return a column as its field resolves it."""
        if field.how is How.TYPENAME:
            return [field.parent_type.name] * len(run.rows)
        if field.how is How.ATTRIBUTE:
            read, holders = run.read(field.attribute)
            try:
                return list(map(read, holders))
            except Exception:  # noqa: BLE001 - found out object by object
                return _called_each(read, holders)
        rows = run.objects
        if field.method is not None:
            return _called_each(field.method, rows)
        resolve = field.definition.resolve or self._executor.field_resolver
        shared = self._shared_arguments(field) if len(rows) > 1 else None
        raws: list[Any] = []
        for place, row in enumerate(rows):
            info = self._info(field, path_at(place))
            try:
                arguments = self._arguments(field) if shared is None else shared
                raws.append(resolve(row, info, **arguments))
            except Exception as error:  # noqa: BLE001 - it is the field's error
                raws.append(Raised(error))
        return raws

    def _load(
        self,
        field: Field,
        rows: Sequence[Any],
        path_at: Callable[[int], Path],
        then: Then,
        *,
        are_distinct: bool,
    ) -> None:
        """Resolve a batched field for all parents, and complete what comes of it."""
        apart = field.batching.apart if field.batching is not None else None
        if apart is None:
            self._load_together(field, rows, path_at, then, are_distinct=are_distinct)
            return
        try:
            batches = list(map(apart, rows))
        except Exception:  # noqa: BLE001 - found out object by object
            batches = _called_each(apart, rows)
        if len(set(batches)) == 1 and type(batches[0]) is not Raised:
            self._load_together(field, rows, path_at, then, are_distinct=are_distinct)
            return
        parts = _Parts(len(rows), then)
        places_by_batch: dict[object, list[int]] = {}
        for place, batch in enumerate(batches):
            if type(batch) is Raised:
                parts.fail(place, _failed(batch.error, field))
            else:
                places_by_batch.setdefault(batch, []).append(place)
        for places in places_by_batch.values():
            some = [rows[place] for place in places]
            self._load_together(
                field,
                some,
                _some_paths(path_at, places),
                parts.part(places),
                are_distinct=are_distinct,
            )
        parts.end()

    def _load_together(
        self,
        field: Field,
        rows: Sequence[Any],
        path_at: Callable[[int], Path],
        then: Then,
        *,
        are_distinct: bool,
    ) -> None:
        """Resolve a batched field by one call."""
        resolve = field.definition.resolve
        assert resolve is not None  # noqa: S101 - a batched field has one
        ids: list[int] = []
        parents = rows
        if not are_distinct and not (field.batching is not None and field.batching.may_repeat):
            ids = list(map(id, rows))
            parents = [*dict(zip(ids, rows, strict=True)).values()]

        def receive(_: list[int], found: list[Any]) -> None:
            [loaded] = found
            if type(loaded) is not Raised:
                loaded = _called(aligned, loaded, parents)
            if type(loaded) is Spread and field.is_placeless and len(parents) == len(rows):
                self._complete_spread(field, loaded, path_at, then)
                return
            if type(loaded) is Raised:  # it is every parent's error
                loaded = [loaded] * len(parents)
            if len(parents) < len(rows):
                by_id = dict(zip(map(id, parents), loaded, strict=True))
                loaded = [by_id[found] for found in ids]
            self._complete(field, field.shape, [*loaded], path_at, then)

        info = self._info(field, path_at(0))
        loading = _called(lambda: resolve(Parents(parents), info, **self._arguments(field)))
        if is_awaitable(loading):
            self._await([(0, loading)], receive)
        else:
            self._in_turn(len(rows), partial(receive, [0], [loading]))

    def _arguments(self, field: Field) -> dict[str, Any]:
        if field.arguments is not None:
            return field.arguments
        executor, node = self._executor, field.details[0].node
        arguments = get_argument_values(
            field.definition, node, executor.variable_values, None, executor.hide_suggestions
        )
        if field.names_no_variables and _are_immutable(arguments):
            field.arguments = arguments
        return arguments

    def _shared_arguments(self, field: Field) -> dict[str, Any] | None:
        """Return the arguments, if they can be given to every object's resolver as they are."""
        try:
            arguments = self._arguments(field)
        except GraphQLError:
            return None  # each object has this error
        return arguments if _are_immutable(arguments) else None

    def _info(self, field: Field, path: Path) -> Any:
        return self._executor.build_resolve_info(
            field.definition, field.nodes, field.parent_type, path
        )

    def _info_of_item(self, field: Field, path: Path | None) -> Any:
        while path is not None and isinstance(path.key, int):
            path = path.prev
        assert path is not None  # noqa: S101 - the root is no item
        return self._info(field, path)

    # Waiting

    def _settle(
        self, field: Field, shape: Shape, raws: list[Any], path_at: PathAt, then: Then
    ) -> None:
        """Complete a column, now what is there, and what is promised when it arrives."""
        kinds = set(map(type, raws))
        promised = self._promised(raws, kinds)
        if not promised:
            self._complete(field, shape, raws, path_at, then, kinds=kinds)
            return
        parts = _Parts(len(raws), then)

        def receive(places: list[int], found: list[Any]) -> None:
            at = _some(path_at, places)
            self._complete(field, shape, found, at, parts.part(places))
            parts.end(len(places))

        parts.waiting += len(promised)
        self._await([(place, raws[place]) for place in promised], receive)
        waited = set(promised)
        ready = [place for place in range(len(raws)) if place not in waited]
        if ready:
            at = _some(path_at, ready)
            self._complete(field, shape, [raws[place] for place in ready], at, parts.part(ready))
        parts.end()

    def _promised(self, raws: Sequence[Any], kinds: set[type]) -> list[int]:
        kinds = kinds - self._not_awaitable
        doubtful = {kind for kind in kinds if is_awaitable_class(kind)}
        self._not_awaitable |= kinds - doubtful
        if not doubtful:
            return []
        return [
            place for place, raw in enumerate(raws) if type(raw) in doubtful and is_awaitable(raw)
        ]

    def _await(
        self,
        promised: Iterable[tuple[int, Any]],
        receive: Callable[[list[int], list[Any]], None],
    ) -> None:
        """Have what arrives received, in waves."""
        wait = _Wait(receive)
        for place, awaitable in promised:
            future = asyncio.ensure_future(awaitable)
            self._awaited += 1
            self._futures.add(future)
            future.add_done_callback(partial(self._arrive, wait, place))

    def _arrive(self, wait: _Wait, place: int, future: asyncio.Future[Any]) -> None:
        self._futures.discard(future)
        wait.arrived.append((place, future))
        self._woken[wait] = None
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    def _wake(self) -> None:
        woken, self._woken = self._woken, {}
        for wait in woken:
            arrived, wait.arrived = wait.arrived, []
            arrived.sort(key=_place_of)
            self._awaited -= len(arrived)
            found = [_outcome(future) for _, future in arrived]
            wait.receive([place for place, _ in arrived], found)

    # Completing

    def _complete(
        self,
        field: Field,
        shape: Shape,
        raws: list[Any],
        path_at: PathAt,
        then: Then,
        *,
        kinds: set[type] | None = None,
    ) -> None:
        """Make a column what the answer holds; ``kinds`` are its classes, if they are known."""
        kinds = set(map(type, raws)) if kinds is None else kinds
        if shape.kind is Kind.OBJECT and shape.admission is not None:
            there = kinds if shape.nonnull else kinds - {NoneType}
            knows = shape.admission.knows if field.view is None else is_record_class
            if all(map(knows, there)):
                start = self._start_distinct
                if len(there) < len(kinds):
                    start = self._start_those_there
                start(field, shape, raws, path_at, then)
                return
        elif shape.kind is Kind.LIST and kinds and kinds <= _LISTS:
            self._complete_iterables(field, shape, raws, path_at, then)
            return
        elif shape.kind is Kind.LEAF and _is_ready(shape, kinds, raws):
            then(raws, False)
            return
        if field.view is not None:
            raws = [_shown(field.view, shape, raw) for raw in raws]
        parts = _Parts(len(raws), then)
        left = [
            place for place, raw in enumerate(raws) if not _is_told(field, shape, place, raw, parts)
        ]
        if left:
            complete = {
                Kind.LIST: self._complete_lists,
                Kind.OBJECT: self._complete_objects,
                Kind.ABSTRACT: self._complete_abstract,
            }[shape.kind]
            some = [raws[place] for place in left]
            complete(field, shape, some, _some(path_at, left), parts.part(left))
        parts.end()

    def _complete_spread(self, field: Field, spread: Spread, path_at: PathAt, then: Then) -> None:
        """Make a column of few things in many places what the answer holds."""
        keys, values = [*spread.values], [*spread.values.values()]

        def finish(outs: list[Any], flawed: bool) -> None:  # noqa: FBT001 - as every Then
            by_key = dict(zip(keys, outs, strict=True))
            then(list(map(by_key.__getitem__, spread.keys)), flawed)

        self._complete(
            field,
            field.shape,
            values,
            lambda place: path_at(spread.keys.index(keys[place])),
            finish,
        )

    def _complete_lists(
        self, field: Field, shape: Shape, raws: list[Any], path_at: PathAt, then: Then
    ) -> None:
        streams = [
            place
            for place, raw in enumerate(raws)
            if type(raw) not in {list, tuple} and is_async_iterable(raw)
        ]
        if not streams:
            self._complete_iterables(field, shape, raws, path_at, then)
            return
        parts = _Parts(len(raws), then)

        def receive(places: list[int], found: list[Any]) -> None:
            at = _some(path_at, places)
            self._complete_iterables(field, shape, found, at, parts.part(places))
            parts.end(len(places))

        parts.waiting += len(streams)
        self._await([(place, _drained_later(raws[place])) for place in streams], receive)
        ready = [place for place in range(len(raws)) if place not in set(streams)]
        if ready:
            at = _some(path_at, ready)
            self._complete_iterables(
                field, shape, [raws[place] for place in ready], at, parts.part(ready)
            )
        parts.end()

    def _complete_iterables(
        self, field: Field, shape: Shape, raws: list[Any], path_at: PathAt, then: Then
    ) -> None:
        assert shape.of is not None  # noqa: S101 - it is a list
        item_shape = shape.of
        failures: dict[int, Exception] = {}
        lists = raws
        if not set(map(type, raws)) <= _LISTS:
            drained = [_drained(field, raw) for raw in raws]
            lists = [one.items for one in drained]
            failures = {
                place: one.failure for place, one in enumerate(drained) if one.failure is not None
            }
        items = list(chain.from_iterable(lists))
        ends = list(accumulate(map(len, lists)))

        def item_path_at(place: int) -> Path:
            owner = bisect_right(ends, place)
            return Path(path_at(owner), place - (ends[owner - 1] if owner else 0), None)

        def finish(outs: list[Any], flawed: bool) -> None:  # noqa: FBT001 - as every Then
            begins = [0, *ends[:-1]]
            made = [outs[begin:end] for begin, end in zip(begins, ends, strict=True)]
            if not flawed and not failures:
                then(made, False)
                return
            exact = [
                _exact_list(field, item_shape, found, failures.get(place))
                for place, found in enumerate(made)
            ]
            then(exact, any(type(out) is _Flaw for out in exact))

        settle = partial(self._settle, field, item_shape, items, item_path_at, finish)
        self._in_turn(len(items), settle)

    def _complete_objects(
        self, field: Field, shape: Shape, raws: list[Any], path_at: PathAt, then: Then
    ) -> None:
        self._complete_typed(field, shape.type, raws, path_at, then)

    def _complete_typed(
        self,
        field: Field,
        object_type: GraphQLObjectType,
        raws: list[Any],
        path_at: PathAt,
        then: Then,
    ) -> None:
        """Execute what is asked of objects, after asking each whether it is of its type."""
        block = self._plan.block_of(field, object_type, self._executor)
        is_type_of = object_type.is_type_of
        if is_type_of is None or _all_known(self._plan.admission_of(object_type), raws):
            self._start(block, raws, path_at, then)
            return
        verdicts: list[Any] = []
        for place, raw in enumerate(raws):
            info = self._info_of_item(field, path_at(place))
            verdicts.append(_called(is_type_of, raw, info))

        def judge(places: list[int], found: list[Any], parts: _Parts) -> None:
            good = []
            for place, verdict in zip(places, found, strict=True):
                if type(verdict) is Raised:
                    parts.fail(place, _failed(verdict.error, field))
                elif verdict:
                    good.append(place)
                else:
                    message = (
                        f"Expected value of type '{object_type}' but got: {inspected(raws[place])}."
                    )
                    parts.fail(place, _failed(GraphQLError(message, field.nodes), field))
            if good:
                at = _some(path_at, good)
                self._start(block, [raws[place] for place in good], at, parts.part(good))

        self._judged(verdicts, judge, then)

    def _complete_abstract(
        self, field: Field, shape: Shape, raws: list[Any], path_at: PathAt, then: Then
    ) -> None:
        resolve_type = shape.type.resolve_type or self._executor.type_resolver
        infos = [self._info_of_item(field, path_at(place)) for place in range(len(raws))]
        verdicts = [
            _called(resolve_type, raw, info, shape.type)
            for raw, info in zip(raws, infos, strict=True)
        ]

        def judge(places: list[int], found: list[Any], parts: _Parts) -> None:
            by_type: dict[str, tuple[GraphQLObjectType, list[int]]] = {}
            for place, name in zip(places, found, strict=True):
                object_type = name
                if type(name) is not Raised:
                    object_type = _called(
                        self._executor.ensure_valid_runtime_type,
                        *(name, shape.type, field.details, infos[place], raws[place]),
                    )
                if type(object_type) is Raised:
                    parts.fail(place, _failed(object_type.error, field))
                else:
                    by_type.setdefault(object_type.name, (object_type, []))[1].append(place)
            for object_type, good in by_type.values():
                at = _some(path_at, good)
                self._complete_typed(
                    field, object_type, [raws[place] for place in good], at, parts.part(good)
                )

        self._judged(verdicts, judge, then)

    def _judged(
        self,
        verdicts: list[Any],
        judge: Callable[[list[int], list[Any], _Parts], None],
        then: Then,
    ) -> None:
        """Have verdicts judged, those that are there now and the others when they arrive."""
        parts = _Parts(len(verdicts), then)
        promised = [place for place, found in enumerate(verdicts) if is_awaitable(found)]

        def receive(places: list[int], found: list[Any]) -> None:
            judge(places, found, parts)
            parts.end(len(places))

        parts.waiting += len(promised)
        self._await([(place, verdicts[place]) for place in promised], receive)
        waited = set(promised)
        ready = [place for place in range(len(verdicts)) if place not in waited]
        judge(ready, [verdicts[place] for place in ready], parts)
        parts.end()


def _given(run: _Run) -> list[list[Any]]:
    return [run.columns[place] or [] for place in run.block.fetched]


def _are_immutable(arguments: dict[str, Any]) -> bool:
    return all(type(value) in _IMMUTABLE for value in arguments.values())


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - it is the field's error
        return Raised(error)


def _called_each(function: Callable[[Any], Any], rows: Sequence[Any]) -> list[Any]:
    outcomes: list[Any] = []
    for row in rows:
        try:
            outcomes.append(function(row))
        except Exception as error:  # noqa: BLE001 - it is the field's error
            outcomes.append(Raised(error))
    return outcomes


def _nowhere(_: int) -> None:
    """Tell where the root is."""


def _some(path_at: PathAt, places: Sequence[int]) -> PathAt:
    """Return where some of a column's values are."""
    return lambda place: path_at(places[place])


def _some_paths(path_at: Callable[[int], Path], places: Sequence[int]) -> Callable[[int], Path]:
    """Return the same where every value has a place."""
    return lambda place: path_at(places[place])


def _place_of(arrived: tuple[int, object]) -> int:
    return arrived[0]


def _outcome(future: asyncio.Future[Any]) -> Any:
    """Return what a future that is done came to; what is no field's error is raised."""
    error = None if future.cancelled() else future.exception()
    if isinstance(error, Exception):
        return Raised(error)
    return future.result()


def _seem_distinct(raws: list[Any]) -> bool:
    """Whether none of many items comes again, as far as some of them tell."""
    if len(raws) < 2 * _SAMPLE:
        return False
    some = raws[:: len(raws) // _SAMPLE]
    return len(set(map(id, some))) == len(some)


def _shown(view: type[View], shape: Shape, raw: Any) -> Any:
    """Return a view of a record; of a list, each item is shown when its turn comes."""
    if type(raw) is Raised or (shape.kind is Kind.LIST and type(raw) in _LISTS):
        return raw
    return viewed(view, raw)


def _all_known(admission: Admission, raws: Sequence[Any]) -> bool:
    return all(map(admission.knows, set(map(type, raws))))


def _is_told(field: Field, shape: Shape, place: int, raw: Any, parts: _Parts) -> bool:
    """Take down a value that is null, wrong or a leaf; another one is left."""
    if raw is None or raw is Undefined:
        if shape.nonnull:
            parts.fail(place, _failed(_null_error(field), field))
    elif type(raw) is Raised:
        parts.fail(place, _failed(raw.error, field))
    elif isinstance(raw, Exception):
        parts.fail(place, _failed(raw, field))
    elif shape.kind is Kind.LEAF:
        out = _called(shape.coerced, raw)
        if type(out) is Raised:
            parts.fail(place, _failed(out.error, field))
        else:
            parts.outs[place] = out
    else:
        return False
    return True


def _is_ready(shape: Shape, kinds: set[type], raws: Sequence[Any]) -> bool:
    """Whether a column of leaves is already what the answer holds."""
    exact = shape.exact_class
    if exact not in {str, bool}:
        return False
    allowed = {exact} if shape.nonnull else {exact, NoneType}
    return kinds <= allowed and bool(raws)


def _failed(error: Exception, field: Field) -> _Flaw:
    return _Flaw(None, [_Fault(error, field.nodes)], failed=True)


def _null_error(field: Field) -> TypeError:
    return TypeError(f"Cannot return null for non-nullable field {field.parent_type}.{field.name}.")


def _exact(run: _Run) -> Iterable[Any]:
    """Yield a block's rows by the rules of the specification, with what is wrong in them."""
    columns = [column or [] for column in run.columns]
    for values in zip(*columns, strict=True):
        faults: list[_Fault] = []
        row: list[Any] = []
        for field, out in zip(run.block.fields, values, strict=True):
            value = out
            if type(out) is _Flaw:
                faults.extend(fault.below(field.key) for fault in out.faults)
                if out.failed and field.shape.nonnull:
                    yield _Flaw(None, faults, failed=True)
                    break
                value = out.value
            row.append(value)
        else:
            made = run.block.make(*row)
            yield _Flaw(made, faults, failed=False) if faults else made


def _exact_list(
    field: Field, item_shape: Shape, outs: Sequence[Any], failure: Exception | None
) -> Any:
    """Return a list by the rules of the specification, with what is wrong in it."""
    faults: list[_Fault] = []
    items: list[Any] = []
    for index, out in enumerate(outs):
        value = out
        if type(out) is _Flaw:
            faults.extend(fault.below(index) for fault in out.faults)
            if out.failed and item_shape.nonnull:
                return _Flaw(None, faults, failed=True)
            value = out.value
        items.append(value)
    if failure is not None:
        return _Flaw(None, [*faults, _Fault(failure, field.nodes)], failed=True)
    return _Flaw(items, faults, failed=False) if faults else items


def _drained(field: Field, raw: Any) -> _Drained:
    """Return what can be iterated over as a list."""
    if type(raw) is _Drained:
        return raw
    if type(raw) in _LISTS:
        return _Drained(raw, None)
    if type(raw) is Raised:
        return _Drained([], raw.error)
    if not is_iterable(raw):
        return _Drained(
            [],
            GraphQLError(
                "Expected Iterable, but did not find one for field"
                f" '{field.parent_type}.{field.name}'."
            ),
        )
    items: list[Any] = []
    try:
        items.extend(raw)
    except Exception as error:  # noqa: BLE001 - it is the list's error, after the items there were
        return _Drained(items, error)
    return _Drained(items, None)


async def _drained_later(raw: Any) -> _Drained:
    """Return what an asynchronous iterator gives."""
    items: list[Any] = []
    iterator = raw.__aiter__()
    try:
        async for item in iterator:
            items.append(item)  # noqa: PERF401 - what came before a failure counts
    except Exception as error:  # noqa: BLE001 - it is the list's error, after the items there were
        close = getattr(iterator, "aclose", None)
        if close is not None and inspect.isasyncgen(iterator):
            await close()
        return _Drained(items, error)
    return _Drained(items, None)
