import asyncio
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from storage import tables
from storage.database import Database
from storage.errors import StorageUnavailable
from storage.media import LocalFiles, Media, MediaStore, NewMedia

PICTURE = NewMedia(content=b"picture", media_type="image/webp", width=32, height=16)
SHA256 = hashlib.sha256(b"picture").hexdigest()
KEPT = Media(sha256=SHA256, media_type="image/webp", byte_size=7, width=32, height=16)
SOURCE = "5" * 64


def new(name: str, width: int) -> NewMedia:
    return NewMedia(content=name.encode(), media_type="image/webp", width=width, height=width)


def file_names(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*") if file.is_file()]


async def count(database: Database, table: str) -> int:
    async with database.read() as connection:
        statement = select(func.count()).select_from(tables.metadata.tables[table])
        return (await connection.execute(statement)).scalar_one()


async def test_bytes_are_found_again_under_their_hash(
    any_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(any_database, tmp_path / "media")

    kept = await store.put_if_absent(PICTURE)

    path = tmp_path / "media" / SHA256[:2] / SHA256[2:4] / SHA256
    assert kept == KEPT
    assert await store.find(SHA256) == (KEPT, path)
    assert path.read_bytes() == b"picture"


async def test_the_same_bytes_are_kept_once_whoever_puts_them(
    any_database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "media"
    store = MediaStore(any_database, folder)
    path = folder / SHA256[:2] / SHA256[2:4] / SHA256
    await store.put_if_absent(PICTURE)
    inode = path.stat().st_ino

    await asyncio.gather(*(store.put_if_absent(PICTURE) for _ in range(20)))

    assert path.stat().st_ino == inode
    assert file_names(folder) == [SHA256]
    assert await count(any_database, "media") == 1


async def test_a_file_cut_short_by_something_else_is_written_anew(
    sqlite_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(sqlite_database, tmp_path)
    path = tmp_path / SHA256[:2] / SHA256[2:4] / SHA256
    path.parent.mkdir(parents=True)
    path.write_bytes(b"pic")

    await store.put_if_absent(PICTURE)

    assert path.read_bytes() == b"picture"


def test_no_reader_ever_sees_a_part_of_a_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    sha256 = hashlib.sha256(content).hexdigest()
    files = LocalFiles(tmp_path)

    with ThreadPoolExecutor() as writers:
        writing = [writers.submit(files.put_if_absent, sha256, content) for _ in range(4)]
        while (path := files.find_path(sha256)) is None:
            pass
        assert path.stat().st_size == 3_000_000
        assert [one.result() for one in writing] == [None] * 4

    assert path.read_bytes() == content
    assert file_names(tmp_path) == [sha256]


async def test_a_folder_that_cannot_be_written_is_named(
    sqlite_database: Database, tmp_path: Path
) -> None:
    (tmp_path / "media").write_text("in the way")
    store = MediaStore(sqlite_database, tmp_path / "media")

    with pytest.raises(StorageUnavailable) as failure:
        await store.put_if_absent(PICTURE)

    assert failure.value.message == (
        f"The media folder {tmp_path}/media cannot be written: Not a directory"
    )
    assert await count(sqlite_database, "media") == 0


def test_what_could_not_be_put_in_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / SHA256[:2] / SHA256[2:4] / SHA256).mkdir(parents=True)

    with pytest.raises(StorageUnavailable):
        LocalFiles(tmp_path).put_if_absent(SHA256, b"picture")

    assert file_names(tmp_path) == []


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65])
async def test_what_is_not_a_hash_is_not_kept(
    sqlite_database: Database, tmp_path: Path, name: str
) -> None:
    assert await MediaStore(sqlite_database, tmp_path).find(name) is None


async def test_a_row_whose_file_is_lost_and_a_file_without_a_row_are_not_there(
    sqlite_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(sqlite_database, tmp_path)
    await store.put_if_absent(PICTURE)
    (tmp_path / SHA256[:2] / SHA256[2:4] / SHA256).unlink()
    other = hashlib.sha256(b"other").hexdigest()
    LocalFiles(tmp_path).put_if_absent(other, b"other")

    assert await store.find(SHA256) is None
    assert await store.find(other) is None


async def test_renditions_come_back_narrowest_first(any_database: Database, tmp_path: Path) -> None:
    store = MediaStore(any_database, tmp_path)

    kept = await store.save_renditions(SOURCE, [new("b", 128), new("a", 32)])

    assert [media.width for media in kept] == [128, 32]
    assert await store.find_renditions(SOURCE) == (kept[1], kept[0])
    assert await store.find_renditions("6" * 64) == ()


async def test_renditions_saved_twice_at_once_are_there_once(
    any_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(any_database, tmp_path)

    await asyncio.gather(*(store.save_renditions(SOURCE, [new("a", 32)]) for _ in range(8)))

    assert await count(any_database, "rendition") == 1
    assert await count(any_database, "media") == 1


async def test_outcomes_of_many_icons_come_back_by_key(
    any_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(any_database, tmp_path)
    wide, narrow = await store.save_renditions(SOURCE, [new("b", 64), new("a", 32)])
    before = datetime.now(UTC) - timedelta(seconds=1)
    await store.save_icon("good", source_sha256=SOURCE)
    await store.save_icon("also good", source_sha256=SOURCE)
    await store.save_icon("bad", source_sha256=None, problem="The image is damaged or cut off")

    found = await store.find_icons(["good", "also good", "bad", "never seen"])

    assert set(found) == {"good", "also good", "bad"}
    assert found["good"].renditions == found["also good"].renditions == (narrow, wide)
    assert found["good"].problem is None
    assert found["bad"].renditions == ()
    assert found["bad"].problem == "The image is damaged or cut off"
    assert before < found["bad"].decided_at < before + timedelta(minutes=1)


async def test_a_later_outcome_replaces_the_earlier_one(
    any_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(any_database, tmp_path)
    await store.save_renditions(SOURCE, [new("a", 32)])
    await store.save_icon("key", source_sha256=None, problem="No")

    await store.save_icon("key", source_sha256=SOURCE)

    outcome = (await store.find_icons(["key"]))["key"]
    assert outcome.problem is None
    assert len(outcome.renditions) == 1
    assert await count(any_database, "icon") == 1


async def test_more_keys_than_one_statement_takes_are_found(
    any_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(any_database, tmp_path)
    await store.save_icon("24999", source_sha256=None, problem="No")

    found = await store.find_icons([str(number) for number in range(25_000)])

    assert set(found) == {"24999"}


async def test_after_the_folder_is_lost_icons_count_as_undecided(
    sqlite_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(sqlite_database, tmp_path)
    (kept,) = await store.save_renditions(SOURCE, [new("a", 32)])
    await store.save_icon("good", source_sha256=SOURCE)
    await store.save_icon("bad", source_sha256=None, problem="No")
    (tmp_path / kept.sha256[:2] / kept.sha256[2:4] / kept.sha256).unlink()

    assert set(await store.find_icons(["good", "bad"])) == {"bad"}
    assert await store.find_renditions(SOURCE) == ()

    await store.save_renditions(SOURCE, [new("a", 32)])
    assert set(await store.find_icons(["good", "bad"])) == {"good", "bad"}
