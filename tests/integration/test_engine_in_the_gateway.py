"""What operators see of the engine: which plan, and what no plan covers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from running_gateway import RunningGateway, running_gateway

from gateway.command_line import main
from schema import build_schema
from schema.execution import explain
from simulators.kolibri.app import running
from simulators.kolibri.population import build_population
from simulators.kolibri.state import Kolibri

ENGINE = {"Gateway-Debug": "engine"}
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
            "      nodes: [User!]!, column by method",
            "        User: rows from columns",
            "          displayName: String!, attribute in the row",
            "          roles: [Role!]!, column by method",
            "            Role: rows from objects alone",
            "              value: RoleValue!, attribute in the row",
        ],
    }


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
    assert ways.count("attribute in the row") == 8
    assert ways.count("column by method") == 3
    assert ways.count("column by resolver") == 2
