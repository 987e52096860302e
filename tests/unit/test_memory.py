"""What was freed goes back to the system."""

import re
from pathlib import Path

import pytest

from gateway.memory import find_trim


def test_what_was_freed_between_what_is_held_is_given_back() -> None:
    trim = find_trim()
    if trim is None:
        pytest.skip("no glibc")
    texts = [b"x" * 100_000 for _ in range(1000)]
    held = texts[::50]
    texts.clear()

    before = resident_mib()
    trim(0)

    assert len(held) == 20
    assert before - resident_mib() > 50


def resident_mib() -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))
    assert found is not None
    return int(found[1]) / 1024
