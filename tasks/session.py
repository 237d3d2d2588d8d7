"""One run of a pipeline: its servers, store, tracking and console, and how a step is built in it.

Owns the lifetime of everything a run starts. Steps run in threads of the flow; those that are
jobs share `parallel_jobs` places. Whatever ends the run, also Ctrl-C, stops its jobs and servers.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from prefect import runtime

from openba.artifacts import Build, Step, materialize
from openba.errors import UserError
from openba.graph import Pipeline
from openba.home import Home
from openba.json_types import JsonObject
from openba.recipes.runtime import RunnerName
from openba.recipes.train import TrainStep
from tasks.fork_server import ForkServer
from tasks.local import LocalPool
from tasks.page import Page
from tasks.places import Runner, Work, kind_of
from tasks.progress import ProgressView
from tasks.services import RayHead
from tasks.tracker import JsonLinesTracker, TrackedRun, Tracker
from tasks.tracking import Tracking

if TYPE_CHECKING:
    from tasks.ray_jobs import RayJobs

_SECONDS_TO_END = 15.0


class Stopped(Exception):
    """The run was asked to stop while a step was being built."""


class Session:
    """A context in which steps of one pipeline are built."""

    _current: Session | None = None

    def __init__(self, pipeline: Pipeline, home: Home, steps: list[Step], flow_run_id: str) -> None:
        self.pipeline, self.home, self.steps = pipeline, home, steps
        self._by_key = {step.key: step for step in steps}
        self._times_named = Counter(step.name for step in steps)
        self.store = home.store
        self.runtime = pipeline.config.runtime
        self.started = time.time()
        self.clock = time.monotonic()
        self.states: dict[str, str] = {}
        self.work: dict[str, Work] = {}
        """Of the steps that this run has built."""
        self.errors: list[Exception] = []
        self._building: set[str] = set()
        self._stopping = threading.Event()
        # Threads of the flow start all steps whose inputs are there; jobs share the machine.
        self._places = threading.BoundedSemaphore(self.runtime.parallel_jobs)
        # Started first and awaited at the first job: 4 s that data preparation hides.
        needs_ray = any(
            self._runner_of(step) == "ray" and self.store.manifest(step) is None for step in steps
        )
        self.ray = RayHead(home, self.runtime) if needs_ray else None
        uses_fork_server = self.ray is not None and self.ray.embedded and self.runtime.device.kind == "cpu"
        fork_log = home.root / "logs" / "fork-server.log"
        # OpenMP reads its number of threads once, when it is loaded: before Ray sets it for a worker.
        fork_environment = {"OMP_NUM_THREADS": str(self.runtime.train.threads)} | self.runtime.job_environment
        self.fork_server = ForkServer(fork_log, fork_environment) if uses_fork_server else None
        self.flow_run = flow_run_id
        self.tracker = self._make_tracker()
        self.view = ProgressView(len(steps))
        self.page = Page(pipeline.config.name)
        self._local = LocalPool()
        self._jobs: RayJobs | None = None
        self._jobs_lock = threading.Lock()

    def _make_tracker(self) -> Tracker:
        pipeline_name = self.pipeline.config.name
        if self.runtime.tracker == "jsonl":
            return JsonLinesTracker(self.home.root / "runs.jsonl", pipeline_name, self.flow_run)
        return Tracking(self.home, pipeline_name, self.flow_run, self._stopping)

    @property
    def tracking(self) -> Tracking:
        """MLflow, which has the model registry.

        Raises:
            UserError: this run uses another tracker.
        """
        if not isinstance(self.tracker, Tracking):
            raise UserError(
                f"runtime.tracker: {self.runtime.tracker} has no model registry; only mlflow has one"
            )
        return self.tracker

    @classmethod
    def current(cls) -> Session:
        """Return the session of this process; tasks find it here, since only names cross task borders."""
        assert cls._current is not None, "no session is open"
        return cls._current

    def step(self, key: str) -> Step:
        """One of the session's steps."""
        return self._by_key[key]

    def label(self, step: Step) -> str:
        """Return a step's name, or its key where a sweep has several of that name."""
        return step.name if self._times_named[step.name] <= 1 else step.key

    def raise_first_error(self) -> None:
        """Raise what made a step fail first; the rest of the steps did not run because of it."""
        if self.errors:
            raise self.errors[0]

    def stop(self) -> None:
        """Stop what is running, then the servers. May be called twice."""
        self._stopping.set()
        self._local.stop()
        if self._jobs is not None:
            self._jobs.stop()
        deadline = time.monotonic() + _SECONDS_TO_END
        while self._building and time.monotonic() < deadline:  # their MLflow runs get their end status
            time.sleep(0.1)
        self.view.close()
        if self.ray is not None:
            self.ray.stop()
        if self.fork_server is not None:
            self.fork_server.stop()

    def build(self, step: Step) -> JsonObject:
        """Reuse or build a step, mirrored to MLflow and the console; returns its manifest."""
        if (manifest := self.store.manifest(step)) is not None:
            # The tracker may have been lost or be another one than when the step was built.
            self.tracker.mirror(step, manifest, self.store)
            return self._ended(step, "cached", manifest)
        # A job waits for its place here, so that its seconds and its MLflow run are its own.
        with self._places if self._is_job(step) else nullcontext():
            return self._build_anew(step)

    def _build_anew(self, step: Step) -> JsonObject:
        self._check_stop()
        tracked_run = self.tracker.begin(step)
        self._building.add(step.key)
        run_status = "FAILED"
        step_state = "failed"
        try:
            optimiser_steps = step.recipe.train.steps if isinstance(step.recipe, TrainStep) else None
            self.view.start(self.label(step), optimiser_steps)
            if optimiser_steps is not None:
                self.page.start(self.label(step))
            manifest = materialize(
                step,
                self.store,
                self.pipeline.runtime(step),
                lambda step, build: self._run(step, build, tracked_run),
            )
            self.tracker.finish(tracked_run, step, manifest, self.store)
            self.page.finish(self.label(step), self.store.path(step))
            run_status = "FINISHED"
            step_state = "built"
            return self._ended(step, step_state, manifest)
        except (Stopped, KeyboardInterrupt):
            run_status = "KILLED"
            step_state = "stopped"
            raise
        except Exception as error:
            if self._stopping.is_set():  # a call to a server that is going down
                run_status = "KILLED"
                step_state = "stopped"
                raise Stopped from error
            self.errors.append(error)
            raise
        finally:
            if run_status != "FINISHED":
                self.tracker.end(tracked_run, run_status, self.store.work / step.key)
                self._ended(step, step_state, None)
            self._building.discard(step.key)

    def _ended(self, step: Step, step_state: str, manifest: Any) -> Any:
        self.states[self.label(step)] = step_state
        self.view.finish(self.label(step), step_state, manifest)
        return manifest

    def _run(self, step: Step, build: Build, tracked_run: TrackedRun) -> Any:
        def watch() -> None:
            self._check_stop()
            tracked_run.watch(build.out)
            self.view.advance(self.label(step), build.out)
            if isinstance(step.recipe, TrainStep):
                self.page.advance(self.label(step), build.out, step.recipe.train.steps)
            if self._jobs is not None and (job_page := self._jobs.pages.get(step.key)):
                tracked_run.link("ray.job", job_page)

        runner: Runner = self._ray_jobs() if self._runner_of(step) == "ray" else self._local
        self.work[self.label(step)] = finished_work = runner.run(step, build, watch)
        return finished_work.facts

    def _is_job(self, step: Step) -> bool:
        return kind_of(step, self.runtime).place != "flow"

    def _runner_of(self, step: Step) -> RunnerName:
        return self.runtime.runners[kind_of(step, self.runtime).place]

    def _ray_jobs(self) -> RayJobs:
        with self._jobs_lock:
            if self._jobs is None:
                if self.ray is None:
                    raise UserError("an output was lost during the run; run the pipeline again")
                self.ray.wait()
                # Imported here: Ray reads its authentication settings when it is first imported,
                # and the head's token is made when the head is started.
                from tasks.ray_jobs import RayJobs

                python_command = self.fork_server.command if self.fork_server else None
                self._jobs = RayJobs(
                    self.ray, dict(self.runtime.job_environment), self.flow_run, python_command
                )
            return self._jobs

    def _check_stop(self) -> None:
        if self._stopping.is_set():
            raise Stopped


@contextmanager
def open_session(pipeline: Pipeline, home: Home, steps: list[Step], flow_run_id: str) -> Iterator[Session]:
    """Provide the session of this process until the block ends, however it ends."""
    signal.signal(signal.SIGINT, _interrupt)  # set anew: shells start background jobs without it
    # In a worker's process SIGTERM is Prefect's: it distinguishes a cancelled flow from a killed one.
    if runtime.deployment.id is None:
        signal.signal(signal.SIGTERM, _interrupt)
    session = Session._current = Session(pipeline, home, steps, flow_run_id)
    try:
        yield session
    finally:
        session.stop()
        Session._current = None


def _interrupt(signal_number: int, frame: Any) -> None:
    """Both signals end a run as Ctrl-C does."""
    raise KeyboardInterrupt
