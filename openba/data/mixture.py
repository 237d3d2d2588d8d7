"""Step `mixture`: fill token budgets per group and part with documents, each in one part only.

A group is a source or a language, a part is Stage I, Stage II or held-out data. No part holds a copy or near
copy of another's text, whatever the ids and filters of the two: "ensure that there is no overlap between
these data and the data from the previous stage" (paper section 3.3).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NoReturn, TypedDict

import numpy as np
import pyarrow as pa

from openba.artifacts import Build
from openba.data import near_copies
from openba.data.catalogue import Catalogue, Exclude
from openba.data.clean.passes import Mapper
from openba.data.contamination import Holder, Items
from openba.data.store import DOCUMENTS, TokenWriter
from openba.errors import UserError
from openba.recipes.data import HELDOUT, NGRAM, MixtureRecipe
from openba.tokenizer.tokenizer import Tokenizer

# Estimate for how many documents to tokenise next; if tokens are longer, another round follows.
_BYTES_PER_TOKEN = 5
_CHUNK_TOKENS = 2**20
_MAX_EPOCHS = 1000.0
# Part -> its range of documents, None if there are not enough.
_Ranges = dict[str, tuple[int, int] | None]


@dataclass
class Part:
    """Documents of one part, an array per group: numbers, tokens used of each, and earlier occurrences."""

    numbers: list[np.ndarray] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    epochs: list[np.ndarray] = field(default_factory=list)

    def add(self, document_numbers: np.ndarray, tokens: np.ndarray, budget: int) -> None:
        """Add a group's documents, repeated until the budget is met; the last one is cut at it.

        Args:
            document_numbers: int64 `[documents]`.
            tokens: of each document, int64 `[documents]`.
            budget: tokens to add.
        """
        repetitions = -(-budget // int(tokens.sum())) if budget else 0
        repeated_tokens = np.tile(tokens, repetitions)
        epochs = np.repeat(np.arange(repetitions), len(tokens))
        tokens_before = np.cumsum(repeated_tokens) - repeated_tokens
        used_tokens = np.clip(budget - tokens_before, 0, repeated_tokens)
        is_used = used_tokens > 0
        self.numbers.append(np.tile(document_numbers, repetitions)[is_used])
        self.tokens.append(used_tokens[is_used])
        self.epochs.append(epochs[is_used])


class GroupFacts(TypedDict):
    """Facts of one group of the mixture."""

    tokens_found: int
    documents_contaminated: int
    documents_in_other_groups: int
    """Left out, because another group has a copy or near copy."""
    documents_between_parts: int
    """Left out, because the part before has a copy or near copy."""
    epochs: float
    tokens_cut: int


class Facts(TypedDict):
    """Facts that the step records in its manifest; maps are part -> group -> tokens."""

    tokens: dict[str, dict[str, int]]
    documents: dict[str, int]
    repeated_tokens: dict[str, dict[str, int]]
    texts_in_two_parts: int
    """Clusters of equal and nearly equal texts of which two parts have documents."""
    documents_with_near_copies: int
    """Documents of the corpus with a near copy that is no exact one."""
    shares_wanted: dict[str, float]
    groups: dict[str, GroupFacts]


def build(build: Build, mapper: Mapper | None = None) -> Facts:
    """Fill each part's budget per group, document by document, and write a token store per part.

    Args:
        build: recipe, inputs and output folder.
        mapper: runs the search for near copies; none: in this process, or in one per core if there is enough
            to do.

    Raises:
        UserError: a group is short of its budget; the message has the numbers and the remedy.
    """
    recipe: MixtureRecipe = build.recipe
    catalogue = Catalogue(build.inputs["corpus"], recipe.shares, recipe.seed)
    tokenizer = Tokenizer.load(build.inputs["tokenizer"])
    spool = build.out / "spool"
    pairs = near_copies.find(build.inputs["corpus"], spool / "near", mapper)
    catalogue.cluster = near_copies.cluster_keys(catalogue.text, pairs)
    parts = {name: Part() for name in recipe.tokens}
    records = {key: folder for key, folder in build.inputs.items() if key.startswith("task-")}
    holder = Holder(Items.read(records, NGRAM)) if records else None
    groups = {name: _fill(parts, name, recipe, catalogue, tokenizer, spool, holder) for name in recipe.shares}
    for name, part in parts.items():
        _write(build.out / name, part, catalogue, recipe.seed)
    shutil.rmtree(spool, ignore_errors=True)
    differing_pairs = pairs[catalogue.text[pairs[:, 0]] != catalogue.text[pairs[:, 1]]]
    return _facts(parts, groups, catalogue, recipe, len(np.unique(differing_pairs)))


def _fill(
    parts: dict[str, Part],
    group_name: str,
    recipe: MixtureRecipe,
    catalogue: Catalogue,
    tokenizer: Tokenizer,
    spool: Path,
    exclude: Exclude | None,
) -> GroupFacts:
    """Choose a group's documents for all parts and add them there."""
    budgets = recipe.budgets()[group_name]
    max_epochs = recipe.epochs.get(group_name, 1.0)
    document_order = catalogue.ordered(group_name)
    # A copy of a text that another group has used might end up in another part.
    used_numbers = [
        document_numbers for part_name in parts.values() for document_numbers in part_name.numbers
    ]
    used_clusters = catalogue.cluster[np.concatenate([np.empty(0, np.int64), *used_numbers])]
    is_used_elsewhere = np.isin(catalogue.cluster[document_order], used_clusters)
    document_order = document_order[~is_used_elsewhere]
    tokenised_count = 0
    epochs = 1.0
    while True:
        tokenised = document_order[:tokenised_count]
        usable = tokenised[catalogue.tokens[tokenised] > 0]
        tokens = catalogue.tokens[usable]
        clusters = catalogue.cluster[usable]
        ranges = _ranges(tokens, clusters, budgets, epochs)
        if None not in ranges.values():
            break
        # Tokenise in rounds, so that no more documents are tokenised than the budgets need.
        if tokenised_count < len(document_order):
            missing = sum(budgets.values()) - int(tokens.sum())
            end = tokenised_count + _documents_for(missing, catalogue.bytes[document_order[tokenised_count:]])
            catalogue.tokenise(document_order[tokenised_count:end], tokenizer, spool, exclude)
            tokenised_count = end
        else:
            epochs = _needed_epochs(tokens, clusters, budgets)
            if epochs > max_epochs:
                _refuse(group_name, recipe, tokens, ranges, epochs)
    tokens_cut = 0
    for part_name, document_span in ranges.items():
        if document_span is not None and budgets[part_name]:
            used_tokens = tokens[slice(*document_span)].copy()
            # The rest of the last document is not used in any part.
            used_tokens[-1] -= used_tokens.sum() - _distinct_tokens(budgets, part_name, epochs)
            tokens_cut += int(tokens[document_span[1] - 1] - used_tokens[-1])
            parts[part_name].add(usable[slice(*document_span)], used_tokens, budgets[part_name])
    return GroupFacts(
        tokens_found=int(tokens.sum()),
        documents_contaminated=int((catalogue.tokens[document_order[:tokenised_count]] == 0).sum()),
        documents_in_other_groups=int(is_used_elsewhere.sum()),
        documents_between_parts=_gap_between(ranges),
        epochs=round(epochs, 4),
        tokens_cut=tokens_cut,
    )


def _distinct_tokens(budgets: dict[str, int], part_name: str, epochs: float) -> int:
    """Return the tokens of a part without repetitions; held-out data is never repeated."""
    return budgets[part_name] if part_name == HELDOUT else math.ceil(budgets[part_name] / epochs)


def _gap_between(ranges: _Ranges) -> int:
    """Return how many documents lie behind one part and before the next."""
    spans = [span for span in ranges.values() if span is not None and span[1] > span[0]]
    return sum(following[0] - span[1] for span, following in pairwise(spans))


def _ranges(tokens: np.ndarray, clusters: np.ndarray, budgets: dict[str, int], epochs: float) -> _Ranges:
    """Return for each part the documents begin..end-1 that hold its distinct tokens.

    Args:
        tokens: of each document.
        clusters: of each document, ascending. A part begins at a new one.
        budgets: tokens of each part.
        epochs: how often a part's documents are repeated.
    """
    tokens_through = np.cumsum(tokens)
    begin = 0
    ranges: _Ranges = {}
    for part_name in budgets:
        distinct_tokens = _distinct_tokens(budgets, part_name, epochs)
        tokens_before = int(tokens_through[begin - 1]) if begin else 0
        end = begin
        if distinct_tokens:
            end = int(np.searchsorted(tokens_through, tokens_before + distinct_tokens)) + 1
        ranges[part_name] = (begin, end) if end <= len(tokens) else None
        begin = min(end, len(tokens))
        if begin:
            begin = int(np.searchsorted(clusters, clusters[begin - 1], side="right"))
    return ranges


def _documents_for(tokens: int, sizes: np.ndarray) -> int:
    """Return how many documents probably hold so many tokens.

    Args:
        tokens: wanted.
        sizes: UTF-8 bytes of the next documents, int64 `[documents]`.
    """
    wanted_bytes = max(1, tokens) * _BYTES_PER_TOKEN
    return min(len(sizes), int(np.searchsorted(np.cumsum(sizes), wanted_bytes)) + 1)


def _needed_epochs(tokens: np.ndarray, clusters: np.ndarray, budgets: dict[str, int]) -> float:
    """Return the fewest epochs (in steps of 1 %) for which the documents suffice, infinity if none do."""
    epochs = 1.0
    while None in _ranges(tokens, clusters, budgets, epochs).values():
        epochs *= 1.01
        if epochs > _MAX_EPOCHS:
            return math.inf
    return epochs


def _refuse(
    group_name: str,
    recipe: MixtureRecipe,
    tokens: np.ndarray,
    ranges: _Ranges,
    needed_epochs: float,
) -> NoReturn:
    budgets = recipe.budgets()[group_name]
    part_name = next(part_name for part_name, document_span in ranges.items() if document_span is None)
    part_names = list(ranges)
    spans_before = [ranges[other] for other in part_names[: part_names.index(part_name)]]
    begin = max((span[1] for span in spans_before if span), default=0)
    missing = budgets[part_name] - int(tokens[begin:].sum())
    recipe_key = f"mixture.{HELDOUT}" if part_name == HELDOUT else f"mixture.parts.{part_name}"
    remedy = f"add a source or lower {recipe_key}"
    if math.isfinite(needed_epochs):
        remedy += f", or allow repetition: mixture.epochs.{group_name}={math.ceil(needed_epochs * 10) / 10:g}"
    raise UserError(
        f"{recipe_key}: {group_name} is {missing:,} tokens short of its {budgets[part_name]:,} "
        f"({int(tokens.sum()):,} found for {sum(budgets.values()):,} in all parts); {remedy} "
        "(nothing is repeated silently)"
    )


def _write(folder: Path, part: Part, catalogue: Catalogue, seed: int) -> None:
    """Write a part in pseudo-random order, so that groups and repetitions are spread over it."""
    empty = np.empty(0, np.int64)
    document_numbers, tokens, epochs = (
        np.concatenate([empty, *rows]) for rows in (part.numbers, part.tokens, part.epochs)
    )
    keys = _mix_keys(
        catalogue.order["low"][document_numbers].astype(np.uint64), epochs.astype(np.uint64), seed
    )
    document_order = np.argsort(keys, kind="stable")
    with TokenWriter(folder) as writer:
        for rows in _chunks(document_order, tokens):
            ids = [
                catalogue.ids(int(number))[:token_count]
                for number, token_count in zip(document_numbers[rows], tokens[rows], strict=True)
            ]
            table = catalogue.documents.take(pa.array(document_numbers[rows])).combine_chunks()
            columns = [
                table[column_name].combine_chunks().cast(pa.string())
                for column_name in ("source", "id", "language")
            ]
            columns += [pa.array(tokens[rows]), pa.array(epochs[rows].astype(np.int32))]
            writer.append(np.concatenate(ids), pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS))


def _chunks(document_order: np.ndarray, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows in order, about `_CHUNK_TOKENS` tokens per chunk."""
    if len(document_order):
        chunk_numbers = np.cumsum(tokens[document_order]) // _CHUNK_TOKENS
        yield from np.split(document_order, np.flatnonzero(np.diff(chunk_numbers)) + 1)


def _mix_keys(keys: np.ndarray, epochs: np.ndarray, seed: int) -> np.ndarray:
    """Return other keys, uint64 `[rows]`, by epoch and seed: the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        keys = keys + (epochs * np.uint64(2**32) + np.uint64(seed + 1)) * np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))


def _facts(
    parts: dict[str, Part],
    groups: dict[str, GroupFacts],
    catalogue: Catalogue,
    recipe: MixtureRecipe,
    documents_with_near_copies: int,
) -> Facts:
    tokens: dict[str, dict[str, int]] = {name: dict.fromkeys(recipe.shares, 0) for name in parts}
    repeated_tokens: dict[str, dict[str, int]] = {name: dict.fromkeys(recipe.shares, 0) for name in parts}
    for name, part in parts.items():
        for document_numbers, used_tokens, epochs in zip(part.numbers, part.tokens, part.epochs, strict=True):
            if len(document_numbers):
                group_name = catalogue.names[catalogue.group[document_numbers[0]]]
                tokens[name][group_name] += int(used_tokens.sum())
                repeated_tokens[name][group_name] += int(used_tokens[epochs > 0].sum())
    distinct = {name: np.unique(np.concatenate([[], *part.numbers])) for name, part in parts.items()}
    clusters_of_parts = [
        np.unique(catalogue.cluster[document_numbers.astype(np.int64)])
        for document_numbers in distinct.values()
    ]
    all_clusters = np.concatenate(clusters_of_parts)
    return Facts(
        tokens=tokens,
        documents={name: len(document_numbers) for name, document_numbers in distinct.items()},
        repeated_tokens=repeated_tokens,
        texts_in_two_parts=len(all_clusters) - len(np.unique(all_clusters)),
        documents_with_near_copies=documents_with_near_copies,
        shares_wanted={str(name): share for name, share in recipe.shares.items()},
        groups=groups,
    )
