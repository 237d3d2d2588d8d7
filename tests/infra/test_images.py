"""The images' file: linted, and what it installs is what was tested."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def dockerfile(root: Path) -> Path:
    return root / "infra" / "images" / "Dockerfile"


def test_no_fault_by_hadolint(dockerfile: Path) -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", dockerfile], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_targets_and_arguments_are_those_that_are_told(dockerfile: Path, versions: dict[str, str]) -> None:
    text = dockerfile.read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\w+)", text, re.MULTILINE))
    told = re.findall(r"--target (\w+) --build-arg (\w+) --tag \$(\w+)", text)
    assert {target for target, _, _ in told} <= targets
    assert all(name in versions for _, *names in told for name in names)
    assert "FROM ${PYTHON_IMAGE}" in text
    assert text.rstrip().endswith("USER 1000")


def test_python_and_packages_are_the_locks(
    root: Path, versions: dict[str, str], locked: dict[str, str]
) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    python = re.fullmatch(r"python:([\d.]+)-.*", versions["PYTHON_IMAGE"])
    assert python is not None
    assert SpecifierSet(project["requires-python"]).contains(python[1])
    assert versions["OPENBA_IMAGE"] == f"openba:{project['version']}-cpu"
    wanted = [
        Requirement(text) for text in project["optional-dependencies"]["cluster"] + project["dependencies"]
    ]
    wrong = [
        str(r)
        for r in wanted
        if not r.specifier.contains(locked[canonicalize_name(r.name)], prereleases=True)
    ]
    assert wrong == []


def test_no_secret_goes_into_an_image(root: Path) -> None:
    assert {"infra/.env", ".openba", ".venv*"} <= set((root / ".dockerignore").read_text().split())
    assert "infra/.env" in (root / ".gitignore").read_text().split()
