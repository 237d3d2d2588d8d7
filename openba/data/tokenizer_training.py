"""The tokenizer step: take the mT5 file, or train a small unigram model on the cleaned corpus.

Owns the training settings and the facts of how well a tokenizer fits the corpus. It does not encode
(openba.tokenizer.tokenizer).
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sentencepiece as spm

from openba.artifacts import Build
from openba.data.catalogue import corpus_files
from openba.data.schema import read_batches
from openba.errors import UserError
from openba.recipes.data import TokenizerRecipe
from openba.tokenizer.pieces_openba import MODEL_FILE, WHITESPACE
from openba.tokenizer.tokenizer import CONFIG_FILE, SWITCH, Tokenizer

_BATCH = 1000


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
    sizes: dict[str, list[np.ndarray]] = {}
    for language, texts in _by_language(corpus):
        without = pc.subtract(pc.utf8_length(texts), pc.count_substring(texts, "\n"))
        sizes.setdefault(language, []).append(without.to_numpy())
    wanted: dict[str, np.ndarray] = {}
    random = np.random.default_rng(seed)
    for language in sorted(sizes):
        known = np.concatenate(sizes[language])
        order = random.permutation(len(known))
        enough = np.searchsorted(np.cumsum(known[order], dtype=np.int64), characters // len(sizes))
        wanted[language] = order[: enough + 1]
    for chosen in _texts_at(corpus, wanted):
        left = characters // len(sizes)
        for text in chosen:
            for line in text.split("\n"):
                if line and left > 0:
                    left -= len(line)
                    yield line[:2000]


def _by_language(corpus: Path) -> Iterator[tuple[str, pa.Array]]:
    for path in corpus_files(corpus):
        for batch in read_batches(path, _BATCH, ["text", "language"]):
            for language in pc.unique(batch["language"]).to_pylist():
                yield language, batch["text"].filter(pc.equal(batch["language"], language))


def _texts_at(corpus: Path, wanted: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Per language its documents of these numbers, in their order: the corpus passes, only these are held."""
    found: dict[str, dict[int, str]] = {language: {} for language in wanted}
    begin = dict.fromkeys(wanted, 0)
    among = {language: np.sort(numbers) for language, numbers in wanted.items()}
    for language, texts in _by_language(corpus):
        first, last = np.searchsorted(among[language], [begin[language], begin[language] + len(texts)])
        for number in among[language][first:last].tolist():
            found[language][number] = texts[number - begin[language]].as_py()
        begin[language] += len(texts)
    for language, numbers in wanted.items():
        yield [found[language][number] for number in numbers.tolist()]


def _fit(tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """Characters and bytes per token and share of unknown or byte pieces, on the head of each source."""
    pieces = tokenizer.pieces.model
    odd_ids = [tokenizer.unknown, *(i for i in range(tokenizer.base) if pieces.is_byte(i))]
    counts: dict[str, np.ndarray] = {}
    for path in corpus_files(corpus):
        if ".part-" in path.name and not path.name.endswith(".part-00000.parquet"):
            continue
        for batch in read_batches(path, 200, ["text", "language"]):
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
