"""Group `ner`: a model of 4M parameters learns the paper's NER task on a CPU, with our recipes and trainer.

Needs MIT's and CrossNER's files beside the repository (`../shared`). Training data are the training splits;
the labels of test sentences are read by the scoring only. Times are the workers' processor time.
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
from openba.data.labelled import render
from openba.data.sources import read
from openba.recipes.data import TaskRecipe

SHARED_DATA = ROOT.parent / "shared" / "data"
CONFIG_FOLDER = Path(__file__).parent
TRAINED_DOMAINS = ("restaurant", "movie")
"""Domains of MIT's sets whose training splits are used."""
SETS = {
    "mit-restaurant": "ner_mit/restaurant",
    "mit-movie": "ner_mit/movie_trivia10k13",
    "crossner-music": "ner_crossner/music",
    "crossner-politics": "ner_crossner/politics",
    "crossner-science": "ner_crossner/science",
}


def figures() -> Iterator[Figure]:
    """Train and evaluate in a temporary folder, or continue in the folder named by OPENBA_NER_FOLDER."""
    if not SHARED_DATA.exists():
        print("ner: no ../shared/data: nothing to measure", file=sys.stderr)
        return
    if folder_name := os.environ.get("OPENBA_NER_FOLDER"):
        yield from _measure(Path(folder_name))
        return
    with tempfile.TemporaryDirectory(prefix="openba-ner-") as folder:
        yield from _measure(Path(folder))


def _measure(folder: Path) -> Iterator[Figure]:
    prepare(folder)
    openba = str(Path(sys.executable).with_name("openba"))
    command = [openba, "run", str(CONFIG_FOLDER / "pipeline.yaml"), "--until"]
    processor_seconds = _run([*command, "ner-small"], folder)
    _run([*command, "evaluate-ner-small"], folder)
    facts_by_step = {step: _read_facts(folder, step) for step in ("stage1", "stage2", "stage3", "ner-small")}
    results = _read_facts(folder, "evaluate-ner-small")["benchmarks"]
    f1_scores = {name: results[f"ner-{name}"]["scores"]["entity_f1"] for name in SETS}
    yield Figure("ner/parameters", facts_by_step["ner-small"]["parameters"], "", 30e6)
    # 0 if the folder of an earlier run was given and nothing had to be trained.
    if processor_seconds:
        yield Figure("ner/processor_minutes_of_two_cores", processor_seconds / 60, "min", 60)
    training_seconds = sum(facts["training_seconds"] for facts in facts_by_step.values())
    yield Figure("ner/training_minutes", training_seconds / 60, "min", 30)
    for name, f1_score in f1_scores.items():
        yield Figure(f"ner/{name}_strict_f1", f1_score, "%")
    mit_average = (f1_scores["mit-restaurant"] + f1_scores["mit-movie"]) / 2
    yield Figure("ner/mit_average_f1", mit_average, "%", 30, "higher")


def prepare(folder: Path) -> None:
    """Link the data sets; write the training data, and their sentences as prompts with answers."""
    set_folder = folder / "data" / "eval" / "ner"
    set_folder.mkdir(parents=True, exist_ok=True)
    for name, path in SETS.items():
        if not (set_folder / name).exists():
            (set_folder / name).symlink_to(SHARED_DATA / path)
    training_folder = folder / "data" / "ner"
    sentences_file = training_folder / "sentences.jsonl"
    # Written once: a source's identity includes the files' times, and another one would be built anew.
    if sentences_file.exists():
        return
    split_names = ("train", "valid")
    splits = {
        domain: {split: set_folder / f"mit-{domain}" / f"{split}.jsonl" for split in split_names}
        for domain in TRAINED_DOMAINS
    }
    augment.write(training_folder, splits)
    with sentences_file.open("w", encoding="utf-8") as file:
        for domain in TRAINED_DOMAINS:
            recipe = load(CONFIG_FOLDER / f"{domain}.yaml", TaskRecipe)
            path = str(set_folder / f"mit-{domain}" / "*.jsonl")
            recipe = recipe.model_copy(update={"source": recipe.source.model_copy(update={"path": path})})
            documents = pa.Table.from_batches(read(domain, recipe.source))
            pairs = render(recipe, documents, domain).train.select(["input", "target"])
            for pair in pairs.to_pylist():
                file.write(json.dumps({"text": f"{pair['input']}\n{pair['target']}"}) + "\n")


def _run(command: list[str], folder: Path) -> float:
    """Run a command to its end; returns the processor seconds of its training workers."""
    environment = os.environ | {"OPENBA_HOME": str(folder / "home")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    log_file = folder / "openba.log"
    worker_seconds: dict[int, float] = {}
    with log_file.open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                try:
                    if "RayTrainWorker" in " ".join(child.cmdline()):
                        worker_seconds[child.pid] = sum(child.cpu_times()[:2])
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
            time.sleep(1)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; see {log_file}")
    return sum(worker_seconds.values())


def _read_facts(folder: Path, step: str) -> dict[str, Any]:  # facts differ by step
    manifest = next((folder / "home").glob(f"store/{step}/*/manifest.json"))
    return json.loads(manifest.read_text(encoding="utf-8"))["facts"]
