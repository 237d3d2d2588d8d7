"""Tokens that a trained tokenizer and model get for fine-tuning: ids, text, rows, and written code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openba import OpenBATokenizer
from openba.artifacts import Build
from openba.data import tokenizer_growth
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.model.adapter import AdapterWriter, add_adapter, train_new_rows, trained_state
from openba.model.files import HEAD, save_model
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.model.model import OpenBAModel
from openba.recipes.adapter import AdapterRecipe
from openba.recipes.growth import GrowthRecipe
from openba.recipes.model import ModelRecipe
from openba.tokenizer.files import write_tokenizer_files
from openba.tokenizer.pieces_openba import LOSSLESS
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.start import check_tokenizer, start_weights

CODE = 'def f(x):\n\tif x:\n        return {"a":  x}\n\n\n    # 全角，Ａ\n    return None\n'
layout = st.text(alphabet=" \n\t\u3000，Ａab{}\u2581", max_size=30)
SHAPE = {
    "d_model": 48, "num_heads": 3, "kv_channels": 16, "ffn": 96, "ffn_multiple": 16,
    "encoder_layers": 1, "decoder_layers": 2, "positions": 128, "head_bias": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(mt5_like: Path) -> Tokenizer:
    return Tokenizer(mt5_like)


@pytest.fixture(scope="module")
def grown(base: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return grow(base, tmp_path_factory.mktemp("grown"), tokens=["<call>", "two words"])


def grow(base: Tokenizer, out: Path, **recipe: object) -> Tokenizer:
    folder = out / "base"
    folder.mkdir()
    write_tokenizer_files(folder, base)
    tokenizer_growth.build(Build(out, GrowthRecipe.model_validate(recipe), {"tokenizer": folder}))
    return Tokenizer.load(out)


@settings(max_examples=80)
@given(text=layout | st.text())
@example(CODE)
@example("\u2581 \u2581\n")
@example(" a")
@example("<0x0A> ▁<extra_id_3></s>\r\n")
def test_every_text_comes_back_byte_for_byte(grown: Tokenizer, text: str) -> None:
    ids = grown.encode(text)
    assert grown.decode(ids) == text
    assert all(grown.pieces.is_text(token_id) for token_id in ids)
    assert grown.decode([grown.mode("S"), *ids, grown.sentinel(0), 1]) == text


@settings(max_examples=80)
@given(text=st.text(alphabet="abcdefghi JKL.,'0123456789", max_size=40) | st.text())
@example("The Prime Minister said it.")
def test_text_that_could_be_written_before_keeps_its_ids(
    base: Tokenizer, grown: Tokenizer, text: str
) -> None:
    ids = base.encode(text)
    if base.decode(ids) == text and base.unknown not in ids:
        assert grown.encode(text) == ids
    assert grown.show([base.mode("S"), *ids, base.sentinel(0)]) == base.show(
        [base.mode("S"), *ids, base.sentinel(0)]
    )


def test_old_ids_stay_and_new_ones_follow(base: Tokenizer, grown: Tokenizer) -> None:
    assert grown.size == base.size + len(LOSSLESS) + 2
    assert [grown.sentinel(0), grown.mode("X")] == [base.sentinel(0), base.mode("X")]
    assert [grown.pieces.piece(token_id) for token_id in range(base.base)] == [
        base.pieces.piece(token_id) for token_id in range(base.base)
    ]
    assert grown.encode("a<call>b")[-2] == grown.size - 2
    assert grown.encode("two words")[-1] == grown.size - 1
    assert base.size in grown.encode("a\nb")


def test_transformers_has_the_same_ids_and_keeps_them(grown: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, grown)
    theirs = OpenBATokenizer.from_pretrained(tmp_path)
    for text in (CODE, "a <call> b", "<S> is text", "two words"):
        assert theirs(text, add_special_tokens=False)["input_ids"] == grown.encode(text)
        assert theirs.decode(grown.encode(text)) == text
    theirs.save_pretrained(tmp_path / "again")
    again = OpenBATokenizer.from_pretrained(tmp_path / "again")
    assert again(CODE)["input_ids"] == theirs(CODE)["input_ids"]
    assert len(again) == grown.size


def test_a_tokenizer_that_keeps_text_gets_no_whitespace_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert grow(tokenizer, tmp_path, whitespace=True).size == tokenizer.size


@pytest.mark.parametrize("token", ["<S>", "<extra_id_7>", "\n", "e"])
def test_a_token_that_is_there_is_refused(base: Tokenizer, tmp_path: Path, token: str) -> None:
    with pytest.raises(UserError, match="is a token already") as error:
        grow(base, tmp_path, tokens=[token])
    assert "\n" not in str(error.value)


def test_only_own_tokens_leave_normalisation_as_it_is(base: Tokenizer, tmp_path: Path) -> None:
    tokens = grow(base, tmp_path, whitespace=False, tokens=["<call>"])
    assert tokens.size == base.size + 1
    assert tokens.encode("a  b\nＡ") == base.encode("a  b\nＡ")
    assert tokens.decode(tokens.encode("a <call> b")) == "a <call> b"


@pytest.fixture(scope="module")
def start(base: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the base tokenizer."""
    torch.manual_seed(0)
    model = OpenBAModel(ModelRecipe.model_validate(SHAPE).architecture(base.size))
    torch.nn.init.normal_(model.lm_head.bias)
    folder = tmp_path_factory.mktemp("start") / "model"
    save_model(folder, model.state_dict(), model.architecture, base)
    return folder


def learn(model: OpenBAModel, grown: Tokenizer, rate: float) -> list[int]:
    """Train a model to answer one prompt by `CODE`; returns the prompt."""
    source = grown.pieces.prompt(grown.encode("Write f."))
    target = [grown.sentinel(0), *grown.encode(CODE), grown.eos]
    ids = torch.tensor([target])
    decoder = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
    encoder = torch.tensor([source])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(150):
        (model.loss(encoder, torch.ones_like(encoder).bool(), decoder, ids) / len(target)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return source


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_their_pieces_mean_and_old_ones_stay(
    start: Path, base: Tokenizer, grown: Tokenizer, tied: bool
) -> None:
    architecture = ModelRecipe.model_validate({**SHAPE, "tie_embeddings": tied}).architecture(grown.size)
    old = load_model(start)[0].state_dict()
    new = start_weights(start, architecture, grown)
    assert architecture.vocab_size > old["shared_embedding.weight"].shape[0]
    names = ["shared_embedding.weight", "lm_head.bias"] + (["lm_head.weight"] if not tied else [])
    for name in names:
        rows = old["shared_embedding.weight" if name == "lm_head.weight" else name]
        assert len(new[name]) == architecture.vocab_size
        assert torch.equal(new[name][: base.size], rows[: base.size])
        newline = new[name][base.size + LOSSLESS.index("\n")]
        assert torch.equal(newline, rows[3 + ord("\n")])
        pieces = [i for i in base.encode("two words") if base.pieces.piece(i) != "▁"]
        torch.testing.assert_close(new[name][grown.size - 1], rows[pieces].mean(0))
    others = {name for name in new if name not in names}
    assert all(torch.equal(new[name], old[name]) for name in others)


def test_a_tokenizer_that_lost_tokens_is_refused(grown: Tokenizer, base: Tokenizer) -> None:
    with pytest.raises(UserError, match="is not the pipeline's"):
        check_tokenizer(grown, base, Path("start"))


def test_a_model_trained_with_new_tokens_writes_code_byte_for_byte(
    start: Path, grown: Tokenizer, tmp_path: Path
) -> None:
    architecture = ModelRecipe.model_validate(SHAPE).architecture(grown.size)
    model = OpenBAModel(architecture)
    model.load_state_dict(start_weights(start, architecture, grown))
    source = learn(model, grown, rate=3e-3)
    save_model(tmp_path / "model", model.state_dict(), architecture, grown)
    loaded, tokenizer = load_model(tmp_path / "model")
    (answer,) = generate(loaded, tokenizer, [source], 100)
    assert answer == CODE


@pytest.mark.parametrize("name", ["tiny", "paper", "release", "experts"])
def test_the_code_expert_alone_has_a_tokenizer_of_its_own(name: str) -> None:
    steps = Pipeline(find_pipeline(name)).steps
    own = steps["tokenizer-code"]
    assert steps["code"].inputs["tokenizer"] is steps["pairs-code"].inputs["tokenizer"] is own
    assert own.inputs["tokenizer"] is steps["tokenizer"] is steps["chat"].inputs["tokenizer"]


@pytest.fixture
def start_with_own_head(start: Path, tmp_path: Path) -> Path:
    """The start as the released layout has it: its files hold a copy of the embedding as the head."""
    model, tokenizer = load_model(start)
    weights = model.state_dict() | {HEAD: model.shared_embedding.weight.clone()}
    untied = replace(model.architecture, tie_word_embeddings=False)
    save_model(tmp_path / "own-head", weights, untied, tokenizer)
    return tmp_path / "own-head"


def test_an_adapter_with_new_tokens_over_an_own_head_has_their_rows_in_the_head(
    start_with_own_head: Path, grown: Tokenizer, base: Tokenizer, tmp_path: Path
) -> None:
    architecture = ModelRecipe.model_validate(SHAPE).architecture(grown.size)
    model = OpenBAModel(architecture)
    model.load_state_dict(start_weights(start_with_own_head, architecture, grown))
    adapter = AdapterRecipe(kind="lora", rank=8)
    add_adapter(model, adapter)
    train_new_rows(model, base.size, grown.size - base.size)
    source = learn(model, grown, rate=1e-2)
    writer = AdapterWriter(model, adapter, grown, start_with_own_head)
    writer.write(tmp_path / "adapter", trained_state(model))
    loaded, tokenizer = load_model(tmp_path / "adapter")
    assert torch.equal(loaded.head_weight, loaded.shared_embedding.weight)
    (answer,) = generate(loaded, tokenizer, [source], 100)
    assert answer == CODE


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_with_new_tokens_writes_code_byte_for_byte(
    start: Path, grown: Tokenizer, base: Tokenizer, tmp_path: Path, kind: str
) -> None:
    architecture = ModelRecipe.model_validate(SHAPE).architecture(grown.size)
    model = OpenBAModel(architecture)
    model.load_state_dict(start_weights(start, architecture, grown))
    adapter = AdapterRecipe.model_validate({"kind": kind, "rank": 8})
    add_adapter(model, adapter)
    train_new_rows(model, base.size, grown.size - base.size)
    trained = trained_state(model)
    assert all("lora_" in name or name == "shared_embedding.new_rows" for name in trained)
    source = learn(model, grown, rate=1e-2)
    AdapterWriter(model, adapter, grown, start).write(tmp_path / "adapter", trained)
    loaded, tokenizer = load_model(tmp_path / "adapter")
    (answer,) = generate(loaded, tokenizer, [source], 100)
    assert answer == CODE
    old = load_model(start)[0].shared_embedding.weight
    assert torch.equal(loaded.shared_embedding.weight[: base.size], old[: base.size])
