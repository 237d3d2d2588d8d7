"""A real MLflow registry: what is refused, who is asked, what is noted, and what a champion is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openba.artifacts import Build, Step, Store, materialize
from openba.config import CONFIGS, load
from openba.data.instruct import encode_input
from openba.errors import UserError
from openba.evaluate.items import ITEM_SCHEMA
from openba.evaluate.run import score_benchmark
from openba.graph import EVALUATE, TRAIN, Pipeline
from openba.home import Home
from openba.model.generate import generate
from openba.model.loading import load_model
from openba.model.reload import logits_apart
from openba.recipes.pipeline import GateConfig
from openba.tokenizer.tokenizer import Tokenizer
from tasks.evidence import EVALUATION, LOSS
from tasks.pointers import version_of
from tasks.registry import CARD, STATE, URI, Registration, Registry
from tasks.services import free_port
from tasks.tracking import Tracking
from tests.serve.conftest import write_model

NAME, ITEMS = "openba-flan", 40
PIPELINE = f"""
extends: {CONFIGS}/pipeline/tiny
evaluate: [stage3]
benchmarks: [bbc-topic]
flan: {{tasks: [bbc-topic]}}
experts: {{folder: none}}
registry: {{gate: default}}
"""
QUICK = load(CONFIGS / "gate" / "default.yaml", GateConfig).model_copy(update={"export": False})


class Shelf:
    """A store of outputs of chosen quality, and the registry of their models."""

    def __init__(self, folder: Path, home: Home, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.home = tokenizer, home
        self.file = folder / "small.yaml"
        self.file.write_text(PIPELINE)
        self.store = Store(self.home.root / "store", self.home.work)

    def register(
        self, seed: int, gate: GateConfig = QUICK, *overrides: str, **quality: Any
    ) -> tuple[Registration, Registry]:
        """Stage III of one more seed, as good as told, offered to the gate."""
        graph = Pipeline(self.file, [f"stages.stage3.seed={seed}", *overrides])
        for step in graph.steps.values():
            materialize(step, self.store, None, lambda step, build: self._build(step, build, seed, quality))
        tracking = Tracking(self.home, "small", "")
        tracking.begin(graph.step("stage3"))
        registry = Registry(tracking, self.store, self.home.promotions, graph)
        model = next(model for model in graph.models if model.name == "stage3")
        return registry.register(model, gate), registry

    def offer(self, seed: int, gate: GateConfig = QUICK) -> Registration:
        """What `register` does, in a process of its own: nothing is built anew."""
        graph = Pipeline(self.file, [f"stages.stage3.seed={seed}"])
        registry = Registry(Tracking(self.home, "small", ""), self.store, self.home.promotions, graph)
        return registry.register(next(model for model in graph.models if model.name == "stage3"), gate)

    def events(self) -> list[str]:
        """Event and version of each row of the promotion log."""
        rows = map(json.loads, self.home.promotions.read_text().splitlines())
        return [f"{row['event']} {row['version']}" for row in rows]

    def states(self) -> dict[str, str]:
        """Version -> its tag `openba.state`."""
        versions = mlflow.MlflowClient(self.home.tracking_uri).search_model_versions(f"name='{NAME}'")
        return {str(version.version): version.tags.get(STATE, "") for version in versions}

    def champion(self) -> str:
        client = mlflow.MlflowClient(self.home.tracking_uri)
        return str(client.get_registered_model(NAME).aliases.get("champion"))

    def _build(self, step: Step, build: Build, seed: int, quality: dict[str, Any]) -> Mapping[str, Any]:
        if step.kind is TRAIN:
            write_model(build.out / "model", self.tokenizer, seed)
            facts = {
                "heldout_loss": 2.0,
                "training_seconds": 60.0,
                "workers": 1,
                "flops": 1e9,
                "flops_useful": 1e9,
                "flops_hardware": 1e9,
                "energy_joules": None,
                "energy_estimated": {},
            }
            return facts | quality.get("facts", {})
        if step.kind is EVALUATE:
            (name, benchmark), right = next(iter(step.recipe.benchmarks.items())), quality.get("right", 20)
            items = [
                dict.fromkeys(ITEM_SCHEMA.names)
                | {"id": str(i), "category": "", "input": "?", "target": "a", "references": ["a"],
                   "output": "a" if i < right else "b", "attempts": [], "choices": [],
                   "cut": False, "unfinished": False, "examples_left_out": 0}
                for i in range(ITEMS)
            ]  # fmt: skip
            result = score_benchmark(benchmark, items, 1)
            pq.write_table(pa.Table.from_pylist(items, ITEM_SCHEMA), build.out / f"{name}.parquet")
            return {"benchmarks": {name: result} if not quality.get("unrun") else {}}
        (build.out / "file").write_text(step.name)
        dirty = quality.get("dirty", 0)
        return {"sets": [{"set": "bbc-topic", "records": ITEMS, "too_short": 0, "dirty": dirty}]}


@pytest.fixture
def shelf(tmp_path: Path, mlflow_home: Home, tokenizer: Tokenizer) -> Shelf:
    (tmp_path / "none").mkdir()
    return Shelf(tmp_path, mlflow_home, tokenizer)


def test_a_champion_generates_and_has_no_weights_in_mlflow(shelf: Shelf) -> None:
    done, _ = shelf.register(1, load(CONFIGS / "gate" / "default.yaml", GateConfig))
    assert (done.decision, done.aliases) == ("promoted", ["candidate", "champion"]), done.reason
    mlflow.set_tracking_uri(shelf.home.tracking_uri)
    prompts = ["英文：cat", "Translate: 猫"]
    champion = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    answers = champion.predict(prompts, params={"max_new_tokens": 5})
    model, tokenizer = load_model(Path(done.uri) / "model")
    sources = [encode_input(tokenizer, prompt, (), 128) for prompt in prompts]
    assert answers == generate(model, tokenizer, sources, 5)
    kept = [path for path in (shelf.home.root / "mlartifacts").rglob("*") if path.is_file()]
    assert {"pointer.json", CARD, "MLmodel"} <= {path.name for path in kept}
    weights = (Path(done.uri) / "model" / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in kept) < min(weights, 100_000)
    assert not [path for path in kept if path.suffix in (".safetensors", ".pt", ".bin", ".model")]
    card = next(path for path in kept if path.name == CARD).read_text()
    for told in ("license: apache-2.0", "emissions:", "| people-daily |", "accuracy", "kWh"):
        assert told in card


OFFER = """
import sys
from pathlib import Path
import mlflow
from openba.graph import Pipeline
from openba.home import Home
from tasks.registry import Registry
from tasks.tracking import Tracking

home, graph = Home.from_environment(), Pipeline(Path(sys.argv[1]), ["stages.stage3.seed=1"])
registry = Registry(Tracking(home, "small", ""), home.store, home.promotions, graph)
model = next(model for model in graph.models if model.name == "stage3")
done = registry.register(model, graph.config.registry.gate)
mlflow.set_tracking_uri(home.tracking_uri)
answers = mlflow.pyfunc.load_model(f"models:/{done.name}@champion").predict(["cat"])
print(done.decision, done.version, len(answers), done.uri, sep="\\n")
"""
"""A later run: a process of its own, since MLflow caches addresses within one."""


@pytest.mark.parametrize("copied", [False, True], ids=["moved", "copied"])
def test_a_home_goes_on_where_it_was_moved_to(shelf: Shelf, tmp_path: Path, root: Path, copied: bool) -> None:
    """Outputs, runs and versions are found at the new place, and nothing is written to the old one."""
    shelf.register(1)
    old, new = shelf.home.root, tmp_path / "另一个 place"
    (shutil.copytree if copied else shutil.move)(old, new)
    shutil.rmtree(old / "store", ignore_errors=True)  # what still pointed there would fail
    before = {path: path.stat().st_mtime_ns for path in old.rglob("*")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", OFFER, shelf.file],
        env=environment | {"OPENBA_HOME": str(new), "PYTHONPATH": str(root)},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    decision, version, answers, uri = done.stdout.splitlines()[-4:]
    assert (decision, version, answers) == ("kept", "1", "1")
    assert uri.startswith(f"{new}/store/stage3/")
    registered = mlflow.MlflowClient(*[f"sqlite:///{new}/mlflow.db"] * 2).get_model_version(NAME, "1")
    assert registered.tags[URI] == uri
    assert {path: path.stat().st_mtime_ns for path in old.rglob("*")} == before


@pytest.mark.parametrize(
    ("quality", "overrides", "line"),
    [
        ({"facts": {"heldout_loss": 2.1}}, (), "heldout_loss: 2.1000, champion v1 2.0000, 0 may be lost"),
        ({"facts": {"heldout_loss": float("nan")}}, (), "heldout_loss: missing or not finite"),
        ({"right": 10}, (), "bbc-topic: accuracy 25.00, champion v1 50.00"),
        ({"unrun": True}, (), "evaluation: bbc-topic: not run"),
        ({"facts": {"training_seconds": 0.0}}, (), "energy: 0.0 kWh known of its training"),
        ({}, ("registry.licence=unknown",), "licences: weights states none"),
    ],
)
def test_each_line_of_the_gate_refuses(
    shelf: Shelf, quality: dict[str, Any], overrides: tuple[str, ...], line: str
) -> None:
    shelf.register(1)
    done, _ = shelf.register(2, QUICK, *overrides, **quality)
    assert done.decision == "refused"
    assert line in done.reason
    assert (done.aliases, shelf.champion()) == (["candidate"], "1")
    assert shelf.events() == ["promoted 1", "refused 2"]


def test_a_contaminated_benchmark_refuses(shelf: Shelf) -> None:
    done, _ = shelf.register(1, QUICK, dirty=5)
    assert done.reason == "contamination: bbc-topic: 5 of 40 records stand in the training data"
    assert shelf.champion() == "None"


def test_an_export_that_computes_something_else_refuses(shelf: Shelf) -> None:
    """The code that travels with the weights is changed after it was written; the weights are not."""
    done, _ = shelf.register(1, QUICK)
    path = Path(done.uri) / "model" / "modeling_openba.py"
    code = path.read_text()
    head = "return linear(self.lm_head, hidden_states)"
    assert code.count(head) == 1
    path.write_text(code.replace(head, "return linear(self.lm_head, hidden_states / 2)"))
    assert logits_apart(Path(done.uri) / "model") > 1e-3
    path.write_text("raise ImportError('spoilt')\n")
    with pytest.raises(UserError, match=r"transformers does not load it: .*spoilt"):
        logits_apart(Path(done.uri) / "model")


def test_within_the_standard_errors_it_is_promoted_and_the_way_back_is_noted(shelf: Shelf) -> None:
    shelf.register(1)
    first = shelf.home.promotions.read_bytes()
    done, registry = shelf.register(2, right=19)
    assert (done.decision, shelf.champion()) == ("promoted", "2"), done.reason
    again, _ = shelf.register(2)
    assert again.decision == "kept"
    assert shelf.states() == {"1": "superseded", "2": "promoted"}
    assert registry.rollback(NAME, "worse answers") == ("2", "1")
    assert shelf.champion() == "1"
    assert shelf.home.promotions.read_bytes().startswith(first), "the log is only appended to"
    assert shelf.events() == ["promoted 1", "promoted 2", "superseded 1", "rolled back 2", "restored 1"]
    assert shelf.states() == {"1": "restored", "2": "rolled back"}
    with pytest.raises(UserError, match="no champion before version 1"):
        registry.rollback(NAME, "further")


def test_what_was_rolled_back_stays_so_until_a_person_says_otherwise(shelf: Shelf) -> None:
    shelf.register(1)
    _, registry = shelf.register(2)
    registry.rollback(NAME, "worse answers")
    for _ in range(2):
        again = shelf.offer(2)
        assert (again.decision, again.aliases, shelf.champion()) == ("withheld", ["candidate"], "1")
        assert "rolled back on" in again.reason
        assert f'`openba promote {NAME} 2 --reason "..."`' in again.reason
    better, _ = shelf.register(3)
    assert (better.decision, shelf.champion()) == ("promoted", "3")
    registry.promote(NAME, "2", "Li Wei: the answers were right")
    assert (shelf.champion(), shelf.states()["2"], shelf.states()["3"]) == ("2", "promoted", "superseded")
    assert shelf.offer(2).decision == "kept"
    with pytest.raises(UserError, match=rf"^{NAME} version 9: not in the registry"):
        registry.promote(NAME, "9", "no such version")


def test_a_rolled_back_version_is_remembered_after_mlflows_database_was_lost(
    shelf: Shelf, mlflow_database: Path
) -> None:
    """Its number may then be another; its fingerprint is not."""
    shelf.register(1)
    _, registry = shelf.register(2)
    registry.rollback(NAME, "worse answers")
    shutil.copyfile(mlflow_database, shelf.home.root / "mlflow.db")
    again, _ = shelf.register(2)
    assert (again.version, again.decision) == ("1", "withheld")


def test_a_person_is_asked_before_the_champion_moves(shelf: Shelf) -> None:
    shelf.register(1)
    gate = QUICK.model_copy(update={"approval": True})
    done, registry = shelf.register(2, gate)
    assert (done.decision, done.aliases, shelf.champion()) == ("waiting", ["candidate"], "1")
    model = next(m for m in Pipeline(shelf.file, ["stages.stage3.seed=2"]).models if m.name == "stage3")
    assert registry.approve(model, gate, "Li Wei").aliases == ["candidate", "champion"]
    assert shelf.home.promotions.read_text().count("approved by Li Wei") == 1


def test_a_persons_no_is_remembered(shelf: Shelf) -> None:
    shelf.register(1)
    gate = QUICK.model_copy(update={"approval": True})
    done, registry = shelf.register(2, gate)
    registry.reject(done, "Li Wei")
    assert shelf.offer(2, gate).decision == "withheld"
    assert shelf.offer(2).decision == "withheld"
    assert (shelf.states()["2"], shelf.champion()) == ("rejected", "1")
    model = next(m for m in Pipeline(shelf.file, ["stages.stage3.seed=2"]).models if m.name == "stage3")
    assert registry.approve(model, gate, "too late").decision == "withheld"


def test_a_yes_that_comes_late_is_judged_by_what_holds_then(shelf: Shelf) -> None:
    shelf.register(1)
    gate = QUICK.model_copy(update={"approval": True})
    _, registry = shelf.register(2, gate, facts={"heldout_loss": 1.9})
    shelf.register(3, facts={"heldout_loss": 1.5})
    model = next(m for m in Pipeline(shelf.file, ["stages.stage3.seed=2"]).models if m.name == "stage3")
    late = registry.approve(model, gate, "Li Wei")
    assert late.decision == "refused"
    assert "heldout_loss: 1.9000, champion v3 1.5000" in late.reason
    assert shelf.champion() == "3"


def test_concurrent_promotions_end_in_the_better_champion(shelf: Shelf) -> None:
    """Judged side by side against version 1 alone, the worse one could be promoted last."""
    shelf.register(1)
    waiting = QUICK.model_copy(update={"approval": True})
    shelf.register(2, waiting, facts={"heldout_loss": 1.5})
    shelf.register(3, waiting, facts={"heldout_loss": 1.9})
    with ThreadPoolExecutor(2) as pool:
        done = {seed: pool.submit(shelf.offer, seed) for seed in (2, 3)}
    assert done[2].result().decision == "promoted"
    assert shelf.champion() == "2"
    assert [state for state in shelf.states().values() if state == "promoted"] == ["promoted"]


@pytest.mark.parametrize("lost", ["loss", "evaluation", "evaluation's files"])
def test_a_champion_without_its_numbers_is_not_passed_over(shelf: Shelf, lost: str) -> None:
    shelf.register(1)
    client = mlflow.MlflowClient(shelf.home.tracking_uri)
    tags = client.get_model_version(NAME, "1").tags
    if lost == "loss":
        client.delete_model_version_tag(NAME, "1", LOSS)
    elif lost == "evaluation":
        client.delete_model_version_tag(NAME, "1", EVALUATION)
    else:
        shutil.rmtree(tags[EVALUATION])
    done, _ = shelf.register(2)
    assert done.decision == "refused"
    missing = "has none to compare with" if lost == "loss" else "the evaluation of champion v1 or of the"
    assert missing in done.reason
    assert shelf.champion() == "1"


def test_a_rollback_passes_over_deleted_versions(shelf: Shelf) -> None:
    for seed in (1, 2):
        shelf.register(seed)
    _, registry = shelf.register(3)
    client = mlflow.MlflowClient(shelf.home.tracking_uri)
    client.delete_model_version(NAME, "2")
    assert registry.rollback(NAME, "worse answers") == ("3", "1")
    shelf.register(4)
    client.delete_model_version(NAME, "1")
    with pytest.raises(UserError, match=r"no champion before version 4; deleted: version 1$"):
        registry.rollback(NAME, "further")
    assert shelf.champion() == "4"


def test_a_damaged_row_of_the_log_is_named(shelf: Shelf) -> None:
    shelf.register(1)
    with shelf.home.promotions.open("a") as file:
        file.write('{"model": "openba-fl\0\0\n')
    with pytest.raises(UserError, match=r"promotions.jsonl: line 2 is damaged"):
        shelf.register(2)


def test_a_deleted_experiment_is_one_line(shelf: Shelf) -> None:
    shelf.register(1)
    client = mlflow.MlflowClient(shelf.home.tracking_uri)
    experiment = client.get_experiment_by_name("openba-small")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UserError, match=f"restore --experiment-id {experiment.experiment_id}"):
        shelf.offer(1)


@pytest.mark.timeout(90)  # MLflow's own patience would be minutes
def test_the_version_of_an_address_where_mlflow_is_down_is_one_line() -> None:
    address = f"http://me:hidden@127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match="models:/openba-flan@champion: ") as refused:
        version_of(address, "models:/openba-flan@champion")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("away", ["locked", "down"])
def test_mlflow_that_does_not_answer_is_one_line_within_seconds(
    shelf: Shelf, away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.register(1)
    with contextlib.ExitStack() as stack:
        if away == "locked":
            holder = stack.enter_context(
                contextlib.closing(sqlite3.connect(shelf.home.root / "mlflow.db", isolation_level=None))
            )
            holder.execute("BEGIN EXCLUSIVE")
        else:
            address = f"127.0.0.1:{free_port()}"
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hidden@{address}")
        began = time.monotonic()
        with pytest.raises(UserError) as refused:
            shelf.offer(1)
        assert time.monotonic() - began < 60
    line = str(refused.value)
    assert "\n" not in line
    assert "hidden" not in line
    assert ("database is locked" if away == "locked" else address) in line
