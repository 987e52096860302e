import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from graphql import build_schema, parse, validate
from starlette.applications import Starlette
from starlette.routing import Mount

from gateway import explorer

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "gateway" / "explorer_assets"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = Starlette(routes=[*explorer.routes(), Mount("/below", routes=explorer.routes())])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://gateway"
    ) as client:
        yield client


async def test_the_page_and_everything_it_names_come_from_the_gateway_itself(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/explorer")

    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'data-endpoint="/graphql"' in page.text
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert named == ["data:,", "/explorer/explorer.css", "/explorer/explorer.js"]
    for path in named[1:]:
        assert (await client.get(path)).status_code == 200


async def test_below_a_path_the_page_names_everything_with_that_path(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/below/explorer")

    assert 'data-endpoint="/below/graphql"' in page.text
    assert 'src="/below/explorer/explorer.js"' in page.text


async def test_the_page_may_run_its_own_scripts_and_load_nothing_from_elsewhere(
    client: httpx.AsyncClient,
) -> None:
    page = await client.get("/explorer")

    policy = dict(
        part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "connect-src": "'self'",
        "font-src": "'self' data:",
        "img-src": "'self' data:",
        "script-src": "'self'",
        "style-src": "'self' 'unsafe-inline'",
        "worker-src": "'self'",
    }
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert re.findall(r"<script(?! src=)|\son\w+=|<style", page.text) == []


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("explorer.js", "text/javascript; charset=utf-8"),
        ("explorer.css", "text/css; charset=utf-8"),
        ("editor.worker.js", "text/javascript; charset=utf-8"),
        ("graphql.worker.js", "text/javascript; charset=utf-8"),
        ("json.worker.js", "text/javascript; charset=utf-8"),
        ("LICENSES.txt", "text/plain; charset=utf-8"),
    ],
)
async def test_assets_are_served_whole_zipped_or_not_and_once(
    client: httpx.AsyncClient, name: str, media_type: str
) -> None:
    plain = await client.get(f"/explorer/{name}", headers={"Accept-Encoding": "identity"})
    zipped = await client.get(f"/explorer/{name}", headers={"Accept-Encoding": "gzip"})
    again = await client.get(f"/explorer/{name}", headers={"If-None-Match": plain.headers["etag"]})

    assert plain.status_code == zipped.status_code == 200
    assert plain.headers["content-type"] == media_type
    assert plain.content == zipped.content == (ASSETS / name).read_bytes()
    assert "content-encoding" not in plain.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < len(gzip.compress(plain.content)) + 100
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name", ["index.html", "README.md", "build/package.json", "..%2fapp.py", "other.js"]
)
async def test_other_files_are_not_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/explorer/{name}")).status_code == 404


def test_every_asset_is_there_and_together_they_stay_small() -> None:
    files = [path for path in ASSETS.iterdir() if path.is_file()]

    assert {path.name for path in files} == explorer._NAMES | {"index.html", "README.md"}
    assert sum(path.stat().st_size for path in files) < 6 * 1024 * 1024


def test_the_query_the_explorer_opens_with_is_one_the_schema_answers() -> None:
    source = (ASSETS / "build" / "src" / "explorer.jsx").read_text(encoding="utf-8")
    found = re.search(r"DEFAULT_QUERY = `([^`]+)`", source)
    assert found is not None
    schema = build_schema((ROOT / "graphql" / "schema.graphql").read_text(encoding="utf-8"))

    assert validate(schema, parse(found.group(1))) == []
    bundle = (ASSETS / "explorer.js").read_text(encoding="utf-8")
    assert "Welcome to learning-gateway" in bundle
    assert "sources {" in bundle
