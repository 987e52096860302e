"""What a process holds of memory that it does not use, and how it is given back."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final

from anyio import to_thread

_EVERY_SECONDS: Final = 60.0


async def give_back_memory() -> None:
    """Give back to the system what was freed, now and once a minute, for ever.

    A long read leaves tens of megabytes behind, of bodies and of answers as they were encoded,
    which the C library would keep in case they are wanted again. Where it is not glibc's, it does
    as it likes.
    """
    trim = find_trim()
    while trim is not None:
        await to_thread.run_sync(trim, 0)
        await asyncio.sleep(_EVERY_SECONDS)


def find_trim() -> Callable[[int], int] | None:
    """Return what gives freed memory back, but for so many bytes; ``None`` where nothing does.

    Source:
        https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found
