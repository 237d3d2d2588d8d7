"""A small pipeline through all real parts: Prefect, Ray, DeepSpeed, MLflow, registry, report.

One run with a worker killed in Stage II, then once more from the cache; the tests look at what
these two runs left behind.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from openba.config import CONFIGS
from openba.report.evolution import evolution
from openba.train.log import read_rows
from tests.harness.site import SMALL

pytestmark = pytest.mark.timeout(900)  # the fixture alone takes 2.5 minutes on two quiet cores

OPENBA = str(Path(sys.executable).with_name("openba"))
PIPELINE = """
extends: base
name: small
runtime: {train: {checkpoint_every: 2 steps}}
stages: {stage2: {budget: 8 steps, evaluate_every: 8 steps}, stage3: {keep_every: 2 steps}}
"""
EXPERT = """
title: Headlines, the sixth expert
register_as: openba-headline
tasks: [bbc-title]
benchmarks: [bbc-title]
train: {extends: ../pretrain/finetune}
"""


LONGER = ["--until", "stage1"]
"""A Stage I of its own, long enough to be stopped."""
for setting in (
    "stages.stage1.seed=5",
    "stages.stage1.budget=100 steps",
    "stages.stage1.evaluate_every=50 steps",
):
    LONGER += ["--set", setting]


@dataclass
class Story:
    home: Path
    pipeline: Path
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    second_seconds: float
    killed: int

    def report(self) -> Any:
        return json.loads((self.home / "report" / "report.json").read_text(encoding="utf-8"))

    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=f"sqlite:///{self.home / 'mlflow.db'}")

    def manifest(self, step: str) -> Any:
        return json.loads(next(self.home.glob(f"store/{step}/*/manifest.json")).read_text())


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_"))}
    return kept | {"OPENBA_HOME": str(home)}


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [OPENBA, "run", *arguments],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, error = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def kill(process: subprocess.Popen[str], word: str) -> int:
    """kill -9 of the first process of a run with the word in its command line; its id, or 0."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            if word in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
                return child.pid
    return 0


def kill_a_worker(process: subprocess.Popen[str], home: Path) -> int:
    """kill -9 of a Ray Train worker once Stage II has done 3 steps, so after a checkpoint."""
    while process.poll() is None:
        rows = [len(read_rows(path)) for path in home.glob("work/stage2/*/metrics.jsonl")]
        if rows and 3 <= rows[0] < 8 and (killed := kill(process, "RayTrainWorker")):
            return killed
        time.sleep(0.02)
    return 0


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("s")
    home, configs = folder / "home", folder / "configs"
    (configs / "pipeline" / "experts").mkdir(parents=True)
    (configs / "pretrain").symlink_to(CONFIGS / "pretrain")
    pipeline = configs / "pipeline" / "small.yaml"
    pipeline.with_name("base.yaml").write_text(SMALL)
    pipeline.write_text(PIPELINE)
    (configs / "pipeline" / "experts" / "headline.yaml").write_text(
        EXPERT.replace("../pretrain", "../../pretrain")
    )
    process = start(home, str(pipeline))
    killed = kill_a_worker(process, home)
    first = finish(process)
    assert first.returncode == 0, first.stderr[-3000:] + first.stdout[-3000:]
    clock = time.monotonic()
    second = finish(start(home, str(pipeline)))
    return Story(home, pipeline, first, second, time.monotonic() - clock, killed)


def test_every_step_is_built_once_and_then_cached(story: Story) -> None:
    assert story.second.returncode == 0, story.second.stderr
    assert {step["state"] for step in story.report()["steps"]} == {"cached"}
    assert "failed" not in story.first.stdout


def test_a_killed_worker_changes_nothing(story: Story, tmp_path: Path) -> None:
    """The group is started again from its checkpoint; every step is in the log exactly once."""
    facts = story.manifest("stage2")["facts"]
    assert story.killed
    assert facts["resumed"] == 1
    folder = next(story.home.glob("store/stage2/*"))
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == list(range(1, 9))


def test_one_mlflow_run_per_step_all_finished(story: Story) -> None:
    client = story.client()
    experiment = client.get_experiment_by_name("openba-small")
    runs = client.search_runs([experiment.experiment_id])
    names = [run.data.tags["openba.step"] for run in runs]
    assert sorted(names) == sorted(step["name"] for step in story.report()["steps"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    stage2 = next(run for run in runs if run.data.tags["openba.step"] == "stage2")
    steps = [m.step for m in client.get_metric_history(stage2.info.run_id, "loss")]
    assert sorted(steps) == list(range(1, 9)), "the resumed steps went into the same run, none twice"
    assert all(len(run.data.metrics) <= 80 for run in runs)


def test_the_registry_has_candidate_and_champion(story: Story) -> None:
    client = story.client()
    for name in ("openba-lm", "openba-flan", "openba-headline"):
        aliases = client.get_registered_model(name).aliases
        assert {alias: str(version) for alias, version in aliases.items()} == {
            "candidate": "1",
            "champion": "1",
        }
    assert all(row["alias"] == ["candidate", "champion"] for row in story.report()["registry"])
    log = read_rows(story.home / "promotions.jsonl")
    assert {row["model"] for row in log} == {"openba-lm", "openba-flan", "openba-headline"}


def test_a_champion_generates_in_a_clean_process(story: Story, tmp_path: Path) -> None:
    script = (
        "import mlflow; model = mlflow.pyfunc.load_model('models:/openba-flan@champion');"
        "answer = model.predict(['英文：cat\\n中文：', 'Translate: 猫'], params={'max_new_tokens': 5});"
        "assert len(answer) == 2 and all(isinstance(text, str) for text in answer), answer; print('answered')"
    )
    env = environment(story.home) | {"MLFLOW_TRACKING_URI": f"sqlite:///{story.home / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("answered"), done.stderr[-2000:]


def test_no_weight_is_below_the_tracking_folder(story: Story) -> None:
    artifacts = [
        path for path in story.home.rglob("*") if "mlruns" in path.parts or "artifacts" in path.parts
    ]
    assert not [path for path in artifacts if path.suffix in (".safetensors", ".pt", ".bin")]


def test_the_report_is_one_page_that_loads_nothing(story: Story) -> None:
    page = (story.home / "report" / "report.html").read_text(encoding="utf-8")
    assert "Headlines, the sixth expert" in page
    for loading in ("<script src", "<link", "@import", "url(http", 'src="http'):
        assert loading not in page
    titles = {row["step"] for row in story.report()["training"]}
    assert titles == {"stage1", "stage2", "stage3", "headline"}


def test_figure_6_has_a_point_within_a_stage(story: Story) -> None:
    (row,) = story.report()["evaluations_between"]
    assert (row["model"], row["step"]) == ("stage3", 2)
    (line,) = evolution(story.report()).values()
    assert [point["step"] for point in line] == [4 + 8 + 2, 4 + 8 + 4]
    assert "Figure 6 with ours" in (story.home / "report" / "report.html").read_text(encoding="utf-8")


def test_the_end_says_where_to_look(story: Story) -> None:
    for label in ("Report", "Prefect run", "MLflow experiment", "Ray dashboard"):
        assert label in story.first.stdout
    assert "stage1 " in story.first.stdout


def test_no_process_of_the_run_is_left(story: Story) -> None:
    ours = [
        p for p in psutil.process_iter(["cmdline"]) if str(story.home) in " ".join(p.info["cmdline"] or [])
    ]
    assert ours == []


@pytest.fixture(scope="module")
def stopped(story: Story) -> subprocess.CompletedProcess[str]:
    """Ctrl-C as soon as it trains."""
    process = start(story.home, str(story.pipeline), *LONGER)
    deadline = time.monotonic() + 120
    while not list(story.home.glob("work/stage1/*/metrics.jsonl")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    return finish(process)


def longer_runs(story: Story) -> list[Any]:
    """MLflow's runs of that Stage I."""
    experiment = story.client().get_experiment_by_name("openba-small")
    runs = story.client().search_runs([experiment.experiment_id])
    return [run for run in runs if run.data.params.get("train.seed") == "5"]


def test_ctrl_c_stops_everything_and_keeps_what_is_built(
    story: Story, stopped: subprocess.CompletedProcess[str]
) -> None:
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.strip().splitlines()[-1].startswith("openba: stopped")
    test_no_process_of_the_run_is_left(story)
    assert [run.info.status for run in longer_runs(story)] == ["KILLED"]
    assert (next(story.home.glob("store/mixture/*")) / "manifest.json").exists()


@pytest.fixture(scope="module")
def without_raylet(
    story: Story, stopped: subprocess.CompletedProcess[str]
) -> subprocess.CompletedProcess[str]:
    """The run after that one: kill -9 of Ray's own process as soon as it trains."""
    (attempts,) = story.home.glob("work/stage1/*/attempts.jsonl")
    process = start(story.home, str(story.pipeline), *LONGER)
    deadline = time.monotonic() + 300  # a busy machine takes two minutes
    while len(read_rows(attempts)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    assert kill(process, "raylet/raylet")
    return finish(process)


def test_case_t16_a_dead_raylet_is_one_line(
    story: Story, without_raylet: subprocess.CompletedProcess[str]
) -> None:
    assert without_raylet.returncode == 2, without_raylet.stderr
    (line,) = without_raylet.stderr.strip().splitlines()
    assert "Ray's head ended during the run" in line
    test_no_process_of_the_run_is_left(story)


def test_fault_13_the_next_run_goes_on_in_the_same_mlflow_run(
    story: Story, without_raylet: subprocess.CompletedProcess[str]
) -> None:
    (work,) = story.home.glob("work/stage1/*/events.jsonl")
    (event,) = (row for row in read_rows(work) if row["event"] == "stopped")
    assert event["saved"]
    done = finish(start(story.home, str(story.pipeline), *LONGER))
    assert done.returncode == 0, done.stderr
    folder = story.home / "store" / "stage1" / work.parent.name
    attempts = read_rows(folder / "attempts.jsonl")
    assert [row["from"] for row in attempts][:2] == [0, event["step"]]
    assert len(attempts) == 3
    assert attempts[2]["from"] >= event["step"]
    (run,) = longer_runs(story)
    assert run.info.status == "FINISHED"
    for key in ("loss", "tokens_per_second"):
        steps = [metric.step for metric in story.client().get_metric_history(run.info.run_id, key)]
        assert sorted(steps) == list(range(1, 101)), "every step once"
