"""The documentation says what is so: examples load, settings exist, figures are computed again."""

import json
import re
import shutil
import subprocess
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import TypeAdapter, ValidationError

import openba.graph
from flows.cli import app
from openba.accounting.flops import parameters, run_flops, train_flops
from openba.accounting.plan import plan_training
from openba.artifacts import Kind, Store
from openba.config import CONFIGS, Config
from openba.data.labelled import render
from openba.data.sources import read
from openba.graph import Pipeline, find_pipeline
from openba.plan import MT5_IDS, plan
from openba.recipes.data import SourceRecipe, TaskRecipe
from openba.recipes.evaluate import BenchmarkRecipe
from openba.recipes.model import ModelRecipe
from openba.recipes.pipeline import ExpertConfig, PipelineConfig
from openba.recipes.runtime import PipelineRuntime
from openba.units import human

ROOT = CONFIGS.parent
PAGES = [
    path for pattern in ("README*.md", "docs/**/*.md", "infra/**/*.md") for path in sorted(ROOT.glob(pattern))
]
EXAMPLE = re.compile(r"^```yaml\n# (configs/\S+\.yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^```jsonl (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPES: dict[str, Any] = {
    "source": SourceRecipe,
    "task": TaskRecipe,
    "benchmark": BenchmarkRecipe,
    "my-experts": ExpertConfig,
    "model": ModelRecipe,
    "runtime": PipelineRuntime,
    "pipeline": PipelineConfig,
}
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
EXAMPLES = {path: body for text in TEXT.values() for path, body in EXAMPLE.findall(text)}


def page(name: str) -> str:
    return TEXT[ROOT / "docs" / name]


def ignored(name: str) -> bool:
    """Whether git ignores the file: secrets and backups are made by their owners."""
    return not subprocess.run(["git", "-C", ROOT, "check-ignore", "--quiet", name], check=False).returncode


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows, heads left out."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not set(line) <= set("|- :")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped configs with every example of the documentation in its place."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(CONFIGS, folder / "configs")
    files = [*EXAMPLES.items(), *(found for text in TEXT.values() for found in FILE.findall(text))]
    for path, body in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        assert not (folder / path).exists(), f"{path} is shipped already"
        (folder / path).write_text(body, encoding="utf-8")
    return folder


@pytest.mark.parametrize("path", EXAMPLES)
def test_every_example_is_a_valid_recipe(path: str, written: Path) -> None:
    recipe: TypeAdapter[Any] = TypeAdapter(RECIPES[Path(path).parent.name])
    data = Config.read(written / path).data
    recipe.validate_python(data)
    with pytest.raises(ValidationError):
        recipe.validate_python(data | {"no_such_key": 1})


def test_architecture_shows_each_way_to_extend() -> None:
    shown = {Path(path).parent.name for path, _ in EXAMPLE.findall(page("architecture.md"))}
    assert shown == RECIPES.keys()


def test_the_examples_together_are_a_pipeline(written: Path) -> None:
    graph = Pipeline(written / "configs/pipeline/mine.yaml")
    ours = {"source-court-records", "task-news-category", "pairs-category", "category", "evaluate-category"}
    assert ours <= graph.steps.keys()
    assert list(graph.experts) == ["category"]
    assert graph.config.runtime.devices == 16
    assert graph.config.model.decoder_layers == 18
    for stage in ("stage1", "stage2", "stage3"):
        assert plan_training(graph.steps[stage].recipe, graph.config.runtime, MT5_IDS)["fits"]


def test_the_examples_records_fit_its_task(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written)
    task = TaskRecipe.model_validate(Config.read(written / "configs/task/news-category.yaml").data)
    rendered = render(task, pa.Table.from_batches(read("news", task.source)))
    pairs = [*rendered.train.to_pylist(), *rendered.heldout.to_pylist()]
    assert {pair["target"] for pair in pairs} == set(task.choices)
    ((_, records),) = FILE.findall(page("architecture.md"))
    titles = [json.loads(line)["title"] for line in records.splitlines()]
    assert len(pairs) == len(titles)
    assert all(any(title in pair["input"] for title in titles) for pair in pairs)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", TEXT[path])
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_files_exist(path: Path) -> None:
    named = re.findall(r"`((?:openba|tasks|flows|tests|configs|docs|infra)/[\w./-]*)`", TEXT[path])
    missing = [
        name for name in named if name not in EXAMPLES and not (ROOT / name).exists() and not ignored(name)
    ]
    assert missing == []


def test_commands_exist() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    known |= {str(group.name) for group in app.registered_groups}
    used = {
        command for text in TEXT.values() for command in re.findall(r"(?:^\s*|`)openba ([a-z]+)", text, re.M)
    }
    assert len(used) >= 5
    assert used <= known


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {Requirement(text).name for texts in lists for text in texts}
    explained = [cells[0].strip("`") for cells in rows(page("dependencies.md")) if cells[0].startswith("`")]
    assert sorted(explained) == sorted(declared)


def test_pins_are_as_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {r.name: str(r.specifier) for r in map(Requirement, project["dependencies"])}
    told = re.findall(r"`(\w+)(<|==)([\d.]+)`", page("dependencies.md").partition("## Pins")[2])
    assert {"torch", "fastapi", "pyarrow", "ray"} <= {name for name, _, _ in told}
    assert [(n, v) for n, sign, v in told if f"{sign}{v}" not in pinned[n].split(",")] == []


def test_settings_of_the_paper_page_have_their_values() -> None:
    """Each `path=value` is what configs/pipeline/paper.yaml resolves to, and each bare path is there."""
    config = Pipeline(find_pipeline("paper")).config
    last = [cells[-1] for cells in rows(page("paper.md"))]
    found = [setting for cell in last for setting in re.findall(r"`(\w+(?:\.\w+)+)(?:=([^`]+))?`", cell)]
    assert len(found) > 20
    for path, value in found:
        node: Any = config
        for part in path.split("."):
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        if value:
            assert node == yaml.safe_load(value) or str(node) == value or float(value) == node, path


def test_alternatives_of_the_paper_page_are_accepted() -> None:
    taken = 0
    for cells in rows(page("paper.md")):
        paths = re.findall(r"`(\w+(?:\.\w+)+)=[^`]+`", cells[-1])
        release = re.findall(r"`(\w+)`", cells[-1].partition("release ")[2])
        for path, value in zip(paths, release, strict=False):
            Pipeline(find_pipeline("paper"), [f"{path}={value}"])
            taken += 1
    assert taken >= 7


def test_costs_of_the_learning_page_are_planned(tmp_path: Path) -> None:
    (row,) = [cells for cells in rows(page("learning.md")) if cells[0] == "16"]
    planned = plan(Pipeline(find_pipeline("speedrun"), ["size=16"]), Store(tmp_path, tmp_path))
    total = planned["total"]
    (stage1, *_) = [step["training"] for step in planned["steps"] if "training" in step]
    costs = [f"{total[key]:.1f}" for key in ("gpu_hours", "wall_hours", "kwh")]
    assert row[1:] == [human(stage1["tokens"]), *costs, f"{total['money']:.2f}"]


def test_figures_of_the_accounting_page_are_computed() -> None:
    text, graph = page("accounting.md"), Pipeline(find_pipeline("paper"))
    runtime, total = graph.config.runtime, 0
    for name, label in (("stage1", "I, 300B"), ("stage2", "II, 40B"), ("stage3", "III, 40B")):
        recipe = graph.steps[name].recipe
        flops, train = run_flops(recipe, MT5_IDS), recipe.train
        each = train_flops(recipe.model, MT5_IDS, train.encoder_length, train.decoder_length)
        (row,) = [cells for cells in rows(text) if cells[0].startswith(label)]
        assert row[1:] == [f"{train.steps:,}", number(each, 2), number(flops, 3)]
        total += flops
    assert f"**{number(total, 3)}**" in text
    device = runtime.device
    assert f"{total / (device.peak_tflops * 1e12 * 0.294) / 3600:,.0f} GPU hours" in text
    paper_seconds = 38_214 * 3600
    for flops in (total, 1.2e22):
        rate = flops / paper_seconds / 1e12
        assert f"| {rate:.1f} | {100 * rate / device.peak_tflops:.1f} % |" in text
    rate = 120 / 1.309
    assert f"stands for {rate:.1f} model TFLOP/s: {100 * rate / device.peak_tflops:.1f} %" in text
    assert f"{paper_seconds / 3600 * device.watts * runtime.pue / 1e6:.1f} MWh" in text


def number(value: float, digits: int) -> str:
    """`1.23e+22` as the page writes it: 1.23e22."""
    return f"{value:.{digits}e}".replace("e+", "e")


def test_parameters_of_the_paper_page_are_counted() -> None:
    model = Pipeline(find_pipeline("paper")).config.model
    released = {"norm": "layernorm", "sandwich": False, "attention_bias": True, "head_bias": True}
    for shape in (model, model.model_copy(update=released)):
        assert f"{sum(parameters(shape, MT5_IDS).values()):,}" in page("paper.md")


def test_share_of_real_tokens_is_computed() -> None:
    """Lengths of Table 3's denoisers for 568 tokens, special tokens included."""
    stage = Pipeline(find_pipeline("paper")).config.stages["stage1"]
    real = 0
    for row in stage.data.denoisers:  # type: ignore[union-attr]
        masked = round(stage.data.length * row.ratio)  # type: ignore[union-attr]
        spans = 1 if row.mean_span is None else round(masked / row.mean_span)
        real += stage.data.length + 2 * spans + 3  # type: ignore[union-attr]  # sentinels on both sides; mode, </s>, </s>
    share = real / len(stage.data.denoisers) / (stage.encoder_length + stage.decoder_length)  # type: ignore[union-attr]
    assert f"{100 * share:.0f} % of the" in page("accounting.md").replace("\n", " ")


def test_environment_is_complete() -> None:
    """Every variable that openba itself reads for state and servers is explained, and no other."""
    modules = [path for package in ("openba", "tasks", "flows") for path in (ROOT / package).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in modules)
    read_by_code = set(re.findall(r'environ(?:\.get\(|\[)"((?:OPENBA|MLFLOW|PREFECT|RAY)_\w+)"', code))
    table = page("configuration.md").partition("## The environment")[2].partition("Secrets")[0]
    assert {cells[0].strip("`") for cells in rows(table)[1:]} == read_by_code


def test_quotations_are_the_papers(shared: Path) -> None:
    def plain(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"\$[^$]*\$|[^\x00-\x7f]|[*⁾]", "", text))

    paper = plain((shared / "spec" / "openba-paper.txt").read_text(encoding="utf-8"))
    prose = re.sub(r"^```.*?^```", "", page("data.md"), flags=re.DOTALL | re.MULTILINE)
    quoted = re.findall(r'"([^"`]{20,})"', prose)
    assert len(quoted) >= 10
    assert [quote for quote in quoted if plain(quote) not in paper] == []


def test_picture_shows_every_kind_of_step_where_it_runs() -> None:
    picture = ET.parse(ROOT / "docs" / "pictures" / "data-way.svg").getroot()
    boxes = [node for node in picture.iter() if node.get("id") and node.get("class")]
    kinds = {name: kind.place for name, kind in vars(openba.graph).items() if isinstance(kind, Kind)}
    assert {box.get("id"): box.get("class") for box in boxes} == kinds
    assert "prefers-color-scheme: dark" in "".join(picture.itertext())
