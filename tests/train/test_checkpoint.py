"""Checkpoints of a group that was killed with -9: committed or not there, whole or passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openba.train.checkpoint import MARKER, Checkpoints


def test_a_killed_group_goes_on_from_its_last_checkpoint(runs: Any) -> None:
    first, second = runs.rows("killed", "attempts.jsonl")
    assert first["from"] == 0
    assert second["from"] >= 6
    assert runs.facts["resumed"]["resumed"] == 1


@pytest.mark.parametrize(("run", "facts"), [("killed", "resumed"), ("damaged", "damaged")])
def test_the_resumed_run_ends_as_the_undisturbed_one(runs: Any, run: str, facts: str) -> None:
    assert runs.model_bytes(run) == runs.model_bytes("undisturbed")  # dropout and all
    keys = ("step", "loss", "lr", "gradient_norm", "tokens", "targets", "skipped", "totals")
    rows, expected = ([{k: row[k] for k in keys} for row in runs.rows(name)] for name in (run, "undisturbed"))
    assert [row["step"] for row in rows] == list(range(1, 17))
    assert rows == expected
    assert runs.rows(run, "heldout.jsonl") == runs.rows("undisturbed", "heldout.jsonl")
    same = ("tokens", "target_tokens", "final_loss", "heldout", "steps", "flops")
    assert [runs.facts[facts][key] for key in same] == [runs.facts["undisturbed"][key] for key in same]


def test_uncommitted_and_truncated_checkpoints_are_passed_over(runs: Any) -> None:
    resumed = runs.rows("killed", "attempts.jsonl")[-1]["from"]
    assert runs.rows("damaged", "attempts.jsonl")[-1]["from"] == resumed - 4 > 0


def test_another_number_of_workers_starts_again(runs: Any) -> None:
    assert [row["from"] for row in runs.rows("other-world", "attempts.jsonl")] == [0, 0]
    assert [row["step"] for row in runs.rows("other-world")] == list(range(1, 17))
    assert runs.model_bytes("other-world") == runs.model_bytes("alone")


def test_checkpoints_of_another_number_of_workers_do_not_push_out_new_ones(runs: Any) -> None:
    facts = runs.facts["other-world-checkpoints"]
    assert facts["before"] is None
    assert facts["newest"] == [
        "3",
        str(runs.root / "other-world-checkpoints" / "checkpoints" / "step-000003"),
    ]
    assert {"step-000002", "step-000003"} <= set(facts["folders"])
    assert "step-000001" not in facts["folders"]
    assert facts["of_two_workers"] is None  # void: their run began again


def test_a_finished_stage_leaves_no_checkpoint(runs: Any) -> None:
    for run in ("undisturbed", "killed", "damaged", "other-world"):
        assert not (runs.root / run / "checkpoints").exists()


def committed(folder: Path, step: int, world: int = 2) -> Path:
    """A checkpoint with two shards and its marker."""
    checkpoint = folder / f"step-{step:06d}"
    (checkpoint / "shards").mkdir(parents=True)
    files = {}
    for rank in range(world):
        (checkpoint / "shards" / f"{rank}.pt").write_bytes(b"weights" * (rank + 1))
        files[f"shards/{rank}.pt"] = 7 * (rank + 1)
    (checkpoint / MARKER).write_text(json.dumps({"step": step, "world": world, "files": files}))
    return checkpoint


def test_the_newest_whole_one_is_chosen(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest(2) is None
    for step in (5, 10, 90, 100):
        committed(checkpoints.folder, step)
    assert checkpoints.newest(2) == (100, checkpoints.folder / "step-000100")
    assert checkpoints.newest(1) is None
    (checkpoints.folder / "step-000100" / MARKER).unlink()
    (checkpoints.folder / "step-000090" / "shards" / "1.pt").write_bytes(b"weights")
    assert checkpoints.newest(2) == (10, checkpoints.folder / "step-000010")
    (checkpoints.folder / "step-000010" / "shards" / "0.pt").unlink()
    (checkpoints.folder / "step-000005" / MARKER).write_text('{"step": 5, "wor')
    assert checkpoints.newest(2) is None
