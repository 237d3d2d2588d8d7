"""The MLflow registry: one version per fingerprint, alias `candidate`, and `champion` by a gate.

Owns versions, aliases and the promotion log (MLflow keeps no history of aliases). A version is
a pointer to the store. What makes a candidate good enough is the pipeline's `registry.gate`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from openba.artifacts import Step, Store
from openba.errors import UserError
from openba.gate import champion_refusals
from openba.graph import Model
from openba.recipes.pipeline import GateConfig
from tasks import serve_model
from tasks.tracking import FINGERPRINT, Tracking

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for 300 bytes
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a version
CANDIDATE, CHAMPION = "candidate", "champion"
_REQUIREMENTS = ["openba", "torch", "safetensors", "sentencepiece"]
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]),
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, 64)]),
)


@dataclass(frozen=True)
class Registration:
    """What the registry holds for a model after a run."""

    name: str
    version: str
    aliases: list[str]
    uri: str
    decision: str
    reason: str


class Registry:
    """The registered models of one tracking server."""

    def __init__(
        self, tracking: Tracking, store: Store, log: Path, contamination: Step | None = None
    ) -> None:
        self.contamination = contamination
        self.tracking, self.store, self.log = tracking, store, log
        self.client = tracking.client

    def register(self, model: Model, gate: GateConfig) -> Registration:
        """Make sure the model has a version with alias candidate; set champion if the gate lets it."""
        assert model.register_as is not None
        name, step = model.register_as, model.training
        record = self.store.manifest(step)
        assert record is not None
        version = str(self._version(name, step.fingerprint) or self._create(model, record))
        self.client.set_registered_model_alias(name, CANDIDATE, version)
        decision, reason = self._decide(name, version, gate, _metric(record["facts"], gate.metric))
        if decision == "promoted" and (against := self._refusals(model, gate, record["facts"])):
            decision, reason = "refused", "; ".join(against)
        if decision == "promoted":
            self.client.set_registered_model_alias(name, CHAMPION, version)
            self._note(name, version, reason)
        aliases = [
            alias
            for alias, at in self.client.get_registered_model(name).aliases.items()
            if str(at) == version
        ]
        return Registration(name, version, sorted(aliases), self.store.uri(step), decision, reason)

    def rollback(self, name: str, reason: str) -> tuple[str, str]:
        """Move `champion` to the version before it in the promotion log; returns (from, to).

        Raises:
            UserError: the model has no champion, or the log has no other version before it.
        """
        try:
            present = str(self.client.get_model_version_by_alias(name, CHAMPION).version)
        except MlflowException:
            raise UserError(f"{name}: no champion in the registry; `openba run` registers models") from None
        earlier = _champions_before(self.promotions(name), present)
        if earlier is None:
            raise UserError(f"{name}: {self.log} has no champion before version {present}")
        self.client.set_registered_model_alias(name, CHAMPION, earlier)
        self._note(name, earlier, f"rollback from version {present}: {reason}")
        return present, earlier

    def promotions(self, name: str) -> list[dict[str, Any]]:
        """The model's rows of the promotion log, oldest first."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [row for row in map(json.loads, lines) if row["model"] == name]

    def _version(self, name: str, fingerprint: str) -> str | None:
        found = self.client.search_model_versions(f"name='{name}'")
        return next((v.version for v in found if v.tags.get(FINGERPRINT) == fingerprint), None)

    def _create(self, model: Model, record: dict[str, Any]) -> str:
        assert model.register_as is not None
        files = {name: entry for name, entry in record["files"].items() if name.startswith("model/")}
        pointer = {"uri": self.store.uri(model.training), "files": files}
        mlflow.set_tracking_uri(self.tracking.uri)
        with tempfile.TemporaryDirectory() as folder, mlflow.start_run(self.tracking.run_of(model.training)):
            path = Path(folder) / "pointer.json"
            path.write_text(json.dumps(pointer, indent=2))
            logged = mlflow.pyfunc.log_model(
                name=model.register_as,
                python_model=serve_model.__file__,
                artifacts={"pointer": str(path)},
                pip_requirements=_REQUIREMENTS,
                signature=_SIGNATURE,
            )
        with suppress(MlflowException):  # it exists since an earlier version
            self.client.create_registered_model(model.register_as)
        # A server takes the source only together with the logged model that it names.
        created = self.client.create_model_version(
            model.register_as, logged.model_uri, model_id=logged.model_id
        )
        version = str(created.version)
        tags = {
            FINGERPRINT: model.training.fingerprint,
            "openba.uri": pointer["uri"],
            "openba.title": model.title,
        }
        for key, value in tags.items():
            self.client.set_model_version_tag(model.register_as, version, key, str(value))
        return version

    def _decide(self, name: str, version: str, gate: GateConfig, value: float) -> tuple[str, str]:
        self.client.set_model_version_tag(name, version, f"openba.{gate.metric}", str(value))
        try:
            champion = self.client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException:
            return "promoted", f"first version; {gate.metric} {value:.4f}"
        if str(champion.version) == version:
            return "kept", f"is the champion; {gate.metric} {value:.4f}"
        best = float(champion.tags[f"openba.{gate.metric}"])
        worse = value - best if gate.better == "lower" else best - value
        against = f"champion v{champion.version} {best:.4f}, tolerance {gate.tolerance:g}"
        compared = f"{gate.metric} {value:.4f}, {against}"
        return ("promoted" if worse <= gate.tolerance else "refused"), compared

    def _refusals(self, model: Model, gate: GateConfig, facts: dict[str, Any]) -> list[str]:
        def built(step: Step | None) -> dict[str, Any] | None:
            record = self.store.manifest(step) if step else None
            return record["facts"] if record else None

        return champion_refusals(facts, built(model.evaluation), built(self.contamination), gate)

    def _note(self, name: str, version: str, reason: str) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        row = {"time": time.time(), "model": name, "version": version, "alias": CHAMPION, "reason": reason}
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _champions_before(rows: list[dict[str, Any]], present: str) -> str | None:
    """The champion before the present one: promotions and rollbacks are replayed as a stack."""
    stack: list[str] = []
    for version in (str(row["version"]) for row in rows):
        if version in stack:
            del stack[stack.index(version) + 1 :]
        else:
            stack.append(version)
    return stack[stack.index(present) - 1] if present in stack[1:] else None


def _metric(facts: dict[str, Any], name: str) -> float:
    """`heldout/loss` is the last held-out measurement; other names are facts of the training step."""
    return float(facts["heldout_loss"] if name == "heldout/loss" else facts[name])
