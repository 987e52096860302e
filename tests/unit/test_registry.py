"""Which platforms there are, and what happens to broken and doubled ones."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from sessions.base import Platform, ProviderSession
from sessions.registry import (
    ENTRY_POINT_GROUP,
    PlatformNameTaken,
    Registry,
    load_entry_points,
)

MODULE = """
from sessions.base import Platform, ProviderSession

PLATFORM = Platform(
    name="theirs", title="Theirs", session=ProviderSession, credential_fields=(),
    capabilities=frozenset(),
)
NUMBER = 7
"""


@pytest.fixture
def their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "their_platform.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "their_broken_platform.py").write_text("import missing_library\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("their_platform", "their_broken_platform"):
        sys.modules.pop(name, None)


def platform(name: str) -> Platform:
    return Platform(
        name=name,
        title=name.title(),
        session=ProviderSession,  # type: ignore[type-abstract] # nobody makes one here
        credential_fields=(),
        capabilities=frozenset(),
    )


def point(value: str) -> EntryPoint:
    return EntryPoint(name="x", value=value, group=ENTRY_POINT_GROUP)


def test_our_own_platforms_are_found_in_their_folder() -> None:
    registry = Registry.discover()

    folder = Path(sys.modules["sessions.platforms"].__path__[0])
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    modules |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert set(registry.names()) == modules
    assert all(registry.get(name) is not None for name in modules)


def test_names_are_in_alphabetical_order() -> None:
    registry = Registry([("here", platform("b")), ("here", platform("a"))])

    assert registry.names() == ("a", "b")


def test_an_unknown_platform_is_none() -> None:
    assert Registry([]).get("unknown") is None


def test_two_platforms_of_one_name_are_refused_with_both_origins() -> None:
    ours = platform("kolibri")

    with pytest.raises(
        PlatformNameTaken,
        match="Two platforms are named kolibri: one in sessions, one in their package",
    ):
        Registry([("sessions", ours), ("their package", replace(ours, title="Another"))])


def test_another_packages_platform_is_found_by_its_entry_point(their_package: None) -> None:
    found, broken = load_entry_points([point("their_platform:PLATFORM")])

    assert [(origin, platform.name) for origin, platform in found] == [
        ("their_platform:PLATFORM of an unknown package", "theirs")
    ]
    assert broken == []


def test_broken_platforms_of_others_are_reported_and_left_out(their_package: None) -> None:
    with capture_logs() as logs:
        found, broken = load_entry_points(
            [
                point("their_broken_platform:PLATFORM"),
                point("their_platform:MISSING"),
                point("their_platform:NUMBER"),
                point("their_platform:PLATFORM"),
            ]
        )

    assert [platform.name for _, platform in found] == ["theirs"]
    assert [left_out.problem for left_out in broken] == [
        "ModuleNotFoundError: No module named 'missing_library'",
        "AttributeError: module 'their_platform' has no attribute 'MISSING'",
        "It is of type int, not a Platform",
    ]
    assert [line["event"] for line in logs] == ["platform_left_out"] * 3
    assert Registry(found, broken=broken).broken == tuple(broken)
