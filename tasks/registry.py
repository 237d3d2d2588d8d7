"""The MLflow registry: one version per fingerprint, alias `candidate`, and `champion` by a gate.

Owns versions, aliases and the promotion log (MLflow keeps no history of aliases). A version is
a pointer to the store. What makes a candidate good enough is the pipeline's `registry.gate`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from openba.artifacts import Store
from openba.errors import UserError
from openba.gate import Against, champion_refusals, not_compared
from openba.graph import Model, Pipeline
from openba.recipes.pipeline import GateConfig
from tasks import serve_model
from tasks.evidence import Witness
from tasks.tracking import FINGERPRINT, Tracking

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for 300 bytes
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a version
CANDIDATE, CHAMPION = "candidate", "champion"
CARD = "README.md"
"""The model's card, among the artifacts of its training's run."""
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
    """`promoted`, `kept` (is the champion already), `refused`, or `waiting` for a person."""
    reason: str


class Registry:
    """The registered models of one tracking server."""

    def __init__(self, tracking: Tracking, store: Store, log: Path, pipeline: Pipeline) -> None:
        self.tracking, self.store, self.log = tracking, store, log
        self.client = tracking.client
        self.witness = Witness(store, pipeline.config, pipeline.steps.get("contamination"))

    def register(self, model: Model, gate: GateConfig) -> Registration:
        """Make sure the model has a version with alias candidate; set champion if the gate lets it."""
        assert model.register_as is not None
        name, step = model.register_as, model.training
        record = self.store.manifest(step)
        if record is None:
            raise UserError(f"{step.key}: not built; `openba run --until {step.name}` builds it")
        version = str(self._version(name, step.fingerprint) or self._create(model, record))
        for key, value in self.witness.tags(model).items():
            self.client.set_model_version_tag(name, version, key, value)
        self.client.log_text(str(self.tracking.run_of(step)), self.witness.card(model), CARD)
        self.client.set_registered_model_alias(name, CANDIDATE, version)
        decision, reason = self._decide(model, version, gate)
        judged = Registration(name, version, [], self.store.uri(step), decision, reason)
        return self.promote(judged) if decision == "promoted" else self._with_aliases(judged)

    def promote(self, judged: Registration, by: str = "") -> Registration:
        """Set `champion` to a version that the gate let pass, and note it; `by` is who said yes."""
        reason = judged.reason + (f"; approved by {by}" if by else "")
        self.client.set_registered_model_alias(judged.name, CHAMPION, judged.version)
        self._note(judged.name, judged.version, reason)
        return self._with_aliases(replace(judged, decision="promoted", reason=reason))

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
            with warnings.catch_warnings(
                action="ignore", category=UserWarning
            ):  # an example would load the model
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

    def _decide(self, model: Model, version: str, gate: GateConfig) -> tuple[str, str]:
        against = self._champion(model)
        found = self.witness.of(model, gate)
        loss = f"held-out loss {found.facts['heldout_loss']:.4f}"
        if against and against.version == version:
            return "kept", f"is the champion; {loss}"
        if reasons := champion_refusals(found, against, gate):
            return "refused", "; ".join(reasons)
        told = (
            f"{loss}, champion v{against.version} {against.heldout_loss:.4f}" if against else f"first, {loss}"
        )
        if gaps := not_compared(against):
            told += f"; not compared: {', '.join(gaps)}"
        return ("waiting" if gate.approval else "promoted"), told

    def _champion(self, model: Model) -> Against | None:
        try:
            champion = self.client.get_model_version_by_alias(str(model.register_as), CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such alias
                return None
            raise
        return self.witness.against(model, champion)

    def _with_aliases(self, judged: Registration) -> Registration:
        known = self.client.get_registered_model(judged.name).aliases.items()
        return replace(judged, aliases=sorted(alias for alias, at in known if str(at) == judged.version))

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
