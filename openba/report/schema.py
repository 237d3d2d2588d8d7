"""The form of `report.json`, which the page shows and programs can read.

Owns names and units only. Everything is optional: a missing value is shown as "not run", never as 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from openba.json_types import JsonObject

if TYPE_CHECKING:  # it loads the compiled search, which a page does not need
    from openba.data.contamination import SetFacts


class Git(TypedDict):
    """Commit of the code that ran; `dirty` if the checkout had uncommitted changes."""

    commit: str
    dirty: bool


class StepState(TypedDict):
    """One step of the pipeline."""

    name: str
    title: NotRequired[str]
    fingerprint: str
    state: Literal["built", "cached", "not run", "failed"]
    seconds: NotRequired[float | None]
    uri: NotRequired[str | None]


class FunnelRow(TypedDict):
    """Amounts of one source before and after one cleaning stage; rows in the order of the stages."""

    source: str
    stage: str
    documents_in: int
    documents_out: int
    bytes_in: int
    bytes_out: int
    tokens_in: NotRequired[int]
    tokens_out: NotRequired[int]
    """Bytes over the tokenizer's bytes per token of the source's language; missing without a tokenizer."""


class Quarantined(TypedDict):
    """Files and rows of a source that could not be read."""

    source: str
    files: int
    rows: int
    first: list[str]
    """File, row and reason of the first of them."""


class Example(TypedDict):
    """A text before and after a cleaning stage, at a place that one of its rules found."""

    rule: NotRequired[str]
    before: str
    after: str


class Mixture(TypedDict, total=False):
    """Languages of the corpus: the recipe's shares of tokens; tokens by stage and language; documents."""

    shares_wanted: dict[str, float]
    tokens: dict[str, dict[str, int]]
    documents: dict[str, int]


class TokenizerFacts(TypedDict, total=False):
    """The tokenizer on the corpus, by language; the share is of tokens."""

    vocab: int
    characters_per_token: dict[str, float]
    bytes_per_token: dict[str, float]
    byte_or_unknown_share: dict[str, float]


class CurvePoint(TypedDict):
    """A logged training step; loss in nats per target token."""

    step: int
    loss: float
    tokens_per_second: NotRequired[float | None]
    lr: NotRequired[float]


class HeldoutPoint(TypedDict):
    """Held-out loss after so many steps, over all and by denoiser."""

    step: int
    loss: float
    shuffled: NotRequired[float]
    """Loss with another sample's source; near `loss` if the source is not used."""
    R: NotRequired[float]
    S: NotRequired[float]
    X: NotRequired[float]


class Training(TypedDict):
    """A training run; one with `baseline_heldout` is an expert's."""

    step: str
    title: str
    parameters: NotRequired[int]
    steps: NotRequired[int]
    tokens: NotRequired[int]
    curve: NotRequired[list[CurvePoint]]
    heldout: NotRequired[list[HeldoutPoint]]
    baseline_heldout: NotRequired[float | None]
    """Loss of the Stage III model on this expert's held-out data."""
    cost: NotRequired[JsonObject]
    """`openba.accounting.energy.Cost`."""
    resumed: NotRequired[int]
    """How often it resumed from a checkpoint."""
    source_alarms: NotRequired[list[str]]
    """Faults that the last measurement found (`openba.train.source_use`)."""


class PaperFigure(TypedDict):
    """The figure of the paper that compares best."""

    value: float
    where: str


class Sample(TypedDict):
    """One generation."""

    input: str
    target: str
    output: str


class Scored(TypedDict):
    """Metric -> score and standard error."""

    scores: dict[str, float]
    stderr: dict[str, float]


class Baselines(TypedDict):
    """Baselines of a benchmark, scored on the same records as the model."""

    trained_on: int
    """Training pairs of the classical models: those of the tasks that the model itself was trained on."""
    chance: dict[str, float]
    """Metric -> expected score of a random choice, for benchmarks with choices."""
    methods: dict[str, Scored]
    """The most frequent answer, and classical models."""


class Evaluation(TypedDict):
    """One model on one benchmark; scores as they are to be printed."""

    model: str
    benchmark: str
    language: str
    method: str
    n: int
    scores: dict[str, float]
    stderr: NotRequired[dict[str, float]]
    signature: NotRequired[str]
    paper: NotRequired[PaperFigure | None]
    counts: NotRequired[dict[str, int]]
    """Deviations, such as prompts that were cut -> how many."""
    contamination: NotRequired[SetFacts | None]
    """Search for this benchmark's records in the training data (Table 4)."""
    baselines: NotRequired[Baselines | None]
    groups: NotRequired[dict[str, JsonObject]]
    """Group of categories, or `all`: `score`, `stderr`, `n`, `missing`."""
    samples: NotRequired[list[Sample]]


class Registered(TypedDict):
    """One version in the model registry and why it has its aliases."""

    name: str
    version: str | int
    alias: list[str]
    uri: NotRequired[str]
    decision: NotRequired[str]
    reason: NotRequired[str]


class NotRun(TypedDict):
    """A step without output, and the reason."""

    what: str
    why: str


class Report(TypedDict, total=False):
    """All facts that the page shows. Any key may be missing."""

    pipeline: str
    size: int | None
    """The pipeline's `size`, from which its shape and budgets follow; None where it has none."""
    target: dict[str, str] | None
    """`step`, `benchmark` and `metric` of the score that its runs are ranked by."""
    plan: dict[str, float | None]
    """Planned cost of all its trainings: the total of `openba.plan.plan`."""
    banner: str
    git: Git
    hardware: str
    started: float
    """Unix time."""
    seconds: float
    peak_memory_bytes: int | None
    work: dict[str, list[float]]
    """Built step -> Unix times: its process began, its function began and ended."""
    links: dict[str, str]
    """Label -> URL, path or command."""
    steps: list[StepState]
    funnel: list[FunnelRow]
    quarantined: list[Quarantined]
    cleaning_examples: dict[str, list[Example]]
    mixture: Mixture
    contamination: list[SetFacts]
    tokenizer: TokenizerFacts
    training: list[Training]
    ablation: list[JsonObject]
    """`openba.report.ablation.Row`: Figure 5."""
    transfer: list[JsonObject]
    """`openba.report.transfer.Gain`: each expert from several starts."""
    evaluations: list[Evaluation]
    registry: list[Registered]
    not_run: list[NotRun]
