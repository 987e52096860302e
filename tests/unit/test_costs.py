"""What operations are estimated to cost, and what answers are counted at."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import strawberry
from graphql import OperationDefinitionNode, get_introspection_query, parse

from schema import build_schema
from schema.costs import CostModel, DocumentCosts, ListSize, SizeUnknown, count_values
from schema.engine import Row
from schema.execution import GatewaySchema


class User(Row):
    """An object as plans make it."""

    values: ClassVar[int] = 2
    containers: ClassVar[Sequence[str]] = ("role",)
    id: str
    role: object


SCHEMA = build_schema()
assert isinstance(SCHEMA, GatewaySchema)
MODEL = CostModel(SCHEMA._schema)
OPERATIONS = Path(__file__).parents[2] / "graphql" / "operations"


def _costs(text: str) -> tuple[DocumentCosts, OperationDefinitionNode]:
    document = parse(text)
    operation = next(
        one for one in document.definitions if isinstance(one, OperationDefinitionNode)
    )
    return DocumentCosts(MODEL, document), operation


def _estimate(text: str, **variables: Any) -> int:
    costs, operation = _costs(text)
    return costs.estimate(operation, variables)


@pytest.mark.parametrize(
    ("text", "cost"),
    [
        ("{ __typename }", 1),
        ('{ user(id: "a") { id displayName } }', 3),
        ("{ providers { id } }", 10 * 2),
        ("{ users(first: 2) { nodes { id } } }", 1 + 2 * 2),
        ("{ users(first: 2) { totalCount nodes { id } } }", 1 + 1 + 2 * 2),
        ("{ users { nodes { id } } }", 1 + 50 * 2),
        ("{ users(first: null) { nodes { id } } }", 1 + 50 * 2),
        ("{ users(first: 2) { nodes { id } edges { node { id } cursor } } }", 1 + 2 * 2 + 2 * 4),
        ("{ users(first: 2) { sources { code } } }", 1 + 10 * 2),
        ("{ users(first: 2) { nodes { roles { value } } } }", 1 + 2 * (1 + 3 * 2)),
        (
            "{ users(first: 7) { nodes { enrollments(first: 3) { nodes { id state } } } } }",
            1 + 7 * (1 + 1 + 3 * 3),
        ),
        ('{ nodes(ids: ["a", "b", "c"]) { id } }', 3 * 2),
        ("{ users(first: 2) { ...a } } fragment a on UserConnection { nodes { id } }", 5),
        (
            """{ a: users(first: 2) { ...a } b: users(first: 9) { ...a } }
            fragment a on UserConnection { nodes { ...b } } fragment b on User { id username }""",
            (1 + 2 * 3) + (1 + 9 * 3),
        ),
        ('{ node(id: "a") { ... on User { id } ... { id } ... on Course { title } } }', 4),
        ("{ users(first: 100000000000000000000) { nodes { id } } }", 1 + 10_000 * 2),
        ("{ changes(first: 4) { edges { cursor } } }", 1 + 4 * 2),
    ],
)
def test_an_estimate_is_what_the_answer_can_hold_at_most(text: str, cost: int) -> None:
    assert _estimate(text) == cost


@pytest.mark.parametrize(
    ("variables", "rows"),
    [
        ({"first": 4}, 4),
        ({}, 8),
        ({"first": None}, 50),
        ({"first": -3}, 0),
        ({"first": "many"}, 50),
        ({"first": True}, 50),
    ],
)
def test_variables_and_their_defaults_are_put_in(variables: Mapping[str, Any], rows: int) -> None:
    text = "query ($first: Int = 8) { users(first: $first) { nodes { id username } } }"

    assert _estimate(text, **variables) == 1 + rows * 3


def test_a_variable_that_is_a_list_counts_what_it_holds() -> None:
    text = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } }"

    assert _estimate(text, ids=["a"] * 7) == 7 * 2


def test_variables_inside_each_other_are_multiplied() -> None:
    text = """query ($a: Int, $b: Int) {
      users(first: $a) { nodes { enrollments(first: $b) { nodes { id } } roles { value } } } }"""

    assert _estimate(text, a=10, b=20) == 1 + 10 * (1 + 1 + 20 * 2 + 3 * 2)


def test_the_costliest_field_is_the_deepest_that_makes_up_half() -> None:
    costs, operation = _costs(
        """query ($a: Int) { users(first: $a) { totalCount nodes { id
             mine: enrollments(first: 100) { nodes { id course { id title } } } } }
             providers { id } }"""
    )
    assert costs.estimate(operation, {"a": 10}) == 5_052

    assert costs.costliest(operation, {"a": 10}) == ("users.nodes.mine.nodes.course", 3_000)


def test_doubling_fragments_are_estimated_once_each() -> None:
    fragments = "".join(f"fragment f{n} on User {{ ...f{n + 1} ...f{n + 1} }} " for n in range(40))
    costs, operation = _costs(
        f"{{ users(first: 1) {{ nodes {{ ...f0 }} }} }} {fragments} fragment f40 on User {{ id }}"
    )
    began_at = time.process_time()

    assert costs.estimate(operation, {}) == 1 + 1 + 2**40
    assert time.process_time() - began_at < 0.1


@pytest.mark.parametrize("path", sorted(OPERATIONS.glob("*.graphql")), ids=lambda path: path.name)
def test_every_example_operation_is_far_below_the_default_limit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert 0 < _estimate(text, first=1000) < 50_000


def test_introspection_costs_what_it_gives() -> None:
    assert 20_000 < _estimate(get_introspection_query()) < 100_000


def test_a_list_that_does_not_say_its_size_is_no_schema_of_ours() -> None:
    @strawberry.type
    class Query:
        names: list[str]

    with pytest.raises(SizeUnknown, match=r"Query\.names is a list and does not say"):
        CostModel(strawberry.Schema(Query)._schema)


def test_a_list_may_be_sized_by_whatever_gives_its_object() -> None:
    @strawberry.type
    class Page:
        rows: list[int]

    @strawberry.type
    class Query:
        page: Page = strawberry.field(
            directives=[ListSize(assumed_size=6, sized_fields=["rows"])],
            resolver=lambda: Page(rows=[]),
        )

    model = CostModel(strawberry.Schema(Query)._schema)
    document = parse("{ page { rows } }")
    (operation,) = document.definitions
    assert isinstance(operation, OperationDefinitionNode)

    assert DocumentCosts(model, document).estimate(operation, {}) == 1 + 6


@pytest.mark.parametrize(
    ("answer", "values"),
    [
        ({}, 0),
        ({"a": 1, "b": None}, 2),
        ({"users": {"nodes": [{"id": "1"}, {"id": "2"}]}}, 1 + 2 * 2),
        ({"roles": ["a", "b", "c"]}, 3),
        ({"users": {"nodes": []}}, 1),
        ({"users": {"nodes": [User(id="1", role=User(id="2", role=None))]}}, 1 + 1 + 2 + 2),
    ],
)
def test_an_answer_is_counted_as_it_is_estimated(answer: Mapping[str, Any], values: int) -> None:
    assert count_values(answer) == values
