"""The tokenizer step: take the mT5 file, or train a small unigram model on the cleaned corpus.

Owns the training settings and the facts of how well a tokenizer fits the corpus. It does not encode
(openba.data.tokenizer).
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import sentencepiece as spm

from openba.artifacts import Build
from openba.data.tokenizer import CONFIG_FILE, SWITCH, Tokenizer
from openba.errors import UserError
from openba.model.pieces_openba import MODEL_FILE, WHITESPACE
from openba.recipes.data import TokenizerRecipe


def build(build: Build) -> dict[str, Any]:
    """Step `tokenizer`: take the file or train on the cleaned corpus; facts say how well it fits."""
    recipe: TokenizerRecipe = build.recipe
    target = build.out / MODEL_FILE
    if recipe.kind == "file":
        source = Path(str(recipe.path))
        if not source.is_file():
            raise UserError(f"tokenizer.path: {source}: no such file; put the mT5 spiece.model there")
        shutil.copyfile(source, target)
        if recipe.whitespace_tokens:
            (build.out / CONFIG_FILE).write_text(json.dumps({SWITCH: True}), encoding="utf-8")
    else:
        try:
            _train(recipe, build.inputs["corpus"], target)
        except RuntimeError as error:  # SentencePiece names the size that the text allows
            raise UserError(f"tokenizer.vocab_size: {recipe.vocab_size}: {error}") from None
    tokenizer = Tokenizer.load(build.out)
    return {"vocab": tokenizer.size, **_fit(tokenizer, build.inputs["corpus"])}


def _train(recipe: TokenizerRecipe, corpus: Path, target: Path) -> None:
    model = io.BytesIO()  # given a path, SentencePiece writes that path into the model
    spm.SentencePieceTrainer.train(
        sentence_iterator=_lines(corpus, recipe.train_characters, recipe.seed),
        model_writer=model,
        vocab_size=recipe.vocab_size,
        model_type="unigram",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=list(WHITESPACE),
        pad_id=Tokenizer.pad,
        eos_id=Tokenizer.eos,
        unk_id=Tokenizer.unknown,
        bos_id=-1,
        character_coverage=0.9995,
        num_threads=1,  # more threads change the order of float sums, and so the pieces
        minloglevel=2,
    )
    target.write_bytes(model.getvalue())


def _lines(corpus: Path, characters: int, seed: int) -> Iterator[str]:
    """Lines of a random sample of documents: one third of the characters per language."""
    texts: dict[str, list[str]] = {}
    for path in sorted(corpus.glob("*.parquet")):
        if path.stem != "removed":
            table = pq.read_table(path, columns=["text", "language"])
            for text, language in zip(table["text"].to_pylist(), table["language"].to_pylist(), strict=True):
                texts.setdefault(language, []).append(text)
    random = np.random.default_rng(seed)
    for language in sorted(texts):
        left = characters // len(texts)
        for index in random.permutation(len(texts[language])):
            for line in texts[language][index].split("\n"):
                if line and left > 0:
                    left -= len(line)
                    yield line[:2000]


def _fit(tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """Characters and bytes per token and share of unknown or byte pieces, on the head of each source."""
    pieces = tokenizer.pieces.model
    odd_ids = [tokenizer.unknown, *(i for i in range(tokenizer.base) if pieces.is_byte(i))]
    counts: dict[str, np.ndarray] = {}
    for path in sorted(corpus.glob("*.parquet")):
        if path.stem == "removed":
            continue
        for batch in pq.ParquetFile(path).iter_batches(200, columns=["text", "language"]):
            heads = pc.utf8_slice_codeunits(batch["text"], 0, 5000)
            ids = tokenizer.encode_arrow(heads).ids
            sizes = [pc.sum(count(heads)).as_py() for count in (pc.utf8_length, pc.binary_length)]
            row = [*sizes, len(ids), np.isin(ids, odd_ids).sum()]
            counts.setdefault(batch["language"][0].as_py(), np.zeros(4, dtype=np.int64))[:] += row
            break
    names = {"characters_per_token": (0, 3), "bytes_per_token": (1, 3)}
    return {
        name: {k: round(int(row[column]) / max(1, int(row[2])), digits) for k, row in counts.items()}
        for name, (column, digits) in (names | {"byte_or_unknown_share": (3, 4)}).items()
    }
