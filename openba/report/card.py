"""Write a model card and `.eval_results` in Hugging Face's form, from an evaluation's results.

Owns which fact goes where; huggingface_hub writes the card's metadata. Benchmarks that were not run are left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData

from openba.json_types import JsonObject

# Task names of the hub. It has none for likelihood, which scores what a model would generate.
_TASKS = {"letters": "question-answering", "choice": "question-answering", "generate": "text-generation",
          "likelihood": "text-generation"}  # fmt: skip
FOLDER = ".eval_results"


@dataclass(frozen=True)
class Provenance:
    """Licences of a model and the energy of its training."""

    licences: Mapping[str, str]
    """Data set or model that it was made from -> licence; `weights` is the licence of the model itself."""
    kwh: float
    tco2eq: float
    method: str
    """How energy and carbon were determined."""


def model_card(name: str, results: Mapping[str, JsonObject], provenance: Provenance | None = None) -> str:
    """Return the card as Markdown with metadata.

    Args:
        name: of the model.
        results: benchmark -> result of `openba eval`; those with an `error` are left out.
        provenance: from the registry; None for a model that this project did not train.
    """
    rows = [(key, value) for key, value in results.items() if "error" not in value]
    card_results = [
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
        model_name=name, eval_results=card_results or None,
        license=provenance.licences["weights"] if provenance else None,
        # Hugging Face counts emissions in grams.
        co2_eq_emissions={"emissions": provenance.tco2eq * 1e6, "source": provenance.method}
        if provenance else None,
    )  # fmt: skip
    column_names = ("benchmark", "method", "metric", "score ± standard error", "n", "licence of the data")
    lines = [
        (benchmark, result["method"], metric, f"{value:.2f} ± {error:.2f}", result["n"], result["licence"])
        for benchmark, result in rows
        for metric, value, error in _numbers(result)
    ]
    table = "\n".join(
        f"| {' | '.join(map(str, line))} |" for line in (column_names, ["---"] * len(column_names), *lines)
    )
    provenance_text = _provenance_section(provenance) if provenance else ""
    evaluation = f"## Evaluation\n\n{table if lines else 'Not run.'}\n"
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{evaluation}{provenance_text}"


def _provenance_section(provenance: Provenance) -> str:
    """Return the sections on licences and energy."""
    rows = "\n".join(
        f"| {name} | {licence} |" for name, licence in provenance.licences.items() if name != "weights"
    )
    weights_licence = provenance.licences["weights"] or "none stated"
    return (
        f"\n## Licences\n\nWeights: {weights_licence}. It was made from:\n\n"
        f"| data | licence |\n| --- | --- |\n{rows}\n"
        f"\n## Energy\n\n{provenance.kwh:.3g} kWh, {provenance.tco2eq:.3g} t CO2eq ({provenance.method}).\n"
    )


def write_card(out: Path, name: str, results: Mapping[str, JsonObject]) -> list[Path]:
    """Write `README.md` and, below `.eval_results`, a YAML file per benchmark; return the files."""
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


def _numbers(result: JsonObject) -> list[tuple[str, float, float]]:
    """Return (metric, score, standard error) for each of the result's scores."""
    scores = {key: value for key, value in result["scores"].items() if isinstance(value, float)}
    return [
        (key, value, scores.get(f"{key}_stderr", 0.0))
        for key, value in scores.items()
        if not key.endswith(("_stderr", "_unreadable"))
    ]


def _note(result: JsonObject, error: float) -> str:
    return (
        f"method {result['method']}, version {result['version']}, n={result['n']}, standard error {error:.2f}"
    )
