"""The ten ways an icon of a Kolibri channel can be right or wrong, from its server to our file."""

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image
from session_contract import Conversation, all_pages, converse
from structlog.testing import capture_logs
from test_kolibri import VERSIONS, simulated

from resolvers.icons import IconLimits, open_icons
from sessions.base import SERVICE, ProviderSession
from storage.database import Database
from storage.leases import SessionStatus
from storage.media import MediaStore
from storage.records import Course, CourseKind

SVG = "SVG images may hold scripts and are not shown"


class OneSession:
    def __init__(self, talk: Conversation) -> None:
        self.talk = talk

    @asynccontextmanager
    async def session(
        self, provider_id: str, subject: str = SERVICE, /
    ) -> AsyncIterator[ProviderSession]:
        assert (provider_id, subject) == ("7", SERVICE)
        yield self.talk.session

    async def list_statuses(self, **_filters: object) -> Sequence[SessionStatus]:
        return []

    def health(self, _provider_id: str, /) -> None:
        return None


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_channel_shows_its_picture_or_nothing_with_the_reason_in_the_log(
    version: str, sqlite_database: Database, tmp_path: Path
) -> None:
    store = MediaStore(sqlite_database, tmp_path / "media")
    async with simulated(version) as installation, converse(installation) as talk:
        courses = await all_pages(talk.session.list_courses, limit=100)
        channels = [course for course in courses if course.kind is CourseKind.LIBRARY]
        key_by_course = {
            f"channel:{row.id}": row.key for row in installation.kolibri.channels.values()
        }
        talk.forget_calls()

        with capture_logs() as logs:
            async with open_icons(
                sessions=OneSession(talk),
                store=store,
                public_url="",
                limits=IconLimits(patience_seconds=60),
            ) as icons:
                urls = await icons.urls([(channel, 256) for channel in channels])
                calls = sum(talk.called().values())
                again = await icons.urls([(channel, 256) for channel in channels])

        assert again == urls
        assert sum(talk.called().values()) == calls
        shown = {
            key_by_course[channel.external_id]: await _size(store, channel, url)
            for channel, url in zip(channels, urls, strict=True)
        }

    assert shown == {
        "png": (32, 32),
        "jpeg": (48, 48),
        "large": (256, 256),
        "webp": (48, 48),
        "absent": (32, 32),
        "course": (32, 32),
        "svg": None,
        "text_svg": None,
        "none": None,
        "broken": None,
    }
    problems = {key_by_course[log["course_id"]]: log["problem"] for log in logs}
    first = {key: problem.partition("; ")[0] for key, problem in problems.items()}
    linked = version != "0.17.0"  # there the thumbnail is in the answer, whole
    assert first == {
        "svg": SVG,
        # behind the link, Kolibri decodes the plain text as if it were base64
        "text_svg": "The icon is not a PNG, JPEG, GIF, WebP or ICO image" if linked else SVG,
        "broken": (
            "Kolibri gave no file (status 500)" if linked else "The image is damaged or cut off"
        ),
    }
    assert len(logs) == 3


async def _size(store: MediaStore, channel: Course, url: str | None) -> tuple[int, int] | None:
    if url is None:
        return None
    found = await store.find(url.removeprefix("/media/").removesuffix(".webp"))
    assert found is not None, channel
    with Image.open(io.BytesIO(found[1].read_bytes()), formats=["WEBP"]) as image:
        image.load()
        return image.size
