"""Evaluation on Ray: the shards of one process, handed out by Ray Data to workers that hold the model.

Owns the mapper. What Ray carries is a number a shard: a worker reads the records from the shared folder and
writes the shard's file there, and what Ray does twice after a lost worker gives the same file twice. Runs
inside a Ray job (`job.py`), or for `openba eval --workers` on a Ray of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from openba.artifacts import Build
from openba.errors import UserError
from openba.evaluate import run
from openba.evaluate.shards import Shard, ShardMapper, ShardWorker
from openba.json_types import JsonObject

ATTEMPTS = 3
"""How often a shard is begun whose worker dies."""


def build(build: Build) -> JsonObject:
    """Step `evaluate-*` as `run.build` does it, on the cluster that this process is connected to."""
    return run.build(build, on_ray(build.runtime.evaluate.workers, build.runtime.device.kind == "cuda"))


def on_ray(worker_count: int, on_gpu: bool) -> ShardMapper:
    """Return a mapper with so many workers, each of one CPU and, if asked, one GPU."""

    def mapper(model_folder: Path, shards: Sequence[Shard]) -> Iterator[tuple[int, str]]:
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext
        from ray.exceptions import RayError

        DataContext.get_current().enable_progress_bars = False
        # One block a shard, so that a shard is one task of a worker. Blocks from items need no task that
        # reads them: it waited for ever for a CPU on a cluster whose workers held all.
        shard_rows = [{"id": shard_index} for shard_index in range(len(shards))]
        mapped_rows = ray.data.from_items(shard_rows, override_num_blocks=len(shards)).map_batches(
            _RayWorker,
            fn_constructor_args=(model_folder.resolve(), list(shards)),
            compute=ActorPoolStrategy(size=min(worker_count, len(shards)), max_tasks_in_flight_per_actor=1),
            batch_size=None,
            batch_format="pyarrow",
            num_gpus=1 if on_gpu else 0,
            num_cpus=1,
            max_task_retries=ATTEMPTS - 1,  # Ray Data's own default is for ever
        )
        try:
            for result_row in mapped_rows.iter_rows():
                yield result_row["job"], result_row["error"]
        except RayError as error:
            raise UserError(
                f"{model_folder}: a worker did not start, or died {ATTEMPTS} times on one shard (memory?): "
                f"{str(error).strip().splitlines()[-1]}"
            ) from None

    return mapper


def on_own_ray(worker_count: int) -> ShardMapper:
    """Return a mapper on the cluster that RAY_ADDRESS names, else on an own Ray that ends with the work."""

    def mapper(model_folder: Path, shards: Sequence[Shard]) -> Iterator[tuple[int, str]]:
        import ray

        starts_ray = os.environ.get("RAY_ADDRESS") is None
        ray_options: JsonObject = {"num_cpus": worker_count, "include_dashboard": False} if starts_ray else {}
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and its progress are not the user's
        ray.init(
            address="local" if starts_ray else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **ray_options,
        )
        try:
            # `openba eval` has no runtime that says what the machines are.
            on_gpu = ray.cluster_resources().get("GPU", 0) >= 1
            yield from on_ray(worker_count, on_gpu)(model_folder, shards)
        finally:
            ray.shutdown()

    return mapper


class _RayWorker:
    """One model; its batches are numbers of jobs."""

    def __init__(self, model_folder: Path, shards: list[Shard]) -> None:
        if not model_folder.is_dir():
            raise UserError(f"{model_folder}: not there on a worker; it has to lie on a shared folder")
        self.worker = ShardWorker(model_folder)
        self.jobs = shards

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a failure as a row: Ray Data wraps exceptions and loses their attributes."""
        result_rows = []
        for shard_index in batch["id"].to_pylist():
            shard_part, shard_number = self.jobs[shard_index]
            error_text = ""
            try:
                self.worker(shard_part, shard_number)
            except UserError as failure:
                error_text = str(failure)
            result_rows.append({"job": shard_index, "error": error_text})
        return pa.Table.from_pylist(result_rows)
