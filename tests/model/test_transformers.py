"""The model at home in transformers: caches, padding, files, generation and training over random shapes."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

from openba import OpenBAConfig, OpenBAForConditionalGeneration, OpenBATokenizer
from openba.model.decoding import greedy
from openba.model.model import OpenBAModel

VOCAB, PAD, EOS = 61, 0, 1
IGNORE = -100
examples = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])


def config(**fields: Any) -> OpenBAConfig:
    """A small model with weights wide enough for its answers to hang on all it has read."""
    small = {
        "vocab_size": VOCAB, "hidden_size": 24, "kv_channels": 8, "num_heads": 3, "ffn_hidden_size": 36,
        "ffn_multiple": 8, "num_layers": 1, "num_decoder_layers": 2, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "max_seq_length": 16,
        "decoder_max_seq_length": 16, "initializer_range": 0.2,
    }  # fmt: skip
    return OpenBAConfig(**small | fields)


configs = st.builds(
    config,
    hidden_size=st.sampled_from([16, 24]),
    kv_channels=st.sampled_from([4, 8, 10]),
    num_heads=st.integers(1, 3),
    num_layers=st.integers(1, 3),
    num_decoder_layers=st.integers(1, 3),
    scale_embedding=st.booleans(),
    norm=st.sampled_from(["layernorm", "rmsnorm"]),
    sandwich_norm=st.booleans(),
    add_qkv_bias=st.booleans(),
    add_lm_head_bias=st.booleans(),
    tie_word_embeddings=st.booleans(),
)
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def build(shape: OpenBAConfig, seed: int = 0) -> OpenBAForConditionalGeneration:
    torch.manual_seed(seed)
    model = OpenBAForConditionalGeneration(shape).eval()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.1)
    return model


def ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], width: int, side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask with the padding on one side; what stands in the padding is not pad, but noise."""
    grid, mask = ids(len(rows), width, seed=9), torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        places = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        grid[i, places], mask[i, places] = row, 1
    return grid, mask


@examples
@given(shape=configs, counts=lengths, chunks=st.lists(st.integers(1, 3), min_size=2, max_size=4))
def test_cached_logits_are_the_uncached(shape: OpenBAConfig, counts: list[int], chunks: list[int]) -> None:
    model = build(shape)
    source, mask = padded([ids(n, seed=n) for n in counts], 8, "left")
    decoder = ids(len(counts), sum(chunks), seed=2)
    prompt = {"input_ids": source, "attention_mask": mask}
    with torch.no_grad():
        plain = model(**prompt, decoder_input_ids=decoder, use_cache=False)
        assert plain.past_key_values is None
        cache, found = None, []
        for part in decoder.split(chunks, dim=1):
            out = model(**prompt, decoder_input_ids=part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            found.append(out.logits)
    torch.testing.assert_close(torch.cat(found, 1), plain.logits, atol=1e-4, rtol=1e-4)


@examples
@given(
    shape=configs,
    counts=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 6)), min_size=1, max_size=3),
    sides=st.tuples(*[st.sampled_from(["left", "right"])] * 2),
    cached=st.booleans(),
)
def test_padding_on_either_side_changes_nothing(
    shape: OpenBAConfig, counts: list[tuple[int, int]], sides: tuple[str, str], cached: bool
) -> None:
    model = build(shape)
    sources, targets = ([ids(n[i], seed=5 * i + n[i]) for n in counts] for i in range(2))
    source, mask = padded(sources, 9, sides[0])
    decoder, seen = padded(targets, 8, sides[1])
    with torch.no_grad():
        found = model(
            input_ids=source, attention_mask=mask, decoder_input_ids=decoder, decoder_attention_mask=seen,
            use_cache=cached,
        ).logits  # fmt: skip
        for i, (s, t) in enumerate(zip(sources, targets, strict=True)):
            alone = model(input_ids=s[None], decoder_input_ids=t[None], use_cache=False).logits[0]
            torch.testing.assert_close(found[i][seen[i].bool()], alone, atol=1e-4, rtol=1e-4)
    assert found.isfinite().all()


@examples
@given(shape=configs)
def test_a_saved_model_comes_back_bit_by_bit(shape: OpenBAConfig) -> None:
    model, source = build(shape), ids(2, 5)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="6KB")
        files = {path.name for path in Path(folder).iterdir()}
        assert "model.safetensors.index.json" in files
        assert sum(name.endswith(".safetensors") for name in files) > 1
        again = OpenBAForConditionalGeneration.from_pretrained(folder)
        by_auto = AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert type(by_auto) is OpenBAForConditionalGeneration
    state = model.state_dict()
    for loaded in (again, by_auto):
        assert not loaded.training
        assert loaded.config.architecture() == shape.architecture()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        a, b = (m(input_ids=source, decoder_input_ids=source).logits for m in (model, again))
    assert torch.equal(a, b)


def test_generation_config_is_written_and_read_back(tmp_path: Path) -> None:
    model = build(config(decoder_start_token_id=7))
    model.save_pretrained(tmp_path / "plain")
    written = json.loads((tmp_path / "plain" / "generation_config.json").read_text())
    assert (written["decoder_start_token_id"], written["eos_token_id"], written["pad_token_id"]) == (7, 1, 0)
    model.generation_config.forced_bos_token_id = 9
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "own")
    again = OpenBAForConditionalGeneration.from_pretrained(tmp_path / "own")
    assert again.generation_config.forced_bos_token_id == 9
    answer = again.generate(ids(1, 4), do_sample=False, eos_token_id=None)
    assert answer[0, :2].tolist() == [7, 9]
    assert answer.shape == (1, 4)


def ours(model: Any, sources: list[Tensor], limit: int) -> list[list[int]]:
    """Tokens of our static decoder after the start token, the one that ends a row included."""
    rows: list[list[int]] = [[] for _ in sources]
    for step in greedy(model, [s.tolist() for s in sources], [PAD], EOS, VOCAB, limit):
        for row, token in zip(step.rows, step.tokens, strict=True):
            rows[row].append(token)
    return rows


def plain_model(model: OpenBAForConditionalGeneration) -> OpenBAModel:
    """The trainer's form with the same weights."""
    plain, state = OpenBAModel(model.config.architecture()), dict(model.state_dict())
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    plain.load_state_dict(state, strict=True)
    return plain.eval()


@examples
@given(shape=configs, counts=lengths, seed=st.integers(0, 5), side=st.sampled_from(["left", "right"]))
def test_our_decoder_writes_what_generate_writes(
    shape: OpenBAConfig, counts: list[int], seed: int, side: str
) -> None:
    model = build(shape, seed)
    sources = [ids(n, seed=n + seed) for n in counts]
    source, mask = padded(sources, 8, side)
    theirs = model.generate(source, attention_mask=mask, do_sample=False, max_new_tokens=10)
    for form in (model, plain_model(model)):
        for row, expected in zip(ours(form, sources, 10), theirs[:, 1:].tolist(), strict=True):
            assert row == expected[: len(row)]
            assert set(expected[len(row) :]) <= {PAD}


def test_finished_rows_of_a_batch_end_early_in_both() -> None:
    # </s> is made likely, so that rows end at different steps.
    model = build(config(add_lm_head_bias=True, tie_word_embeddings=False), seed=3)
    sources = [ids(n, seed=n) for n in (3, 5, 7, 2, 6)]
    source, mask = padded(sources, 8, "left")
    for bias in (0.0, 1.5, 2.5, 3.5):
        with torch.no_grad():
            model.lm_head.bias[EOS] = bias
        theirs = model.generate(source, attention_mask=mask, do_sample=False, max_new_tokens=12)
        rows = ours(model, sources, 12)
        for row, expected in zip(rows, theirs[:, 1:].tolist(), strict=True):
            assert row + [PAD] * (len(expected) - len(row)) == expected
        if len({len(row) for row in rows}) > 2:
            return
    pytest.fail("no bias made rows end at different steps")


def batch(counts: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Right-padded sources and labels of so many tokens."""
    source, mask = padded([ids(n, seed=n) for n, _ in counts], 8, "right")
    labels, real = padded([ids(n, seed=9 + n) for _, n in counts], 7, "right")
    return {"input_ids": source, "attention_mask": mask, "labels": labels.masked_fill(real == 0, IGNORE)}


def gradients(
    model: Any, loss: Callable[[], Tensor], training: bool = True
) -> tuple[float, dict[str, Tensor]]:
    model.train(training)
    model.zero_grad()
    found = loss()
    found.backward()
    return float(found.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


@examples
@given(
    shape=configs, counts=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 7)), min_size=1, max_size=3)
)
def test_loss_and_gradients_are_the_trainers_and_know_no_padding(
    shape: OpenBAConfig, counts: list[tuple[int, int]]
) -> None:
    model, inputs = build(shape), batch(counts)
    total = sum(n for _, n in counts)
    loss, found = gradients(model, lambda: model(**inputs).loss)
    plain = plain_model(model)
    start = torch.full((len(counts), 1), PAD)
    decoder = torch.cat([start, inputs["labels"][:, :-1].clamp(min=0)], 1)
    trainers = inputs["input_ids"], inputs["attention_mask"].bool(), decoder, inputs["labels"]
    for padded_too in (False, True):
        expected, slopes = gradients(plain, lambda p=padded_too: plain.loss(*trainers, padded=p) / total)
        assert loss == pytest.approx(expected, rel=1e-4)
        for name, slope in slopes.items():
            torch.testing.assert_close(found[name], slope, atol=1e-4, rtol=1e-3, msg=name)
    rows = [batch([count]) for count in counts]
    alone, slopes = gradients(model, lambda: sum(model(**row, num_items_in_batch=total).loss for row in rows))
    assert loss == pytest.approx(alone, rel=1e-4)
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_gradient_checkpointing_gives_equal_gradients(norm: str, dropout: float) -> None:
    inputs = batch([(8, 7), (3, 2)])
    model = build(config(norm=norm, num_layers=2, hidden_dropout=dropout, attention_dropout=dropout))

    def loss() -> Tensor:
        torch.manual_seed(0)
        return model(**inputs).loss

    plain = gradients(model, loss)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    runs = []
    handle = model.decoder.block[0].register_forward_pre_hook(lambda *_: runs.append(1))
    again = gradients(model, loss)
    handle.remove()
    assert len(runs) == 2  # forward, and once more on the way back
    assert again[0] == plain[0]
    assert all(torch.equal(again[1][name], gradient) for name, gradient in plain[1].items())


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_training_makes_no_logits() -> None:
    model, vocab, tokens = build(config(vocab_size=70_000, decoder_max_seq_length=200)), 70_000, 200
    inputs = {"input_ids": ids(1, 4), "labels": ids(1, tokens, seed=2)}
    model.train()
    with Largest() as largest:
        out = model(**inputs)
        out.loss.backward()
    assert out.logits is None
    assert largest.elements <= 64 * vocab < tokens * vocab
    model.eval()
    with torch.no_grad(), Largest() as largest:
        assert model(**inputs).logits.shape == (1, tokens, vocab)
    assert largest.elements == tokens * vocab


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": True, "top_p": 0.9},
        {"do_sample": True, "top_k": 5, "num_return_sequences": 3},
        {"num_beams": 4, "do_sample": False, "num_return_sequences": 2},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "cache_implementation": "static"},
    ],
    ids=str,
)
def test_every_way_to_generate_runs(how: dict[str, Any]) -> None:
    model = build(config())
    source, mask = padded([ids(3, seed=3), ids(6, seed=6)], 7, "left")
    torch.manual_seed(0)
    found = model.generate(source, attention_mask=mask, max_new_tokens=6, **how)
    assert found.shape[0] == 2 * how.get("num_return_sequences", 1)
    assert (found[:, 0] == PAD).all()
    assert int(found.max()) < VOCAB
    if not how.get("do_sample") and "num_beams" not in how:
        plain = model.generate(source, attention_mask=mask, max_new_tokens=6, do_sample=False)
        assert torch.equal(found, plain)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [VOCAB + 12, VOCAB - 20])
def test_embeddings_can_be_resized(tmp_path: Path, tied: bool, bias: bool, size: int) -> None:
    model = build(config(tie_word_embeddings=tied, add_lm_head_bias=bias))
    source = ids(1, 5) % 30 + 3
    with torch.no_grad():
        before = model(input_ids=source, decoder_input_ids=source).logits
        model.resize_token_embeddings(size, mean_resizing=False)
        after = model(input_ids=source, decoder_input_ids=source).logits
    kept = min(size, VOCAB)
    assert model.config.vocab_size == model.architecture.vocab_size == after.shape[-1] == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept])
    assert (model.lm_head.weight is model.shared_embedding.weight) == tied
    assert (model.lm_head.bias is None) != bias
    model.save_pretrained(tmp_path)
    again = OpenBAForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(input_ids=source, decoder_input_ids=source).logits, after)
    loss, _ = gradients(model, lambda: model(input_ids=source, labels=source).loss)
    assert loss > 0
    with pytest.raises(ValueError, match=f"id {size} is outside the vocabulary of {size}"):
        model(input_ids=source * 0 + size, decoder_input_ids=source)


def test_the_auto_classes_know_it() -> None:
    assert isinstance(AutoConfig.for_model("openba", vocab_size=8), OpenBAConfig)
    assert type(AutoModelForSeq2SeqLM.from_config(config())) is OpenBAForConditionalGeneration
    assert AutoTokenizer is not None
    assert OpenBATokenizer.__name__ == "OpenBATokenizer"


def test_initial_weights_are_those_of_the_trainers_form() -> None:
    shape = config(hidden_size=128, ffn_hidden_size=256, initializer_range=0.02)
    torch.manual_seed(0)
    model = OpenBAForConditionalGeneration(shape)
    torch.manual_seed(0)
    plain = OpenBAModel(shape.architecture())
    for name, tensor in plain.state_dict().items():
        found = model.state_dict()[name]
        if tensor.numel() > 1000:
            assert found.std().item() == pytest.approx(tensor.std().item(), rel=0.1)
        elif "norm" in name or name.endswith("bias"):
            assert torch.equal(found, tensor)


def test_depths_need_not_be_equal_for_the_cache() -> None:
    # transformers sizes a cache by num_hidden_layers: it has to be the decoder's depth.
    for encoder, decoder in itertools.product((1, 3), (1, 3)):
        model = build(config(num_layers=encoder, num_decoder_layers=decoder))
        assert model.config.num_hidden_layers == decoder
        out = model(input_ids=ids(1, 4), decoder_input_ids=ids(1, 2), use_cache=True)
        assert len(out.past_key_values.self_attention_cache.layers) == decoder
