"""The CSV of who did what, as `exportsummarylogcsv` writes it."""

from __future__ import annotations

import csv
import io
import math
from datetime import UTC, datetime, timedelta

from simulators.kolibri import population as data
from simulators.kolibri.state import Account, Kolibri

_BOM = "\ufeff"
_KIND_LABELS = {
    "admin": "Admin",
    "coach": "Facility coach",
    "classroom assignable coach": "Class coach",
}


def write_summary_csv(server: Kolibri, facility_id: str, start: str, end: str) -> bytes:
    """Return the facility's activity that began between two days, both included.

    Quizzes are left out. A user with two roles has every row twice: Kolibri joins the roles and
    does not remove the doubles.
    """
    first = _moment(start)
    last = _moment(end) + timedelta(days=1)
    logs = [
        log
        for log in server.population.summary_logs
        if (account := server.owner_of(log)) is not None
        and account.facility_id == facility_id
        and first <= log.started_at <= last
    ]
    folders = _folder_count(server, logs)
    columns = _columns(server, folders)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for log in logs:
        account = server.owner_of(log)
        if account is not None:
            row = _row(server, log, account, folders)
            copies = max(1, len(server.roles_of(account.id)))
            writer.writerows([{name: row[name] for name in columns}] * copies)
    return (_BOM + text.getvalue()).encode()


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _folder_count(server: Kolibri, logs: list[data.SummaryLog]) -> int:
    if not server.profile.export_folders:
        return 0
    contents = {log.content_id for log in logs}
    levels = [node.level for node in server.nodes.values() if node.content_id in contents]
    return max(levels, default=1) - 1


def _columns(server: Kolibri, folders: int) -> list[str]:
    user_type = ["User type"] if server.profile.export_user_type else []
    return [
        "Facility name",
        "Username",
        *user_type,
        "Channel id",
        "Channel name",
        *(f"Folder level {level}" for level in range(1, folders + 1)),
        "Content id",
        "Content title",
        "Time of first interaction",
        "Time of last interaction",
        "Time of completion",
        "Time Spent (sec)",
        "Progress (0-1)",
        "Content kind",
    ]


def _row(server: Kolibri, log: data.SummaryLog, account: Account, folders: int) -> dict[str, str]:
    facilities = {facility.id: facility.name for facility in server.population.facilities}
    channel = server.channels.get(log.channel_id)
    ancestors = _ancestors(server, log.node)
    row = {
        "Facility name": facilities[account.facility_id],
        "Username": account.username,
        "User type": _user_type(server, account),
        "Channel id": log.channel_id,
        "Channel name": channel.name if channel else "",
        "Content id": log.content_id,
        "Content title": log.node.title if log.node else "",
        "Time of first interaction": str(log.started_at),
        "Time of last interaction": str(log.ended_at),
        "Time of completion": str(log.completed_at or ""),
        "Time Spent (sec)": f"{round(log.time_spent_seconds, 1):.1f}",
        "Progress (0-1)": f"{math.floor(log.progress * 10000.0) / 10000:.4f}",
        "Content kind": log.kind,
    }
    for level in range(folders):
        row[f"Folder level {level + 1}"] = ancestors[level] if level < len(ancestors) else ""
    return row


def _ancestors(server: Kolibri, node: data.Node | None) -> list[str]:
    """Return the titles of the folders a resource lies in, outermost first, without the root."""
    titles: list[str] = []
    while node is not None and node.parent_id is not None:
        node = server.nodes[node.parent_id]
        if node.parent_id is not None:
            titles.insert(0, node.title)
    return titles


def _user_type(server: Kolibri, account: Account) -> str:
    if account.is_superuser:
        return "Super admin"
    for role in server.roles_of(account.id):
        if role.collection == account.facility_id:
            return _KIND_LABELS[role.kind]
    return "Learner"
