"""Decoding images nobody vouches for: a small pool of processes that can be killed.

This file is both sides. The gateway imports ``ImageDecoder``; each worker runs the file as a
program of its own, isolated from the environment (so it holds no secret), with limits on memory
and none of the gateway's code. An image that makes a worker exceed its limits, crash or hang
costs that worker and nothing else.

A worker reads images from its standard input and writes answers to its standard output, each
part led by its length in four bytes: an image is its format and its bytes; an answer is a JSON
object and then, unless that names a problem, the bytes of each rendition.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import resource
import struct
import sys
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from PIL import Image, ImageOps

WIDTHS: Final = (32, 64, 128, 256, 512)
MAX_PIXELS: Final = 4 * 1024 * 1024
MAX_SIDE: Final = 8192
_QUALITY: Final = 88
_LENGTH: Final = struct.Struct(">I")
_MAX_MEMORY_BYTES: Final = 768 * 1024 * 1024
_TIME_LIMIT_SECONDS: Final = 5.0
_START_LIMIT_SECONDS: Final = 20.0
_TOO_MANY_PIXELS: Final = f"The image has more than {MAX_PIXELS} pixels"
_DAMAGED: Final = "The image is damaged or cut off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendition:
    """One WebP image; ``width`` and ``height`` are in pixels."""

    width: int
    height: int
    content: bytes


class ImageRefused(Exception):
    """The bytes are not an image that may be shown; ``problem`` says why, for a person."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class DecoderUnavailable(Exception):
    """No worker can be started; nothing is known of the image."""


class ImageDecoder:
    """A pool of worker processes, started when first needed.

    Args:
        workers: How many images are decoded at once.
        time_limit_seconds: How long one image may take.
    """

    def __init__(
        self, *, workers: int = 2, time_limit_seconds: float = _TIME_LIMIT_SECONDS
    ) -> None:
        self._slots = asyncio.Semaphore(workers)
        self._time_limit_seconds = time_limit_seconds
        self._idle: list[_Worker] = []

    async def decode(self, content: bytes, *, image_format: str) -> Sequence[Rendition]:
        """Return the image at every width kept, narrowest first.

        The first frame, turned as its EXIF orientation says, without metadata. Widths are those
        of ``WIDTHS`` the image is wider than, and then its own width or the largest of them.

        Args:
            content: The image file.
            image_format: What it is according to its first bytes, in Pillow's words.

        Raises:
            ImageRefused: It is damaged, too large, or harms what decodes it.
            DecoderUnavailable: No worker could be started.
        """
        async with self._slots:
            worker = self._take_idle()
            if worker is not None:
                with contextlib.suppress(_WorkerDied):  # it may have died while it was idle
                    return await self._ask(worker, content, image_format)
            try:
                return await self._ask(await _start_worker(), content, image_format)
            except _WorkerDied:
                raise ImageRefused("The image stopped the program that decodes it") from None

    async def close(self) -> None:
        """Stop every worker; call it when nothing is being decoded."""
        while self._idle:
            await self._idle.pop().kill()

    def _take_idle(self) -> _Worker | None:
        return self._idle.pop() if self._idle else None

    async def _ask(self, worker: _Worker, content: bytes, image_format: str) -> Sequence[Rendition]:
        async with worker.killed_unless_answered():
            try:
                async with asyncio.timeout(self._time_limit_seconds):
                    answer = await worker.ask(content, image_format)
            except TimeoutError:
                seconds = self._time_limit_seconds
                raise ImageRefused(f"The image takes longer than {seconds:g} s to decode") from None
        self._idle.append(worker)
        if isinstance(answer, str):
            raise ImageRefused(answer)
        return answer


class _WorkerDied(Exception):
    """The worker ended, or closed its pipes, before it answered."""


class _Worker:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:  # pragma: no cover - for the types
            raise DecoderUnavailable("The worker has no pipes")
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout

    @contextlib.asynccontextmanager
    async def killed_unless_answered(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await asyncio.shield(self.kill())
            raise

    async def ask(self, content: bytes, image_format: str) -> Sequence[Rendition] | str:
        try:
            for part in (image_format.encode(), content):
                self._stdin.write(_LENGTH.pack(len(part)) + part)
            await self._stdin.drain()
            header = json.loads(await self._read_part())
            if "problem" in header:
                return str(header["problem"])
            return [
                Rendition(width=width, height=height, content=await self._read_part())
                for width, height in header["sizes"]
            ]
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _WorkerDied from error

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._stdin.close()
        await self._stdout.read()  # to its end, so that both pipes are closed when we return
        await self._process.wait()

    async def _read_part(self) -> bytes:
        (length,) = _LENGTH.unpack(await self._stdout.readexactly(_LENGTH.size))
        return await self._stdout.readexactly(length)


async def _start_worker() -> _Worker:
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # neither the current folder nor the environment choose what it imports
            __file__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            start_new_session=True,  # an interrupt from the terminal is for the gateway to handle
        )
    except OSError as error:
        raise DecoderUnavailable("No image decoder could be started") from error
    worker = _Worker(process)
    async with worker.killed_unless_answered():
        try:
            async with asyncio.timeout(_START_LIMIT_SECONDS):
                await worker.ask(b"", "PNG")  # any answer shows that it is up
        except (TimeoutError, _WorkerDied) as error:
            raise DecoderUnavailable("The image decoder does not start") from error
    return worker


# What follows runs in the worker.


def render(content: bytes, image_format: str) -> Iterator[Rendition]:
    """Decode an image of the one given format and yield it at every width kept, narrowest first.

    Raises:
        ImageRefused: It is damaged, too large, or needs too much memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=[image_format]) as image:
                _refuse_size(image.size)
                image.load()
                _refuse_size(image.size)  # an ICO's images may be larger than its directory says
                upright = ImageOps.exif_transpose(_in_plain_colours(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageRefused(_TOO_MANY_PIXELS) from None
    except MemoryError:  # pragma: no cover - happens in a worker only, where a test makes it
        raise ImageRefused("The image needs too much memory") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error):
        raise ImageRefused(_DAMAGED) from None
    upright.info.clear()  # colour profile, EXIF, XMP and comments are not passed on
    for width in [*(width for width in WIDTHS if width < upright.width), upright.width]:
        if width <= WIDTHS[-1]:
            yield _at_width(upright, width)


def _refuse_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageRefused(_TOO_MANY_PIXELS)
    if max(size) > MAX_SIDE:
        raise ImageRefused(f"The image is longer than {MAX_SIDE} pixels on one side")


def _in_plain_colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which a plain conversion would cut at 255
        return image.convert("I").point([level // 256 for level in range(65536)], "L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _at_width(image: Image.Image, width: int) -> Rendition:
    height = max(1, round(image.height * width / image.width))
    resized = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    written = io.BytesIO()
    resized.save(written, "WEBP", quality=_QUALITY, method=4)
    return Rendition(width=width, height=height, content=written.getvalue())


def answer_images(images: BinaryIO, answers: BinaryIO) -> None:
    """Answer one image after the other until there are no more."""
    while (image_format := _read_part(images)) is not None:
        content = _read_part(images) or b""
        try:
            renditions = list(render(content, image_format.decode()))
        except ImageRefused as refusal:
            _write_part(answers, json.dumps({"problem": refusal.problem}).encode())
        else:
            sizes = [(rendition.width, rendition.height) for rendition in renditions]
            _write_part(answers, json.dumps({"sizes": sizes}).encode())
            for rendition in renditions:
                _write_part(answers, rendition.content)
        answers.flush()


def _read_part(stream: BinaryIO) -> bytes | None:
    length = stream.read(_LENGTH.size)
    if len(length) < _LENGTH.size:
        return None
    return stream.read(*_LENGTH.unpack(length))


def _write_part(stream: BinaryIO, part: bytes) -> None:
    stream.write(_LENGTH.pack(len(part)))
    stream.write(part)


def main() -> None:  # pragma: no cover - runs in a worker only, as tests make it do
    """Run as a worker until standard input ends, which it does when the gateway does."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # writes no file
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)  # requests come first
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    answer_images(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":  # pragma: no cover - the same
    main()
