"""The program ``learning-gateway``.

Exit codes: 0 done; 1 it could not be done, and why is on standard error; 2 wrong usage or setting.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from graphql import GraphQLError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from gateway.access import KeyAccess, TokenFileUnusable, open_token
from gateway.assembly import Gateway, open_gateway, open_key_ring
from gateway.documents import parse_document_id
from gateway.exporting import ExportForm, ExportKind, ExportOrder, atomic_file, export
from gateway.logs import configure_logs
from gateway.manifests import DocumentsUnusable, FoundDocument, parse_document, read_documents
from gateway.mapping import MappingUnusable, read_mapping, write_mapping
from gateway.reviewing import keys_of_terminal, review
from gateway.serving import serve
from gateway.settings import Settings, SettingsError, describe, read_settings
from resolvers import importing, people
from resolvers.auditing import AuditNote, registering
from resolvers.context import ProviderDraft, Refusal, Scope
from resolvers.errors import BadInput, NotFound, RequestRefused
from resolvers.people import MatchFilter, PersonFilter
from schema import build_schema, sdl
from schema.checking import DocumentChecker
from schema.execution import explain
from schema.limits import DocumentLimits
from sessions.base import SERVICE
from sessions.errors import ProviderError, ProviderNotFound
from storage.api_keys import parse_scopes
from storage.audit import AuditDraft
from storage.credentials import KeyRing, Secret
from storage.documents import DocumentDraft
from storage.errors import ScopeInvalid, StorageError
from storage.imports import ImportRun, ImportState
from storage.matching import MatchRun, MatchRunState
from storage.people import Decided, Verdict

_ADMIN: Final = KeyAccess(key_id="command-line", scopes=frozenset({Scope.ADMIN}))
_DURATION: Final = re.compile(r"(\d{1,6})([mhd])")
_BAR_SECONDS: Final = 0.2
_CHANGES_AT_ONCE: Final = 500
_ENTRIES_AT_ONCE: Final = 500
_PEOPLE_AT_ONCE: Final = 500
_MAX_CLIENT_CHARACTERS: Final = 200
_SECONDS_BY_UNIT: Final = {"m": 60, "h": 3600, "d": 86_400}

_Command = Callable[[Gateway, argparse.Namespace], Coroutine[Any, Any, int]]


class _Failed(Exception):
    """A command cannot be carried out; the message is for standard error."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        return int(chosen.run(chosen))
    except SettingsError as error:
        print(f"learning-gateway: {error}", file=sys.stderr)
        return 2
    except (
        _Failed,
        StorageError,
        ProviderError,
        RequestRefused,
        TokenFileUnusable,
        DocumentsUnusable,
        MappingUnusable,
        OSError,
    ) as error:
        print(f"learning-gateway: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="learning-gateway",
        description="One GraphQL API over every learning platform. Settings come from the"
        " environment; docs/configuration.md lists them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, purpose: str, run: Callable[[argparse.Namespace], int]) -> Any:
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.set_defaults(run=run)
        return command

    add("serve", "serve until stopped", _serve)
    add("schema", "print the GraphQL schema", _schema)
    explain = add("explain", "print the plan by which a document is executed", _explain)
    explain.add_argument("file", type=Path, help="with the document, or - for standard input")
    explain.add_argument("--operation", metavar="NAME", help="which one, if there are several")
    explain.add_argument("--variables", metavar="JSON", default="{}", help="an object")
    explain.add_argument(
        "--source", action="store_true", help="also the functions that make the rows"
    )
    add("check", "show the settings, and try the database and every provider", _with(_check))
    exporter = add("export", "write a whole roster to a file", _with(_export))
    exporter.add_argument("resource", choices=[kind.value for kind in ExportKind])
    exporter.add_argument("--provider", required=True, help="the product's own id of the provider")
    exporter.add_argument("--format", choices=[form.value for form in ExportForm], default="csv")
    exporter.add_argument(
        "--for-spreadsheets",
        action="store_true",
        help="put an apostrophe before CSV texts that a spreadsheet would take for formulas",
    )
    exporter.add_argument(
        "--output", help="a file, or - for standard output; RESOURCE-PROVIDER.FORMAT when not given"
    )
    refresh = add("refresh", "import a provider now, and tell what changed", _with(_refresh))
    refresh.add_argument("id", help="the product's own id of the provider")
    refresh.add_argument(
        "--accept-drop",
        action="store_true",
        help="apply the import even if less than half of a list is left",
    )
    refresh.add_argument("--json", action="store_true", help="print how it went as JSON")
    changes = add("changes", "print what imports found, a JSON object a line", _with(_changes))
    changes.add_argument("--since", metavar="CURSOR", help="only what comes behind it")
    changes.add_argument(
        "--provider", action="append", metavar="ID", help="only of it; may be repeated"
    )
    auditing = add("audit", "print who changed what, as lines of JSON", _with(_audit))
    auditing.add_argument(
        "--since", metavar="TIME", help="an instant such as 2026-01-31T09:30:00Z, or 7d ago"
    )
    auditing.add_argument("--key", metavar="ID", help="only what the caller of this id did")
    _add_providers(commands)
    _add_keys(commands)
    _add_documents(commands)
    _add_matching(commands)
    return parser


def _add_providers(commands: Any) -> None:
    providers = commands.add_parser("providers", help="register, list, check and remove providers")
    actions = providers.add_subparsers(required=True, metavar="ACTION")
    add = actions.add_parser(
        "add",
        help="register a provider, or replace the one of that id",
        description="Secrets are asked for on a terminal, or read from standard input as lines of"
        " name=value; they are never arguments, which other users could see.",
    )
    add.add_argument("id", help="the product's own id for it")
    add.add_argument("--platform", required=True, help="kind of software, such as kolibri")
    add.add_argument("--url", required=True)
    add.add_argument("--name")
    add.add_argument("--username")
    add.add_argument("--account-id", help="part of the installation (Kolibri: the facility id)")
    add.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="may be repeated"
    )
    add.set_defaults(run=_with(_add_provider))
    actions.add_parser("list", help="list providers").set_defaults(run=_with(_list_providers))
    for name, purpose, run in (
        ("check", "reach a provider, read its version and log in", _check_provider),
        ("remove", "log out of a provider and forget everything kept of it", _remove_provider),
    ):
        action = actions.add_parser(name, help=purpose, description=purpose)
        action.add_argument("id")
        action.set_defaults(run=_with(run))


def _add_keys(commands: Any) -> None:
    keys = commands.add_parser("keys", help="API keys, and the keys that seal credentials")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make an API key and print it, once")
    create.add_argument("name", help="whose key it is")
    create.add_argument("--scope", action="append", required=True, help="may be repeated")
    create.add_argument("--expires-in", metavar="TIME", help="such as 90d, 12h or 30m")
    create.set_defaults(run=_with(_create_key))
    actions.add_parser("list", help="list API keys").set_defaults(run=_with(_list_keys))
    revoke = actions.add_parser("revoke", help="withdraw an API key at once")
    revoke.add_argument("id")
    revoke.set_defaults(run=_with(_revoke_key))
    replace = actions.add_parser("replace", help="make a new API key; the old one works for a time")
    replace.add_argument("id")
    replace.add_argument("--old-for", metavar="TIME", default="1d", help="default 1d")
    replace.set_defaults(run=_with(_replace_key))
    rotate = actions.add_parser(
        "rotate",
        help="seal all credentials with the newest key",
        description="With GATEWAY_KEYS: put a new key in front, restart, then run this. With the"
        " key file: --new puts a fresh key in front; restart every gateway, then run this again"
        " without it.",
    )
    rotate.add_argument("--new", action="store_true", help="put a fresh key into the key file")
    rotate.set_defaults(run=_rotate)


def _add_documents(commands: Any) -> None:
    documents = commands.add_parser("documents", help="trusted documents: GraphQL sent by hash")
    actions = documents.add_subparsers(required=True, metavar="ACTION")
    register = actions.add_parser(
        "register",
        help="register documents, all of them or none",
        description="A .json file holds documents by hash, as relay-compiler and GraphQL Code"
        " Generator write it. Of other files, or a folder of .graphql files, each operation is a"
        " document, with the fragments it needs.",
    )
    register.add_argument("path", type=Path)
    register.add_argument("--client", default="", help="whose they are, such as web@1.4")
    register.set_defaults(run=_with(_register_documents))
    actions.add_parser("list", help="list documents").set_defaults(run=_with(_list_documents))
    remove = actions.add_parser("remove", help="remove documents by id, by client, or both")
    remove.add_argument("id", nargs="*", help="as listed")
    remove.add_argument("--client", help="only of this client; all of its own without ids")
    remove.set_defaults(run=_with(_remove_documents))
    check = actions.add_parser(
        "check",
        help="tell which documents a schema breaks",
        description="Checks every registered document, and those of files given, against the"
        " schema in use or another one; ends with 1 if any would be refused.",
    )
    check.add_argument("path", type=Path, nargs="*", help="files or folders, as for register")
    check.add_argument("--schema", type=Path, metavar="FILE", help="another schema, as SDL")
    check.set_defaults(run=_with(_check_documents))


def _add_matching(commands: Any) -> None:
    matching = commands.add_parser("match", help="who is who: suggest, review, map")
    actions = matching.add_subparsers(required=True, metavar="ACTION")

    def add(name: str, purpose: str, command: _Command) -> Any:
        action = actions.add_parser(name, help=purpose, description=purpose)
        action.set_defaults(run=_with(command))
        return action

    def add_providers(action: Any) -> None:
        action.add_argument(
            "--provider", action="append", metavar="ID", help="may be repeated; all when not given"
        )

    run = add("run", "compare the accounts of providers, and suggest who is who", _match)
    add_providers(run)
    run.add_argument(
        "--expected-overlap",
        type=float,
        metavar="SHARE",
        help="which part of the smaller provider's accounts is at the other too, from 0 to 1",
    )
    run.add_argument(
        "--link-above",
        type=float,
        metavar="SCORE",
        help="link what is at least so probable, unasked; GATEWAY_MATCH_LINK_ABOVE when not given",
    )
    run.add_argument("--json", action="store_true", help="print how it went as JSON")
    reviewing = add("review", "decide on what is suggested, one key for each", _review)
    add_providers(reviewing)
    reviewing.add_argument("--min-score", type=float, metavar="SCORE", help="0.2 when not given")
    evaluate = add("evaluate", "tell how well your own decisions are foretold", _evaluate)
    add_providers(evaluate)
    exporter = add("export", "write who is who as CSV, a line for each account", _export_people)
    add_providers(exporter)
    exporter.add_argument("--output", default="people.csv", help="a file, or - for standard output")
    importer = add("import", "link the accounts that a CSV file says are one person's", _map_people)
    importer.add_argument("file", type=Path, help="with person, provider_id, external_user_id")
    importer.add_argument(
        "--dry-run", action="store_true", help="change nothing, and tell what would come of it"
    )


def _with(command: _Command) -> Callable[[argparse.Namespace], int]:
    """Return a runner that opens the gateway's parts around a command."""

    async def run(chosen: argparse.Namespace) -> int:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio.run made it
        for number in (signal.SIGTERM, signal.SIGHUP):  # end in order, nothing half-written
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        async with open_gateway(_settings()) as gateway:
            return await command(gateway, chosen)

    return lambda chosen: asyncio.run(run(chosen))


def _settings() -> Settings:
    settings = read_settings(os.environ)
    configure_logs(level="warning", form="console")
    return settings


def _serve(_chosen: argparse.Namespace) -> int:
    settings = read_settings(os.environ)
    configure_logs(level=settings.log_level, form=settings.log_format)
    settings.data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    open_key_ring(settings)
    token, made = open_token(settings.token, settings.data_folder)
    if made:
        print(f"A key was made and kept in {settings.data_folder / 'token'}: {token.reveal()}")
    print(f"learning-gateway serves {settings.public_url}/graphql", flush=True)
    if not serve(settings):
        raise _Failed("The gateway could not start; its log says why")
    return 0


def _schema(_chosen: argparse.Namespace) -> int:
    sys.stdout.write(sdl())
    return 0


def _explain(chosen: argparse.Namespace) -> int:
    text = sys.stdin.read() if str(chosen.file) == "-" else chosen.file.read_text("utf-8")
    try:
        variables = msgspec.json.decode(chosen.variables, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise _Failed(f"--variables is no JSON object: {error}") from None
    print(explain(build_schema(), text, variables, chosen.operation, source=chosen.source))
    return 0


async def _check(gateway: Gateway, _chosen: argparse.Namespace) -> int:
    for name, value in describe(gateway.settings).items():
        print(f"{name}={value}")
    print(f"database: {gateway.database.dialect}, migrated")
    print(f"platforms: {', '.join(gateway.platforms.names())}")
    for broken in gateway.platforms.broken:
        print(f"left out: {broken.origin}: {broken.problem}")
    failed = bool(gateway.platforms.broken)
    for provider in await gateway.providers.list_all():
        failed |= not await _report_check(gateway, provider.id)
    return 1 if failed else 0


async def _check_provider(gateway: Gateway, chosen: argparse.Namespace) -> int:
    return 0 if await _report_check(gateway, chosen.id) else 1


async def _report_check(gateway: Gateway, provider_id: str) -> bool:
    async with _noting(gateway, "checkProvider", f"provider:{provider_id}") as note:
        found = await gateway.registration.check(provider_id)
        if isinstance(found, Refusal):
            note.refused(found.code, retryable=found.retryable)
        else:
            note.done()
    if isinstance(found, Refusal):
        print(f"provider {provider_id}: {found.code}: {found.message}")
        return False
    print(f"provider {provider_id}: {found.name}, version {found.version}: {found.account}")
    for missing in found.missing:
        print(f"provider {provider_id}: missing: {missing}")
    return True


async def _add_provider(gateway: Gateway, chosen: argparse.Namespace) -> int:
    draft = ProviderDraft(
        id=chosen.id,
        platform=chosen.platform,
        name=chosen.name,
        base_url=chosen.url,
        account_id=chosen.account_id,
        options=dict(_pair(text) for text in chosen.option),
        credentials=_credentials(gateway, chosen),
    )
    async with gateway.audit.noting(registering(draft, caller=_ADMIN.key_id)) as note:
        added = await gateway.registration.register(draft)
        if isinstance(added, Refusal):
            note.refused(added.code, retryable=added.retryable)
            raise _Failed(f"{added.message} ({added.code}); nothing was changed")
        note.done()
    print(f"provider {added.id}: {added.name}, version {added.version}, {added.state}")
    if added.problem:
        print(f"provider {added.id}: missing: {added.problem}")
    return 0


def _credentials(gateway: Gateway, chosen: argparse.Namespace) -> Secret[dict[str, str]]:
    given: dict[str, str] = {}
    if chosen.username:
        given["username"] = chosen.username
    if not sys.stdin.isatty():
        given |= dict(_pair(line.rstrip("\r\n")) for line in sys.stdin if line.strip())
        return Secret(given)
    platform = gateway.platforms.get(chosen.platform)
    for field in () if platform is None else platform.credential_fields:
        if field.required and field.name not in given:
            ask = getpass.getpass if field.secret else input
            given[field.name] = ask(f"{field.label}: ")
    return Secret(given)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise _Failed("A line or option is not of the form name=value")
    return name.strip(), value


async def _list_providers(gateway: Gateway, _chosen: argparse.Namespace) -> int:
    found = await gateway.sessions.list_statuses(subject=SERVICE)
    statuses = {status.provider_id: status for status in found}
    table = Table("id", "platform", "name", "url", "state", "version", "session", "problem")
    for provider in await gateway.providers.list_all():
        status = statuses.get(provider.id)
        table.add_row(
            provider.id,
            provider.platform,
            provider.name,
            provider.base_url,
            provider.state,
            provider.version or "",
            "EMPTY" if status is None else status.state,
            (status.problem if status is not None else None) or provider.problem or "",
        )
    _print(table)
    return 0


async def _remove_provider(gateway: Gateway, chosen: argparse.Namespace) -> int:
    async with _noting(gateway, "removeProvider", f"provider:{chosen.id}") as note:
        if not await gateway.registration.remove(chosen.id):
            note.refused(ProviderNotFound.code)
            raise _Failed(f"No provider {chosen.id} is registered")
        note.done()
    print(f"provider {chosen.id}: removed")
    return 0


async def _export(gateway: Gateway, chosen: argparse.Namespace) -> int:
    order = ExportOrder(
        kind=ExportKind(chosen.resource),
        provider_id=chosen.provider,
        form=ExportForm(chosen.format),
        for_spreadsheets=chosen.for_spreadsheets,
    )
    target = chosen.output or f"{chosen.resource}-{chosen.provider}.{chosen.format}"
    with ExitStack() as stack:
        bar = stack.enter_context(_progress())
        task = bar.add_task(chosen.resource, total=None)
        file: BinaryIO = (
            sys.stdout.buffer if target == "-" else stack.enter_context(atomic_file(Path(target)))
        )
        written = await export(
            gateway.request_context(_ADMIN),
            order,
            file,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    place = "standard output" if target == "-" else target
    print(f"{written} {chosen.resource} written to {place}", file=sys.stderr)
    return 0


async def _refresh(gateway: Gateway, chosen: argparse.Namespace) -> int:
    context = gateway.request_context(_ADMIN)
    async with _noting(
        gateway, "refreshProvider", f"provider:{chosen.id}", acceptDrop=str(chosen.accept_drop)
    ) as note:
        asked = await importing.refresh(context, chosen.id, accept_drop=chosen.accept_drop)
        if isinstance(asked, Refusal):
            note.refused(asked.code, retryable=asked.retryable)
            raise _Failed(f"{asked.message} ({asked.code})")
        note.done()
    run, _ = asked
    ending = asyncio.create_task(gateway.importer.finish(run))
    try:
        with _progress() as bar:
            tasks: dict[str, TaskID] = {}
            while not ending.done():
                await asyncio.wait({ending}, timeout=_BAR_SECONDS)
                run = await gateway.imports.find_run(run.id) or run
                for kind, counts in run.counts.items():
                    name = kind.value.lower()
                    if name not in tasks:
                        tasks[name] = bar.add_task(name, total=counts.total)
                    bar.update(tasks[name], completed=counts.read, total=counts.total)
        run = await ending
    finally:
        ending.cancel()
        await asyncio.wait({ending})
    _print_run(run, as_json=chosen.json)
    return 0 if run.state is ImportState.DONE else 1


def _print_run(run: ImportRun, *, as_json: bool) -> None:
    if as_json:
        print(
            msgspec.json.encode(
                {
                    "id": run.id,
                    "provider_id": run.provider_id,
                    "state": run.state,
                    "counts": {kind.value.lower(): each for kind, each in run.counts.items()},
                    "problem_code": run.problem_code,
                    "problem": run.problem,
                }
            ).decode()
        )
        return
    if run.problem is not None:
        print(f"provider {run.provider_id}: {run.state}: {run.problem}", file=sys.stderr)
        return
    for kind, counts in run.counts.items():
        print(
            f"{kind.value.lower()}: {counts.read} read, {counts.created} created,"
            f" {counts.updated} updated, {counts.deleted} deleted"
        )


async def _changes(gateway: Gateway, chosen: argparse.Namespace) -> int:
    context = gateway.request_context(_ADMIN)
    since = chosen.since
    more = True
    while more:
        found = await importing.changes(
            context, since=since, first=_CHANGES_AT_ONCE, provider_ids=chosen.provider
        )
        for row in found.changes:
            line = {
                "cursor": row.cursor,
                "type": row.change.type,
                "kind": row.change.kind,
                "at": row.change.at,
                "provider_id": row.change.provider_id,
                "external_id": row.change.external_id,
                "record": row.record,
            }
            print(msgspec.json.encode(line).decode())
        since, more = found.end_cursor, found.has_next
    print(f"Go on with --since {since}", file=sys.stderr)
    return 0


async def _match(gateway: Gateway, chosen: argparse.Namespace) -> int:
    context = gateway.request_context(_ADMIN)
    given = {"providerIds": ",".join(chosen.provider or ()), "linkAbove": chosen.link_above}
    shown = {name: str(value) for name, value in given.items() if value}
    async with _noting(gateway, "startMatchRun", **shown) as note:
        asked = await people.start_run(
            context,
            provider_ids=chosen.provider,
            expected_overlap=chosen.expected_overlap,
            link_above=chosen.link_above,
        )
        if not isinstance(asked, tuple):
            note.refused(NotFound.code)
            raise _Failed(asked.message)
        note.done()
    run, _ = asked
    ending = asyncio.create_task(gateway.people.finish(run))
    try:
        with _progress(percent=True) as bar:
            task = bar.add_task("comparing", total=100)
            while not ending.done():
                await asyncio.wait({ending}, timeout=_BAR_SECONDS)
                run = await gateway.people.matches.find_run(run.id) or run
                bar.update(task, completed=round(100 * run.share_done))
        run = await ending
    finally:
        ending.cancel()
        await asyncio.wait({ending})
    _print_match_run(run, as_json=chosen.json)
    return 0 if run.state is MatchRunState.DONE else 1


def _print_match_run(run: MatchRun, *, as_json: bool) -> None:
    if as_json:
        told = msgspec.to_builtins(run) | {"progress": run.share_done}
        print(msgspec.json.encode(told).decode())
        return
    if run.problem is not None:
        print(f"run {run.id}: {run.state}: {run.problem}", file=sys.stderr)
        return
    for line in run.notes:
        print(line, file=sys.stderr)
    print(
        f"run {run.id}: {run.account_count} accounts compared, {run.suggestion_count} matches"
        f" suggested, {run.link_count} linked"
    )


async def _review(gateway: Gateway, chosen: argparse.Namespace) -> int:
    wanted = MatchFilter(provider_ids=chosen.provider, least_score=chosen.min_score)
    with keys_of_terminal() as read_key:
        reviewed = await review(
            gateway.request_context(_ADMIN),
            console=_console(),
            read_key=read_key,
            wanted=wanted,
            noting=lambda action, target: _noting(gateway, action, target),
        )
    print(
        f"{reviewed.confirmed} confirmed, {reviewed.rejected} rejected, {reviewed.skipped} skipped"
    )
    return 0


async def _evaluate(gateway: Gateway, chosen: argparse.Namespace) -> int:
    ids = await people.visible_ids(gateway.request_context(_ADMIN), chosen.provider)
    verdicts = await gateway.people.store.list_verdicts(
        ids, verdicts=(Verdict.CONFIRMED, Verdict.REJECTED)
    )
    if not verdicts:
        raise _Failed("Nobody has confirmed or rejected anything yet")
    found = await gateway.people.evaluate(verdicts)
    table = Table("providers", "confirmed", "rejected", "at least", "right", "found")
    for row in found:
        for least in (0.5, 0.95):
            precision, recall = row.at(least)
            table.add_row(
                " and ".join(row.providers),
                str(row.confirmed),
                str(row.rejected),
                f"{least:g}",
                "-" if precision is None else f"{precision:.1%}",
                "-" if recall is None else f"{recall:.1%}",
            )
    _print(table)
    print(
        "right: of the decided matches with such a score, how many were confirmed; found: of the"
        " confirmed ones, how many have such a score",
        file=sys.stderr,
    )
    return 0


async def _export_people(gateway: Gateway, chosen: argparse.Namespace) -> int:
    context = gateway.request_context(_ADMIN)
    with ExitStack() as stack:
        binary: BinaryIO = (
            sys.stdout.buffer
            if chosen.output == "-"
            else stack.enter_context(atomic_file(Path(chosen.output)))
        )
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="", write_through=True)
        stack.callback(text.detach)
        written, after, more = 0, None, True
        while more:
            page = await people.person_page(
                context,
                wanted=PersonFilter(provider_ids=chosen.provider, least_accounts=2),
                first=_PEOPLE_AT_ONCE,
                after=after,
            )
            persons = [person for _cursor, person in page.rows]
            written += write_mapping(text, persons, header=after is None)
            after, more = page.rows[-1][0] if page.rows else after, page.has_next
    place = "standard output" if chosen.output == "-" else chosen.output
    print(f"{written} accounts written to {place}", file=sys.stderr)
    return 0


async def _map_people(gateway: Gateway, chosen: argparse.Namespace) -> int:
    with chosen.file.open(encoding="utf-8-sig", newline="") as file:
        persons = read_mapping(file)
    groups = [[*person.accounts] for person in persons]
    store = gateway.people.store
    if chosen.dry_run:
        outcomes = await store.link_all(groups, decided_by=_ADMIN.key_id, dry_run=True)
    else:
        async with _noting(gateway, "linkUsers", file=chosen.file.name) as note:
            outcomes = await store.link_in_parts(groups, decided_by=_ADMIN.key_id)
            note.done()
    refused = 0
    for person, outcome in zip(persons, outcomes, strict=True):
        if not isinstance(outcome, Decided):
            refused += 1
            print(f"line {person.line}: {person.label}: {outcome.message}", file=sys.stderr)
    new = sum(isinstance(one, Decided) and one.decision is not None for one in outcomes)
    would = "would be " if chosen.dry_run else ""
    print(
        f"{len(persons)} people with two accounts or more: {new} {would}linked,"
        f" {len(persons) - new - refused} linked before, {refused} {would}refused"
    )
    return 1 if refused else 0


def _progress(*, percent: bool = False) -> Progress:
    """Return a bar on standard error, drawn only where that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn() if percent else MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


async def _create_key(gateway: Gateway, chosen: argparse.Namespace) -> int:
    expires_at = _from_now(chosen.expires_in) if chosen.expires_in else None
    try:
        scopes = sorted(parse_scopes(chosen.scope))
    except ScopeInvalid as error:
        raise _Failed(f"--scope: {error}") from error
    given = {"name": chosen.name, "scopes": " ".join(scopes), "expiresAt": _minute(expires_at)}
    async with _noting(gateway, "createKey", **given) as note:
        key, token = await gateway.api_keys.create(chosen.name, scopes, expires_at)
        note.done(target=f"key:{key.id}")
    print(f"key {key.id} for {key.name}, shown only now:", file=sys.stderr)
    print(token.reveal())
    return 0


async def _list_keys(gateway: Gateway, _chosen: argparse.Namespace) -> int:
    table = Table("id", "name", "scopes", "created", "expires", "last used", "state")
    now = datetime.now(UTC)
    for key in await gateway.api_keys.list_all():
        expired = key.expires_at is not None and key.expires_at <= now
        state = "revoked" if key.revoked else "expired" if expired else "works"
        moments = (_minute(at) for at in (key.created_at, key.expires_at, key.last_used_at))
        table.add_row(key.id, key.name, " ".join(sorted(key.scopes)), *moments, state)
    _print(table)
    return 0


async def _revoke_key(gateway: Gateway, chosen: argparse.Namespace) -> int:
    async with _noting(gateway, "revokeKey", f"key:{chosen.id}") as note:
        if not await gateway.api_keys.revoke(chosen.id):
            note.refused(BadInput.code)
            raise _Failed(f"No key {chosen.id} works")
        note.done()
    print(f"key {chosen.id}: revoked")
    return 0


async def _replace_key(gateway: Gateway, chosen: argparse.Namespace) -> int:
    old_until = _from_now(chosen.old_for)
    given = {"oldKey": chosen.id, "oldUntil": _minute(old_until)}
    async with _noting(gateway, "replaceKey", f"key:{chosen.id}", **given) as note:
        made = await gateway.api_keys.rotate(chosen.id, old_until=old_until)
        if made is None:
            note.refused(BadInput.code)
            raise _Failed(f"No key {chosen.id} works")
        key, token = made
        note.done(target=f"key:{key.id}")
    print(f"key {key.id} replaces {chosen.id}, shown only now:", file=sys.stderr)
    print(token.reveal())
    return 0


def _rotate(chosen: argparse.Namespace) -> int:
    if chosen.new:
        settings = _settings()
        if settings.keys is not None:
            raise _Failed("--new is for the key file; GATEWAY_KEYS is set, so change that")
        return _with(_new_sealing_key)(chosen)
    return _with(_reseal)(chosen)


async def _new_sealing_key(gateway: Gateway, _chosen: argparse.Namespace) -> int:
    file = gateway.settings.data_folder / "keys"
    async with _noting(gateway, "newSealingKey") as note:
        ring = KeyRing.renew_file(file)
        note.done(target=f"sealing-key:{ring.key_ids[0]}")
    print(f"{file} has the new key {ring.key_ids[0]} in front")
    print("Restart every gateway, then run: learning-gateway keys rotate")
    return 0


async def _reseal(gateway: Gateway, _chosen: argparse.Namespace) -> int:
    async with _noting(gateway, "resealSecrets") as note:
        count = await gateway.providers.rotate_keys()
        note.done(target=f"sealing-key:{gateway.key_ring.key_ids[0]}")
    print(f"{count} secrets sealed anew with key {gateway.key_ring.key_ids[0]}")
    return 0


def _noting(
    gateway: Gateway, action: str, target: str | None = None, **arguments: str
) -> AbstractAsyncContextManager[AuditNote]:
    """Return what surrounds a change with its entry in the audit log."""
    return gateway.audit.noting(
        AuditDraft(
            caller=_ADMIN.key_id,
            action=action,
            target=target,
            arguments={name: value for name, value in arguments.items() if value},
        )
    )


async def _audit(gateway: Gateway, chosen: argparse.Namespace) -> int:
    since = None if chosen.since is None else _instant(chosen.since)
    after = 0
    while True:
        entries = await gateway.audit.list_entries(
            after=after, since=since, caller=chosen.key, limit=_ENTRIES_AT_ONCE
        )
        for entry in entries:
            print(msgspec.json.encode(entry).decode())
        if len(entries) < _ENTRIES_AT_ONCE:
            return 0
        after = entries[-1].id


def _instant(text: str) -> datetime:
    """Return an instant, or the one so long ago."""
    if _DURATION.fullmatch(text):
        return datetime.now(UTC) - _duration(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _Failed(
            f"{text!r} is neither an instant nor a time such as 7d, 12h or 30m"
        ) from error


async def _register_documents(gateway: Gateway, chosen: argparse.Namespace) -> int:
    if not chosen.client.isprintable() or len(chosen.client) > _MAX_CLIENT_CHARACTERS:
        raise _Failed(f"--client: At most {_MAX_CLIENT_CHARACTERS} printable characters")
    found = read_documents(chosen.path)
    checker = _checker(gateway)
    broken = [
        line for document in found for line in checker.check(document.text, document.node).broken
    ]
    if broken:
        raise DocumentsUnusable([*dict.fromkeys(broken), "Nothing was registered"])
    drafts = [DocumentDraft(id=one.id, text=one.text, names=one.names) for one in found]
    async with _noting(gateway, "registerDocuments", client=chosen.client) as note:
        new = await gateway.trusted.register(drafts, client=chosen.client)
        note.done()
    for draft in drafts:
        print(draft.id, *draft.names)
    print(f"{len(drafts)} registered, {new} of them new", file=sys.stderr)
    return 0


async def _list_documents(gateway: Gateway, _chosen: argparse.Namespace) -> int:
    table = Table("id", "client", "operations", "registered")
    for document in await gateway.trusted.list_all():
        registered = _minute(document.registered_at)
        table.add_row(document.id, document.client, " ".join(document.names), registered)
    _print(table)
    return 0


async def _remove_documents(gateway: Gateway, chosen: argparse.Namespace) -> int:
    if not chosen.id and chosen.client is None:
        raise _Failed("Name documents by their ids, a client by --client, or both")
    ids = [parse_document_id(given) for given in chosen.id]
    known = [document_id for document_id in ids if document_id is not None]
    given = {"ids": " ".join(known), "client": chosen.client or ""}
    async with _noting(gateway, "removeDocuments", **given) as note:
        removed = await gateway.trusted.remove(known if chosen.id else None, client=chosen.client)
        if not removed:
            note.refused(BadInput.code)
            raise _Failed("No such document is registered")
        note.done()
    print(f"{removed} removed")
    return 0


async def _check_documents(gateway: Gateway, chosen: argparse.Namespace) -> int:
    checker = _checker(gateway, chosen.schema)
    documents = [
        *(await _registered(gateway)),
        *(document for path in chosen.path for document in read_documents(path)),
    ]
    breaking = 0
    for document in documents:
        findings = checker.check(document.text, document.node)
        breaking += bool(findings.broken)
        for line in findings.broken:
            print(f"breaks: {line}")
        for line in findings.deprecated:
            print(f"deprecated: {line}")
    print(f"{len(documents)} checked, {breaking} of them break", file=sys.stderr)
    return 1 if breaking else 0


def _checker(gateway: Gateway, path: Path | None = None) -> DocumentChecker:
    schema = build_schema(DocumentLimits.of_tokens(gateway.settings.max_document_tokens))
    if path is None:
        return DocumentChecker(schema)
    try:
        return DocumentChecker(schema, path.read_text(encoding="utf-8"))
    except (GraphQLError, TypeError, UnicodeDecodeError) as error:
        raise _Failed(f"{path}: This is not a schema: {error}") from error


async def _registered(gateway: Gateway) -> Sequence[FoundDocument]:
    return [
        FoundDocument(
            id=document.id,
            text=document.text,
            names=document.names,
            node=parse_document(
                document.text,
                place=" ".join((document.client, *document.names, f"[{document.id}]")).strip(),
            ),
        )
        for document in await gateway.trusted.list_all()
    ]


def _from_now(text: str) -> datetime:
    return datetime.now(UTC) + _duration(text)


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise _Failed(f"{text!r} is not a time such as 90d, 12h or 30m")
    return timedelta(seconds=int(match[1]) * _SECONDS_BY_UNIT[match[2]])


def _minute(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M}"


def _print(table: Table) -> None:
    """Print a table, on a file or pipe without cutting its cells."""
    console = _console()
    if not console.is_terminal:
        table.box = None
    console.print(table)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=1000)


if __name__ == "__main__":
    sys.exit(main())
