"""Which samples of a step go together: workers get equal work, micro-batches are filled with tokens.

Owns a function of lengths alone, so that every worker finds the same answer without asking. A micro-batch has
room for so many encoder and so many target tokens, not for a number of samples: short ones fill it, too.
"""

from __future__ import annotations

import numpy as np


def packed(lengths: np.ndarray, workers: int, room: tuple[int, int]) -> list[list[list[int]]]:
    """Share samples out, longest first, each to the worker and the micro-batch that has least so far.

    Args:
        lengths: int `[2, samples]`, encoder and target tokens.
        workers: how many share the samples.
        room: encoder and target tokens of a micro-batch. A longer sample gets one of its own.

    Returns:
        Samples by worker and micro-batch, each in rising order. Every worker has as many micro-batches, so
        some may be empty; no sample is left out.
    """
    load = (lengths / np.array(room)[:, None]).T  # shares of a micro-batch, [samples, 2]
    order = np.argsort(-load.sum(1), kind="stable").tolist()
    shares = _lightest(order, load.sum(1).tolist(), workers)
    sizes = load.tolist()
    count = max(int(np.ceil(load[share].sum(0).max(initial=0))) for share in shares)
    while True:
        found = [_fit(share, sizes, max(1, count)) for share in shares]
        if all(bins is not None for bins in found):
            return [bins for bins in found if bins is not None]
        count += 1


def counted(samples: int, workers: int, size: int) -> list[list[list[int]]]:
    """Share samples out in order, `size` to a micro-batch, whatever their lengths; the form is `packed`'s."""
    share = samples // workers
    starts = range(0, samples, share)
    return [
        [list(range(n, min(n + size, start + share))) for n in range(start, start + share, size)]
        for start in starts
    ]


def _lightest(order: list[int], weights: list[float], bins: int) -> list[list[int]]:
    totals, shares = [0.0] * bins, [[] for _ in range(bins)]  # type: tuple[list[float], list[list[int]]]
    for sample in order:
        place = totals.index(min(totals))
        totals[place] += weights[sample]
        shares[place].append(sample)
    return shares


def _fit(share: list[int], sizes: list[list[float]], count: int) -> list[list[int]] | None:
    """`share` in `count` micro-batches, or None if they have not room enough."""
    bins: list[list[int]] = [[] for _ in range(count)]
    filled = [[0.0, 0.0] for _ in range(count)]
    for sample in share:
        size = sizes[sample]
        places = [n for n in range(count) if not bins[n] or _room(filled[n], size)]
        if not places:
            return None
        place = min(places, key=lambda n: sum(filled[n]))
        filled[place] = [a + b for a, b in zip(filled[place], size, strict=True)]
        bins[place].append(sample)
    return [sorted(samples) for samples in bins]


def _room(filled: list[float], size: list[float]) -> bool:
    # What is full to the last token is full, whatever the sum of the shares rounds to.
    return all(a + b <= 1 + 1e-9 for a, b in zip(filled, size, strict=True))
