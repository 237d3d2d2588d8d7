"""Execution settings of a pipeline. None changes what is computed, so none is hashed."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from pydantic import field_validator, model_validator

from openba.artifacts import Place, Runtime
from openba.recipes.architecture import Recompute
from openba.recipes.numbers import (
    CarbonIntensity,
    Count,
    CountOrNone,
    DeviceMemory,
    NonNegative,
    NonNegativeSteps,
    ObjectStoreMemory,
    Port,
    Positive,
    PositiveShare,
    PositiveSteps,
    PowerOverhead,
    Seconds,
    TeraFlops,
    Threads,
    Watts,
)
from openba.redact import holds_secret

RunnerName = Literal["local", "ray"]


class DeviceRuntime(Runtime):
    """One accelerator (or CPU core), as its data sheet has it; for the plan and the paper-method energy."""

    name: str
    kind: Literal["cpu", "cuda"]
    peak_tflops: TeraFlops
    """Dense bf16 peak of one device in TFLOP/s (CPU: measured fp32)."""
    watts: Watts
    """Nominal power of one device (paper section 4.2 uses the A100's 400 W)."""
    memory: DeviceMemory
    utilisation: PositiveShare | None = None
    """Share of the peak that training reaches, for `openba plan`; the file says where it was measured. None:
    predicted from the bandwidths below (`openba.accounting.roofline`)."""
    memory_bandwidth: Positive | None = None
    """GB/s of the device's memory, data sheet."""
    multiprocessors: Count = 1
    """Of a GPU, data sheet."""
    link_bandwidth: Positive = 1.0
    """GB/s that a collective moves through each device of a node (bus bandwidth of an all-reduce)."""
    network_bandwidth: Positive = 1.0
    """The same between nodes."""
    devices_per_node: Count = 1

    @model_validator(mode="after")
    def _can_be_planned(self) -> DeviceRuntime:
        if self.utilisation is None and self.memory_bandwidth is None:
            raise ValueError(
                "utilisation: missing; give the share of the peak that was measured, or memory_bandwidth, "
                "multiprocessors, link_bandwidth and network_bandwidth of the data sheet to have it predicted"
            )
        return self


class RayRuntime(Runtime):
    """The embedded Ray head; not used when RAY_ADDRESS names a cluster."""

    cpus: Count = 4
    """Logical CPUs that Ray hands out; workers mostly wait for each other, so more than cores."""
    object_store: ObjectStoreMemory = 100 * 2**20


class ServicesRuntime(Runtime):
    """Ports of the embedded servers; none: the first free one from the usual one on."""

    prefect_port: Port | None = None
    dashboard_port: Port | None = None


class CleanRuntime(Runtime):
    """Sharding of the step `clean`."""

    engine: Literal["processes", "ray"] = "processes"
    """`processes` of the machine that runs the pipeline, or Ray Data on all machines of the cluster, which
    have to see OPENBA_HOME."""


class EvaluateRuntime(Runtime):
    """Sharding of an evaluation."""

    workers: Count = 1
    """1: in the job's own process. More: by Ray Data, each with the model, where OPENBA_HOME is seen."""


class TrainRuntime(Runtime):
    """One worker group."""

    workers: Count
    expert_workers: Count | None = None
    """Of an expert's worker group; several small ones side by side (`parallel_jobs`) wait less. None:
    `workers`."""
    threads: Threads = 1
    """torch threads per worker."""
    micro_batch: Count
    """Samples per forward pass of one worker; accumulation follows from the recipe's batch."""
    batches: Literal["packed", "padded"] = "packed"
    """`packed`: a micro-batch is filled with the tokens of `micro_batch` longest samples, and no padding is
    computed. `padded`: it has `micro_batch` samples at the recipe's full lengths (paper); for comparison."""
    zero_stage: Literal[1, 2, 3] = 1
    """Stage 0 is out: plain data parallelism in fp32 has no overflow path to skip a bad step with."""
    recompute: Recompute = "none"
    """What the backward pass computes again instead of keeping it (see `OpenBAModel.recompute`)."""
    compile: bool = False
    """Compile the model's blocks by torch.compile, on CUDA devices: elementwise chains become one kernel."""
    deterministic: bool = False
    """Take only kernels that give the same bits each time. On a CPU all do; on CUDA a resumed run is then
    bitwise the run that was not interrupted, and slower. Without it attention's gradients are sums in any
    order: a resumed run differs in the last bits."""
    checkpoint_every: PositiveSteps
    keep_checkpoints: Count = 2
    max_failures: CountOrNone = 3
    """How often a died worker group is started again without a new checkpoint since."""
    compare_every: PositiveSteps = 100
    """Steps between comparisons of the workers' copies of the parameters."""
    stall_seconds: Seconds = 60.0
    """A group in which nothing moves for so long, and for twice its usual time, is ended."""
    allow_changes: bool = False
    """Go on from a checkpoint of another model, recipe, tokenizer or data."""
    log_every: PositiveSteps = 1
    profile_after: NonNegativeSteps | None = None
    """Three steps after this one are traced by torch's profiler, into the output's `profile/`."""


class PipelineRuntime(Runtime):
    """configs/runtime/*.yaml."""

    device: DeviceRuntime
    devices: Count
    """All devices of the cluster."""
    tensor_parallel: Count = 1
    """Workers that share each weight; `train.workers` is a multiple of it, the quotient share the data."""
    train: TrainRuntime
    clean: CleanRuntime = CleanRuntime()
    evaluate: EvaluateRuntime = EvaluateRuntime()
    ray: RayRuntime = RayRuntime()
    services: ServicesRuntime = ServicesRuntime()
    tracker: Literal["mlflow", "jsonl"] = "mlflow"
    """Who keeps the runs: MLflow, or the file `runs.jsonl` of the home. The model registry is MLflow's: with
    `jsonl` nothing is registered."""
    runners: dict[Place, RunnerName] = {"flow": "local", "job": "ray", "worker_group": "ray"}
    """Place of a step -> who runs it: processes of this machine, or Ray jobs. A worker group needs Ray."""
    parallel_jobs: Count = 1
    """Ray jobs of one pipeline at a time."""
    job_environment: dict[str, str] = {}
    """Environment of every job, such as NCCL settings. Ray's dashboard shows it, so secrets are refused."""
    pue: PowerOverhead = 1.1
    """Power usage effectiveness (paper section 4.2)."""
    carbon_intensity: CarbonIntensity = 0.385
    """kg CO2eq per kWh (paper equation 2, US average)."""
    codecarbon: str | None = None
    """Country by ISO code, such as CHN: codecarbon estimates each training too, offline. None: no."""
    price: NonNegative | None = None
    """Of one device hour, in your currency; None: costs are not computed."""

    @field_validator("codecarbon")
    @classmethod
    def _known(cls, country: str | None) -> str | None:
        if country is not None:
            from codecarbon.input import DataSource  # its tables; who does not ask for them does not wait

            known_countries = sorted(DataSource().get_global_energy_mix_data())
            if country not in known_countries:
                near = get_close_matches(country.upper(), known_countries) or ["CHN"]
                raise ValueError(f"codecarbon has no country {country!r}; take a code such as {near[0]}")
        return country

    @field_validator("job_environment")
    @classmethod
    def _without_secrets(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if holds_secret(name, value):
                raise ValueError(
                    f"{name} looks like a secret, and Ray's dashboard shows these values; set it in the "
                    "environment of `openba run`, or of the nodes of the cluster that RAY_ADDRESS names"
                )
        return variables

    def for_expert(self) -> PipelineRuntime:
        """Return the runtime of an expert's training."""
        train = self.train
        train_runtime = train.model_copy(update={"workers": train.expert_workers or train.workers})
        return self.model_copy(update={"train": train_runtime})

    @field_validator("runners")
    @classmethod
    def _complete(cls, runners: dict[Place, RunnerName]) -> dict[Place, RunnerName]:
        complete: dict[Place, RunnerName] = {"flow": "local", "job": "ray", "worker_group": "ray", **runners}
        # A worker group needs what Ray Train does: start, process group, restart after a lost node.
        if complete["worker_group"] != "ray":
            raise ValueError("worker_group: worker groups are Ray Train's; only ray runs them")
        if complete["flow"] != "local":
            raise ValueError(
                "flow: these steps need no cluster; clean.engine and evaluate.workers share them out"
            )
        return complete

    @model_validator(mode="after")
    def _together(self) -> PipelineRuntime:
        if self.evaluate.workers > 1 and self.runners["job"] == "local":
            raise ValueError(
                f"evaluate.workers: {self.evaluate.workers} workers are Ray's; runners.job is local"
            )
        if self.tensor_parallel > 1 and self.train.zero_stage == 3:
            raise ValueError(
                f"tensor_parallel {self.tensor_parallel} goes with train.zero_stage 1 or 2; at stage 3 the "
                "weights are shared already, so take tensor_parallel 1"
            )
        if self.train.compile and self.device.kind == "cpu":
            raise ValueError(
                "train.compile is for device.kind cuda: a CPU has kernels written by hand; take compile false"
            )
        if self.evaluate.workers > self.devices:
            raise ValueError(
                f"evaluate.workers: {self.evaluate.workers} workers need a device each, but devices is "
                f"{self.devices}; they would be waited for for ever"
            )
        return self
