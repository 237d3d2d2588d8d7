"""Checkpoints of a group that was killed with -9: committed or not there, whole or passed over."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from openba import durable
from openba.errors import UserError
from openba.train.checkpoint import LOGS, MARKER, Checkpoints, committed_steps, read_marker
from tests.train.conftest import HALVES, STEPS


def test_a_killed_group_goes_on_from_its_last_checkpoint(runs: Any) -> None:
    first, second = runs.rows("killed", "attempts.jsonl")
    assert first["from"] == 0
    assert second["from"] >= 6
    assert runs.facts["resumed"]["resumed"] == 1


@pytest.mark.parametrize(("run", "facts"), [("killed", "resumed"), ("damaged", "damaged")])
def test_the_resumed_run_ends_as_the_undisturbed_one(runs: Any, run: str, facts: str) -> None:
    assert runs.model_bytes(run) == runs.model_bytes("undisturbed")  # dropout and all
    keys = ("step", "loss", "lr", "gradient_norm", "tokens", "targets", "skipped", "totals")
    for step in ("4", "8"):
        kept = [
            (runs.root / name / "steps" / step / "model.safetensors").read_bytes()
            for name in (run, "undisturbed")
        ]
        assert kept[0] == kept[1] != runs.model_bytes(run)
    rows, expected = ([{k: row[k] for k in keys} for row in runs.rows(name)] for name in (run, "undisturbed"))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows == expected
    assert runs.rows(run, "heldout.jsonl") == runs.rows("undisturbed", "heldout.jsonl")
    same = ("tokens", "target_tokens", "final_loss", "heldout", "steps", "flops")
    assert [runs.facts[facts][key] for key in same] == [runs.facts["undisturbed"][key] for key in same]


def test_a_turned_bit_and_a_missing_marker_are_passed_over(runs: Any) -> None:
    resumed = runs.rows("killed", "attempts.jsonl")[-1]["from"]
    assert runs.rows("damaged", "attempts.jsonl")[-1]["from"] == resumed - 4 > 0
    log = "".join(path.read_text() for path in (runs.root / "worker-group-two").glob("*.log"))
    assert "rank-00001.safetensors is not what was written" in log


def test_another_number_of_workers_goes_on(runs: Any) -> None:
    _, second = runs.rows("other-world", "attempts.jsonl")
    assert second["from"] == runs.rows("killed", "attempts.jsonl")[-1]["from"] > 0
    rows, expected = runs.rows("other-world"), runs.rows("undisturbed")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    counted = ("tokens", "targets", "lr", "totals")
    assert [[row[key] for key in counted] for row in rows] == [
        [row[key] for key in counted] for row in expected
    ]


@pytest.mark.parametrize(
    ("loaded", "saved"),
    [
        ("one-of-two", "saved"),
        ("two-of-one", "saved"),
        ("one-of-zero3", "saved-zero3"),
        ("zero3-of-zero1", "saved"),
        ("one-of-bf16", "saved-bf16"),
        ("one-of-muon", "saved-muon"),
    ],
)
def test_faults_23_24_workers_and_zero_stage_may_change(runs: Any, loaded: str, saved: str) -> None:
    """Also from two to one to two: the state is the saved one in every bit, the losses are the run's own."""
    assert runs.facts[loaded]["state"] == runs.facts[saved]["state"]
    assert runs.facts[saved]["state"]["adam_step"] == 3
    tolerance = 1e-3 if saved in ("saved-bf16", "saved-muon") else 1e-6
    assert runs.facts[loaded]["losses"] == pytest.approx(runs.facts[saved]["losses"], rel=tolerance)


@pytest.mark.parametrize("name", [*HALVES, "muon"])
def test_fault_1_stop_and_resume_is_the_straight_run(runs: Any, name: str) -> None:
    """ZeRO 1 in fp32: `test_the_resumed_run_ends_as_the_undisturbed_one`."""
    straight, resumed = runs.facts[name]["states"]
    assert straight == resumed
    assert runs.facts[name]["losses"][0] == runs.facts[name]["losses"][1]


def test_the_newest_two_are_kept(runs: Any) -> None:
    assert runs.facts["saved"]["folders"] == ["step-000002", "step-000003"]


def test_a_finished_stage_is_not_trained_again(runs: Any) -> None:
    """As after a kill between its end and its publication: the facts and the model of the first run stay."""
    assert runs.facts["again"] == runs.facts["undisturbed"]
    assert runs.rows("undisturbed", "attempts.jsonl") == runs.rows("again", "attempts.jsonl")
    assert runs.model_bytes("again") == runs.model_bytes("undisturbed")


def test_a_finished_stage_with_a_damaged_model_goes_on_from_its_checkpoint(runs: Any) -> None:
    attempts = runs.rows("again-damaged", "attempts.jsonl")
    assert attempts[-1]["from"] == 8  # of ten steps
    assert runs.model_bytes("again-damaged") == runs.model_bytes("undisturbed")


def committed(folder: Path, step: int, state: bytes = b"weights") -> Path:
    """A checkpoint with two shares and its marker."""
    checkpoint = folder / f"step-{step:06d}"
    checkpoint.mkdir(parents=True)
    files = {}
    for rank in range(2):
        data = state + bytes([rank])
        (checkpoint / f"rank-{rank:05d}.safetensors").write_bytes(data)
        files[f"rank-{rank:05d}.safetensors"] = [len(data), hashlib.sha256(data).hexdigest()]
    durable.write_json(checkpoint / MARKER, durable.signed({"step": step, "files": files}))
    return checkpoint


@pytest.mark.parametrize("steps", [(9, 10, 999_999, 1_000_000), (999_999, 1_000_000, 12_345_678)])
def test_any_number_of_steps_is_found_in_order_and_pruned(tmp_path: Path, steps: tuple[int, ...]) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in steps:
        committed(checkpoints.folder, step)
    assert committed_steps(checkpoints.folder) == list(steps)
    assert checkpoints.newest() == checkpoints.folder / f"step-{steps[-1]:06d}"
    checkpoints.prune()
    assert committed_steps(checkpoints.folder) == list(steps[-2:])


def test_every_flipped_bit_of_the_marker_is_noticed(tmp_path: Path) -> None:
    """Also that in `"step": 8`, which would skip a step."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    older, newer = (committed(checkpoints.folder, step) for step in (7, 8))
    record, content = read_marker(newer), (newer / MARKER).read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            (newer / MARKER).write_bytes(flipped)
            with contextlib.suppress(ValueError):
                assert read_marker(newer) == record  # such as another white space
    (newer / MARKER).write_bytes(content.replace(b'"step": 8', b'"step": 9'))
    assert checkpoints.newest() == older


def test_every_file_of_a_checkpoint_has_a_digest(runs: Any) -> None:
    folder = runs.root / "undisturbed" / "checkpoints" / "step-000008"
    files = {path.name for path in folder.iterdir()}
    assert files == {MARKER, *read_marker(folder)["files"]}
    assert LOGS in files


def test_a_checkpoint_of_an_older_version_is_refused_not_put_aside(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    old = committed(checkpoints.folder, 5)
    (old / MARKER).write_text(json.dumps({"step": 5, "files": {}, "format": 3}))
    with pytest.raises(UserError, match="a checkpoint of form 3"):
        checkpoints.newest()
    assert old.exists()


def test_the_newest_whole_one_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    folders = {step: committed(checkpoints.folder, step) for step in (5, 10, 80, 90, 100)}
    (checkpoints.folder / "step-000110.tmp").mkdir()  # of a group that was killed while it wrote
    assert checkpoints.newest() == folders[100]
    (folders[100] / MARKER).unlink()
    (folders[90] / "rank-00001.safetensors").write_bytes(b"weight")
    (folders[80] / "rank-00000.safetensors").write_bytes(b"Weights\0")
    (folders[10] / "rank-00000.safetensors").unlink()
    assert checkpoints.newest() == folders[5]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    assert "rank-00001.safetensors has 6 bytes of 8" in told[1]
    assert (checkpoints.folder / "step-000090.damaged").exists()
    (folders[5] / MARKER).write_text('{"step": 5, "fil')
    assert checkpoints.newest() is None


@pytest.mark.parametrize("fault", ["deleted", "swapped", "stale"])
def test_fault_8_shards_that_are_not_the_checkpoints_own_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    """All of one size, so that only the digests tell."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    older, newer = (committed(checkpoints.folder, step, b"step %d" % step) for step in (1, 2))
    first, second = (newer / f"rank-0000{rank}.safetensors" for rank in (0, 1))
    if fault == "deleted":
        second.unlink()
    elif fault == "swapped":
        data = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(data)
    else:
        second.write_bytes((older / second.name).read_bytes())
    assert checkpoints.newest() == older
    told = capsys.readouterr().err
    assert "rank-0000" in told
    assert ("No such file" if fault == "deleted" else "is not what was written") in told


def test_fault_4_before_the_marker_the_old_one_counts_behind_it_the_new_one(tmp_path: Path) -> None:
    """There is no pointer: the newest marker is it; what follows it is only the end of old checkpoints."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    old, new = (committed(checkpoints.folder, step) for step in (1, 2))
    marker = (new / MARKER).read_bytes()
    (new / MARKER).unlink()
    staged = new.rename(new.with_suffix(".tmp"))
    assert checkpoints.newest() == old  # killed with all shards written
    shards = staged.rename(new)
    (new / f"{MARKER}.part").write_bytes(marker[:9])
    assert checkpoints.newest() == old  # killed while the marker was written
    shards.with_name(f"{new.name}.damaged").rename(new)
    (new / MARKER).write_bytes(marker)
    assert checkpoints.newest() == new  # killed before the old one was removed


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
