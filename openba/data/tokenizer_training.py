"""Step `tokenizer`: copy the mT5 file or that of existing weights, or train a unigram model on the corpus."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

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
_MAX_LINE_CHARACTERS = 2000
_FIT_DOCUMENTS = 200
_FIT_CHARACTERS = 5000


class Facts(TypedDict):
    """Facts that the step records in its manifest; maps are by language."""

    vocab: int
    characters_per_token: dict[str, float]
    bytes_per_token: dict[str, float]
    byte_or_unknown_share: dict[str, float]


def build(build: Build) -> Facts:
    """Copy the file or train on the cleaned corpus; the facts measure how well it fits a corpus, if any."""
    recipe: TokenizerRecipe = build.recipe
    target = build.out / MODEL_FILE
    if recipe.kind == "file":
        source = Path(str(recipe.path))
        if not source.is_file():
            raise UserError(f"tokenizer.path: {source}: no such file; put the mT5 spiece.model there")
        shutil.copyfile(source, target)
        if recipe.whitespace_tokens:
            (build.out / CONFIG_FILE).write_text(json.dumps({SWITCH: True}), encoding="utf-8")
    elif recipe.kind == "weights":
        for name in (MODEL_FILE, CONFIG_FILE):
            source = build.inputs["weights"] / "model" / name
            if source.is_file():
                shutil.copyfile(source, build.out / name)
    else:
        try:
            _train(recipe, build.inputs["corpus"], target)
        except RuntimeError as error:  # SentencePiece names the size that the text allows
            raise UserError(f"tokenizer.vocab_size: {recipe.vocab_size}: {error}") from None
    tokenizer = Tokenizer.load(build.out)
    return _measure_fit(tokenizer, build.inputs.get("corpus"))


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
        num_threads=1,  # more threads change the order of float sums, and thereby the pieces
        minloglevel=2,
    )
    target.write_bytes(model.getvalue())


def _lines(corpus: Path, characters: int, seed: int) -> Iterator[str]:
    """Yield lines of a random sample of documents, with equal numbers of characters per language."""
    sizes: dict[str, list[np.ndarray]] = {}
    for language, texts in _by_language(corpus):
        character_counts = pc.subtract(pc.utf8_length(texts), pc.count_substring(texts, "\n"))
        sizes.setdefault(language, []).append(character_counts.to_numpy())
    sampled: dict[str, np.ndarray] = {}
    random = np.random.default_rng(seed)
    for language in sorted(sizes):
        language_sizes = np.concatenate(sizes[language])
        order = random.permutation(len(language_sizes))
        total_sizes = np.cumsum(language_sizes[order], dtype=np.int64)
        last = np.searchsorted(total_sizes, characters // len(sizes))
        sampled[language] = order[: last + 1]
    for texts_of_language in _read_texts(corpus, sampled):
        remaining = characters // len(sizes)
        for text in texts_of_language:
            for line in text.split("\n"):
                if line and remaining > 0:
                    remaining -= len(line)
                    yield line[:_MAX_LINE_CHARACTERS]


def _by_language(corpus: Path) -> Iterator[tuple[str, pa.Array]]:
    for path in corpus_files(corpus):
        for batch in read_batches(path, _BATCH, ["text", "language"]):
            for language in pc.unique(batch["language"]).to_pylist():
                yield language, batch["text"].filter(pc.equal(batch["language"], language))


def _read_texts(corpus: Path, numbers_of_language: dict[str, np.ndarray]) -> Iterator[list[str]]:
    """Yield for each language its documents of the given numbers, in the given order, after one pass."""
    # Only the sampled texts are held in memory.
    texts_by_number: dict[str, dict[int, str]] = {language: {} for language in numbers_of_language}
    begin = dict.fromkeys(numbers_of_language, 0)
    sorted_numbers = {language: np.sort(numbers) for language, numbers in numbers_of_language.items()}
    for language, texts in _by_language(corpus):
        limits = [begin[language], begin[language] + len(texts)]
        first, last = np.searchsorted(sorted_numbers[language], limits)
        for number in sorted_numbers[language][first:last].tolist():
            texts_by_number[language][number] = texts[number - begin[language]].as_py()
        begin[language] += len(texts)
    for language, numbers in numbers_of_language.items():
        yield [texts_by_number[language][number] for number in numbers.tolist()]


@dataclass
class _FitCounts:
    """Counts of one language over the beginnings of its sources' first documents."""

    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    byte_or_unknown: int = 0


def _measure_fit(tokenizer: Tokenizer, corpus: Path | None) -> Facts:
    """Return characters and bytes per token and the share of byte or unknown pieces, by language."""
    pieces = tokenizer.pieces.model
    fallback_ids = [tokenizer.unknown, *(piece for piece in range(tokenizer.base) if pieces.is_byte(piece))]
    counts: dict[str, _FitCounts] = {}
    for path in corpus_files(corpus) if corpus is not None else ():
        if ".part-" in path.name and not path.name.endswith(".part-00000.parquet"):
            continue
        batch = next(read_batches(path, _FIT_DOCUMENTS, ["text", "language"]), None)
        if batch is None:
            continue
        beginnings = pc.utf8_slice_codeunits(batch["text"], 0, _FIT_CHARACTERS)
        ids = tokenizer.encode_arrow(beginnings).ids
        of_language = counts.setdefault(batch["language"][0].as_py(), _FitCounts())
        of_language.characters += pc.sum(pc.utf8_length(beginnings)).as_py()
        of_language.bytes += pc.sum(pc.binary_length(beginnings)).as_py()
        of_language.tokens += len(ids)
        of_language.byte_or_unknown += int(np.isin(ids, fallback_ids).sum())

    def per_token(name: str, digits: int) -> dict[str, float]:
        return {
            language: round(getattr(of_language, name) / max(1, of_language.tokens), digits)
            for language, of_language in counts.items()
        }

    return Facts(
        vocab=tokenizer.size,
        characters_per_token=per_token("characters", 3),
        bytes_per_token=per_token("bytes", 3),
        byte_or_unknown_share=per_token("byte_or_unknown", 4),
    )
