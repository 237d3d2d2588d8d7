"""Steps of a pipeline and their inputs, from its config. A pure function, apart from files outside the store.

Owns the names of steps and the wiring of their inputs. It reads configs and the state (digest, size, time,
version) of files outside the store; it builds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from openba.artifacts import Kind, Recipe, Step
from openba.config import Config, ConfigError, find_config
from openba.data.sources import file_state, outside_state, task_state
from openba.errors import UserError, name_hint
from openba.json_types import Json, JsonObject
from openba.kinds import (
    BASELINES,
    CONTAMINATION,
    CORPUS,
    EVALUATE,
    GROWTH,
    INSTRUCT,
    MIXTURE,
    SOURCE,
    TASK,
    TOKENIZER,
    TRAIN,
    WEIGHTS,
    Model,
    Transfer,
    transfers_of,
)
from openba.model.origin import Registered, resolve
from openba.recipes.checks import check_training
from openba.recipes.data import (
    ContaminationRecipe,
    CorpusRecipe,
    InstructRecipe,
    SourceRecipe,
    SourceStep,
    TaskRecipe,
    TaskStep,
)
from openba.recipes.dial import dialled
from openba.recipes.evaluate import BaselinesStep, BenchmarkRecipe, EvaluateStep
from openba.recipes.experts import overrides_of_pipeline, read_experts
from openba.recipes.model import ModelRecipe
from openba.recipes.pipeline import ExpertConfig, PipelineConfig
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.start import WeightsRecipe, WeightsStep
from openba.recipes.train import TrainRecipe, TrainStep


class Pipeline:
    """The steps of one pipeline, in phases."""

    def __init__(
        self,
        path: Path,
        overrides: list[str] | None = None,
        strict: bool = False,
        registered: Registered | None = None,
    ) -> None:
        """Read the pipeline and make its steps.

        Args:
            path: its YAML file.
            overrides: `key.path=value` each, laid over it.
            strict: every file that it names has to be there; planning works without.
            registered: looks up `models:/` addresses; None: they are refused.
        """
        self.path = path
        self.strict = strict
        self.registered = registered
        self.files = Config.read(path, overrides_of_pipeline(overrides or []))
        self.config: PipelineConfig = self.files.validate(PipelineConfig)
        if self.config.size is not None:
            self.files.derive(dialled(self.config.size, self.config.tokens_per_parameter), "size")
            self.config = self.files.validate(PipelineConfig)
        self.experts = read_experts(self.files, self.config.experts, overrides or [])
        self.transfers: dict[str, Transfer] = transfers_of(self.config.transfer, self.experts)
        self.steps: dict[str, Step] = {}
        self._data()
        self._stages()
        self._fine_tunes()
        self._evaluations()
        self._contamination()
        self._check_target()

    @property
    def data(self) -> list[Step]:
        """Everything before training, inputs first."""
        kinds = (WEIGHTS, MIXTURE, INSTRUCT, TASK, CONTAMINATION)
        end_steps = [step for step in self.steps.values() if step.kind in kinds]
        return _unique(end.walk() for end in end_steps)

    @property
    def pretraining(self) -> list[Step]:
        """All stages, and the first stage of every shape that is compared."""
        return [self.steps[name] for name in self.config.stages] + self.shapes

    @property
    def shapes(self) -> list[Step]:
        """The first stage of every shape of `ablation`."""
        return [self.steps[self._compared(shape)] for shape in self.config.ablation]

    @property
    def comparison(self) -> list[Step]:
        """Trainings of a pipeline that compares: shapes, and experts from several starts."""
        return [*self.shapes, *(self.steps[name] for name in self.transfers)]

    @property
    def fine_tuning(self) -> list[Step]:
        """The experts, from their own start and from those that are compared."""
        return [self.steps[name] for name in (*self.experts, *self.transfers)]

    @property
    def evaluations(self) -> list[Step]:
        """All evaluations, of models and of what they are compared with."""
        return [step for step in self.steps.values() if step.kind in (EVALUATE, BASELINES)]

    @cached_property
    def models(self) -> list[Model]:
        """The trained models in order of training."""
        registered_names = {step: name for name, step in self.config.registry.models.items()}
        stages = self.config.stages
        model_rows = [(name, stage.title, registered_names.get(name)) for name, stage in stages.items()]
        first_title = next((stage.title for stage in stages.values()), "")
        model_rows += [
            (self._compared(shape), f"{first_title}, shape {shape}", None) for shape in self.config.ablation
        ]
        model_rows += [(name, expert.title, expert.register_as) for name, expert in self.experts.items()]
        return [
            Model(
                name,
                title,
                self.steps[name],
                self.steps.get(f"evaluate-{name}"),
                self.steps.get(f"baselines-{name}" if name in self.experts else "baselines"),
                register_as,
            )
            for name, title, register_as in model_rows
        ]

    def kept(self, name: str) -> list[int]:
        """Return the steps of a training whose weights are kept."""
        recipe = self.step(name).recipe
        assert isinstance(recipe, TrainStep)
        return recipe.train.kept

    def step(self, name: str) -> Step:
        """Return a step by name.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self.steps:
            raise UserError(
                f"{name}: no such step in {self.config.name}{name_hint(name, self.steps)}; "
                "`openba plan PIPELINE` lists the steps"
            )
        return self.steps[name]

    def runtime(self, step: Step) -> PipelineRuntime:
        """Return the execution settings of a step."""
        runtime = self.config.runtime
        return runtime.for_expert() if self._is_expert(step.name) else runtime

    def _is_expert(self, name: str) -> bool:
        """Whether a training runs as the experts do: several small ones side by side."""
        return name in self.experts or name in self.transfers

    def after(self, name: str) -> list[str]:
        """Return what may begin after `data`, a training or an evaluation: steps, and `model-NAME`s.

        A model whose pipeline has no evaluation of it is promoted after its training.
        """
        if name == "data":
            fresh = [n for n, stage in self.config.stages.items() if not isinstance(stage.start, str)]
            return fresh or list(self.experts)
        done = self.step(name)
        users = (step for step in self.steps.values() if done in step.inputs.values())
        steps = [step.name for step in users if step.kind in (TRAIN, EVALUATE)]
        models = [m for m in self.models if m.register_as and (m.evaluation or m.training) is done]
        return steps + [f"model-{model.name}" for model in models]

    def wanted(self, until: str | None) -> list[Step]:
        """Return the steps that `until` needs, else those of a comparison, else all; inputs first."""
        end_steps = [self.step(until)] if until else self.comparison or list(self.steps.values())
        return _unique(step.walk() for step in end_steps)

    def _add(
        self,
        name: str,
        kind: Kind,
        recipe: Recipe,
        config: str,
        outside: Json = None,
        **inputs: Step,
    ) -> Step:
        step = Step(name, kind, recipe, inputs, outside or {}, config)
        existing_step = self.steps.get(name)
        if existing_step is not None and existing_step.fingerprint != step.fingerprint:
            raise UserError(f"{config}: a second, different step {name!r}; rename one of them")
        return self.steps.setdefault(name, step)

    def _source(self, name: str, source: SourceRecipe, config: str) -> Step:
        recipe = SourceStep(name=name, source=source)
        return self._add(
            f"source-{name}", SOURCE, recipe, config, outside=self._outside(outside_state, source, config)
        )

    def _outside(
        self, state: Callable[[Any], JsonObject], recipe: SourceRecipe | TaskRecipe, config: str
    ) -> JsonObject:
        try:
            return state(recipe)
        except UserError as error:
            if self.strict:
                raise UserError(f"{config}: {error}") from None
            return {"missing": str(error)}

    def _weights(self, owner: str, recipe: WeightsRecipe, config: str) -> Step:
        """Add the step that takes existing weights into the store; `owner` is who begins with them."""
        outside: JsonObject = {}
        try:
            step = resolve(recipe, self.registered)
        except UserError as error:
            message = f"{self.files.source_of(f'{config}.weights')}: {config}.{error}"
            if self.strict:
                raise ConfigError(message) from None
            step = WeightsStep(start=recipe)
            outside = {"missing": message}
        same = (s for s in self.steps.values() if s.kind is WEIGHTS and s.recipe == step)
        return next(same, None) or self._add(f"weights-{owner}", WEIGHTS, step, config, outside)

    def _start(self, owner: str, start: str | WeightsRecipe, config: str) -> Step:
        """Return the step whose weights a training begins with."""
        return self.steps[start] if isinstance(start, str) else self._weights(owner, start, config)

    def _data(self) -> None:
        config = self.config
        if config.mixture is not None:
            self._corpus()
        tokenizer_inputs = {"corpus": self.steps["clean"]} if config.mixture else {}
        if config.tokenizer.kind == "weights" and (weights := config.weights_of_tokenizer) is not None:
            owner = next((n for n, stage in config.stages.items() if stage.start == weights), "experts")
            key = "experts.start" if owner == "experts" else f"stages.{owner}.start"
            tokenizer_inputs["weights"] = self._weights(owner, weights, key)
        tokenizer = self._add(
            "tokenizer",
            TOKENIZER,
            config.tokenizer,
            "tokenizer",
            file_state(config.tokenizer.path),
            **tokenizer_inputs,
        )
        if config.mixture is not None:
            # Experts' benchmarks are only reported: another expert must not cost another Stage I.
            sets = {
                f"task-{key}": self._task(key, b.task, f"benchmarks.{key}.task") for key, b in self._dropped()
            }
            inputs = {"corpus": self.steps["clean"], "tokenizer": tokenizer, **sets}
            self._add("mixture", MIXTURE, config.mixture, "mixture", **inputs)
        flan = config.flan
        lengths = config.pairs_lengths
        if flan is not None and lengths is not None:
            shares = {str(group): share for group, share in flan.shares.items()}
            parts = {str(group): weights for group, weights in flan.parts.items()}
            self._pairs("flan", flan.tasks, "flan", lengths, flan.over_long, shares, parts)

    def _corpus(self) -> None:
        """Add the sources and their cleaning."""
        config = self.config
        sources = {
            name: self._source(name, source, f"sources.{name}") for name, source in config.sources.items()
        }
        filters = {True: config.clean, False: None}
        recipe = CorpusRecipe(
            sources={
                name: filters[source.clean] if isinstance(source.clean, bool) else source.clean
                for name, source in config.sources.items()
            }
        )
        self._add("clean", CORPUS, recipe, "clean", **sources)

    def _dropped(self) -> list[tuple[str, BenchmarkRecipe]]:
        """Benchmarks whose records the mixture leaves out."""
        mixture = self.config.mixture
        return list(self.config.benchmarks.items()) if mixture and mixture.drop_contaminated else []

    def _contamination(self) -> None:
        """Add the search for contamination: a leaf that reads everything and that nothing waits for."""
        sets = sorted({b for e in self.experts.values() for b in e.benchmarks} | set(self.config.benchmarks))
        trained_tasks = {name for expert in self.experts.values() for name in expert.tasks}
        if "flan" in self.steps and self.config.flan is not None:
            trained_tasks.update(self.config.flan.tasks)
        tasks = sorted(trained_tasks)
        inputs = {f"task-{name}": self.step(f"task-{name}") for name in {*sets, *tasks}}
        if self.config.mixture is not None:
            inputs |= {"corpus": self.steps["clean"], "mixture": self.steps["mixture"]}
        recipe = ContaminationRecipe(sets=tuple(sets), tasks=tuple(tasks))
        self._add("contamination", CONTAMINATION, recipe, "", **inputs)

    def _task(self, name: str, task: TaskRecipe, config: str) -> Step:
        step = TaskStep(name=name, task=task)
        return self._add(f"task-{name}", TASK, step, config, outside=self._outside(task_state, task, config))

    def _pairs(
        self,
        name: str,
        tasks: Mapping[str, TaskRecipe],
        config: str,
        lengths: TrainRecipe,
        over_long: Literal["drop", "truncate"],
        shares: dict[str, float] | None,
        parts: dict[str, dict[str, float]],
        tokenizer: Step | None = None,
    ) -> Step:
        recipe = InstructRecipe(
            tasks={task: recipe.group or recipe.source.language for task, recipe in tasks.items()},
            shares=shares,
            part_of={task: recipe.part for task, recipe in tasks.items() if recipe.part is not None},
            parts=parts,
            encoder_length=lengths.encoder_length,
            decoder_length=lengths.decoder_length,
            over_long=over_long,
        )
        steps = {
            f"task-{task}": self._task(task, recipe, f"{config}.tasks.{task}")
            for task, recipe in tasks.items()
        }
        inputs = {"tokenizer": tokenizer or self.steps["tokenizer"], **steps}
        return self._add(name, INSTRUCT, recipe, config, **inputs)

    def _train(
        self,
        name: str,
        recipe: TrainRecipe,
        config: str,
        *,
        model: ModelRecipe,
        inputs: Mapping[str, Step],
        part: str | None = None,
        start_step: int | None = None,
    ) -> None:
        longest = max(recipe.encoder_length, recipe.decoder_length)
        if longest > (limit := model.positions):
            raise ConfigError(f"model.positions: {limit} are fewer than {name}'s {longest} tokens; raise it")
        runtime = self.config.runtime
        try:
            check_training(recipe, runtime.for_expert() if self._is_expert(name) else runtime)
        except UserError as error:
            raise ConfigError(f"{name}: {error}") from None
        if recipe.adapter is not None and "start" not in inputs:
            raise ConfigError(f"{name}: adapter: it stands on weights that exist, and there is no start")
        step = TrainStep(model=model, train=recipe, part=part, start_step=start_step)
        self._add(name, TRAIN, step, config, **{"tokenizer": self.steps["tokenizer"], **inputs})

    def _stages(self) -> None:
        for name, stage in self.config.stages.items():
            models = {name: self.config.model}
            if name == self.config.first_stage:
                models |= {self._compared(shape): model for shape, model in self.config.ablation.items()}
            inputs = {"data": self.steps["mixture" if stage.part else "flan"]}
            if stage.start is not None:
                inputs["start"] = self._start(name, stage.start, f"stages.{name}.start")
            for step, model in models.items():
                self._train(
                    step,
                    stage.recipe,
                    f"stages.{name}",
                    model=model,
                    part=stage.part,
                    start_step=stage.start_step,
                    inputs=inputs,
                )

    def _fine_tunes(self) -> None:
        shared = self.config.experts.start or self.config.last_stage
        for name, expert in self.experts.items():
            if expert.start is not None:
                start = self._weights(name, expert.start, f"experts.{name}.start")
            elif shared is not None:
                start = self._start("experts", shared, "experts.start")
            tokenizer = self._grown_tokenizer(name, expert)
            pairs = self._pairs(
                f"pairs-{name}", expert.tasks, f"experts.{name}", expert.train, expert.over_long, None, {},
                tokenizer,
            )  # fmt: skip
            inputs = {"data": pairs, "start": start, "tokenizer": tokenizer}
            self._train(name, expert.train, f"experts.{name}.train", model=self.config.model, inputs=inputs)
        for name, transfer in self.transfers.items():
            train = self.experts[transfer.expert].train.model_copy(update={"seed": transfer.seed})
            pairs = self.steps[f"pairs-{transfer.expert}"]
            inputs = {"data": pairs, "tokenizer": pairs.inputs["tokenizer"]}
            if transfer.start != "nothing":
                inputs["start"] = self.steps[transfer.start]
            config = f"experts.{transfer.expert}.train"
            self._train(name, train, config, model=self.config.model, inputs=inputs)

    def _grown_tokenizer(self, name: str, expert: ExpertConfig) -> Step:
        """Return the step of an expert's tokenizer: the pipeline's, or one with more tokens."""
        base = self.steps["tokenizer"]
        if expert.grow is None:
            return base
        return self._add(f"tokenizer-{name}", GROWTH, expert.grow, f"experts.{name}.grow", tokenizer=base)

    def _compared(self, shape: str) -> str:
        """Name of the step that trains a shape of `ablation`."""
        return f"{self.config.first_stage}-{shape}"

    def _evaluations(self) -> None:
        # Prompts of all stages are cut alike, so that their scores compare.
        for name in self.config.evaluate:
            last_stage = next(reversed(self.config.stages.values()))
            lengths = self.config.pairs_lengths or last_stage
            for prefix, kept_step in product(self.config.prefixes, [None, *self.kept(name)]):
                self._evaluate(name, self.config.benchmarks, lengths, "benchmarks", prefix, kept_step)
        if self.config.evaluate and self.config.flan is not None:
            self._baselines("baselines", self.config.benchmarks, self.config.flan.tasks)
        for name, expert in self.experts.items():
            self._evaluate(name, expert.benchmarks, expert.train, f"experts.{name}.benchmarks")
            self._baselines(f"baselines-{name}", expert.benchmarks, expert.tasks)

    def _baselines(
        self, name: str, benchmarks: Mapping[str, BenchmarkRecipe], tasks: Mapping[str, TaskRecipe]
    ) -> None:
        trained_tasks = {
            key: tuple(task for task, recipe in tasks.items() if benchmark.task.asks_the_same(recipe))
            for key, benchmark in benchmarks.items()
        }
        if not any(trained_tasks.values()):
            return
        task_names = {*benchmarks, *(task for group in trained_tasks.values() for task in group)}
        inputs = {f"task-{task}": self.step(f"task-{task}") for task in sorted(task_names)}
        self._add(
            name, BASELINES, BaselinesStep(benchmarks=dict(benchmarks), trained=trained_tasks), "", **inputs
        )

    def _evaluate(
        self,
        name: str,
        benchmarks: Mapping[str, BenchmarkRecipe],
        lengths: TrainRecipe,
        config: str,
        prefix: Literal["R", "S", "X"] = "S",
        kept_step: int | None = None,
    ) -> None:
        length = lengths.encoder_length
        recipe = EvaluateStep(benchmarks=dict(benchmarks), encoder_length=length, prefix=prefix, at=kept_step)
        tasks = {
            f"task-{key}": self._task(key, b.task, f"{config}.{key}.task") for key, b in benchmarks.items()
        }
        step = evaluation_name(name, prefix, kept_step)
        self._add(step, EVALUATE, recipe, config, model=self.step(name), **tasks)

    def _check_target(self) -> None:
        """Refuse a target that no evaluation of the pipeline scores."""
        if (target := self.config.target) is None:
            return
        step = self.steps.get(evaluation_name(target.step))
        benchmarks = step.recipe.benchmarks if step and isinstance(step.recipe, EvaluateStep) else {}
        if target.benchmark not in benchmarks or target.metric not in benchmarks[target.benchmark].metrics:
            raise ConfigError(
                f"{self.files.source_of('target.step')}: target: no evaluation scores {target.metric} of "
                f"{target.step} on {target.benchmark}; name one of its benchmarks and metrics"
            )


def evaluation_name(model: str, prefix: str = "S", kept_step: int | None = None) -> str:
    """Return the step that evaluates a model, or its weights at a step, with prompts of this mode token."""
    mode_suffix = "" if prefix == "S" else f"-{prefix}"
    return f"evaluate-{model}{mode_suffix}{'' if kept_step is None else f'-at-{kept_step}'}"


def _unique(walks: Iterable[Iterator[Step]]) -> list[Step]:
    return list({step.name: step for walk in walks for step in walk}.values())


def find_pipeline(name: str) -> Path:
    """`tiny` names configs/pipeline/tiny.yaml; a path names a file.

    Raises:
        ConfigError: neither is there.
    """
    return find_config("pipeline", name)
