"""Facts of a finished training, as the store's manifest has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from openba.accounting.energy import TrainFacts, cost, totals
from openba.accounting.flops import parameters, run_flops, run_hardware_flops
from openba.json_types import JsonObject
from openba.train.log import ATTEMPTS, HELDOUT, METRICS
from openba.train.source_use import alarms

if TYPE_CHECKING:
    from openba.train.trainer import Trainer


def training_facts(trainer: Trainer) -> JsonObject:
    """Return the facts of a training whose last step is done; on rank 0, whose logs are complete."""
    steps = trainer.log.rows(METRICS)
    heldout = trainer.log.rows(HELDOUT)
    attempts = trainer.log.rows(ATTEMPTS)
    # Ids of the tokenizer; the embedding's padded rows are in `vocab` below.
    vocab = trainer.tokenizer.size
    recompute = trainer.runtime.train.recompute
    # Of the lengths that the budget counts; packed micro-batches compute nothing for what is empty.
    filled_share = trainer.totals["tokens"] / (trainer.recipe.steps * trainer.recipe.tokens_per_step)
    facts = {
        "parameters": sum(parameters(trainer.step_recipe.model, vocab).values()),
        "trained_parameters": trainer.trained_parameters,
        "vocab": trainer.model.architecture.vocab_size,
        "steps": trainer.recipe.steps,
        "epochs": round(trainer.batches.epochs(trainer.recipe.steps), 3),
        "tokens": trainer.totals["tokens"],
        "target_tokens": trainer.totals["targets"],
        "fill": filled_share,
        "padding": 1 - filled_share if trainer.engine.padded else 0.0,
        "skipped_steps": trainer.totals["skipped"],
        "final_loss": steps[-1]["loss"],
        "heldout": heldout,
        "heldout_loss": heldout[-1]["loss"],
        "label_entropies": trainer.label_entropies,
        "source_alarms": alarms(heldout[-1], trainer.label_entropies),
        "workers": trainer.engine.world,
        "training_seconds": sum(row["seconds"] for row in attempts),
        "resumed": len(attempts) - 1,
        "rolled_back": trainer.guard.roll_backs,
        "flops": run_flops(trainer.step_recipe, vocab),
        "flops_hardware_padded": run_hardware_flops(trainer.step_recipe, vocab, recompute),
        "flops_useful": trainer.totals["flops"],
        "flops_hardware": trainer.totals["hardware_flops"],
        "energy_joules": totals([row.get("joules") for row in attempts]),
        "energy_estimated": totals([row.get("estimated") for row in attempts]),
    }
    return facts | {"cost": cost(cast(TrainFacts, facts), trainer.runtime)}
