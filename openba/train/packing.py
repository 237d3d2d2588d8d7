"""Packing of a step's samples: workers get equal work, micro-batches are filled with tokens.

Owns a function of lengths alone, so that every worker finds the same answer without asking. A micro-batch has
room for so many encoder and so many target tokens, not for a number of samples: short ones fill it, too.

Bin packing has no closed answer. Samples of a few lengths, as windows of text have, are cut like stock:
the best filled micro-batch is found once and repeated. Samples of many lengths fill gaps by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np

_FEW_LENGTHS = 32
"""Distinct pairs of lengths that are packed as stock; more are packed one by one."""
_ROUNDS = 3
"""Tries at the stock: of 4,096 samples of Stage I for 8 workers 95, 97 and 94 micro-batches a worker."""
_NODES = 150
"""Fillings that are looked at for the best one."""
_LOOSE = 0.95
"""Share of the room up to which micro-batches are filled evenly; beyond it that fails, late."""
_ROUNDING = 1e-9
"""What is full to the last token is full, whatever the sum of the shares rounds to."""

Room = tuple[int, int]
"""Encoder and target tokens of a micro-batch."""


def packed(lengths: np.ndarray, worker_count: int, token_room: Room) -> list[list[list[int]]]:
    """Share samples out so that each worker has as many micro-batches, as few as can be, and as much work.

    Args:
        lengths: int `[2, samples]`, encoder and target tokens.
        worker_count: How many share the samples.
        token_room: Encoder and target tokens of a micro-batch. A longer sample gets one of its own.

    Returns:
        Samples by worker and micro-batch, each in rising order. Every worker has as many micro-batches, so
        some may be empty; no sample is left out. Micro-batches of the same number are about as large.
    """
    loads = (lengths / np.array(token_room)[:, None]).T  # shares of a micro-batch, [samples, 2]
    order = np.argsort(-loads.sum(1), kind="stable")
    fewest = max(1, int(np.ceil(loads.sum(0).max() / worker_count - _ROUNDING)))
    # Where there is room to spare, each sample to the emptiest micro-batch: all get as much.
    bins = None
    if loads.sum(0).max() < _LOOSE * fewest * worker_count:
        bins = _placed(order, loads, fewest * worker_count, prefers_full=False)
    if bins is None:
        bins = _tight(lengths, order, loads, token_room, fewest * worker_count)
    return _dealt(bins, loads.sum(1), worker_count)


def counted(sample_count: int, worker_count: int, micro_batch: int) -> list[list[list[int]]]:
    """Share samples out in order, `size` to a micro-batch, whatever their lengths; the form is `packed`'s."""
    worker_share = sample_count // worker_count
    share_starts = range(0, sample_count, worker_share)
    return [
        [
            list(range(n, min(n + micro_batch, start + worker_share)))
            for n in range(start, start + worker_share, micro_batch)
        ]
        for start in share_starts
    ]


def _placed(
    order: np.ndarray, loads: np.ndarray, bin_count: int, prefers_full: bool
) -> list[list[int]] | None:
    """Put one sample after the other into the emptiest or the fullest bin in which it fits."""
    bins: list[list[int]] = [[] for _ in range(bin_count)]
    filled = np.zeros((2, bin_count))
    sign = -1.0 if prefers_full else 1.0
    for sample in order.tolist():
        source, target = loads[sample]
        fits = (filled[0] <= 1 + _ROUNDING - source) & (filled[1] <= 1 + _ROUNDING - target)
        fits |= filled[0] + filled[1] == 0
        choice = int(np.where(fits, sign * (filled[0] + filled[1]), np.inf).argmin())
        if not fits[choice]:
            return None
        filled[0, choice] += source
        filled[1, choice] += target
        bins[choice].append(sample)
    return bins


def _tight(
    lengths: np.ndarray, order: np.ndarray, loads: np.ndarray, room: Room, enough: int
) -> list[list[int]]:
    """Fill as few bins as can be found; no fewer than `enough` are looked for."""
    kinds, kind_of_sample, counts = np.unique(lengths.T, axis=0, return_inverse=True, return_counts=True)
    if len(kinds) > _FEW_LENGTHS:
        tries = (_placed(order, loads, bin_count, prefers_full=True) for bin_count in count(enough))
        return next(bins for bins in tries if bins is not None)
    by_kind = [np.flatnonzero(kind_of_sample.ravel() == kind).tolist() for kind in range(len(kinds))]
    contents = _Stock(kinds, counts, room).cut(enough)
    return [[by_kind[kind].pop() for kind, number in filling for _ in range(number)] for filling in contents]


Filling = tuple[tuple[int, int], ...]
"""Kinds of samples in a micro-batch, with the number of each."""


@dataclass
class _Node:
    """The best filling so far, and how many were looked at."""

    value: float = 0.0
    numbers: tuple[int, ...] = ()
    seen: int = 0


class _Stock:
    """Samples of a few kinds, cut into fillings by values of the kinds that are corrected from try to try.

    Sequential value correction, after Mukhacheva et al. (2000): a kind that was left for badly filled
    micro-batches is worth more in the next try.
    """

    def __init__(self, kinds: np.ndarray, counts: np.ndarray, room: Room) -> None:
        """Take distinct lengths int `[kinds, 2]` and how many samples have them."""
        # The side of which more micro-batches are needed decides; the other one only limits.
        side = int((kinds * counts[:, None] / np.array(room)).sum(0).argmax())
        self.sizes: list[tuple[int, int]] = [(int(kind[side]), int(kind[1 - side])) for kind in kinds]
        self.counts: list[int] = counts.tolist()
        self.room = (room[side], room[1 - side])

    def cut(self, enough: int) -> list[Filling]:
        """Return the fillings of the best of some tries."""
        kind_values = [main_size / self.room[0] for main_size, _ in self.sizes]
        best_fillings: list[Filling] = []
        for _ in range(_ROUNDS):
            fillings, mean_shares = self._cut_once(kind_values)
            if not best_fillings or len(fillings) < len(best_fillings):
                best_fillings = fillings
            if len(best_fillings) <= enough:
                break
            kind_values = [(value + new) / 2 for value, new in zip(kind_values, mean_shares, strict=True)]
        return best_fillings

    def _cut_once(self, kind_values: list[float]) -> tuple[list[Filling], list[float]]:
        """Return fillings of all samples, and what each kind's share of its micro-batches was."""
        remaining_counts = list(self.counts)
        kind_shares = [0.0] * len(remaining_counts)
        fillings: list[Filling] = []
        while any(remaining_counts):
            kind_numbers = self._best_filling(remaining_counts, kind_values)
            filling = tuple((kind, number) for kind, number in enumerate(kind_numbers) if number)
            filled_tokens = sum(number * self.sizes[kind][0] for kind, number in filling)
            # Half of what can be repeated: the rest may fit better once other kinds are fewer.
            repeat_count = max(1, min(remaining_counts[kind] // number for kind, number in filling) // 2)
            for kind, number in filling:
                remaining_counts[kind] -= repeat_count * number
                kind_shares[kind] += repeat_count * number * self.sizes[kind][0] / max(1, filled_tokens)
            fillings += [filling] * repeat_count
        return fillings, [share / number for share, number in zip(kind_shares, self.counts, strict=True)]

    def _best_filling(self, remaining_counts: list[int], kind_values: list[float]) -> tuple[int, ...]:
        """Return the numbers of each kind, of those left, that are worth most together."""
        value_density = {
            kind: kind_values[kind] / max(1, self.sizes[kind][0])
            for kind, number in enumerate(remaining_counts)
            if number
        }
        kind_order = sorted(value_density, key=lambda kind: -value_density[kind])
        best_node = _Node()
        kind_numbers = [0] * len(remaining_counts)

        def look(depth: int, main_room: int, other_room: int, value: float) -> None:
            best_node.seen += 1
            if value > best_node.value:
                best_node.value = value
                best_node.numbers = tuple(kind_numbers)
            if depth == len(kind_order) or best_node.seen > _NODES:
                return
            kind = kind_order[depth]
            if value + value_density[kind] * main_room <= best_node.value * (1 + 1e-4):
                return  # no better filling can follow
            main_size, other_size = self.sizes[kind]
            most_samples = min(
                remaining_counts[kind], main_room // max(1, main_size), other_room // max(1, other_size)
            )
            for number in range(most_samples, -1, -1):
                kind_numbers[kind] = number
                look(
                    depth + 1,
                    main_room - number * main_size,
                    other_room - number * other_size,
                    value + number * kind_values[kind],
                )
            kind_numbers[kind] = 0

        look(0, *self.room, 0.0)
        if any(best_node.numbers):
            return best_node.numbers
        # Nothing that is left fits: a sample longer than a micro-batch gets one of its own.
        return tuple(int(kind == kind_order[0]) for kind in range(len(remaining_counts)))


def _dealt(bins: list[list[int]], weights: np.ndarray, worker_count: int) -> list[list[list[int]]]:
    """Deal bins to workers, as many to each, largest first, each to the worker with least so far."""
    each = -(-len(bins) // worker_count)
    bins = _filled_up([list(samples) for samples in bins], each * worker_count)
    bin_weights = [float(weights[samples].sum()) for samples in bins]
    by_weight = sorted(range(len(bins)), key=lambda number: -bin_weights[number])
    shares: list[list[list[int]]] = [[] for _ in range(worker_count)]
    totals = [0.0] * worker_count
    # A round gives every worker one: those of a round are about as large, and workers wait less.
    for start in range(0, len(by_weight), worker_count):
        workers = sorted(range(worker_count), key=lambda worker: totals[worker])
        for number, worker in zip(by_weight[start : start + worker_count], workers, strict=True):
            shares[worker].append(sorted(bins[number]))
            totals[worker] += bin_weights[number]
    return shares


def _filled_up(bins: list[list[int]], bin_count: int) -> list[list[int]]:
    """Split bins with the most samples until there are `bin_count`; a bin of one sample stays whole."""
    while len(bins) < bin_count:
        largest = max(range(len(bins)), key=lambda number: len(bins[number]))
        samples = bins[largest]
        bins.append(samples[1::2])
        bins[largest] = samples[::2]
    return bins
