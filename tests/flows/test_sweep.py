"""`openba sweep` on a real Ray: every trial is trained, compared, drawn, and found again by `openba run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.site import SMALL

pytestmark = pytest.mark.timeout(900)
OPENBA = str(Path(sys.executable).with_name("openba"))
RATES = ("1e-3", "1e-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small pipeline and an OPENBA_HOME beside it."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.yaml").write_text(f"{SMALL}\nruntime: {{train: {{workers: 1}}}}\n", encoding="utf-8")
    (folder / "experts").mkdir()
    return folder


def openba(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENBA_HOME": str(folder / "home"), "COLUMNS": "200"}
    return subprocess.run([OPENBA, *arguments], env=environment, capture_output=True, text=True, cwd=folder)


@pytest.fixture(scope="module")
def swept(folder: Path) -> subprocess.CompletedProcess[str]:
    settings = f"stages.stage1.optim.lr={','.join(RATES)}"
    return openba(folder, "sweep", "small.yaml", "--set", settings, "--until", "stage1")


def test_every_trial_is_trained_and_the_lowest_loss_comes_first(
    folder: Path, swept: subprocess.CompletedProcess[str]
) -> None:
    assert swept.returncode == 0, swept.stderr
    rows = json.loads((folder / "home" / "sweeps" / "small" / "stage1" / "sweep.json").read_text())
    assert {row["values"]["stages.stage1.optim.lr"] for row in rows} == set(RATES)
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses)
    assert all(row["standard_error"] > 0 and row["seconds"] > 0 for row in rows)
    assert (
        f"best: stages.stage1.optim.lr={rows[0]['values']['stages.stage1.optim.lr']}: held-out loss"
        in swept.stdout
    )
    picture = (folder / "home" / "sweeps" / "small" / "stage1" / "sweep.svg").read_text()
    assert all(f"stages.stage1.optim.lr={rate}" in picture for rate in RATES)


def test_a_run_with_a_trials_setting_reuses_it(folder: Path, swept: subprocess.CompletedProcess[str]) -> None:
    planned = openba(folder, "plan", "small.yaml", "--set", f"stages.stage1.optim.lr={RATES[1]}", "--json")
    states = {step["name"]: step["state"] for step in json.loads(planned.stdout)["steps"]}
    assert states["stage1"] == "hit"
    assert states["stage2"] == "miss"


def test_a_trial_that_fails_leaves_the_others_their_rows(folder: Path) -> None:
    """The second trial's batch cannot be shared out by two workers; the first trains all the same."""
    failing = [
        "--set",
        "stages.stage1.seed=9",
        "--set",
        "stages.stage1.skip_loss_above=10000,0.001",
        "--until",
        "stage1",
    ]
    done = openba(folder, "sweep", "small.yaml", *failing)
    assert done.returncode != 0
    rows = json.loads((folder / "home" / "sweeps" / "small" / "stage1" / "sweep.json").read_text())
    reached = {row["values"]["stages.stage1.skip_loss_above"]: row["loss"] for row in rows}
    assert reached["10000"] is not None
    assert reached["0.001"] is None
