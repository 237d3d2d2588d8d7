"""Whether a training learns from its source: loss with another sample's source, and entropy of its labels.

Owns which sample lends its source to which, what a model could reach that knows only how frequent each label
is, and the verdict on a measurement. It computes no loss: `heldout.py` measures, `guard.py` writes the alarm.

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


def lenders(lengths: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Which sample lends its source to each, so that nothing but its content is wrong.

    Args:
        lengths: int64 `[samples]`, encoder tokens.
        tasks: `[samples]`, the task of each; sources are exchanged within a task only.

    Returns:
        int64 `[samples]`: a permutation in which each sample's lender has its task and nearly its length, as
        samples of a denoiser have one length. A sample that is alone in its task lends to itself.
    """
    order = np.lexsort((np.arange(len(lengths)), lengths, tasks))
    found = np.empty(len(order), np.int64)
    for task in np.unique(tasks):
        members = order[tasks[order] == task]
        found[members] = np.roll(members, 1)
    return found


def label_entropies(pairs: Pairs) -> dict[str, float]:
    """Loss of the best answer without the source, in nats a target token, by task.

    Tasks whose answers are not a few labels are left out. The frequencies are those of the first 20,000
    training pairs, whose order is random.
    """
    answers: dict[str, Counter[bytes]] = defaultdict(Counter)
    tokens: Counter[str] = Counter()
    for index in range(min(len(pairs), _PAIRS_COUNTED)):
        name, target = pairs.names[pairs.task(index)], pairs.target(index)
        answers[name][target.tobytes()] += 1
        tokens[name] += len(target)
    return {
        name: _entropy(counts) * counts.total() / tokens[name]
        for name, counts in answers.items()
        if 1 < len(counts) <= counts.total() / _TIMES_SEEN
    }


def _entropy(counts: Counter[bytes]) -> float:
    """In nats an answer."""
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def alarms(figures: Mapping[str, float], entropies: Mapping[str, float]) -> list[str]:
    """What a measurement says against the training, a sentence each; nothing if it uses its source.

    Args:
        figures: of `HeldOut.measure`.
        entropies: of `label_entropies`; empty for other objectives.
    """
    found = []
    groups = ["loss", *(key.removesuffix("_shuffled") for key in figures if key.endswith("_shuffled"))]
    for group in groups:
        shuffled = "shuffled" if group == "loss" else f"{group}_shuffled"
        if shuffled not in figures:
            continue  # no sample could be given another's source
        loss, other, error = figures[group], figures[shuffled], figures[f"{shuffled}_error"]
        if other - loss < max(LEAST_GAIN * loss, 2 * error):
            name = {"loss": "all samples"}.get(group, group.removeprefix("loss_"))
            found.append(
                f"the source is ignored on {name}: loss {loss:.3f}, with another sample's source {other:.3f}"
            )
    for task, entropy in entropies.items():
        loss_of_task = figures.get(f"loss_{task}", 0.0)
        if loss_of_task > NEAR_ENTROPY * entropy:
            found.append(
                f"{task} is at the entropy of its labels: loss {loss_of_task:.3f}, entropy {entropy:.3f}"
            )
    return found
