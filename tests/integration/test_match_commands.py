"""From import to confirmed people, through the command line only."""

import csv
import io
import json
import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from overlapping import canvas_school, kolibri_school, same_people
from running_gateway import ADMIN, served

from gateway.command_line import main
from gateway.mapping import MappingUnusable, read_mapping
from gateway.reviewing import keys_of_terminal
from simulators.canvas.app import app_for as canvas_app
from simulators.canvas.state import ADMIN_TOKEN, Canvas
from simulators.kolibri.app import app_for as kolibri_app
from simulators.kolibri.population import PASSWORD
from simulators.kolibri.state import Kolibri


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    errors: str


Run = Callable[..., Done]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Run]:
    """Run commands over a Kolibri (1) and a Canvas (2) of one school, both imported."""
    monkeypatch.setenv("GATEWAY_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, given: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        code = main(arguments)
        output, errors = capsysbinary.readouterr()
        return Done(code, output.decode(), errors.decode())

    school = kolibri_school()
    with ExitStack() as stack:
        kolibri = stack.enter_context(served(kolibri_app(Kolibri(school))))
        canvas = stack.enter_context(served(canvas_app(Canvas(canvas_school(school)))))
        adding = ["--platform", "kolibri", "--url", kolibri, "--username", ADMIN]
        added = command("providers", "add", "1", *adding, given=f"password={PASSWORD}\n")
        assert added.code == 0, added.errors
        added = command(
            *("providers", "add", "2", "--platform", "canvas", "--url", canvas),
            given=f"api_key={ADMIN_TOKEN}\n",
        )
        assert added.code == 0, added.errors
        for provider_id in ("1", "2"):
            assert command("refresh", provider_id).code == 0
        yield command


def test_from_import_to_confirmed_people_through_the_command_line_only(
    run: Run, tmp_path: Path
) -> None:
    right = {(login, person.username) for login, person in same_people(kolibri_school()).items()}

    compared = run("match", "run", "--provider", "1", "--provider", "2", "--json")
    outcome = json.loads(compared.output)
    assert (compared.code, outcome["state"], outcome["pairs_done"]) == (0, "DONE", 1)
    assert (outcome["progress"], outcome["notes"]) == (1.0, [])

    reviewed = run("match", "review", "--min-score", "0.5", given="u?" + "y" * 5 + "nu" + "sq")
    assert reviewed.code == 0
    assert reviewed.output.splitlines()[-1] == "5 confirmed, 0 rejected, 1 skipped"
    assert "username is built from the other's name" in reviewed.output
    assert "before any evidence" in reviewed.output
    assert "There is nothing to undo" in reviewed.output
    passed = run("match", "review", given="s" * 60)
    assert "There is nothing more to decide" in passed.output

    exported = run("match", "export", "--output", "-")
    rows = list(csv.DictReader(io.StringIO(exported.output)))
    assert len(rows) == 10
    by_person: dict[str, dict[str, str]] = {}
    for row in rows:
        by_person.setdefault(row["person"], {})[row["provider_id"]] = row["external_username"]
    assert {(found["2"], found["1"]) for found in by_person.values()} <= right

    evaluated = run("match", "evaluate")
    assert evaluated.code == 0
    assert "1 and 2" in evaluated.output
    assert "100.0%" in evaluated.output

    noted = [json.loads(line) for line in run("audit").output.splitlines()]
    assert [entry["action"] for entry in noted][-8:] == [
        *("startMatchRun", *["confirmMatch"] * 5, "rejectMatch", "undoDecision"),
    ]
    assert {entry["outcome"] for entry in noted} == {"DONE"}


def test_a_mapping_is_tried_first_and_then_linked(run: Run, tmp_path: Path) -> None:
    assert run("match", "run", "--link-above", "0.5").code == 0
    run("match", "export", "--output", "found.csv")
    found = list(csv.DictReader((tmp_path / "found.csv").read_text("utf-8").splitlines()))
    first, second = found[0], found[1]
    assert first["person"] == second["person"]
    stranger = next(row for row in found if row["person"] != first["person"])
    lines = [
        "person,provider_id,external_user_id",
        *(f"product-1,{row['provider_id']},{row['external_user_id']}" for row in (first, second)),
        f"product-2,1,{'0' * 32}",
        f"product-2,2,{stranger['external_user_id']}",
        "alone,1,somebody",
    ]
    (tmp_path / "mapping.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    tried = run("match", "import", "mapping.csv", "--dry-run")
    linked = run("match", "import", "mapping.csv")
    again = run("match", "import", "mapping.csv", "--dry-run")

    assert (tried.code, linked.code, again.code) == (1, 1, 1)
    assert tried.output == (
        "2 people with two accounts or more: 1 would be linked, 0 linked before,"
        " 1 would be refused\n"
    )
    assert linked.output == (
        "2 people with two accounts or more: 1 linked, 0 linked before, 1 refused\n"
    )
    assert "1 linked before" in again.output
    assert linked.errors.splitlines()[-1].startswith("line 4: product-2: An account is not in")


def test_a_run_says_which_provider_was_never_imported(run: Run) -> None:
    listed = run("providers", "list").output.splitlines()
    url = next(
        word for line in listed if "canvas" in line for word in line.split() if "://" in word
    )
    adding = ["--platform", "canvas", "--url", url]
    assert run("providers", "add", "3", *adding, given=f"api_key={ADMIN_TOKEN}\n").code == 0

    compared = run("match", "run", "--provider", "1", "--provider", "3")

    assert compared.code == 0
    assert compared.errors == (
        "Provider 3 has no accounts to compare: import it first, by refreshProvider or"
        " `learning-gateway refresh`\n"
    )
    assert ", 0 matches suggested" in compared.output


def test_what_cannot_be_done_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("person,provider_id\nx,1\n", encoding="utf-8")

    alone = run("match", "run", "--provider", "1")
    unknown = run("match", "run", "--provider", "1", "--provider", "9")
    early = run("match", "evaluate")
    bad = run("match", "import", "bad.csv")

    assert [done.code for done in (alone, unknown, early, bad)] == [1, 1, 1, 1]
    assert alone.errors.startswith("learning-gateway: providerIds: Two providers are needed")
    assert unknown.errors == "learning-gateway: No provider 9 is registered\n"
    assert early.errors == "learning-gateway: Nobody has confirmed or rejected anything yet\n"
    assert bad.errors == "learning-gateway: line 1: The columns external_user_id are missing\n"


async def test_keys_of_a_terminal_come_one_by_one_and_it_is_as_it_was_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        before = termios.tcgetattr(theirs)
        with keys_of_terminal() as read_key:
            os.write(ours, b" Yn")
            keys = [await read_key(), await read_key()]

        assert keys == ["y", "n"]
        assert termios.tcgetattr(theirs) == before
    os.close(ours)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1: The columns person, provider_id, external_user_id are missing"),
        ("person,provider_id,external_user_id\nx,,7\n", "line 2: provider_id is empty"),
        ("person,provider_id,external_user_id\nx,1\n", "line 2: external_user_id is empty"),
        (
            "person,provider_id,external_user_id\nx,1,7\ny,1,7\n",
            "line 3: The account 7 of provider 1 is x's too, see line 2",
        ),
        ('person,provider_id,external_user_id\nx,1,"7\n', "line 2: This is no CSV"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_line(text: str, problem: str) -> None:
    with pytest.raises(MappingUnusable) as refused:
        read_mapping(io.StringIO(text))

    assert str(refused.value).startswith(problem)
