"""Benchmarks on a model's folder, without a pipeline: `openba eval`.

Owns which benchmarks a name or suite means, where their data lies, what is done again and what is not,
and `results.json`. A benchmark that cannot be run is told with its reason, and the suite goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openba.artifacts import Build
from openba.config import CONFIGS, Config, ConfigError, load
from openba.data import tasks
from openba.data.sources import task_files, task_state
from openba.errors import UserError
from openba.evaluate.results import RESULTS
from openba.evaluate.run import evaluated
from openba.evaluate.shards import Mapper, Part, here
from openba.model.files import load_architecture
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import SCORING_VERSION, BenchmarkRecipe, EvaluateStep, SuiteRecipe

DATA = "data/eval/"
"""What the paths of the paper's benchmarks begin with."""

Result = dict[str, Any]


def chosen(
    suites: list[str], names: list[str], data: Path | None = None, overrides: list[str] | None = None
) -> dict[str, BenchmarkRecipe]:
    """Benchmarks of suites and by name or YAML file.

    Args:
        suites: names of configs/suite.
        names: names of configs/benchmark, of its folders paper and expert, or files.
        data: the folder that stands for `data/eval` in paths.
        overrides: `key.path=value`, for every benchmark.

    Raises:
        ConfigError: there is no such file, it is no benchmark, or two different ones have one name.
    """
    recipes: dict[str, BenchmarkRecipe] = {}
    origins: dict[str, str] = {}

    def add(name: str, recipe: BenchmarkRecipe, origin: str) -> None:
        if name in recipes and recipes[name] != recipe:
            raise ConfigError(
                f"{origin}: another benchmark {name!r} is already chosen ({origins[name]}); results are kept "
                "by this name, so rename one of the files"
            )
        recipes[name] = recipe
        origins[name] = origin

    for suite in suites:
        for name, recipe in load(_file("suite", suite), SuiteRecipe).benchmarks.items():
            add(name, recipe, f"suite {suite}")
    for name in names:
        file = _file("benchmark", name)
        add(file.stem, Config.read(file).validate(BenchmarkRecipe), str(file))
    return {name: _changed(recipe, data, overrides or []) for name, recipe in recipes.items()}


def run_suite(
    model: Path,
    benchmarks: dict[str, BenchmarkRecipe],
    out: Path,
    tell: Callable[[str, Result], None] = lambda name, result: None,
    prefix: str = "S",
    mapper: Mapper = here,
) -> dict[str, Result]:
    """Evaluate; benchmarks done before, on the same weights and data, stay.

    Returns:
        Benchmark -> result, or `{"error": line}`. `NAME.json` and `NAME.parquet` lie in `out`, and
        `results.json` has all.

    Raises:
        UserError: the model cannot be loaded.
    """
    out.mkdir(parents=True, exist_ok=True)
    length = load_architecture(model).max_seq_length
    weights = folder_digests(model)
    results: dict[str, Result] = {}

    def done(name: str, result: Result) -> None:
        results[name] = result
        tell(name, result)
        kept = {name: results[name] for name in benchmarks if name in results}
        _write(out / RESULTS, {"model": str(model), "prefix": prefix, "benchmarks": kept})

    parts: dict[str, Part] = {}
    for name, benchmark in benchmarks.items():
        step = EvaluateStep.model_validate(
            {"benchmarks": {name: benchmark}, "encoder_length": length, "prefix": prefix}
        )
        try:
            found = _prepared(weights, name, step, out)
        except UserError as error:
            found = {"error": str(error)}
        if isinstance(found, Part):
            parts[name] = found
        else:
            done(name, found)
    for name, result in evaluated(model, list(parts.values()), mapper):
        done(
            name, {"error": str(result)} if isinstance(result, UserError) else _kept(parts[name], out, result)
        )
    return {name: results[name] for name in benchmarks}


def _prepared(weights: dict[str, str], name: str, step: EvaluateStep, out: Path) -> Part | Result:
    """A benchmark with its records rendered, or its result on the same recipe, weights and data.

    The key is made of contents alone: two models of one shape differ in nothing else (lm-eval issue 4063).
    """
    benchmark = step.benchmarks[name]
    state = {
        "scoring": SCORING_VERSION,
        "step": step.model_dump(mode="json"),
        "model": weights,
        "source": task_state(benchmark.task),
        "data": {file: digest_of(path) for file, path in task_files(benchmark.task).items()},
        "models": {metric: folder_digests(Path(folder)) for metric, folder in benchmark.models.items()},
    }
    key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
    path, work = out / f"{name}.json", out / "work" / f"{name}-{key}"
    if path.is_file() and (known := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
        return dict(known["result"])
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "done").exists():
        tasks.build(Build(work, TaskStep(name=name, task=step.benchmarks[name].task), {}))
        (work / "done").touch()
    return Part(name, step, work, work)


def _kept(part: Part, out: Path, result: Result) -> Result:
    """The result, its files moved to `out` and the rest of its work taken away."""
    (part.out / f"{part.name}.parquet").replace(out / f"{part.name}.parquet")
    _write(out / f"{part.name}.json", {"key": part.out.name.rpartition("-")[2], "result": result})
    for left in part.out.iterdir():
        left.unlink()
    part.out.rmdir()
    return result


def folder_digests(folder: Path) -> dict[str, str]:
    """Name -> digest of each file of a model's folder: weights, configuration and tokenizer.

    Folders in it, hidden files and Markdown, such as a model card, say nothing about its answers.
    """
    files = (path for path in sorted(folder.glob("*")) if path.is_file())
    return {f.name: digest_of(f) for f in files if f.suffix != ".md" and not f.name.startswith(".")}


def digest_of(path: Path) -> str:
    """SHA-256 of a file's contents, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed(recipe: BenchmarkRecipe, data: Path | None, overrides: list[str]) -> BenchmarkRecipe:
    config = Config(Path("--set"))
    config.data = recipe.model_dump(mode="json", exclude_unset=True)
    task = config.data["task"]
    places = (task["source"], task.get("beside", {}), config.data.get("models", {}))
    for place in places if data is not None else ():
        for key, path in place.items():
            if str(path).startswith(DATA):
                place[key] = str(data / path.removeprefix(DATA))
    for text in overrides:
        config.override(text)
    return config.validate(BenchmarkRecipe)


def _file(kind: str, name: str) -> Path:
    shipped = [CONFIGS / kind / folder / f"{name}.yaml" for folder in ("", "paper", "expert")]
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
