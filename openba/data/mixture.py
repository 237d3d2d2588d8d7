"""The mixture: token budgets a group and part, filled with documents that stand in one part only.

Owns the plan (which documents, how often, where one is cut) and the order they are written in. The
form on disk is `openba.data.store`'s, the corpus `openba.data.catalogue`'s. Held-out data, Stage I
and Stage II share no text, whatever the ids of its copies and the filters of their sources: "ensure that
there is no overlap between these data and the data from the previous stage" (paper section 3.3).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from openba.artifacts import Build
from openba.data.catalogue import Catalogue, Exclude
from openba.data.contamination import Holder, Items
from openba.data.store import DOCUMENTS, TokenWriter
from openba.errors import UserError
from openba.recipes.data import HELDOUT, NGRAM, MixtureRecipe
from openba.tokenizer.tokenizer import Tokenizer

_BYTES_PER_TOKEN = 5
"""What a round of tokenising counts on; where tokens are longer another one follows."""
_CHUNK_TOKENS = 2**20
_MOST_EPOCHS = 1000.0


@dataclass
class Part:
    """What stands in one part: document numbers, tokens used of each, and how often it stood before."""

    numbers: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    epochs: list[np.ndarray] = field(default_factory=list)

    def add(self, numbers: np.ndarray, tokens: np.ndarray, budget: int) -> None:
        """Repeat documents of `tokens` tokens until the budget is met; the last one is cut at it."""
        times = -(-budget // int(tokens.sum())) if budget else 0
        counts, epoch = np.tile(tokens, times), np.repeat(np.arange(times), len(tokens))
        used = np.clip(budget - (np.cumsum(counts) - counts), 0, counts)
        kept = used > 0
        self.numbers.append(np.tile(numbers, times)[kept])
        self.tokens.append(used[kept])
        self.epochs.append(epoch[kept])


def build(build: Build) -> dict[str, Any]:
    """Step `mixture`: fill each part's budget per group, document by document.

    Raises:
        UserError: a group is short of its budget; the message has the numbers and the remedy.
    """
    recipe: MixtureRecipe = build.recipe
    catalogue = Catalogue(build.inputs["corpus"], recipe.shares, recipe.seed)
    tokenizer = Tokenizer.load(build.inputs["tokenizer"])
    spool = build.out / "spool"
    parts = {name: Part() for name in recipe.tokens}
    records = {key: folder for key, folder in build.inputs.items() if key.startswith("task-")}
    holder = Holder(Items.read(records, NGRAM)) if records else None
    groups: dict[str, Any] = {}
    for name in recipe.shares:
        groups[name] = _fill(parts, name, recipe, catalogue, tokenizer, spool, holder)
    for name, part in parts.items():
        _write(build.out / name, part, catalogue, recipe.seed)
    shutil.rmtree(spool, ignore_errors=True)
    return _facts(parts, groups, catalogue, recipe)


def _fill(
    parts: dict[str, Part],
    name: str,
    recipe: MixtureRecipe,
    catalogue: Catalogue,
    tokenizer: Tokenizer,
    spool: Path,
    exclude: Exclude | None,
) -> dict[str, Any]:
    """Choose a group's documents for all parts; returns what the facts say of the group."""
    budgets, most = recipe.budgets()[name], recipe.epochs.get(name, 1.0)
    order, done, epochs = catalogue.ordered(name), 0, 1.0
    # A copy of a text that another group has taken might come to stand in another part.
    taken = np.concatenate([np.empty(0, np.int64), *(n for part in parts.values() for n in part.numbers)])
    elsewhere = np.isin(catalogue.text[order], catalogue.text[taken])
    copies, order = int(elsewhere.sum()), order[~elsewhere]
    while True:
        known = order[:done][catalogue.tokens[order[:done]] > 0]
        tokens, texts = catalogue.tokens[known], catalogue.text[known]
        found = _ranges(tokens, texts, budgets, epochs)
        if None not in found.values():
            break
        if done < len(order):
            wanted = sum(budgets.values()) - int(tokens.sum())
            end = done + _documents_for(wanted, catalogue.bytes[order[done:]])
            catalogue.tokenise(order[done:end], tokenizer, spool, exclude)
            done = end
        else:
            epochs = _epochs(tokens, texts, budgets)
            if epochs > most:
                _refuse(name, recipe, tokens, found, epochs)
    cut = 0
    for part, span in found.items():
        if span is not None and budgets[part]:
            used = tokens[slice(*span)].copy()
            used[-1] -= used.sum() - _distinct(budgets, part, epochs)  # its rest is used nowhere
            cut += int(tokens[span[1] - 1] - used[-1])
            parts[part].add(known[slice(*span)], used, budgets[part])
    dropped = int((catalogue.tokens[order[:done]] == 0).sum())
    return {
        "tokens_found": int(tokens.sum()),
        "documents_contaminated": dropped,
        "documents_in_other_groups": copies,
        "epochs": round(epochs, 4),
        "tokens_cut": cut,
    }


def _distinct(budgets: dict[str, int], part: str, epochs: float) -> int:
    return budgets[part] if part == HELDOUT else math.ceil(budgets[part] / epochs)


def _ranges(
    tokens: np.ndarray, texts: np.ndarray, budgets: dict[str, int], epochs: float
) -> dict[str, tuple[int, int] | None]:
    """Part -> documents begin..end-1 that hold its distinct tokens; None: there are not enough.

    Args:
        tokens: of each document.
        texts: digest of each document's text; equal ones are neighbours. The next part begins at a new text.
        budgets: tokens of each part.
        epochs: how often a part's documents are repeated.
    """
    ends, begin = np.cumsum(tokens), 0
    found: dict[str, tuple[int, int] | None] = {}
    for part in budgets:
        distinct = _distinct(budgets, part, epochs)
        before = int(ends[begin - 1]) if begin else 0
        end = int(np.searchsorted(ends, before + distinct)) + 1 if distinct else begin
        found[part] = (begin, end) if end <= len(tokens) else None
        begin = min(end, len(tokens))
        while 0 < begin < len(tokens) and texts[begin] == texts[begin - 1]:
            begin += 1
    return found


def _documents_for(tokens: int, sizes: np.ndarray) -> int:
    """How many documents to read next to find so many tokens."""
    return min(len(sizes), int(np.searchsorted(np.cumsum(sizes), max(1, tokens) * _BYTES_PER_TOKEN)) + 1)


def _epochs(tokens: np.ndarray, texts: np.ndarray, budgets: dict[str, int]) -> float:
    """Fewest epochs (in steps of 1 %) with which the documents suffice; infinite where none do."""
    epochs = 1.0
    while None in _ranges(tokens, texts, budgets, epochs).values():
        epochs *= 1.01
        if epochs > _MOST_EPOCHS:
            return math.inf
    return epochs


def _refuse(
    name: str,
    recipe: MixtureRecipe,
    tokens: np.ndarray,
    found: dict[str, tuple[int, int] | None],
    needed: float,
) -> None:
    budgets, have = recipe.budgets()[name], int(tokens.sum())
    part = next(part for part, span in found.items() if span is None)
    earlier = list(found)[: list(found).index(part)]
    begin = max((span[1] for other in earlier if (span := found[other])), default=0)
    short = budgets[part] - int(tokens[begin:].sum())
    key = f"mixture.{HELDOUT}" if part == HELDOUT else f"mixture.parts.{part}"
    remedy = f"add a source or lower {key}"
    if math.isfinite(needed):
        remedy += f", or allow repetition: mixture.epochs.{name}={math.ceil(needed * 10) / 10:g}"
    raise UserError(
        f"{key}: {name} is {short:,} tokens short of its {budgets[part]:,} "
        f"({have:,} found for {sum(budgets.values()):,} in all parts); {remedy} "
        "(nothing is repeated silently)"
    )


def _write(folder: Path, part: Part, catalogue: Catalogue, seed: int) -> None:
    """Write a part in an order of its own, so that groups and repetitions stand all over it."""
    empty = np.empty(0, np.int64)
    numbers, tokens, epochs = (
        np.concatenate([empty, *rows]) for rows in (part.numbers, part.tokens, part.epochs)
    )
    key = _mixed(catalogue.order["low"][numbers].astype(np.uint64), epochs.astype(np.uint64), seed)
    order = np.argsort(key, kind="stable")
    with TokenWriter(folder) as writer:
        for rows in _chunks(order, tokens):
            ids = [catalogue.ids(int(n))[:t] for n, t in zip(numbers[rows], tokens[rows], strict=True)]
            known = catalogue.documents.take(pa.array(numbers[rows])).combine_chunks()
            columns = [known[key].combine_chunks().cast(pa.string()) for key in ("source", "id", "language")]
            columns += [pa.array(tokens[rows]), pa.array(epochs[rows].astype(np.int32))]
            writer.append(np.concatenate(ids), pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS))


def _chunks(order: np.ndarray, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in order, about `_CHUNK_TOKENS` a chunk."""
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(np.cumsum(tokens[order]) // _CHUNK_TOKENS)) + 1)


def _mixed(keys: np.ndarray, epochs: np.ndarray, seed: int) -> np.ndarray:
    """Keys uint64 -> other keys uint64, by epoch and seed (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        keys = keys + (epochs * np.uint64(2**32) + np.uint64(seed + 1)) * np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))


def _facts(
    parts: dict[str, Part], groups: dict[str, Any], catalogue: Catalogue, recipe: MixtureRecipe
) -> dict[str, Any]:
    tokens: dict[str, dict[str, int]] = {name: dict.fromkeys(recipe.shares, 0) for name in parts}
    repeated: dict[str, dict[str, int]] = {name: dict.fromkeys(recipe.shares, 0) for name in parts}
    for name, part in parts.items():
        for numbers, used, epochs in zip(part.numbers, part.tokens, part.epochs, strict=True):
            if len(numbers):
                group = catalogue.names[catalogue.group[numbers[0]]]
                tokens[name][group] += int(used.sum())
                repeated[name][group] += int(used[epochs > 0].sum())
    distinct = {name: np.unique(np.concatenate([[], *part.numbers])) for name, part in parts.items()}
    texts = [np.unique(catalogue.text[numbers.astype(np.int64)]) for numbers in distinct.values()]
    together = np.concatenate(texts)
    return {
        "tokens": tokens,
        "documents": {name: len(numbers) for name, numbers in distinct.items()},
        "repeated_tokens": repeated,
        "texts_in_two_parts": len(together) - len(np.unique(together)),
        "shares_wanted": {str(name): share for name, share in recipe.shares.items()},
        "groups": groups,
    }
