"""The model in transformers' wider world: adapters, quantisers, offloading, graphs, hooks, inputs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForSeq2SeqLM

from openba import OpenBAConfig, OpenBAEncoderDecoder, OpenBAForConditionalGeneration
from openba.model.loss import linear_cross_entropy

VOCAB = 61
SHAPES = {
    "paper": {"norm": "rmsnorm", "sandwich_norm": True, "scale_embedding": True},
    "release": {"norm": "layernorm", "add_qkv_bias": True, "add_lm_head_bias": True},
}
BLOCK_LAYERS = ["qkv", "q", "kv", "o", "fc_in", "fc_out"]


def make(form: str = "paper", **fields: Any) -> OpenBAForConditionalGeneration:
    torch.manual_seed(0)
    config = OpenBAConfig(
        **{
            "vocab_size": VOCAB, "hidden_size": 24, "kv_channels": 8, "num_heads": 3, "ffn_hidden_size": 36,
            "ffn_multiple": 8, "num_layers": 2, "num_decoder_layers": 3, "hidden_dropout": 0.0,
            "attention_dropout": 0.0, "max_seq_length": 16, "decoder_max_seq_length": 16,
            "initializer_range": 0.2, **SHAPES[form], **fields,
        }
    )  # fmt: skip
    model = OpenBAForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two rows, the second with padding on its left."""
    mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    return {"input_ids": ids(2, 6), "attention_mask": mask, "labels": ids(2, 5, seed=2)}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> float:
    with torch.no_grad():
        return float(model(**batch).loss)


def train(model: nn.Module, batch: dict[str, Tensor], steps: int = 30) -> nn.Module:
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


# M1, M3: adapters


@pytest.mark.parametrize("saved", [None, ["shared_embedding"], ["lm_head"], ["shared_embedding", "lm_head"]])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_is_worth_as_much_merged_saved_and_loaded(
    batch: dict[str, Tensor], saved: list[str] | None, tied: bool, tmp_path: Path
) -> None:
    lora = LoraConfig(r=4, target_modules=BLOCK_LAYERS, modules_to_save=saved)
    before = loss(make(tie_word_embeddings=tied), batch)
    trained = train(get_peft_model(make(tie_word_embeddings=tied), lora), batch)
    after = loss(trained, batch)
    assert after < before - 0.5
    trained.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(make(tie_word_embeddings=tied), tmp_path / "adapter").eval()
    assert loss(again, batch) == pytest.approx(after, abs=1e-4)
    merged = trained.merge_and_unload()
    assert loss(merged, batch) == pytest.approx(after, abs=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    loaded = OpenBAForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert loss(loaded, batch) == pytest.approx(after, abs=1e-4)


def test_an_adapter_on_the_head_learns(batch: dict[str, Tensor]) -> None:
    lora = LoraConfig(r=4, target_modules=["lm_head"])
    model = get_peft_model(make(tie_word_embeddings=False), lora)
    before = loss(model, batch)
    after = loss(train(model, batch), batch)
    assert after < before - 0.2
    assert loss(model.merge_and_unload(), batch) == pytest.approx(after, abs=1e-4)


def test_single_tokens_can_be_trained(batch: dict[str, Tensor]) -> None:
    chosen = sorted(set(batch["labels"].flatten().tolist()))
    lora = LoraConfig(r=2, target_modules=["fc_in"], trainable_token_indices=chosen)
    base = make()
    embedding = base.shared_embedding.weight.detach().clone()
    model = train(get_peft_model(base, lora), batch)
    merged = model.merge_and_unload()
    changed = (merged.shared_embedding.weight != embedding).any(1).nonzero().flatten().tolist()
    assert changed == chosen
    assert torch.equal(merged.lm_head.weight, merged.shared_embedding.weight)


def test_weights_are_untied_by_the_config_alone(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    untied = OpenBAForConditionalGeneration.from_pretrained(tmp_path, tie_word_embeddings=False)
    assert untied.lm_head.weight is not untied.shared_embedding.weight
    assert torch.equal(untied.lm_head.weight, model.shared_embedding.weight)
    with torch.no_grad():
        untied.lm_head.weight.zero_()
        assert not untied(input_ids=ids(1, 4), decoder_input_ids=ids(1, 2)).logits.any()
    untied.save_pretrained(tmp_path / "untied")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "untied")
    assert not again.lm_head.weight.any()


def test_every_layer_is_called(batch: dict[str, Tensor]) -> None:
    model = make()
    seen: list[str] = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    loss(model, batch)
    leaves = {name for name, module in model.named_modules() if next(module.children(), None) is None}
    assert set(seen) == leaves


def test_a_hook_on_the_head_changes_the_loss(batch: dict[str, Tensor]) -> None:
    model = make().train()
    plain = float(model(**batch).loss.detach())
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 0)
    uniform = float(torch.tensor(float(VOCAB)).log())
    assert plain != pytest.approx(uniform, abs=1e-3)
    assert float(model(**batch).loss.detach()) == pytest.approx(uniform, abs=1e-5)


# M2: quantisers


def test_quantisers_find_the_layers_and_their_answers_stay_close() -> None:
    model = make("release")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert all(type(model.get_submodule(name)) is nn.Linear for name in linear)
    assert len(linear) == 2 * 4 + 3 * 7 + 1
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    left = [name for name, module in quantised.named_modules() if type(module) is nn.Linear]
    assert left == []
    with torch.no_grad():
        exact, close = (
            m(input_ids=ids(2, 6), decoder_input_ids=ids(2, 4)).logits for m in (model, quantised)
        )
    assert 0 < (exact - close).abs().max() < 0.1 * exact.abs().max()


# M4: offloading


def test_layers_on_disk_compute_the_same(batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = make("release")
    model.save_pretrained(tmp_path / "model", max_shard_size="10KB")
    loaded = OpenBAForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": "24KB"}, offload_folder=tmp_path / "offload"
    )
    assert "disk" in loaded.hf_device_map.values()
    assert loss(loaded, batch) == pytest.approx(loss(model, batch), abs=1e-5)
    written = loaded.generate(input_ids=batch["input_ids"], max_new_tokens=4, do_sample=False)
    assert torch.equal(
        written, model.generate(input_ids=batch["input_ids"], max_new_tokens=4, do_sample=False)
    )


def test_layers_in_host_memory_compute_the_same(batch: dict[str, Tensor]) -> None:
    model = make()
    expected = loss(model, batch)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.shared_embedding.weight.device.type == "meta"
    assert loss(model, batch) == pytest.approx(expected, abs=1e-5)


# M9: graphs


@pytest.mark.parametrize("form", SHAPES)
def test_a_graph_without_breaks_computes_the_same(form: str, batch: dict[str, Tensor]) -> None:
    model = make(form)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        found = compiled(**batch, use_cache=False)
        expected = model(**batch)
    assert float(found.loss) == pytest.approx(float(expected.loss), abs=1e-5)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()


def test_a_compiled_model_trains_as_the_plain_one(batch: dict[str, Tensor]) -> None:
    gradients = []
    for compile_it in (True, False):
        model = make().train()
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compile_it else model
        run(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.compiler.reset()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strict", [True, False])
def test_the_model_is_exported(strict: bool, batch: dict[str, Tensor]) -> None:
    model = make()
    inputs = {
        "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"],
        "decoder_input_ids": ids(2, 5, seed=2), "use_cache": False,
    }  # fmt: skip
    program = torch.export.export(model, args=(), kwargs=inputs, strict=strict)
    with torch.no_grad():
        torch.testing.assert_close(
            program.module()(**inputs).logits, model(**inputs).logits, atol=1e-4, rtol=1e-4
        )


# M12: frozen heads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "none"])
def test_a_frozen_head_gets_no_gradient_and_none_is_made(frozen: str, dtype: torch.dtype) -> None:
    hidden, weight, bias = (
        torch.randn(*shape, dtype=dtype, requires_grad=name not in (frozen, "frozen"))
        for name, shape in (("hidden", (7, 8)), ("weight", (300, 8)), ("bias", (300,)))
    )
    if frozen == "both":
        weight.requires_grad_(False)
        bias.requires_grad_(False)
    labels = torch.arange(7)
    sizes: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.data_ptr() != weight.data_ptr():  # no view of it
                sizes.append(result.numel())
            return result

    with Watch():
        linear_cross_entropy(hidden, weight, bias, labels).backward()
    assert hidden.grad is not None
    assert (weight.grad is None) == (frozen in ("weight", "both"))
    assert (bias.grad is None) == (frozen in ("bias", "both"))
    makes_gradient = 300 * 8 in sizes
    assert makes_gradient == (frozen in ("bias", "none"))


# M11, inputs_embeds, AutoModel


def test_hidden_states_and_attentions_are_given(batch: dict[str, Tensor]) -> None:
    model = make()
    with torch.no_grad():
        plain = model(**batch)
        full = model(**batch, output_hidden_states=True, output_attentions=True)
    assert plain.decoder_hidden_states is plain.decoder_attentions is None
    assert [len(full.encoder_hidden_states), len(full.decoder_hidden_states)] == [3, 4]
    assert all(state.shape == (2, 6, 24) for state in full.encoder_hidden_states)
    assert torch.equal(full.encoder_hidden_states[-1], full.encoder_last_hidden_state)
    torch.testing.assert_close(full.logits, plain.logits, atol=1e-4, rtol=1e-4)
    assert [len(full.encoder_attentions), len(full.decoder_attentions), len(full.cross_attentions)] == [
        2,
        3,
        3,
    ]
    assert full.cross_attentions[0].shape == (2, 3, 5, 6)
    for layer in (*full.decoder_attentions, *full.cross_attentions):
        torch.testing.assert_close(layer.sum(-1), torch.ones(2, 3, 5))
    # Padding of the second row is not looked at, and no token looks ahead.
    assert not full.cross_attentions[0][1, :, :, :2].any()
    assert not full.decoder_attentions[0].triu(1).any()


def test_the_config_asks_for_hidden_states_too(batch: dict[str, Tensor]) -> None:
    model = make()
    model.config.output_hidden_states = True
    with torch.no_grad():
        assert len(model(**batch).decoder_hidden_states) == 4
    written = model.generate(
        input_ids=batch["input_ids"], max_new_tokens=3, min_new_tokens=3, output_attentions=True,
        output_hidden_states=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert len(written.decoder_attentions) == len(written.decoder_hidden_states) == 3
    assert written.decoder_attentions[2][0].shape[-2:] == (1, 3)


@pytest.mark.parametrize("form", SHAPES)
def test_embeddings_stand_in_for_ids(form: str, batch: dict[str, Tensor]) -> None:
    model = make(form)
    source, target = batch["input_ids"], ids(2, 5, seed=2)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        by_ids = model(input_ids=source, attention_mask=batch["attention_mask"], decoder_input_ids=target)
        by_embeddings = model(
            inputs_embeds=embed(source), attention_mask=batch["attention_mask"],
            decoder_inputs_embeds=embed(target),
        )  # fmt: skip
    assert torch.equal(by_ids.logits, by_embeddings.logits)


def test_both_ids_and_embeddings_are_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match="give one of them"):
        model(input_ids=ids(1, 3), inputs_embeds=torch.zeros(1, 3, 24), decoder_input_ids=ids(1, 2))


def test_auto_model_gives_the_stacks_without_the_head(batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = make("release")
    model.save_pretrained(tmp_path)
    stacks = AutoModel.from_pretrained(tmp_path)
    assert type(stacks) is OpenBAEncoderDecoder
    assert not any(name.startswith("lm_head") for name in stacks.state_dict())
    with torch.no_grad():
        output = stacks(input_ids=batch["input_ids"], decoder_input_ids=ids(2, 5, seed=2))
        logits = model(input_ids=batch["input_ids"], decoder_input_ids=ids(2, 5, seed=2)).logits
    torch.testing.assert_close(model.lm_head(output.last_hidden_state), logits)


def test_longer_inputs_follow_the_config() -> None:
    model = make(max_seq_length=4)
    with pytest.raises(ValueError, match="more than the model's 4 positions"):
        model(input_ids=ids(1, 8), decoder_input_ids=ids(1, 2))
    model.config.max_seq_length = 32
    assert model(input_ids=ids(1, 24), decoder_input_ids=ids(1, 2)).logits.isfinite().all()
