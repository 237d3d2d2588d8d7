"""Evaluation of a model's folder on benchmarks without a pipeline: `openba eval`.

Owns the look-up of benchmarks and suites by name, the location of their data, the reuse of earlier results,
and `results.json`. A benchmark that cannot be run is reported with its reason, and the suite continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from openba import durable
from openba.artifacts import Build
from openba.config import CONFIGS, Config, ConfigError, load
from openba.data import labelled
from openba.data.sources import task_files, task_state
from openba.errors import UserError, name_hint
from openba.evaluate.results import RESULTS, BenchmarkResult
from openba.evaluate.run import evaluate_benchmarks
from openba.evaluate.shards import BenchmarkEvaluation, ShardMapper, map_in_process
from openba.model.files import load_architecture
from openba.recipes.data import TaskStep
from openba.recipes.evaluate import SCORING_VERSION, BenchmarkRecipe, EvaluateStep, SuiteRecipe

DEFAULT_DATA_FOLDER = "data/eval/"
"""Prefix of the data paths in the paper's benchmarks, replaced by `--data`."""


def select_benchmarks(
    suites: list[str], names: list[str], data: Path | None = None, overrides: list[str] | None = None
) -> dict[str, BenchmarkRecipe]:
    """Return benchmarks of suites and by name or YAML file.

    Args:
        suites: names of configs/suite.
        names: names of configs/benchmark, of its folders paper and expert, or files.
        data: folder to use in place of `data/eval` in paths.
        overrides: `key.path=value`, for every benchmark.

    Raises:
        ConfigError: a file is missing or no benchmark, or two different benchmarks have one name.
    """
    recipes: dict[str, BenchmarkRecipe] = {}
    origins: dict[str, str] = {}

    def add_benchmark(name: str, recipe: BenchmarkRecipe, origin: str) -> None:
        if name in recipes and recipes[name] != recipe:
            raise ConfigError(
                f"{origin}: another benchmark {name!r} is already chosen ({origins[name]}); results are kept "
                "by this name, so rename one of the files"
            )
        recipes[name] = recipe
        origins[name] = origin

    for suite_name in suites:
        for name, recipe in load(_config_file("suite", suite_name), SuiteRecipe).benchmarks.items():
            add_benchmark(name, recipe, f"suite {suite_name}")
    for name in names:
        config_file = _config_file("benchmark", name)
        recipe = Config.read(config_file).validate(BenchmarkRecipe)
        add_benchmark(config_file.stem, recipe, str(config_file))
    return {name: _apply_overrides(recipe, data, overrides or []) for name, recipe in recipes.items()}


def run_suite(
    model_folder: Path,
    benchmarks: dict[str, BenchmarkRecipe],
    out_folder: Path,
    report: Callable[[str, BenchmarkResult], None] = lambda name, result: None,
    mode: str = "S",
    mapper: ShardMapper = map_in_process,
) -> dict[str, BenchmarkResult]:
    """Evaluate; reuses results of earlier runs on the same weights and data.

    Args:
        model_folder: folder of an exported model.
        benchmarks: name -> benchmark.
        out_folder: gets `NAME.json` and `NAME.parquet` of each benchmark, and `results.json` with all.
        report: called with each benchmark's name and result as soon as it has one.
        mode: R, S or X, the mode token of the prompts.
        mapper: where shards are answered.

    Returns:
        Benchmark -> result, or `{"error": line}`.

    Raises:
        UserError: the model cannot be loaded.
    """
    out_folder.mkdir(parents=True, exist_ok=True)
    encoder_length = load_architecture(model_folder).max_seq_length
    weight_digests = folder_digests(model_folder)
    results: dict[str, BenchmarkResult] = {}

    def add_result(name: str, result: BenchmarkResult) -> None:
        results[name] = result
        report(name, result)
        # Written after each benchmark, in the order asked for, so that an interrupted run has its results.
        ordered_results = {name: results[name] for name in benchmarks if name in results}
        _write_json(
            out_folder / RESULTS, {"model": str(model_folder), "prefix": mode, "benchmarks": ordered_results}
        )

    evaluations: dict[str, BenchmarkEvaluation] = {}
    for name, benchmark in benchmarks.items():
        step = EvaluateStep.model_validate(
            {"benchmarks": {name: benchmark}, "encoder_length": encoder_length, "prefix": mode}
        )
        try:
            prepared = _prepare(weight_digests, name, step, out_folder)
        except UserError as error:
            prepared = {"error": str(error)}
        if isinstance(prepared, BenchmarkEvaluation):
            evaluations[name] = prepared
        else:
            add_result(name, prepared)
    for name, result in evaluate_benchmarks(model_folder, list(evaluations.values()), mapper):
        if isinstance(result, UserError):
            add_result(name, {"error": str(result)})
        else:
            _publish(evaluations[name], out_folder, result)
            add_result(name, result)
    return {name: results[name] for name in benchmarks}


def _prepare(
    weight_digests: dict[str, str], name: str, step: EvaluateStep, out_folder: Path
) -> BenchmarkEvaluation | BenchmarkResult:
    """Render a benchmark's records, or return its result on the same recipe, weights and data."""
    benchmark = step.benchmarks[name]
    # Contents only: two models of one architecture differ in nothing else (lm-eval issue 4063).
    state = {
        "scoring": SCORING_VERSION,
        "step": step.model_dump(mode="json"),
        "model": weight_digests,
        "source": task_state(benchmark.task),
        "data": {file: durable.sha256(path) for file, path in task_files(benchmark.task).items()},
        "models": {metric: folder_digests(Path(folder)) for metric, folder in benchmark.models.items()},
    }
    # Twelve digits are enough for one folder of results.
    result_key = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]
    result_file = out_folder / f"{name}.json"
    if result_file.is_file():
        earlier = json.loads(result_file.read_text(encoding="utf-8"))
        if earlier["key"] == result_key:
            return dict(earlier["result"])
    work_folder = out_folder / "work" / f"{name}-{result_key}"
    work_folder.mkdir(parents=True, exist_ok=True)
    if not (work_folder / "done").exists():
        # The marker is written after the records, so that an interrupted rendering starts again.
        labelled.build(Build(work_folder, TaskStep(name=name, task=benchmark.task), {}))
        (work_folder / "done").touch()
    return BenchmarkEvaluation(name, step, work_folder, work_folder)


def _publish(evaluation: BenchmarkEvaluation, out_folder: Path, result: BenchmarkResult) -> None:
    """Move a benchmark's answers to `out_folder`, write its result there, and delete its work folder."""
    work_folder = evaluation.out
    answers_file = f"{evaluation.name}.parquet"
    (work_folder / answers_file).replace(out_folder / answers_file)
    result_key = work_folder.name.rpartition("-")[2]
    _write_json(out_folder / f"{evaluation.name}.json", {"key": result_key, "result": result})
    for work_file in work_folder.iterdir():
        work_file.unlink()
    work_folder.rmdir()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return name -> digest of each file of a model's folder: weights, configuration and tokenizer.

    Subfolders, hidden files and Markdown, such as a model card, do not change its answers and do not count.
    """
    files = (path for path in sorted(folder.glob("*")) if path.is_file())
    return {
        path.name: durable.sha256(path)
        for path in files
        if path.suffix != ".md" and not path.name.startswith(".")
    }


def _apply_overrides(recipe: BenchmarkRecipe, data: Path | None, overrides: list[str]) -> BenchmarkRecipe:
    config = Config(Path("--set"))
    config.data = recipe.model_dump(mode="json", exclude_unset=True)
    if data is not None:
        task = config.data["task"]
        for section in (task["source"], task.get("beside", {}), config.data.get("models", {})):
            for key, path in section.items():
                if str(path).startswith(DEFAULT_DATA_FOLDER):
                    section[key] = str(data / path.removeprefix(DEFAULT_DATA_FOLDER))
    for override in overrides:
        config.override(override)
    return config.validate(BenchmarkRecipe)


def _config_file(config_kind: str, name: str) -> Path:
    """Return the YAML file of a suite or benchmark: the user's own path, or a shipped one by its name."""
    # The user's own file comes first, so that a shipped benchmark can be replaced by one of the same name.
    shipped_files = [CONFIGS / config_kind / folder / f"{name}.yaml" for folder in ("", "paper", "expert")]
    user_files = [Path(name)] if Path(name).suffix in (".yaml", ".yml") else []
    for path in (*user_files, *shipped_files):
        if path.is_file():
            return path
    shipped_names = sorted(path.stem for path in (CONFIGS / config_kind).rglob("*.yaml"))
    raise ConfigError(
        f"{name}: no such {config_kind}{name_hint(name, shipped_names)}; give a YAML file or one of: "
        f"{', '.join(shipped_names)}"
    )


def _write_json(path: Path, value: object) -> None:
    durable.write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))
