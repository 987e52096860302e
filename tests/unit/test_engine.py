"""The engine: plans answer as graphql-core does, with fewer calls and without holding others up."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import strawberry
from engine_worlds import Tally, compare_world
from graphql import DocumentNode, ExecutionResult, Executor, Token, parse
from hypothesis import given
from hypothesis import strategies as st
from strawberry.types import Info

from schema import build_schema
from schema.engine import Engine, Executed, Rows, Spread, View, batched, pieces_of, reads
from schema.engine.executing import _MAX_PLANS
from schema.execution import GatewaySchema

LONG = 20_000


@dataclass
class Calls:
    """What loaders were asked for, and what holds them up."""

    loads: list[list[str]] = field(default_factory=list)
    slow: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: int = 0


async def _load_authors(parents: Sequence[Book], info: Info[Calls, None]) -> list[Author | None]:
    info.context.loads.append([parent.title for parent in parents])
    await asyncio.sleep(0)
    return [None if parent.title == "Beowulf" else Author(name=parent.by) for parent in parents]


async def _load_too_few(parents: Sequence[Book], info: Info[Calls, None]) -> list[str]:
    return ["one"]


@strawberry.type
class Author:
    name: str


@strawberry.type
class Book:
    title: str
    by: strawberry.Private[str]
    author = batched(_load_authors, description="Who wrote it.")
    too_few = batched(_load_too_few)

    @strawberry.field
    async def held_up(self, info: Info[Calls, None]) -> str:
        try:
            await info.context.slow.wait()
        except asyncio.CancelledError:
            info.context.cancelled += 1
            raise
        return self.title

    @strawberry.field
    def upper(self) -> str:
        return self.title.upper()


@strawberry.type
class Row:
    number: int

    @strawberry.field
    def doubled(self) -> int:
        return 2 * self.number


@strawberry.type
class Query:
    @strawberry.field
    def books(self, times: int = 1) -> list[Book]:
        books = [
            Book(title=title, by=by)
            for title, by in (("Emma", "Austen"), ("Beowulf", ""), ("Faust", "Goethe"))
        ]
        return books * times

    @strawberry.field
    def rows(self) -> list[Row]:
        return [Row(number=number) for number in range(LONG)]

    @strawberry.field
    def library(self, size: int = 3) -> Copies:
        """Return as many copies, the first of them twice."""
        _views_made.clear()
        books = ("Emma", "")
        copies = [CopyRecord(number, books[number % 2], ("Ada",)) for number in range(size)]
        return Copies(held=[*copies, *copies[:1]])

    @strawberry.field
    def wrong_rows(self) -> list[Row]:
        return [Row(number=number) for number in (1, "two", 3)]  # type: ignore[arg-type]  # the point


@strawberry.type
class Place:
    name: str


PLACES = [Place(name=name) for name in ("hall", "tower", "cellar")]


@dataclass(frozen=True)
class CopyRecord:
    """A copy of a book: which one, who has it, and where."""

    number: int
    book: str
    readers: tuple[str, ...] = ()

    @property
    def place(self) -> Place:
        return PLACES[self.number % 2 if self.number < 6 else 2]


async def _load_books(parents: Sequence[CopyRecord], info: Info[Calls, None]) -> list[Title | None]:
    info.context.loads.append([str(parent.number) for parent in parents])
    return Spread({"": None, "Emma": "Emma"}, [parent.book for parent in parents])  # type: ignore[return-value]  # the engine shows them


@strawberry.type
class Title(View):
    text: str = reads("record")
    record: strawberry.Private[str]

    def __init__(self, record: str) -> None:
        self.record = record


_views_made: list[CopyRecord] = []


@strawberry.type
class Copy(View):
    number: int = reads("record.number")
    label: str = reads("written")
    place: Place = reads("record.place")
    readers: list[Title] = reads("record.readers", view=Title)
    record: strawberry.Private[CopyRecord]
    book = batched(_load_books, takes_records=True, gives_records=True, may_repeat=True, apart=type)

    def __init__(self, record: CopyRecord) -> None:
        _views_made.append(record)
        self.record = record

    @property
    def written(self) -> str:
        return f"copy {self.record.number}"

    @strawberry.field
    def doubled(self) -> int:
        return 2 * self.record.number


@strawberry.type
class Copies:
    copies: list[Copy] = reads("held", view=Copy)
    first: Copy | None = reads("one", view=Copy)
    held: strawberry.Private[list[CopyRecord]]

    @property
    def one(self) -> CopyRecord | None:
        return self.held[0] if self.held else None


@strawberry.type
class Mutation:
    @strawberry.mutation
    def change(self) -> int:
        return 1


SCHEMA = strawberry.Schema(query=Query, mutation=Mutation)


def an_engine(max_plans: int = 1000) -> Engine:
    return Engine(SCHEMA._schema, max_plans)


def an_executor(
    document: DocumentNode, calls: Calls | None = None, **variables: object
) -> Executor[Any]:
    executor = SCHEMA.execution_context_class.build(
        SCHEMA._schema,
        document,
        context_value=calls or Calls(),
        raw_variable_values=variables,
        operation_extensions={},
    )
    assert isinstance(executor, Executor)
    return executor


async def executed(
    engine: Engine,
    document: DocumentNode | str,
    calls: Calls | None = None,
    rows: Rows = Rows.DICTS,
    **variables: object,
) -> Executed:
    node = parse(document) if isinstance(document, str) else document
    return await engine.execute(node, an_executor(node, calls, **variables), rows=rows)


def data_of(found: Executed) -> Any:
    assert isinstance(found.result, ExecutionResult)
    return found.result.data


def errors_of(found: Executed) -> list[tuple[str, object]]:
    assert isinstance(found.result, ExecutionResult)
    return [(error.message, error.path) for error in found.result.errors or ()]


async def test_random_operations_are_answered_as_graphql_core_answers_them() -> None:
    total = Tally()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # graphql-core leaves coroutines of what it gave up
        for seed in range(10):
            total.add(await compare_world(seed, documents=8, data=10))

    assert total.failures == []
    assert total.operations == 800
    assert total.by_plan > 700
    assert total.with_errors > 100
    assert total.with_promises > 300
    assert total.redone > 100


async def test_a_promised_verdict_about_a_type_is_not_waited_for_when_another_type_says_yes() -> (
    None
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        found = await compare_world(1001576, documents=6)

    assert found.failures == []
    assert found.as_promised == 1


async def test_random_operations_are_answered_alike_in_slices_of_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("schema.engine.running._SLICE", 2)
    monkeypatch.setattr("schema.engine.running._SAMPLE", 1)
    total = Tally()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        for seed in range(10, 20):
            total.add(await compare_world(seed, documents=4, data=5))

    assert total.failures == []
    assert total.operations == 200


@pytest.mark.parametrize(("size", "loaded"), [(3, 3), (LONG, LONG + 1)])
async def test_records_are_read_without_views_where_no_field_needs_them(
    size: int, loaded: int
) -> None:
    calls, engine = Calls(), an_engine()
    text = "query Q($size: Int!) { library(size: $size) { copies { number book { text } readers"
    text += " { text } } first { number } } }"

    found = await executed(engine, text, calls, Rows.STRUCTS, size=size)
    told = msgspec.json.decode(msgspec.json.encode(data_of(found)))
    made_by_plan = len(_views_made)
    by_core: Any = an_executor(parse(text), calls, size=size).execute_operation()
    expected = (await by_core).data

    assert (found.fallback, found.redone, made_by_plan) == ("", 0, 0)
    assert told == expected
    assert told["library"]["copies"][0] == {
        "number": 0,
        "book": {"text": "Emma"},
        "readers": [{"text": "Ada"}],
    }
    assert told["library"]["copies"][1]["book"] is None
    assert [len(load) for load in calls.loads] == [loaded, size + 1]


@pytest.mark.parametrize("field", ["label", "doubled", "number label doubled"])
async def test_views_are_made_once_for_fields_that_are_resolved_by_them(field: str) -> None:
    found = await executed(an_engine(), f"{{ library {{ copies {{ {field} }} }} }}")

    wanted = {"label": "copy 1", "doubled": 2, "number": 1}
    assert data_of(found)["library"]["copies"][1] == {key: wanted[key] for key in field.split()}
    assert len(_views_made) <= 2 * 3
    assert found.redone == 0


async def test_what_comes_again_with_one_other_in_between_is_made_once() -> None:
    found = await executed(an_engine(), "{ library(size: 8) { copies { place { name } } } }")

    places = [copy["place"] for copy in data_of(found)["library"]["copies"]]
    names = ["hall", "tower"] * 3 + ["cellar"] * 2 + ["hall"]
    assert places == [{"name": name} for name in names]
    assert len(set(map(id, places))) == 3
    assert found.redone == 0


async def test_a_batched_field_is_loaded_by_one_call_with_each_parent_once() -> None:
    calls = Calls()

    found = await executed(an_engine(), "{ books(times: 2) { author { name } } }", calls)

    authors = [{"name": "Austen"}, None, {"name": "Goethe"}]
    assert data_of(found) == {"books": [{"author": one} for one in authors * 2]}
    assert found.fallback == ""
    assert calls.loads == [["Emma", "Beowulf", "Faust"]]


async def test_a_batched_field_is_loaded_by_one_call_where_graphql_core_executes_it() -> None:
    calls = Calls()

    executor = an_executor(parse("{ books { author { name } } }"), calls)
    promised: Any = executor.execute_operation()
    found = await promised

    authors = [{"name": "Austen"}, None, {"name": "Goethe"}]
    assert found.data == {"books": [{"author": one} for one in authors]}
    assert calls.loads == [["Emma", "Beowulf", "Faust"]]


async def test_a_batch_that_is_not_aligned_is_an_error_of_every_parent() -> None:
    found = await executed(an_engine(), "{ books { title tooFew } }")

    assert data_of(found) is None  # the field may not be null
    assert errors_of(found) == [
        ("A batched field returned 1 for 3 parents", ["books", 0, "tooFew"])
    ]


def test_a_loader_that_says_no_list_is_refused_at_once() -> None:
    async def load(parents: Sequence[Book], info: Info[Calls, None]) -> int:
        return 1

    with pytest.raises(TypeError, match="returns no list"):
        batched(load)


async def test_nothing_waits_for_what_it_does_not_need() -> None:
    calls = Calls()
    document = "{ first: books { heldUp } second: books { author { name } } }"

    asked = asyncio.ensure_future(executed(an_engine(), document, calls))
    for _ in range(10):
        await asyncio.sleep(0)
    loaded_while_held_up = [*calls.loads]
    calls.slow.set()
    found = await asked

    assert loaded_while_held_up == [["Emma", "Beowulf", "Faust"]]
    assert data_of(found)["first"][0] == {"heldUp": "Emma"}


async def test_an_execution_that_is_cancelled_cancels_what_it_waits_for() -> None:
    calls = Calls()

    asked = asyncio.ensure_future(executed(an_engine(), "{ books { heldUp } }", calls))
    for _ in range(5):
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked

    assert calls.cancelled == 3


@pytest.mark.parametrize(
    ("selection", "columns"), [("number", 0), ("number doubled again: doubled", 2)]
)
async def test_others_get_their_turns_while_a_long_list_is_made(
    monkeypatch: pytest.MonkeyPatch, selection: str, columns: int
) -> None:
    monkeypatch.setattr("schema.engine.running._TURN_SECONDS", 0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    found = await executed(an_engine(), f"{{ rows {{ {selection} }} }}")
    counting.cancel()

    assert [row["number"] for row in data_of(found)["rows"]] == [*range(LONG)]
    slices = LONG // 512 + 1  # the last of which is short
    assert turns == 1 + columns * slices + slices  # the first for the list


async def test_one_wrong_value_costs_its_error_and_is_told() -> None:
    found = await executed(an_engine(), "{ wrongRows { number } books { upper } }")

    assert data_of(found) is None
    assert errors_of(found) == [
        ("Int cannot represent non-integer value: 'two'", ["wrongRows", 1, "number"])
    ]
    assert found.redone == 3


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("mutation { change }", "mutation"),
        ("{ __schema { queryType { name } } }", "introspection"),
        ("query ($yes: Boolean = true) { books @include(if: $yes) { title } }", "a condition"),
    ],
)
async def test_what_no_plan_covers_is_left_to_graphql_core_and_told(
    document: str, reason: str
) -> None:
    engine = an_engine()

    found = await executed(engine, document)

    assert errors_of(found) == []
    assert found.fallback.startswith(reason)
    assert (found.plan, found.redone) == (None, 0)


async def test_a_document_has_one_plan_for_each_truth_of_its_conditions() -> None:
    engine = an_engine()
    document = parse("query ($yes: Boolean!) { books { title upper @include(if: $yes) } }")

    answers = [await executed(engine, document, yes=yes) for yes in (True, False, True)]

    assert [len(data_of(one)["books"][0]) for one in answers] == [2, 1, 2]
    assert answers[0].plan is answers[2].plan
    assert len(engine._plans) == 2


async def test_arguments_of_variables_are_read_each_time_and_others_once() -> None:
    engine = an_engine()
    document = parse(
        "query ($times: Int!) { a: books(times: 2) { title } b: books(times: $times) { title } }"
    )

    answers = [data_of(await executed(engine, document, times=times)) for times in (1, 3)]

    assert [[len(one["a"]), len(one["b"])] for one in answers] == [[6, 3], [6, 9]]
    [plan] = engine._plans.values()
    assert [field.arguments for field in plan.root.fields] == [{"times": 2}, None]


async def test_the_plans_used_longest_ago_are_forgotten() -> None:
    engine = an_engine(max_plans=3)
    documents = [parse(f"{{ books {{ a{number}: title }} }}") for number in range(5)]

    first = (await executed(engine, documents[0])).plan
    for document in (*documents[1:3], documents[0], *documents[3:]):
        await executed(engine, document)
    still = (await executed(engine, documents[0])).plan
    again = [(await executed(engine, document)).plan for document in documents[1:]]

    assert still is first
    assert len({id(plan) for plan in again}) == 4
    assert len(engine._plans) == len(engine._covered) == 3
    assert _MAX_PLANS == 500


async def test_a_plan_goes_when_it_is_forgotten_and_rows_that_are_alike_have_one_class() -> None:
    engine = an_engine(max_plans=1)
    plans = []
    gc.disable()
    try:
        for number in range(3):
            found = await executed(
                engine, f"{{ books {{ a{number}: title author {{ name }} }} }}", rows=Rows.STRUCTS
            )
            row = data_of(found).f0[0]
            plans.append((weakref.ref(found.plan), type(row), type(row.f1)))
            del found, row
        still = [plan() is not None for plan, _, _ in plans]
    finally:
        gc.enable()

    assert still == [False, False, True]
    assert len({book for _, book, _ in plans}) == 3
    assert len({author for _, _, author in plans}) == 1


def test_a_document_goes_when_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schema.execution._MAX_CACHED_DOCUMENTS", 1)
    schema = build_schema()
    assert isinstance(schema, GatewaySchema)
    schema.documents.read("{ users { nodes { id } } }")
    gc.collect()
    gc.disable()
    try:
        held = _tokens_held()
        for number in range(5):
            schema.documents.read(f"{{ users {{ nodes {{ a{number}: id }} }} }}")
        left = _tokens_held() - held
    finally:
        gc.enable()

    assert held >= 10
    assert left == 2  # an alias has two tokens more


def _tokens_held() -> int:
    return sum(type(one) is Token for one in gc.get_objects())


async def test_structs_are_written_as_dictionaries_are() -> None:
    document = parse("{ books { class: title __typename author { name } } }")
    engine = an_engine()

    dicts = data_of(await executed(engine, document))
    structs = data_of(await executed(engine, document, rows=Rows.STRUCTS))

    assert msgspec.json.encode(structs) == msgspec.json.encode(dicts)
    assert dicts["books"][0] == {
        "class": "Emma",
        "__typename": "Book",
        "author": {"name": "Austen"},
    }


def test_a_plan_tells_how_each_value_is_had() -> None:
    document = parse("{ books { title upper heldUp author { name } } }")

    plan = an_engine().plan(document, an_executor(document))

    assert not isinstance(plan, str)
    assert plan.explained().splitlines() == [
        "Query: rows from columns",
        "  books: [Book!]!, column by resolver",
        "    Book: rows from columns",
        "      title: String!, attribute in the row",
        "      upper: String!, column by method",
        "      heldUp: String!, column by resolver",
        "      author: Author, column by batched",
        "        Author: rows from objects alone",
        "          name: String!, attribute in the row",
    ]
    assert "v0 = o.title" in plan.explained(source=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


@given(JSON, st.integers(1, 4), st.integers(1, 40))
def test_pieces_joined_are_what_is_written_at_once(
    answer: object, rows: int, piece_bytes: int
) -> None:
    pieces = [*pieces_of(answer, rows=rows, piece_bytes=piece_bytes)]

    assert b"".join(pieces) == msgspec.json.encode(answer)
    assert all(pieces)
    assert all(len(piece) >= piece_bytes for piece in pieces[:-1])


async def test_a_long_list_is_written_in_pieces_of_its_rows() -> None:
    found = await executed(an_engine(), "{ a: rows { number } books { upper } }", rows=Rows.STRUCTS)
    answer = {"data": data_of(found)}

    pieces = [*pieces_of(answer)]

    assert b"".join(pieces) == msgspec.json.encode(answer)
    assert len(pieces) == 5
    assert max(map(len, pieces)) < 70_000
