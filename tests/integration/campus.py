"""A gateway over the example of a third-party platform, found as an installed package is."""

import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from running_gateway import RunningGateway, running_gateway

from simulators.campus import KEY, Campus, running

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "third-party-platform"


@asynccontextmanager
async def gateway_over_campus(folder: Path, campus: Campus) -> AsyncIterator[RunningGateway]:
    """Serve a gateway whose provider 1 is the campus; what its registration called is forgotten."""
    async with running(campus) as url:
        with _installed(folder / "packages"):
            async with running_gateway(folder, max_age_seconds="60") as gateway:
                answer = await gateway.add_provider(id="1", type="campus", url=url, api_key=KEY)
                assert answer.status_code == 200, answer.text
                campus.calls.clear()
                yield gateway


@contextmanager
def _installed(folder: Path) -> Iterator[None]:
    """Lay the example out as an installed package is: its module, and what names it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text("utf-8"))["project"]
    metadata = folder / f"campus_platform-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    ((group, points),) = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    before = list(sys.path)
    sys.path += [str(PACKAGE), str(folder)]
    try:
        yield
    finally:
        sys.path[:] = before
        sys.modules.pop("campus_platform", None)
