"""Trackers and runners that a runtime chooses: a real run recorded in JSON lines, without MLflow and Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from tasks.places import kind_of

OPENBA = [sys.executable, "-m", "flows.cli"]
ROOT = Path(__file__).resolve().parents[2]
JSONL = ["--set", "runtime.tracker=jsonl"]


def run(home: Path, until: str, *settings: str) -> list[dict]:
    """Rows of `runs.jsonl` after a run of `tiny`."""
    environment = os.environ | {"OPENBA_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [*OPENBA, "run", "tiny", "--until", until, *JSONL, *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "runs.jsonl" in done.stdout
    return [json.loads(line) for line in (home / "runs.jsonl").read_text().splitlines()]


def test_json_lines_record_each_step_once_and_mlflow_is_not_touched(tmp_path: Path) -> None:
    rows = run(tmp_path, "task-bbc-topic")
    assert [(row["step"], row["event"]) for row in rows] == [
        ("task-bbc-topic", "begun"), ("task-bbc-topic", "finished"),
    ]  # fmt: skip
    begun, finished = rows
    assert begun["fingerprint"] == finished["fingerprint"]
    assert begun["flow_run"] == finished["flow_run"] != ""
    manifest = json.loads((Path(finished["uri"]) / "manifest.json").read_text())
    assert finished["facts"] == manifest["facts"]
    assert run(tmp_path, "task-bbc-topic") == rows, "a step that is reused has its row already"
    (tmp_path / "runs.jsonl").unlink()
    mirrored = run(tmp_path, "task-bbc-topic")
    assert [row["event"] for row in mirrored] == ["finished"]
    assert not (tmp_path / "mlflow.db").exists()


def test_a_failed_step_is_recorded_with_its_folder(tmp_path: Path) -> None:
    environment = os.environ | {"OPENBA_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    setting = "mixture.parts.stage1=100T tokens"
    command = [*OPENBA, "run", "tiny", "--until", "mixture", *JSONL, "--set", setting]
    command += ["--set", "sources=[bbc-news]", "--set", "mixture.shares={en: 1.0}"]
    command += ["--set", "tokenizer.train_characters=200000", "--set", "tokenizer.vocab_size=2000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "mixture.parts.stage1: en is " in done.stderr
    last = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["event"], last["status"]) == ("mixture", "ended", "FAILED")
    assert Path(last["folder"]).parent == tmp_path / "work" / "mixture"


def test_the_runner_of_a_place_is_data() -> None:
    graph = Pipeline(find_pipeline("tiny"), ["runtime.runners.job=local", "runtime.evaluate.workers=1"])
    place = kind_of(graph.step("evaluate-stage2"), graph.config.runtime).place
    assert graph.config.runtime.runners[place] == "local"
    assert graph.config.runtime.runners["worker_group"] == "ray"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("runtime.runners.worker_group=local", "runtime.runners.worker_group: worker groups are Ray Train's"),
        ("runtime.runners.flow=ray", "runtime.runners.flow: these steps need no cluster"),
        ("runtime.tracker=wandb", "runtime.tracker: Input should be 'mlflow' or 'jsonl'"),
    ],
)
def test_a_choice_that_cannot_work_is_refused_in_a_line(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Pipeline(find_pipeline("tiny"), [setting])
    assert "\n" not in str(error.value)
