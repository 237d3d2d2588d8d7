"""Cleaning on a Ray cluster: the same tasks as in a pool of processes, handed out by Ray Data.

Owns the mapper. A batch of Ray Data is the number of one shard or partition: the worker that gets it reads
the text from the shared folder and writes there, so neither text nor keys pass through Ray's object store,
and what Ray does twice after a lost worker gives the same file twice. Runs inside a Ray job (`job.py`).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from openba.artifacts import Build
from openba.data.clean import corpus
from openba.data.clean.passes import ATTEMPTS, Task, killed
from openba.data.clean.shards import Plan
from openba.errors import UserError


def build(build: Build) -> corpus.Facts:
    """Step `clean` as `corpus.build` does it, on the cluster that this process is connected to."""
    return corpus.build(build, on_ray)


def on_ray(task: Task, plan: Plan, task_numbers: Sequence[int]) -> None:
    """Mapper: one Ray task a number, wherever a CPU is free; Ray repeats those of a lost worker.

    Raises:
        UserError: a task's own, a worker was killed again and again, or the folder is not on its machine.
        OSError: a task's, with its number, such as ENOSPC.
    """
    import ray.data
    from ray.data import DataContext
    from ray.exceptions import RayError

    # The run prints progress itself, from the files of the step.
    DataContext.get_current().enable_progress_bars = False
    # One block a number. Reading numbers and the task are fused, so a block is one Ray task.
    mapped_rows = ray.data.range(len(task_numbers), override_num_blocks=len(task_numbers)).map_batches(
        partial(_run, task=task, plan=plan, task_numbers=list(task_numbers)),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        max_retries=ATTEMPTS - 1,  # Ray Data's own default is for ever
    )
    try:
        rows = mapped_rows.take_all()
    except RayError:
        raise UserError(killed(plan, task, task_numbers)) from None
    for row in rows:
        if row["error"]:
            raise (OSError(row["errno"], row["error"]) if row["errno"] else UserError(row["error"]))


def _run(batch: pa.Table, task: Task, plan: Plan, task_numbers: list[int]) -> pa.Table:
    """Return a failure as a row: Ray Data wraps exceptions and loses their attributes."""
    result_rows = []
    for shard_index in batch["id"].to_pylist():
        error_text = ""
        error_number = 0
        try:
            if not plan.folder.is_dir():
                raise UserError(
                    f"{plan.folder}: not there on a worker; OPENBA_HOME has to be a shared folder"
                )
            task(plan, task_numbers[shard_index])
        except UserError as failure:
            error_text = str(failure)
        except OSError as failure:
            error_text = failure.strerror or str(failure)
            # With number 0 the caller would take a failure of the disk for a mistake of the user.
            error_number = failure.errno or errno.EIO
        result_rows.append({"number": task_numbers[shard_index], "error": error_text, "errno": error_number})
    return pa.Table.from_pylist(result_rows)
