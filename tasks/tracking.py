"""MLflow as a mirror of manifests: one run per fingerprint, whatever the ranks and attempts.

Owns finding or making runs, shipping metrics in batches while a stage trains, lineage tags and
the end status. The files of a step are the truth: this can be lost and made again from them.
Weights never pass through here; a run holds the address of its output.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mlflow.entities import LifecycleStage, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from openba.artifacts import Step, Store
from openba.config import flatten
from openba.errors import UserError
from openba.home import Home
from openba.json_types import JsonObject
from openba.redact import redact
from openba.train.log import HELDOUT, METRICS, RATES, NewRows, last_rows
from tasks import nodes
from tasks.pointers import limit_waiting
from tasks.relocation import ARTIFACTS, adopt_home

FINGERPRINT = "openba.fingerprint"
FLOW_RUN = "prefect.flow_run_id"
"""Tag of an MLflow run, and key of a Ray job's metadata: the flow run that began or submitted it."""
_log = logging.getLogger(__name__)
_TAGS_OF_MLFLOW = ("mlflow.source.name", "mlflow.source.type", "mlflow.user")
"""Tags that a new run gets from MLflow itself."""
_SHIPPED = ("loss", "loss_R", "loss_S", "loss_X", "lr", "gradient_norm", *RATES)
_SECONDS_BETWEEN_BATCHES = 3.0
_SECONDS_AFTER_FAILURE = 30.0
_PATIENCE_AT_START = 10.0
"""Seconds for which a server may be away when a command starts, while nothing can be lost yet."""
_PATIENCE = 300.0
"""Seconds for which a server may be away where a step begins or ends; a restart takes 20 to 60."""
_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
"""What MLflow says where nobody listens, and what a server says whose database is away."""
_MOST_METRICS = 60
"""Metric names of one run; more than a page of MLflow's UI shows, and each is a query."""
limit_waiting()
# A dozen lines about tables that are made at the first run; a line for each request that is sent again.
for _name in ("mlflow", "alembic", "urllib3"):
    logging.getLogger(_name).setLevel(logging.ERROR)
_MOST_NODES = 4
"""Whose figures are shipped; those of all nodes are in the output's files and in Ray's dashboard."""
_MAX_PARAMS = 100  # per log_batch call, and more than a page of MLflow's UI shows


T = TypeVar("T")


@contextmanager
def one_line_errors(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow and its database raise within the block into one line.

    Raises:
        UserError: in place of theirs; without credentials.
    """
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise UserError(f"MLflow at {redact(tracking_uri)}: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    """Return the part of an error that says what happened, with what to do where that is known."""
    error_text = redact(str(error)).strip()
    if "database is locked" in error_text:
        return "the database is locked by another process; end that process or wait, then run again"
    return (error_text.splitlines() or [type(error).__name__])[0][:200]


def make_tables(home: Home) -> None:
    """Make MLflow's tables in a database file before a run needs them; it takes a second.

    Raises:
        UserError: the database is locked or damaged.
    """
    if home.tracking_uri.startswith("sqlite:"):
        with one_line_errors(home.tracking_uri):
            MlflowClient(tracking_uri=home.tracking_uri).search_experiments(max_results=1)


class Tracking:
    """The MLflow experiment of one pipeline."""

    def __init__(
        self, home: Home, pipeline: str, flow_run: str, stopping: threading.Event | None = None
    ) -> None:
        """Open the pipeline's experiment, making it if it is not there.

        Raises:
            UserError: MLflow does not answer within ten seconds, or the experiment was deleted.
        """
        self.uri = home.tracking_uri
        self.shown_uri = redact(self.uri)
        self.flow_run = flow_run
        self._stopping = stopping or threading.Event()
        self._lock = threading.Lock()
        name = f"openba-{pipeline}"
        # A server has its own folder for artifacts; a database file has none but the working directory.
        artifacts = None if self.uri.startswith("http") else str(home.root / ARTIFACTS)
        adopt_home(home)
        with one_line_errors(self.uri):
            self.client = MlflowClient(self.uri, self.uri)  # else the registry is the one used last
            self.experiment = self.patiently(
                lambda: self._experiment(name, artifacts), seconds=_PATIENCE_AT_START
            )
            runs = self.patiently(
                lambda: self.client.search_runs([self.experiment], max_results=5000),
                seconds=_PATIENCE_AT_START,
            )
            self._runs = self._newest(runs)
        self._begun: dict[str, StepRun] = {}

    def _newest(self, runs: list[Run]) -> dict[str, Run]:
        """Return the newest run of each fingerprint; older ones are deleted.

        They were replaced (`StepRun`) by a process that was killed before it deleted them.

        Args:
            runs: newest first.
        """
        newest: dict[str, Run] = {}
        for run in runs:
            if (fingerprint := run.data.tags.get(FINGERPRINT)) is None:
                continue
            if fingerprint in newest:
                self.client.delete_run(run.info.run_id)
            else:
                newest[fingerprint] = run
        return newest

    def run_of(self, step: Step) -> str | None:
        """Return the id of the step's run, if it has one."""
        if (begun := self._begun.get(step.fingerprint)) is not None:
            return begun.run_id
        run = self._runs.get(step.fingerprint)
        return run.info.run_id if run else None

    def begin(self, step: Step) -> StepRun:
        """Return the step's run, made if it is new, marked RUNNING; a retry or resume goes on in it."""
        with self._lock:
            run = self._runs.get(step.fingerprint) or self.patiently(lambda: self._create(step))
            self._runs[step.fingerprint] = run
        run_id = self.run_of(step) or run.info.run_id
        inputs = {f"openba.input.{key}": parent.key for key, parent in step.inputs.items()}
        tags = [RunTag(k, value) for k, value in {**inputs, FLOW_RUN: self.flow_run}.items()]
        self.patiently(lambda: self.client.log_batch(run_id, tags=tags))
        self.patiently(lambda: self.client.update_run(run_id, status="RUNNING"))
        begun = self._begun[step.fingerprint] = StepRun(self.client, run_id)
        return begun

    def links(self) -> dict[str, str]:
        """Return the experiment's page; of a database file, the page that `openba ui` serves."""
        page = f"/#/experiments/{self.experiment}"
        if self.uri.startswith("http"):
            return {"MLflow experiment": f"{self.uri}{page}"}
        return {"MLflow experiment": f"http://127.0.0.1:5000{page}  (start it with: openba ui)"}

    def finish(self, run: StepRun, step: Step, record: JsonObject, store: Store) -> None:
        """Ship what is left and mark the run FINISHED.

        The step is complete without it: if the server stays away, the next flow that meets the step does this
        from its files (`mirror`).
        """
        try:
            self.patiently(lambda: run.ship(store.path(step)))
            self.patiently(lambda: run.finish(step, record, store))
        except UserError as error:
            _log.warning("%s: %s", step.name, error)

    def end(self, run: StepRun, status: str, folder: Path) -> None:
        """Ship what is left and mark the run FAILED or KILLED; that the server is away ends nothing."""
        try:
            self.patiently(lambda: run.ship(folder), seconds=20)
            self.patiently(lambda: run.end(status), seconds=20)
        except (UserError, MlflowException) as error:
            _log.warning("%s", error)

    def mirror(self, step: Step, record: JsonObject, store: Store) -> None:
        """Make sure that a complete step has a finished run, as after a lost tracking database."""
        run = self._runs.get(step.fingerprint)
        if run is None or run.info.status != "FINISHED":
            self.finish(self.begin(step), step, record, store)

    def patiently(self, request: Callable[[], T], seconds: float = _PATIENCE) -> T:
        """Call again after growing pauses while the server is away. `request` may be done twice.

        Raises:
            UserError: it stayed away.
        """
        deadline = time.monotonic() + seconds
        pause = 0.5
        while True:
            try:
                return request()
            except (MlflowException, OSError) as error:  # requests' errors are OSErrors
                if isinstance(error, MlflowException) and error.error_code not in _AWAY:
                    raise
                reason = _first_line(error)
                if time.monotonic() + pause > deadline or self._stopping.wait(pause):
                    raise UserError(
                        f"MLflow at {self.shown_uri} does not answer ({reason}); start it and run again, "
                        "no metric is lost"
                    ) from None
                if pause == 0.5:  # the first failure
                    _log.warning(
                        "MLflow at %s does not answer (%s); waiting up to %.0f s",
                        self.shown_uri, reason, seconds,
                    )  # fmt: skip
                pause = min(2 * pause, 5.0)

    def _experiment(self, name: str, artifact_location: str | None) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return self.client.create_experiment(name, artifact_location)
        if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise UserError(
                f"MLflow at {self.shown_uri}: the experiment {name} was deleted; bring it back with "
                f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, or remove it for "
                "good with `mlflow gc`"
            )
        return experiment.experiment_id

    def _create(self, step: Step) -> Run:
        """Return a new run; where an earlier try was heard and its answer lost, that one."""
        run_filter = f"tags.`{FINGERPRINT}` = '{step.fingerprint}'"
        if existing_runs := self.client.search_runs([self.experiment], run_filter, max_results=1):
            return existing_runs[0]
        run_tags = {FINGERPRINT: step.fingerprint, "openba.step": step.name, "mlflow.runName": step.name}
        new_run = self.client.create_run(self.experiment, tags=run_tags)
        params = [
            Param(key, redact(str(value))[:500])
            for key, value in sorted(flatten(step.identity["recipe"]).items())
        ]
        self.client.log_batch(new_run.info.run_id, params=params[:_MAX_PARAMS])
        return new_run


class _Sent:
    """Rows of one file that MLflow has, by step, and the reader of that file."""

    def __init__(self, path: Path, history: list[Metric], is_timed: bool) -> None:
        self.is_timed = is_timed
        self.rows = {metric.step: self.state(metric.timestamp, metric.value) for metric in history}
        self.reader = NewRows(path)

    def state(self, milliseconds: int, value: float) -> tuple[int, float]:
        """Return what distinguishes rows of the same step; a measurement has no time of its own."""
        return (milliseconds if self.is_timed else 0, value)


class StepRun:
    """One step's run while the step is being built.

    MLflow only appends. Where a stage's file no longer has a row that was shipped, because the training was
    rolled back or resumed before that step, the run is deleted and a new one gets the file from the start.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        self._sent: dict[Path, _Sent] = {}
        self._replaced: list[str] = []
        """Runs that are to be deleted."""
        self._next = self._next_link = 0.0
        self._names: set[str] = set()
        self._links: dict[str, str] = {}

    def watch(self, stage_folder: Path) -> None:
        """Ship new metrics if the last batch was a while ago.

        A server that does not answer stops no training: the rows are in the stage's files, and are shipped
        when it answers again.
        """
        if time.monotonic() < self._next:
            return
        wait_seconds = _SECONDS_BETWEEN_BATCHES
        try:
            self.ship(stage_folder)
        except (MlflowException, OSError) as error:  # requests' errors are OSErrors
            wait_seconds = _SECONDS_AFTER_FAILURE
            reason = redact(str(error))
            _log.warning("MLflow does not answer (%s); its metrics wait", reason)
        self._next = time.monotonic() + wait_seconds

    def ship(self, folder: Path) -> None:
        """Ship all metrics of a stage that MLflow does not have yet; after an error, they are next time."""
        mirrored_files = self._files(folder)
        try:
            unsent_rows = {path: self._unsent(path, *names) for path, names in mirrored_files.items()}
            if any(rows is None for rows in unsent_rows.values()):
                self._renew()
                unsent_rows = {path: self._unsent(path, *names) for path, names in mirrored_files.items()}
            for path, names in mirrored_files.items():
                self._send(path, unsent_rows[path] or [], *names)
            # Only now that the new run has all rows: a process killed before leaves both, and `_newest`
            # deletes one.
            while self._replaced:
                self.client.delete_run(self._replaced[-1])
                self._replaced.pop()
        except BaseException:
            for sent in self._sent.values():
                sent.reader = NewRows(sent.reader.path)  # what was read and not sent is read again
            raise

    def _files(self, folder: Path) -> dict[Path, tuple[str, dict[str, str]]]:
        """Return each file to mirror, the metric that stands for a row, and the name of each metric."""
        # By denoiser and by language; both at once are in the file only.
        newest_rows = last_rows(folder / HELDOUT, 1)
        heldout_keys = [
            k for row in newest_rows for k in row if k not in ("step", "tokens") and k.count("_") < 2
        ]
        mirrored_files = {folder / METRICS: ("lr", {key: key for key in _SHIPPED})}
        if newest_rows:
            mirrored_files[folder / HELDOUT] = ("loss", {key: f"heldout/{key}" for key in heldout_keys})
        # As MLflow's own system metrics, by node.
        for path in sorted((folder / nodes.FOLDER).glob("*.jsonl"))[:_MOST_NODES]:
            mirrored_files[path] = (nodes.NAMES[0], {key: f"system/{path.stem}/{key}" for key in nodes.NAMES})
        return mirrored_files

    def _unsent(self, path: Path, marker: str, names: dict[str, str]) -> list[JsonObject] | None:
        """Rows that MLflow does not have; None if it has a row that is not in the file."""
        if path not in self._sent:
            history = self.client.get_metric_history(self.run_id, names[marker]) if marker in names else []
            self._sent[path] = _Sent(path, history, is_timed=path.name != HELDOUT)
        sent = self._sent[path]
        is_first_read = sent.reader.is_new
        marked_rows = [row for row in sent.reader.read() if row.get(marker) is not None]
        new_rows = [row for row in marked_rows if row["step"] not in sent.rows]
        repeated_rows = {
            row["step"]: sent.state(_milliseconds(row), row[marker])
            for row in marked_rows
            if row["step"] in sent.rows
        }
        if is_first_read or sent.reader.rewritten:
            return new_rows if repeated_rows == sent.rows else None
        return new_rows if not repeated_rows else None

    def _send(self, path: Path, new_rows: list[JsonObject], marker: str, names: dict[str, str]) -> None:
        metrics = [
            Metric(names[key], row[key], _milliseconds(row), row["step"])
            for row in new_rows
            for key in names
            if row.get(key) is not None
        ]
        self._names |= {metric.key for metric in metrics}
        for start in range(0, len(metrics), 1000):  # MLflow's limit per call
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
        sent = self._sent[path]
        sent.rows |= {row["step"]: sent.state(_milliseconds(row), row[marker]) for row in new_rows}

    def _renew(self) -> None:
        """Make a run with the same tags and parameters and no metrics; the old one is deleted afterwards."""
        old_run = self.client.get_run(self.run_id)
        tags = {key: value for key, value in old_run.data.tags.items() if key not in _TAGS_OF_MLFLOW}
        new_run = self.client.create_run(old_run.info.experiment_id, tags=tags)
        params = [Param(key, value) for key, value in old_run.data.params.items()]
        self.client.log_batch(new_run.info.run_id, params=params)
        self._replaced.append(self.run_id)
        self.run_id = new_run.info.run_id
        self._sent = {}
        self._names = set()

    def finish(self, step: Step, record: JsonObject, store: Store) -> None:
        """Log the facts and the output's address; mark the run FINISHED."""
        finished_ms = int(record["finished"] * 1000)  # said twice, it is the same
        numbers = {
            key: value for key, value in flatten(record["facts"]).items() if type(value) in (int, float)
        }
        room = max(0, _MOST_METRICS - len(self._names))
        metrics = [
            Metric(key, value, finished_ms, 0)
            for key, value in sorted(numbers.items())[:room]
            if _is_name(key)
        ]
        run_tags = [RunTag("openba.uri", store.uri(step)), RunTag("openba.seconds", str(record["seconds"]))]
        self.client.log_batch(self.run_id, metrics=metrics, tags=run_tags)
        self.client.set_terminated(self.run_id, "FINISHED")

    def end(self, status: str) -> None:
        """Mark the run FAILED or KILLED."""
        self.client.set_terminated(self.run_id, RunStatus.to_string(RunStatus.from_string(status)))

    def link(self, label: str, url: str) -> None:
        """Name a page about this run: as tag `LABEL`, and in the description, where it can be clicked.

        As with `watch`, a server that does not answer stops nothing; the rows are sent later.
        """
        if url in self._links or time.monotonic() < self._next_link:
            return
        links = self._links | {url: f"[{label}]({url})"}
        link_tags = {label: url, "mlflow.note.content": " · ".join(links.values())}
        try:
            self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in link_tags.items()])
            self._links = links
        except (MlflowException, OSError):
            self._next_link = time.monotonic() + _SECONDS_AFTER_FAILURE


def _milliseconds(row: JsonObject) -> int:
    return int(row.get("time", time.time()) * 1000)


def _is_name(metric_name: str) -> bool:
    return all(character.isalnum() or character in "_-./ " for character in metric_name)
