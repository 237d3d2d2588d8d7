"""configs/pipeline/*.yaml: the whole story in one mapping."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from openba.artifacts import Recipe
from openba.json_types import JsonObject
from openba.recipes.clean import CleanRecipe
from openba.recipes.data import MixtureRecipe, SourceRecipe, TaskRecipe, TokenizerRecipe
from openba.recipes.evaluate import BenchmarkRecipe, Metric
from openba.recipes.growth import GrowthRecipe
from openba.recipes.model import ModelRecipe
from openba.recipes.numbers import Layers, NonNegative, Positive, PositiveSteps, Seed, Share
from openba.recipes.runtime import PipelineRuntime
from openba.recipes.start import WeightsRecipe
from openba.recipes.train import TrainRecipe


def _remove_null(section: Any) -> Any:
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if value is not None}


_without_null = BeforeValidator(_remove_null)
"""For sections whose entries a file that extends another can remove, by setting them to null."""


class FlanConfig(Recipe):
    """Data of instruction stages: tasks of two language groups, mixed by share of samples."""

    tasks: dict[str, TaskRecipe]
    shares: dict[Literal["en", "zh"], Share] = {"en": 0.667, "zh": 0.333}
    parts: dict[Literal["en", "zh"], dict[str, NonNegative]] = {}
    """Group -> sub-mixture (a task's `part`) -> its weight in the group; 0 leaves the part's tasks out."""
    over_long: Literal["drop", "truncate"] = "drop"

    @model_validator(mode="after")
    def _parts_have_tasks(self) -> FlanConfig:
        for group, weights in self.parts.items():
            tasks = {n: t.part for n, t in self.tasks.items() if (t.group or t.source.language) == group}
            if odd := sorted(name for name, part in tasks.items() if part not in weights):
                raise ValueError(
                    f"parts.{group} has no weight for the part {tasks[odd[0]]!r} of task {odd[0]}"
                )
            if idle := sorted(part for part in weights if weights[part] > 0 and part not in tasks.values()):
                raise ValueError(f"parts.{group}.{idle[0]}: no task is of this part; set it to 0 or add one")
        return self


class StageConfig(TrainRecipe):
    """One stage: a training with its title, the data it reads and the weights it begins with."""

    title: str
    """For the report and the registry."""
    part: str | None = None
    """Part of the mixture that it reads; none: the pairs of `flan`."""
    start: str | WeightsRecipe | None = None
    """The stage whose weights it begins with, or weights that exist; none: fresh weights."""
    start_step: PositiveSteps | None = None
    """Begin with the weights that `start` kept after this step (its `keep_every`); none: those of its end."""

    @property
    def recipe(self) -> TrainRecipe:
        """The training alone."""
        return TrainRecipe.model_construct(**{name: getattr(self, name) for name in TrainRecipe.model_fields})


def _in_order(stages: dict[str, StageConfig]) -> dict[str, StageConfig]:
    """Order stages as written, but each after its start: a file that extends another adds at the end."""
    ordered: dict[str, StageConfig] = {}

    def add(name: str, followers: tuple[str, ...]) -> None:
        if name in followers:
            raise ValueError(f"{followers[-1]}.start: {name} starts from itself; break the circle")
        if name not in stages:
            raise ValueError(f"{followers[-1]}.start: no stage {name!r}; there are {', '.join(stages)}")
        start = stages[name].start
        if isinstance(start, str):
            add(start, (*followers, name))
        ordered.setdefault(name, stages[name])

    for name in stages:
        add(name, ())
    return ordered


class ExpertConfig(Recipe):
    """configs/finetune/*.yaml: one expert, fine-tuned from a stage."""

    title: str
    """What it does, for the report and the registry."""
    register_as: str
    """Name in the model registry."""
    tasks: dict[str, TaskRecipe]
    benchmarks: dict[str, BenchmarkRecipe]
    over_long: Literal["drop", "truncate"] = "drop"
    start: WeightsRecipe | None = None
    """Weights that exist, to be fine-tuned by this expert; none: those of `experts.start`."""
    grow: GrowthRecipe | None = None
    """Tokens that this expert adds to the tokenizer; none: it reads and writes with the pipeline's."""
    train: TrainRecipe


class ExpertsConfig(Recipe):
    """Folder of the experts' recipes, in which every YAML file is one expert."""

    folder: str | None = None
    """A relative path starts at the folder of the file that sets it; of `--set`, at the working directory.
    None: there are no experts."""
    start: str | WeightsRecipe | None = None
    """The stage that experts are fine-tuned from, or weights that exist; none: the last stage."""
    train: JsonObject = Field(default_factory=dict)
    """Laid over every expert's `train`, such as a smaller budget."""


class GateConfig(Recipe):
    """configs/gate/*.yaml: when a candidate becomes champion. None or False leaves a rule out."""

    heldout_loss: NonNegative | None
    """Nats per token that its held-out loss may be above the champion's."""
    evaluation: bool
    """Every benchmark that its evaluation declares has run."""
    standard_errors: NonNegative | None
    """No benchmark may be worse than the champion's by more of them, of the difference of both scores."""
    contamination: Share | None
    """Largest share of a benchmark's records that stand in the training data (`dirty` of the report)."""
    trained_on: tuple[str, ...] = ()
    """Benchmarks of what the model was taught on purpose, such as its name; `contamination` skips them."""
    licences: bool
    """All that it was trained on states a licence, and so do the weights; the card names both."""
    export: bool
    """transformers loads the exported folder in a clean process and computes the logits that openba does."""
    energy: bool
    """The energy and carbon of its training are known, from hours and watts at least."""
    approval: bool
    """A person says yes before it becomes champion."""


class RegisterConfig(Recipe):
    """Registered name -> stage whose weights it holds; the experts add themselves."""

    models: Annotated[dict[str, str], _without_null]
    licence: str = ""
    """Of the weights."""
    gate: GateConfig


class TransferConfig(Recipe):
    """Comparison of starts: each expert is trained from every one, with the same budget."""

    starts: tuple[str, ...]
    """Stages whose weights to begin with; of `nothing` they are random. Gains are relative to it."""
    seeds: tuple[Seed, ...] = Field(min_length=2)
    """Of the order of the data and of random weights; the spread over them is the error."""

    @model_validator(mode="after")
    def _can_compare(self) -> TransferConfig:
        if "nothing" not in self.starts or len(set(self.starts)) < len(self.starts) or len(self.starts) < 2:
            raise ValueError("starts: give 'nothing' and one or more stages, each once")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice, so it would be no measurement of its own")
        return self


class TargetConfig(Recipe):
    """The score that runs of a pipeline are ranked by (`openba leaderboard`)."""

    step: str
    """The training whose evaluation has it."""
    benchmark: str
    metric: Metric


class PipelineConfig(Recipe):
    """One pipeline."""

    name: str
    size: Layers | None = None
    """Decoder layers; shape, batches, rates and budgets follow from it (`openba.recipes.dial`). None: each is
    stated by itself."""
    tokens_per_parameter: Positive = 20.0
    """With `size`: padded tokens of Stage I for each parameter of the layers."""
    target: TargetConfig | None = None
    sources: dict[str, SourceRecipe] = {}
    """Text of the mixture."""
    clean: CleanRecipe | None = None
    """Filters of the sources."""
    tokenizer: TokenizerRecipe
    mixture: MixtureRecipe | None = None
    """Parts of the sources that stages read; none: no stage reads text."""
    model: ModelRecipe
    stages: Annotated[dict[str, StageConfig], _without_null, AfterValidator(_in_order)] = {}
    """Stage name -> its training, in the order of training. A stage set to null is left out; there may be
    none where experts begin with weights that exist."""
    flan: FlanConfig | None = None
    """Pairs of the stages that read no part of the mixture."""
    experts: ExpertsConfig = ExpertsConfig()
    benchmarks: dict[str, BenchmarkRecipe] = {}
    """What the base stages are evaluated on."""
    evaluate: tuple[str, ...] = ()
    """Stages to evaluate."""
    prefixes: tuple[Literal["R", "S", "X"], ...] = ("S",)
    """Mode tokens that the base stages' prompts begin with, each an evaluation (Figure 6(d))."""
    registry: RegisterConfig
    runtime: PipelineRuntime
    ablation: dict[str, ModelRecipe] = {}
    """Shapes to compare by the first stage alone (section 5.1); a pipeline that has any builds only these."""
    transfer: TransferConfig | None = None
    """Starts to compare by the experts; a pipeline that has it builds these, and no evaluation."""
    report_banner: str = ""
    """Shown on top of the report, such as a warning that the scores are of a toy."""

    @model_validator(mode="after")
    def _has_what_it_trains_on(self) -> PipelineConfig:
        if self.mixture is not None and (self.clean is None or not self.sources):
            raise ValueError("mixture: needs `sources` and `clean`, from which it is made")
        if self.tokenizer.kind == "unigram" and self.mixture is None:
            raise ValueError(
                "tokenizer: kind unigram is trained on the sources of a mixture, and there is none"
            )
        if not self.stages and self.experts.start is None and self.experts.folder is not None:
            raise ValueError("experts.start: there is no stage; name the weights that they begin with")
        if not self.stages and self.experts.folder is None:
            raise ValueError("stages: there is neither a stage nor an expert, hence nothing to train")
        if self.tokenizer.kind == "weights" and self.weights_of_tokenizer is None:
            raise ValueError(
                "tokenizer: kind weights takes that of the weights at the start, and there are none"
            )
        return self

    @model_validator(mode="after")
    def _groups(self) -> PipelineConfig:
        if self.mixture is None:
            return self
        shares = self.mixture.shares
        other_languages = {
            str(source.language) for name, source in self.sources.items() if name not in shares
        }
        if unknown := sorted(shares.keys() - self.sources.keys() - other_languages):
            raise ValueError(
                f"mixture.shares: {', '.join(unknown)}: neither a source ({', '.join(self.sources)}) "
                f"nor the language of one that has no share of its own"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> PipelineConfig:
        for name, stage in self.stages.items():
            if problem := self._problem_of(stage):
                raise ValueError(f"stages.{name}.{problem}")
        references = [("evaluate", name) for name in self.evaluate]
        if isinstance(self.experts.start, str):
            references.append(("experts.start", self.experts.start))
        if self.transfer is not None:
            references += [("transfer.starts", name) for name in self.transfer.starts if name != "nothing"]
        references += [(f"registry.models.{key}", name) for key, name in self.registry.models.items()]
        for key, name in references:
            if name not in self.stages:
                raise ValueError(f"{key}: no stage {name!r}; there are {', '.join(self.stages)}")
        return self

    def _problem_of(self, stage: StageConfig) -> str | None:
        """Describe what is wrong with a stage, beginning with its key."""
        if stage.start_step is not None:
            if not isinstance(stage.start, str):
                return "start_step: needs `start`, the stage that kept the weights"
            if stage.start_step not in (kept_steps := self.stages[stage.start].kept):
                kept_text = ", ".join(map(str, kept_steps)) or "none; set its keep_every"
                return f"start_step: {stage.start} keeps no weights of step {stage.start_step} ({kept_text})"
        if stage.reads_pairs:
            if stage.part is not None:
                return f"part: the objective {stage.data.objective!r} reads the pairs of flan; remove it"
            if self.flan is None:
                return "data: reads the pairs of flan, which is not set"
            longest = self.pairs_lengths or stage
            lengths = (longest.encoder_length, longest.decoder_length)
            if (stage.encoder_length, stage.decoder_length) != lengths:
                return f"encoder_length: all stages that read flan need the same lengths, {lengths}"
            return None
        if self.mixture is None:
            return "data: reads a part of the mixture, which is not set"
        if stage.part not in self.mixture.parts:
            parts = ", ".join(self.mixture.parts)
            return f"part: {stage.part} is not a part of the mixture ({parts}); add it to mixture.parts"
        return None

    @property
    def weights_of_tokenizer(self) -> WeightsRecipe | None:
        """The first weights that exist, in the order of training: those whose tokenizer is taken."""
        starts = [*(stage.start for stage in self.stages.values()), self.experts.start]
        return next((start for start in starts if isinstance(start, WeightsRecipe)), None)

    @property
    def first_stage(self) -> str | None:
        """The stage that begins the training and by which shapes are compared; none: there are no stages."""
        return next(iter(self.stages), None)

    @property
    def last_stage(self) -> str | None:
        """The stage that experts are fine-tuned from by default; none: there are no stages."""
        return next(reversed(self.stages), None)

    @property
    def pairs_lengths(self) -> TrainRecipe | None:
        """The last stage that reads `flan`, whose lengths its pairs fit; none if no stage reads it."""
        return next((stage for stage in reversed(self.stages.values()) if stage.reads_pairs), None)
