"""Deciding on matches at a terminal: a table, and a key for each decision."""

from __future__ import annotations

import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio.to_thread
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resolvers import people
from resolvers.auditing import AuditNote
from resolvers.context import RequestContext
from resolvers.people import DecisionOutcome, MatchFilter, MatchRecord
from storage.people import AccountKey

ReadKey = Callable[[], Awaitable[str]]
"""Waits for a key and returns it; empty when there are no more."""

Noting = Callable[[str, str], AbstractAsyncContextManager[AuditNote]]
"""Surrounds an action on a target with its entry in the audit log."""

_ROWS: Final = 10
_HELP: Final = "y: the same person  n: not the same  s: skip  u: undo  q: quit"


@dataclass(slots=True)
class Reviewed:
    """What came of a review."""

    confirmed: int = 0
    rejected: int = 0
    skipped: int = 0
    undone: int = 0


@dataclass(slots=True, kw_only=True)
class _Review:
    context: RequestContext
    console: Console
    wanted: MatchFilter
    noting: Noting
    after: str | None = None
    reviewed: Reviewed = field(default_factory=Reviewed)
    decided: list[tuple[str | None, str, bool]] = field(default_factory=list)


async def review(
    context: RequestContext,
    *,
    console: Console,
    read_key: ReadKey,
    wanted: MatchFilter,
    noting: Noting,
) -> Reviewed:
    """Show what is suggested, the most probable first, until there is no more or somebody quits.

    Raises:
        RequestRefused: A condition is wrong.
        ProviderNotFound: A provider that is named does not exist.
        StorageError: The database could not do it.
    """
    at = _Review(context=context, console=console, wanted=wanted, noting=noting)
    told = ""
    while True:
        page = await people.match_page(
            context, wanted=wanted, descending=True, first=_ROWS, after=at.after, wants_total=True
        )
        if not page.rows:
            console.print("There is nothing more to decide; `match run` looks for matches anew")
            return at.reviewed
        matches = [record for _cursor, record in page.rows]
        _show(console, matches, told=told, total=page.total or 0)
        key = await read_key()
        if key in {"", "q"}:
            return at.reviewed
        told = await _act(at, key, page.rows[0][0], matches[0])


@contextmanager
def keys_of_terminal() -> Iterator[ReadKey]:
    """Lend what reads single keys of standard input; of a file or pipe, its letters."""

    async def read_key() -> str:
        while True:
            key: str = await anyio.to_thread.run_sync(sys.stdin.read, 1, abandon_on_cancel=True)
            if key not in {"\n", "\r", " "}:
                return key.lower()

    if not sys.stdin.isatty():
        yield read_key
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    try:
        yield read_key
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


async def _act(at: _Review, key: str, cursor: str, match: MatchRecord) -> str:
    """Do what a key says about the first match, and return what to tell."""
    if key == "s":
        at.after = cursor
        at.reviewed.skipped += 1
        return "Skipped"
    if key == "u":
        return await _undo(at)
    if key not in {"y", "n"} or match.pair is None:
        return _HELP
    same = key == "y"
    action = "confirmMatch" if same else "rejectMatch"
    async with at.noting(action, _target(*match.pair)) as note:
        found = await people.decide(
            at.context, match.pair, same=same, model_version=match.model_version
        )
        _take(note, found)
    if not isinstance(found, DecisionOutcome):
        at.after = cursor
        return f"Nothing was changed: {found.message}"
    if found.decision is not None:
        at.decided.append((at.after, str(found.decision.id), same))
        at.reviewed.confirmed += same
        at.reviewed.rejected += not same
    return "Confirmed" if same else "Rejected"


async def _undo(at: _Review) -> str:
    if not at.decided:
        return "There is nothing to undo"
    after, decision_id, same = at.decided.pop()
    async with at.noting("undoDecision", f"decision:{decision_id}") as note:
        found = await people.undo(at.context, decision_id)
        _take(note, found)
    if not isinstance(found, DecisionOutcome):
        return f"Nothing was changed: {found.message}"
    at.after = after
    at.reviewed.undone += 1
    at.reviewed.confirmed -= same
    at.reviewed.rejected -= not same
    return "Undone"


def _take(note: AuditNote, found: people.Outcome) -> None:
    if isinstance(found, DecisionOutcome):
        note.done()
    else:
        note.refused("CONFLICT")


def _target(one: AccountKey, other: AccountKey) -> str:
    return f"usermatch:{one[0]}:{one[1]}:{other[0]}:{other[1]}"


def _show(console: Console, matches: list[MatchRecord], *, told: str, total: int) -> None:
    if console.is_terminal:
        console.clear()
    table = Table("", "score", "one", "where", "other", "where", title=f"{total} to decide")
    for number, match in enumerate(matches):
        left, right = match.left or match.right, match.right
        table.add_row(
            ">" if number == 0 else "",
            f"{match.score:.2f}",
            escape(_named(left.display_name, left.username)),
            left.provider_id,
            escape(_named(right.display_name, right.username)),
            right.provider_id,
        )
    console.print(table)
    first = matches[0]
    for piece in sorted(first.evidence, key=lambda one: -abs(one.weight)):
        values = " / ".join(value or "-" for value in (piece.left_value, piece.right_value))
        console.print(
            f"  {piece.weight:+7.2f}  {escape(piece.explanation)}  [dim]{escape(values)}[/dim]"
        )
    console.print(f"  {first.prior:+7.2f}  before any evidence")
    console.print(f"  {first.weight:+7.2f}  together, {first.score:.3f} after competition")
    if first.competition is not None:
        console.print(f"           {first.competition}")
    console.print(f"{told}\n{_HELP}" if told and told != _HELP else _HELP)


def _named(name: str, username: str | None) -> str:
    return f"{name} ({username})" if username else name
