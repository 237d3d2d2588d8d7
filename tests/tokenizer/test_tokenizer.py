"""The tokenizer: the release's layout of ids, nothing lost, nothing smuggled in, the same model twice."""

from __future__ import annotations

import io
import json
import re
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencepiece as spm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from openba.artifacts import Build
from openba.data import tokenizer_training as tokenizers
from openba.errors import UserError
from openba.recipes.data import TokenizerRecipe
from openba.recipes.model import ModelRecipe
from openba.tokenizer.pieces_openba import FULL_WIDTH, MODEL_FILE, WHITESPACE
from openba.tokenizer.tokenizer import CONFIG_FILE, Tokenizer

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


@pytest.mark.parametrize(("parallel", "rows"), [(1, 250240), (4, 250368), (8, 250880)])
def test_the_embedding_is_padded_by_tensor_parallel_size(root: Path, parallel: int, rows: int) -> None:
    """The release's sizes: V2, Base, and Chat and Code."""
    recipe = ModelRecipe(
        d_model=8, num_heads=1, kv_channels=8, ffn=8, encoder_layers=1, decoder_layers=1,
        vocab_multiple=128 * parallel,
    )  # fmt: skip
    assert recipe.padded_vocab(250203) == rows


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


def test_control_tokens_are_read_where_asked_for(tokenizer: Tokenizer) -> None:
    text = "<S>a <extra_id_7></s>b<pad>"
    a, b = tokenizer.encode("a "), tokenizer.encode("b")
    wanted = [tokenizer.mode("S"), *a, tokenizer.sentinel(7), 1, *b, 0]
    assert tokenizer.encode(text, control_tokens=True) == wanted
    assert tokenizer.show(wanted) == text
    assert not {0, 1, tokenizer.mode("S"), tokenizer.sentinel(7)} & set(tokenizer.encode(text))


def documents(shared: Path, *names: str) -> list[str]:
    """The longest string of each record."""
    texts = []
    for name in names:
        for path in sorted((shared / "data" / name).glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                texts.append(max(filter(lambda v: isinstance(v, str), json.loads(line).values()), key=len))
    return texts


def test_ids_are_sentencepieces_on_every_document(mt5: Tokenizer, shared: Path) -> None:
    texts = documents(shared, "raw_code", "raw_zh_wiki_qa", "raw_en_c4", "raw_zh_classical", "chat_moss")
    encoded = mt5.encode_arrow(pa.chunked_array([texts[:300], texts[300:]]))
    peer = spm.SentencePieceProcessor(model_file=str(shared / "data" / "tokenizer_mt5" / MODEL_FILE))
    wanted = peer.encode(texts)
    assert [i for i, ids in enumerate(wanted) if encoded.row(i).tolist() != ids] == []
    assert (encoded.ids.dtype, encoded.offsets.dtype) == (np.int32, np.int64)
    assert len(encoded.offsets) == len(texts) + 1
    assert [mt5.encode(text) for text in texts[::50]] == wanted[::50]


@settings(max_examples=40)
@given(texts=st.lists(anything | layout | st.just("a \u2581 b"), max_size=6), cut=st.integers(0, 6))
def test_columns_give_what_texts_give(mt5_like: Path, texts: list[str], cut: int) -> None:
    for tokens in (Tokenizer(mt5_like), Tokenizer(mt5_like, whitespace=True)):
        wanted = [tokens.encode(text) for text in texts]
        column = pa.chunked_array([texts[:cut], texts[cut:]], pa.string())
        encoded = tokens.encode_arrow(column)
        assert [encoded.row(i).tolist() for i in range(len(texts))] == wanted
        sliced = tokens.encode_arrow(pa.array(["x", *texts], pa.large_string()).slice(1))
        assert np.array_equal(sliced.ids, encoded.ids)
        assert np.array_equal(sliced.offsets, encoded.offsets)


def test_a_null_row_is_named(tokenizer: Tokenizer) -> None:
    for column in (pa.array(["a", None]), pa.chunked_array([["a"], [None, "b"]])):
        with pytest.raises(UserError, match="row 1: the text is null"):
            tokenizer.encode_arrow(column)


@settings(max_examples=60)
@given(text=anything | layout | st.text())
@example("\u2581")
@example(" \u2581\u2581  \u2581\n")
@example("\u3000，Ａ１ﬁ①é e\u0301 \u2028\x85\x00\x1f\u00ad\ufeff")
@example("<0x0A> ▁<extra_id_3> <extra_id_3></s>\r\n")
def test_whitespace_tokens_keep_every_text_byte_for_byte(mt5_like: Path, text: str) -> None:
    tokens = Tokenizer(mt5_like, whitespace=True)
    ids = tokens.encode(text)
    assert tokens.decode(ids) == text
    assert all(tokens.pieces.is_text(i) for i in ids)
    assert tokens.decode([tokens.mode("S"), *ids, tokens.sentinel(0), 1]) == text


def test_whitespace_tokens_follow_the_releases_ids(mt5: Tokenizer) -> None:
    tokens = Tokenizer(mt5.path, whitespace=True)
    assert tokens.size == 250302
    assert [tokens.encode(space.replace("\u2581", " ")) for space in WHITESPACE] == [
        [i] for i in range(250203, 250208)
    ]
    assert tokens.encode("".join(FULL_WIDTH)) == list(range(250208, 250302))
    assert tokens.mode("S") == 250201
    assert tokens.show([tokens.mode("S"), *tokens.encode("if x:\n\ty")]) == "<S>if x:\n\ty"
    # What else the normalisation would change is spelt in bytes.
    assert tokens.encode("①") == [3 + byte for byte in "①".encode()]
    # Words inside a text keep the release's ids.
    assert tokens.encode("one of the world")[1:] == mt5.encode("one of the world")[1:]


def test_code_comes_back_byte_for_byte(mt5: Tokenizer, shared: Path) -> None:
    """All of raw_code, and the standard library's own folder; `python -m benchmarks` takes all of it."""
    tokens = Tokenizer(mt5.path, whitespace=True)
    library = [path.read_bytes() for path in Path(sysconfig.get_path("stdlib")).glob("*.py")]
    texts = [text.encode() for text in documents(shared, "raw_code")] + library
    assert len(texts) > 600
    encoded = tokens.encode_arrow(pa.array(texts, pa.binary()).cast(pa.string()))
    changed = [i for i, text in enumerate(texts) if tokens.decode(encoded.row(i)).encode() != text]
    assert changed == []


def test_the_switch_is_kept_with_the_file(mt5_like: Path, small: Path, tmp_path: Path) -> None:
    for name, switch in (("on", True), ("off", False)):
        out = tmp_path / name
        out.mkdir()
        recipe = TokenizerRecipe(kind="file", path=str(mt5_like), whitespace_tokens=switch)
        facts = tokenizers.build(Build(out, recipe, {"corpus": small}))
        tokens = Tokenizer.load(out)
        assert facts["vocab"] == tokens.size == 600 + 103 + 99 * switch
        assert (tokens.decode(tokens.encode("a\n\tb")) == "a\n\tb") is switch
    with pytest.raises(ValidationError, match="whitespace_tokens"):
        TokenizerRecipe(kind="unigram", vocab_size=500, whitespace_tokens=True)


def test_a_model_that_has_such_pieces_takes_no_switch(tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"whitespace tokens need byte pieces at 3\.\.258"):
        Tokenizer(tokenizer_folder / MODEL_FILE, whitespace=True)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["好，好，好，天，天"] * 9), model_writer=model, vocab_size=270, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True, normalization_rule_name="identity",
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "own.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(
        UserError, match=r"it takes no whitespace tokens: .* is already defined.*off"
    ) as error:
        Tokenizer(path, whitespace=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", ["{", "[]", '{"whitespace_tokens": "yes"}'])
def test_a_bad_switch_is_one_line(config: str, mt5_like: Path, tmp_path: Path) -> None:
    shutil.copy(mt5_like, tmp_path)
    (tmp_path / CONFIG_FILE).write_text(config)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / CONFIG_FILE))):
        Tokenizer.load(tmp_path)


def test_another_numbering_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words of text"] * 9), model_writer=model, vocab_size=20, pad_id=3,
        eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "other.model"
    path.write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"other.model: pad, </s> and <unk> are pieces \(3, 1, 2\)"):
        Tokenizer(path)


@pytest.mark.parametrize("wrong", [-1, -100, 4103, 250203])
def test_ids_outside_the_vocabulary_are_named(tokenizer: Tokenizer, wrong: int) -> None:
    for function in (tokenizer.decode, tokenizer.show):
        with pytest.raises(UserError, match=f"id {wrong} at position 2 is not in 0..4102"):
            function([0, 300, wrong, 301])
