import asyncio
import csv
import hashlib
import io
import json
import logging
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from running_gateway import ADMIN, logins, served

from gateway.command_line import main
from gateway.settings import SETTINGS
from simulators.kolibri.app import app_for
from simulators.kolibri.population import PASSWORD, build_population
from simulators.kolibri.state import Kolibri, Outage
from storage.api_keys import ApiKeyStore
from storage.database import open_database

SDL = Path(__file__).parents[2] / "graphql" / "schema.graphql"


@dataclass(frozen=True)
class Done:
    code: int
    output: str
    errors: str


Run = Callable[..., Done]


@pytest.fixture
def kolibri() -> Kolibri:
    return Kolibri(build_population(bulk_users=1500))


@pytest.fixture
def kolibri_url(kolibri: Kolibri) -> Iterator[str]:
    with served(app_for(kolibri)) as url:
        yield url


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Run]:
    """Run commands in one data folder, with standard input that is no terminal."""
    for name in [name for name in os.environ if name.startswith("GATEWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GATEWAY_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = (root.handlers, root.level)

    def command(*arguments: str, given: str = "") -> Done:
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse ends so
            code = int(ended.code or 0)
        output, errors = capsysbinary.readouterr()
        return Done(code, output.decode(), errors.decode())

    yield command
    root.handlers, root.level = before


@pytest.fixture
def added(run: Run, kolibri_url: str) -> str:
    """Register the simulated Kolibri as provider 1."""
    done = run(*adding(kolibri_url), given=f"password={PASSWORD}\n")
    assert done.code == 0, done.errors
    return kolibri_url


def adding(url: str, *more: str) -> list[str]:
    fixed = ["--platform", "kolibri", "--url", url, "--username", ADMIN]
    return ["providers", "add", "1", *fixed, *more]


def test_the_schema_is_the_committed_one_and_needs_no_settings(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "not a port")

    done = run("schema")

    assert (done.code, done.errors) == (0, "")
    assert done.output == SDL.read_text(encoding="utf-8")


def test_the_program_runs_as_a_module_with_help() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.command_line", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )

    for command in ("serve", "schema", "check", "export", "providers", "keys"):
        assert command in done.stdout


def test_a_wrong_setting_ends_with_2_and_says_which(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_PORT", "http")

    for command in (("check",), ("serve",), ("keys", "list"), ("keys", "rotate", "--new")):
        done = run(*command)

        assert done.code == 2
        assert done.errors == (
            "learning-gateway: GATEWAY_PORT 'http' is not a whole number: "
            "expected a whole number from 1 to 65535\n"
        )


def test_a_wrong_argument_ends_with_2(run: Run) -> None:
    for command in (
        (),
        ("export", "grades", "--provider", "1"),
        ("export", "users"),
        ("providers", "add"),
        ("keys", "create", "me"),
    ):
        assert run(*command).code == 2


# Providers.


def test_a_provider_is_added_listed_checked_and_removed(
    run: Run, kolibri_url: str, kolibri: Kolibri
) -> None:
    added = run(*adding(kolibri_url), given=f"password={PASSWORD}\n")
    listed = run("providers", "list")
    checked = run("providers", "check", "1")
    removed = run("providers", "remove", "1")
    again = run("providers", "remove", "1")
    empty = run("providers", "list")

    assert added.code == 0, added.errors
    assert re.match(r"provider 1: .+, version 0\.19\.5, ACTIVE\n", added.output)
    assert all(word in listed.output for word in ("kolibri", kolibri_url, "ACTIVE", "0.19.5"))
    assert (checked.code, "version 0.19.5" in checked.output) == (0, True)
    assert (removed.code, removed.output) == (0, "provider 1: removed\n")
    assert (again.code, again.errors) == (1, "learning-gateway: No provider 1 is registered\n")
    assert kolibri_url not in empty.output
    assert PASSWORD not in added.output + listed.output + checked.output


@pytest.mark.parametrize(
    ("more", "given", "words"),
    [
        ([], "password=wrong\n", "password is not that of this user"),
        ([], "", "credentials.password: Kolibri needs it"),
        (["--account-id", "0" * 32], f"password={PASSWORD}\n", "has no facility"),
        (["--option", "speed=9"], f"password={PASSWORD}\n", "'speed' is not one"),
        (["--option", "speed"], f"password={PASSWORD}\n", "not of the form name=value"),
        (["--platform", "moodle"], f"password={PASSWORD}\n", "'moodle' is not one of canvas"),
        (["--url", "http://169.254.169.254"], f"password={PASSWORD}\n", "link-local"),
        (["--url", "http://127.0.0.1:1"], f"password={PASSWORD}\n", "127.0.0.1:1"),
        ([], "a line without a sign\n", "not of the form name=value"),
    ],
)
def test_what_is_wrong_with_a_provider_is_said_and_nothing_is_stored(
    run: Run, kolibri_url: str, more: list[str], given: str, words: str
) -> None:
    done = run(*adding(kolibri_url, *more), given=given)

    assert done.code == 1
    assert words in done.errors
    assert PASSWORD not in done.errors
    assert kolibri_url not in run("providers", "list").output


def test_check_shows_the_settings_without_secrets_and_tries_every_provider(
    run: Run, added: str, kolibri: Kolibri, tmp_path: Path
) -> None:
    good = run("check")
    kolibri.change_password(ADMIN, "another-Password-9")
    bad = run("check")

    token = (tmp_path / "data" / "token").read_text(encoding="ascii").strip()
    assert (good.code, bad.code) == (0, 1)
    assert [line.partition("=")[0] for line in good.output.splitlines()[: len(SETTINGS)]] == [
        setting.name for setting in SETTINGS
    ]
    assert f"GATEWAY_DATA_FOLDER={tmp_path / 'data'}" in good.output
    assert "GATEWAY_DATABASE_URL=***" in good.output
    assert re.search(r"^provider 1: .*version 0\.19\.5", good.output, re.MULTILINE)
    assert "provider 1: REAUTH_REQUIRED: The password is not that" in bad.output
    for secret in (token, PASSWORD):
        assert secret not in good.output + bad.output


# Exports.


def test_users_are_exported_as_csv_whole_and_exact(
    run: Run, added: str, kolibri: Kolibri, tmp_path: Path
) -> None:
    kolibri.add_user("formula", '=1+1 "quoted", and\nbroken')

    done = run("export", "users", "--provider", "1", "--output", "users.csv")

    with (tmp_path / "users.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    facility = kolibri.facility_id(None)
    expected = {
        account.id: (account.username, account.full_name)
        for account in kolibri.accounts()
        if account.facility_id == facility
    }
    assert done == Done(0, "", f"{len(expected)} users written to users.csv\n")
    assert {row["external_id"]: (row["username"], row["display_name"]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert stat.S_IMODE((tmp_path / "users.csv").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_for_spreadsheets_texts_that_would_be_computed_are_made_harmless(
    run: Run, added: str, kolibri: Kolibri, tmp_path: Path
) -> None:
    kolibri.add_user("formula", "=HYPERLINK(1)")

    run("export", "users", "--provider", "1", "--for-spreadsheets", "--output", "users.csv")

    content = (tmp_path / "users.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfprovider_id,")
    assert b",'=HYPERLINK(1)," in content


@pytest.mark.parametrize("kind", ["users", "courses", "enrollments"])
def test_every_list_is_exported_as_one_json_object_a_line(
    run: Run, added: str, kind: str, tmp_path: Path
) -> None:
    done = run("export", kind, "--provider", "1", "--format", "ndjson")

    file = tmp_path / f"{kind}-1.ndjson"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert done.code == 0, done.errors
    assert done.errors.endswith(f"{len(rows)} {kind} written to {file.name}\n")
    assert rows
    assert {row["provider_id"] for row in rows} == {"1"}
    assert len({tuple(row) for row in rows}) == 1
    if kind == "courses":
        assert any((row["icon_url"] or "").startswith("http") for row in rows)


def test_a_list_of_several_pages_is_exported_without_another_login(
    run: Run, kolibri: Kolibri, kolibri_url: str, tmp_path: Path
) -> None:
    facility = kolibri.population.facilities[-1].id
    run(
        *adding(kolibri_url, "--username", "bulk_admin", "--account-id", facility),
        given=f"password={PASSWORD}\n",
    )

    done = run("export", "users", "--provider", "1", "--format", "ndjson", "--output", "-")

    ids = [json.loads(line)["external_id"] for line in done.output.splitlines()]
    assert done.code == 0
    assert set(ids) == {
        account.id for account in kolibri.accounts() if account.facility_id == facility
    }
    assert len(ids) == len(set(ids)) > 1500
    assert logins(kolibri) == 1


def test_a_failed_export_leaves_what_was_there(
    run: Run, added: str, kolibri: Kolibri, tmp_path: Path
) -> None:
    (tmp_path / "users.csv").write_text("yesterday", encoding="utf-8")
    kolibri.outages.append(Outage(remaining=1000, status=503))

    failed = run("export", "users", "--provider", "1", "--output", "users.csv")
    unknown = run("export", "users", "--provider", "2", "--output", "users.csv")
    nowhere = run("export", "users", "--provider", "1", "--output", "no/such/users.csv")

    assert [done.code for done in (failed, unknown, nowhere)] == [1, 1, 1]
    assert "127.0.0.1" in failed.errors
    assert unknown.errors == "learning-gateway: No such provider is registered\n"
    assert (tmp_path / "users.csv").read_text(encoding="utf-8") == "yesterday"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# Keys.


def test_a_key_is_made_listed_replaced_and_revoked(run: Run) -> None:
    made = run("keys", "create", "the product", "--scope", "read:users", "--expires-in", "90d")
    key_id = made.output[3:11]
    replaced = run("keys", "replace", key_id, "--old-for", "30m")
    revoked = run("keys", "revoke", key_id)
    again = run("keys", "revoke", key_id)
    listed = run("keys", "list")

    token = re.compile(r"gw_[a-z0-9]{8}_[A-Za-z0-9_-]{43}\n")
    assert token.fullmatch(made.output)
    assert token.fullmatch(replaced.output)
    assert (revoked.code, again.code) == (0, 1)
    assert "the product" in listed.output
    assert "revoked" in listed.output
    assert "works" in listed.output
    assert made.output.strip() not in listed.output


def test_the_list_says_of_each_key_what_it_may_until_when_and_when_it_was_used(
    run: Run, tmp_path: Path
) -> None:
    token = run(
        *("keys", "create", "product", "--scope", "read:users", "--scope", "provider:1"),
        *("--expires-in", "90d"),
    ).output.strip()
    old = run("keys", "create", "old one", "--scope", "admin", "--expires-in", "0m").output[3:11]
    never = run("keys", "list")

    async def use() -> None:
        async with open_database(f"sqlite:///{tmp_path}/data/gateway.db") as database:
            assert await ApiKeyStore(database).verify(token) is not None

    asyncio.run(use())
    listed = run("keys", "list")

    today, end = (datetime.now(UTC) + timedelta(days=days) for days in (0, 90))
    (before,) = [line for line in never.output.splitlines() if "product" in line]
    (used,) = [line for line in listed.output.splitlines() if "product" in line]
    (expired,) = [line for line in listed.output.splitlines() if "old one" in line]
    assert "provider:1 read:users" in used
    assert f"{end:%Y-%m-%d}" in used
    assert [line.count(f"{today:%Y-%m-%d}") for line in (before, used)] == [1, 2]
    assert used.rstrip().endswith("works")
    assert (expired.split()[0], expired.split()[-1]) == (old, "expired")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scope", "read:grades"), "read:grades"),
        (("--scope", "admin", "--expires-in", "soon"), "'soon' is not a time"),
    ],
)
def test_a_wrong_scope_or_time_makes_no_key(
    run: Run, arguments: tuple[str, ...], words: str
) -> None:
    done = run("keys", "create", "somebody", *arguments)

    assert done.code == 1
    assert words in done.errors
    assert "somebody" not in run("keys", "list").output


def test_credentials_are_sealed_anew_with_a_new_key_and_still_work(
    run: Run, added: str, tmp_path: Path
) -> None:
    def sealed() -> bytes:
        with sqlite3.connect(tmp_path / "data" / "gateway.db") as database:
            (blob,) = database.execute("select credentials from provider").fetchone()
        database.close()
        return bytes(blob)

    before = sealed()
    new = run("keys", "rotate", "--new")
    rotated = run("keys", "rotate")
    after = sealed()
    again = run("keys", "rotate")
    checked = run("providers", "check", "1")

    assert (new.code, rotated.code, checked.code) == (0, 0, 0)
    assert "new key k2 in front" in new.output
    assert re.match(r"[1-9]\d* secrets sealed anew with key k2\n", rotated.output)
    assert again.output == "0 secrets sealed anew with key k2\n"
    assert (b"k1" in before[:8], b"k2" in after[:8]) == (True, True)


def test_a_new_key_is_not_put_into_the_file_when_the_environment_has_the_keys(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEYS", "k1:" + "A" * 43)

    done = run("keys", "rotate", "--new")

    assert done.code == 1
    assert "GATEWAY_KEYS is set" in done.errors


def test_a_database_sealed_with_other_keys_is_named(
    run: Run, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_KEYS", "other:" + "A" * 43)

    checked = run("providers", "check", "1")
    rotated = run("keys", "rotate")

    assert (checked.code, rotated.code) == (1, 1)
    assert "sealed with key k1" in checked.errors
    assert "provider|1|credentials" in rotated.errors


# Imports.


def test_a_provider_is_imported_and_what_changed_is_printed(
    run: Run, added: str, kolibri: Kolibri
) -> None:
    first = run("refresh", "1")
    changes = run("changes")
    cursor = changes.errors.removeprefix("Go on with --since ").strip()
    kolibri.add_user("newcomer", "New Comer")
    second = run("refresh", "1", "--json")
    news = run("changes", "--since", cursor, "--provider", "1")

    facility = kolibri.facility_id(None)
    users = sum(account.facility_id == facility for account in kolibri.accounts())
    assert (first.code, first.errors) == (0, "")
    assert first.output.splitlines()[0] == (
        f"users: {users - 1} read, {users - 1} created, 0 updated, 0 deleted"
    )
    lines = [json.loads(line) for line in changes.output.splitlines()]
    assert {line["type"] for line in lines} == {"CREATED"}
    assert sum(line["kind"] == "USERS" for line in lines) == users - 1
    told = json.loads(second.output)
    assert (second.code, told["state"], told["problem"]) == (0, "DONE", None)
    assert told["counts"]["users"] == {
        "read": users,
        "total": users,
        "before": users - 1,
        "created": 1,
        "updated": 0,
        "deleted": 0,
    }
    (new,) = [json.loads(line) for line in news.output.splitlines()]
    assert (new["type"], new["kind"], new["record"]["username"]) == (
        "CREATED",
        "USERS",
        "newcomer",
    )


def test_an_import_that_fails_or_is_held_says_so(run: Run, added: str, kolibri: Kolibri) -> None:
    unknown = run("refresh", "2")
    wrong = run("changes", "--since", "x")
    run("refresh", "1")
    kolibri.outages.append(Outage(remaining=1000, status=503))
    failed = run("refresh", "1", "--json")

    assert (unknown.code, wrong.code, failed.code) == (1, 1, 1)
    assert "No such provider is registered (PROVIDER_NOT_FOUND)" in unknown.errors
    assert "since: This is not a cursor of changes" in wrong.errors
    told = json.loads(failed.output)
    assert (told["state"], told["problem_code"]) == ("FAILED", "PROVIDER_UNAVAILABLE")


# The audit log.


def test_changes_of_keys_and_providers_are_printed_without_secrets(
    run: Run, added: str, tmp_path: Path
) -> None:
    token = run("keys", "create", "the product", "--scope", "read:users").output.strip()
    key_id = token[3:11]
    run("keys", "replace", key_id, "--old-for", "30m")
    run("keys", "revoke", key_id)
    run("keys", "revoke", "nobody00")
    run("keys", "rotate", "--new")
    run("keys", "rotate")
    run("providers", "remove", "1")
    printed = run("audit", "--since", "1h", "--key", "command-line")
    none = run("audit", "--key", "somebody")
    later = run("audit", "--since", "2999-01-01T00:00:00Z")
    wrong = run("audit", "--since", "soon")

    found = [json.loads(line) for line in printed.output.splitlines()]
    assert [(line["action"], line["outcome"], line["code"]) for line in found] == [
        ("registerProvider", "DONE", None),
        ("createKey", "DONE", None),
        ("replaceKey", "DONE", None),
        ("revokeKey", "DONE", None),
        ("revokeKey", "REFUSED", "BAD_INPUT"),
        ("newSealingKey", "DONE", None),
        ("resealSecrets", "DONE", None),
        ("removeProvider", "DONE", None),
    ]
    assert found[1]["target"] == f"key:{key_id}"
    assert found[1]["arguments"] == {"name": "the product", "scopes": "read:users"}
    assert found[2]["arguments"]["oldKey"] == key_id
    assert found[2]["target"] not in {f"key:{key_id}", None}
    assert {line["caller"] for line in found} == {"command-line"}
    assert token[12:] not in printed.output
    assert PASSWORD not in printed.output
    assert (none.output, later.output) == ("", "")
    assert (wrong.code, "neither an instant" in wrong.errors) == (1, True)


# Documents.

TOOLS = Path(__file__).parent / "client_documents"
RELAY = TOOLS / "relay-compiler-21.0.1-md5.json"
USERS_ID = "3f1873bc326dbe02c16d49dceef47ac4"
REMOVAL_ID = "c124fa2e71b3d5c4848357a42a941b7f"


def test_documents_are_registered_listed_and_removed(run: Run) -> None:
    new = run("documents", "register", str(RELAY), "--client", "web@1")
    again = run("documents", "register", str(RELAY), "--client", "web@1")
    other = run("documents", "register", str(RELAY))
    listed = run("documents", "list")
    one = run("documents", "remove", USERS_ID, "--client", "web@1")
    rest = run("documents", "remove", "--client", "web@1")
    nothing = run("documents", "remove", "--client", "web@1")
    by_id = run("documents", "remove", USERS_ID, REMOVAL_ID)
    empty = run("documents", "list")

    lines = f"{USERS_ID} rosterUsersQuery\n{REMOVAL_ID} rosterRemoveProviderMutation\n"
    assert new.output == again.output == other.output == lines
    assert new.errors.endswith("2 registered, 2 of them new\n")
    assert again.errors == "2 registered, 0 of them new\n"
    assert other.errors == "2 registered, 2 of them new\n"
    assert [listed.output.count(text) for text in (USERS_ID, REMOVAL_ID, "web@1")] == [2, 2, 2]
    assert (one.output, rest.output, by_id.output) == ("1 removed\n", "1 removed\n", "2 removed\n")
    assert nothing == Done(1, "", "learning-gateway: No such document is registered\n")
    assert USERS_ID not in empty.output


def test_of_a_folder_each_operation_is_registered_by_the_hash_of_what_is_sent(
    run: Run, tmp_path: Path
) -> None:
    text = "query Whole { ...Some }\nfragment Some on Query { __typename }\n"
    (tmp_path / "whole.graphql").write_text(text, encoding="utf-8")

    done = run("documents", "register", str(tmp_path / "whole.graphql"))
    folder = run("documents", "register", str(SDL.parent))

    assert done.output == f"{hashlib.sha256(text.encode()).hexdigest()} Whole\n"
    assert [line.split()[1] for line in folder.output.splitlines()] == [
        "CoursesWithIcons",
        "ImportUsers",
        "LearnerRecord",
        "LearnerWork",
        "Providers",
    ]


def test_one_wrong_document_keeps_all_from_being_registered(run: Run, tmp_path: Path) -> None:
    (tmp_path / "good.graphql").write_text("query Good { __typename }", encoding="utf-8")
    (tmp_path / "odd.gql").write_text("query Odd {\n  ...F\n}", encoding="utf-8")
    fragment = tmp_path / "f.graphql"
    fragment.write_text("fragment F on Query {\n  __typename\n  grades\n}", encoding="utf-8")

    broken = run("documents", "register", str(tmp_path))
    missing = run("documents", "register", str(tmp_path / "none"))
    label = run("documents", "register", str(tmp_path / "good.graphql"), "--client", "a\nb")

    assert (broken.code, broken.output) == (1, "")
    problem = "Cannot query field 'grades' on type 'Query'. Did you mean 'nodes'?"
    assert broken.errors.splitlines()[-2:] == [
        f"learning-gateway: {fragment}:3:3: {problem}",
        "Nothing was registered",
    ]
    assert missing.errors == f"learning-gateway: {tmp_path / 'none'}: No such file or directory\n"
    assert "--client: At most 200 printable characters" in label.errors
    assert "Good" not in run("documents", "list").output


def test_a_document_beyond_the_limits_is_not_registered(run: Run, tmp_path: Path) -> None:
    deep = "query Deep " + "{ users { nodes { provider " * 9 + "{ id }" + " } } }" * 9
    wide = "query Wide {" + " __typename" * 900 + "}"
    for name, text in {"deep": deep, "wide": wide}.items():
        (tmp_path / f"{name}.graphql").write_text(text, encoding="utf-8")

    done = run("documents", "register", str(tmp_path))

    assert done.code == 1
    assert "deep in fields, at most 16" in done.errors
    assert "more than 800 tokens" in done.errors


def test_what_a_schema_would_break_is_told_by_client_and_operation(
    run: Run, tmp_path: Path
) -> None:
    run("documents", "register", str(RELAY), "--client", "web@1.4")
    given = tmp_path / "given.graphql"
    given.write_text("query Given { users { totalCount } }", encoding="utf-8")
    sdl = SDL.read_text(encoding="utf-8")
    without = tmp_path / "without.graphql"
    without.write_text(
        re.sub(r"\n  totalCount: Int\b", "\n  totalNumber: Int", sdl), encoding="utf-8"
    )
    aging = tmp_path / "aging.graphql"
    aging.write_text(
        re.sub(r"(\n  totalCount: Int\b!?)", r'\1 @deprecated(reason: "Count")', sdl),
        encoding="utf-8",
    )

    good = run("documents", "check")
    broken = run("documents", "check", str(given), "--schema", str(without))
    deprecated = run("documents", "check", str(given), "--schema", str(aging))
    wrong = run("documents", "check", "--schema", str(given))

    registered = f"web@1.4 rosterUsersQuery [{USERS_ID}]:5:5"
    problem = "Cannot query field 'totalCount' on type 'UserConnection'."
    assert (good.code, good.output) == (0, "")
    assert good.errors == "2 checked, 0 of them break\n"
    assert broken.code == 1
    assert [line.removesuffix(" Did you mean 'totalNumber'?") for line in lines_of(broken)] == [
        f"breaks: {registered}: {problem}",
        f"breaks: {given}:1:23: {problem}",
    ]
    assert broken.errors == "3 checked, 2 of them break\n"
    assert (deprecated.code, deprecated.errors) == (0, "3 checked, 0 of them break\n")
    warning = "The field UserConnection.totalCount is deprecated. Count"
    assert lines_of(deprecated) == [
        f"deprecated: {registered}: {warning}",
        f"deprecated: {given}:1:23: {warning}",
    ]
    assert wrong.code == 1
    assert f"{given}: This is not a schema" in wrong.errors


def lines_of(done: Done) -> list[str]:
    return done.output.splitlines()
