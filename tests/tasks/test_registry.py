"""A real MLflow registry: what is refused, who is asked, what is noted, and what a champion is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openba.artifacts import Build, Step, Store, materialize
from openba.config import CONFIGS, load
from openba.data.instruct import encode_input
from openba.data.tokenizer import Tokenizer
from openba.errors import UserError
from openba.evaluate.run import SAMPLES, judged
from openba.graph import EVALUATE, TRAIN, Pipeline
from openba.home import Home
from openba.model.files import load_model
from openba.model.generate import generate
from openba.model.reload import logits_apart
from openba.recipes.pipeline import GateConfig
from tasks.registry import CARD, Registration, Registry
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
        graph = Pipeline(self.file, [f"stage3.seed={seed}", *overrides])
        for step in graph.steps.values():
            materialize(step, self.store, None, lambda step, build: self._build(step, build, seed, quality))
        tracking = Tracking(self.home, "small", "")
        tracking.begin(graph.step("stage3"))
        registry = Registry(tracking, self.store, self.home.promotions, graph)
        model = next(model for model in graph.models if model.name == "stage3")
        return registry.register(model, gate), registry

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
                dict.fromkeys(SAMPLES.names)
                | {"id": str(i), "category": "", "input": "?", "target": "a", "references": ["a"],
                   "output": "a" if i < right else "b", "attempts": [],
                   "cut": False, "unfinished": False, "examples_left_out": 0}
                for i in range(ITEMS)
            ]  # fmt: skip
            result = judged(benchmark, items, 1)
            pq.write_table(pa.Table.from_pylist(items, SAMPLES), build.out / f"{name}.parquet")
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


@pytest.mark.parametrize(
    ("quality", "overrides", "line"),
    [
        ({"facts": {"heldout_loss": 2.1}}, (), "heldout_loss: 2.1000, champion v1 2.0000, 0 may be lost"),
        ({"facts": {"heldout_loss": float("nan")}}, (), "heldout_loss: nan is no finite number"),
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
    assert len(shelf.home.promotions.read_text().splitlines()) == 1


def test_a_contaminated_benchmark_refuses(shelf: Shelf) -> None:
    done, _ = shelf.register(1, QUICK, dirty=5)
    assert done.reason == "contamination: bbc-topic: 5 of 40 records stand in the training data"
    assert shelf.champion() == "None"


def test_an_export_that_computes_something_else_refuses(shelf: Shelf) -> None:
    """The code that travels with the weights is changed after it was written; the weights are not."""
    done, _ = shelf.register(1, QUICK)
    path = Path(done.uri) / "model" / "modeling_openba.py"
    path.write_text(path.read_text().replace("else self.logits(hidden)", "else self.logits(hidden / 2)"))
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
    assert registry.rollback(NAME, "worse answers") == ("2", "1")
    assert shelf.champion() == "1"
    log = shelf.home.promotions.read_bytes()
    assert log.startswith(first), "the log is only appended to"
    rows = [json.loads(line) for line in log.splitlines()]
    assert [row["version"] for row in rows] == ["1", "2", "1"]
    assert rows[2]["reason"] == "rollback from version 2: worse answers"
    with pytest.raises(UserError, match="no champion before version 1"):
        registry.rollback(NAME, "further")


def test_a_person_is_asked_before_the_champion_moves(shelf: Shelf) -> None:
    shelf.register(1)
    done, registry = shelf.register(2, QUICK.model_copy(update={"approval": True}))
    assert (done.decision, done.aliases, shelf.champion()) == ("waiting", ["candidate"], "1")
    assert registry.promote(done, "Li Wei").aliases == ["candidate", "champion"]
    assert shelf.home.promotions.read_text().splitlines()[-1].count("approved by Li Wei") == 1
