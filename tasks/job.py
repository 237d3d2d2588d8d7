"""Program of a Ray job, `python -m tasks.job DIR`: run one step's function, alone or on a worker group.

DIR holds `spec.json`, written by `ray_jobs.py`; this program leaves `facts.json` there, or
`error.json` with the one line that a user should read, or `stopped.json` where it was asked to stop and
saved its state (exit code 75). It imports neither Prefect nor MLflow.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import itertools
import os
import signal
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from threading import Event
from typing import Any

import psutil

from openba import durable
from openba.artifacts import Build
from openba.errors import UserError, error_boundary
from openba.json_types import JsonObject
from openba.redact import protect_output, redact
from openba.train.stopping import EXIT_PREEMPTED, REQUEST, Preempted
from tasks.drain import DrainWatch, stand_on
from tasks.gauges import Gauges
from tasks.nodes import NodeMeter

SPEC = "spec.json"
FACTS = "facts.json"
ERROR = "error.json"
STOPPED = "stopped.json"
PROCESS = "process.json"
_TRACEBACK = ".traceback"
_COLLECTIVE_SECONDS = 4 * 3600
"""Rank 0 may write 29 GB while the others wait for it; the watchdog ends a group that stands still."""
_DETERMINISTIC = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, NotImplementedError,
    SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""Errors of the program or its input: another group of workers would meet them again."""


def main() -> None:
    """Entry point of the job; exit code 1 after an error, 75 after a stop that saved first."""
    protect_output()
    job_folder = Path(sys.argv[1])
    durable.write_record(job_folder / PROCESS, {"began": _process_began()})
    try:
        spec = _read_spec(job_folder)
        if spec["place"] == "worker_group":
            _run_worker_group(job_folder, spec)
        else:
            run_function(job_folder, spec)
    except Preempted as preemption:
        durable.write_record(job_folder / STOPPED, {"message": str(preemption)})
        sys.exit(EXIT_PREEMPTED)
    except (UserError, OSError) as error:
        if (user_error := _for_user(error, job_folder)) is None:
            raise
        durable.write_record(job_folder / ERROR, {"message": str(user_error)})
        sys.exit(1)


def _read_spec(job_folder: Path) -> JsonObject:
    """Return the specification of the job, as `ray_jobs.py` wrote it.

    Raises:
        UserError: a byte of it is not as it was written; another recipe would be computed.
    """
    spec = durable.read_record(job_folder / SPEC)
    if spec is None:
        raise UserError(f"{job_folder / SPEC}: missing or damaged on the disk; run again")
    return spec


def _process_began() -> float:
    """Return the process's start to 10 ms; psutil alone counts in whole seconds from the boot."""
    since_start = psutil.Process().create_time() - psutil.boot_time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_start


def run_function(job_folder: Path, spec: JsonObject) -> None:
    """Call the step's function with its Build; leave its facts if this process is the one to."""
    module_name, _, function_name = spec["function"].partition(":")
    build = Build(
        out=Path(spec["out"]),
        recipe=_model(spec["recipe_type"]).model_validate(spec["recipe"]),
        inputs={input_name: Path(path) for input_name, path in spec["inputs"].items()},
        runtime=_model(spec["runtime_type"]).model_validate(spec["runtime"]),
    )
    began_at = time.time()
    clock_start = time.monotonic()
    facts = getattr(importlib.import_module(module_name), function_name)(build)
    # Rank 0 alone has the facts of a training.
    if int(os.environ.get("RANK", "0")) == 0:
        # Counted by a clock that never jumps, as an offset from the wall-clock time at which it began.
        ended_at = began_at + time.monotonic() - clock_start
        durable.write_record(job_folder / FACTS, {"facts": facts, "began": began_at, "ended": ended_at})


def _run_worker_group(job_folder: Path, spec: JsonObject) -> None:
    """Run worker groups one after the other until one succeeds, or too many fail without progress.

    Ray's own count of failures is for the whole run and tries mistakes of the user again; this one starts
    anew with each new checkpoint, and a user's mistake or a stop ends it. A group that saved and stopped
    because its node is taken away is no failure.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import TrainingFailedError

    stage_folder = Path(spec["out"])
    # Ray Train's cleaner of a dead controller's places asks the State API for it. Without an address it looks
    # for a cluster on its machine, and fails where there are two: the places stay taken for ever.
    runtime_environment = {"env_vars": {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}}
    # Left to the interpreter's end, Ray first sleeps half a second for its log.
    with (
        ray.init(runtime_env=runtime_environment),
        Gauges(stage_folder, _model(spec["runtime_type"]).model_validate(spec["runtime"])),
    ):
        _try_worker_groups(
            job_folder, spec, stage_folder, (TrainingFailedError, RayActorError)
        )  # workers; their controller
    if (record := durable.read_record(job_folder / STOPPED)) is not None:
        raise Preempted(record["message"])


def _try_worker_groups(
    job_folder: Path, spec: JsonObject, stage_folder: Path, failure_types: tuple[type[Exception], ...]
) -> None:
    stop_asked = Event()

    def ask(signal_number: int, frame: Any) -> None:
        stop_asked.set()
        (stage_folder / REQUEST).touch()

    # Ray stops a job by SIGTERM; the workers see the request file and save first.
    signal.signal(signal.SIGTERM, ask)
    patience = Patience(stage_folder, spec["runtime"]["train"]["max_failures"])
    last_errors: list[str] = []
    for attempt in itertools.count(1):
        # A group that left a drained node has written it as well, and goes on in this one.
        (job_folder / STOPPED).unlink(missing_ok=True)
        drain_watch = DrainWatch(job_folder, stage_folder)
        try:
            for traceback_file in job_folder.glob(f"rank-*{_TRACEBACK}"):
                traceback_file.unlink()
            _trainer(job_folder, spec, f"worker-group-{attempt}").fit()
            if not (drain_watch.noticed and (job_folder / STOPPED).exists()) or stop_asked.is_set():
                break
            print("the workers saved and left a node that is taken away; started again", file=sys.stderr)
        except failure_types:
            if (job_folder / ERROR).exists():
                raise
            is_same_error = _is_same_error(job_folder, spec["runtime"]["train"]["workers"], last_errors)
            if not patience.lasts():
                raise
            if is_same_error:
                raise UserError(
                    f"the workers failed twice after step {patience.reached} with the same error: "
                    f"{last_errors[0]} (whole tracebacks: {job_folder}/rank-*{_TRACEBACK})"
                ) from None
            print(f"the workers died after step {patience.reached}; started again", file=sys.stderr)
        finally:
            drain_watch.end()


def _is_same_error(job_folder: Path, worker_count: int, last_errors: list[str]) -> bool:
    """Whether every worker of this group raised what it raised in the group before; `last_errors` is updated.

    Where a worker was killed, it left no traceback and the others only report its loss: that may pass.
    """
    previous_errors = list(last_errors)
    traceback_files = sorted(job_folder.glob(f"rank-*{_TRACEBACK}"))
    last_errors[:] = [
        file.read_text(errors="replace").strip().rpartition("\n")[2] for file in traceback_files
    ]
    return len(last_errors) == worker_count and last_errors == previous_errors


class Patience:
    """Limit of failures in a row without a new checkpoint, after which no worker group is started."""

    def __init__(self, stage_folder: Path, allowed_failures: int) -> None:
        self.out = stage_folder
        self.allowed = allowed_failures
        self.failures = 0
        self.reached = self._newest()
        """Step of the newest committed checkpoint; -1 if there is none."""

    def lasts(self) -> bool:
        """Whether another worker group may be started after a failure."""
        newest_step = self._newest()
        self.failures = self.failures + 1 if newest_step == self.reached else 1
        self.reached = newest_step
        return self.failures <= self.allowed

    def _newest(self) -> int:
        from openba.train.checkpoint import committed_steps  # loads torch, which the flow does not need

        return max(committed_steps(self.out / "checkpoints"), default=-1)


def _trainer(job_folder: Path, spec: JsonObject, run_name: str) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    from tasks.process_group import NodeTorchConfig

    train_runtime = spec["runtime"]["train"]
    on_gpu = spec["runtime"]["device"]["kind"] == "cuda"
    return TorchTrainer(
        _worker,
        train_loop_config={"folder": str(job_folder), "spec": spec},
        torch_config=NodeTorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=_COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(num_workers=train_runtime["workers"], use_gpu=on_gpu),
        run_config=RunConfig(
            name=run_name,
            storage_path=str(job_folder),
            # Failures are counted by `Patience`: Ray's limit would be one for the whole training.
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
        ),
    )


def _worker(config: JsonObject) -> None:
    """Train on one rank. Ray has made the process group; DeepSpeed finds the ranks in the environment.

    Ray pickles this function by value, since the job's module is `__main__`; a decorator that holds a
    generator, as `error_boundary` does, cannot be pickled.
    """
    with error_boundary():
        _run_rank(Path(config["folder"]), config["spec"])


def _run_rank(job_folder: Path, spec: JsonObject) -> None:
    from ray.train import get_context
    from ray.util import get_node_ip_address

    train_context = get_context()
    os.environ |= {
        "RANK": str(train_context.get_world_rank()),
        "LOCAL_RANK": str(train_context.get_local_rank()),
        "WORLD_SIZE": str(train_context.get_world_size()),
    }
    stand_on(job_folder, train_context.get_world_rank())
    node_meter = (
        NodeMeter(Path(spec["out"]), get_node_ip_address())
        if train_context.get_local_rank() == 0
        else nullcontext()
    )
    try:
        with node_meter:
            run_function(job_folder, spec)
    except Preempted as preemption:  # no failure: the group ends here
        if train_context.get_world_rank() == 0:
            durable.write_record(job_folder / STOPPED, {"message": str(preemption)})
    except Exception as error:
        # Kept beside the spec: Ray shows the group's failure, this says which rank failed and where.
        traceback_file = job_folder / f"rank-{train_context.get_world_rank()}{_TRACEBACK}"
        traceback_file.write_text(redact(traceback.format_exc()))
        if (user_error := _for_user(error, job_folder) or _of_program(error, traceback_file)) is not None:
            durable.write_record(job_folder / ERROR, {"message": str(user_error)})
        raise


def _for_user(error: Exception, job_folder: Path) -> UserError | None:
    return error if isinstance(error, UserError) else durable.storage_error(error, job_folder.parent)


def _of_program(error: Exception, traceback_file: Path) -> UserError | None:
    """Return the line for an error that another try would meet again; None if another try may pass."""
    if not isinstance(error, _DETERMINISTIC):
        return None
    last_frame = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"{type(error).__name__}: {reason} ({Path(last_frame.filename).name}, line {last_frame.lineno}); "
        f"it would happen again, so it is not tried again (full traceback: {traceback_file})"
    )


def _model(reference: str) -> Any:
    module_name, _, type_name = reference.partition(":")
    return getattr(importlib.import_module(module_name), type_name)


if __name__ == "__main__":
    atexit.register(gc.freeze)  # else the interpreter walks all of torch once more before it ends: 0.7 s
    main()
