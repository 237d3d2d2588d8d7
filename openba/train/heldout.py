"""The loss on held-out samples, by group, over all workers."""

from __future__ import annotations

from pathlib import Path

from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.recipes.train import TrainRecipe
from openba.train.batches import heldout_batches, heldout_groups
from openba.train.engine import Engine


class HeldOut:
    """Mean cross entropy per target token, in nats, of fixed held-out samples."""

    def __init__(self, recipe: TrainRecipe, data: Path, tokenizer: Tokenizer, micro_batch: int) -> None:
        self.recipe, self.micro_batch, self.pad = recipe, micro_batch, tokenizer.pad
        self.groups = heldout_groups(recipe, data, tokenizer)
        if empty := [name for name, samples in self.groups.items() if len(samples) == 0]:
            raise UserError(
                f"held-out data: no sample to measure {', '.join(empty)} on; "
                "raise heldout in the mixture or the tasks, or lower data.length"
            )

    def measure(self, engine: Engine) -> dict[str, float]:
        """`{"loss": x}`, and each denoiser's mode apart where there are several. All workers call it."""
        engine.mode(training=False)
        sums: dict[str, tuple[float, float]] = {}
        for name, samples in self.groups.items():
            loss, targets = 0.0, 0
            for batch in heldout_batches(
                samples, self.recipe, engine.rank, engine.world, self.micro_batch, self.pad
            ):
                batch_loss, batch_targets = engine.evaluate(batch)
                loss, targets = loss + batch_loss, targets + batch_targets
            total, count = engine.sum([loss, targets])
            sums[name] = (total, count)
        engine.mode(training=True)
        losses = {name: total / count for name, (total, count) in sums.items()}
        everything = sum(t for t, _ in sums.values()) / sum(c for _, c in sums.values())
        return {"loss": everything, **losses}
