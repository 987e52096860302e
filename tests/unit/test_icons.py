import asyncio
import base64
import io
import os
import random
import signal
import struct
import time
import zlib
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image, PngImagePlugin
from sqlalchemy import event, func, select, update
from structlog.testing import capture_logs

from resolvers.icons import IconLimits, IconService, _question, _Recent, open_icons
from resolvers.image_decoder import (
    DecoderUnavailable,
    ImageDecoder,
    ImageRefused,
    answer_images,
    render,
)
from sessions.base import SERVICE, Grant, NewGrant, Page, ProviderCheck, ProviderSession
from sessions.errors import (
    NotSupported,
    ProviderBadResponse,
    ProviderError,
    ProviderForbidden,
    ProviderNotFound,
    ProviderUnavailable,
)
from sessions.http import deadline
from storage import tables
from storage.credentials import Secret
from storage.database import Database
from storage.leases import SessionStatus
from storage.media import MediaStore
from storage.records import (
    Course,
    CourseKind,
    CourseState,
    Enrollment,
    IconSource,
    Provenance,
    Provider,
    ProviderState,
    User,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PATIENT = IconLimits(patience_seconds=60, pause_seconds=0.05)
SVG = (
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
)


# Pictures.


def picture(
    width: int = 64,
    height: int = 64,
    *,
    image_format: str = "PNG",
    seed: int = 1,
    mode: str = "RGB",
    **options: object,
) -> bytes:
    red, green, blue = random.Random(seed).randbytes(3)
    image = Image.new("RGB", (width, height), (red, green, blue))
    image.paste((255, 255, 255), (0, 0, width // 2, height // 2))
    written = io.BytesIO()
    image.convert(mode).save(written, image_format, **options)
    return written.getvalue()


def noise(width: int, height: int, image_format: str) -> bytes:
    image = Image.frombytes("RGB", (width, height), random.Random(1).randbytes(width * height * 3))
    written = io.BytesIO()
    image.save(written, image_format)
    return written.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def ico_holding(content: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def webp_claiming(width: int, height: int) -> bytes:
    size = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<IBI", 1000, 0x2F, size) + bytes(995)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


# A provider that has nothing but files.


class FileSession(ProviderSession):
    def __init__(self, provider: Provider, files: Mapping[str, bytes | ProviderError]) -> None:
        self.provider = provider
        self.files = dict(files)
        self.fetched: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.delay_seconds = 0.0

    async def fetch_file(self, reference: str, *, max_bytes: int) -> bytes:
        self.fetched.append(reference)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_seconds)
        finally:
            self.at_once -= 1
        file = self.files.get(reference, ProviderBadResponse("The provider answered 404"))
        if isinstance(file, ProviderError):
            raise file
        if len(file) > max_bytes:
            raise ProviderBadResponse(f"The file is larger than {max_bytes} bytes")
        return file

    async def log_in(self, credentials: Secret[Mapping[str, str]]) -> NewGrant:
        raise NotSupported("Files only")

    async def keep_alive(self, grant: Grant) -> NewGrant:
        raise NotSupported("Files only")

    async def log_out(self, grant: NewGrant) -> None:
        raise NotSupported("Files only")

    async def check(self) -> ProviderCheck:
        raise NotSupported("Files only")

    async def list_users(self, *, position: str | None, limit: int) -> Page[User]:
        raise NotSupported("Files only")

    async def fetch_users(self, user_ids: Collection[str]) -> Mapping[str, User]:
        raise NotSupported("Files only")

    async def list_courses(self, *, position: str | None, limit: int) -> Page[Course]:
        raise NotSupported("Files only")

    async def fetch_courses(self, course_ids: Collection[str]) -> Mapping[str, Course]:
        raise NotSupported("Files only")

    async def list_enrollments(self, *, position: str | None, limit: int) -> Page[Enrollment]:
        raise NotSupported("Files only")

    async def fetch_enrollments_by_user(
        self, user_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        raise NotSupported("Files only")

    async def fetch_enrollments_by_course(
        self, course_ids: Collection[str]
    ) -> Mapping[str, Sequence[Enrollment]]:
        raise NotSupported("Files only")


class FileSessions:
    def __init__(self, **files_by_provider: Mapping[str, bytes | ProviderError]) -> None:
        self.by_provider = {
            provider_id: FileSession(provider(provider_id), files)
            for provider_id, files in files_by_provider.items()
        }

    @asynccontextmanager
    async def session(
        self, provider_id: str, subject: str = SERVICE, /
    ) -> AsyncIterator[ProviderSession]:
        assert subject == SERVICE
        if provider_id not in self.by_provider:
            raise ProviderNotFound("There is no such provider", provider_id=provider_id)
        yield self.by_provider[provider_id]

    async def list_statuses(self, **_filters: object) -> Sequence[SessionStatus]:
        return []

    def health(self, _provider_id: str, /) -> None:
        return None


def provider(provider_id: str) -> Provider:
    return Provider(
        id=provider_id,
        platform="kolibri",
        name="School",
        base_url=f"http://{provider_id}.example:8080/kolibri",
        options={},
        state=ProviderState.ACTIVE,
        revision=1,
        created_at=NOW,
        updated_at=NOW,
    )


def course(
    reference: str | None,
    *fallback_references: str,
    number: int = 1,
    provider_id: str = "p1",
    version: str | None = "1",
) -> Course:
    return Course(
        provider_id=provider_id,
        external_id=f"channel:{number}",
        kind=CourseKind.LIBRARY,
        title="Course",
        state=CourseState.ACTIVE,
        icon=None
        if reference is None
        else IconSource(
            reference=reference, fallback_references=fallback_references, version=version
        ),
        provenance=Provenance(
            provider_id=provider_id,
            external_id=str(number),
            source_type="channel",
            fetched_at=NOW,
        ),
    )


@pytest.fixture
def store(sqlite_database: Database, tmp_path: Path) -> MediaStore:
    return MediaStore(sqlite_database, tmp_path / "media")


@asynccontextmanager
async def icons_of(
    store: MediaStore, sessions: FileSessions | None = None, limits: IconLimits = PATIENT
) -> AsyncIterator[IconService]:
    async with open_icons(
        sessions=sessions or FileSessions(),
        store=store,
        public_url="https://gateway.example/",
        limits=limits,
    ) as icons:
        yield icons


async def served(store: MediaStore, url: str | None) -> Image.Image:
    assert url is not None
    sha256 = url.removeprefix("https://gateway.example/media/").removesuffix(".webp")
    found = await store.find(sha256)
    assert found is not None
    image = Image.open(io.BytesIO(found[1].read_bytes()), formats=["WEBP"])
    image.load()
    assert image.size == (found[0].width, found[0].height)
    return image


# What is shown.


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "ICO"])
@pytest.mark.parametrize("label", ["image/png", "image/jpg", "text/html", ""])
async def test_an_image_is_shown_by_its_bytes_whatever_its_label_says(
    store: MediaStore, image_format: str, label: str
) -> None:
    uri = data_uri(picture(image_format=image_format), label)

    async with icons_of(store) as icons:
        url = await icons.url(course(uri), 32)

    image = await served(store, url)
    assert (image.format, image.size) == ("WEBP", (32, 32))


async def test_the_narrowest_width_kept_that_is_wide_enough_is_chosen(store: MediaStore) -> None:
    asked = [1, 32, 33, 64, 200, 256, 300, 512, 4000]

    async with icons_of(store) as icons:
        one = course(data_uri(picture(300, 150)))
        urls = await icons.urls([(one, width) for width in asked])
        (asset,) = await icons.assets([one])

    widths = [(await served(store, url)).width for url in urls]
    assert widths == [32, 32, 64, 64, 256, 256, 300, 300, 300]
    assert asset is not None
    assert (asset.width, asset.height, asset.media_type) == (300, 150, "image/webp")
    assert asset.url == urls[-1] == f"https://gateway.example/media/{asset.sha256}.webp"
    found = await store.find(asset.sha256)
    assert found is not None
    assert asset.byte_size == found[0].byte_size == found[1].stat().st_size


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((1, 1), [(1, 1)]),
        ((20, 10), [(20, 10)]),
        ((32, 32), [(32, 32)]),
        ((512, 256), [(32, 16), (64, 32), (128, 64), (256, 128), (512, 256)]),
        ((1000, 500), [(32, 16), (64, 32), (128, 64), (256, 128), (512, 256)]),
        ((8192, 1), [(32, 1), (64, 1), (128, 1), (256, 1), (512, 1)]),
        ((2, 8192), [(2, 8192)]),
    ],
)
def test_images_are_made_smaller_and_never_larger(
    size: tuple[int, int], kept: list[tuple[int, int]]
) -> None:
    renditions = list(render(picture(*size), "PNG"))

    assert [(one.width, one.height) for one in renditions] == kept
    assert [Image.open(io.BytesIO(one.content)).size for one in renditions] == kept


def test_nothing_but_the_picture_is_passed_on() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is 40 wide and 20 high
    exif[0x010E] = "CANARY"
    original = picture(
        20, 40, image_format="JPEG", exif=exif, comment=b"CANARY", icc_profile=b"CANARY" * 50
    )
    assert original.count(b"CANARY") >= 52

    (small, full) = render(original, "JPEG")

    assert (full.width, full.height) == (40, 20)
    assert (small.width, small.height) == (32, 16)
    image = Image.open(io.BytesIO(full.content))
    assert b"CANARY" not in full.content
    assert not {"exif", "icc_profile", "xmp", "comment"} & {*image.info}
    top_left, top_right = image.convert("RGB").getpixel((2, 2)), image.getpixel((37, 2))
    assert top_right == pytest.approx((255, 255, 255), abs=6)
    assert top_left != pytest.approx((255, 255, 255), abs=6)


def test_transparency_and_sixteen_bits_of_grey_survive() -> None:
    see_through = io.BytesIO()
    Image.new("RGBA", (16, 16), (10, 200, 30, 0)).save(see_through, "PNG")
    grey = io.BytesIO()
    Image.new("I;16", (16, 16), 0x8000).save(grey, "PNG")

    (clear,) = render(see_through.getvalue(), "PNG")
    (middle,) = render(grey.getvalue(), "PNG")

    pixel = Image.open(io.BytesIO(clear.content)).convert("RGBA").getpixel((8, 8))
    assert isinstance(pixel, tuple)
    assert pixel[3] == 0
    shown = Image.open(io.BytesIO(middle.content)).convert("RGB").getpixel((8, 8))
    assert shown == pytest.approx((128, 128, 128), abs=3)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_only_the_first_frame_of_an_animation_is_shown(image_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    written = io.BytesIO()
    frames[0].save(written, image_format, save_all=True, append_images=frames[1:], duration=100)

    (shown,) = render(written.getvalue(), image_format)

    image = Image.open(io.BytesIO(shown.content))
    assert getattr(image, "n_frames", 1) == 1
    assert image.convert("RGB").getpixel((4, 4)) == pytest.approx((255, 0, 0), abs=6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_kind_of_colour_becomes_a_picture(mode: str) -> None:
    (shown,) = render(picture(16, 16, mode=mode), "PNG")

    assert Image.open(io.BytesIO(shown.content)).mode in {"RGB", "RGBA"}


def test_cmyk_becomes_a_picture() -> None:
    (shown,) = render(picture(16, 16, image_format="JPEG", mode="CMYK"), "JPEG")

    assert Image.open(io.BytesIO(shown.content)).mode == "RGB"


# What is refused.


def _refusals() -> Iterator[tuple[str, bytes, str]]:
    damaged = "The image is damaged or cut off"
    for image_format in ("PNG", "JPEG", "GIF", "WEBP", "ICO"):
        whole = noise(60, 60, image_format)
        yield f"{image_format} cut off", whole[: len(whole) // 2], damaged
        yield f"{image_format} only begun", whole[:16], damaged
    yield "PNG with noise in the middle", _scrambled(noise(60, 60, "PNG")), damaged
    too_large = "The image has more than 4194304 pixels"
    for side in (3000, 30_000, 65_000):
        yield f"PNG bomb {side}", png_claiming(side, side), too_large
    yield "too long", png_claiming(8193, 1), "The image is longer than 8192 pixels on one side"
    gif = bytearray(picture(image_format="GIF"))
    gif[6:10] = struct.pack("<HH", 65_000, 65_000)
    yield "GIF bomb", bytes(gif), too_large
    yield "ICO bomb", ico_holding(png_claiming(30_000, 30_000)), too_large
    svg = "SVG images may hold scripts and are not shown"
    yield "SVG", SVG, svg
    yield "SVG after white space", b"\xef\xbb\xbf \n<!-- x --><SVG onload='x'>", svg
    yield "SVG in UTF-16", SVG.decode().encode("utf-16"), svg
    page = "The icon is a web page, not an image"
    yield "HTML", b"<!DOCTYPE html><html><body>404", page
    other = "The icon is not a PNG, JPEG, GIF, WebP or ICO image"
    yield "BMP", picture(image_format="BMP"), other
    yield "TIFF", picture(image_format="TIFF"), other
    yield "text", b"garbage", other
    yield "one byte", b"\x89", other


def _scrambled(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xa5" * 400 + content[middle + 400 :]


REFUSALS = list(_refusals())


async def test_each_kind_of_bad_image_is_refused_with_its_reason_and_one_warning(
    store: MediaStore, sqlite_database: Database
) -> None:
    courses = [
        course(data_uri(content), number=number) for number, (_, content, _) in enumerate(REFUSALS)
    ]

    with capture_logs() as logs:
        async with icons_of(store) as icons:
            for _ in range(3):
                assert await icons.urls([(one, 64) for one in courses]) == [None] * len(courses)
            assert await icons.assets(courses) == [None] * len(courses)

    problems = {log["course_id"]: log["problem"] for log in logs if log["event"] == "icon_refused"}
    assert {
        name: problems[f"channel:{number}"] for number, (name, _, _) in enumerate(REFUSALS)
    } == {name: problem for name, _, problem in REFUSALS}
    assert len(logs) == len(REFUSALS)
    async with sqlite_database.read() as connection:
        rows = (await connection.execute(select(tables.icon))).all()
        assert len(rows) == len(REFUSALS)
        assert {row.problem for row in rows} == {problem for _, _, problem in REFUSALS}
        assert {row.source_sha256 for row in rows} == {None}


async def test_refusals_are_remembered_across_restarts_without_another_warning(
    store: MediaStore,
) -> None:
    one = course(data_uri(SVG))
    async with icons_of(store) as icons:
        assert await icons.url(one, 64) is None

    with capture_logs() as logs:
        async with icons_of(store) as icons:
            assert await icons.url(one, 64) is None

    assert logs == []
    assert icons.counts.refused == 0


async def test_a_webp_of_a_billion_pixels_is_refused_without_the_memory_for_it(
    store: MediaStore,
) -> None:
    decoder = ImageDecoder(workers=1)

    with pytest.raises(ImageRefused):
        await decoder.decode(webp_claiming(16_383, 16_383), image_format="WEBP")
    assert len(await decoder.decode(picture(), image_format="PNG")) == 2

    await decoder.close()


async def test_an_image_over_five_megabytes_is_refused(store: MediaStore) -> None:
    large = picture(4, 4) + bytes(5 * 1024 * 1024)
    sessions = FileSessions(p1={"/icon": large})

    with capture_logs() as logs:
        async with icons_of(store, sessions) as icons:
            courses = [course(data_uri(large)), course("/icon", number=2)]
            assert await icons.urls([(one, 64) for one in courses]) == [None, None]

    assert sorted(log["problem"] for log in logs) == [
        "The data URI holds more than 5242880 bytes",
        "The file is larger than 5242880 bytes",
    ]


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("data:image/png;base64,iVBORw0KG", "The base64 text of the data URI is cut off"),
        ("data:image/png;base64", "The data URI has no comma"),
        ("data:image/svg+xml;utf8," + quote(SVG.decode()), REFUSALS[-8][2]),
        ("https://elsewhere.example/icon.png", "The icon is not on the provider's own server"),
        ("//elsewhere.example/icon.png", "The icon is not on the provider's own server"),
        ("https://p1.example:8080/icon.png", "The icon is not on the provider's own server"),
        ("http://p1.example/icon.png", "The icon is not on the provider's own server"),
        ("http://169.254.169.254/latest", "The icon is not on the provider's own server"),
        ("javascript:alert(1)", "The icon is not on the provider's own server"),
        ("file:///etc/passwd", "The icon is not on the provider's own server"),
        ("ftp://p1.example:8080/icon", "The icon is not on the provider's own server"),
        ("/\\elsewhere.example/icon", "The icon's address is not one"),
        ("/icon\t.png", "The icon's address is not one"),
        ("http://p1.example:99999/", "The icon's address is not one"),
        ("http://[/", "The icon's address is not one"),
        ("/" + "a" * 2048, "The icon's address is not one"),
        ("/missing.png", "The provider answered 404"),
    ],
)
async def test_what_is_no_readable_icon_address_is_refused(
    store: MediaStore, reference: str, problem: str
) -> None:
    sessions = FileSessions(p1={})

    with capture_logs() as logs:
        async with icons_of(store, sessions) as icons:
            assert await icons.url(course(reference), 64) is None

    assert [log["problem"] for log in logs] == [problem]
    assert sessions.by_provider["p1"].fetched == (["/missing.png"] if "404" in problem else [])


async def test_a_course_without_an_icon_costs_nothing_and_warns_nobody(store: MediaStore) -> None:
    with capture_logs() as logs:
        async with icons_of(store) as icons:
            courses = [course(None), course(""), course("  \n"), course("", "")]
            assert await icons.urls([(one, 64) for one in courses]) == [None] * 4

    assert logs == []
    assert (icons.counts.fetched, icons.counts.decoded, icons.counts.refused) == (0, 0, 0)


# Where images come from.


@pytest.mark.parametrize(
    "reference",
    [
        "/icon/1/",
        "icon.png?v=2",
        "http://p1.example:8080/other/icon.png",
        "HTTP://P1.EXAMPLE:8080/x",
        "//p1.example:8080/x",
        " /padded/ ",
    ],
)
async def test_files_of_the_providers_own_server_are_fetched_through_its_session(
    store: MediaStore, reference: str
) -> None:
    sessions = FileSessions(p1={reference.strip(): picture()})

    async with icons_of(store, sessions) as icons:
        await served(store, await icons.url(course(reference), 64))

    assert sessions.by_provider["p1"].fetched == [reference.strip()]


async def test_fallbacks_are_tried_in_order_until_one_is_an_image(store: MediaStore) -> None:
    sessions = FileSessions(
        p1={
            "/broken": ProviderUnavailable("The provider answered 500"),
            "/svg": SVG,
            "/good": picture(seed=5),
            "/never": picture(seed=6),
        }
    )
    one = course("/broken", "", "/svg", "data:,", "/good", "/never")

    with capture_logs() as logs:
        async with icons_of(store, sessions) as icons:
            await served(store, await icons.url(one, 64))

    assert sessions.by_provider["p1"].fetched == ["/broken", "/svg", "/good"]
    assert logs == []


async def test_all_reasons_are_given_when_no_fallback_is_an_image(store: MediaStore) -> None:
    with capture_logs() as logs:
        async with icons_of(store) as icons:
            assert await icons.url(course(data_uri(SVG), "data:,", data_uri(b"x")), 64) is None

    assert [log["problem"] for log in logs] == [
        (
            "SVG images may hold scripts and are not shown; The data URI is empty; "
            "The icon is not a PNG, JPEG, GIF, WebP or ICO image"
        )
    ]


# How often anything is done.


async def test_ten_thousand_courses_sharing_five_hundred_icons_cost_five_hundred_decodes(
    store: MediaStore, sqlite_database: Database
) -> None:
    uris = [data_uri(picture(24, 24, seed=seed)) for seed in range(500)]
    assert len({*uris}) == 500
    courses = [course(uris[number % 500], number=number) for number in range(10_000)]

    async with icons_of(store) as icons:
        urls = await icons.urls([(one, 64) for one in courses])
        assert icons.counts.decoded == 500
        assert len({*urls}) == 500
        assert None not in urls
        with _counted_statements(sqlite_database) as statements:
            assert await icons.urls([(one, 64) for one in courses]) == urls
        assert statements == []

    async with icons_of(store) as icons:
        with _counted_statements(sqlite_database) as statements:
            assert await icons.urls([(one, 64) for one in courses]) == urls
        assert len(statements) == 1
        assert icons.counts.decoded == 0


def test_a_warm_batch_of_five_hundred_is_cheap(store: MediaStore) -> None:
    # In the test above; here only what a key costs, since it is all that is left to do.
    courses = [course(data_uri(picture(24, 24, seed=1)), number=number) for number in range(500)]
    started = time.perf_counter()
    for one in courses:
        _question(one)

    assert time.perf_counter() - started < 0.1


async def test_the_same_bytes_are_decoded_once_for_all_providers_and_names(
    store: MediaStore,
) -> None:
    content = picture()
    sessions = FileSessions(p1={"/a": content, "/b": content}, p2={"/a": content})
    courses = [
        course("/a"),
        course("/b"),
        course("/a", provider_id="p2"),
        course(data_uri(content), provider_id="p3"),
        course(data_uri(content, "image/jpeg"), version="7"),
    ]

    async with icons_of(store, sessions) as icons:
        urls = await icons.urls([(one, 64) for one in courses])
        assert icons.counts.decoded == 1

    assert len({*urls}) == 1


async def test_the_same_bad_bytes_are_decoded_once_too(store: MediaStore) -> None:
    uri = data_uri(png_claiming(3000, 3000))
    courses = [course(uri, number=number, version=str(number)) for number in range(20)]

    async with icons_of(store) as icons:
        assert await icons.urls([(one, 64) for one in courses]) == [None] * 20
        assert icons.counts.decoded == 1


async def test_a_hundred_requests_at_once_fetch_an_icon_once(store: MediaStore) -> None:
    sessions = FileSessions(p1={"/icon": picture()})
    sessions.by_provider["p1"].delay_seconds = 0.05

    async with icons_of(store, sessions) as icons:
        urls = await asyncio.gather(*(icons.url(course("/icon"), 64) for _ in range(100)))

    assert len({*urls}) == 1
    assert sessions.by_provider["p1"].fetched == ["/icon"]


async def test_a_caller_that_gives_up_does_not_stop_the_work_for_others(store: MediaStore) -> None:
    sessions = FileSessions(p1={"/icon": picture()})
    sessions.by_provider["p1"].delay_seconds = 0.1

    async with icons_of(store, sessions) as icons:
        first = asyncio.create_task(icons.url(course("/icon"), 64))
        second = asyncio.create_task(icons.url(course("/icon"), 64))
        await asyncio.sleep(0.02)
        first.cancel()
        assert await second is not None

    assert sessions.by_provider["p1"].fetched == ["/icon"]


async def test_two_files_of_one_provider_are_fetched_at_once_and_no_more(store: MediaStore) -> None:
    sessions = FileSessions(p1={f"/{number}": picture(seed=number) for number in range(10)})
    sessions.by_provider["p1"].delay_seconds = 0.01

    async with icons_of(store, sessions) as icons:
        courses = [course(f"/{number}") for number in range(10)]
        assert None not in await icons.urls([(one, 64) for one in courses])

    assert sessions.by_provider["p1"].most_at_once == 2


async def test_a_new_version_is_looked_at_and_the_old_one_is_not_asked_for_again(
    store: MediaStore,
) -> None:
    sessions = FileSessions(p1={"/icon": picture(seed=1)})
    async with icons_of(store, sessions) as icons:
        old = await icons.url(course("/icon", version="1"), 64)
        sessions.by_provider["p1"].files["/icon"] = picture(seed=2)

        assert await icons.url(course("/icon", version="1"), 64) == old
        assert await icons.url(course("/icon", version="2"), 64) != old

    assert len(sessions.by_provider["p1"].fetched) == 2


# When things go wrong.


async def test_an_outage_gives_no_icon_for_now_one_warning_and_another_try_after_a_pause(
    store: MediaStore, sqlite_database: Database
) -> None:
    outage = ProviderUnavailable("The provider does not answer")
    sessions = FileSessions(p1={"/1": outage, "/2": outage})
    courses = [course("/1"), course("/2", number=2)]
    session = sessions.by_provider["p1"]

    with capture_logs() as logs:
        async with icons_of(store, sessions, IconLimits(pause_seconds=0.2)) as icons:
            for _ in range(5):
                assert await icons.urls([(one, 64) for one in courses]) == [None, None]
            assert sorted(session.fetched) == ["/1", "/2"]
            session.files = {"/1": picture(), "/2": picture()}
            await asyncio.sleep(0.2)
            assert None not in await icons.urls([(one, 64) for one in courses])

    assert [log["event"] for log in logs] == ["icons_postponed"]
    assert logs[0]["problem"] == "The provider does not answer"
    assert icons.counts.postponed == 2


async def test_a_provider_that_failed_five_times_in_a_row_is_left_alone(store: MediaStore) -> None:
    outage = ProviderUnavailable("The provider does not answer")
    sessions = FileSessions(p1={f"/{number}": outage for number in range(100)})

    async with icons_of(store, sessions, IconLimits(pause_seconds=30)) as icons:
        courses = [course(f"/{number}", number=number) for number in range(100)]
        assert await icons.urls([(one, 64) for one in courses]) == [None] * 100

    assert len(sessions.by_provider["p1"].fetched) in {5, 6}  # two are fetched at once


@pytest.mark.parametrize(
    "error", [ProviderForbidden("The account may not see files"), ProviderNotFound("Gone")]
)
async def test_what_an_operator_can_put_right_is_not_remembered_as_refused(
    store: MediaStore, sqlite_database: Database, error: ProviderError
) -> None:
    sessions = FileSessions(p1={"/icon": error})

    async with icons_of(store, sessions) as icons:
        assert await icons.url(course("/icon"), 64) is None
        assert await icons.url(course("/icon", provider_id="unknown"), 64) is None

    async with sqlite_database.read() as connection:
        assert (
            await connection.execute(select(func.count()).select_from(tables.icon))
        ).scalar() == 0


async def test_a_slow_provider_holds_a_query_up_for_a_limited_time_only(store: MediaStore) -> None:
    sessions = FileSessions(p1={"/slow": picture()})
    sessions.by_provider["p1"].delay_seconds = 0.3
    courses = [course("/slow"), course(data_uri(picture(seed=2)), provider_id="p2")]
    async with icons_of(store) as icons:
        await icons.url(courses[1], 64)

    async with icons_of(store, sessions, IconLimits(patience_seconds=0.05)) as icons:
        slow, quick = await icons.urls([(one, 64) for one in courses])
        assert slow is None
        assert quick is not None
        async with asyncio.timeout(20):
            while await icons.url(courses[0], 64) is None:
                pass


async def test_a_request_out_of_time_waits_for_no_icon_and_does_not_shorten_the_shared_work(
    store: MediaStore,
) -> None:
    sessions = FileSessions(p1={"/icon": picture()})
    async with icons_of(store, sessions) as icons:
        with deadline(0.001):
            await asyncio.sleep(0.01)
            too_soon = await icons.url(course("/icon"), 64)
        later = await icons.url(course("/icon"), 64)

    assert too_soon is None
    assert later is not None


async def test_an_icon_without_a_version_is_shown_while_it_is_looked_at_again(
    store: MediaStore, sqlite_database: Database
) -> None:
    sessions = FileSessions(p1={"/icon": picture(seed=1)})
    one = course("/icon", version=None)
    async with icons_of(store, sessions) as icons:
        old = await icons.url(one, 64)
    async with sqlite_database.transaction() as connection:
        yesterday = datetime.now(UTC) - timedelta(days=1, seconds=1)
        await connection.execute(update(tables.icon).values(decided_at=yesterday))
    sessions.by_provider["p1"].files["/icon"] = picture(seed=2)

    async with icons_of(store, sessions) as icons:
        assert await icons.url(one, 64) == old
        await asyncio.gather(*icons._deciding.values())
        assert await icons.url(one, 64) not in {old, None}

    assert len(sessions.by_provider["p1"].fetched) == 2


async def test_an_icon_that_cannot_be_looked_at_again_stays_as_it_was(
    store: MediaStore, sqlite_database: Database
) -> None:
    sessions = FileSessions(p1={"/icon": picture(seed=1)})
    one = course("/icon", version=None)
    limits = IconLimits(review_seconds=0, pause_seconds=30)
    async with icons_of(store, sessions, limits) as icons:
        old = await icons.url(one, 64)
        sessions.by_provider["p1"].files["/icon"] = ProviderUnavailable("Down")
        assert await icons.url(one, 64) == old
        await asyncio.sleep(0.05)
        assert await icons.url(one, 64) == old

    assert icons.counts.postponed == 1


async def test_a_refusal_is_looked_at_again_after_a_day_without_another_warning(
    store: MediaStore,
) -> None:
    sessions = FileSessions(p1={"/icon": SVG})
    with capture_logs() as logs:
        async with icons_of(store, sessions, IconLimits(review_seconds=0)) as icons:
            assert await icons.url(course("/icon"), 64) is None
            assert await icons.url(course("/icon"), 64) is None
            sessions.by_provider["p1"].files["/icon"] = picture()
            await asyncio.gather(*icons._deciding.values())
            await icons.url(course("/icon"), 64)
            await asyncio.gather(*icons._deciding.values())
            assert await icons.url(course("/icon"), 64) is not None

    assert [log["event"] for log in logs] == ["icon_refused"]


async def test_a_broken_database_gives_no_icon_and_no_error(
    store: MediaStore, sqlite_database: Database
) -> None:
    async with sqlite_database.transaction() as connection:
        await connection.run_sync(tables.rendition.drop)
        await connection.run_sync(tables.icon.drop)

    with capture_logs() as logs:
        async with icons_of(store) as icons:
            assert await icons.url(course(data_uri(picture())), 64) is None

    assert [log["event"] for log in logs] == ["icons_not_read", "icons_postponed"]


async def test_a_lost_media_folder_is_filled_again(store: MediaStore, tmp_path: Path) -> None:
    one = course(data_uri(picture()))
    async with icons_of(store) as icons:
        url = await icons.url(one, 64)
    for file in [path for path in (tmp_path / "media").rglob("*") if path.is_file()]:
        file.unlink()

    async with icons_of(store) as icons:
        assert await icons.url(one, 64) == url
    await served(store, url)


async def test_closing_in_the_middle_of_the_work_leaves_nothing_running(store: MediaStore) -> None:
    sessions = FileSessions(p1={"/icon": picture()})
    sessions.by_provider["p1"].delay_seconds = 30
    limits = IconLimits(patience_seconds=0.01)

    async with icons_of(store, sessions, limits) as icons:
        courses = [course("/icon"), course(data_uri(noise(1500, 1500, "PNG")), number=2)]
        assert await icons.urls([(one, 64) for one in courses]) == [None, None]
        await asyncio.sleep(0.1)

    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert [task for task in others if "resolvers" in repr(task.get_coro())] == []


# The decoder.


async def test_a_worker_killed_while_idle_or_working_does_not_break_later_images() -> None:
    decoder = ImageDecoder(workers=1)
    await decoder.decode(picture(), image_format="PNG")
    (idle,) = decoder._idle
    os.kill(idle._process.pid, signal.SIGKILL)

    assert len(await decoder.decode(picture(), image_format="PNG")) == 2
    (fresh,) = decoder._idle
    assert fresh._process.pid != idle._process.pid

    os.kill(fresh._process.pid, signal.SIGSTOP)
    slow = asyncio.create_task(decoder.decode(picture(seed=2), image_format="PNG"))
    await asyncio.sleep(0.05)
    os.kill(fresh._process.pid, signal.SIGKILL)
    assert len(await slow) == 2
    await decoder.close()


async def test_an_image_that_takes_too_long_costs_its_worker_only() -> None:
    decoder = ImageDecoder(workers=1, time_limit_seconds=0.5)
    await decoder.decode(picture(), image_format="PNG")
    os.kill(decoder._idle[0]._process.pid, signal.SIGSTOP)

    with pytest.raises(ImageRefused) as refused:
        await decoder.decode(picture(), image_format="PNG")

    assert refused.value.problem == "The image takes longer than 0.5 s to decode"
    assert decoder._idle == []
    assert len(await decoder.decode(picture(), image_format="PNG")) == 2
    await decoder.close()


async def test_an_image_that_stops_every_worker_is_refused(tmp_path: Path) -> None:
    decoder = ImageDecoder(workers=1)

    with pytest.raises(ImageRefused) as refused:
        await decoder.decode(picture(), image_format="NO SUCH FORMAT")

    assert refused.value.problem == "The image stopped the program that decodes it"
    assert len(await decoder.decode(picture(), image_format="PNG")) == 2
    await decoder.close()


async def test_a_worker_knows_no_secret_and_has_limits() -> None:
    os.environ["CANARY_FOR_WORKERS"] = "canary"
    try:
        decoder = ImageDecoder(workers=1)
        await decoder.decode(picture(), image_format="PNG")
    finally:
        del os.environ["CANARY_FOR_WORKERS"]
    process = Path(f"/proc/{decoder._idle[0]._process.pid}")

    assert b"canary" not in (process / "environ").read_bytes().lower()
    limits = (process / "limits").read_text()
    assert f"Max address space         {768 * 1024 * 1024} " in limits
    assert "Max file size             0 " in limits
    await decoder.close()


async def test_no_worker_and_no_image_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    decoder = ImageDecoder(workers=1)

    with pytest.raises(DecoderUnavailable):
        await decoder.decode(picture(), image_format="PNG")


async def test_a_program_that_is_no_decoder_is_told_from_a_bad_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    decoder = ImageDecoder(workers=1)

    with pytest.raises(DecoderUnavailable):
        await decoder.decode(picture(), image_format="PNG")


def test_a_worker_answers_one_image_after_the_other_until_there_are_no_more() -> None:
    def part(content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + content

    images = io.BytesIO(
        part(b"PNG") + part(picture(8, 8)) + part(b"GIF") + part(b"nonsense") + part(b"PNG")
    )
    answers = io.BytesIO()

    answer_images(images, answers)

    text = answers.getvalue()
    assert text.startswith(part(b'{"sizes": [[8, 8]]}'))
    refusal = part(b'{"problem": "The image is damaged or cut off"}')
    assert text.count(refusal) == 2


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "ICO"])
def test_mutated_images_are_shown_or_refused_and_nothing_else(image_format: str) -> None:
    chance = random.Random(image_format)
    whole = bytearray(noise(24, 24, image_format))
    outcomes = {"shown": 0, "refused": 0}

    for _ in range(150):
        mutated = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        if chance.random() < 0.2:
            del mutated[chance.randrange(len(mutated)) :]
        try:
            list(render(bytes(mutated), image_format))
            outcomes["shown"] += 1
        except ImageRefused:
            outcomes["refused"] += 1

    assert sum(outcomes.values()) == 150
    assert outcomes["refused"] > 0


def test_a_bomb_inside_a_small_ico_is_refused_by_the_size_of_what_is_inside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4 * 1024 * 1024)  # as in a worker

    for side in (2500, 30_000):
        with pytest.raises(ImageRefused) as refused:
            list(render(ico_holding(png_claiming(side, side)), "ICO"))
        assert refused.value.problem == "The image has more than 4194304 pixels"


def test_a_long_thin_image_is_refused() -> None:
    with pytest.raises(ImageRefused) as refused:
        list(render(png_claiming(8193, 1), "PNG"))

    assert refused.value.problem == "The image is longer than 8192 pixels on one side"


def test_only_the_outcomes_used_last_stay_in_memory() -> None:
    recent: _Recent[str, int] = _Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    recent.get("a")
    recent.put("c", 3)

    assert [recent.get(key) for key in "abc"] == [1, None, 3]


def test_the_text_of_a_png_is_not_unpacked_without_limit() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 70_000_000, zip=True)
    bomb = io.BytesIO()
    Image.new("RGB", (4, 4)).save(bomb, "PNG", pnginfo=text)
    assert len(bomb.getvalue()) < 100_000

    with pytest.raises(ImageRefused):
        list(render(bomb.getvalue(), "PNG"))


class _counted_statements:  # noqa: N801 - used as a context manager
    def __init__(self, database: Database) -> None:
        self._engines = [database._readers.sync_engine, database._writers.sync_engine]
        self._statements: list[str] = []

    def _count(self, *arguments: object) -> None:
        if "BEGIN" not in (statement := str(arguments[2])):
            self._statements.append(statement)

    def __enter__(self) -> list[str]:
        for engine in self._engines:
            event.listen(engine, "before_cursor_execute", self._count)
        return self._statements

    def __exit__(self, *_: object) -> None:
        for engine in self._engines:
            event.remove(engine, "before_cursor_execute", self._count)
