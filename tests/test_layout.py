import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import graphql

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("gateway", "schema", "resolvers", "sessions", "storage")


def _tracked() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    return (ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file())


def test_the_graphql_folder_holds_no_python_so_that_the_library_of_that_name_is_found() -> None:
    assert list((ROOT / "graphql").rglob("*.py")) == []
    assert hasattr(graphql, "parse")


def test_every_package_is_in_the_wheel_and_nothing_else_is() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = settings["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert tuple(wheel["packages"]) == PACKAGES
    assert wheel["force-include"] == {"graphql/schema.graphql": "schema/schema.graphql"}


def test_no_module_is_named_after_nothing() -> None:
    vague = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "core.py", "misc.py"}

    assert [path for path in _tracked() if path.name in vague] == []


def test_lock_files_carry_versions_and_hashes_and_no_addresses() -> None:
    for name in ("requirements.lock", "requirements-dev.lock", "requirements-bulk.lock"):
        text = (ROOT / name).read_text()
        pinned = re.findall(r"^[a-z0-9][\w.\-]*(?:\[[\w,\-]+\])?==\S+.*\\$", text, re.MULTILINE)
        unpinned = re.findall(r"^[a-z0-9][^\n]*[^\\\n]$", text, re.MULTILINE)

        assert len(pinned) > 30, name
        assert unpinned == [], name
        assert "--hash=sha256:" in text, name
        assert "://" not in text, name
        assert "--index-url" not in text, name


def test_the_npm_lock_carries_hashes_and_no_addresses() -> None:
    for path in _tracked():
        if path.name == "package-lock.json":
            text = path.read_text()
            assert '"integrity"' in text, path
            assert '"resolved"' not in text, path


def test_every_runtime_dependency_has_a_decision_record() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    records = "\n".join(path.read_text() for path in (ROOT / "docs" / "adr").glob("*.md"))

    names = {re.split(r"[\[<>=]", entry)[0] for entry in [*project["dependencies"], *extras]}
    assert sorted(name for name in names if f"`{name}`" not in records) == []


def test_every_relative_link_in_the_documentation_leads_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in _tracked()
        if page.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]

    assert broken == []


def test_every_platform_has_its_contract_test_and_its_page() -> None:
    modules = [
        path.stem
        for path in (ROOT / "sessions" / "platforms").glob("*.py")
        if path.stem != "__init__"
    ]

    assert modules != []
    for name in modules:
        assert (ROOT / "tests" / "contract" / f"test_{name}.py").exists(), name
        assert (ROOT / "docs" / "platforms" / f"{name}.md").exists(), name


def test_no_file_names_a_private_place_or_carries_a_private_key() -> None:
    private = re.compile(
        r"/home/[a-z]+/|/Users/[A-Za-z]+/|BEGIN (?:RSA |EC |OPENSSH )?PRIVATE KEY"
        r"|(?:extra-)?index-url\s*=|AKIA[0-9A-Z]{16}|ghp_[0-9A-Za-z]{36}"
    )
    found = []
    for path in _tracked():
        if path == Path(__file__) or "explorer_assets" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match}" for match in private.findall(text)]

    assert found == []
