"""Steps as Ray jobs: submit under a deterministic id, re-attach, poll, stop.

Owns the talk with Ray's Jobs API from outside; this process is never a Ray driver. A job's id
is `<step>-<fingerprint>-<attempt>`, so a flow that is started again finds the job of the one
before it and waits for that instead of starting a second.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from openba import durable
from openba.artifacts import Build, Step
from openba.errors import UserError
from openba.json_types import JsonObject
from openba.redact import redact
from openba.train.log import ATTEMPTS
from openba.train.stopping import REQUEST
from tasks.job import ERROR, FACTS, PROCESS, SPEC, STOPPED
from tasks.places import Work, kind_of
from tasks.services import RayHead
from tasks.tracking import FLOW_RUN

T = TypeVar("T")

POLL_SECONDS = 0.2
"""The end of each job of a chain waits for half of it."""
PATIENCE = 600.0
"""Seconds without an answer of the cluster; training there goes on meanwhile. A new head answers before its
agent can take a job: 40 s and over 60 s were seen on two cores with loads of 19 and 20."""
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of a killed process, as Python and as a shell tells them."""
SECONDS_TO_SAVE = 10.0
"""How long a training that is asked to stop may take to finish its step and save."""
SECONDS_TO_END = 5.0
"""How long a job that is told to stop may take after that; Ray itself kills it after 3 s."""


class RayJobs:
    """The jobs of one pipeline on one cluster."""

    def __init__(
        self, head: RayHead, environment: dict[str, str], flow_run: str, python: str | None = None
    ) -> None:
        """Connect to the head's Jobs API.

        Args:
            head: the cluster.
            environment: variables of every job.
            flow_run: id of the Prefect flow run, which each job that it submits names.
            python: shell command that runs jobs and Ray's workers in place of the interpreter.

        Raises:
            UserError: the cluster refuses our token, or does not answer.
        """
        self.client = _client(head.dashboard)
        self._head = head
        self.flow_run = flow_run
        # A head that this run has started uses this interpreter; a cluster's image has another.
        self.python = python or shlex.quote(sys.executable if head.embedded else "python")
        self.runtime_env: JsonObject = {"env_vars": environment}
        if python is not None:
            self.runtime_env["py_executable"] = python
        self.running: dict[str, Path] = {}
        """Job -> the folder that it fills, of the jobs that have not ended."""
        self.pages: dict[str, str] = {}
        """Step -> its job's page in Ray's dashboard."""
        self._dashboard = redact(head.dashboard)

    def run(self, step: Step, build: Build, watch: Callable[[], None]) -> Work:
        """Run or re-attach to the step's job; call `watch` while it runs.

        Raises:
            UserError: the job failed; the message is its own line, or the end of its log.
        """
        folder = build.out.with_name(f"{build.out.name}.job")
        job = self._attach_or_submit(step, build, folder)
        self.running[job] = build.out
        self.pages[step.key] = f"{self._dashboard}/#/jobs/{job}"
        while not (status := self._status(job, watch)).is_terminal():
            watch()
            time.sleep(POLL_SECONDS)
        del self.running[job]
        watch()
        if status is not JobStatus.SUCCEEDED or not (folder / FACTS).exists():
            raise UserError(f"{step.name}: {self._reason(job, folder, status)}")
        process = durable.read_record(folder / PROCESS)
        facts = durable.read_record(folder / FACTS)
        shutil.rmtree(folder)
        if process is None or facts is None:
            raise UserError(f"{step.name}: what its job left in {folder} was damaged on the disk; run again")
        return Work(process=process["began"], **facts)

    def _status(self, job: str, watch: Callable[[], None]) -> JobStatus:
        """Return the job's state; `watch` is called while the cluster does not answer."""
        return self._answer(lambda: self.client.get_job_status(job), f"job {job}", watch)

    def _answer(self, ask: Callable[[], T], about: str, watch: Callable[[], None] | None = None) -> T:
        """Return the cluster's answer. Keep asking one that does not answer: its jobs go on meanwhile.

        Raises:
            UserError: no answer for ten minutes; or the head of this run has ended, as it does when one of
                its processes dies.
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return ask()
            except (OSError, RuntimeError) as error:  # RuntimeError: an HTTP status
                if (service := self._head.service) is not None and service.process.poll() is not None:
                    raise UserError(
                        f"Ray's head ended during the run (see {service.log}); run again: what is built is "
                        "reused, and a training goes on from its last checkpoint"
                    ) from None
                if time.monotonic() > end:
                    reason = redact(" ".join(str(error).split()))[:200]
                    raise UserError(
                        f"Ray at {self._dashboard} gives no answer about {about} ({reason}); what runs there "
                        "may go on: run again to wait for it"
                    ) from None
            if watch is not None:
                watch()
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stop every job that this process waits for, and see it end; trainings save their state first.

        A cluster that is gone has nothing to stop.
        """
        with suppress(OSError, RuntimeError):
            self._stop()

    def _stop(self) -> None:
        jobs = dict(self.running)
        warned_jobs = set[str]()
        for out in jobs.values():
            if (out / ATTEMPTS).exists():
                (out / REQUEST).touch()
        late = time.monotonic() + SECONDS_TO_SAVE
        while jobs := {job: out for job, out in jobs.items() if not self._has_ended(job)}:
            if time.monotonic() > late + SECONDS_TO_END:
                return
            for job, out in jobs.items():
                if job not in warned_jobs and (time.monotonic() > late or not (out / REQUEST).exists()):
                    self.client.stop_job(job)
                    warned_jobs.add(job)
            time.sleep(POLL_SECONDS)

    def _has_ended(self, job: str) -> bool:
        return bool(self.client.get_job_status(job).is_terminal())

    def _attach_or_submit(self, step: Step, build: Build, folder: Path) -> str:
        prefix = f"{step.name}-{step.fingerprint}-"
        jobs = self._answer(self.client.list_jobs, f"jobs of {step.name}")
        status_by_job = {job.submission_id: job.status for job in jobs if job.submission_id}
        attempts = {name: status for name, status in status_by_job.items() if name.startswith(prefix)}
        for name, status in attempts.items():
            if not status.is_terminal() or (status is JobStatus.SUCCEEDED and (folder / FACTS).exists()):
                return name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (build.out / REQUEST).unlink(missing_ok=True)  # of a run that ended before it was seen
        durable.write_record(folder / SPEC, _spec(step, build))
        name = f"{prefix}{len(attempts) + 1}"
        self._answer(lambda: self._submit(step, build, folder, name), f"job {name}")
        return name

    def _submit(self, step: Step, build: Build, folder: Path, name: str) -> None:
        if any(job.submission_id == name for job in self.client.list_jobs()):
            return  # an earlier try was heard and its answer lost
        self.client.submit_job(
            entrypoint=f"{self.python} -m tasks.job {shlex.quote(str(folder))}",
            submission_id=name,
            # A job's entry point runs on the head; one that computes there itself asks for a device.
            # One that hands its work out needs none.
            entrypoint_num_gpus=1
            if step.kind.place == "job"
            and kind_of(step, build.runtime) is step.kind
            and build.runtime.device.kind == "cuda"
            else None,
            runtime_env=self.runtime_env,
            metadata={"step": step.name, "fingerprint": step.fingerprint, FLOW_RUN: self.flow_run},
        )

    def _reason(self, job: str, folder: Path, status: JobStatus) -> str:
        for name in (ERROR, STOPPED):
            if (record := durable.read_record(folder / name)) is not None:
                return str(record["message"])
        log = folder / "job.log"
        printed = ""
        message = ""
        code: int | None = None
        with suppress(OSError, RuntimeError):  # the node that had it is gone
            details = self.client.get_job_info(job)
            printed = self.client.get_job_logs(job)
            message = " ".join((details.message or "").split())
            code = details.driver_exit_code
        with suppress(OSError):  # a full disk may be why it failed
            log.write_text(printed)
        # Not a ruler such as ===== or a lone bracket, with which many tools end what they print.
        lines = [line for line in printed.splitlines() if any(map(str.isalnum, line))]
        reason = lines[-1] if lines else message or "no output"
        if code in _KILLED:  # what it printed last says nothing of it
            reason = "its process was killed, by somebody or for want of memory; run again to go on"
        return f"Ray job {job} ended as {status.value}: {reason} (whole log: {log})"


def _spec(step: Step, build: Build) -> JsonObject:
    kind = kind_of(step, build.runtime)
    return {
        "function": kind.function,
        "place": kind.place,
        "out": str(build.out),
        "inputs": {key: str(path) for key, path in build.inputs.items()},
        "recipe_type": _reference(build.recipe),
        "recipe": build.recipe.model_dump(mode="json"),
        "runtime_type": _reference(build.runtime),
        "runtime": build.runtime.model_dump(mode="json"),
    }


def _reference(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _client(dashboard: str) -> JobSubmissionClient:
    shown = redact(dashboard)
    try:
        return JobSubmissionClient(dashboard)
    except AuthenticationError:
        raise UserError(
            f"Ray at {shown} refuses this run's token; for a cluster that RAY_ADDRESS names, set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; else another run took the port just now: run again"
        ) from None
    except ConnectionError:
        raise UserError(f"Ray at {shown} does not answer; start the cluster or correct RAY_ADDRESS") from None
