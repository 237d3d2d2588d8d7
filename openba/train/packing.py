"""Packing of a step's samples: workers get equal work, micro-batches are filled with tokens.

Owns a function of lengths alone, so that every worker finds the same answer without asking. A micro-batch has
room for so many encoder and so many target tokens, not for a number of samples: short ones fill it, too.
"""

from __future__ import annotations

import numpy as np


def packed(lengths: np.ndarray, worker_count: int, token_room: tuple[int, int]) -> list[list[list[int]]]:
    """Share samples out, longest first, each to the worker and the micro-batch that has least so far.

    Args:
        lengths: int `[2, samples]`, encoder and target tokens.
        worker_count: how many share the samples.
        token_room: encoder and target tokens of a micro-batch. A longer sample gets one of its own.

    Returns:
        Samples by worker and micro-batch, each in rising order. Every worker has as many micro-batches, so
        some may be empty; no sample is left out.
    """
    sample_loads = (lengths / np.array(token_room)[:, None]).T  # shares of a micro-batch, [samples, 2]
    order = np.argsort(-sample_loads.sum(1), kind="stable").tolist()
    # Workers first, by the sum of both sides; then each worker's micro-batches, by each side's room.
    shares = _lightest(order, sample_loads.sum(1).tolist(), worker_count)
    load_list = sample_loads.tolist()
    bin_count = max(int(np.ceil(sample_loads[share].sum(0).max(initial=0))) for share in shares)
    # Bin packing has no closed answer: one more micro-batch, on every worker, until all shares fit.
    while True:
        fitted_shares = [_fit(share, load_list, max(1, bin_count)) for share in shares]
        if all(bins is not None for bins in fitted_shares):
            return [bins for bins in fitted_shares if bins is not None]
        bin_count += 1


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


def _lightest(order: list[int], weights: list[float], bin_count: int) -> list[list[int]]:
    bin_totals = [0.0] * bin_count
    shares: list[list[int]] = [[] for _ in range(bin_count)]
    for sample in order:
        lightest_bin = bin_totals.index(min(bin_totals))
        bin_totals[lightest_bin] += weights[sample]
        shares[lightest_bin].append(sample)
    return shares


def _fit(share: list[int], load_list: list[list[float]], bin_count: int) -> list[list[int]] | None:
    """Fit `share` into `count` micro-batches; None if they have not room enough."""
    bins: list[list[int]] = [[] for _ in range(bin_count)]
    filled_loads = [[0.0, 0.0] for _ in range(bin_count)]
    for sample in share:
        sample_load = load_list[sample]
        open_bins = [n for n in range(bin_count) if not bins[n] or _room(filled_loads[n], sample_load)]
        if not open_bins:
            return None
        lightest_bin = min(open_bins, key=lambda n: sum(filled_loads[n]))
        filled_loads[lightest_bin] = [
            a + b for a, b in zip(filled_loads[lightest_bin], sample_load, strict=True)
        ]
        bins[lightest_bin].append(sample)
    return [sorted(samples) for samples in bins]


def _room(filled: list[float], sample_load: list[float]) -> bool:
    # What is full to the last token is full, whatever the sum of the shares rounds to.
    return all(a + b <= 1 + 1e-9 for a, b in zip(filled, sample_load, strict=True))
