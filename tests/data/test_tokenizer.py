"""The tokenizer: the release's layout of ids, nothing lost, nothing smuggled in, the same model twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openba.artifacts import Build
from openba.data import tokenizer_training as tokenizers
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.model.pieces_openba import MODEL_FILE
from openba.recipes.data import TokenizerRecipe

SPECIAL = ["<S>", "<R> x <X>", "</s>", "<extra_id_7>", "a <extra_id_0> b", "<pad>", "<unk>", "<0x0A>"]

# Everything UTF-8 can hold, but U+2581: SentencePiece itself writes a space so.
anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
layout = st.lists(
    st.sampled_from(["\t", "\n", "\r\n", " ", "  ", "    ", "x", "if x:", "中文", "\u3000"])
).map("".join)


@pytest.fixture(scope="session")
def mt5(shared: Path) -> Tokenizer:
    """The real mT5 model; its README: 250,100 pieces in spiece.model."""
    folder = shared / "data" / "tokenizer_mt5"
    if not folder.exists():
        pytest.skip("shared/data/tokenizer_mt5 is not here")
    return Tokenizer.load(folder)


def test_special_tokens_follow_the_pieces_in_the_releases_order(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad, tokenizer.eos, tokenizer.unknown, tokenizer.base) == (0, 1, 2, 4000)
    block = [tokenizer.sentinel(k) for k in reversed(range(100))] + [tokenizer.mode(m) for m in "RSX"]
    assert block == list(range(tokenizer.base, tokenizer.size))
    shown = tokenizer.show([tokenizer.mode("S"), *tokenizer.encode("def f():"), tokenizer.sentinel(0), 1])
    assert shown == "<S>def f():<extra_id_0></s>"
    for k in (-1, 100):
        with pytest.raises(ValueError, match="sentinel"):
            tokenizer.sentinel(k)


def test_mt5_gives_the_released_ids(mt5: Tokenizer) -> None:
    assert mt5.sentinel(0) == 250199
    assert mt5.sentinel(99) == 250100
    assert [mt5.mode(name) for name in "RSX"] == [250200, 250201, 250202]
    assert mt5.size == 250203


@pytest.mark.parametrize("text", SPECIAL)
@pytest.mark.parametrize("which", ["tokenizer", "mt5"])
def test_raw_text_never_becomes_a_control_token(
    which: str, text: str, request: pytest.FixtureRequest
) -> None:
    tokens: Tokenizer = request.getfixturevalue(which)
    ids = tokens.encode(text)
    assert all(tokens.unknown < i < tokens.base for i in ids)
    assert tokens.decode(ids) == text


@given(text=anything | layout)
@example("\t\tif x:\n        return  1\r\n\n\n")
@example(" \x00\ufeff\u200b")
def test_text_round_trips_byte_for_byte(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.unknown < i < tokenizer.base for i in ids)


def test_real_documents_round_trip(tokenizer: Tokenizer, corpus: Path) -> None:
    for name in ("code", "news", "reviews"):
        texts = pq.read_table(corpus / f"{name}.parquet")["text"].slice(0, 50)
        encoded = tokenizer.encode_arrow(texts)
        assert [tokenizer.decode(encoded.row(i)) for i in range(len(texts))] == texts.to_pylist()


@pytest.mark.parametrize("run", ["\n", "\t", "  ", "    ", "        "])
def test_code_layout_takes_one_token(tokenizer: Tokenizer, run: str) -> None:
    around = tokenizer.encode("x"), tokenizer.encode("=")
    assert len(tokenizer.encode(f"x{run}=")) == len(around[0]) + 1 + len(around[1])


def test_decode_leaves_control_tokens_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("some text")
    noisy = [0, tokenizer.mode("S"), *ids, tokenizer.sentinel(3), 2, 1]
    assert tokenizer.decode(noisy) == "some text"


@pytest.fixture
def small(corpus: Path, tmp_path: Path) -> Path:
    """News and code only, which 500 pieces can spell."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("news", "code"):
        shutil.copy(corpus / f"{name}.parquet", folder)
    return folder


def trained(out: Path, corpus: Path, **fields: int) -> tuple[Path, dict]:
    out.mkdir()
    recipe = TokenizerRecipe(kind="unigram", **{"vocab_size": 500, "train_characters": 40_000, **fields})
    return out / MODEL_FILE, tokenizers.build(Build(out, recipe, {"corpus": corpus}))


def test_training_is_deterministic_and_follows_the_seed(small: Path, tmp_path: Path) -> None:
    first, facts = trained(tmp_path / "1", small)
    second, again = trained(tmp_path / "2", small)
    other, _ = trained(tmp_path / "3", small, seed=5)
    assert first.read_bytes() == second.read_bytes()
    assert facts == again
    assert first.read_bytes() != other.read_bytes()
    assert [f.name for f in first.parent.iterdir()] == [MODEL_FILE]


def test_facts_say_how_well_it_fits(small: Path, tmp_path: Path) -> None:
    _, facts = trained(tmp_path / "1", small)
    assert facts["vocab"] == 603
    assert set(facts["characters_per_token"]) == {"en", "code"}
    assert all(1.2 < value < 4 for value in facts["characters_per_token"].values())
    assert all(value < 0.01 for value in facts["byte_or_unknown_share"].values())


def refused(recipe: TokenizerRecipe, corpus: Path, out: Path) -> str:
    out.mkdir()
    with pytest.raises(UserError) as error:
        tokenizers.build(Build(out, recipe, {"corpus": corpus}))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_size_the_text_does_not_allow_is_refused(small: Path, tmp_path: Path) -> None:
    for size in (90, 500_000):
        recipe = TokenizerRecipe(kind="unigram", vocab_size=size, train_characters=40_000)
        assert f"tokenizer.vocab_size: {size}:" in refused(recipe, small, tmp_path / str(size))


def test_a_finished_file_is_taken_as_it_is(tokenizer_folder: Path, small: Path, tmp_path: Path) -> None:
    path = tokenizer_folder / MODEL_FILE
    recipe = TokenizerRecipe(kind="file", path=str(path))
    facts = tokenizers.build(Build(tmp_path, recipe, {"corpus": small}))
    assert (tmp_path / MODEL_FILE).read_bytes() == path.read_bytes()
    assert facts["vocab"] == 4103
    missing = TokenizerRecipe(kind="file", path=str(tmp_path / "none.model"))
    assert "tokenizer.path" in refused(missing, small, tmp_path / "missing")


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_corrupt_model_is_one_line(damage: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    whole = (tokenizer_folder / MODEL_FILE).read_bytes()
    path = tmp_path / MODEL_FILE
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "other": b"%PDF-1.4\n" * 50}[damage])
    with pytest.raises(UserError) as error:
        Tokenizer.load(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
