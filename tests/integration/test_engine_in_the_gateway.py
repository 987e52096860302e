"""What operators see of the engine: which plan, and what no plan covers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from running_gateway import RunningGateway, running_gateway
from strawberry.types.base import StrawberryObjectDefinition
from strawberry.types.field import StrawberryField

from gateway.command_line import main
from schema import build_schema
from schema.engine.batches import batching_of
from schema.execution import explain
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

ENGINE = {"Gateway-Debug": "engine"}
LOADED_TOGETHER = {
    "Course.enrollments",
    "Course.icon",
    "Course.icon_url",
    "Course.provider",
    "Course.sections",
    "Enrollment.course",
    "Enrollment.milestones",
    "Enrollment.progress",
    "Enrollment.provider",
    "Enrollment.section",
    "Enrollment.user",
    "Provider.account_id",
    "Provider.base_url",
    "Provider.capabilities",
    "Provider.health",
    "Provider.last_import",
    "Provider.problem",
    "Provider.sessions",
    "Provider.version",
    "ProviderSession.authorization_url",
    "User.activity",
    "User.enrollments",
    "User.matches",
    "User.person",
    "User.provider",
}
DOCUMENT = "query Named($id: ID!) { node(id: $id) { id ... on User { displayName } } }"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    kolibri = Kolibri(build_population())
    async with running(kolibri) as url, running_gateway(tmp_path) as running_one:
        await running_one.add_kolibri(url)
        yield running_one


async def asked(gateway: RunningGateway, query: str) -> dict[str, Any]:
    answer = await gateway.client.post("/graphql", json={"query": query}, headers=ENGINE)
    body: dict[str, Any] = answer.json()
    return body


async def test_an_administrator_sees_by_which_plan_a_query_was_executed(
    gateway: RunningGateway,
) -> None:
    answer = await asked(gateway, "{ users(first: 1) { nodes { displayName roles { value } } } }")

    assert answer["extensions"]["engine"] == {
        "by": "plan",
        "redone": 0,
        "plan": [
            "Query: rows from columns",
            "  users: UserConnection, column by resolver",
            "    UserConnection: rows from columns",
            "      nodes: [User!]!, column by attribute",
            "        User: rows from objects alone",
            "          displayName: String!, attribute in the row",
            "          roles: [Role!]!, attribute in the row",
            "            Role: rows from objects alone",
            "              value: RoleValue!, attribute in the row",
        ],
    }


def test_below_the_roots_every_field_is_read_or_loaded_for_all_objects_together() -> None:
    roots = {"Query", "Mutation", "Subscription"}
    hows = {
        f"{each.definition.name}.{field.python_name}": how_of(field)
        for each in build_schema().schema_converter.type_map.values()
        if isinstance(each.definition, StrawberryObjectDefinition)
        and each.definition.name not in roots
        for field in each.definition.fields
    }

    assert {name for name, how in hows.items() if how == "object by object"} == set()
    assert {name for name, how in hows.items() if how == "together"} == LOADED_TOGETHER


def how_of(field: StrawberryField) -> str:
    if batching_of(field.metadata) is not None:
        return "together"
    resolver = field.base_resolver
    if resolver is None:
        return "read"
    alone = resolver.info_parameter is None and not resolver.arguments and not resolver.is_async
    return "read" if alone else "object by object"


async def test_what_no_plan_covers_is_told_in_the_answer_and_counted(
    gateway: RunningGateway,
) -> None:
    answer = await asked(gateway, "{ __schema { queryType { name } } }")
    await asked(gateway, "{ users(first: 1) { totalCount } }")
    metrics = (await gateway.get("/metrics")).text

    assert answer == {
        "data": {"__schema": {"queryType": {"name": "Query"}}},
        "extensions": {"engine": {"by": "introspection", "redone": 0, "plan": None}},
    }
    assert 'learning_gateway_executions_total{by="introspection"} 1.0' in metrics
    assert 'learning_gateway_executions_total{by="plan"} 1.0' in metrics


def test_the_command_line_explains_a_document_with_every_possible_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "named.graphql"
    document.write_text(DOCUMENT, encoding="utf-8")

    code = main(["explain", str(document), "--variables", '{"id": "x"}'])

    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        "Query: rows from columns",
        "  node: Node, column by resolver",
        "    Provider: rows from objects alone",
        "      id: ID!, attribute in the row",
        "    User: rows from objects alone",
        "      id: ID!, attribute in the row",
        "      displayName: String!, attribute in the row",
        "    Course: rows from objects alone",
        "      id: ID!, attribute in the row",
        "    Enrollment: rows from objects alone",
        "      id: ID!, attribute in the row",
        "    Person: rows from objects alone",
        "      id: ID!, attribute in the row",
    ]


@pytest.mark.parametrize(
    ("document", "options", "code", "told"),
    [
        ("{ nothing }", (), 1, "Cannot query field 'nothing' on type 'Query'"),
        (DOCUMENT, (), 1, "Variable '$id' has invalid value"),
        (DOCUMENT, ("--variables", "[]"), 1, "--variables is no JSON object"),
        ("{ __schema { queryType { name } } }", (), 0, "graphql-core executes it: introspection"),
    ],
)
def test_a_document_without_a_plan_is_explained_too(
    document: str,
    options: tuple[str, ...],
    code: int,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "given.graphql"
    file.write_text(document, encoding="utf-8")

    ended = main(["explain", str(file), *options])

    printed = capsys.readouterr()
    assert ended == code
    assert told in printed.out + printed.err


def test_fields_of_ours_are_what_the_engine_takes_them_for() -> None:
    plan = explain(
        build_schema(),
        "{ users { nodes { id externalId active lastActivityAt provenance { via } } }"
        " courses { nodes { id title kind } } }",
        {},
        None,
    )

    ways = [line.rpartition(", ")[2] for line in plan.splitlines()]
    assert ways.count("attribute in the row") == 9
    assert ways.count("column by attribute") == 2
    assert ways.count("column by resolver") == 2
