"""The released layout: a folder as published loads as it is, computes what the release does, and goes back.

The fixture holds a tiny random model in that layout (83 tensors, two of them copies of the embedding that the
released class adds), its inputs and what the released code made of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openba import OpenBAConfig, OpenBAForConditionalGeneration
from openba.errors import UserError
from openba.model.blocks import FullAttention
from openba.model.files import load_architecture, load_weights, restore, write_released
from openba.model.model import OpenBAModel
from openba.model.rows import Rows

COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
CLOSE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(scope="module")
def fixture(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "fixtures" / "released_model_tiny.safetensors")


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "fixtures" / "released_model_tiny.json").read_text())


@pytest.fixture(scope="module")
def state(fixture: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "state_dict/"
    return {name.removeprefix(prefix): t for name, t in fixture.items() if name.startswith(prefix)}


Publish = Callable[..., Path]


@pytest.fixture
def publish(state: dict[str, Tensor], facts: dict[str, Any], tmp_path: Path) -> Publish:
    """Write the model as published, with or without the copies, in fp16 or fp32."""

    def write(copies: bool = False, dtype: torch.dtype = torch.float32) -> Path:
        chosen = {k: v.to(dtype) for k, v in state.items() if copies or k not in COPIES}
        # An own copy each: the embedding and its copies share storage in the fixture's class.
        save_file({k: v.clone() for k, v in chosen.items()}, tmp_path / "model.safetensors")
        config = facts["config"] | {"model_type": "openba", "is_encoder_decoder": True}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


@pytest.fixture(scope="module")
def model(
    state: dict[str, Tensor], facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> OpenBAForConditionalGeneration:
    folder = tmp_path_factory.mktemp("released")
    save_file({k: v for k, v in state.items() if k not in COPIES}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(facts["config"] | {"model_type": "openba"}))
    return OpenBAForConditionalGeneration.from_pretrained(folder)


@pytest.fixture
def prompt(fixture: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: fixture[name] for name in ("input_ids", "attention_mask")}


def test_the_layout_has_81_tensors_and_two_copies(state: dict[str, Tensor], facts: dict[str, Any]) -> None:
    assert len(state) == 83
    assert state.keys() > COPIES
    own = {name: tensor for name, tensor in state.items() if name not in COPIES}
    expected = OpenBAModel(OpenBAConfig(**facts["config"]).architecture()).state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in expected.items()}


def test_the_15b_config_has_the_published_tensors_and_parameters() -> None:
    config = OpenBAConfig(
        vocab_size=250368, hidden_size=4096, kv_channels=128, num_heads=40, ffn_hidden_size=16384,
        num_layers=12, num_decoder_layers=36, add_qkv_bias=True, add_lm_head_bias=True,
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        untied = OpenBAModel(config.architecture())
        config.tie_word_embeddings = True
        tied = OpenBAModel(config.architecture())
    assert sum(p.numel() for p in tied.parameters()) == 14_567_703_040
    assert sum(p.numel() for p in untied.parameters()) == 15_593_210_368
    state = untied.state_dict()
    assert len(state) == 775
    block = "decoder.block.35"
    shapes = {
        "shared_embedding.weight": (250368, 4096),
        "lm_head.weight": (250368, 4096),
        "lm_head.bias": (250368,),
        "encoder.block.11.self_attn.qkv.weight": (15360, 4096),
        "encoder.block.11.mlp.fc_out.weight": (4096, 11008),
        f"{block}.mlp.fc_in.weight": (22016, 4096),
        f"{block}.inter_attn.q.bias": (5120,),
        f"{block}.inter_attn.kv.weight": (10240, 4096),
        f"{block}.inter_attn.o.weight": (4096, 5120),
        f"{block}.post_inter_attn_layernorm.bias": (4096,),
    }
    for name, shape in shapes.items():
        assert state[name].shape == shape


@pytest.mark.parametrize("copies", [False, True])
def test_both_loaders_read_the_published_folder(
    publish: Publish, fixture: dict[str, Tensor], prompt: dict[str, Tensor], copies: bool
) -> None:
    folder = publish(copies)
    ours = OpenBAModel(load_architecture(folder))
    restore(ours, load_weights(folder), folder, assign=True)
    theirs = OpenBAForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        found = theirs.eval()(**prompt, decoder_input_ids=fixture["decoder_input_ids"]).logits
        source = Rows.ragged(prompt["attention_mask"].bool())
        ids = fixture["decoder_input_ids"]
        target = Rows.padded(torch.ones_like(ids, dtype=torch.bool))
        mine = ours.eval().logits(ours.hidden(prompt["input_ids"], source, ids, target))
    torch.testing.assert_close(found, fixture["logits"], **CLOSE)
    torch.testing.assert_close(target.grid(mine, ids.shape[1]), fixture["logits"], **CLOSE)


def test_hidden_states_logits_and_loss_are_the_releases(
    model: OpenBAForConditionalGeneration, fixture: dict[str, Tensor], prompt: dict[str, Tensor]
) -> None:
    real, ids, mask = prompt["attention_mask"].bool(), fixture["decoder_input_ids"], "decoder_attention_mask"
    with torch.no_grad():
        plain = model(**prompt, decoder_input_ids=ids, use_cache=False)
        labelled = model(**prompt, labels=fixture["labels"])
        masked = model(**prompt, decoder_input_ids=ids, **{mask: fixture[mask]}, use_cache=False)
    torch.testing.assert_close(
        plain.encoder_last_hidden_state[real], fixture["encoder_last_hidden_state"][real], **CLOSE
    )
    torch.testing.assert_close(plain.logits, fixture["logits"], **CLOSE)
    torch.testing.assert_close(labelled.logits, fixture["logits_from_labels"], **CLOSE)
    assert float(labelled.loss) == pytest.approx(float(fixture["loss"]), abs=1e-4)
    at = fixture[mask].bool()
    torch.testing.assert_close(masked.logits[at], fixture["logits_with_decoder_mask"][at], **CLOSE)


def test_cached_steps_are_the_releases(
    model: OpenBAForConditionalGeneration, fixture: dict[str, Tensor], prompt: dict[str, Tensor]
) -> None:
    cache, steps = None, []
    with torch.no_grad():
        for ids in fixture["decoder_input_ids"].split(1, dim=1):
            out = model(**prompt, decoder_input_ids=ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), fixture["cached_step_logits"], **CLOSE)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("generated_greedy", {"eos_token_id": None}),
        ("generated_eos", {}),
        ("generated_beam3", {"num_beams": 3, "eos_token_id": None}),
    ],
)
def test_generated_tokens_are_the_releases(
    model: OpenBAForConditionalGeneration,
    fixture: dict[str, Tensor],
    prompt: dict[str, Tensor],
    name: str,
    settings: dict[str, Any],
) -> None:
    new = fixture[name].shape[1] - 1
    found = model.generate(**prompt, max_new_tokens=new, do_sample=False, **settings)
    assert torch.equal(found, fixture[name])


def test_every_gradient_norm_is_the_releases(
    publish: Publish, facts: dict[str, Any], fixture: dict[str, Tensor], prompt: dict[str, Tensor]
) -> None:
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = OpenBAForConditionalGeneration.from_pretrained(publish(), **still).train()
    model(**prompt, labels=fixture["labels"]).loss.backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters()}
    assert norms.keys() == facts["grad_norms"].keys()
    assert norms == pytest.approx(facts["grad_norms"], rel=1e-3)


def test_the_published_precision_is_near(
    publish: Publish, fixture: dict[str, Tensor], prompt: dict[str, Tensor]
) -> None:
    model = OpenBAForConditionalGeneration.from_pretrained(publish(dtype=torch.float16), dtype="auto")
    assert model.dtype == torch.float16
    with torch.no_grad():
        found = model(**prompt, decoder_input_ids=fixture["decoder_input_ids"]).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fixture["logits"], atol=0.05, rtol=0.02)


def test_the_published_folder_goes_there_and_back(
    publish: Publish, state: dict[str, Tensor], facts: dict[str, Any], tmp_path: Path
) -> None:
    folder = publish(copies=True, dtype=torch.float16)
    model = OpenBAModel(load_architecture(folder))
    restore(model, load_weights(folder), folder, assign=True)
    write_released(tmp_path / "back", model.state_dict(), model.architecture)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == state.keys() - COPIES
    for name, tensor in back.items():
        assert tensor.dtype == torch.float16
        assert torch.equal(tensor, state[name].half())
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert facts["config"].items() <= config.items()


@pytest.mark.parametrize("copies", [False, True])
def test_a_tensor_too_few_is_no_model(publish: Publish, copies: bool) -> None:
    folder, lost = publish(copies), "decoder.block.2.inter_attn.kv.bias"
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors")
    message = f"{folder}: tensor {lost} is missing; weights and config do not belong together"
    with pytest.raises(UserError) as error:
        restore(OpenBAModel(load_architecture(folder)), load_weights(folder), folder)
    assert str(error.value) == message
    with pytest.raises(ValueError, match="is missing") as other:
        OpenBAForConditionalGeneration.from_pretrained(folder)
    assert str(other.value) == message


def test_attention_over_no_encoder_token_is_zero_not_nan(model: OpenBAForConditionalGeneration) -> None:
    # The release fills masked scores with -1e4, which lets a row of padding see its padding.
    rows = Rows.padded(torch.ones(1, 3, dtype=torch.bool))
    empty = Rows.ragged(torch.zeros(1, 4, dtype=torch.bool))
    encoded = torch.zeros(0, model.config.hidden_size)
    with torch.no_grad():
        hidden = model.decode(torch.tensor([0, 5, 6]), rows, FullAttention(rows, encoded, empty, 0.0))
    assert model.logits(hidden).isfinite().all()
