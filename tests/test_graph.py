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
    assert changed("stages.stage3.optim.lr=1e-3") == follows


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
    after = Pipeline(TINY, ["stages.stage2.keep_every=5 steps", "stages.stage2.budget=12 steps"])
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


ANNEALED = """
extends: tiny
name: annealed
stages:
  stage4:
    extends: ../pretrain/stage2
    title: "Stage IV: annealing"
    part: stage2
    start: stage3
    data: {length: 250}
    encoder_length: 128
    decoder_length: 128
    batch: 32
    budget: 10 steps
    precision: fp32
    optim: {lr: 1.0e-4, min_lr: 0.0, warmup: 0 steps, decay: null}
    evaluate_every: 10 steps
"""
TWO_STAGES = """
extends: tiny
name: two
mixture: {parts: {long: 260k tokens}}
stages:
  stage2: {part: long}
  stage3: null
flan: null
experts: {folder: null}
evaluate: [stage2]
registry: {models: {openba-flan: null}}
"""
COOLED = """
extends: tiny
name: cooled
stages:
  stage1: {keep_every: 10 steps}
  cooled:
    extends: ../pretrain/stage1
    title: Stage I, cooled down from step 100
    part: stage1
    start: stage1
    start_step: 20 steps
    data: {length: 128}
    encoder_length: 120
    decoder_length: 88
    batch: 32
    budget: 20 steps
    precision: fp32
    optim: {lr: 1.0e-3, min_lr: 0.0, warmup: 0 steps, decay: null}
    evaluate_every: 20 steps
  stage2: {start: cooled}
"""


def pipeline_of(folder: Path, text: str, *overrides: str) -> Pipeline:
    (folder / "mine.yaml").write_text(text)
    return Pipeline(folder / "mine.yaml", list(overrides))


def test_an_annealing_stage_is_yaml_only_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    before, after = Pipeline(TINY), pipeline_of(tmp_path, ANNEALED)
    stage = after.steps["stage4"]
    assert stage.inputs["start"] is after.steps["stage3"]
    assert stage.inputs["data"] is after.steps["mixture"]
    assert getattr(stage.recipe, "part") == "stage2"  # noqa: B009
    stages = ("stage1", "stage2", "stage3")
    assert all(after.steps[name].fingerprint == before.steps[name].fingerprint for name in stages)
    assert [model.name for model in after.models][:4] == [*stages, "stage4"]
    assert after.models[3].title == "Stage IV: annealing"
    assert after.steps["chat"].inputs["start"] is stage, "experts are fine-tuned from the last stage"
    own = pipeline_of(tmp_path, ANNEALED, "experts.start=stage3")
    assert own.steps["chat"].fingerprint == before.steps["chat"].fingerprint


def test_a_pipeline_of_two_stages_is_yaml_only(tmp_path: Path) -> None:
    graph = pipeline_of(tmp_path, TWO_STAGES)
    assert [step.name for step in graph.pretraining] == ["stage1", "stage2"]
    assert not [name for name in graph.steps if name.startswith(("flan", "stage3", "pairs-"))]
    assert list(graph.config.mixture.tokens) == ["heldout", "long", "stage1", "stage2"]
    assert graph.after("stage2") == ["evaluate-stage2"]
    assert graph.after("evaluate-stage2") == ["model-stage2"]


def test_a_stage_goes_on_from_kept_weights_without_training_them_again(tmp_path: Path) -> None:
    graph = pipeline_of(tmp_path, COOLED)
    kept = Pipeline(TINY, ["stages.stage1.keep_every=10 steps"])
    assert graph.steps["stage1"].fingerprint == kept.steps["stage1"].fingerprint
    assert getattr(graph.steps["cooled"].recipe, "start_step") == 20  # noqa: B009
    assert graph.steps["stage2"].inputs["start"] is graph.steps["cooled"]
    assert list(graph.config.stages) == ["stage1", "cooled", "stage2", "stage3"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.stage2.part=stage9",
            "stages.stage2.part: stage9 is not a part of the mixture .stage1, stage2",
        ),
        (
            "stages.stage2.start=stage9",
            "stages.stage2.start: no stage 'stage9'; there are stage1, stage2, stage3",
        ),
        ("stages.stage1.start=stage2", "stages.stage2.start: stage1 starts from itself; break the circle"),
        (
            "stages.stage3.part=stage1",
            "stages.stage3.part: the objective 'instruction' reads the pairs of flan",
        ),
        ("stages.stage2.start_step=7 steps", "stage1 keeps no weights of step 7 .none; set its keep_every"),
        ("experts.start=stage9", "experts.start: no stage 'stage9'; there are stage1, stage2, stage3"),
        ("evaluate=[stage9]", "evaluate: no stage 'stage9'"),
        ("registry.models.mine=stage9", "registry.models.mine: no stage 'stage9'"),
        ("flan=null", "stages.stage3.data: reads the pairs of flan, which is not set"),
        ("mixture.parts.heldout=5k tokens", "mixture.parts.heldout: this name is taken"),
    ],
)
def test_stages_that_do_not_fit_are_refused_in_a_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Pipeline(TINY, [override])
    assert ": : " not in str(error.value)
    assert "\n" not in str(error.value)
