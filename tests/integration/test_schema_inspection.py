"""What ``make inspect`` says of a change of the schema; run where its packages are installed."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

INSPECTOR = Path(__file__).parents[2] / "graphql" / "inspector"
BEFORE = "type Query { user(id: ID!): User, count: Int }\ntype User { id: ID!, email: String }\n"
AFTER = "type Query { user(id: ID!): User, count: Int, more: Int }\ntype User { id: ID! }\n"
BROKEN = "breaks: User.email: Field 'email' was removed from object type 'User'"
ANNOUNCED = BROKEN.replace("breaks", "announced")

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (INSPECTOR / "node_modules").exists(),
    reason="make inspect was never run",
)

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path) -> Git:
    folder = tmp_path / "change"
    folder.mkdir()

    def run(*words: str) -> str:
        named = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        return subprocess.run(
            ["git", *named, *words], cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    run("init", "--quiet", "--initial-branch=main")
    return run


def commit(git: Git, folder: Path, schema: str, changelog: str = "") -> None:
    (folder / "graphql").mkdir(exist_ok=True)
    (folder / "graphql" / "schema.graphql").write_text(schema, encoding="utf-8")
    (folder / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", "A change")


def inspect(folder: Path, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        ["node", INSPECTOR / "inspect.js"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **environment},
    )
    return done.returncode, done.stdout.splitlines()


def test_a_breaking_change_fails_until_the_changelog_announces_it(git: Git, tmp_path: Path) -> None:
    folder = tmp_path / "change"
    commit(git, folder, BEFORE)
    first = inspect(folder)
    commit(git, folder, AFTER, "## Unreleased\n\n## 1.0\n\n- **Breaking:** `User.email` is gone\n")
    silent = inspect(folder)
    outcomes = []
    for name in ("User", "User.email", "User.emai", "User.email.x", "Query"):
        changelog = f"## Unreleased\n\n- Added\n- **Breaking:** `{name}` is gone: ask `x`\n"
        (folder / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
        outcomes.append(inspect(folder))

    base = git("rev-parse", "--short=12", "HEAD~1")
    summary = f"schema: 2 changes since {base}"
    assert first == (0, ["schema: there is none before this one to compare with"])
    assert silent == (1, [BROKEN, summary])
    assert outcomes == [(0, [ANNOUNCED, summary])] * 2 + [(1, [BROKEN, summary])] * 3


def test_a_branch_is_compared_with_where_it_left_main(git: Git, tmp_path: Path) -> None:
    folder = tmp_path / "change"
    commit(git, folder, BEFORE)
    git("checkout", "--quiet", "-b", "feature")
    commit(git, folder, AFTER)
    commit(git, folder, AFTER, "another commit")

    assert inspect(folder)[0] == 1
    assert inspect(folder, BASE="HEAD~1") == (
        0,
        [f"schema: 0 changes since {git('rev-parse', '--short=12', 'HEAD~1')}"],
    )
    assert inspect(folder, BASE="nothing") == (2, [])


def test_a_shallow_clone_reads_the_commit_before_if_it_can(git: Git, tmp_path: Path) -> None:
    folder = tmp_path / "change"
    commit(git, folder, BEFORE)
    commit(git, folder, AFTER)
    for name in ("reaching", "alone"):
        git("clone", "--quiet", "--depth=1", folder.as_uri(), str(tmp_path / name))
    git("-C", str(tmp_path / "alone"), "remote", "set-url", "origin", "file:///nowhere")

    assert inspect(tmp_path / "reaching")[0] == 1
    assert inspect(tmp_path / "alone") == (
        0,
        ["schema: there is none before this one to compare with"],
    )
