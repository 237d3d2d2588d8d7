"""Energy and carbon: the paper's method from device hours, and one machine's own counters.

The paper multiplies hours by nominal watts (section 4.2); the meter reads what NVML and RAPL count.
A counter that is not there gives None: nothing here is estimated. codecarbon's estimate is `estimate.py`'s.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypedDict

from openba.recipes.runtime import PipelineRuntime

POWERCAP = Path("/sys/class/powercap")

JOULES_PER_KWH = 3.6e6
# An Intel package counter wraps at 262 kJ: after 11 minutes at 400 W. Reads must come more often.
_SECONDS_BETWEEN_READS = 30.0


class Carbon(NamedTuple):
    """Energy in kWh and emission in t CO2eq."""

    kwh: float
    tco2eq: float


class TrainFacts(TypedDict):
    """Facts of a finished training step that `cost` reads."""

    flops: float
    """The model's, at padded lengths."""
    flops_useful: float
    """The model's, each sample at its own lengths."""
    flops_hardware: float
    """The same with what was computed again."""
    training_seconds: float
    """Over all attempts."""
    workers: int
    """Devices that were busy for that time."""
    energy_joules: dict[str, float | None] | None
    """`EnergyMeter.joules()`, summed over nodes and attempts; None where no meter ran."""
    energy_estimated: dict[str, float | None]
    """What `estimated` yields, summed likewise; empty where codecarbon was not asked for."""


class Cost(TypedDict):
    """Cost of one training step, by the paper's method and as measured."""

    flops: float
    flops_useful: float
    flops_hardware: float
    """These three as in `TrainFacts`."""
    device_hours: float
    energy_kwh_paper: float
    tco2eq_paper: float
    energy_joules_measured: float | None
    """Sum of the domains that the machine could tell; None if it could tell none."""
    energy_domains: list[str]
    """Which domains those are: `cpu`, `gpu`."""
    energy_kwh_measured: float | None
    """The same in kWh times PUE."""
    tco2eq_measured: float | None
    energy_kwh_estimated: float | None
    """codecarbon's, times PUE; None where it was not asked for or an attempt died."""
    tco2eq_estimated: float | None
    """Of it, by the grid of the runtime's country."""
    tflops_per_device: float | None
    """Padded, as the paper counts; None for a step that took no time, as are the three below."""
    utilisation: float | None
    """MFU at padded lengths: share of the device's peak."""
    utilisation_useful: float | None
    """MFU of real tokens."""
    utilisation_hardware: float | None
    """HFU of real tokens."""
    money: float | None
    """Device hours at the runtime's price; None where it states none."""


def paper_energy(
    device_hours: float, watts: float, pue: float = 1.1, carbon_intensity: float = 0.385
) -> Carbon:
    """Paper section 4.2 and equation 2: hours * watts * PUE, and tCO2eq = MWh * 0.385.

    38,214 A100 hours at 400 W give 16.8 MWh and 6.5 t, as in Table 5.
    """
    kwh = device_hours * watts * pue / 1000
    return Carbon(kwh, kwh / 1000 * carbon_intensity)


def cost(facts: TrainFacts, runtime: PipelineRuntime) -> Cost:
    """Cost of one training step on the runtime's devices."""
    device = runtime.device
    seconds = facts["training_seconds"] * facts["workers"]
    hours = seconds / 3600
    carbon = paper_energy(hours, device.watts, runtime.pue, runtime.carbon_intensity)
    measured = {domain: j for domain, j in (facts["energy_joules"] or {}).items() if j is not None}
    joules = sum(measured.values()) if measured else None
    kwh = None if joules is None else joules / JOULES_PER_KWH * runtime.pue
    kg = facts["energy_estimated"].get("kgco2eq")

    def rate(flops: float) -> float | None:
        return flops / seconds / 1e12 if seconds else None

    def share(flops: float) -> float | None:
        return flops / seconds / 1e12 / device.peak_tflops if seconds else None

    return {
        "flops": facts["flops"],
        "flops_useful": facts["flops_useful"],
        "flops_hardware": facts["flops_hardware"],
        "device_hours": hours,
        "energy_kwh_paper": carbon.kwh,
        "tco2eq_paper": carbon.tco2eq,
        "energy_joules_measured": joules,
        "energy_domains": sorted(measured),
        "energy_kwh_measured": kwh,
        "tco2eq_measured": None if kwh is None else kwh / 1000 * runtime.carbon_intensity,
        "energy_kwh_estimated": facts["energy_estimated"].get("kwh"),
        "tco2eq_estimated": None if kg is None else kg / 1000,
        "tflops_per_device": rate(facts["flops"]),
        "utilisation": share(facts["flops"]),
        "utilisation_useful": share(facts["flops_useful"]),
        "utilisation_hardware": share(facts["flops_hardware"]),
        "money": None if runtime.price is None else hours * runtime.price,
    }


def totals(parts: list[dict[str, float | None] | None]) -> dict[str, float | None]:
    """Sum by name over nodes or attempts; None where one of them has no figure, since a part is no total."""
    names = sorted({name for figures in parts for name in figures or {}})
    read = {name: [(figures or {}).get(name) for figures in parts] for name in names}
    return {
        name: None if None in values else sum(value for value in values if value is not None)
        for name, values in read.items()
    }


@dataclass
class Counter:
    """A hardware energy counter that only rises, and starts again at zero beyond `wraps_at` joules."""

    read: Callable[[], float | None]
    """Joules since some moment in the past; None if it cannot be read."""
    wraps_at: float | None = None
    joules: float | None = None
    """Used since `start`; None from the first reading that failed."""
    _last: float | None = None

    def start(self) -> None:
        """Count from now."""
        self._last = self.read()
        self.joules = None if self._last is None else 0.0

    def update(self) -> None:
        """Add what was used since the last reading; right if it wrapped at most once in between."""
        now = self.read()
        if self.joules is None or self._last is None or now is None:
            self.joules = None
            return
        if now < self._last and self.wraps_at is None:  # it was reset, by a driver reload for instance
            self.joules = None
            return
        self.joules += now - self._last + (self.wraps_at or 0.0) * (now < self._last)
        self._last = now


_MIRROR_JOULES = 1.0


class EnergyMeter:
    """Joules that this node uses inside the `with` block; one meter per node, never one per worker.

    `joules()` is `{"gpu": ..., "cpu": ...}`: NVML's total-energy counters of the visible devices (Volta
    and later) and RAPL's package counters, which root alone may read on most systems. Both count the
    whole device, whoever uses it. A domain that the machine cannot read, wholly or for one of its
    devices, is None. NVML updates about every 100 ms and is good to some 5 %: measure 10 s or more.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._nvml: Any = None
        self._powercap = powercap
        self._counters: dict[str, list[Counter]] = {"gpu": [], "cpu": []}
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read_on, name="energy-meter", daemon=True)

    def __enter__(self) -> EnergyMeter:
        self._nvml, gpu = _nvml_counters()
        self._counters = {"gpu": gpu, "cpu": _rapl_counters(self._powercap)}
        for counter in self._all():
            counter.start()
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._reader.join()
        for counter in self._all():
            counter.update()
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def joules(self) -> dict[str, float | None]:
        """Joules by domain, up to the last reading; final when the block has ended."""
        return {domain: _total(counters) for domain, counters in self._counters.items()}

    def _all(self) -> list[Counter]:
        return [counter for counters in self._counters.values() for counter in counters]

    def _read_on(self) -> None:
        while not self._stop.wait(_SECONDS_BETWEEN_READS):
            for counter in self._all():
                counter.update()


def _total(counters: list[Counter]) -> float | None:
    # A sum that leaves a device out would look like a small one: then there is no figure.
    readings = [counter.joules for counter in counters if counter.joules is not None]
    return sum(readings) if readings and len(readings) == len(counters) else None


def _rapl_counters(powercap: Path) -> list[Counter]:
    """One per CPU package, or per die where dies count apart.

    `intel-rapl-mmio:*` counts the same packages again and is left out. On AMD's multi-die processors each
    `package-N-die-M` mirrors the counter of the whole socket, which is then counted once (codecarbon #1274).
    """
    counted: dict[tuple[str, str], float | None] = {}
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = _read_text(zone / "name")
        if not name.startswith("package"):
            continue
        package = name.partition("-die-")[0]
        joules = _microjoules(zone / "energy_uj")
        if any(
            package == other_package and (name == other_name or _is_mirror(joules, other_joules))
            for (other_package, other_name), other_joules in counted.items()
        ):
            continue
        counted[package, name] = joules
        wraps_at = _microjoules(zone / "max_energy_range_uj")
        counters.append(Counter(partial(_microjoules, zone / "energy_uj"), wraps_at=wraps_at))
    return counters


def _is_mirror(joules: float | None, other: float | None) -> bool:
    """Whether two counters since the machine's start are one: read within a millisecond, < 1 J apart."""
    return joules is not None and other is not None and joules > 0 and abs(joules - other) < _MIRROR_JOULES


def _microjoules(file: Path) -> float | None:
    text = _read_text(file)
    return float(text) / 1e6 if text else None


def _read_text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # absent, or readable by root only: the machine cannot tell
        return ""


def _nvml_counters() -> tuple[Any, list[Counter]]:
    """NVML, to be shut down by the caller, and one counter per visible device; (None, []) without NVML."""
    import pynvml

    try:
        pynvml.nvmlInit()
        everything = ",".join(map(str, range(pynvml.nvmlDeviceGetCount())))
    except pynvml.NVMLError:
        return None, []
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", everything).split(",")]
    return pynvml, [Counter(partial(_device_joules, name)) for name in names if name not in ("", "-1")]


def _device_joules(name: str) -> float | None:
    """Joules of one device, named by UUID or number; None where it, or a MIG slice, has no counter."""
    import pynvml

    try:
        # Numbers are taken in PCI order, which is also CUDA's where all devices of a node are alike.
        by_number = name.isdigit()
        find = pynvml.nvmlDeviceGetHandleByIndex if by_number else pynvml.nvmlDeviceGetHandleByUUID
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(find(int(name) if by_number else name)) / 1000
    except pynvml.NVMLError:
        return None
