"""Training as a step of the pipeline.

Inputs: `tokenizer`; `data` (a mixture or a mix of task pairs); `start` (an exported model to begin from),
absent for the first stage. Output: `model/`, `metrics.jsonl`, `heldout.jsonl`, `events.jsonl`. Its
checkpoints stay in `checkpoints/` until the output is in the store (`Kind.scratch`).
"""

from __future__ import annotations

import torch.distributed as dist

from openba.artifacts import Build
from openba.json_types import JsonObject
from openba.train.finished import finished_facts
from openba.train.trainer import Trainer


def build(build: Build) -> JsonObject:
    """Train on this worker until the budget is spent; rank 0's facts are the step's.

    A training that is finished, but was ended before its output reached the store, is not repeated.
    """
    # Rank 0 alone reads the record: the others may not see its files yet.
    facts = [finished_facts(build.out, build.recipe, build.inputs) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(facts)
    if facts[0] is not None:
        return facts[0] if dist.get_rank() == 0 else {}
    return Trainer(build).run()
