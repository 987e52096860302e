"""Writes each benchmark's table into its own section of RESULTS.md, with machine and versions."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEADING = (
    "# Results\n\nWritten by the scripts beside this page; each section says how to read it.\n"
)
_LIBRARIES = ("starlette", "uvicorn", "strawberry-graphql", "httpx", "aiohttp", "msgspec")


def write_section(title: str, lines: Sequence[str]) -> None:
    """Print a section, and put it in place of the one with the same title, or at the end."""
    section = "\n".join([f"## {title}", "", *lines, "", f"_{_machine()}_", ""])
    print(section)
    page = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else _HEADING
    start = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    page, found = start.subn(lambda _: section + "\n", page, count=1)
    page = page if found else f"{page.rstrip()}\n\n{section}"
    RESULTS.write_text(page.rstrip() + "\n", encoding="utf-8")


def _machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, {versions}"
    )
