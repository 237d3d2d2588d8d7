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
SECONDS_TO_CONNECT = 15.0
"""Seconds for which a head node may refuse connections: a busy one does, and one that restarts."""
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""Exit codes of a killed process, as Python and as a shell report them."""
SECONDS_TO_SAVE = 10.0
"""How long a training that is asked to stop may take to finish its step and save."""
SECONDS_TO_END = 5.0
"""How long a job may take to stop after the request; Ray itself kills it after 3 s."""


class RayJobs:
    """The jobs of one pipeline on one cluster."""

    def __init__(
        self, head: RayHead, environment: dict[str, str], flow_run: str, python_command: str | None = None
    ) -> None:
        """Connect to the head's Jobs API.

        Args:
            head: the cluster.
            environment: variables of every job.
            flow_run: id of the Prefect flow run, which each job that it submits names.
            python_command: shell command that runs jobs and Ray's workers in place of the interpreter.

        Raises:
            UserError: the cluster refuses our token, or does not answer.
        """
        self.client = _client(head.dashboard)
        self._head = head
        self.flow_run = flow_run
        # A head that this run has started uses this interpreter; a cluster's image has another.
        self.python = python_command or shlex.quote(sys.executable if head.embedded else "python")
        self.runtime_env: JsonObject = {"env_vars": environment}
        if python_command is not None:
            self.runtime_env["py_executable"] = python_command
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
        job_folder = build.out.with_name(f"{build.out.name}.job")
        job_id = self._attach_or_submit(step, build, job_folder)
        self.running[job_id] = build.out
        self.pages[step.key] = f"{self._dashboard}/#/jobs/{job_id}"
        while not (job_status := self._status(job_id, watch)).is_terminal():
            watch()
            time.sleep(POLL_SECONDS)
        del self.running[job_id]
        watch()
        if job_status is not JobStatus.SUCCEEDED or not (job_folder / FACTS).exists():
            raise UserError(f"{step.name}: {self._reason(job_id, job_folder, job_status)}")
        process_record = durable.read_record(job_folder / PROCESS)
        facts_record = durable.read_record(job_folder / FACTS)
        shutil.rmtree(job_folder)
        if process_record is None or facts_record is None:
            raise UserError(
                f"{step.name}: what its job left in {job_folder} was damaged on the disk; run again"
            )
        return Work(process=process_record["began"], **facts_record)

    def _status(self, job_id: str, watch: Callable[[], None]) -> JobStatus:
        """Return the job's state; `watch` is called while the cluster does not answer."""
        return self._answer(lambda: self.client.get_job_status(job_id), f"job {job_id}", watch)

    def _answer(self, request: Callable[[], T], subject: str, watch: Callable[[], None] | None = None) -> T:
        """Return the cluster's answer. Keep asking one that does not answer: its jobs go on meanwhile.

        Raises:
            UserError: no answer for ten minutes; or the head of this run has ended, as it does when one of
                its processes dies.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return request()
            except (OSError, RuntimeError) as error:  # RuntimeError: an HTTP status
                if (service := self._head.service) is not None and service.process.poll() is not None:
                    raise UserError(
                        f"Ray's head ended during the run (see {service.log}); run again: what is built is "
                        "reused, and a training goes on from its last checkpoint"
                    ) from None
                if time.monotonic() > deadline:
                    reason = redact(" ".join(str(error).split()))[:200]
                    raise UserError(
                        f"Ray at {self._dashboard} gives no answer about {subject} ({reason}); its jobs may "
                        "still be running: run again to wait for them"
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
        running_jobs = dict(self.running)
        warned_jobs = set[str]()
        for out in running_jobs.values():
            if (out / ATTEMPTS).exists():
                (out / REQUEST).touch()
        save_deadline = time.monotonic() + SECONDS_TO_SAVE
        while running_jobs := {
            job_id: out for job_id, out in running_jobs.items() if not self._has_ended(job_id)
        }:
            if time.monotonic() > save_deadline + SECONDS_TO_END:
                return
            for job_id, out in running_jobs.items():
                if job_id not in warned_jobs and (
                    time.monotonic() > save_deadline or not (out / REQUEST).exists()
                ):
                    self.client.stop_job(job_id)
                    warned_jobs.add(job_id)
            time.sleep(POLL_SECONDS)

    def _has_ended(self, job_id: str) -> bool:
        return bool(self.client.get_job_status(job_id).is_terminal())

    def _attach_or_submit(self, step: Step, build: Build, job_folder: Path) -> str:
        id_prefix = f"{step.name}-{step.fingerprint}-"
        jobs = self._answer(self.client.list_jobs, f"jobs of {step.name}")
        status_by_job = {job.submission_id: job.status for job in jobs if job.submission_id}
        status_by_attempt = {
            job_id: status for job_id, status in status_by_job.items() if job_id.startswith(id_prefix)
        }
        for job_id, status in status_by_attempt.items():
            if not status.is_terminal() or (status is JobStatus.SUCCEEDED and (job_folder / FACTS).exists()):
                return job_id
        shutil.rmtree(job_folder, ignore_errors=True)
        job_folder.mkdir(parents=True)
        (build.out / REQUEST).unlink(missing_ok=True)  # of a run that ended before it was seen
        durable.write_record(job_folder / SPEC, _spec(step, build))
        job_id = f"{id_prefix}{len(status_by_attempt) + 1}"
        self._answer(lambda: self._submit(step, build, job_folder, job_id), f"job {job_id}")
        return job_id

    def _submit(self, step: Step, build: Build, job_folder: Path, job_id: str) -> None:
        # An earlier try may have been heard and its answer lost; Ray refuses an id that it has.
        if any(job.submission_id == job_id for job in self.client.list_jobs()):
            return  # an earlier try was heard and its answer lost
        self.client.submit_job(
            entrypoint=f"{self.python} -m tasks.job {shlex.quote(str(job_folder))}",
            submission_id=job_id,
            # A job's entry point runs on the head; one that computes there itself asks for a device.
            # One that hands its work out needs none.
            entrypoint_num_gpus=1
            if step.kind.place == "job"
            and kind_of(step, build.runtime) is step.kind
            and build.runtime.device.kind == "cuda"
            else None,
            runtime_env=self.runtime_env,
            # `tasks/cancel.py` finds the jobs of a cancelled flow run by its id.
            metadata={"step": step.name, "fingerprint": step.fingerprint, FLOW_RUN: self.flow_run},
        )

    def _reason(self, job_id: str, job_folder: Path, status: JobStatus) -> str:
        for record_name in (ERROR, STOPPED):
            if (record := durable.read_record(job_folder / record_name)) is not None:
                return str(record["message"])
        log_file = job_folder / "job.log"
        log_text = ""
        ray_message = ""
        exit_code: int | None = None
        with suppress(OSError, RuntimeError):  # the node that had it is gone
            details = self.client.get_job_info(job_id)
            log_text = self.client.get_job_logs(job_id)
            ray_message = " ".join((details.message or "").split())
            exit_code = details.driver_exit_code
        with suppress(OSError):  # a full disk may be why it failed
            log_file.write_text(log_text)
        # Not a ruler such as ===== or a lone bracket, with which many tools end what they print.
        lines = [line for line in log_text.splitlines() if any(map(str.isalnum, line))]
        reason = lines[-1] if lines else ray_message or "no output"
        if exit_code in _KILLED:  # its last output is not the reason
            reason = "its process was killed, by somebody or for want of memory; run again to go on"
        return f"Ray job {job_id} ended as {status.value}: {reason} (whole log: {log_file})"


def _spec(step: Step, build: Build) -> JsonObject:
    kind = kind_of(step, build.runtime)
    return {
        "function": kind.function,
        "place": kind.place,
        "out": str(build.out),
        "inputs": {key: str(path) for key, path in build.inputs.items()},
        # The job validates the recipe again, as JSON has neither types nor defaults.
        "recipe_type": _reference(build.recipe),
        "recipe": build.recipe.model_dump(mode="json"),
        "runtime_type": _reference(build.runtime),
        "runtime": build.runtime.model_dump(mode="json"),
    }


def _reference(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _client(dashboard: str) -> JobSubmissionClient:
    shown = redact(dashboard)
    deadline = time.monotonic() + SECONDS_TO_CONNECT
    while True:
        try:
            return JobSubmissionClient(dashboard)
        except AuthenticationError:
            raise UserError(
                f"Ray at {shown} refuses this run's token; for a cluster that RAY_ADDRESS names, set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; else another run took the port just now: run "
                "again"
            ) from None
        except ConnectionError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Ray at {shown} does not answer; start the cluster or correct RAY_ADDRESS"
                ) from None
        time.sleep(1)
