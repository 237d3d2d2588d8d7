"""Pairs of text become pairs of token ids: the form of a sample, the mix by shares, the store on disk.

Owns the release's multitask layout, what happens to samples that are too long, and how many
samples each language group gives. It does not render records (openba.data.tasks), pad or shift
(the collator).
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import xxhash

from openba.artifacts import Build
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.recipes.data import InstructRecipe

SPLITS = ("train", "heldout")
_BATCH = 2000  # rows tokenised at a time


class Pairs:
    """One part of an instruct step's output, memory-mapped; samples in their final order."""

    def __init__(self, folder: Path, split: Literal["train", "heldout"]) -> None:
        self.names: tuple[str, ...] = tuple(json.loads((folder / "tasks.json").read_text(encoding="utf-8")))
        self._tokens = {key: _map(folder / f"{split}_{key}.npy") for key in ("source", "target")}
        self._offsets = {key: _map(folder / f"{split}_{key}_offsets.npy") for key in ("source", "target")}
        self._task = _map(folder / f"{split}_task.npy")

    def __len__(self) -> int:
        return len(self._task)

    def source(self, index: int) -> np.ndarray:
        """Encoder ids, int32: `<S> input <extra_id_0> </s>`."""
        return self._slice("source", index)

    def target(self, index: int) -> np.ndarray:
        """Decoder target ids, int32: `<extra_id_0> target </s>`; the input is this, shifted right."""
        return self._slice("target", index)

    def task(self, index: int) -> int:
        """Position of the sample's task in `names`."""
        return int(self._task[index])

    def _slice(self, key: str, index: int) -> np.ndarray:
        begin, end = self._offsets[key][index : index + 2]
        return self._tokens[key][begin:end]


@dataclass
class _Samples:
    """One task's samples in the order of its table."""

    keys: list[str] = field(default_factory=list)
    sources: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    over_long: int = 0

    def add(self, key: str, source: list[int], target: list[int], recipe: InstructRecipe) -> None:
        """Take a sample, or drop or cut it if it is too long."""
        if len(source) > recipe.encoder_length or len(target) > recipe.decoder_length:
            self.over_long += 1
            if recipe.over_long == "drop":
                return
            # As released: the source keeps its start and its closing tokens, the target loses its </s>.
            source = source[:-2][: recipe.encoder_length - 2] + source[-2:]
            target = target[: recipe.decoder_length]
        self.keys.append(key)
        self.sources.append(np.array(source, dtype=np.int32))
        self.targets.append(np.array(target, dtype=np.int32))


def build(build: Build) -> dict[str, Any]:
    """Step of an instruct recipe: inputs `tokenizer` and a `task-NAME` for each of its tasks.

    Writes, per split, flat int32 `SPLIT_source.npy` and `SPLIT_target.npy` with int64
    `*_offsets.npy`, and int32 `SPLIT_task.npy`; read them with `Pairs`. Holds the mix in memory
    while it builds, four bytes a token.

    Returns:
        Facts per split: samples by task and by group, over-long samples by task, mean lengths, shares.

    Raises:
        UserError: no sample is left, or a language group with a share has none.
    """
    recipe: InstructRecipe = build.recipe
    tokenizer = Tokenizer.load(build.inputs["tokenizer"])
    (build.out / "tasks.json").write_text(json.dumps(list(recipe.tasks)), encoding="utf-8")
    facts: dict[str, Any] = {}
    for split in SPLITS:
        tasks = [
            _tokenise(build.inputs[f"task-{name}"] / f"{split}.parquet", name, recipe, tokenizer)
            for name in recipe.tasks
        ]
        chosen = _choose(tasks, recipe, split)
        _write(build.out, split, [(task, tasks[task], i) for task, i in chosen])
        facts[split] = _facts(tasks, chosen, recipe)
    if not facts["train"]["samples"]:
        raise UserError(
            f"{', '.join(recipe.tasks)}: no sample fits encoder_length {recipe.encoder_length} and "
            f"decoder_length {recipe.decoder_length}; raise them or shorten the templates"
        )
    return facts


def encode_input(tokenizer: Tokenizer, text: str, turns: Sequence[int], length: int) -> list[int]:
    """Encoder ids of one input, at most `length`: `<S> input <extra_id_0> </s>`.

    If the input is too long, a conversation loses its oldest turns and anything else its end, as
    in the release (which cuts conversations at the end, too, and so loses the question).

    Args:
        tokenizer: the tokenizer.
        text: the input.
        turns: character offsets of the history's human turns in `text`; empty for other inputs.
        length: the most ids, special tokens included.
    """
    return tokenizer.pieces.prompt(_fitting(tokenizer, text, turns, length - 3)[: length - 3])


def _fitting(tokenizer: Tokenizer, text: str, turns: Sequence[int], room: int) -> list[int]:
    """Ids of the text after as few of the oldest turns are dropped as `room` asks; maybe still too many."""

    def without(oldest: int) -> list[int]:
        return tokenizer.encode(text[: turns[0]] + text[turns[oldest] :] if oldest else text)

    last = max(len(turns) - 1, 0)
    # Fewer turns are never more tokens, so the first that fits is found by bisection.
    return without(bisect.bisect_left(range(last), True, key=lambda oldest: len(without(oldest)) <= room))


def _tokenise(path: Path, name: str, recipe: InstructRecipe, tokenizer: Tokenizer) -> _Samples:
    samples = _Samples()
    for batch in pq.ParquetFile(path).iter_batches(_BATCH, columns=["id", "input", "turns", "target"]):
        rows = batch.to_pylist()
        sources, targets = tokenizer.encode_arrow(batch["input"]), tokenizer.encode_arrow(batch["target"])
        for i, row in enumerate(rows):
            source: Sequence[int] = sources.row(i).tolist()
            if row["turns"] and len(source) > recipe.encoder_length - 3:
                source = _fitting(tokenizer, row["input"], row["turns"], recipe.encoder_length - 3)
            wrapped = [tokenizer.sentinel(0), *targets.row(i).tolist(), tokenizer.eos]
            samples.add(f"{name}/{row['id']}", tokenizer.pieces.prompt(source), wrapped, recipe)
    return samples


def _choose(tasks: list[_Samples], recipe: InstructRecipe, split: str) -> list[tuple[int, int]]:
    """(task, sample) in final order: per group those of lowest hash, then shuffled by another hash."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for task, (samples, group) in enumerate(zip(tasks, recipe.tasks.values(), strict=True)):
        groups.setdefault(group, []).extend((task, i) for i in range(len(samples.keys)))

    def order(seed: int) -> Any:
        return lambda at: (xxhash.xxh3_64_intdigest(tasks[at[0]].keys[at[1]].encode(), seed), at)

    counts = _counts({group: len(members) for group, members in groups.items()}, recipe.shares, split)
    chosen: list[tuple[int, int]] = []
    for group, members in groups.items():
        chosen += sorted(members, key=order(recipe.seed))[: counts[group]]
    return sorted(chosen, key=order(recipe.seed + 1))


def _counts(available: Mapping[str, int], shares: Mapping[str, float] | None, split: str) -> dict[str, int]:
    """Samples per group: in the ratio of the shares, as many as there are without repetition."""
    if shares is None:
        return dict(available)
    if odd := sorted(available.keys() - shares.keys()):
        raise UserError(
            f"shares: language group {odd[0]} has tasks but no share; give it one or drop its tasks"
        )
    if empty := sorted(group for group in shares if shares[group] > 0 and not available.get(group)):
        raise UserError(
            f"shares: language group {empty[0]} has no {split} sample; add a task of it or drop its share"
        )
    total = min(available[group] / share for group, share in shares.items() if share > 0)
    return {group: min(available[group], int(total * shares[group] + 1e-6)) for group in available}


def _write(out: Path, split: str, samples: list[tuple[int, _Samples, int]]) -> None:
    np.save(out / f"{split}_task.npy", np.array([task for task, _, _ in samples], dtype=np.int32))
    for key in ("source", "target"):
        arrays = [getattr(of, f"{key}s")[i] for _, of, i in samples]
        flat = np.concatenate([np.empty(0, dtype=np.int32), *arrays])
        np.save(out / f"{split}_{key}.npy", flat)
        np.save(out / f"{split}_{key}_offsets.npy", np.cumsum([0, *map(len, arrays)], dtype=np.int64))


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def _facts(tasks: list[_Samples], chosen: list[tuple[int, int]], recipe: InstructRecipe) -> dict[str, Any]:
    names, groups = list(recipe.tasks), list(recipe.tasks.values())
    by_task = dict.fromkeys(names, 0)
    by_group = dict.fromkeys(groups, 0)
    tokens = np.zeros(2)
    for task, i in chosen:
        by_task[names[task]] += 1
        by_group[groups[task]] += 1
        tokens += len(tasks[task].sources[i]), len(tasks[task].targets[i])
    total = max(1, len(chosen))
    return {
        "samples": len(chosen),
        "by_task": by_task,
        "by_group": by_group,
        "shares": {group: round(count / total, 4) for group, count in by_group.items()},
        "over_long": {name: samples.over_long for name, samples in zip(names, tasks, strict=True)},
        "mean_source": round(float(tokens[0]) / total, 1),
        "mean_target": round(float(tokens[1]) / total, 1),
    }
