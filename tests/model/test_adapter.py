"""Adapters: what they train, their files, the base that they stand on, and the merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from openba import OpenBAForConditionalGeneration, durable
from openba.accounting.flops import parameters
from openba.errors import UserError
from openba.model.adapter import ADAPTER_WEIGHTS, AdapterWriter, add_adapter, trained_state
from openba.model.adapter_base import BASE_FILE, digest_of_weights
from openba.model.export import export
from openba.model.files import load_weights, save_model
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.model.pointer import fetched_model
from openba.model.reload import logits_apart
from openba.recipes.adapter import TARGETS, AdapterRecipe, adapter_parameters
from openba.recipes.model import ModelRecipe
from openba.tokenizer.tokenizer import Tokenizer

SHAPE = {
    "d_model": 32, "num_heads": 2, "kv_channels": 16, "ffn": 96, "ffn_multiple": 16,
    "encoder_layers": 1, "decoder_layers": 2, "positions": 64,
}  # fmt: skip
KINDS = ("lora", "rslora", "dora")


def recipe(kind: str = "lora", **fields: object) -> AdapterRecipe:
    return AdapterRecipe.model_validate({"kind": kind, "rank": 4, **fields})


@pytest.fixture(scope="module")
def base(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model."""
    torch.manual_seed(0)
    model = OpenBAModel(ModelRecipe.model_validate(SHAPE).architecture(tokenizer.size))
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, model.state_dict(), model.architecture, tokenizer)
    return folder


def sample(tokenizer: Tokenizer) -> tuple[Tensor, ...]:
    """A batch of two rows: encoder ids, mask, decoder ids, labels."""
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(3, tokenizer.base, (2, n), generator=generator) for n in (9, 6))
    mask = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    return source, mask, target, target


def write(base: Path, folder: Path, adapter: AdapterRecipe, tokenizer: Tokenizer) -> OpenBAModel:
    """Train an adapter for a few steps and write it; returns the model with the unmerged adapter."""
    model, _ = load_model(base)
    model.requires_grad_(True)
    torch.manual_seed(2)
    add_adapter(model, adapter)
    optimizer = torch.optim.Adam(trained_state(model).values(), lr=1e-2)
    for _ in range(5):
        model.loss(*sample(tokenizer)).backward()
        optimizer.step()
        optimizer.zero_grad()
    AdapterWriter(model, adapter, tokenizer, base).write(folder, trained_state(model))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_trained_and_as_many_numbers_as_counted(base: Path, kind: str) -> None:
    model, _ = load_model(base)
    model.requires_grad_(True)
    add_adapter(model, recipe(kind))
    trained = trained_state(model)
    assert all("lora_" in name for name in trained)
    shape = ModelRecipe.model_validate(SHAPE)
    assert sum(tensor.numel() for tensor in trained.values()) == adapter_parameters(shape, recipe(kind))


@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rank=st.integers(1, 9),
    targets=st.lists(st.sampled_from(TARGETS), min_size=1, unique=True),
)
def test_counts_hold_for_every_choice_of_layers(kind: str, rank: int, targets: list[str]) -> None:
    shape = ModelRecipe.model_validate(SHAPE)
    model = OpenBAModel(shape.architecture(100))
    adapter = recipe(kind, rank=rank, targets=targets)
    add_adapter(model, adapter)
    assert sum(t.numel() for t in trained_state(model).values()) == adapter_parameters(shape, adapter)


def test_two_percent_of_the_15b_are_trained() -> None:
    from openba.config import CONFIGS, load

    shape = load(CONFIGS / "model" / "openba-15b-released.yaml", ModelRecipe)
    share = adapter_parameters(shape, AdapterRecipe(kind="lora")) / sum(parameters(shape, 250_203).values())
    assert 0.002 < share < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_computes_what_the_adapter_does(
    base: Path, tokenizer: Tokenizer, kind: str, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    unmerged = write(base, tmp_path / "adapter", recipe(kind), tokenizer).eval()
    merged, _ = load_model(tmp_path / "adapter")
    assert merged.state_dict().keys() == load_weights(base).keys()
    with torch.no_grad():
        losses = [model.loss(*sample(tokenizer)) for model in (unmerged, merged, load_model(base)[0])]
    assert abs(losses[0] - losses[1]) < 1e-5 * losses[0]
    assert losses[2] - losses[0] > 1.0  # it has learnt
    assert {path.name: path.read_bytes() for path in base.iterdir()} == files
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").glob("*.safetensors"))
    assert size < (base / "model.safetensors").stat().st_size / 3


@pytest.mark.parametrize("kind", KINDS)
def test_peft_reads_the_folder_with_the_transformers_class(
    base: Path, tokenizer: Tokenizer, kind: str, tmp_path: Path
) -> None:
    write(base, tmp_path / "adapter", recipe(kind), tokenizer)
    plain = OpenBAForConditionalGeneration.from_pretrained(base)
    theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    merged, _ = load_model(tmp_path / "adapter")
    source, mask, target, labels = sample(tokenizer)
    with torch.no_grad():
        loss = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target, labels=labels).loss
        expected = merged.loss(source, mask, target, labels) / labels.numel()
    assert float(loss) == pytest.approx(float(expected), abs=1e-5)


def test_an_adapter_is_exported_as_a_whole_model(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(base, tmp_path / "adapter", recipe(), tokenizer)
    export(tmp_path / "adapter", tmp_path / "whole", "safetensors")
    merged, _ = load_model(tmp_path / "adapter")
    whole = load_weights(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in merged.state_dict().items())


def test_an_adapter_may_stand_on_an_adapter(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(base, tmp_path / "first", recipe(), tokenizer)
    second = write(tmp_path / "first", tmp_path / "second", recipe("dora"), tokenizer).eval()
    merged, _ = load_model(tmp_path / "second")
    with torch.no_grad():
        losses = [float(model.loss(*sample(tokenizer))) for model in (second, merged)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def assert_refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_base_is_refused(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    write(tmp_path / "base", tmp_path / "adapter", recipe(), tokenizer)
    assert digest_of_weights(tmp_path / "base") == digest_of_weights(base)
    torch.manual_seed(9)
    other = OpenBAModel(load_model(base)[0].architecture)
    save_model(tmp_path / "base", other.state_dict(), other.architecture, tokenizer)
    assert_refused(tmp_path / "adapter", "are not those that the adapter was trained on")
    shutil.rmtree(tmp_path / "base")
    assert_refused(tmp_path / "adapter", "is not there")


def test_a_damaged_adapter_is_refused(base: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write(base, folder, recipe(), tokenizer)
    intact_bytes = (folder / ADAPTER_WEIGHTS).read_bytes()
    (folder / ADAPTER_WEIGHTS).write_bytes(intact_bytes[: len(intact_bytes) // 2])
    assert_refused(folder, "not readable")
    (folder / ADAPTER_WEIGHTS).write_bytes(intact_bytes)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    assert_refused(folder, "does not fit its base")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["qkv"]}))
    assert_refused(folder, "is missing or unexpected")
    (folder / BASE_FILE).write_text("{}")
    assert_refused(folder, "train the adapter again")


def test_a_pointer_leads_to_adapter_and_base_wherever_they_are(
    base: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    for name in ("there", "here"):
        shutil.copytree(base, tmp_path / name / "start" / "model")
    write(
        tmp_path / "there" / "start" / "model", tmp_path / "there" / "expert" / "model", recipe(), tokenizer
    )
    expected = load_model(tmp_path / "there" / "expert" / "model")[0].state_dict()
    (tmp_path / "there" / "expert").rename(tmp_path / "here" / "expert")
    shutil.rmtree(tmp_path / "there")
    outputs = [tmp_path / "here" / name for name in ("expert", "start")]
    pointers = [
        {
            "uri": output.as_uri(),
            "files": {
                path.relative_to(output).as_posix(): {"sha256": durable.sha256(path)}
                for path in (output / "model").iterdir()
            },
        }
        for output in outputs
    ]
    with fetched_model({**pointers[0], "base": pointers[1]}) as folder:
        found = load_model(folder)[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    (outputs[1] / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"), fetched_model({**pointers[0], "base": pointers[1]}):
        pass


def test_transformers_computes_what_the_merged_adapter_does(
    base: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write(base, tmp_path / "adapter", recipe(), tokenizer)
    assert logits_apart(tmp_path / "adapter") < 1e-5
