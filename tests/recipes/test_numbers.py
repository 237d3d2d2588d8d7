"""Every number of every recipe and runtime: its type, its range, its unit, and the answer to a bad value."""

from __future__ import annotations

import copy
import importlib
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from openba import recipes
from openba.artifacts import Recipe, Runtime, Store
from openba.config import Config, ConfigError
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.plan import plan
from openba.recipes.pipeline import ExpertConfig, PipelineConfig
from openba.units import WRITTEN, Budget

TINY = find_pipeline("tiny")
HUGE = 10**30
BAD = ["0", "-1", ".nan", ".inf", str(HUGE), "true", "'12'", "010", "1:30", "-5 steps", "80", "1e-400"]


def models() -> list[type[BaseModel]]:
    """Every recipe and runtime of `openba.recipes`."""
    found = {Budget}
    for module in pkgutil.iter_modules(recipes.__path__):
        members = vars(importlib.import_module(f"openba.recipes.{module.name}")).values()
        found |= {m for m in members if isinstance(m, type) and issubclass(m, Recipe | Runtime)}
    return sorted(found - {Recipe, Runtime}, key=lambda model: model.__name__)


def numbers(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """(int or float, constraints) of each number in a type, also inside of unions, tuples and mappings."""
    own = getattr(annotation, "__metadata__", ())
    if own:
        yield from numbers(get_args(annotation)[0], (*metadata, *own))
    elif annotation in (int, float):
        yield annotation, metadata
    else:
        for argument in get_args(annotation):
            yield from numbers(argument, metadata)


def numeric_fields() -> list[tuple[type[BaseModel], str, FieldInfo]]:
    return [
        (model, name, field)
        for model in models()
        for name, field in model.model_fields.items()
        if list(numbers(field.annotation, tuple(field.metadata)))
    ]


FIELDS = numeric_fields()
NAMES = [f"{model.__name__}.{name}" for model, name, _ in FIELDS]


def constraints(metadata: tuple[Any, ...]) -> dict[str, Any]:
    """Bounds of an annotated type by name."""
    flat = [part for item in metadata for part in (getattr(item, "metadata", None) or [item])]
    names = ("ge", "gt", "le", "lt", "allow_inf_nan")
    return {
        name: getattr(part, name) for part in flat for name in names if getattr(part, name, None) is not None
    }


def test_there_are_numbers() -> None:
    assert len(FIELDS) > 80


@pytest.mark.parametrize(("model", "name", "field"), FIELDS, ids=NAMES)
def test_every_number_has_a_range(model: type[BaseModel], name: str, field: FieldInfo) -> None:
    """Take a type of `openba/recipes/numbers.py`."""
    for kind, metadata in numbers(field.annotation, tuple(field.metadata)):
        bounds = constraints(metadata)
        if kind is int:
            assert {"ge", "le"} <= bounds.keys(), (
                f"{model.__name__}.{name}: an integer has a least and a most"
            )
            assert bounds["le"] <= 2**63 - 1
        else:
            assert bounds.get("allow_inf_nan") is False, (
                f"{model.__name__}.{name}: NaN and infinity are no numbers"
            )


def adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    annotation = model.model_fields[name].rebuild_annotation()
    return TypeAdapter(annotation)


@pytest.mark.parametrize(("model", "name", "field"), FIELDS, ids=NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "12", HUGE, -HUGE])
def test_no_field_takes_what_is_no_number(
    model: type[BaseModel], name: str, field: FieldInfo, value: Any
) -> None:
    """Whatever its meaning; a float may be huge, as a limit that is never reached."""
    if any(word in str(field.annotation) for word in ("dict", "tuple", "Budget")):
        return  # tried below, by whole pipelines
    try:
        accepted = adapter(model, name).validate_python(value, context=WRITTEN)
    except ValidationError:
        return
    kinds = {kind for kind, _ in numbers(field.annotation)}
    assert kinds == {float}
    assert accepted == float(value)
    assert abs(value) == HUGE


def paths(model: type[BaseModel], value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """(dotted key, class and field) of every number that `--set` can reach."""
    for name, field in type(value).model_fields.items():
        child, dotted = getattr(value, name), f"{prefix}{name}"
        if isinstance(child, Budget) or list(numbers(field.annotation, tuple(field.metadata))):
            yield dotted, f"{type(value).__name__}.{name}"
        if isinstance(child, BaseModel):
            yield from paths(type(child), child, f"{dotted}.")
        elif isinstance(child, dict) and field.annotation != dict[str, Any]:
            for key, item in child.items():
                if isinstance(item, BaseModel):
                    yield from paths(type(item), item, f"{dotted}.{key}.")
                elif isinstance(item, int | float):
                    yield f"{dotted}.{key}", f"{type(value).__name__}.{name}"


def reachable() -> dict[str, str]:
    """Class and field -> the first dotted key of `tiny` that has it; an expert's keys are `experts.ner.`."""
    pipeline = Pipeline(TINY)
    every = [
        *paths(PipelineConfig, pipeline.config, ""),
        *paths(ExpertConfig, pipeline.experts["ner"], "experts.ner."),
    ]
    found: dict[str, str] = {}
    for dotted, field in every:
        place = f"{dotted.split('.')[0] if dotted.startswith(('stage', 'experts')) else ''}:{field}"
        found.setdefault(place, dotted)
    return found


KEYS = reachable()
PIPELINE, EXPERT = Config.read(TINY), Config.read(TINY.parent.parent / "finetune" / "ner.yaml")


def refused(config: Config, model: Any, override: str) -> str | None:
    """The line that an override is refused with, if it is."""
    try:
        config.override(override)
        config.validate(model)
    except ConfigError as error:
        return str(error)
    return None


def totals(override: str, store: Store) -> dict[str, float | None] | str:
    """What the plan says of the pipeline with an override, or the line that refuses it."""
    try:
        return plan(Pipeline(TINY, [override]), store)["total"]
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("key", sorted(set(KEYS.values())))
def test_a_bad_value_is_one_line_with_its_key_or_is_allowed(key: str, tmp_path: Path) -> None:
    expert = key.startswith("experts.ner.")
    base, model, own = (
        (EXPERT, ExpertConfig, key.removeprefix("experts.ner."))
        if expert
        else (PIPELINE, PipelineConfig, key)
    )
    accepted = []
    for value in BAD:
        refusal = refused(copy.deepcopy(base), model, f"{own}={value}")
        if refusal is None:
            accepted.append(value)
        else:
            assert "\n" not in refusal, value
            assert own.split(".")[-1] in refusal or "--set" in refusal, (value, refusal)
    assert not {".nan", ".inf", "true", "'12'", "010", "1:30", "-5 steps"} & set(accepted), accepted
    # What the types allow must make a plan, or be refused in one line for what it goes with.
    for value in accepted:
        planned = totals(f"{key}={value}", Store(tmp_path / "store", tmp_path / "work"))
        if isinstance(planned, str):
            assert "\n" not in planned
        else:
            assert all(n is None or 0 <= n < math.inf for n in planned.values()), (value, planned)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.stage1.batch=0", "stages.stage1.batch: Input should be greater than or equal to 1, not 0"),
        ("stages.stage1.batch=-4", "stages.stage1.batch: .*greater than or equal to 1, not -4"),
        ("stages.stage1.optim.lr=-1", "stages.stage1.optim.lr: .*greater than or equal to 0"),
        ("stages.stage1.optim.lr=.nan", "stages.stage1.optim.lr: .*not nan"),
        ("stages.stage1.optim.beta1=1.0", "stages.stage1.optim.beta1: .*less than 1"),
        ("stages.stage1.optim.clip=-1", "stages.stage1.optim.clip: .*greater than or equal to 0"),
        ("stages.stage1.optim.warmup=-5", "stages.stage1.optim.warmup: write the unit: '-5 steps'"),
        ("stages.stage1.optim.warmup=5", "stages.stage1.optim.warmup: write the unit: '5 steps'"),
        (
            "stages.stage1.optim.warmup=10k steps",
            "stages.stage1.optim.warmup: 10000 steps are more than the 40",
        ),
        (
            "stages.stage1.evaluate_every=0 steps",
            "stages.stage1.evaluate_every: .*greater than or equal to 1",
        ),
        ("stages.stage1.budget=0 steps", "stages.stage1.budget.*greater than or equal to 1"),
        ("stages.stage1.budget=5", "stages.stage1.budget: write the unit: '5 steps' or '5 tokens'"),
        ("stages.stage1.seed=12345678901234", "stages.stage1.seed: .*less than or equal to 2147483647"),
        ("stages.stage1.heldout_batches=0", "stages.stage1.heldout_batches: .*greater than or equal to 1"),
        ("stages.stage1.batch=010", "010 is read as another number by YAML"),
        ("stages.stage1.batch=1:30", "1:30 is read as another number by YAML"),
        ("stages.stage1.batch=[3", "not valid YAML"),
        (
            "runtime.train.checkpoint_every=0 steps",
            "runtime.train.checkpoint_every: .*greater than or equal to 1",
        ),
        ("runtime.train.micro_batch=0", "runtime.train.micro_batch: .*greater than or equal to 1"),
        ("runtime.device.utilisation=40", "runtime.device.utilisation: .*less than or equal to 1"),
        ("runtime.carbon_intensity=385", "runtime.carbon_intensity: .*less than or equal to 3"),
        ("runtime.device.memory=80", "runtime.device.memory: cannot read 80; write bytes such as '4MiB'"),
        ("runtime.device.memory=80 B", "runtime.device.memory: .*greater than or equal to 1048576"),
        ("runtime.evaluate.workers=9", "runtime.evaluate.workers: 9 workers need a device each"),
        ("mixture.parts.stage1=900", "mixture.parts.stage1: write the unit: '900 tokens'"),
        ("mixture.shares={en: .nan, zh: 0.5, code: 0.5}", "mixture.shares.en: .*not nan"),
        ("model.kv_channels=7", "model.kv_channels: 7 is odd"),
        ("model.ffn=1", "model.ffn: .*greater than or equal to 2"),
    ],
)
def test_what_was_planned_with_negative_energy_or_died_in_the_worker(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        Pipeline(TINY, [override])
    assert "\n" not in str(told.value)
    assert "--set" in str(told.value)


def test_a_trap_of_yaml_in_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: tiny\nname: mine\nstage1:\n  batch: 010\n")
    with pytest.raises(
        ConfigError, match=r"mine.yaml: not valid YAML: 010 is read as another number.* line 4"
    ):
        Pipeline(tmp_path / "mine.yaml")


def test_exact_thousands_are_whole_numbers() -> None:
    assert Pipeline(TINY, ["stages.stage1.budget=2.01k steps"]).config.stages["stage1"].steps == 2010


def test_a_recipe_comes_back_from_its_manifest() -> None:
    """Without its unit, which the field has; only what people write must have it."""
    for step in Pipeline(TINY).steps.values():
        assert type(step.recipe).model_validate(step.recipe.model_dump(mode="json")) == step.recipe
