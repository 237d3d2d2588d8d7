"""Pairs of text become pairs of token ids: the form of a sample, the mix by shares, the store on disk.

Owns the release's multitask layout, what happens to samples that are too long, and how many
samples each language group and sub-mixture gives. It does not render records (openba.data.tasks),
pad or shift (the collator). Tokens pass through files; what stays in memory is some fifty bytes a
sample.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash

from openba.artifacts import Build
from openba.data.schema import read_batches
from openba.errors import UserError
from openba.recipes.data import InstructRecipe
from openba.tokenizer.tokenizer import Tokenizer

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

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Encoder and target ids of samples `[B]`, int64 `[2, B]`."""
        offsets = (self._offsets[key] for key in ("source", "target"))
        return np.array([o[indices + 1] - o[indices] for o in offsets], np.int64)

    def task(self, index: int) -> int:
        """Position of the sample's task in `names`."""
        return int(self._task[index])

    def _slice(self, key: str, index: int) -> np.ndarray:
        begin, end = self._offsets[key][index : index + 2]
        return self._tokens[key][begin:end]


@dataclass
class _Samples:
    """All samples of one split that may be chosen, task after task; their ids lie in `files`."""

    files: dict[str, BinaryIO]
    """`source` and `target`: int32 ids, sample after sample."""
    lengths: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"source": [], "target": []})
    keys: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"draw": [], "order": []})
    """Hashes, uint64: `draw` decides which samples are taken, `order` their final order."""
    task: list[np.ndarray] = field(default_factory=list)
    over_long: dict[str, int] = field(default_factory=dict)

    def add(self, key: str, rows: list[np.ndarray]) -> None:
        """Append the ids of some samples."""
        self.files[key].write(np.concatenate([np.empty(0, dtype=np.int32), *rows]).tobytes())
        self.lengths[key].append(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))


def build(build: Build) -> dict[str, Any]:
    """Step of an instruct recipe: inputs `tokenizer` and a `task-NAME` for each of its tasks.

    Writes, per split, flat int32 `SPLIT_source.npy` and `SPLIT_target.npy` with int64
    `*_offsets.npy`, and int32 `SPLIT_task.npy`; read them with `Pairs`.

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
        scratch = {key: build.out / f"{split}_{key}.scratch" for key in ("source", "target")}
        with scratch["source"].open("wb") as source, scratch["target"].open("wb") as target:
            samples = _Samples({"source": source, "target": target})
            for index, name in enumerate(recipe.tasks):
                path = build.inputs[f"task-{name}"] / f"{split}.parquet"
                samples.over_long[name] = _tokenise(path, name, index, recipe, tokenizer, samples)
        chosen = _choose(samples, recipe, split)
        facts[split] = _write(build.out, split, scratch, samples, chosen, recipe)
        for file in scratch.values():
            file.unlink()
    if not facts["train"]["samples"]:
        raise UserError(
            f"{', '.join(recipe.tasks)}: no sample fits encoder_length {recipe.encoder_length} and "
            f"decoder_length {recipe.decoder_length}; raise them or shorten the templates"
        )
    return facts


def encode_input(tokenizer: Tokenizer, text: str, turns: Sequence[int], length: int) -> list[int]:
    """Encoder ids of one input, at most `length`: `<S> input <extra_id_0> </s>`.

    If the input is too long, a conversation loses its oldest turns, whoever speaks; then what stands before
    the turns, such as a system message; and last the beginning of the newest question. The end of a
    conversation, where the question is, always stays (the release cuts it). Any other input loses its end,
    as in the release.

    Args:
        tokenizer: the tokenizer.
        text: the input.
        turns: character offsets in `text` of turns or of solved examples, the newest last; empty for others.
        length: the most ids, special tokens included.
    """
    return encode_fitting(tokenizer, text, turns, length)[0]


def encode_fitting(
    tokenizer: Tokenizer, text: str, turns: Sequence[int], length: int
) -> tuple[list[int], int, bool]:
    """The same, with how many turns or examples were left out, and whether the last was cut."""
    room = length - 3
    left_out = _turns_to_leave_out(tokenizer, text, turns, room)
    ids = tokenizer.encode(_without_oldest(text, turns, left_out))
    fitting = ids[max(0, len(ids) - room) :] if turns else ids[:room]
    return tokenizer.pieces.prompt(fitting), min(left_out, max(len(turns) - 1, 0)), len(ids) > room


def _fitting_ids(tokenizer: Tokenizer, text: str, turns: Sequence[int], room: int) -> list[int]:
    """Ids of the text without as few of its oldest turns as `room` asks for; maybe still too many."""
    return tokenizer.encode(_without_oldest(text, turns, _turns_to_leave_out(tokenizer, text, turns, room)))


def _without_oldest(text: str, turns: Sequence[int], count: int) -> str:
    """The text without its `count` oldest turns; with all of them left out, the last turn by itself."""
    if count == 0:
        return text
    return text[turns[-1] :] if count == len(turns) else text[: turns[0]] + text[turns[count] :]


def _turns_to_leave_out(tokenizer: Tokenizer, text: str, turns: Sequence[int], room: int) -> int:
    """How many of the oldest turns must go; all if what stands before them must go as well."""
    # Fewer turns are never more tokens, so the first that fits is found by bisection.
    return bisect.bisect_left(
        range(len(turns)),
        True,
        key=lambda count: len(tokenizer.encode(_without_oldest(text, turns, count))) <= room,
    )


def _tokenise(
    path: Path, name: str, index: int, recipe: InstructRecipe, tokenizer: Tokenizer, samples: _Samples
) -> int:
    """Add a task's samples that may be chosen; returns how many were too long."""
    over_long = 0
    head = np.array([tokenizer.mode("S")], dtype=np.int32)
    start = np.array([tokenizer.sentinel(0)], dtype=np.int32)
    end = np.array([tokenizer.eos], dtype=np.int32)
    tail = np.concatenate([start, end])
    for batch in read_batches(path, _BATCH, ["id", "input", "turns", "target"]):
        sources, targets = (tokenizer.encode_arrow(batch[key]) for key in ("input", "target"))
        identifiers, turns = batch["id"].to_pylist(), batch["turns"].to_pylist()
        kept: dict[str, list[np.ndarray]] = {"source": [], "target": []}
        keys: list[bytes] = []
        for row, identifier in enumerate(identifiers):
            source, target = sources.row(row), targets.row(row)
            if turns[row] and len(source) > recipe.encoder_length - 3:
                text = batch["input"][row].as_py()
                fitted = _fitting_ids(tokenizer, text, turns[row], recipe.encoder_length - 3)
                source = np.array(fitted, dtype=np.int32)
            if len(source) + 3 > recipe.encoder_length or len(target) + 2 > recipe.decoder_length:
                over_long += 1
                if recipe.over_long == "drop":
                    continue
            # As released: a source cut short keeps its closing tokens, a target cut short lacks its </s>.
            room = recipe.encoder_length - 3
            source = source[max(0, len(source) - room) :] if turns[row] else source[:room]
            kept["source"].append(np.concatenate([head, source, tail]))
            kept["target"].append(np.concatenate([start, target, end])[: recipe.decoder_length])
            keys.append(f"{name}/{identifier}".encode())
        for key, rows in kept.items():
            samples.add(key, rows)
        for purpose, seed in (("draw", recipe.seed), ("order", recipe.seed + 1)):
            hashes = [xxhash.xxh3_64_intdigest(key, seed) for key in keys]
            samples.keys[purpose].append(np.array(hashes, dtype=np.uint64))
        samples.task.append(np.full(len(keys), index, dtype=np.int32))
    return over_long


def _choose(samples: _Samples, recipe: InstructRecipe, split: str) -> np.ndarray:
    """Samples in final order: per group and part those of lowest hash, then shuffled by another hash."""
    task = np.concatenate([np.empty(0, dtype=np.int32), *samples.task])
    draw, order = (
        np.concatenate([np.empty(0, dtype=np.uint64), *samples.keys[k]]) for k in ("draw", "order")
    )
    wanted = counts(np.bincount(task, minlength=len(recipe.tasks)).tolist(), recipe, split)
    chosen = np.zeros(len(task), dtype=bool)
    for tasks, count in wanted:
        members = np.flatnonzero(np.isin(task, tasks))
        chosen[members[draw[members].argsort(kind="stable")[:count]]] = True
    taken = np.flatnonzero(chosen)
    return taken[order[taken].argsort(kind="stable")]


def counts(available: Sequence[int], recipe: InstructRecipe, split: str) -> list[tuple[list[int], int]]:
    """How many samples of which tasks together make the largest mix without repetition.

    Args:
        available: samples of each task, in the recipe's order.
        recipe: groups with their shares, and within a group its parts with their weights. A share is
            met to one sample.
        split: for messages.

    Returns:
        (positions of tasks, samples to take of them together).

    Raises:
        UserError: a group or part with a share has no sample, or a group with tasks has no share.
    """
    members: dict[str, dict[str, list[int]]] = {}
    for position, (name, group) in enumerate(recipe.tasks.items()):
        part = recipe.part_of.get(name, "") if group in recipe.parts else ""
        members.setdefault(group, {}).setdefault(part, []).append(position)
    have = {
        group: {part: sum(available[at] for at in tasks) for part, tasks in parts.items()}
        for group, parts in members.items()
    }
    weights = {group: dict(parts) for group, parts in recipe.parts.items() if group in have}
    if split == "heldout":  # a small part may have nothing held out; training data without it is an error
        weights = {g: {part: w for part, w in ws.items() if have[g].get(part)} for g, ws in weights.items()}
        have = {g: {p: n for p, n in ps.items() if g not in weights or n} for g, ps in have.items()}
    usable = {group: sum(parts.values()) for group, parts in have.items()}
    for group, each in weights.items():
        if have[group]:
            usable[group] = int(_largest(have[group], each, f"parts.{group}: part", split))
    total = usable
    if (shares := recipe.shares) is not None:
        largest = _largest(usable, shares, "shares: language group", split)
        total = {
            group: min(usable[group], int(largest * shares[group] / sum(shares.values()) + 1e-6))
            for group in usable
        }
    wanted = []
    for group, parts in members.items():
        shared = _split(total[group], weights[group], have[group]) if group in weights else {"": total[group]}
        wanted += [(tasks, shared.get(part, 0)) for part, tasks in parts.items()]
    return wanted


def _largest(available: Mapping[str, int], shares: Mapping[str, float], what: str, split: str) -> float:
    """Samples in all, in the ratio of the shares, as many as there are without repetition."""
    if odd := sorted(available.keys() - shares.keys()):
        raise UserError(f"{what} {odd[0]} has tasks but no share; give it one or drop its tasks")
    if empty := sorted(key for key in shares if shares[key] > 0 and not available.get(key)):
        raise UserError(f"{what} {empty[0]} has no {split} sample; add a task of it or drop its share")
    whole = sum(shares.values())
    return min(available[key] * whole / share for key, share in shares.items() if share > 0) + 1e-6


def _split(total: int, shares: Mapping[str, float], available: Mapping[str, int]) -> dict[str, int]:
    """The total in whole samples by share: rounded down, the rest to the largest remainders."""
    whole = sum(shares.values())
    exact = {key: total * shares[key] / whole for key in available}
    floor = {key: min(available[key], int(value + 1e-6)) for key, value in exact.items()}
    rest = total - sum(floor.values())
    for key in sorted(exact, key=lambda key: floor[key] - exact[key]):
        if rest > 0 and floor[key] < min(available[key], exact[key]):
            floor[key] += 1
            rest -= 1
    return floor


def _write(
    out: Path,
    split: str,
    scratch: dict[str, Path],
    samples: _Samples,
    chosen: np.ndarray,
    recipe: InstructRecipe,
) -> dict[str, Any]:
    """Write the chosen samples in their order; returns the facts."""
    task = np.concatenate([np.empty(0, dtype=np.int32), *samples.task])[chosen]
    np.save(out / f"{split}_task.npy", task)
    means = {}
    for key, path in scratch.items():
        lengths = np.concatenate([np.empty(0, dtype=np.int64), *samples.lengths[key]])
        begins = np.concatenate([[0], np.cumsum(lengths)])[:-1][chosen]
        lengths = lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        np.save(out / f"{split}_{key}_offsets.npy", offsets)
        _gather(path, out / f"{split}_{key}.npy", begins, offsets)
        means[f"mean_{key}"] = round(float(offsets[-1]) / max(1, len(chosen)), 1)
    by_task = np.bincount(task, minlength=len(recipe.tasks)).tolist()
    by_group = dict.fromkeys(recipe.tasks.values(), 0)
    by_part: dict[str, int] = {}
    for (name, group), count in zip(recipe.tasks.items(), by_task, strict=True):
        by_group[group] += count
        if group in recipe.parts:
            part = f"{group}.{recipe.part_of[name]}"
            by_part[part] = by_part.get(part, 0) + count
    return {
        "samples": len(chosen),
        "by_task": dict(zip(recipe.tasks, by_task, strict=True)),
        "by_group": by_group,
        "by_part": by_part,
        "shares": {group: round(count / max(1, len(chosen)), 4) for group, count in by_group.items()},
        "over_long": samples.over_long,
        **means,
    }


def _gather(source: Path, target: Path, begins: np.ndarray, offsets: np.ndarray) -> None:
    """Copy runs of int32 that begin at `begins` in one file to `offsets` in the other."""
    if not offsets[-1]:
        np.save(target, np.empty(0, dtype=np.int32))
        return
    ids = np.memmap(source, dtype=np.int32, mode="r")
    out = np.lib.format.open_memmap(target, mode="w+", dtype=np.int32, shape=(int(offsets[-1]),))
    for begin, start, stop in zip(begins.tolist(), offsets.tolist(), offsets[1:].tolist(), strict=False):
        out[start:stop] = ids[begin : begin + stop - start]
    out.flush()


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
