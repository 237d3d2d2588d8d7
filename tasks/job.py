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
    folder = Path(sys.argv[1])
    durable.write_record(folder / PROCESS, {"began": _process_began()})
    try:
        spec = _read_spec(folder)
        if spec["place"] == "gang":
            _run_gang(folder, spec)
        else:
            run_function(folder, spec)
    except Preempted as stopped:
        durable.write_record(folder / STOPPED, {"message": str(stopped)})
        sys.exit(EXIT_PREEMPTED)
    except (UserError, OSError) as error:
        if (user_error := _for_user(error, folder)) is None:
            raise
        durable.write_record(folder / ERROR, {"message": str(user_error)})
        sys.exit(1)


def _read_spec(folder: Path) -> JsonObject:
    """Return the specification of the job, as `ray_jobs.py` wrote it.

    Raises:
        UserError: a byte of it is not as it was written; another recipe would be computed.
    """
    spec = durable.read_record(folder / SPEC)
    if spec is None:
        raise UserError(f"{folder / SPEC}: missing or damaged on the disk; run again")
    return spec


def _process_began() -> float:
    """Return the process's start to 10 ms; psutil alone counts in whole seconds from the boot."""
    since_start = psutil.Process().create_time() - psutil.boot_time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_start


def run_function(folder: Path, spec: JsonObject) -> None:
    """Call the step's function with its Build; leave its facts if this process is the one to."""
    module, _, name = spec["function"].partition(":")
    build = Build(
        out=Path(spec["out"]),
        recipe=_model(spec["recipe_type"]).model_validate(spec["recipe"]),
        inputs={key: Path(path) for key, path in spec["inputs"].items()},
        runtime=_model(spec["runtime_type"]).model_validate(spec["runtime"]),
    )
    began = time.time()
    clock = time.monotonic()
    facts = getattr(importlib.import_module(module), name)(build)
    if int(os.environ.get("RANK", "0")) == 0:
        # Counted by a clock that never jumps, told from the moment of the wall clock that it began.
        ended = began + time.monotonic() - clock
        durable.write_record(folder / FACTS, {"facts": facts, "began": began, "ended": ended})


def _run_gang(folder: Path, spec: JsonObject) -> None:
    """Run worker groups one after the other until one succeeds, or too many fail without progress.

    Ray's own count of failures is for the whole run and tries mistakes of the user again; this one starts
    anew with each new checkpoint, and a user's mistake or a stop ends it. A group that saved and stopped
    because its node is taken away is no failure.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import TrainingFailedError

    out = Path(spec["out"])
    # Ray Train's cleaner of a dead controller's places asks the State API for it. Without an address it looks
    # for a cluster on its machine, and fails where there are two: the places stay taken for ever.
    cluster = {"env_vars": {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}}
    # Left to the interpreter's end, Ray first sleeps half a second for its log.
    with (
        ray.init(runtime_env=cluster),
        Gauges(out, _model(spec["runtime_type"]).model_validate(spec["runtime"])),
    ):
        _try_gangs(folder, spec, out, (TrainingFailedError, RayActorError))  # workers; their controller
    if (record := durable.read_record(folder / STOPPED)) is not None:
        raise Preempted(record["message"])


def _try_gangs(folder: Path, spec: JsonObject, out: Path, failed: tuple[type[Exception], ...]) -> None:
    stop = Event()

    def ask(number: int, frame: Any) -> None:
        stop.set()
        (out / REQUEST).touch()

    signal.signal(signal.SIGTERM, ask)
    patience = Patience(out, spec["runtime"]["train"]["max_failures"])
    errors: list[str] = []
    for attempt in itertools.count(1):
        (folder / STOPPED).unlink(missing_ok=True)
        watch = DrainWatch(folder, out)
        try:
            for traceback_file in folder.glob(f"rank-*{_TRACEBACK}"):
                traceback_file.unlink()
            _trainer(folder, spec, f"gang-{attempt}").fit()
            if not (watch.noticed and (folder / STOPPED).exists()) or stop.is_set():
                break
            print("the workers saved and left a node that is taken away; started again", file=sys.stderr)
        except failed:
            if (folder / ERROR).exists():
                raise
            same = _is_same_error(folder, spec["runtime"]["train"]["workers"], errors)
            if not patience.lasts():
                raise
            if same:
                raise UserError(
                    f"the workers failed twice after step {patience.reached} with the same error: "
                    f"{errors[0]} (whole tracebacks: {folder}/rank-*{_TRACEBACK})"
                ) from None
            print(f"the workers died after step {patience.reached}; started again", file=sys.stderr)
        finally:
            watch.end()


def _is_same_error(folder: Path, workers: int, errors: list[str]) -> bool:
    """Whether every worker of this group raised what it raised in the group before; `errors` is updated.

    Where a worker was killed, it left no traceback and the others only report its loss: that may pass.
    """
    before = list(errors)
    tracebacks = sorted(folder.glob(f"rank-*{_TRACEBACK}"))
    errors[:] = [file.read_text(errors="replace").strip().rpartition("\n")[2] for file in tracebacks]
    return len(errors) == workers and errors == before


class Patience:
    """Limit of failures in a row without a new checkpoint, after which no worker group is started."""

    def __init__(self, out: Path, failures: int) -> None:
        self.out = out
        self.allowed = failures
        self.failures = 0
        self.reached = self._newest()
        """Step of the newest committed checkpoint; -1 if there is none."""

    def lasts(self) -> bool:
        """Whether another worker group may be started after a failure."""
        newest = self._newest()
        self.failures = self.failures + 1 if newest == self.reached else 1
        self.reached = newest
        return self.failures <= self.allowed

    def _newest(self) -> int:
        from openba.train.checkpoint import committed_steps  # loads torch, which the flow does not need

        return max(committed_steps(self.out / "checkpoints"), default=-1)


def _trainer(folder: Path, spec: JsonObject, name: str) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import FailureConfig

    from tasks.process_group import NodeTorchConfig

    train = spec["runtime"]["train"]
    on_gpu = spec["runtime"]["device"]["kind"] == "cuda"
    return TorchTrainer(
        _worker,
        train_loop_config={"folder": str(folder), "spec": spec},
        torch_config=NodeTorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=_COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(num_workers=train["workers"], use_gpu=on_gpu),
        run_config=RunConfig(
            name=name,
            storage_path=str(folder),
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


def _run_rank(folder: Path, spec: JsonObject) -> None:
    from ray.train import get_context
    from ray.util import get_node_ip_address

    context = get_context()
    os.environ |= {
        "RANK": str(context.get_world_rank()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
    }
    stand_on(folder, context.get_world_rank())
    meter = (
        NodeMeter(Path(spec["out"]), get_node_ip_address())
        if context.get_local_rank() == 0
        else nullcontext()
    )
    try:
        with meter:
            run_function(folder, spec)
    except Preempted as stopped:  # no failure: the group ends here
        if context.get_world_rank() == 0:
            durable.write_record(folder / STOPPED, {"message": str(stopped)})
    except Exception as error:
        # Kept beside the spec: Ray shows the group's failure, this says which rank failed and where.
        file = folder / f"rank-{context.get_world_rank()}{_TRACEBACK}"
        file.write_text(redact(traceback.format_exc()))
        if (message := _for_user(error, folder) or _of_program(error, file)) is not None:
            durable.write_record(folder / ERROR, {"message": str(message)})
        raise


def _for_user(error: Exception, folder: Path) -> UserError | None:
    return error if isinstance(error, UserError) else durable.storage_error(error, folder.parent)


def _of_program(error: Exception, file: Path) -> UserError | None:
    """Return the line for an error that another try would meet again; None if another try may pass."""
    if not isinstance(error, _DETERMINISTIC):
        return None
    origin = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"{type(error).__name__}: {reason} ({Path(origin.filename).name}, line {origin.lineno}); it would "
        f"happen again, so it is not tried again (whole traceback: {file})"
    )


def _model(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


if __name__ == "__main__":
    atexit.register(gc.freeze)  # else the interpreter walks all of torch once more before it ends: 0.7 s
    main()
