"""The images' file: linted, and what it installs is what was tested."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tasks.report import _git


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
    assert "ARG COMMIT" in text
    told = re.findall(r"--target (\w+) --build-arg (\w+) --build-arg COMMIT --tag \$(\w+)", text)
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


@pytest.fixture(scope="module")
def image(root: Path, dockerfile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Dockerfile copies of this checkout, in a folder of its own."""
    folder = tmp_path_factory.mktemp("image")
    for line in re.findall(r"^COPY (.*)$", dockerfile.read_text(), re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            into = folder / source if target == "./" else folder / target
            if (root / source).is_dir():
                shutil.copytree(root / source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(root / source, into)
    return folder


def test_what_is_copied_is_listed_and_allowed(root: Path, dockerfile: Path) -> None:
    """No `COPY . .`; .dockerignore leaves out everything else."""
    copied = {
        source
        for line in re.findall(r"^COPY (.*)$", dockerfile.read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert "." not in copied
    lines = [line for line in (root / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert lines[-3] == "**/.env*"  # after the exceptions, so that none of them lets such a file in


def test_the_copied_files_are_enough_to_plan_and_to_deploy(image: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBA_", "PREFECT_"))}
    environment |= {"PYTHONPATH": str(image), "OPENBA_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "flows.cli", "plan", "tiny", "--json"]
    planned = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr
    load = (
        "import yaml, pathlib, openba\n"
        "from prefect.flows import load_flow_from_entrypoint as load\n"
        f"assert pathlib.Path(openba.__file__).is_relative_to({str(image)!r}), openba.__file__\n"
        f"for row in yaml.safe_load(open({str(image / 'prefect.yaml')!r}))['deployments']:\n"
        "    load(row['entrypoint'], use_placeholder_flow=False)\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", load], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr


def test_the_report_names_the_commit_that_an_image_was_built_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBA_COMMIT", "0123abc")
    assert _git() == {"commit": "0123abc", "dirty": False}
