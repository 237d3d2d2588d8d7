"""A stage from end to end: its files, its facts, where it starts from, what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from openba.accounting.energy import totals
from openba.accounting.flops import parameters, recomputed_flops, run_flops, useful_train_flops
from openba.accounting.memory import checkpoint_bytes
from openba.data.instruct import Pairs
from openba.data.store import TokenStore
from openba.model.loading import load_model
from openba.model.loss import IGNORE
from openba.recipes.train import TrainStep
from openba.tokenizer.tokenizer import Tokenizer
from openba.train.batches import TrainingBatches
from openba.train.log import RATES
from openba.train.objectives import training_samples


def test_the_output_is_a_model_and_its_logs(runs: Any) -> None:
    folder = runs.root / "reference"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    logs = {"metrics.jsonl", "heldout.jsonl", "attempts.jsonl", "events.jsonl"}
    # Checkpoints go when the output is in the store.
    assert {name for name in files if not name.startswith(("model/", "checkpoints/"))} == logs
    assert {"model/config.json", "model/model.safetensors", "model/spiece.model"} < files
    loaded, tokenizer = load_model(folder / "model")
    step = TrainStep.model_validate(runs.job("x")["recipe"])
    assert loaded.architecture.vocab_size == 4224  # 4,103 ids, padded to a multiple of 128
    assert tokenizer.size == 4103
    assert loaded.architecture == step.model.architecture(4103)


def test_the_extremes_of_the_recipe_numbers_run(runs: Any) -> None:
    """What `tests/recipes/test_numbers.py` accepts is no promise until it has run."""
    facts = runs.facts["extremes"]
    assert (facts["steps"], facts["skipped_steps"]) == (4, 0)
    assert facts["heldout_loss"] < facts["heldout"][0]["loss"]


def test_facts_add_up(runs: Any) -> None:
    facts, rows = runs.facts["reference"], runs.rows("reference")
    step = TrainStep.model_validate(runs.job("x")["recipe"])
    assert facts["parameters"] == sum(parameters(step.model, 4103).values())
    assert facts["flops"] == run_flops(step, 4103)
    assert facts["tokens"] == sum(row["tokens"] for row in rows)
    assert facts["target_tokens"] == sum(row["targets"] for row in rows)
    assert facts["fill"] == pytest.approx(facts["tokens"] / (4 * step.train.tokens_per_step))
    assert facts["padding"] == 0  # packed micro-batches
    assert (facts["steps"], facts["workers"], facts["resumed"], facts["skipped_steps"]) == (4, 2, 0, 0)
    assert facts["final_loss"] == rows[-1]["loss"]
    assert facts["heldout_loss"] == facts["heldout"][-1]["loss"] < facts["heldout"][0]["loss"]
    samples = TokenStore(Path(runs.inputs["data"]) / "stage1").count(64)
    assert facts["epochs"] == pytest.approx(4 * 8 / samples, abs=1e-3)
    assert 0 < facts["training_seconds"] < 60
    assert set(facts["energy_joules"]) == {"cpu", "gpu"}


def test_two_workers_of_a_node_count_its_energy_once(runs: Any) -> None:
    assert runs.facts["metered"]["workers"] == 2
    assert runs.facts["metered"]["energy_joules"] == {"cpu": pytest.approx(7.0), "gpu": None}
    assert [file.name for file in runs.root.glob("estimate-of-rank-*")] == ["estimate-of-rank-0"]
    assert runs.facts["metered"]["energy_estimated"]["kwh"] > 0
    assert runs.facts["metered"]["cost"]["energy_kwh_measured"] == pytest.approx(7.0 / 3.6e6 * 1.1)
    assert runs.facts["reference"]["energy_estimated"] == {}


def test_held_out_loss_is_measured_before_between_and_after_by_mode(runs: Any) -> None:
    assert [row["step"] for row in runs.rows("undisturbed", "heldout.jsonl")] == [0, 4, 8, 10]
    for row in runs.rows("reference", "heldout.jsonl"):
        modes = [row[name] for name in "RSX"]
        assert min(modes) < row["loss"] < max(modes)


@pytest.mark.parametrize("run", ["prefix-lm", "spans"])
def test_other_objectives_and_schedules_train_from_end_to_end(runs: Any, run: str) -> None:
    facts = runs.facts[run]
    assert (facts["steps"], facts["skipped_steps"]) == (4, 0)
    assert facts["heldout_loss"] < facts["heldout"][0]["loss"]
    assert not any(name in facts["heldout"][0] for name in "RSX")
    assert facts["flops_useful"] > 0
    rates = [row["lr"] for row in runs.rows("spans")]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4])


def test_a_training_that_does_not_use_its_source_says_so(runs: Any) -> None:
    # A handful of steps teach no model to look at its source.
    events = [row for row in runs.rows("reference", "events.jsonl") if row["event"] == "source not used"]
    assert events
    assert events[-1]["reasons"] == runs.facts["reference"]["source_alarms"]
    assert all(reason.startswith("the source is ignored on ") for reason in events[-1]["reasons"])


def test_the_first_loss_is_that_of_guessing(runs: Any) -> None:
    uniform = float(torch.tensor(4224.0).log())
    # Logits of unit variance cost half a nat more than even odds; a tied head favours the token it has read.
    assert 0 < runs.losses("reference")[0] - uniform < 2


def test_a_stage_starts_from_the_weights_it_is_given(runs: Any) -> None:
    # At a rate of zero nothing moves: Stage III's form ends with Stage I's weights.
    assert runs.weights("started").keys() == runs.weights("reference").keys()
    for name, tensor in runs.weights("reference").items():
        assert torch.equal(runs.weights("started")[name], tensor)
    heldout = runs.facts["started"]["heldout"]
    measured = {"step", "tokens", "loss", "loss_error", "accuracy", "shuffled", "shuffled_error"}
    for task in Pairs(runs.root / "pairs", "heldout").names:
        loss = f"loss_{task}"
        measured |= {loss, f"{loss}_error", f"accuracy_{task}", f"{loss}_shuffled", f"{loss}_shuffled_error"}
    assert [set(row) for row in heldout] == [measured] * 2
    assert heldout[0]["loss"] == heldout[1]["loss"]


def test_facts_count_steps_that_are_not_logged(runs: Any, tokenizer: Tokenizer) -> None:
    rows, facts = runs.rows("started"), runs.facts["started"]
    assert [row["step"] for row in rows] == [3, 4]
    train = TrainStep.model_validate(runs.job("x", data={"objective": "instruction"})["recipe"]).train
    samples = training_samples(train, runs.root / "pairs", "stage1", tokenizer)
    batches = [
        b
        for step in range(4)
        for b in TrainingBatches(samples, train, tokenizer.pad, tokenizer.size).micro(step, 0, 1, 8)
    ]
    assert facts["tokens"] == sum(batch.tokens for batch in batches)
    assert facts["target_tokens"] == sum(batch.targets for batch in batches)
    lengths = (
        [n for batch in batches for n in batch.mask.sum(1).tolist()],
        [n for batch in batches for n in (batch.labels != IGNORE).sum(1).tolist()],
    )
    model = TrainStep.model_validate(runs.job("x")["recipe"]).model
    assert facts["flops_useful"] == useful_train_flops(model, tokenizer.size, *lengths)
    more = recomputed_flops(model, tokenizer.size, *lengths, "none")
    assert facts["flops_hardware"] == facts["flops_useful"] + more
    assert rows[-1]["totals"] == {
        "tokens": facts["tokens"], "targets": facts["target_tokens"], "skipped": 0,
        "flops": facts["flops_useful"], "hardware_flops": facts["flops_hardware"],
    }  # fmt: skip


def test_work_before_a_restart_counts_once(runs: Any) -> None:
    for name in ("flops_useful", "flops_hardware"):
        assert runs.facts["resumed"][name] == runs.facts["undisturbed"][name] > 0
    cost = runs.facts["resumed"]["cost"]
    assert 0 < cost["utilisation_useful"] < cost["utilisation_hardware"] < cost["utilisation"]


def test_a_checkpoint_has_the_planned_size(runs: Any) -> None:
    """Of a model of 140,000 parameters, whose file headers are some percent."""
    shares = (runs.root / "undisturbed" / "checkpoints" / "step-000008").glob("*.safetensors")
    planned = checkpoint_bytes(runs.facts["undisturbed"]["parameters"])
    assert sum(path.stat().st_size for path in shares) == pytest.approx(planned, rel=0.01)


def test_tokens_and_work_do_not_depend_on_the_workers(runs: Any) -> None:
    """Four workers get fillers where a step's samples do not fill their micro-batches alike."""
    for key in ("tokens", "target_tokens", "flops_useful", "flops_hardware"):
        assert runs.facts["many-fillers"][key] == runs.facts["one-no-filler"][key]


def test_padded_batches_train_the_same(runs: Any) -> None:
    assert runs.losses("padded") == pytest.approx(runs.losses("reference"), rel=1e-6)
    counts = [[(row["tokens"], row["targets"]) for row in runs.rows(n)] for n in ("reference", "padded")]
    assert counts[0] == counts[1]


def test_a_look_into_three_steps_leaves_a_trace_and_the_same_state(runs: Any) -> None:
    """The state: `undisturbed` was looked at, runs that end as it does were not."""
    for rank in (0, 1):
        trace = runs.root / "undisturbed" / "profile" / f"trace-0000{rank}.json.gz"
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        products = sum(event["name"] in ("aten::mm", "mkldnn::_linear_pointwise") for event in events)
        assert products >= 3 * 20  # three steps of three blocks
        assert any(event["name"] == "[memory]" for event in events)


def test_every_step_tells_its_figures(runs: Any) -> None:
    row = runs.rows("reference")[-1]
    told = {"loss", "loss_R", "loss_S", "loss_X", "lr", "gradient_norm", *RATES}
    assert told <= row.keys()
    assert all(row[name] >= 0 for name in told)
    assert row["padded_tokens_per_second"] > row["tokens_per_second"] > 0
    assert row["mfu_padded"] > row["mfu_useful"] > 0


def test_no_held_out_sample_is_refused(runs: Any) -> None:
    error = runs.facts["no-heldout"]["error"]
    assert "held-out data: no sample to measure loss on" in error
    assert "\n" not in error


def test_energy_is_unknown_if_one_attempt_was_not_measured_to_its_end() -> None:
    assert totals([{"cpu": 1.0, "gpu": None}, {"cpu": 2.0, "gpu": None}]) == {"cpu": 3.0, "gpu": None}
    assert totals([None, {"cpu": 2.0, "gpu": 5.0}]) == {"cpu": None, "gpu": None}
