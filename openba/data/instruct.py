"""Step of an instruct recipe: tokenise pairs of text, mix them by shares, and store the samples on disk.

The layout of a sample is the release's multitask form. Padding and shifting are the collator's. Tokens are
kept in files; about 50 bytes of memory are needed per sample.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, TypedDict

import numpy as np
import xxhash

from openba.artifacts import Build
from openba.data.schema import read_batches
from openba.errors import UserError
from openba.recipes.data import InstructRecipe
from openba.tokenizer.tokenizer import Tokenizer

SPLITS = ("train", "heldout")
_BATCH = 2000  # rows tokenised at a time
# Added before rounding down, since a sum of shares can be a little less than it should be.
_ROUNDING = 1e-6


class Pairs:
    """Samples of one split of an instruct step's output, memory-mapped, in their final order."""

    def __init__(self, folder: Path, split_name: Literal["train", "heldout"]) -> None:
        self.names: tuple[str, ...] = tuple(json.loads((folder / "tasks.json").read_text(encoding="utf-8")))
        self._tokens = {
            side: _memory_map(folder / f"{split_name}_{side}.npy") for side in ("source", "target")
        }
        self._offsets = {
            side: _memory_map(folder / f"{split_name}_{side}_offsets.npy") for side in ("source", "target")
        }
        self._task = _memory_map(folder / f"{split_name}_task.npy")

    def __len__(self) -> int:
        return len(self._task)

    def source(self, sample_index: int) -> np.ndarray:
        """Return the encoder ids of a sample, int32 `[tokens]`: `<S> input <extra_id_0> </s>`."""
        return self._slice("source", sample_index)

    def target(self, sample_index: int) -> np.ndarray:
        """Return the target ids of a sample, int32 `[tokens]`: `<extra_id_0> target </s>`."""
        return self._slice("target", sample_index)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Return the number of encoder and target ids of samples, int64 `[2, samples]`."""
        offsets_of_sides = (self._offsets[pair_side] for pair_side in ("source", "target"))
        return np.array([offsets[indices + 1] - offsets[indices] for offsets in offsets_of_sides], np.int64)

    def task(self, sample_index: int) -> int:
        """Return the position of the sample's task in `names`."""
        return int(self._task[sample_index])

    def _slice(self, pair_side: str, sample_index: int) -> np.ndarray:
        begin, end = self._offsets[pair_side][sample_index : sample_index + 2]
        return self._tokens[pair_side][begin:end]


@dataclass
class _Samples:
    """Candidates for the samples of one split, task after task; their ids are in `files`."""

    files: dict[str, BinaryIO]
    """`source` and `target`: int32 ids, sample after sample."""
    lengths: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"source": [], "target": []})
    keys: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"draw": [], "order": []})
    """Hashes, uint64: `draw` decides which samples are chosen, `order` their final order."""
    task: list[np.ndarray] = field(default_factory=list)
    over_long: dict[str, int] = field(default_factory=dict)

    def add(self, pair_side: str, rows: list[np.ndarray]) -> None:
        """Append the ids of some samples."""
        self.files[pair_side].write(np.concatenate([np.empty(0, dtype=np.int32), *rows]).tobytes())
        self.lengths[pair_side].append(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))


class SplitFacts(TypedDict):
    """Facts of one split."""

    samples: int
    by_task: dict[str, int]
    by_group: dict[str, int]
    by_part: dict[str, int]
    """`GROUP.PART` -> samples."""
    shares: dict[str, float]
    """Group -> share of the samples."""
    over_long: dict[str, int]
    """Task -> samples that were too long."""
    mean_source: float
    """Ids per sample."""
    mean_target: float


def build(build: Build) -> dict[str, SplitFacts]:
    """Build the samples from the inputs `tokenizer` and `task-NAME` for each task; facts are per split.

    Writes, per split, flat int32 `SPLIT_source.npy` and `SPLIT_target.npy` with int64
    `*_offsets.npy`, and int32 `SPLIT_task.npy`; read them with `Pairs`.

    Raises:
        UserError: no sample is left, or a language group with a share has none.
    """
    recipe = _sorted(build.recipe)
    tokenizer = Tokenizer.load(build.inputs["tokenizer"])
    # `Pairs` gives the position of a sample's task in this list.
    (build.out / "tasks.json").write_text(json.dumps(list(recipe.tasks)), encoding="utf-8")
    facts: dict[str, SplitFacts] = {}
    for split_name in SPLITS:
        scratch = {
            pair_side: build.out / f"{split_name}_{pair_side}.scratch" for pair_side in ("source", "target")
        }
        with scratch["source"].open("wb") as source, scratch["target"].open("wb") as target:
            samples = _Samples({"source": source, "target": target})
            for sample_index, name in enumerate(recipe.tasks):
                task_path = build.inputs[f"task-{name}"] / f"{split_name}.parquet"
                samples.over_long[name] = _tokenise(task_path, name, sample_index, recipe, tokenizer, samples)
        chosen = _choose(samples, recipe, split_name)
        facts[split_name] = _write(build.out, split_name, scratch, samples, chosen, recipe)
        for file in scratch.values():
            file.unlink()
    if not facts["train"]["samples"]:
        raise UserError(
            f"{', '.join(recipe.tasks)}: no sample fits encoder_length {recipe.encoder_length} and "
            f"decoder_length {recipe.decoder_length}; raise them or shorten the templates"
        )
    return facts


def _sorted(recipe: InstructRecipe) -> InstructRecipe:
    """Return the recipe with its tasks, shares and parts in the order of their names.

    A fingerprint does not depend on the order of keys, so the output must not either: tasks are numbered and
    remainders of shares are dealt in this order.
    """
    in_order: dict[str, object] = {"tasks": dict(sorted(recipe.tasks.items()))}
    in_order["parts"] = {group: dict(sorted(parts.items())) for group, parts in sorted(recipe.parts.items())}
    if recipe.shares is not None:
        in_order["shares"] = dict(sorted(recipe.shares.items()))
    return recipe.model_copy(update=in_order)


def encode_input(tokenizer: Tokenizer, text: str, turns: Sequence[int], length: int) -> list[int]:
    """Return the encoder ids of one input, at most `length`: `<S> input <extra_id_0> </s>`.

    A conversation that is too long loses its oldest turns, whoever speaks, then the text before the turns,
    such as a system message, and last the beginning of the newest question. The end of a conversation, where
    the question is, always stays (the release cuts it). Any other input loses its end, as in the release.

    Args:
        tokenizer: the tokenizer.
        text: the input.
        turns: character offsets in `text` of turns or of solved examples, the newest last; empty for others.
        length: maximum number of ids, special tokens included.
    """
    return encode_fitting(tokenizer, text, turns, length)[0]


def encode_fitting(
    tokenizer: Tokenizer, text: str, turns: Sequence[int], length: int
) -> tuple[list[int], int, bool]:
    """Return `encode_input`, the number of dropped turns or examples, and whether the rest was truncated."""
    max_text_ids = length - 3
    dropped = _turns_to_drop(tokenizer, text, turns, max_text_ids)
    ids = tokenizer.encode(_without_oldest(text, turns, dropped))
    fitting_ids = ids[max(0, len(ids) - max_text_ids) :] if turns else ids[:max_text_ids]
    dropped_turns = min(dropped, max(len(turns) - 1, 0))
    return tokenizer.pieces.prompt(fitting_ids), dropped_turns, len(ids) > max_text_ids


def _fitting_ids(tokenizer: Tokenizer, text: str, turns: Sequence[int], max_text_ids: int) -> list[int]:
    """Return the ids of a text without as few of its oldest turns as necessary; possibly still too many."""
    dropped = _turns_to_drop(tokenizer, text, turns, max_text_ids)
    return tokenizer.encode(_without_oldest(text, turns, dropped))


def _without_oldest(text: str, turns: Sequence[int], count: int) -> str:
    """Return the text without its `count` oldest turns; if that is all of them, the last turn alone."""
    if count == 0:
        return text
    return text[turns[-1] :] if count == len(turns) else text[: turns[0]] + text[turns[count] :]


def _turns_to_drop(tokenizer: Tokenizer, text: str, turns: Sequence[int], max_text_ids: int) -> int:
    """Return how many of the oldest turns must be dropped; all if the text before them must go as well."""
    # Fewer turns are never more tokens, so bisection finds the smallest number that fits.
    return bisect.bisect_left(
        range(len(turns)),
        True,
        key=lambda count: len(tokenizer.encode(_without_oldest(text, turns, count))) <= max_text_ids,
    )


def _tokenise(
    task_path: Path,
    name: str,
    sample_index: int,
    recipe: InstructRecipe,
    tokenizer: Tokenizer,
    samples: _Samples,
) -> int:
    """Add a task's samples to the candidates; return how many were too long."""
    over_long = 0
    mode = np.array([tokenizer.mode("S")], dtype=np.int32)
    sentinel = np.array([tokenizer.sentinel(0)], dtype=np.int32)
    end = np.array([tokenizer.eos], dtype=np.int32)
    max_source_ids = recipe.encoder_length - 3
    for batch in read_batches(task_path, _BATCH, ["id", "input", "turns", "target"]):
        sources = tokenizer.encode_arrow(batch["input"])
        targets = tokenizer.encode_arrow(batch["target"])
        turns_of_rows = batch["turns"].to_pylist()
        sample_ids: dict[str, list[np.ndarray]] = {"source": [], "target": []}
        keys: list[bytes] = []
        for row, identifier in enumerate(batch["id"].to_pylist()):
            source = sources.row(row)
            target = targets.row(row)
            turns = turns_of_rows[row]
            if turns and len(source) > max_source_ids:
                fitting_ids = _fitting_ids(tokenizer, batch["input"][row].as_py(), turns, max_source_ids)
                source = np.array(fitting_ids, dtype=np.int32)
            if len(source) > max_source_ids or len(target) + 2 > recipe.decoder_length:
                over_long += 1
                if recipe.over_long == "drop":
                    continue
            # As released: a truncated source keeps its closing tokens, a truncated target lacks its </s>.
            source = source[max(0, len(source) - max_source_ids) :] if turns else source[:max_source_ids]
            sample_ids["source"].append(np.concatenate([mode, source, sentinel, end]))
            sample_ids["target"].append(np.concatenate([sentinel, target, end])[: recipe.decoder_length])
            keys.append(f"{name}/{identifier}".encode())
        for pair_side, rows in sample_ids.items():
            samples.add(pair_side, rows)
        for purpose, seed in (("draw", recipe.seed), ("order", recipe.seed + 1)):
            hashes = [xxhash.xxh3_64_intdigest(key, seed) for key in keys]
            samples.keys[purpose].append(np.array(hashes, dtype=np.uint64))
        samples.task.append(np.full(len(keys), sample_index, dtype=np.int32))
    return over_long


def _choose(samples: _Samples, recipe: InstructRecipe, split_name: str) -> np.ndarray:
    """Return the numbers of the chosen samples in final order, int64 `[samples]`.

    Per group and part those of lowest hash are chosen, and ordered by another hash.
    """
    task = np.concatenate([np.empty(0, dtype=np.int32), *samples.task])
    draw, order = (
        np.concatenate([np.empty(0, dtype=np.uint64), *samples.keys[purpose]])
        for purpose in ("draw", "order")
    )
    available = np.bincount(task, minlength=len(recipe.tasks)).tolist()
    is_chosen = np.zeros(len(task), dtype=bool)
    for tasks, count in counts(available, recipe, split_name):
        members = np.flatnonzero(np.isin(task, tasks))
        is_chosen[members[draw[members].argsort(kind="stable")[:count]]] = True
    chosen = np.flatnonzero(is_chosen)
    return chosen[order[chosen].argsort(kind="stable")]


def counts(available: Sequence[int], recipe: InstructRecipe, split_name: str) -> list[tuple[list[int], int]]:
    """Return how many samples to take of which tasks for the largest mix without repetition.

    Args:
        available: samples of each task, in the recipe's order.
        recipe: groups with their shares, and within a group its parts with their weights. Shares are met to
            within one sample.
        split_name: for messages.

    Returns:
        (positions of tasks, number of samples to take of these tasks together) each.

    Raises:
        UserError: a group or part with a share has no sample, or a group with tasks has no share.
    """
    members: dict[str, dict[str, list[int]]] = {}
    for position, (name, group_name) in enumerate(recipe.tasks.items()):
        part_name = recipe.part_of.get(name, "") if group_name in recipe.parts else ""
        members.setdefault(group_name, {}).setdefault(part_name, []).append(position)
    samples_of_part: dict[str, dict[str, int]] = {}
    for group_name, parts in members.items():
        part_counts = {
            part_name: sum(available[task] for task in tasks) for part_name, tasks in parts.items()
        }
        samples_of_part[group_name] = part_counts
    weights = {
        group_name: dict(parts) for group_name, parts in recipe.parts.items() if group_name in samples_of_part
    }
    if (
        split_name == "heldout"
    ):  # a small part may have nothing held out; training data without it is an error
        for group_name in weights:
            nonempty = {part_name: count for part_name, count in samples_of_part[group_name].items() if count}
            samples_of_part[group_name] = nonempty
            weights[group_name] = {
                part_name: weight
                for part_name, weight in weights[group_name].items()
                if part_name in nonempty
            }
    usable = {group_name: sum(parts.values()) for group_name, parts in samples_of_part.items()}
    for group_name, weights_of_parts in weights.items():
        if samples_of_part[group_name]:
            largest = _largest_total(
                samples_of_part[group_name], weights_of_parts, f"parts.{group_name}: part", split_name
            )
            usable[group_name] = int(largest)
    totals = usable
    if (shares := recipe.shares) is not None:
        largest = _largest_total(usable, shares, "shares: language group", split_name)
        share_sum = sum(shares.values())
        totals = {
            group_name: min(usable[group_name], int(largest * shares[group_name] / share_sum + _ROUNDING))
            for group_name in usable
        }
    counts_of_tasks = []
    for group_name, parts in members.items():
        by_part = {"": totals[group_name]}
        if group_name in weights:
            by_part = _apportion(totals[group_name], weights[group_name], samples_of_part[group_name])
        counts_of_tasks += [(tasks, by_part.get(part_name, 0)) for part_name, tasks in parts.items()]
    return counts_of_tasks


def _largest_total(
    available: Mapping[str, int], shares: Mapping[str, float], label: str, split_name: str
) -> float:
    """Return the largest number of samples in the ratio of the shares, without repetition."""
    if without_share := sorted(available.keys() - shares.keys()):
        raise UserError(f"{label} {without_share[0]} has tasks but no share; give it one or drop its tasks")
    if empty := sorted(key for key in shares if shares[key] > 0 and not available.get(key)):
        raise UserError(f"{label} {empty[0]} has no {split_name} sample; add a task of it or drop its share")
    share_sum = sum(shares.values())
    return min(available[key] * share_sum / share for key, share in shares.items() if share > 0) + _ROUNDING


def _apportion(total: int, shares: Mapping[str, float], available: Mapping[str, int]) -> dict[str, int]:
    """Divide a total by shares into integers: rounded down, the rest to the largest remainders."""
    share_sum = sum(shares.values())
    exact = {key: total * shares[key] / share_sum for key in available}
    counts_by_key = {key: min(available[key], int(value + _ROUNDING)) for key, value in exact.items()}
    remaining = total - sum(counts_by_key.values())
    for key in sorted(exact, key=lambda key: counts_by_key[key] - exact[key]):
        if remaining > 0 and counts_by_key[key] < min(available[key], exact[key]):
            counts_by_key[key] += 1
            remaining -= 1
    return counts_by_key


def _write(
    out: Path,
    split_name: str,
    scratch: dict[str, Path],
    samples: _Samples,
    chosen: np.ndarray,
    recipe: InstructRecipe,
) -> SplitFacts:
    """Write the chosen samples in their order, and return the facts of the split."""
    task = np.concatenate([np.empty(0, dtype=np.int32), *samples.task])[chosen]
    np.save(out / f"{split_name}_task.npy", task)
    mean_lengths = {}
    for pair_side, task_path in scratch.items():
        all_lengths = np.concatenate([np.empty(0, dtype=np.int64), *samples.lengths[pair_side]])
        begins = np.concatenate([[0], np.cumsum(all_lengths)])[:-1][chosen]
        offsets = np.concatenate([[0], np.cumsum(all_lengths[chosen])]).astype(np.int64)
        np.save(out / f"{split_name}_{pair_side}_offsets.npy", offsets)
        _gather(task_path, out / f"{split_name}_{pair_side}.npy", begins, offsets)
        mean_lengths[pair_side] = round(float(offsets[-1]) / max(1, len(chosen)), 1)
    by_task = np.bincount(task, minlength=len(recipe.tasks)).tolist()
    by_group = dict.fromkeys(recipe.tasks.values(), 0)
    by_part: dict[str, int] = {}
    for (name, group_name), count in zip(recipe.tasks.items(), by_task, strict=True):
        by_group[group_name] += count
        if group_name in recipe.parts:
            part_name = f"{group_name}.{recipe.part_of[name]}"
            by_part[part_name] = by_part.get(part_name, 0) + count
    return SplitFacts(
        samples=len(chosen),
        by_task=dict(zip(recipe.tasks, by_task, strict=True)),
        by_group=by_group,
        by_part=by_part,
        shares={group_name: round(count / max(1, len(chosen)), 4) for group_name, count in by_group.items()},
        over_long=samples.over_long,
        mean_source=mean_lengths["source"],
        mean_target=mean_lengths["target"],
    )


def _gather(source: Path, target: Path, begins: np.ndarray, offsets: np.ndarray) -> None:
    """Copy runs of int32 ids from one file to another.

    Args:
        source: raw ids.
        target: .npy file to write.
        begins: start of each run in `source`, int64 `[runs]`.
        offsets: bounds of the runs in `target`, int64 `[runs + 1]`.
    """
    if not offsets[-1]:
        np.save(target, np.empty(0, dtype=np.int32))
        return
    ids = np.memmap(source, dtype=np.int32, mode="r")
    out = np.lib.format.open_memmap(target, mode="w+", dtype=np.int32, shape=(int(offsets[-1]),))
    for begin, start, stop in zip(begins.tolist(), offsets.tolist(), offsets[1:].tolist(), strict=False):
        out[start:stop] = ids[begin : begin + stop - start]
    out.flush()


def _memory_map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")
