"""The wheel, installed where nothing of the repository is: what it holds, and that its command works."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from openba.artifacts import Store
from openba.graph import Pipeline, find_pipeline
from openba.plan import plan

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("openba", "tasks", "flows", "configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as a build writes into the folder that it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SHIPPED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(out.glob("openba-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that has the wheel, and this environment's packages but not the checkout.

    A path that a .pth file adds is not searched for further .pth files, so an editable openba is not found.
    """
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return environment / "bin" / "openba"


def openba(command: Path, folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OPENBA_HOME")}
    done = subprocess.run([command, *arguments], cwd=folder, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for package in SHIPPED:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                place = path.relative_to(ROOT).as_posix()
                expected.add(f"openba/{place}" if package == "configs" else place)
    assert names == expected
    assert {name.split("/")[0] for name in names} == {"openba", "tasks", "flows"}


def test_the_installed_command_plans_in_an_empty_folder_what_the_checkout_plans(
    installed: Path, tmp_path: Path
) -> None:
    planned = json.loads(openba(installed, tmp_path, "plan", "tiny", "--json"))
    ours = json.loads(
        json.dumps(plan(Pipeline(find_pipeline("tiny")), Store(tmp_path / "x", tmp_path / "y")))
    )
    assert planned == ours
    location = "import openba.config; print(openba.config.CONFIGS)"
    python = [installed.with_name("python"), "-c", location]
    shown = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, check=True, env={}).stdout
    assert installed.parents[1] in Path(shown.strip()).parents


def test_the_installed_command_runs_the_first_steps_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    openba(installed, tmp_path, "run", "tiny", "--until", "source-bbc-news")
    (manifest,) = tmp_path.glob(".openba/store/source-bbc-news/*/manifest.json")
    assert json.loads(manifest.read_text())["files"]
    assert json.loads((tmp_path / ".openba/report/report.json").read_text())["pipeline"] == "tiny"
