"""From import to confirmed people: a real Kolibri and a simulated Canvas that share people.

The Canvas is made of what the Kolibri shows, in another order and with numbers of its own; once
everything is done through GraphQL only, and once through the command line only.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from real_servers import Gateway, Kolibri

from simulators.canvas.app import running_in_thread
from simulators.canvas.population import Population
from simulators.canvas.state import ADMIN_TOKEN, Canvas

pytestmark = pytest.mark.e2e

USERS = '{ users(filter: {providerIds: ["1"]}, first: 1000) { nodes { displayName username } } }'
REFRESH = """mutation ($id: ID!) { refreshProvider(input: {providerId: $id}) {
  ... on ImportRequested { run { id } } ... on ProviderRefused { message } } }"""
MATCHES = """{ userMatches(first: 1000, filter: {minScore: 0.5}) { nodes {
  id modelVersion left { username } right { username } } } }"""
CONFIRM = """mutation ($id: ID!, $version: String) {
  confirmMatch(input: {matchId: $id, expectedModelVersion: $version}) {
    __typename ... on PeopleDecided { person { users { username } } } } }"""


@dataclass(kw_only=True)
class Both:
    """A gateway before both, and who of the Canvas is who of the Kolibri, by username."""

    gateway: Gateway
    same: Mapping[str, str]

    def are_right(self, usernames: list[tuple[str, str]]) -> bool:
        """Whether nine of ten pairs (Kolibri, Canvas) are, of at least half of all there are."""
        right = sum(self.same.get(canvas) == kolibri for kolibri, canvas in usernames)
        return right >= 0.9 * len(usernames) and 2 * right >= len(self.same)


@pytest.fixture
def both(gateway: Callable[..., Gateway], kolibri: Kolibri) -> Iterator[Both]:
    program = gateway()
    account = {"url": kolibri.url, "username": "service_admin"}
    added = program.add_provider("1", **account, password=str(kolibri.lab["password"]))
    assert added.status_code == 200, added.text
    users = program.data_of(USERS)["users"]["nodes"]
    population, same = canvas_of(users)
    with running_in_thread(Canvas(population)) as url:
        added = program.add_provider("2", type="canvas", url=url, api_key=ADMIN_TOKEN)
        assert added.status_code == 200, added.text
        yield Both(gateway=program, same=same)


def canvas_of(users: list[Mapping[str, Any]]) -> tuple[Population, Mapping[str, str]]:
    """Return a Canvas with everybody of two names that nobody else has, and who they are."""
    counts = Counter(user["displayName"] for user in users)
    population, same = Population(), dict[str, str]()
    population.add_user("Winifred Oakes", "operator", is_admin=True)
    for at, user in enumerate(users):
        words = user["displayName"].split()
        plain = len(words) == 2 and all(word.isalpha() for word in words)
        if plain and counts[user["displayName"]] == 1:
            login = f"{words[0][0]}{words[1]}{at}".lower()
            population.add_user(" ".join(reversed(words)), login)
            same[login] = user["username"]
    assert len(same) >= 10
    return population, same


def test_people_are_found_and_confirmed_through_graphql_only(both: Both) -> None:
    ask = both.gateway.data_of
    for provider_id in ("1", "2"):
        ask(REFRESH, id=provider_id)
    wait_for(
        lambda: [one["lastImport"]["state"] for one in ask(
            "{ providers { lastImport { state } } }"
        )["providers"]] == ["DONE", "DONE"]
    )  # fmt: skip
    started = ask(
        "mutation { startMatchRun(input: {}) { ... on MatchRunRequested { run { id } } } }"
    )
    run_id = started["startMatchRun"]["run"]["id"]
    run = "query ($id: ID!) { matchRun(id: $id) { state } }"
    wait_for(lambda: ask(run, id=run_id)["matchRun"]["state"] == "DONE")

    confirmed = []
    for match in ask(MATCHES)["userMatches"]["nodes"]:
        done = ask(CONFIRM, id=match["id"], version=match["modelVersion"])["confirmMatch"]
        if done["__typename"] == "PeopleDecided":
            first, second = (user["username"] for user in done["person"]["users"])
            confirmed.append((first, second))

    assert both.are_right(confirmed), (confirmed, both.same)
    people = ask("{ people(first: 1000) { nodes { users { username } } } }")["people"]["nodes"]
    assert len(people) == len(confirmed)
    unmatched = both.gateway.get("/api/users", id="2", unmatched="true").json()
    assert not {row["external_username"] for row in unmatched} & {other for _, other in confirmed}


def test_people_are_found_and_confirmed_through_the_command_line_only(both: Both) -> None:
    assert both.gateway.stop() == 0

    def command(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("learning-gateway")
        return subprocess.run(
            [str(program), *arguments],
            env={**os.environ, **both.gateway.environment},
            cwd=both.gateway.data,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    for provider_id in ("1", "2"):
        assert command("refresh", provider_id).returncode == 0
    compared = command("match", "run", "--json")
    assert json.loads(compared.stdout)["state"] == "DONE", compared.stderr
    reviewed = command("match", "review", "--min-score", "0.5", given="y" * 1000)
    assert reviewed.returncode == 0, reviewed.stderr
    exported = command("match", "export", "--output", "people.csv")
    assert exported.returncode == 0, exported.stderr

    lines = (both.gateway.data / "people.csv").read_text("utf-8").splitlines()
    by_person: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        by_person.setdefault(row["person"], {})[row["provider_id"]] = row["external_username"]
    found = [(accounts["1"], accounts["2"]) for accounts in by_person.values()]
    assert both.are_right(found), (found, both.same)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "It does not come to that"
        time.sleep(0.2)
