"""Validation finds what the library's own finds, and does not take longer for longer documents."""

import random
import time

import graphql
import pytest
from graphql import DocumentNode, GraphQLSchema, build_schema, get_introspection_query, parse

from schema.validation import validate

SCHEMA = build_schema(
    """
    directive @tag(name: String) on QUERY | FIELD | FRAGMENT_SPREAD | VARIABLE_DEFINITION
    interface Being { id: ID!  name: String  friends(first: Int, near: Place): [Being!]! }
    type Cat implements Being {
      id: ID!  name: String  friends(first: Int, near: Place): [Being!]!
      lives: Int  age: Int!  mate: Cat  tags(of: [Kind!]): [String!]
    }
    type Dog implements Being {
      id: ID!  name: String  friends(first: Int, near: Place): [Being!]!
      lives: [Int]  age: Int  mate: Dog  tags(of: [Kind!]): [String!]
    }
    union Pet = Cat | Dog
    enum Kind { WILD TAME }
    input Place { x: Int!  y: Int = 0  inside: Place }
    type Query {
      being(id: ID!): Being  pet: Pet  cats(first: Int = 5): [Cat!]!  cat: Cat  dog: Dog
    }
    type Mutation { feed(id: ID!): Boolean }
    type Subscription { fed: Cat  born: Dog }
    """
)
WRONG = [
    "{ nothing cat { nonsense } }",
    "{ cat }",
    "{ cat { id { x } } }",
    "{ cat { ...gone } }",
    "{ being { id } }",
    "query A { cat { id } } query A { dog { id } }",
    "{ cat { id } } { dog { id } }",
    "query ($a: Int, $a: Int) { cats(first: $a) { id } }",
    "query ($a: Int) { cat { id } }",
    "query ($a: String) { cats(first: $a) { id } }",
    "query ($a: Cat) { cats(first: $a) { id } }",
    "{ cats(first: $a) { id } }",
    '{ cats(first: "x") { id } }',
    "{ cats(first: 1, first: 2) { id } }",
    "{ cats(last: 1) { id } }",
    "{ cat { friends(near: {y: 1}) { id } } }",
    "{ cat { friends(near: {x: 1, x: 2, z: 3}) { id } } }",
    "{ cat { tags(of: [WILD, ODD, 3]) } }",
    "{ cat @nowhere { id } }",
    "{ cat @tag @tag { id } }",
    "query @include(if: true) { cat { id } }",
    "fragment F on Cat { ...G } fragment G on Cat { ...F } { cat { ...F } }",
    "fragment F on Cat { id } { cat { id } }",
    "fragment F on Nobody { id } { cat { ...F } }",
    "fragment F on Kind { id } { cat { ...F } }",
    "fragment F on Cat { id } fragment F on Cat { id } { cat { ...F } }",
    "{ cat { ... on Dog { id } } }",
    "subscription { fed { id } born { id } }",
    "mutation { feed }",
    "type Query { x: Int } { cat { id } }",
    "{ __schema { types { fields { type { fields { type { fields { name } } } } } } } }",
    "query ($a: Int!) { ...F } fragment F on Query { cats(first: $a) { id name(of: $b) } }",
    "{ cat @tag(names: 1) { id @skip } }",
    "query ($a: Int = true @tag(name: 3)) { cats(first: $a) { id } }",
]
UNMERGEABLE = [
    "{ cat { x: name x: id } }",
    "{ a: cat { id } a: dog { id } }",
    "{ cats(first: 1) { id } cats(first: 2) { id } }",
    "{ cats { id } cats(first: 2) { id } }",
    "{ pet { ... on Cat { lives } ... on Dog { lives } } }",
    "{ pet { ... on Cat { age } ... on Dog { age } } }",
    "{ pet { ... on Cat { x: mate { a: id } } ... on Dog { x: mate { a: name } } } }",
    "{ being(id: 1) { x: name ... on Cat { x: id } } }",
    "{ cat { ...F ...G } } fragment F on Cat { x: id } fragment G on Cat { x: name }",
    "{ cat { mate { x: id } } ...F } fragment F on Query { cat { mate { x: name } } }",
    "query ($a: Int, $b: Int) { cats(first: $a) { id } cats(first: $b) { id } }",
    "{ cat { friends(near: {x: 1}) { id } friends(near: {x: 2}) { id } } }",
    "{ cat { tags(of: [WILD]) tags(of: [WILD, TAME]) } }",
]
MERGEABLE = [
    "{ cat { id } cat { id name } }",
    "{ pet { ... on Cat { x: id y: mate { a: id } } ... on Dog { x: id y: mate { a: id } } } }",
    "{ pet { ... on Cat { tags(of: [WILD]) } ... on Dog { tags(of: [TAME]) } } }",
    "{ cat { friends(near: {x: 1, y: 2}) { id } friends(near: {y: 2, x: 1}) { id } } }",
    "query ($a: Int) { cats(first: $a) { id } cats(first: $a) { name } }",
    "{ cat { ...F ...F mate { ...F } } } fragment F on Cat { id mate { id } }",
    get_introspection_query(),
]


def _messages(schema: GraphQLSchema, document: DocumentNode) -> list[str]:
    return [error.message for error in validate(schema, document, max_errors=100)]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_as_the_library_tells_it(text: str) -> None:
    document = parse(text)
    errors = graphql.validate(SCHEMA, document)

    found = validate(SCHEMA, document, max_errors=100)

    assert errors
    assert [(error.message, error.locations) for error in found] == [
        (error.message, error.locations) for error in errors
    ]


@pytest.mark.parametrize("text", UNMERGEABLE)
def test_fields_of_one_name_that_are_not_one_field_are_refused(text: str) -> None:
    document = parse(text)

    (message, *_) = _messages(SCHEMA, document)

    assert "conflict because" in message
    assert graphql.validate(SCHEMA, document)


@pytest.mark.parametrize("text", MERGEABLE)
def test_fields_of_one_name_that_can_be_merged_are_let_through(text: str) -> None:
    assert _messages(SCHEMA, parse(text)) == []


def test_on_random_documents_the_verdict_is_the_librarys() -> None:
    dice = random.Random(20)
    verdicts = []
    for _ in range(600):
        document = parse(_random_document(dice))
        expected = [error.message for error in graphql.validate(SCHEMA, document)]
        found = _messages(SCHEMA, document)
        others = [message for message in expected if "conflict because" not in message]
        if others:
            assert found == others
        else:
            assert bool(found) == bool(expected), graphql.print_ast(document)
        verdicts.append((bool(others), bool(expected)))

    assert min(verdicts.count(one) for one in [(False, False), (False, True)]) > 60


def test_at_most_so_many_errors_are_told() -> None:
    document = parse("{ " + " ".join(f"x{number}" for number in range(50)) + " }")

    found = validate(SCHEMA, document, max_errors=10)

    assert len(found) == 11
    assert found[-1].message.startswith("Too many validation errors")


def test_ten_times_the_fields_take_no_more_than_ten_times_as_long() -> None:
    def seconds(count: int) -> float:
        document = parse("{ cat { " + "friends(first: 1, near: {x: 1}) { id } " * count + "} }")
        began_at = time.process_time()
        assert validate(SCHEMA, document, max_errors=1) == []
        return time.process_time() - began_at

    seconds(10)

    assert min(seconds(1000) for _ in range(3)) < 30 * min(seconds(100) for _ in range(5))


def _random_document(dice: random.Random) -> str:
    fragments = " ".join(
        f"fragment F{number} on Being {{ id {_fields(dice, 2, leaf=True)} }}" for number in range(2)
    )
    spread = "cat { ...F0 ...F1 } " if dice.random() < 0.7 else ""
    pet = f"pet {{ ... on Cat {{ {_fields(dice, 3)} }} ... on Dog {{ {_fields(dice, 3)} }} }}"
    being = f"being(id: 1) {{ ...F0 ...F1 {_fields(dice, 2, leaf=True)} }}"
    return f"{{ {being} {spread} {pet} }} {fragments}"


def _fields(dice: random.Random, depth: int, *, leaf: bool = False) -> str:
    names = ["id", "name", "friends"] if leaf else ["id", "name", "age", "lives", "mate", "friends"]
    fields = []
    for _ in range(dice.randint(1, 3)):
        alias = dice.choice(["", "", "", "a: ", "b: "])
        name = dice.choice(names)
        if name == "friends":
            argument = dice.choice(["", "", "(first: 1)"])
            fields.append(f"{alias}{name}{argument} {{ {dice.choice(['id', 'name', 'a: id'])} }}")
        elif name == "mate":
            inside = _fields(dice, depth - 1) if depth else "id"
            fields.append(f"{alias}{name} {{ {inside} }}")
        else:
            fields.append(f"{alias}{name}")
    return " ".join(fields)
