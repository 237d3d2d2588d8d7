"""Plan of a pipeline: its steps and their cost before anything is spent, from config and store alone."""

from __future__ import annotations

import numpy as np

from openba.accounting.plan import plan_training
from openba.artifacts import Step, Store
from openba.data.store import TokenStore
from openba.data.windows import mean_fill, windows_of
from openba.graph import Pipeline
from openba.json_types import JsonObject
from openba.recipes.data import TokenizerRecipe
from openba.recipes.train import TrainStep, WindowsRecipe
from openba.tokenizer.pieces_openba import LOSSLESS, MODES, SENTINELS

MT5_IDS = 250_203
"""Ids in use with the mT5 file: 250,100 pieces, 100 sentinels, <R> <S> <X> (release)."""

LEGEND = (
    "FLOPs, hours and energy: every sequence at full length; shorter samples are packed and cost less.\n"
    "real: FLOPs of the tokens alone, ? where they depend on the data."
)
"""What stands below the table of steps."""


def plan(pipeline: Pipeline, store: Store) -> JsonObject:
    """Return every step with hit or miss, every training with its `plan_training`, and the totals."""
    vocab = _vocab(pipeline.config.tokenizer)
    steps = []
    for step in pipeline.wanted(None):
        row: JsonObject = {
            "name": step.name,
            "fingerprint": step.fingerprint,
            "state": "hit" if store.manifest(step) else "miss",
        }
        if isinstance(step.recipe, TrainStep):
            row["training"] = plan_training(step.recipe, pipeline.runtime(step), vocab)
            data = step.recipe.train.data
            if isinstance(data, WindowsRecipe):
                row["windows"] = _windows(step, step.recipe, store)
                row["notes"] = [*data.clipped, _windows_note(row["windows"])]
        steps.append(row)
    trainings = [row["training"] for row in steps if "training" in row]
    keys = ("tokens", "steps", "flops", "flops_hardware_padded", "gpu_hours", "wall_hours", "kwh", "tco2eq")
    return {
        "pipeline": pipeline.config.name,
        "device": pipeline.config.runtime.device.name,
        "devices": pipeline.config.runtime.devices,
        "workers": pipeline.config.runtime.train.workers,
        "mixture": _mixture(pipeline, store),
        "steps": steps,
        "total": {key: sum(training[key] for training in trainings) for key in keys}
        | {"money": None if pipeline.config.runtime.price is None else sum(t["money"] for t in trainings)},
    }


def _windows(step: Step, recipe: TrainStep, store: Store) -> JsonObject:
    """Return the kind of windows, how many there are, and the share of the recipe's lengths that they fill.

    Numbers are None if they follow from a mixture that is not built, or is not on this machine.
    """
    data = recipe.train.data
    assert isinstance(data, WindowsRecipe)
    mixture = step.inputs["data"]
    window_count = None
    # All crossed windows have one length; how many there are makes no difference to the shares.
    length_counts = np.bincount([data.length]) if data.windows == "crossed" else None
    if store.manifest(mixture) and not store.remote:
        length_counts = windows_of(TokenStore(store.path(mixture) / str(recipe.part)), data).length_counts()
        window_count = int(length_counts.sum())
    encoder_fill, decoder_fill = (
        (None, None) if length_counts is None else mean_fill(recipe.train, length_counts)
    )
    return {
        "kind": data.windows,
        "count": window_count,
        "encoder_fill": encoder_fill,
        "decoder_fill": decoder_fill,
    }


def _windows_note(windows: JsonObject) -> str:
    """Describe the windows of a training and how much of the recipe's lengths their samples fill."""
    if windows["encoder_fill"] is None:
        return f"{windows['kind']} windows; what they fill is known when the mixture is built"
    count_text = "" if windows["count"] is None else f"{windows['count']:,} "
    return (
        f"{count_text}{windows['kind']} windows; samples fill {windows['encoder_fill']:.1%} of "
        f"encoder_length and {windows['decoder_fill']:.1%} of decoder_length"
    )


def _mixture(pipeline: Pipeline, store: Store) -> list[JsonObject]:
    """One row per group: share, tokens per part, epoch limit, and actual epochs once built."""
    recipe = pipeline.config.mixture
    if recipe is None:
        return []
    built = store.manifest(pipeline.steps["mixture"])
    groups = built["facts"]["groups"] if built else {}
    return [
        {
            "group": group,
            "share": recipe.shares[group],
            "tokens": tokens,
            "most_epochs": recipe.epochs.get(group, 1.0),
            "epochs": groups.get(group, {}).get("epochs"),
        }
        for group, tokens in recipe.budgets().items()
    ]


def _vocab(recipe: TokenizerRecipe) -> int:
    """Ids in use. Of existing weights they are mT5's, unless their tokenizer is another one."""
    trained_ids = (recipe.vocab_size or 0) + SENTINELS + len(MODES)
    ids = trained_ids if recipe.kind == "unigram" else MT5_IDS
    return ids + (len(LOSSLESS) if recipe.whitespace_tokens else 0)


def remarks(planned: JsonObject) -> dict[str, list[str]]:
    """Return each remark about trainings of a plan, with the names of those that it is about."""
    names_by_remark: dict[str, list[str]] = {}  # the experts of a pipeline are often alike
    for row in planned["steps"]:
        training = row.get("training", {})
        prediction = training.get("prediction")
        predictions = [] if prediction is None else [_predicted(prediction)]
        for remark in (*row.get("notes", []), *training.get("adapter_notes", []), *predictions):
            names_by_remark.setdefault(remark, []).append(row["name"])
    return names_by_remark


def _predicted(prediction: JsonObject) -> str:
    """Describe a predicted step in a line: its parts, the share of the peak, and what limits it."""
    milliseconds = ", ".join(
        f"{part} {1e3 * seconds:.0f}" for part, seconds in prediction["micro_batch"].items() if seconds > 5e-4
    )
    once = ", ".join(f"{part} {1e3 * seconds:.0f}" for part, seconds in prediction["once"].items())
    return (
        f"predicted {prediction['seconds']:.3g} s a step: {prediction['micro_batches']} micro-batches of "
        f"{milliseconds} ms; once {once} ms; MFU {prediction['padded_mfu']:.0%} padded, "
        f"{prediction['useful_mfu']:.0%} useful; most beside the products: {prediction['limit']}"
    )
