from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from gateway import media
from storage.database import Database
from storage.media import Media, MediaStore, NewMedia

CONTENT = bytes(range(200))


@pytest.fixture
def store(sqlite_database: Database, tmp_path: Path) -> MediaStore:
    return MediaStore(sqlite_database, tmp_path / "media")


@pytest.fixture
async def client(store: MediaStore) -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=media.routes(lambda _: store))

    async def with_request_id(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"request_id": "r1"}}, receive, send)

    transport = httpx.ASGITransport(with_request_id)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def kept(store: MediaStore) -> Media:
    return await store.put_if_absent(
        NewMedia(content=CONTENT, media_type="image/webp", width=32, height=32)
    )


async def test_an_image_is_served_with_headers_that_make_it_safe_and_lasting(
    client: httpx.AsyncClient, kept: Media
) -> None:
    answer = await client.get(f"/media/{kept.sha256}.webp")

    assert answer.status_code == 200
    assert answer.content == CONTENT
    expected = {
        "content-type": "image/webp",
        "content-length": "200",
        "etag": f'"{kept.sha256}"',
        "cache-control": "public, max-age=31536000, immutable",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox; default-src 'none'",
        "cross-origin-resource-policy": "cross-origin",
        "accept-ranges": "bytes",
    }
    assert {name: answer.headers[name] for name in expected} == expected


async def test_head_says_the_same_without_the_bytes(client: httpx.AsyncClient, kept: Media) -> None:
    got = await client.get(f"/media/{kept.sha256}.webp")
    head = await client.head(f"/media/{kept.sha256}.webp")

    assert head.status_code == 200
    assert head.content == b""
    assert head.headers == got.headers


@pytest.mark.parametrize(
    ("known", "status"),
    [
        ('"{}"', 304),
        ('W/"{}"', 304),
        ('"other", "{}"', 304),
        ("*", 304),
        ('"other"', 200),
        ("{}", 200),
        ("", 200),
    ],
)
async def test_who_has_the_image_already_is_told_so(
    client: httpx.AsyncClient, kept: Media, known: str, status: int
) -> None:
    headers = {"If-None-Match": known.format(kept.sha256)}

    answer = await client.get(f"/media/{kept.sha256}.webp", headers=headers)

    assert answer.status_code == status
    assert answer.headers["etag"] == f'"{kept.sha256}"'
    assert len(answer.content) == (0 if status == 304 else 200)


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "content"),
    [
        ("bytes=0-9", 206, "bytes 0-9/200", CONTENT[:10]),
        ("bytes=190-", 206, "bytes 190-199/200", CONTENT[190:]),
        ("bytes=-5", 206, "bytes 195-199/200", CONTENT[195:]),
        ("bytes=150-999", 206, "bytes 150-199/200", CONTENT[150:]),
        ("bytes=200-", 416, "bytes */200", None),
        ("bytes=0-1,5-6", 200, None, CONTENT),
        ("bytes=9-2", 200, None, CONTENT),
        ("bytes=-", 200, None, CONTENT),
        ("lines=1-2", 200, None, CONTENT),
        ("nonsense", 200, None, CONTENT),
        ("bytes=" + "9" * 5000 + "-", 200, None, CONTENT),
    ],
)
async def test_one_range_is_answered_and_nonsense_is_ignored(
    client: httpx.AsyncClient,
    kept: Media,
    asked: str,
    status: int,
    content_range: str | None,
    content: bytes | None,
) -> None:
    answer = await client.get(f"/media/{kept.sha256}.webp", headers={"Range": asked})

    assert answer.status_code == status
    assert answer.headers.get("content-range") == content_range
    assert content is None or answer.content == content


async def test_a_range_of_another_version_gets_the_whole_file(
    client: httpx.AsyncClient, kept: Media
) -> None:
    url = f"/media/{kept.sha256}.webp"

    same = await client.get(url, headers={"Range": "bytes=0-0", "If-Range": f'"{kept.sha256}"'})
    other = await client.get(url, headers={"Range": "bytes=0-0", "If-Range": '"other"'})

    assert (same.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize(
    "path",
    [
        "/media/" + "0" * 64 + ".webp",
        "/media/" + "0" * 64,
        "/media/" + "0" * 64 + ".svg",
        "/media/" + "0" * 63 + ".webp",
        "/media/" + "G" * 64 + ".webp",
        "/media/%2e%2e",
        "/media/..%2f..%2fetc%2fpasswd",
        "/media/..%5c..%5cgateway.db",
        "/media/" + "0" * 64 + ".webp%00.html",
        "/media/" + "0" * 64 + ".webp%0a",
    ],
)
async def test_names_that_are_not_kept_are_not_found(
    client: httpx.AsyncClient, kept: Media, path: str
) -> None:
    answer = await client.get(path)

    assert answer.status_code == 404
    if answer.headers["content-type"] == "application/problem+json":
        assert answer.json() == {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "There is no media of this name",
            "code": "BAD_MEDIA",
            "requestId": "r1",
        }


async def test_other_media_is_not_served_as_an_image(
    client: httpx.AsyncClient, store: MediaStore
) -> None:
    page = await store.put_if_absent(NewMedia(content=b"<script>", media_type="text/html"))

    assert (await client.get(f"/media/{page.sha256}.webp")).status_code == 404


async def test_media_cannot_be_written_through_the_route(
    client: httpx.AsyncClient, kept: Media
) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        answer = await client.request(method, f"/media/{kept.sha256}.webp", content=b"other")
        assert answer.status_code == 405
    assert (await client.get(f"/media/{kept.sha256}.webp")).content == CONTENT
