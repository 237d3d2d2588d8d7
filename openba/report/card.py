"""A model card and `.eval_results` in Hugging Face's form, from an evaluation's results.

Owns which fact goes where; the card's metadata are huggingface_hub's. It invents nothing: a benchmark that
was not run is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

_TASKS = {"letters": "question-answering", "choice": "question-answering", "generate": "text-generation",
          "likelihood": "text-generation"}  # fmt: skip
FOLDER = ".eval_results"


@dataclass(frozen=True)
class Made:
    """How a model was made, where that is known."""

    licences: Mapping[str, str]
    """What it was trained on -> licence; `weights` is the licence of the model itself."""
    kwh: float
    tco2eq: float
    how: str
    """Where both figures are from."""


def model_card(name: str, results: Mapping[str, Any], made: Made | None = None) -> str:
    """The card as Markdown with metadata.

    Args:
        name: the model's.
        results: benchmark -> result of `openba eval`; those with an `error` are left out.
        made: what its registry knows of its training.
    """
    rows = [(key, value) for key, value in results.items() if "error" not in value]
    found = [
        EvalResult(
            task_type=_TASKS[result["method"]],
            dataset_type=benchmark,
            dataset_name=benchmark,
            metric_type=metric,
            metric_name=f"{metric} ({result['method']}, n={result['n']}, version {result['version']})",
            metric_value=value,
        )
        for benchmark, result in rows
        for metric, value, _ in _numbers(result)
    ]
    data = ModelCardData(
        language=["zh", "en"], library_name="transformers", tags=["openba", "encoder-decoder"],
        model_name=name, eval_results=found or None, license=made.licences["weights"] if made else None,
        co2_eq_emissions={"emissions": made.tco2eq * 1e6, "source": made.how} if made else None,
    )  # fmt: skip
    heads = ("benchmark", "method", "metric", "score ± standard error", "n", "licence of the data")
    lines = [
        (benchmark, result["method"], metric, f"{value:.2f} ± {error:.2f}", result["n"], result["licence"])
        for benchmark, result in rows
        for metric, value, error in _numbers(result)
    ]
    table = "\n".join(f"| {' | '.join(map(str, line))} |" for line in (heads, ["---"] * len(heads), *lines))
    evaluation = f"## Evaluation\n\n{table if lines else 'Not run.'}\n"
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{evaluation}{_made(made) if made else ''}"


def _made(made: Made) -> str:
    """Licences and cost, for people."""
    rows = "\n".join(
        f"| {name} | {licence} |" for name, licence in made.licences.items() if name != "weights"
    )
    weights = made.licences["weights"] or "none stated"
    return (
        f"\n## Licences\n\nWeights: {weights}. It was made from:\n\n"
        f"| data | licence |\n| --- | --- |\n{rows}\n"
        f"\n## Energy\n\n{made.kwh:.3g} kWh, {made.tco2eq:.3g} t CO2eq ({made.how}).\n"
    )


def write_card(out: Path, name: str, results: Mapping[str, Any]) -> list[Path]:
    """Write `README.md` and a YAML file a benchmark below `.eval_results`; returns the files."""
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    written = [out / "README.md"]
    written[0].write_text(model_card(name, results), encoding="utf-8")
    for benchmark, result in results.items():
        if "error" in result:
            continue
        entries = [
            {"dataset": {"id": benchmark, "task_id": metric}, "value": value, "notes": _note(result, error)}
            for metric, value, error in _numbers(result)
        ]
        written.append(out / FOLDER / f"{benchmark}.yaml")
        written[-1].write_text(yaml.safe_dump(entries, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return written


def _numbers(result: Mapping[str, Any]) -> list[tuple[str, float, float]]:
    """(metric, score, standard error) of the result's scores."""
    scores = {key: value for key, value in result["scores"].items() if isinstance(value, float)}
    return [
        (key, value, scores.get(f"{key}_stderr", 0.0))
        for key, value in scores.items()
        if not key.endswith(("_stderr", "_unreadable"))
    ]


def _note(result: Mapping[str, Any], error: float) -> str:
    return (
        f"method {result['method']}, version {result['version']}, n={result['n']}, standard error {error:.2f}"
    )
