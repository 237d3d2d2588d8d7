"""Checkpoints of a group that was killed with -9: committed or not there, whole or passed over."""

from __future__ import annotations

import hashlib
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


def test_a_turned_bit_and_a_missing_marker_are_passed_over(runs: Any) -> None:
    resumed = runs.rows("killed", "attempts.jsonl")[-1]["from"]
    assert runs.rows("damaged", "attempts.jsonl")[-1]["from"] == resumed - 4 > 0
    log = "".join(path.read_text() for path in (runs.root / "gang-two").glob("*.log"))
    assert "rank-00001.safetensors is not what was written" in log


def test_another_number_of_workers_goes_on(runs: Any) -> None:
    _, second = runs.rows("other-world", "attempts.jsonl")
    assert second["from"] == runs.rows("killed", "attempts.jsonl")[-1]["from"] > 0
    rows, expected = runs.rows("other-world"), runs.rows("undisturbed")
    assert [row["step"] for row in rows] == list(range(1, 17))
    counted = ("tokens", "targets", "lr", "totals")
    assert [[row[key] for key in counted] for row in rows] == [
        [row[key] for key in counted] for row in expected
    ]


@pytest.mark.parametrize(
    ("loaded", "saved"),
    [
        ("one-of-two", "saved"),
        ("one-of-zero3", "saved-zero3"),
        ("zero3-of-zero1", "saved"),
        ("one-of-bf16", "saved-bf16"),
    ],
)
def test_workers_and_zero_stage_may_change(runs: Any, loaded: str, saved: str) -> None:
    """The state is the saved one bit by bit; the next losses are as those of the run that went on."""
    assert runs.facts[loaded]["state"] == runs.facts[saved]["state"]
    assert runs.facts[saved]["state"]["adam"] == 3
    tolerance = 1e-6 if "bf16" not in saved else 1e-3
    assert runs.facts[loaded]["losses"] == pytest.approx(runs.facts[saved]["losses"], rel=tolerance)


def test_the_newest_two_are_kept(runs: Any) -> None:
    assert runs.facts["saved"]["folders"] == ["step-000002", "step-000003"]


def test_a_finished_stage_leaves_no_checkpoint(runs: Any) -> None:
    for run in ("undisturbed", "killed", "damaged", "other-world"):
        assert not (runs.root / run / "checkpoints").exists()


def committed(folder: Path, step: int) -> Path:
    """A checkpoint with two shares and its marker."""
    checkpoint = folder / f"step-{step:06d}"
    checkpoint.mkdir(parents=True)
    files = {}
    for rank in range(2):
        data = b"weights" * (rank + 1)
        (checkpoint / f"rank-{rank:05d}.safetensors").write_bytes(data)
        files[f"rank-{rank:05d}.safetensors"] = [len(data), hashlib.sha256(data).hexdigest()]
    (checkpoint / MARKER).write_text(json.dumps({"step": step, "files": files}))
    return checkpoint


def test_the_newest_whole_one_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    folders = {step: committed(checkpoints.folder, step) for step in (5, 10, 80, 90, 100)}
    (checkpoints.folder / "step-000110.tmp").mkdir()  # of a group that was killed while it wrote
    assert checkpoints.newest() == folders[100]
    (folders[100] / MARKER).unlink()
    (folders[90] / "rank-00001.safetensors").write_bytes(b"weight")
    (folders[80] / "rank-00000.safetensors").write_bytes(b"Weights")
    (folders[10] / "rank-00000.safetensors").unlink()
    assert checkpoints.newest() == folders[5]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    assert "rank-00001.safetensors has 6 bytes of 14" in told[1]
    assert (checkpoints.folder / "step-000090.damaged").exists()
    (folders[5] / MARKER).write_text('{"step": 5, "fil')
    assert checkpoints.newest() is None


def test_a_damaged_one_is_no_reason_to_drop_a_whole_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 2, 3):
        committed(checkpoints.folder, step)
    (checkpoints.folder / "step-000003" / "rank-00000.safetensors").unlink()
    assert checkpoints.newest() == checkpoints.folder / "step-000002"
    committed(checkpoints.folder, 4)
    checkpoints.prune()
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == [
        "step-000002", "step-000003.damaged", "step-000004",
    ]  # fmt: skip
