"""Files to recipes: extends, names, overrides, and messages that say where and what."""

from pathlib import Path

import pytest
import yaml

from openba.config import CONFIGS, Config, ConfigError
from openba.graph import Pipeline, find_pipeline
from openba.recipes.evaluate import BenchmarkRecipe
from openba.recipes.pipeline import ExpertConfig, PipelineConfig

PIPELINES = sorted((CONFIGS / "pipeline").glob("*.yaml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda p: p.stem)
def test_every_pipeline_loads(path: Path) -> None:
    assert Pipeline(path).config.name == path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "finetune").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_expert_loads(path: Path) -> None:
    assert Config.read(path).validate(ExpertConfig).register_as.startswith("openba-")


@pytest.mark.parametrize("path", sorted((CONFIGS / "benchmark").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_benchmark_loads(path: Path) -> None:
    assert Config.read(path).validate(BenchmarkRecipe).metrics


def test_no_config_is_an_orphan(root: Path) -> None:
    """Each shipped YAML is read by a pipeline, directly or through another file."""
    read: set[str] = set()
    for path in PIPELINES:
        read |= set(Pipeline(path).files.origin.values())
    runtimes = {f"configs/runtime/{p.name}" for p in (CONFIGS / "runtime").glob("*.yaml")}
    every = {str(p.relative_to(root)) for p in CONFIGS.rglob("*.yaml")}
    # To choose from: tests/data/test_biflan.py and tests/evaluate/test_paper.py render each,
    # tests/data/test_experts.py the experts'.
    kinds = ("configs/task/flan/", "configs/task/expert/", "configs/benchmark/paper/", "configs/suite/")
    choice = {name for name in every if name.startswith(kinds)}
    assert every - read - runtimes - choice == set()


@pytest.mark.parametrize("runtime", sorted((CONFIGS / "runtime").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_runtime_fits_the_tiny_pipeline_and_moves_no_fingerprint(runtime: Path) -> None:
    tiny = Pipeline(find_pipeline("tiny"))
    other = Pipeline(find_pipeline("tiny"), [f"runtime={runtime.stem}"])
    assert {n: s.fingerprint for n, s in tiny.steps.items()} == {
        n: s.fingerprint for n, s in other.steps.items()
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.stage2.optim.lrr=1e-5", "--set: stages.stage2.optim.lrr: unknown key .did you mean 'lr'"),
        ("stagess.stage1.batch=4", "--set: stagess: unknown key .did you mean 'stages'"),
        ("model.d_modell=4", "unknown key .did you mean 'd_model'"),
        ("runtime.train.micro_bach=4", "unknown key .did you mean 'micro_batch'"),
        ("stages.stage1.budget=40B", "stages.stage1.budget: .*unit"),
        ("stages.stage1.budget=40B steps tokens", "stages.stage1.budget: cannot read"),
        ("mixture.shares={en: 0.5, zh: 0.6}", "shares add up to 1.1"),
        ("mixture.epochs={wiki: 2.0}", "epochs: wiki: not in shares .en, zh, code."),
        ("stages.stage1.data.objective=ul3", "stages.stage1.data"),
        ("tokenizer={kind: file}", "tokenizer: kind 'file' needs 'path'"),
        ("stages.stage1.batch", "write it as key.path=value"),
        ("model=tinny", "--set: model: no file configs/model/tinny.yaml .did you mean 'tiny'"),
        ("stages.stage1.budget=40 stepps", "'40 stepps'; write its unit, as in '2000 steps'"),
        ("stages.stage1.optim.warmup=10 percent", "the unit here is 'steps', as in '2000 steps'"),
        ("stages=3", "--set: stages: expected a section of `key: value` lines"),
    ],
)
def test_a_bad_override_is_one_line_with_a_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Pipeline(find_pipeline("tiny"), [override])
    assert "\n" not in str(caught.value)


def test_an_unknown_key_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"extends: {CONFIGS}/pipeline/tiny\nstages: {{stage1: {{bacth: 4}}}}\n"
    )
    with pytest.raises(
        ConfigError, match=r"mine.yaml: stages.stage1.bacth: unknown key \(did you mean 'batch'\?\)"
    ):
        Config.read(tmp_path / "mine.yaml").validate(PipelineConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- a", "expected `key: value` lines"),
        ("a: 1\na: 2", "key 'a' twice"),
        ("extends: nothere", r"bad.yaml: extends: no file \S+nothere.yaml or configs/pipeline/nothere.yaml"),
        ("extends: tinny", r"\(did you mean 'tiny'\?\)"),
        ("sources: [bbc-new]", r"sources: no file \S+bbc-new.yaml .*\(did you mean 'bbc-news'\?\)"),
        ("extends: bad", "extends itself"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        Config.read(tmp_path / "bad.yaml")


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match="byte 3 is not UTF-8"):
        Config.read(tmp_path / "bad.yaml")


def test_extends_merges_and_remembers_who_set_what(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(yaml.safe_dump({"a": {"b": 1, "c": 2}, "d": [1, 2]}))
    (tmp_path / "child.yaml").write_text(yaml.safe_dump({"extends": "parent", "a": {"b": 3}, "d": [9]}))
    config = Config.read(tmp_path / "child.yaml", ["a.e=1e-3"])
    assert config.data == {"a": {"b": 3, "c": 2, "e": 1e-3}, "d": [9]}
    assert config.source_of("a.b").endswith("child.yaml")
    assert config.source_of("a.c").endswith("parent.yaml")
    assert config.source_of("a.e") == "--set"
