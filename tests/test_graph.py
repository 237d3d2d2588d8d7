"""A pipeline's steps: what follows from what."""

import shutil
from pathlib import Path

import pytest

from openba.config import CONFIGS
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline

TINY = find_pipeline("tiny")


def changed(*overrides: str) -> set[str]:
    before, after = Pipeline(TINY).steps, Pipeline(TINY, list(overrides)).steps
    return {name for name in before if before[name].fingerprint != after[name].fingerprint}


def test_a_stage3_setting_rebuilds_stage3_and_what_follows() -> None:
    graph = Pipeline(TINY)
    follows = (
        {"stage3", "evaluate-stage3"} | set(graph.experts) | {f"evaluate-{name}" for name in graph.experts}
    )
    assert changed("stage3.optim.lr=1e-3") == follows


def test_an_experts_setting_rebuilds_that_expert_only() -> None:
    assert changed("experts.ner.train.seed=7") == {"ner", "evaluate-ner"}


def test_a_cleaning_setting_rebuilds_everything_made_of_the_corpus() -> None:
    moved = changed("clean.min_words=5")
    assert {"clean", "tokenizer", "mixture", "stage1", "flan", "chat"} <= moved
    assert not any(name.startswith("source-") for name in moved)


def test_each_stage_starts_from_the_one_before() -> None:
    steps = Pipeline(TINY).steps
    assert "start" not in steps["stage1"].inputs
    assert steps["stage2"].inputs["start"] is steps["stage1"]
    assert steps["stage3"].inputs["start"] is steps["stage2"]
    assert all(steps[name].inputs["start"] is steps["stage3"] for name in Pipeline(TINY).experts)


@pytest.mark.parametrize("path", [TINY, find_pipeline("small-ablation")])
def test_the_phases_cover_every_step_in_order(path: Path) -> None:
    graph = Pipeline(path)
    order = [
        s.name
        for phase in (graph.data, graph.pretraining, graph.fine_tuning, graph.evaluations)
        for s in phase
    ]
    assert sorted(order) == sorted(graph.steps)
    for step in graph.steps.values():
        assert all(order.index(parent.name) < order.index(step.name) for parent in step.inputs.values())


def test_the_models_keep_the_papers_shape() -> None:
    model = Pipeline(TINY).config.model
    assert model.decoder_layers == 3 * model.encoder_layers
    assert (model.norm, model.sandwich, model.tie_embeddings) == ("rmsnorm", True, True)


@pytest.fixture
def with_sixth(tmp_path: Path) -> Path:
    """A copy of the configs with one more expert: nothing else is changed."""
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "finetune" / "tiny" / "headline.yaml").write_text(
        "title: Topics\nregister_as: openba-headline\ntasks: [bbc-topic]\nbenchmarks: [bbc-topic]\n"
        "train: {extends: ../../pretrain/finetune}\n"
    )
    return tmp_path / "configs" / "pipeline" / "tiny.yaml"


def test_a_sixth_expert_is_one_file(with_sixth: Path) -> None:
    before, after = Pipeline(TINY), Pipeline(with_sixth)
    assert set(after.steps) - set(before.steps) == {
        "pairs-headline",
        "headline",
        "evaluate-headline",
        "baselines-headline",
    }
    model = next(model for model in after.models if model.name == "headline")
    assert model.register_as == "openba-headline"
    assert model.evaluation is after.steps["evaluate-headline"]
    assert all(after.steps[name].fingerprint == step.fingerprint for name, step in before.steps.items())


def test_kept_weights_are_evaluated_like_a_stages_own() -> None:
    before = Pipeline(TINY)
    after = Pipeline(TINY, ["stage2.keep_every=5 steps", "stage2.budget=12 steps"])
    assert set(after.steps) - set(before.steps) == {"evaluate-stage2-at-5", "evaluate-stage2-at-10"}
    recipes = [after.steps[f"evaluate-stage2{at}"].recipe.model_dump() for at in ("", "-at-5")]
    assert recipes[0] == recipes[1] | {"at": None}
    assert "evaluate-stage2-at-5" in after.after("stage2")


def test_prompts_of_the_three_modes_are_evaluations_of_their_own() -> None:
    before, after = Pipeline(TINY), Pipeline(TINY, ["prefixes=[R, S, X]"])
    added = set(after.steps) - set(before.steps)
    assert added == {f"evaluate-{stage}-{mode}" for stage in ("stage2", "stage3") for mode in "RX"}
    assert {getattr(after.steps[name].recipe, "prefix") for name in added} == {"R", "X"}  # noqa: B009
    assert all(after.steps[name].fingerprint == step.fingerprint for name, step in before.steps.items())


def test_an_inherited_experts_folder_belongs_to_the_file_that_wrote_it(tmp_path: Path) -> None:
    """A pipeline file anywhere that extends a shipped one has its experts."""
    (tmp_path / "mine.yaml").write_text("extends: tiny\nname: mine\n")
    assert list(Pipeline(tmp_path / "mine.yaml").experts) == list(Pipeline(TINY).experts) != []


def test_a_relative_experts_folder_starts_at_its_file(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    shutil.copy(CONFIGS / "finetune" / "ner.yaml", tmp_path / "own" / "names.yaml")
    (tmp_path / "mine.yaml").write_text("extends: tiny\nname: mine\nexperts: {folder: own}\n")
    assert list(Pipeline(tmp_path / "mine.yaml").experts) == ["names"]


@pytest.mark.parametrize("written", ["file", "--set"])
def test_a_missing_experts_folder_is_an_error(tmp_path: Path, written: str) -> None:
    overrides = ["experts.folder=nowhere"] if written == "--set" else []
    text = "extends: tiny\nname: mine\n" + ("" if overrides else "experts: {folder: nowhere}\n")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"experts\.folder: nowhere: no folder") as told:
        Pipeline(tmp_path / "mine.yaml", overrides)
    assert ("--set: " if overrides else "mine.yaml: ") in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("experts.nerr.train.budget=5 steps", "did you mean 'ner'"),
        ("experts.trane.budget=5 steps", "did you mean 'train'"),
        ("experts.xyz=1", "known here: chat, code, folder"),
    ],
)
def test_an_override_of_no_expert_is_refused(override: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy) as told:
        Pipeline(TINY, [override])
    assert "\n" not in str(told.value)


def test_experts_are_compared_from_each_start_with_each_seed_and_nothing_else_is_built() -> None:
    graph = Pipeline(find_pipeline("small-ablation"))
    names = {step.name for step in graph.wanted(None)}
    assert {"ner-from-stage3-1", "ner-from-stage2-2", "ner-from-nothing-3", "stage1-6-2"} <= names
    assert not [name for name in names if name.startswith(("evaluate", "baselines"))]
    assert len(graph.transfers) == 5 * 3 * 3
    starts = {start: graph.step(f"ner-from-{start}-1") for start in ("stage3", "stage2", "nothing")}
    assert starts["stage2"].inputs["start"] is graph.steps["stage2"]
    assert "start" not in starts["nothing"].inputs
    assert {step.recipe.train.seed for step in starts.values()} == {1}  # type: ignore[attr-defined]
    assert graph.runtime(starts["nothing"]).train.workers == graph.runtime(graph.step("ner")).train.workers
    small = Pipeline(find_pipeline("small"))
    assert (
        graph.step("stage3").fingerprint == small.step("stage3").fingerprint
    )  # what `small` built is reused
