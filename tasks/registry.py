"""The MLflow registry: one version per fingerprint, alias `candidate`, and `champion` by a gate or a person.

Owns versions and aliases; what happened to a version stands in `tasks/promotions.py`. A version is
a pointer to the store. What makes a candidate good enough is the pipeline's `registry.gate`.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from openba.artifacts import MANIFEST, Store
from openba.errors import UserError
from openba.gate import champion_refusals, not_compared
from openba.graph import Model, Pipeline
from openba.model.pointer import make_pointer
from openba.recipes.pipeline import GateConfig
from tasks import serve_model
from tasks.evidence import Witness
from tasks.pointers import ABSENT
from tasks.promotions import TAKEN_BACK, Event, PromotionLog, champions_before
from tasks.tracking import FINGERPRINT, Tracking, one_line_errors

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for 300 bytes
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a version
CANDIDATE = "candidate"
CHAMPION = "champion"
URI = "openba.uri"
"""Tag of a version: the address of its output in the store."""
_LONGEST_TAG = 5000
CARD = "README.md"
"""The model's card, among the artifacts of its training's run."""
_REQUIREMENTS = ["openba", "torch", "safetensors", "sentencepiece"]
_SIGNATURE = ModelSignature(
    # No schema of inputs: MLflow would take the first column of a table, whatever it holds, before the model
    # is asked, or refuse a list; `serve_model.prompts_of` finds the prompts.
    inputs=None,
    outputs=Schema([ColSpec(DataType.string)]),
    params=ParamSchema([ParamSpec("max_new_tokens", DataType.long, 64)]),
)


STATE = "openba.state"
REASON = "openba.reason"
"""Tags of a version: the newest event of the promotion log, and why."""


@dataclass(frozen=True)
class Registration:
    """State of a model in the registry after a run."""

    name: str
    version: str
    aliases: list[str]
    uri: str
    decision: str
    """`promoted`, `kept` (is the champion already), `refused` by the gate, `withheld` (a person has taken it
    back), or `waiting` for a person."""
    reason: str


class Registry:
    """The registered models of one tracking server."""

    def __init__(self, tracking: Tracking, store: Store, log: Path, pipeline: Pipeline) -> None:
        self.tracking = tracking
        self.store = store
        self.log = PromotionLog(log)
        self.client = tracking.client
        self.witness = Witness(store, pipeline.config, pipeline.steps.get("contamination"))

    def register(self, model: Model, gate: GateConfig) -> Registration:
        """Make sure the model has a version with alias candidate; set champion if the gate lets it.

        Raises:
            UserError: the model is not built, or MLflow does not answer.
        """
        assert model.register_as is not None
        name = model.register_as
        step = model.training
        record = self.store.manifest(step)
        if record is None:
            raise UserError(f"{step.key}: not built; `openba run --until {step.name}` builds it")
        with one_line_errors(self.tracking.uri), self.log.locked():
            version = str(self._version(name, step.fingerprint) or self._create(model))
            for key, value in self.witness.tags(model).items():
                self.client.set_model_version_tag(name, version, key, value)
            # Written in each run: evaluations and licences may have come since the version was made.
            self.client.log_text(str(self.tracking.run_of(step)), self.witness.card(model), CARD)
            self.client.set_registered_model_alias(name, CANDIDATE, version)
            decision, reason = self._decide(model, version, gate)
            judged = Registration(name, version, [], self.store.uri(step), decision, reason)
            if decision == "promoted":
                return self._promote(judged, step.fingerprint)
            if decision == "refused":
                self._note_once(name, version, step.fingerprint, "refused", reason)
            return self._with_aliases(judged)

    def promote(self, name: str, version: str, reason: str) -> None:
        """Make a version champion because a person says so; the gate is not asked.

        Raises:
            UserError: there is no such version, or its output is missing.
        """
        with one_line_errors(self.tracking.uri), self.log.locked():
            registered = self._existing(name, version)
            if registered is None:
                raise UserError(f"{name} version {version}: not in the registry at {self.tracking.shown_uri}")
            if not self._has_output(registered):
                raise UserError(f"{name} version {version}: its output {registered.tags.get(URI)} is missing")
            self._move_champion(name, version, registered.tags[FINGERPRINT], "promoted", reason)

    def approve(self, model: Model, gate: GateConfig, by: str) -> Registration:
        """Set `champion` to a version that a person has said yes to, if the gate still lets it pass.

        It is judged once more, since another version may have become champion after the question was asked.
        """
        name = str(model.register_as)
        step = model.training
        with one_line_errors(self.tracking.uri), self.log.locked():
            version = str(self._version(name, step.fingerprint))
            decision, reason = self._decide(model, version, gate)
            judged = Registration(name, version, [], self.store.uri(step), decision, reason)
            if decision != "waiting":
                return self._with_aliases(judged)
            return self._promote(replace(judged, reason=f"{reason}; approved by {by}"), step.fingerprint)

    def reject(self, judged: Registration, by: str) -> None:
        """Note that a person said no: no run promotes the version again."""
        with one_line_errors(self.tracking.uri), self.log.locked():
            version = self.client.get_model_version(judged.name, judged.version)
            reason = f"rejected by {by or 'a person'}"
            self._note(judged.name, judged.version, version.tags[FINGERPRINT], "rejected", reason)

    def rollback(self, name: str, reason: str) -> tuple[str, str]:
        """Move `champion` to the newest earlier champion that is still there; returns (from, to).

        Raises:
            UserError: the model has no champion, or no earlier champion is left.
        """
        with one_line_errors(self.tracking.uri), self.log.locked():
            champion = self._champion(name)
            if champion is None:
                raise UserError(f"{name}: no champion in the registry; `openba run` registers models")
            present_version = str(champion.version)
            deleted_versions = []
            # A version may have been deleted since: the next older one that is complete is taken.
            for earlier in champions_before(self.log.rows(name), present_version):
                version = self._existing(name, earlier)
                if version is None or not self._has_output(version):
                    deleted_versions.append(earlier)
                    continue
                self._note(name, present_version, champion.tags.get(FINGERPRINT, ""), "rolled back", reason)
                why = f"rollback from version {present_version}: {reason}"
                self._move_champion(name, earlier, version.tags.get(FINGERPRINT, ""), "restored", why)
                return present_version, earlier
            deleted = f"; deleted: version {', '.join(deleted_versions)}" if deleted_versions else ""
            raise UserError(
                f"{name}: {self.log.file} has no champion before version {present_version}{deleted}"
            )

    def _promote(self, judged: Registration, fingerprint: str) -> Registration:
        self._move_champion(judged.name, judged.version, fingerprint, "promoted", judged.reason)
        return self._with_aliases(replace(judged, decision="promoted"))

    def _move_champion(self, name: str, version: str, fingerprint: str, event: Event, reason: str) -> None:
        """Move the alias, then note it; the version before becomes `superseded` unless it was rolled back."""
        previous_champion = self._champion(name)
        self.client.set_registered_model_alias(name, CHAMPION, version)
        self._note(name, version, fingerprint, event, reason)
        if previous_champion is None or event != "promoted" or str(previous_champion.version) == version:
            return
        replaced = f"by version {version}"
        self._note(
            name,
            str(previous_champion.version),
            previous_champion.tags.get(FINGERPRINT, ""),
            "superseded",
            replaced,
        )

    def _note(self, name: str, version: str, fingerprint: str, event: Event, reason: str) -> None:
        self.log.note(name, version, fingerprint, event, reason)
        self.client.set_model_version_tag(name, version, STATE, event)
        self.client.set_model_version_tag(name, version, REASON, reason[:_LONGEST_TAG])

    def _note_once(self, name: str, version: str, fingerprint: str, event: Event, reason: str) -> None:
        """Note an event as `_note` does, unless the newest row of the version says the same."""
        last_row = self.log.last(name, version, fingerprint)
        if last_row is None or (last_row["event"], last_row["reason"]) != (event, reason):
            self._note(name, version, fingerprint, event, reason)

    def _existing(self, name: str, version: str) -> ModelVersion | None:
        return _none_if_absent(lambda: self.client.get_model_version(name, version))

    def _has_output(self, version: ModelVersion) -> bool:
        """Whether the store still has the output that the version points to."""
        # The manifest alone: it is published last, so its presence means a complete output.
        filesystem, base = fsspec.core.url_to_fs(version.tags.get(URI, "missing"))
        return bool(filesystem.exists(f"{base}/{MANIFEST}"))

    def _version(self, name: str, fingerprint: str) -> str | None:
        # By tag: version numbers start again at 1 after the database was lost.
        versions = self.client.search_model_versions(f"name='{name}'")
        return next(
            (
                str(model_version.version)
                for model_version in versions
                if model_version.tags.get(FINGERPRINT) == fingerprint
            ),
            None,
        )

    def _create(self, model: Model) -> str:
        assert model.register_as is not None
        pointer = make_pointer(model.training, self.store)
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
            URI: pointer["uri"],
            "openba.title": model.title,
        }
        for key, value in tags.items():
            self.client.set_model_version_tag(model.register_as, version, key, str(value))
        return version

    def _decide(self, model: Model, version: str, gate: GateConfig) -> tuple[str, str]:
        """Decision and reason, see `Registration`."""
        name = str(model.register_as)
        champion = self._champion(name)
        against = self.witness.against(model, champion) if champion else None
        evidence = self.witness.of(model, gate)
        loss = evidence.facts.get("heldout_loss")
        stated = f"held-out loss {loss:.4f}" if isinstance(loss, float) else f"held-out loss {loss}"
        if against and against.version == version:
            return "kept", f"is the champion; {stated}"
        last_row = self.log.last(name, version, model.training.fingerprint)
        if last_row and last_row["event"] in TAKEN_BACK:
            day = time.strftime("%Y-%m-%d", time.gmtime(last_row["time"]))
            return "withheld", (
                f"{last_row['event']} on {day}: {last_row['reason']}; "
                f'`openba promote {name} {version} --reason "..."` makes it champion'
            )
        if reasons := champion_refusals(evidence, against, gate):
            return "refused", "; ".join(reasons)
        if against:
            stated += f", champion v{against.version} {against.heldout_loss:.4f}"
        else:
            stated = f"first, {stated}"
        if gaps := not_compared(against):
            stated += f"; not compared: {', '.join(gaps)}"
        return ("waiting" if gate.approval else "promoted"), stated

    def _champion(self, name: str) -> ModelVersion | None:
        return _none_if_absent(lambda: self.client.get_model_version_by_alias(name, CHAMPION))

    def _with_aliases(self, judged: Registration) -> Registration:
        aliases = self.client.get_registered_model(judged.name).aliases.items()
        of_version = sorted(alias for alias, version in aliases if str(version) == judged.version)
        return replace(judged, aliases=of_version)


def _none_if_absent(request: Callable[[], ModelVersion]) -> ModelVersion | None:
    try:
        return request()
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise
