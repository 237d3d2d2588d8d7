"""What a checkpoint belongs to: files by content, not by place or time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from openba.durable import sampled_digest
from openba.errors import UserError
from openba.recipes.train import TrainStep
from openba.train.identity import FORMAT, check, identity
from tests.harness.worker_groups import job


@pytest.fixture
def record(mixture_folder: Path, tokenizer_folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    return {"format": FORMAT, "identity": identity(step(), inputs(mixture_folder, tokenizer_folder))}


def step(**change: Any) -> TrainStep:
    """A tiny Stage I; `model__` and `train__` before the keys to change."""
    found = job(Path("x"), {}, "x:y")["recipe"]
    for key, value in change.items():
        part, _, name = key.partition("__")
        found[part][name] = value
    return TrainStep.model_validate(found)


def inputs(data: Path, tokenizer: Path) -> dict[str, Path]:
    return {"data": data, "tokenizer": tokenizer}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train__optim": {"lr": 2e-3}}, "train.optim.lr: 0.001 -> 0.002"),
        ({"train__batch": 16}, "train.batch: 8 -> 16"),
        ({"train__seed": 7}, "train.seed: 1234 -> 7"),
        ({"model__decoder_layers": 3}, "model.decoder_layers: 2 -> 3"),
    ],
)
def test_fault_27_another_recipe_is_refused(
    record: dict[str, Any], mixture_folder: Path, tokenizer_folder: Path, change: dict[str, Any], told: str
) -> None:
    now = identity(step(**change), inputs(mixture_folder, tokenizer_folder))
    with pytest.raises(UserError, match="a checkpoint of another run") as refused:
        check(record, now, Path("checkpoints/step-000005"), changes_allowed=False)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert check(record, now, Path("step-000005"), changes_allowed=True) == [told]


@pytest.mark.parametrize("change", ["changed", "missing", "reordered"])
def test_fault_25_other_data_is_refused(
    record: dict[str, Any], mixture_folder: Path, tokenizer_folder: Path, tmp_path: Path, change: str
) -> None:
    data = Path(shutil.copytree(mixture_folder, tmp_path / "data"))
    file = data / "stage1" / "tokens-00000.npy"
    if change == "missing":
        file.unlink()
    else:
        shard = np.load(file, mmap_mode="r+")
        shard[:2] = shard[[1, 0]] if change == "reordered" else shard[:2] + 1
        shard.flush()
    with pytest.raises(UserError, match=r"inputs\.data\.stage1/tokens-00000\.npy: "):
        check(record, identity(step(), inputs(data, tokenizer_folder)), Path("step"), changes_allowed=False)


def test_the_kept_weights_that_a_run_starts_from_are_part_of_its_identity(
    mixture_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    for folder in ("model", "steps/4"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").write_bytes(folder.encode())
    given = inputs(mixture_folder, tokenizer_folder) | {"start": tmp_path}
    end, kept = step(), step().model_copy(update={"start_step": 4})
    assert list(identity(end, given)["inputs"]["start"]) == ["model/model.safetensors"]
    before = identity(kept, given)
    assert list(before["inputs"]["start"]) == ["steps/4/model.safetensors"]
    (tmp_path / "steps/4/model.safetensors").write_bytes(b"other")
    assert identity(kept, given) != before


def test_another_part_of_the_mixture_is_refused(
    record: dict[str, Any], mixture_folder: Path, tokenizer_folder: Path
) -> None:
    now = identity(step().model_copy(update={"part": "stage2"}), inputs(mixture_folder, tokenizer_folder))
    with pytest.raises(UserError, match="part: stage1 -> stage2"):
        check(record, now, Path("step"), changes_allowed=False)


def test_fault_25_another_tokenizer_is_refused(
    record: dict[str, Any], mixture_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    tokenizer = Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))
    proto = sentencepiece_model_pb2.ModelProto.FromString((tokenizer / "spiece.model").read_bytes())
    proto.pieces[-1].score -= 1
    (tokenizer / "spiece.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=r"inputs\.tokenizer\.spiece\.model: "):
        check(
            record, identity(step(), inputs(mixture_folder, tokenizer)), Path("step"), changes_allowed=False
        )


def test_fault_27_what_is_only_measured_may_change(
    record: dict[str, Any], mixture_folder: Path, tokenizer_folder: Path
) -> None:
    now = identity(step(train__evaluate_every=2), inputs(mixture_folder, tokenizer_folder))
    assert check(record, now, Path("step"), changes_allowed=False) == ["train.evaluate_every: 4 -> 2"]


def test_fault_28_another_form_is_refused(record: dict[str, Any]) -> None:
    del record["format"]
    with pytest.raises(UserError, match=f"of form 1, this version of openba reads {FORMAT}"):
        check(record, record["identity"], Path("step"), changes_allowed=True)


@settings(max_examples=30)
@given(size=st.integers(1, 2**18), place=st.floats(0, 1, exclude_max=True))
def test_a_change_in_a_small_file_shows(
    tmp_path_factory: pytest.TempPathFactory, size: int, place: float
) -> None:
    file = tmp_path_factory.mktemp("file") / "tokens.npy"
    data = np.random.default_rng(size).integers(0, 255, size, np.uint8)
    file.write_bytes(data.tobytes())
    before = sampled_digest(file)
    assert sampled_digest(file) == before
    data[int(place * size)] ^= 1
    file.write_bytes(data.tobytes())
    assert sampled_digest(file) != before
    file.write_bytes(data.tobytes()[:-1])
    assert sampled_digest(file) != before


def test_a_large_file_is_read_in_part(tmp_path: Path) -> None:
    file = tmp_path / "tokens.npy"
    with file.open("wb") as store:
        store.truncate(2**34)  # sixteen GiB of nothing
    assert len(sampled_digest(file)) == 16
