"""A machine with none of the Debian packages passes `make test`: what needs them is skipped by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.programs import PACKAGES

PROGRAMS = {
    "chromium": {"chromium"},
    "nginx": {"nginx"},
    "postgresql": {"postgres", "initdb", "pg_isready", "pg_dump", "pg_restore", "psql"},
    "prometheus": {"prometheus", "promtool"},
    "redis-server": {"redis-server", "redis-cli"},
}
"""Package -> its programs that tests run."""
USERS = ("tests/infra", "tests/serve/test_page.py")
"""Where the tests are that run them."""


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to all programs of this machine but those of the Debian packages."""
    folder = tmp_path_factory.mktemp("bare") / "bin"
    folder.mkdir()
    hidden = set().union(*PROGRAMS.values())
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in Path(directory).glob("*"):
            link = folder / program.name
            if program.name not in hidden and not link.is_symlink():
                link.symlink_to(program)
    return folder


def test_every_package_is_listed_with_its_programs(root: Path) -> None:
    lines = (root / PACKAGES).read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == sorted(PROGRAMS)


def test_without_the_programs_every_test_passes_or_is_skipped_by_name(root: Path, bare_path: Path) -> None:
    this_file = Path(__file__).relative_to(root)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-rs", *USERS]
    environment = os.environ | {"PATH": str(bare_path)}
    done = subprocess.run(
        [*command, f"--ignore={this_file}"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:]
    skipped = set(re.findall(rf"not installed \({PACKAGES}\): (.*)", done.stdout))
    named = {name for line in skipped for name in line.split(", ")}
    assert {"redis-server", "prometheus", "promtool", "postgres"} <= named, done.stdout[-4000:]
    assert "no chromium on this machine" in done.stdout
