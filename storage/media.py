"""Media: bytes of ours under the SHA-256 of their content, and what became of each icon.

Bytes are kept by ``MediaFiles``, what is known about them by the tables ``media``, ``rendition``
and ``icon``. Bytes are written before rows, so a row without its bytes means that somebody lost
the folder, never that a write was cut short; such rows count as not there.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import anyio.to_thread
from sqlalchemy import Row, Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from storage import tables
from storage.database import Database
from storage.errors import StorageUnavailable

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEYS_PER_STATEMENT: Final = 10_000  # SQLite takes 32 766 parameters, PostgreSQL 65 535


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Bytes the gateway keeps and serves, told by their hash.

    Attributes:
        sha256: Hash of the bytes, 64 lower-case hexadecimal digits.
        media_type: As found in the bytes, never as somebody labelled them.
        byte_size: How many they are.
        width: In pixels, where the bytes are an image.
        height: In pixels, where the bytes are an image.
    """

    sha256: str
    media_type: str
    byte_size: int
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMedia:
    """Bytes to be kept; the other attributes as in ``Media``."""

    content: bytes
    media_type: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IconOutcome:
    """What became of one icon.

    Attributes:
        problem: Why it is not shown, for a person; ``None`` when it is.
        renditions: What is shown instead of the image as it came, narrowest first.
        decided_at: When that was found out.
    """

    problem: str | None
    renditions: tuple[Media, ...]
    decided_at: datetime


class MediaFiles(Protocol):
    """Where bytes are kept: a local folder today, a store in the style of S3 behind the same two.

    Such a store would put with ``If-None-Match: *`` and fetch into a local folder before it
    answers ``find_path``. Both calls may block and are made in a thread.
    """

    def put_if_absent(self, sha256: str, content: bytes) -> None:
        """Keep bytes under their hash; nobody ever sees a part of them there.

        Raises:
            StorageUnavailable: They cannot be written.
        """

    def find_path(self, sha256: str) -> Path | None:
        """Return where the bytes of this hash can be read, or ``None`` when they are not kept."""


class LocalFiles:
    """A folder of files named ``ab/cd/<sha256>`` after the hash's first digits.

    Any number of processes may use one folder. A file is written beside its place, flushed to
    the disk and then renamed; what a crash leaves behind are files whose names begin with
    ``.writing-``, which may be deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_if_absent(self, sha256: str, content: bytes) -> None:
        """See ``MediaFiles``."""
        path = self._path(sha256)
        try:
            if path.exists() and path.stat().st_size == len(content):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_durably(path, content)
        except OSError as error:
            raise StorageUnavailable(
                f"The media folder {self._folder} cannot be written: {error.strerror}"
            ) from error

    def find_path(self, sha256: str) -> Path | None:
        """See ``MediaFiles``; anything but a hash is not kept."""
        if not _SHA256.fullmatch(sha256):
            return None
        path = self._path(sha256)
        return path if path.is_file() else None

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256[2:4] / sha256


def _write_durably(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # or a power cut may undo the rename
    finally:
        os.close(folder)


class MediaStore:
    """Media and icon outcomes in one database and one place for bytes.

    Args:
        database: Where rows are.
        files: Where bytes are; a folder is made when first written to.
    """

    def __init__(self, database: Database, files: MediaFiles | Path) -> None:
        self._database = database
        self._files = LocalFiles(files) if isinstance(files, Path) else files

    async def put_if_absent(self, new: NewMedia) -> Media:
        """Keep bytes; the same bytes are kept once, with the type they were first kept with.

        Raises:
            StorageError: They cannot be kept.
        """
        (media,) = await self._put_files([new])
        async with self._database.transaction() as connection:
            await self._add_rows(connection, [media])
        return media

    async def find(self, sha256: str) -> tuple[Media, Path] | None:
        """Return what is known of the bytes of this hash, and where they can be read.

        Raises:
            StorageError: The database cannot be read.
        """
        path = await anyio.to_thread.run_sync(self._files.find_path, sha256)
        if path is None:
            return None
        async with self._database.read() as connection:
            found = await connection.execute(
                select(tables.media).where(tables.media.c.sha256 == sha256)
            )
            row = found.one_or_none()
        return None if row is None else (_media(row), path)

    async def find_renditions(self, source_sha256: str) -> tuple[Media, ...]:
        """Return the renditions of the image with this hash, narrowest first; maybe none.

        Raises:
            StorageError: The database cannot be read.
        """
        statement = (
            select(tables.media)
            .join_from(tables.rendition, tables.media)
            .where(tables.rendition.c.source_sha256 == source_sha256)
            .order_by(tables.rendition.c.width)
        )
        async with self._database.read() as connection:
            renditions = tuple(_media(row) for row in await connection.execute(statement))
        return renditions if await self._all_are_kept(renditions) else ()

    async def save_renditions(
        self, source_sha256: str, new: Sequence[NewMedia]
    ) -> tuple[Media, ...]:
        """Keep the renditions of one image, all or none; each must have a width of its own.

        Raises:
            StorageError: They cannot be kept.
        """
        kept = await self._put_files(new)
        async with self._database.transaction() as connection:
            await self._add_rows(connection, kept)
            for media in kept:
                values = {
                    "source_sha256": source_sha256,
                    "width": media.width,
                    "media_sha256": media.sha256,
                }
                await connection.execute(
                    self._database.upsert(tables.rendition, values, change=["media_sha256"])
                )
        return kept

    async def find_icons(self, keys: Collection[str]) -> Mapping[str, IconOutcome]:
        """Return what became of these icons, by key; those never decided on are left out.

        One statement for up to 10 000 keys.

        Raises:
            StorageError: The database cannot be read.
        """
        rows_by_key: dict[str, list[Row[Any]]] = {}
        ordered = list(keys)
        async with self._database.read() as connection:
            for start in range(0, len(ordered), _KEYS_PER_STATEMENT):
                statement = _icons_of(ordered[start : start + _KEYS_PER_STATEMENT])
                for row in await connection.execute(statement):
                    rows_by_key.setdefault(row.key, []).append(row)
        outcomes = {key: _outcome(rows) for key, rows in rows_by_key.items()}
        lost = await self._find_lost(outcomes)
        return {key: outcome for key, outcome in outcomes.items() if key not in lost}

    async def save_icon(
        self, key: str, *, source_sha256: str | None, problem: str | None = None
    ) -> None:
        """Remember what became of an icon: an image with renditions, or a problem.

        Raises:
            StorageError: It cannot be kept.
        """
        values = {
            "key": key,
            "source_sha256": source_sha256,
            "problem": problem,
            "decided_at": datetime.now(UTC),
        }
        change = ["source_sha256", "problem", "decided_at"]
        async with self._database.transaction() as connection:
            await connection.execute(self._database.upsert(tables.icon, values, change=change))

    async def _put_files(self, new: Sequence[NewMedia]) -> tuple[Media, ...]:
        def put() -> tuple[Media, ...]:
            kept = tuple(_described(one) for one in new)
            for media, one in zip(kept, new, strict=True):
                self._files.put_if_absent(media.sha256, one.content)
            return kept

        return await anyio.to_thread.run_sync(put)

    async def _add_rows(self, connection: AsyncConnection, kept: Sequence[Media]) -> None:
        for media in kept:
            values = {
                "sha256": media.sha256,
                "media_type": media.media_type,
                "byte_size": media.byte_size,
                "width": media.width,
                "height": media.height,
                "created_at": datetime.now(UTC),
            }
            await connection.execute(self._database.upsert(tables.media, values, change=[]))

    async def _all_are_kept(self, renditions: Sequence[Media]) -> bool:
        def check() -> bool:
            return all(self._files.find_path(media.sha256) for media in renditions)

        return await anyio.to_thread.run_sync(check)

    async def _find_lost(self, outcomes: Mapping[str, IconOutcome]) -> set[str]:
        shown = {media.sha256 for outcome in outcomes.values() for media in outcome.renditions}

        def find() -> set[str]:
            return {sha256 for sha256 in shown if self._files.find_path(sha256) is None}

        lost = await anyio.to_thread.run_sync(find) if shown else set()
        return {
            key
            for key, outcome in outcomes.items()
            if (outcome.problem is None and not outcome.renditions)
            or any(media.sha256 in lost for media in outcome.renditions)
        }


def _icons_of(keys: Sequence[str]) -> Select[Any]:
    icon, rendition, media = tables.icon, tables.rendition, tables.media
    return (
        select(icon.c.key, icon.c.problem, icon.c.decided_at, media)
        .select_from(
            icon.outerjoin(rendition, rendition.c.source_sha256 == icon.c.source_sha256).outerjoin(
                media, media.c.sha256 == rendition.c.media_sha256
            )
        )
        .where(icon.c.key.in_(keys))
        .order_by(icon.c.key, rendition.c.width)
    )


def _outcome(rows: Sequence[Row[Any]]) -> IconOutcome:
    return IconOutcome(
        problem=rows[0].problem,
        renditions=tuple(_media(row) for row in rows if row.sha256 is not None),
        decided_at=rows[0].decided_at,
    )


def _described(new: NewMedia) -> Media:
    return Media(
        sha256=hashlib.sha256(new.content).hexdigest(),
        media_type=new.media_type,
        byte_size=len(new.content),
        width=new.width,
        height=new.height,
    )


def _media(row: Row[Any]) -> Media:
    return Media(
        sha256=row.sha256,
        media_type=row.media_type,
        byte_size=row.byte_size,
        width=row.width,
        height=row.height,
    )
