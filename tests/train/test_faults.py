"""What breaks in a training, and what must happen then. Numbers are those of the project's list of faults:

1-21, 23-29 and 31-33 are here or, as named in each test, beside what they concern: 1, 4, 8 and 24 in
`test_checkpoint`, 23 in `test_checkpoint` and `test_batches`, 25, 27 and 28 in `test_identity`, 5 under real
Ray in `tests/cluster/test_worker_group.py`, 31 in `test_log` and `tests/tasks/test_tracking.py`, 32 in
`tests/tasks/test_job.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openba.train.checkpoint import LOGS, MARKER, read_marker
from openba.train.stopping import EXIT_PREEMPTED
from openba.train.watchdog import EXIT_STALLED
from tests.harness.worker_groups import WorkerGroup
from tests.train import faults
from tests.train.conftest import Runs

KEPT = {"checkpoint_every": 1, "keep_checkpoints": 20, "micro_batch": 2, "compare_every": 2}


class Cases:
    """Stages with faults: 8 steps of two micro-batches (forward passes 2n - 1 and 2n are step n's)."""

    def __init__(self, root: Path, inputs: dict[str, str]) -> None:
        self.runs = Runs(root, inputs)
        self.root = root
        self.facts: dict[str, Any] = {}
        self.worker_groups: dict[str, WorkerGroup] = {}
        self.ends: dict[str, list[int | None]] = {}

    def job(self, name: str, fault: str = "", rank: int = 1, at: Any = (), **change: Any) -> dict[str, Any]:
        runtime = {**KEPT, **change.pop("runtime", {})}
        change = {"model": {"dropout": 0.1}, "budget": "8 steps", **change}
        job = self.runs.job(name, do="tests.train.faults:run", runtime=runtime, **change)
        return {**job, "with": {"fault": fault, "rank": rank, "at": list(at)}}

    def run(self, world: int, jobs: list[dict[str, Any]]) -> None:
        """One group, one job after the other."""
        named = {Path(job["out"]).name: job for job in jobs}
        worker_group = WorkerGroup(self.root / f"worker-group-of-{next(iter(named))}-{world}", world, named)
        self.facts |= worker_group.results()
        self.worker_groups |= dict.fromkeys(named, worker_group)

    def start(self, job: dict[str, Any], suffix: str = "") -> WorkerGroup:
        """A group of two for a job that ends it."""
        name = Path(job["out"]).name
        worker_group = self.worker_groups[name + suffix] = WorkerGroup(
            self.root / f"worker-group-{name}{suffix}", 2, {name: job}
        )
        return worker_group

    def begin_at(self, name: str, of: str, step: int) -> None:
        """Let a run go on from another's checkpoint of that step."""
        kept = self.root / f"{of}-kept" / f"step-{step:06d}"
        shutil.copytree(kept, self.root / name / "checkpoints" / kept.name)
        shutil.copy(self.root / of / "events.jsonl", self.root / name / "events.jsonl")

    def events(self, name: str) -> dict[str, dict[str, Any]]:
        """The last event of each sort."""
        return {row["event"]: row for row in self.runs.rows(name, "events.jsonl")}

    def state(self, name: str, step: int) -> tuple[Any, ...]:
        """Digests of the whole training state, and what else is kept with it, but for the guard."""
        record = read_marker(self.root / f"{name}-kept" / f"step-{step:06d}")
        shares = {file: state for file, state in record["files"].items() if file != LOGS}
        return shares, record["adam_step"], record["totals"]["tokens"]

    def log(self, name: str) -> str:
        return self.worker_groups[name].logs()


@pytest.fixture(scope="session")
def cases(tokenizer_folder: Path, mixture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    root = tmp_path_factory.mktemp("faults")
    return Cases(root, {"tokenizer": str(tokenizer_folder), "data": str(mixture_folder)})


@pytest.fixture(scope="session")
def broken(cases: Cases) -> Cases:
    """Faults that a group survives, all in one group."""
    data = shutil.copytree(cases.runs.inputs["data"], cases.root / "data-broken")
    shard = np.load(data / "stage1" / "tokens-00000.npy", mmap_mode="r+")
    shard[:: 64 * 10] = 10**6  # an id of no vocabulary in every tenth window
    shard.flush()
    rare = {"checkpoint_every": 4}
    with disks(cases.root) as disk_jobs:
        jobs = [
            cases.job("clean"),
            cases.job("nan", "nan_loss", at=[5]),
            cases.job("huge", "huge_loss", rank=0, at=[6], runtime=rare),
            cases.job("nan-gradient", "nan_gradient", at=[6], runtime=rare),
            cases.job(
                "nan-zero3", "nan_gradient", at=[6], budget="3 steps", runtime={"zero_stage": 3, **rare}
            ),
            cases.job("three", "nan_loss", at=[9, 11, 13], runtime=rare),
            cases.job("hopeless", "nan_loss", at=range(1, 99), runtime={"checkpoint_every": 100}),
            cases.job("flip", "flip", at=[8], budget="4 steps", runtime={"checkpoint_every": 3}),
            cases.job("small-files", "small_files", at=[3], runtime={"checkpoint_every": 3}),
            cases.job("refused", inputs={"data": str(data)}, runtime=rare),
            cases.job("slow-disk", "slow_disk", at=[9]),
            *(cases.job(name, **{"runtime": rare, **change}) for name, change in disk_jobs.items()),
            cases.job("no-sync", "no_sync", at=[3]),  # the last one: no later file of this group is synced
        ]
        cases.run(2, jobs)
    return cases


@contextlib.contextmanager
def disks(root: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Runs with checkpoints, or kept weights, on small disks and on a read-only one; none without mounts."""
    full, closed = (root / name / "checkpoints" for name in ("full-disk", "read-only"))
    freed, hopeless = (root / name / "steps" for name in ("export-freed", "export-hopeless"))
    mounted: list[Path] = []
    # The first checkpoint fits, those with moments do not.
    for folder, size in ((full, "1500k"), (closed, "9m"), (freed, "4m"), (hopeless, "4m")):
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(command, check=False, capture_output=True).returncode == 0:
            mounted.append(folder)
    try:
        if len(mounted) < 4:
            yield {}
            return
        subprocess.run(["mount", "-o", "remount,ro", closed], check=True)
        for folder in (freed, hopeless):
            with contextlib.suppress(OSError), (folder / faults.BALLAST).open("wb") as file:
                while True:
                    file.write(bytes(2**16))
                    file.flush()
        yield {
            "full-disk": {},
            "read-only": {},
            "export-freed": {
                "fault": "free_disk", "rank": 0, "at": [14], "keep_every": "5 steps", "runtime": {},
            },
            "export-hopeless": {"keep_every": "1 steps", "runtime": {}},
        }  # fmt: skip
    finally:
        if (freed / "5").exists():  # seen through the mount only
            shutil.copytree(freed / "5", root / "export-freed-steps" / "5")
        for folder in mounted:
            subprocess.run(["umount", "-l", folder], check=False)


@pytest.fixture(scope="session")
def killed(broken: Cases) -> Cases:
    """Faults that end a group; then, in one group, all that go on after it."""
    cases = broken
    ends = [
        cases.job("killed", "killed", at=[7]),
        cases.job("stopped", "asked_to_stop", at=[9]),
        cases.job("stopped-twice", "asked_twice", at=[9]),
        {**cases.job("no-memory", "no_memory", at=[5]), "alone": True},
    ]
    worker_groups = [cases.start(job) for job in ends]
    cases.ends = {
        worker_group.folder.name.removeprefix("worker-group-"): worker_group.wait()
        for worker_group in worker_groups
    }
    writing = cases.job("writing")
    worker_group = cases.start(writing)
    shards = cases.root / "writing" / "checkpoints"
    worker_group.wait_for(lambda: any(shards.glob("step-00000[3-7].tmp/rank-*.safetensors")))
    worker_group.kill()
    again = [{**job, "with": {}} for job in (*ends[:2], writing)]
    cases.run(2, [*again, *differences(cases)])
    return cases


def differences(cases: Cases) -> list[dict[str, Any]]:
    """Runs that find a checkpoint of another run."""
    rare = {"checkpoint_every": 100}
    changes: dict[str, dict[str, Any]] = {
        "other-rate": {"optim": {"lr": 2e-3}},
        "allowed": {"optim": {"lr": 2e-3}, "runtime": {**rare, "allow_changes": True}},
    }
    for name in changes:
        cases.begin_at(name, "clean", 5)
    return [cases.job(name, **change) for name, change in changes.items()]


@pytest.mark.parametrize("name", ["killed", "writing", "stopped"])
def test_faults_2_3_13_a_group_that_ended_goes_on_bitwise(killed: Cases, name: str) -> None:
    """2: one rank killed in a step; 3: all killed in a write; 13: SIGTERM."""
    assert killed.state(name, 7) == killed.state("clean", 7)
    assert killed.runs.model_bytes(name) == killed.runs.model_bytes("clean")
    assert killed.runs.losses(name) == killed.runs.losses("clean")
    assert not list((killed.root / f"{name}-kept").glob("*.tmp"))
    assert killed.facts[name]["resumed"] == 1


def test_fault_2_the_others_notice_a_killed_rank(killed: Cases) -> None:
    assert killed.ends["killed"] == [1, -9]
    attempts = killed.runs.rows("killed", "attempts.jsonl")
    assert attempts[1]["from"] in (2, 3)  # the save after step 3 may not have been whole yet


def test_fault_13_a_signal_saves_first_and_loses_no_step(killed: Cases) -> None:
    attempts = killed.runs.rows("stopped", "attempts.jsonl")
    assert [row["from"] for row in attempts] == [0, 5]
    assert killed.events("stopped")["stopped"]["saved"] is True
    assert killed.ends["stopped"] == [EXIT_PREEMPTED] * 2


def test_fault_14_a_second_signal_ends_at_once(killed: Cases) -> None:
    assert killed.ends["stopped-twice"][1] == 130
    assert not (killed.root / "stopped-twice" / "checkpoints" / "step-000005").exists()


@pytest.mark.parametrize("name", ["nan", "huge", "nan-gradient", "nan-zero3"])
def test_faults_17_18_19_all_ranks_skip_the_same_step(broken: Cases, name: str) -> None:
    rows = broken.runs.rows(name)
    assert [row["step"] for row in rows if row["skipped"]] == [3]
    skipped = broken.events(name)["skipped"]
    assert (skipped["step"], len(set(skipped["samples"]))) == (3, 8)
    reasons = {"nan": "loss not finite on rank 1", "huge": "loss above 10000"}
    assert skipped["reason"] == reasons.get(name, "gradients not finite")
    if name != "nan-zero3":
        # Nothing but the data moved, and whatever the fault was, the end is the same.
        before, after = (broken.state("nan", step)[:2] for step in (2, 3))
        assert before == after == broken.state("clean", 2)[:2]
        assert broken.state(name, 4) == broken.state("nan", 4) != broken.state("clean", 4)
        assert broken.runs.model_bytes(name) == broken.runs.model_bytes("nan")


def test_fault_19_three_in_a_row_leave_a_bundle_and_roll_back(broken: Cases) -> None:
    back = broken.events("three")["rolled back"]
    assert (back["at"], back["step"], back["shift"]) == (7, 4, 3)
    assert [row["step"] for row in broken.runs.rows("three")] == list(range(1, 9))
    assert broken.runs.losses("three")[:4] == broken.runs.losses("clean")[:4]
    assert not any(row["skipped"] for row in broken.runs.rows("three"))
    assert broken.facts["three"]["rolled_back"] == 1
    bundle = broken.root / "three" / "debug" / "step-000007"
    told = json.loads((bundle / "report.json").read_text())
    assert [event["step"] for event in told["events"]] == [5, 6, 7]
    shapes = [load_file(bundle / f"batches-0000{rank}.safetensors")["1/labels"].shape for rank in (0, 1)]
    assert [shape[0] for shape in shapes] == [2, 2]


def test_fault_19_roll_backs_have_an_end(broken: Cases) -> None:
    assert "3 bad steps in a row, after 3 roll-backs" in broken.facts["hopeless"]["error"]


def test_fault_21_a_flipped_bit_of_one_replica_is_found(broken: Cases) -> None:
    back = broken.events("flip")["rolled back"]
    assert (back["at"], back["step"]) == (4, 3)
    assert back["why"].startswith("parameters of rank 0, 1 differ: ")


def test_faults_10_12_a_writer_that_fails_is_noticed_at_the_next_step(broken: Cases) -> None:
    """A worker's share that may not be written, by a limit of the kernel."""
    failed = [row for row in broken.runs.rows("small-files", "events.jsonl") if row["event"] == "save failed"]
    assert failed[0]["step"] <= 5  # the save began after step 3
    assert "training goes on" in broken.log("small-files")
    assert broken.runs.model_bytes("small-files") == broken.runs.model_bytes("clean")
    kept = broken.root / "small-files-kept"
    assert sorted(p.name for p in kept.iterdir()) == ["step-000000"]


def test_fault_11_saves_do_not_overlap(broken: Cases) -> None:
    """A save at each step: each waits for the one before it, and none is lost."""
    kept = sorted((broken.root / "clean-kept").glob(f"step-*/{MARKER}"))
    assert [json.loads(marker.read_text())["step"] for marker in kept] == list(range(8))
    times = [marker.stat().st_mtime_ns for marker in kept]
    assert times == sorted(times)
    assert max(row["checkpoint_stall"] for row in broken.runs.rows("clean")) > 0


def test_fault_11_a_slow_disk_delays_saves_and_hides_what_is_not_whole(broken: Cases) -> None:
    """A save takes longer than a step: the next one waits, as the stall says, and each is committed."""
    stalls = [row["checkpoint_stall"] for row in broken.runs.rows("slow-disk")]
    assert sum(stalls[5:]) > 2 * 0.2
    assert broken.state("slow-disk", 7) == broken.state("clean", 7)
    assert not list((broken.root / "slow-disk-kept").glob("*.tmp"))


def test_fault_10_a_full_or_read_only_disk(broken: Cases) -> None:
    if "read-only" not in broken.facts:
        pytest.skip("no right to mount a small disk; the limit of the kernel is tested anyway")
    results = [broken.worker_groups["read-only"].result(rank)["read-only"] for rank in (0, 1)]
    assert all("first checkpoint could not be written" in each["error"] for each in results)
    assert all("rank 0: [Errno 30] Read-only file system" in each["error"] for each in results)
    # Failed saves: training goes on to its end and the old checkpoint stays.
    assert broken.facts["full-disk"]["resumed"] == 0
    assert broken.events("full-disk")["save failed"]["step"] in (5, 6, 7, 8)
    assert broken.runs.model_bytes("full-disk") == broken.runs.model_bytes("clean")


def test_kept_weights_that_a_full_disk_refuses_are_written_later(broken: Cases) -> None:
    """The disk is full after steps 5 and 6 and has room from step 7 on."""
    if "export-freed" not in broken.facts:
        pytest.skip("no right to mount a small disk")
    failed = [
        row for row in broken.runs.rows("export-freed", "events.jsonl") if row["event"] == "export failed"
    ]
    assert {row["step"] for row in failed} == {5, 6}  # the weights of step 5 are tried again at step 6
    assert "No space left" in broken.events("export-freed")["export failed"]["why"]
    kept = load_file(broken.root / "export-freed-steps" / "5" / "model.safetensors")
    saved: dict[str, Any] = {}
    for share in (broken.root / "clean-kept" / "step-000005").glob("*.safetensors"):
        saved |= load_file(share)
    assert all(torch.equal(tensor, saved[f"weight/{name}"]) for name, tensor in kept.items())
    assert broken.runs.model_bytes("export-freed") == broken.runs.model_bytes("clean")
    # No checkpoint was committed while weights of an earlier step had not reached the disk.
    steps = {path.name for path in (broken.root / "export-freed-kept").glob("step-*")}
    assert {"step-000004", "step-000007"} <= steps
    assert not {"step-000005", "step-000006"} & steps


def test_kept_weights_that_never_fit_end_the_run_in_one_line(broken: Cases) -> None:
    if "export-hopeless" not in broken.facts:
        pytest.skip("no right to mount a small disk")
    error = broken.facts["export-hopeless"]["error"]
    assert "weights that are to be kept could not be written 5 times in a row" in error
    assert "\n" not in error


def test_fault_10_a_disk_that_syncs_nothing_ends_the_run_after_five_saves(broken: Cases) -> None:
    """The kernel answers fsync with EIO from step 2 on."""
    failed = [r for r in broken.runs.rows("no-sync", "events.jsonl") if r["event"] == "save failed"]
    assert len(failed) >= 4  # the fifth ends it
    assert failed[0]["why"] == "rank 1: [Errno 5] Input/output error"
    errors = [broken.worker_groups["no-sync"].result(rank)["no-sync"]["error"] for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "5 checkpoints in a row could not be written (rank 1: [Errno 5]" in errors[0]
    assert broken.runs.rows("no-sync")[-1]["failed_saves"] > 0
    committed = sorted((broken.root / "no-sync" / "checkpoints").glob(f"*/{MARKER}"))
    assert [path.parent.name for path in committed][:1] == ["step-000000"]


def test_faults_25_27_a_checkpoint_of_another_run_is_refused(killed: Cases) -> None:
    """What may differ and what not: `test_identity`."""
    error = killed.facts["other-rate"]["error"]
    assert "train.optim.lr: 0.001 -> 0.002" in error
    assert "\n" not in error
    assert (killed.root / "other-rate" / "checkpoints" / "step-000005" / MARKER).exists()
    assert [row["step"] for row in killed.runs.rows("allowed")] == list(range(1, 9))
    assert killed.runs.losses("allowed")[:5] == killed.runs.losses("clean")[:5]  # from the checkpoint
    assert "goes on with train.optim.lr: 0.001 -> 0.002" in killed.log("allowed")
    assert killed.runs.model_bytes("allowed") != killed.runs.model_bytes("clean")


def test_fault_26_samples_that_cannot_be_used_are_told(broken: Cases) -> None:
    told = [r for r in broken.runs.rows("refused", "events.jsonl") if r["event"] == "samples refused"]
    assert sum(len(row["samples"]) for row in told) >= 2
    assert all(item % 10 == 0 for row in told for item in row["samples"])
    rows = broken.runs.rows("refused")
    assert not any(row["skipped"] for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_fault_29_out_of_memory_ends_the_group_and_leaves_a_snapshot(killed: Cases) -> None:
    result = killed.worker_groups["no-memory"].result(1)["no-memory"]
    assert "rank 1: out of memory" in result["error"]
    assert "micro_batch from 2" in result["error"]
    assert "rss=" in (killed.root / "no-memory" / "debug" / "memory-00001.txt").read_text()
    assert 0 not in killed.ends["no-memory"][:1]


@pytest.fixture(scope="session")
def stalled(killed: Cases) -> Cases:
    """Groups that stand still; a second group that wants a run which another has."""
    quick = {"stall_seconds": 2, "checkpoint_every": 100}
    jobs = [
        killed.job(fault, fault, at=[11], evaluate_every=1, runtime=quick)
        for fault in ("sleep", "stop_itself", "sleep_in_evaluation")
    ]
    # Earlier: batches are made some steps ahead, and are to be missed before the last step.
    jobs.append(killed.job("sleep_in_data", "sleep_in_data", at=[5], evaluate_every=1, runtime=quick))
    often = {**quick, "checkpoint_every": 2}  # so that the watchdog knows how long a save takes
    jobs.append(killed.job("sleep_in_save", "sleep_in_save", at=[11], runtime=often))
    worker_groups = [killed.start(job) for job in jobs]
    held = killed.start(killed.job("held", "stop_itself", at=[1]))
    held.wait_for((killed.root / "held" / "attempts.jsonl").exists)
    killed.start(killed.job("held"), suffix="-again").wait()
    held.kill()
    for worker_group in worker_groups:
        worker_group.wait()
    return killed


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sleep", "rank 1 is still at `step`"),
        ("stop_itself", "rank 1 gives no sign of life"),
        ("sleep_in_data", "rank 1 is still at `data`"),
        ("sleep_in_evaluation", "rank 1 is still at `evaluate`"),
        ("sleep_in_save", "rank 1 is still at `save`"),
    ],
)
def test_faults_14_15_16_the_watchdog_names_who_stands_still(stalled: Cases, name: str, told: str) -> None:
    assert told in stalled.log(name)
    assert stalled.worker_groups[name].exits[0] == EXIT_STALLED
    stacks = stalled.root / name / "debug" / "stalled"
    assert "all_reduce" in (stacks / "rank-00000.txt").read_text()
    if name != "stop_itself":  # a stopped process writes nothing
        assert "faults.py" in (stacks / "rank-00001.txt").read_text()


def test_fault_33_a_second_group_is_refused(stalled: Cases) -> None:
    for rank in (0, 1):
        error = stalled.worker_groups["held-again"].result(rank)["held"]["error"]
        assert "trains it; wait for that run or end it" in error
    assert f"on {os.uname().nodename}" in error
