"""Kinds of steps, and what trainings of a pipeline make: models, and experts from several starts.

Owns which function builds a kind of step, where it runs, and its version. `graph.py` joins the steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from openba.artifacts import Kind, Step
from openba.recipes.evaluate import SCORING_VERSION
from openba.recipes.pipeline import TransferConfig

SOURCE = Kind("openba.data.sources:build", "4")
CORPUS = Kind("openba.data.clean.corpus:build", "8", resumable=True)
TOKENIZER = Kind("openba.data.tokenizer_training:build", "2")
MIXTURE = Kind("openba.data.mixture:build", "4")
CONTAMINATION = Kind("openba.data.contamination:build", "2")
TASK = Kind("openba.data.labelled:build", "6")
INSTRUCT = Kind("openba.data.instruct:build", "4")
GROWTH = Kind("openba.data.tokenizer_growth:build", "1")
WEIGHTS = Kind("openba.model.adopt:build", "1")
TRAIN = Kind(
    "openba.train.stage:build",
    "8",
    place="worker_group",
    resumable=True,
    scratch=("checkpoints", "heartbeat"),
)
EVALUATE = Kind("openba.evaluate.run:build", SCORING_VERSION, place="job", resumable=True)
BASELINES = Kind("openba.evaluate.baselines:build", f"2/{SCORING_VERSION}")


@dataclass(frozen=True)
class Model:
    """A model the pipeline makes: where it comes from and what it is called."""

    name: str
    title: str
    training: Step
    evaluation: Step | None
    baselines: Step | None
    """What classical models score on the benchmarks of its evaluation."""
    register_as: str | None


@dataclass(frozen=True)
class Transfer:
    """An expert's training from one of several starts."""

    expert: str
    start: str
    """A stage, or `nothing`."""
    seed: int


def transfers_of(config: TransferConfig | None, experts: Iterable[str]) -> dict[str, Transfer]:
    """Return the trainings that a pipeline compares, by the name of their step."""
    if config is None:
        return {}
    return {
        f"{expert}-from-{start}-{seed}": Transfer(expert, start, seed)
        for expert, start, seed in product(experts, config.starts, config.seeds)
    }
