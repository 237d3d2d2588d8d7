"""The mixture as token streams: Stage I, Stage II and held-out documents, disjoint by construction.

Owns the choice of documents (token budgets per language, order by hash) and the stored form:
per part a flat int32 token file, document offsets and a Parquet of document ids. It does not
corrupt anything: `openba.data.denoise` does that on the fly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from openba.artifacts import Build
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.recipes.data import Language, MixtureRecipe

PARTS = ("heldout", "stage1", "stage2")


@dataclass
class _Part:
    """Documents chosen for one part, in order of choice."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)  # source, id, language
    tokens: list[np.ndarray] = field(default_factory=list)


class TokenStream:
    """One part of a mixture, memory-mapped: documents with </s> after each, concatenated."""

    def __init__(self, folder: Path, part: str) -> None:
        self.tokens = np.load(folder / f"{part}.npy", mmap_mode="r")
        self.offsets = np.load(folder / f"{part}_offsets.npy", mmap_mode="r")

    def count(self, length: int) -> int:
        """How many samples of `length` tokens the stream holds."""
        return len(self.tokens) // length

    def sample(self, index: int, length: int) -> np.ndarray:
        """Sample `index`, int32 `[length]`: documents run on across its borders, as in the release."""
        return self.tokens[index * length : (index + 1) * length]


def build(build: Build) -> dict[str, Any]:
    """Step `mixture`: fill each part's budget per language, document by document."""
    recipe: MixtureRecipe = build.recipe
    tokenizer = Tokenizer.load(build.inputs["tokenizer"])
    parts = {name: _Part() for name in PARTS}
    for language, share in recipe.shares.items():
        documents = _documents(build.inputs["corpus"], language, recipe.seed)
        budgets = {part: round(getattr(recipe, part) * share) for part in PARTS}
        _fill(parts, budgets, documents, language, tokenizer)
    for name, part in parts.items():
        _write(build.out, name, part, recipe.seed)
    return {
        "tokens": {name: _per_language(part, recipe) for name, part in parts.items()},
        "documents": {name: len(part.rows) for name, part in parts.items()},
        "shares_wanted": dict(recipe.shares),
    }


def _documents(corpus: Path, language: str, seed: int) -> Iterator[tuple[str, str, str]]:
    """(source, id, text) of one language, in an order that depends on ids and seed only."""
    found = []
    for path in sorted(corpus.glob("*.parquet")):
        if path.stem == "removed":
            continue
        table = pq.read_table(path, columns=["source", "id", "text", "language"])
        for row in table.filter(pa.compute.equal(table["language"], language)).to_pylist():
            order = _hash(seed, row["source"], row["id"])
            found.append((order, row["source"], row["id"], row["text"]))
    for _, source, identifier, text in sorted(found, key=lambda item: item[:3]):
        yield source, identifier, text


def _fill(
    parts: dict[str, _Part],
    budgets: dict[str, int],
    documents: Iterator[tuple[str, str, str]],
    language: Language,
    tokenizer: Tokenizer,
) -> None:
    for name, part in parts.items():
        left = budgets[name]
        while left > 0:
            try:
                source, identifier, text = next(documents)
            except StopIteration:
                raise UserError(
                    f"mixture.{name}: {language} is {left:,} tokens short of its {budgets[name]:,}; "
                    f"add a source or lower mixture.{name} (nothing is repeated silently)"
                ) from None
            # The last document of a part is cut at the budget; its rest is used nowhere.
            ids = np.array([*tokenizer.encode(text), tokenizer.eos], dtype=np.int32)[:left]
            part.rows.append((source, identifier, language))
            part.tokens.append(ids)
            left -= len(ids)


def _write(out: Path, name: str, part: _Part, seed: int) -> None:
    order = sorted(range(len(part.rows)), key=lambda i: _hash(seed + 1, *part.rows[i]))
    tokens = [part.tokens[i] for i in order]
    sizes = np.array([len(t) for t in tokens], dtype=np.int64)
    np.save(out / f"{name}.npy", np.concatenate([np.empty(0, dtype=np.int32), *tokens]))
    np.save(out / f"{name}_offsets.npy", np.concatenate([[0], np.cumsum(sizes)]))
    rows = [(*part.rows[i], len(part.tokens[i])) for i in order]
    names = ["source", "id", "language", "tokens"]
    table = pa.table({key: [row[k] for row in rows] for k, key in enumerate(names)})
    pq.write_table(table, out / f"{name}_documents.parquet", compression="zstd")


def _hash(seed: int, *names: str) -> int:
    return xxhash.xxh3_64_intdigest("/".join(names).encode(), seed)


def _per_language(part: _Part, recipe: MixtureRecipe) -> dict[str, int]:
    counts = dict.fromkeys(recipe.shares, 0)
    for (_, _, language), ids in zip(part.rows, part.tokens, strict=True):
        counts[language] += len(ids)  # type: ignore[index]
    return {str(language): count for language, count in counts.items()}
