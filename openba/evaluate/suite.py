"""Benchmarks on a model's folder, without a pipeline: `openba eval`.

Owns which benchmarks a name or suite means, where their data lies, what is done again and what is not,
and `results.json`. A benchmark that cannot be run is told with its reason, and the suite goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from openba.artifacts import Build
from openba.config import CONFIGS, Config, ConfigError, load
from openba.data import tasks
from openba.errors import UserError
from openba.evaluate.run import evaluate
from openba.model.files import load_model
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import BenchmarkRecipe, EvaluateStep, SuiteRecipe

DATA = "data/eval/"
"""What the paths of the paper's benchmarks begin with."""
RESULTS = "results.json"

Result = dict[str, Any]


def chosen(
    suites: list[str], names: list[str], data: Path | None = None, overrides: list[str] | None = None
) -> dict[str, BenchmarkRecipe]:
    """Benchmarks of suites and by name or YAML file.

    Args:
        suites: names of configs/suite.
        names: names of configs/benchmark, of its folder paper, or files.
        data: the folder that stands for `data/eval` in paths.
        overrides: `key.path=value`, for every benchmark.

    Raises:
        ConfigError: there is no such file, or it is no benchmark.
    """
    found: dict[str, BenchmarkRecipe] = {}
    for suite in suites:
        found |= load(_file("suite", suite), SuiteRecipe).benchmarks
    for name in names:
        file = _file("benchmark", name)
        found[file.stem] = Config.read(file).validate(BenchmarkRecipe)
    return {name: _changed(recipe, data, overrides or []) for name, recipe in found.items()}


def run_suite(
    model: Path,
    benchmarks: dict[str, BenchmarkRecipe],
    out: Path,
    tell: Callable[[str, Result], None] = lambda name, result: None,
    prefix: str = "S",
) -> dict[str, Result]:
    """Evaluate, one benchmark after the other; those done before, on the same weights and data, stay.

    Returns:
        Benchmark -> result, or `{"error": line}`. `NAME.json` and `NAME.parquet` lie in `out`, and
        `results.json` has all.

    Raises:
        UserError: the model cannot be loaded.
    """
    out.mkdir(parents=True, exist_ok=True)
    loaded, tokenizer = load_model(model)
    if torch.cuda.is_available():
        loaded = loaded.cuda()
    length = loaded.architecture.max_seq_length
    results: dict[str, Result] = {}
    for name, benchmark in benchmarks.items():
        step = EvaluateStep.model_validate(
            {"benchmarks": {name: benchmark}, "encoder_length": length, "prefix": prefix}
        )
        try:
            results[name] = _one(loaded, tokenizer, model, name, step, out)
        except UserError as error:
            results[name] = {"error": str(error)}
        tell(name, results[name])
        _write(out / RESULTS, {"model": str(model), "prefix": prefix, "benchmarks": results})
    return results


def read_results(folder: Path) -> dict[str, Any]:
    """`results.json` of an evaluation.

    Raises:
        UserError: it is not there.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{path}: no results; `openba eval MODEL --out {folder}` writes them")
    return json.loads(path.read_text(encoding="utf-8"))


def _one(loaded: Any, tokenizer: Any, model: Path, name: str, step: EvaluateStep, out: Path) -> Result:
    """A benchmark's result, from before where recipe, weights and data are those of then."""
    from openba.data.sources import outside_state

    state = [step.model_dump(mode="json"), outside_state(step.benchmarks[name].task.source), *_weights(model)]
    key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
    path, work = out / f"{name}.json", out / "work" / f"{name}-{key}"
    if path.is_file() and (known := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        return dict(known["result"])
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "done").exists():
        tasks.build(Build(work, TaskStep(name=name, task=step.benchmarks[name].task), {}))
        (work / "done").touch()
    result = evaluate(loaded, tokenizer, work, name, step, work)
    (work / f"{name}.parquet").replace(out / f"{name}.parquet")
    _write(path, {"key": key, "result": result})
    for left in work.iterdir():
        left.unlink()
    work.rmdir()
    return result


def _weights(model: Path) -> Iterator[list[Any]]:
    for file in sorted(model.glob("*.safetensors")):
        status = file.stat()
        yield [file.name, status.st_size, status.st_mtime_ns]


def _changed(recipe: BenchmarkRecipe, data: Path | None, overrides: list[str]) -> BenchmarkRecipe:
    config = Config(Path("--set"))
    config.data = recipe.model_dump(mode="json", exclude_unset=True)
    path = getattr(recipe.task.source, "path", "")
    if data is not None and path.startswith(DATA):
        config.data["task"]["source"]["path"] = str(data / path.removeprefix(DATA))
    for text in overrides:
        config.override(text)
    return config.validate(BenchmarkRecipe)


def _file(kind: str, name: str) -> Path:
    shipped = [CONFIGS / kind / f"{name}.yaml", CONFIGS / kind / "paper" / f"{name}.yaml"]
    own = [Path(name)] if Path(name).suffix in (".yaml", ".yml") else []
    for path in (*own, *shipped):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in (CONFIGS / kind).rglob("*.yaml")))
    raise ConfigError(f"{name}: no such {kind}; give a YAML file or one of: {known}")


def _write(path: Path, value: Any) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(path)
