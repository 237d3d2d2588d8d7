"""Facts of a candidate and of the present champion, for the registry's gate.

Owns where each fact is found: manifests of the store, tags of the champion's version, a clean process
for the export. The rules are `openba.gate`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
from mlflow.entities.model_registry import ModelVersion

from openba.accounting.energy import Carbon, Cost, cost
from openba.artifacts import MANIFEST, Step, Store, fetched
from openba.errors import UserError
from openba.evaluate.compare import compare_results
from openba.gate import Against, Evidence
from openba.graph import Model
from openba.json_types import JsonObject
from openba.recipes.data import SourceStep, TaskStep
from openba.recipes.pipeline import GateConfig, PipelineConfig
from openba.report.card import Provenance, model_card

LOSS = "openba.heldout_loss"
EVALUATION = "openba.evaluation"
"""Tags of a version: what a later candidate is compared with."""


class Witness:
    """Facts of one pipeline's models."""

    def __init__(self, store: Store, config: PipelineConfig, contamination: Step | None) -> None:
        self.store, self.config, self.contamination = store, config, contamination

    def of(self, model: Model, gate: GateConfig) -> Evidence:
        """All that the gate asks for; an export is loaded only if it asks for that."""
        facts = self._facts(model.training) or {}
        evaluation = model.evaluation
        return Evidence(
            facts=facts,
            benchmarks=tuple(evaluation.recipe.benchmarks) if evaluation else (),  # type: ignore[attr-defined]
            results=self._results(evaluation),
            contamination=self._facts(self.contamination),
            licences=self.licences(model),
            logits_apart=self._logits_apart(model) if gate.export else None,
            kwh=_spent(self.cost(model)).kwh,
        )

    def tags(self, model: Model) -> dict[str, str]:
        """Tags of a version: facts of its model for people and for later candidates."""
        energy_kwh, carbon_tonnes = _spent(self.cost(model))
        tags = {
            LOSS: str((self._facts(model.training) or {}).get("heldout_loss")),
            "openba.kwh": f"{energy_kwh:.6g}",
            "openba.tco2eq": f"{carbon_tonnes:.6g}",
            "openba.licence": self.config.registry.licence,
        }
        if model.evaluation and self._facts(model.evaluation) is not None:
            tags[EVALUATION] = self.store.uri(model.evaluation)
        return tags

    def card(self, model: Model) -> str:
        """Return the model's card."""
        training_cost = self.cost(model)
        results = self._results(model.evaluation) or {}
        method = "measured" if training_cost["energy_joules_measured"] else "from device hours and watts"
        provenance = Provenance(self.licences(model), *_spent(training_cost), method)
        return model_card(str(model.register_as), results, provenance)

    def licences(self, model: Model) -> dict[str, str]:
        """Source or task -> licence, of all that the model was made from, and of the weights."""
        licences = {"weights": self.config.registry.licence}
        for step in model.training.walk():
            if isinstance(step.recipe, SourceStep):
                licences[step.recipe.name] = step.recipe.source.licence
            elif isinstance(step.recipe, TaskStep):
                licences[f"task {step.recipe.name}"] = step.recipe.task.source.licence
        return licences

    def cost(self, model: Model) -> Cost:
        """Return energy and carbon of the model's own training."""
        manifest = self.store.manifest(model.training)
        assert manifest is not None
        return cost(manifest["facts"], self.config.runtime)

    def against(self, model: Model, champion: ModelVersion) -> Against:
        """Return the champion, with its scores beside the candidate's where both were evaluated."""
        candidate_results = self._results(model.evaluation)
        comparison_rows = None
        with _evaluation(champion.tags.get(EVALUATION)) as champion_results:
            if champion_results and candidate_results and model.evaluation:
                benchmark_rows = compare_results(
                    champion_results, (candidate_results, self.store.path(model.evaluation))
                )
                comparison_rows = [dict(row) for row in benchmark_rows]
        return Against(str(champion.version), _number(champion.tags.get(LOSS)), comparison_rows)

    def _facts(self, step: Step | None) -> JsonObject | None:
        manifest = self.store.manifest(step) if step else None
        return manifest["facts"] if manifest else None

    def _results(self, evaluation: Step | None) -> JsonObject | None:
        facts = self._facts(evaluation)
        return facts["benchmarks"] if facts else None

    def _logits_apart(self, model: Model) -> float | str:
        from openba.model.reload import logits_apart  # loads torch, which no other rule needs

        try:
            return logits_apart(self.store.path(model.training) / "model")
        except UserError as error:
            return str(error)


@contextmanager
def _evaluation(evaluation_uri: str | None) -> Iterator[tuple[JsonObject, Path] | None]:
    """Results and folder of an evaluation in a store; None if it is not there any more."""
    if evaluation_uri is None:
        yield None
        return
    filesystem, base_path = fsspec.core.url_to_fs(evaluation_uri)
    with ExitStack() as exit_stack:
        try:
            manifest = json.loads(filesystem.cat_file(f"{base_path}/{MANIFEST}"))
            # Items are compared by their answers; no other file of the output is fetched.
            answer_files = {
                name: entry for name, entry in manifest["files"].items() if name.endswith(".parquet")
            }
            answer_folder = exit_stack.enter_context(fetched(evaluation_uri, answer_files))
            result_and_folder = manifest["facts"]["benchmarks"], answer_folder
        except (FileNotFoundError, UserError, ValueError, KeyError):  # gone, damaged, or not a manifest
            result_and_folder = None
        yield result_and_folder


def _number(tag_value: str | None) -> float:
    """Value of a tag; NaN if it is missing or says `None`."""
    try:
        return float(tag_value or "nan")
    except ValueError:
        return math.nan


def _spent(training_cost: Cost) -> Carbon:
    """Return the measured figures if there was a meter, else the paper's estimate."""
    if training_cost["energy_kwh_measured"] and training_cost["tco2eq_measured"]:
        return Carbon(training_cost["energy_kwh_measured"], training_cost["tco2eq_measured"])
    return Carbon(training_cost["energy_kwh_paper"], training_cost["tco2eq_paper"])
