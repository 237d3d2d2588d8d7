"""Measures of whether a training learns from its source: another sample's source, entropy of the labels.

Owns which sample lends its source to which, what a model could reach that learned only how frequent each
label is, and the verdict on a measurement. It computes no loss: `heldout.py` measures, `hooks.py` writes the
alarm.

A model that ignores its source has the same loss with any other source of the same task. On tasks whose
answers are a few labels, its loss is then the entropy of the labels, however long it trains.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

import numpy as np

from openba.data.instruct import Pairs

LEAST_GAIN = 0.02
"""Share of the loss that the right source must gain over another one; below it the source is ignored."""
NEAR_ENTROPY = 0.97
"""A loss above this share of the labels' entropy is called at the entropy."""
_PAIRS_COUNTED = 20_000
_TIMES_SEEN = 20
"""A task has labels if its answers recur so often, on average, among the pairs that are counted."""


def lenders(encoder_lengths: np.ndarray, task_numbers: np.ndarray) -> np.ndarray:
    """Choose for each sample the one that lends it its source, so that only the content is wrong.

    Args:
        encoder_lengths: int64 `[samples]`, encoder tokens.
        task_numbers: `[samples]`, the task of each; sources are exchanged within a task only.

    Returns:
        int64 `[samples]`: a permutation in which each sample's lender has its task and nearly its length, as
        samples of a denoiser have one length. A sample that is alone in its task lends to itself.
    """
    sorted_samples = np.lexsort((np.arange(len(encoder_lengths)), encoder_lengths, task_numbers))
    lender_of = np.empty(len(sorted_samples), np.int64)
    for task in np.unique(task_numbers):
        task_samples = sorted_samples[task_numbers[sorted_samples] == task]
        lender_of[task_samples] = np.roll(task_samples, 1)
    return lender_of


def label_entropies(pairs: Pairs) -> dict[str, float]:
    """Loss of the best answer without the source, in nats a target token, by task.

    Tasks whose answers are not a few labels are left out. The frequencies are those of the first 20,000
    training pairs, whose order is random.
    """
    answer_counts: dict[str, Counter[bytes]] = defaultdict(Counter)
    token_counts: Counter[str] = Counter()
    for index in range(min(len(pairs), _PAIRS_COUNTED)):
        name = pairs.names[pairs.task(index)]
        target = pairs.target(index)
        answer_counts[name][target.tobytes()] += 1
        token_counts[name] += len(target)
    return {
        name: _entropy(counts) * counts.total() / token_counts[name]
        for name, counts in answer_counts.items()
        if 1 < len(counts) <= counts.total() / _TIMES_SEEN
    }


def _entropy(answer_counts: Counter[bytes]) -> float:
    """Entropy of the answers, in nats an answer."""
    answer_total = answer_counts.total()
    return -sum(count / answer_total * math.log(count / answer_total) for count in answer_counts.values())


def alarms(figures: Mapping[str, float], entropies_by_task: Mapping[str, float]) -> list[str]:
    """Return a sentence for each sign that the training does not use its source; none if it does.

    Args:
        figures: of `HeldOut.measure`.
        entropies_by_task: of `label_entropies`; empty for other objectives.
    """
    reasons = []
    groups = ["loss", *(key.removesuffix("_shuffled") for key in figures if key.endswith("_shuffled"))]
    for group in groups:
        shuffled = "shuffled" if group == "loss" else f"{group}_shuffled"
        if shuffled not in figures:
            continue  # no sample could be given another's source
        loss = figures[group]
        other_loss = figures[shuffled]
        error = figures[f"{shuffled}_error"]
        # Two standard errors, so that a few samples raise no alarm by chance.
        if other_loss - loss < max(LEAST_GAIN * loss, 2 * error):
            name = {"loss": "all samples"}.get(group, group.removeprefix("loss_"))
            reasons.append(
                f"the source is ignored on {name}: loss {loss:.3f}, with another sample's source "
                f"{other_loss:.3f}"
            )
    for task, entropy in entropies_by_task.items():
        loss_of_task = figures.get(f"loss_{task}", 0.0)
        if loss_of_task > NEAR_ENTROPY * entropy:
            reasons.append(
                f"{task} is at the entropy of its labels: loss {loss_of_task:.3f}, entropy {entropy:.3f}"
            )
    return reasons
