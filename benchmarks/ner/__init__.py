"""Group `ner`: a model of 4M parameters learns the paper's NER task on a CPU, by our recipes and trainer.

Needs MIT's and CrossNER's files beside the repository (`../shared`). What is trained on are the training
splits; the labels of test sentences are read by the scoring alone. Times are the workers' processor time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from benchmarks.figure import ROOT, Figure
from benchmarks.ner import augment
from openba.config import load
from openba.data.sources import read
from openba.data.tasks import render
from openba.recipes.data import TaskRecipe

SHARED = ROOT.parent / "shared" / "data"
HERE = Path(__file__).parent
DOMAINS = ("restaurant", "movie")
"""Of MIT's, which are trained on."""
SETS = {
    "mit-restaurant": "ner_mit/restaurant",
    "mit-movie": "ner_mit/movie_trivia10k13",
    "crossner-music": "ner_crossner/music",
    "crossner-politics": "ner_crossner/politics",
    "crossner-science": "ner_crossner/science",
}


def figures() -> Iterator[Figure]:
    """Train and evaluate in a temporary folder, or go on in the one that OPENBA_NER_FOLDER names."""
    if not SHARED.exists():
        print("ner: no ../shared/data: nothing to measure", file=sys.stderr)
        return
    if named := os.environ.get("OPENBA_NER_FOLDER"):
        yield from _measured(Path(named))
        return
    with tempfile.TemporaryDirectory(prefix="openba-ner-") as folder:
        yield from _measured(Path(folder))


def _measured(folder: Path) -> Iterator[Figure]:
    prepare(folder)
    command = [str(Path(sys.executable).with_name("openba")), "run", str(HERE / "pipeline.yaml"), "--until"]
    seconds = _run([*command, "ner-small"], folder)
    _run([*command, "evaluate-ner-small"], folder)
    facts = {step: _facts(folder, step) for step in ("stage1", "stage2", "stage3", "ner-small")}
    results = _facts(folder, "evaluate-ner-small")["benchmarks"]
    scores = {name: results[f"ner-{name}"]["scores"]["entity_f1"] for name in SETS}
    yield Figure("ner/parameters", facts["ner-small"]["parameters"], "", 30e6)
    if seconds:  # nothing was trained before
        yield Figure("ner/processor_minutes_of_two_cores", seconds / 60, "min", 60)
    yield Figure("ner/training_minutes", sum(f["training_seconds"] for f in facts.values()) / 60, "min", 30)
    for name, score in scores.items():
        yield Figure(f"ner/{name}_strict_f1", score, "%")
    yield Figure(
        "ner/mit_average_f1", (scores["mit-restaurant"] + scores["mit-movie"]) / 2, "%", 30, "higher"
    )


def prepare(folder: Path) -> None:
    """Link the data sets, write what is trained on, and its sentences as prompts with their answers."""
    sets = folder / "data" / "eval" / "ner"
    sets.mkdir(parents=True, exist_ok=True)
    for name, place in SETS.items():
        if not (sets / name).exists():
            (sets / name).symlink_to(SHARED / place)
    own = folder / "data" / "ner"
    if (own / "sentences.jsonl").exists():  # another time of writing would be another source
        return
    parts = ("train", "valid")
    trained = {name: {part: sets / f"mit-{name}" / f"{part}.jsonl" for part in parts} for name in DOMAINS}
    augment.write(own, trained)
    with (own / "sentences.jsonl").open("w", encoding="utf-8") as file:
        for name in DOMAINS:
            recipe = load(HERE / f"{name}.yaml", TaskRecipe)
            path = str(sets / f"mit-{name}" / "*.jsonl")
            recipe = recipe.model_copy(update={"source": recipe.source.model_copy(update={"path": path})})
            documents = pa.Table.from_batches(read(name, recipe.source))
            for row in render(recipe, documents, name).train.select(["input", "target"]).to_pylist():
                file.write(json.dumps({"text": f"{row['input']}\n{row['target']}"}) + "\n")


def _run(command: list[str], folder: Path) -> float:
    """Run to the end; processor seconds of the training workers."""
    environment = os.environ | {"OPENBA_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    spent: dict[int, float] = {}
    with (folder / "openba.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                try:
                    if "RayTrainWorker" in " ".join(child.cmdline()):
                        spent[child.pid] = sum(child.cpu_times()[:2])
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            time.sleep(1)
    if process.returncode:
        raise RuntimeError(
            f"{' '.join(command)} ended with {process.returncode}; see {folder / 'openba.log'}"
        )
    return sum(spent.values())


def _facts(folder: Path, step: str) -> Any:
    manifest = next((folder / "home").glob(f"store/{step}/*/manifest.json"))
    return json.loads(manifest.read_text(encoding="utf-8"))["facts"]
