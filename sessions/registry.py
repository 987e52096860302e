"""Which platforms there are: our own modules and those other packages add.

Ours are the modules of ``sessions/platforms``; another package names its own as entry points of
the group ``learning_gateway.platforms``, each leading to a ``Platform``. One of ours that cannot
be imported is a defect and stops the start; one of another package is reported and left out.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import structlog

import sessions.platforms
from sessions.base import Platform

ENTRY_POINT_GROUP: Final = "learning_gateway.platforms"

_log = structlog.get_logger(__name__)


class PlatformNameTaken(Exception):
    """Two platforms have the same name; the message names where both come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenPlatform:
    """An entry point that was left out, and why."""

    origin: str
    problem: str


class Registry:
    """Platforms by name; made by ``discover``.

    Args:
        found: Platforms, each with where it comes from.
        broken: What was left out.

    Raises:
        PlatformNameTaken: Two of them have the same name.
    """

    def __init__(
        self,
        found: Iterable[tuple[str, Platform]],
        *,
        broken: Sequence[BrokenPlatform] = (),
    ) -> None:
        self.broken = tuple(broken)
        origins: dict[str, str] = {}
        platforms: dict[str, Platform] = {}
        for origin, platform in found:
            if platform.name in platforms:
                raise PlatformNameTaken(
                    f"Two platforms are named {platform.name}: "
                    f"one in {origins[platform.name]}, one in {origin}"
                )
            platforms[platform.name] = platform
            origins[platform.name] = origin
        self._platforms_by_name: Mapping[str, Platform] = dict(sorted(platforms.items()))

    @classmethod
    def discover(cls) -> Registry:
        """Find every platform of this installation.

        Raises:
            PlatformNameTaken: Two of them have the same name.
        """
        ours = [(module, _own_platform(module)) for module in _own_modules()]
        theirs, broken = load_entry_points(entry_points(group=ENTRY_POINT_GROUP))
        return cls([*ours, *theirs], broken=broken)

    def get(self, name: str) -> Platform | None:
        """Return the platform of that name, or ``None`` when there is none."""
        return self._platforms_by_name.get(name)

    def names(self) -> Sequence[str]:
        """Return the names of all platforms in alphabetical order."""
        return tuple(self._platforms_by_name)


def load_entry_points(
    points: Iterable[EntryPoint],
) -> tuple[Sequence[tuple[str, Platform]], Sequence[BrokenPlatform]]:
    """Load other packages' platforms, leaving out and logging those that cannot be used."""
    found: list[tuple[str, Platform]] = []
    broken: list[BrokenPlatform] = []
    for point in points:
        package = "an unknown package" if point.dist is None else point.dist.name
        origin = f"{point.value} of {package}"
        loaded = _loaded(point, origin)
        if isinstance(loaded, Platform):
            found.append((origin, loaded))
            continue
        broken.append(loaded)
        _log.error("platform_left_out", origin=loaded.origin, problem=loaded.problem)
    return found, broken


def _loaded(point: EntryPoint, origin: str) -> Platform | BrokenPlatform:
    try:
        loaded = point.load()
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError, NameError) as error:
        return BrokenPlatform(origin=origin, problem=f"{type(error).__name__}: {error}")
    if not isinstance(loaded, Platform):
        return BrokenPlatform(
            origin=origin, problem=f"It is of type {type(loaded).__name__}, not a Platform"
        )
    return loaded


def _own_modules() -> Sequence[str]:
    package = sessions.platforms
    return [
        f"{package.__name__}.{module.name}"
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    ]


def _own_platform(module: str) -> Platform:
    platform = importlib.import_module(module).PLATFORM
    if not isinstance(platform, Platform):
        raise TypeError(f"{module}.PLATFORM is not a Platform")
    return platform
