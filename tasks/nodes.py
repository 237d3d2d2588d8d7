"""System metrics of each node of a worker group: one thread per node writes a file, which MLflow mirrors.

Owns the figures and their file, `nodes/ADDRESS.jsonl` in a stage's folder. Names are those of MLflow's system
metrics, which its pages show by themselves; MLflow's own meter would need its server from every worker.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from openba.train.log import read_rows

FOLDER = "nodes"
NAMES = (
    "cpu_utilization_percentage",
    "system_memory_usage_percentage",
    "gpu_utilization_percentage",
    "gpu_memory_usage_percentage",
    "gpu_power_usage_watts",
)
"""Devices: means over all of the node's, watts their sum. A node without any has none of the last three."""
_SECONDS = 10.0


class NodeMeter:
    """Measures this node every 10 s while the `with` block runs."""

    def __init__(self, stage_folder: Path, node_address: str) -> None:
        """Args: the stage's folder; what the node is called, an own name for each."""
        self.file = stage_folder / FOLDER / f"{node_address}.jsonl"
        self._end = threading.Event()
        self._measurer = threading.Thread(target=self._measure_on, name="node-meter", daemon=True)

    def __enter__(self) -> NodeMeter:
        self.file.parent.mkdir(exist_ok=True)
        self._measurer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._measurer.join()

    def _measure_on(self) -> None:
        psutil.cpu_percent()  # the first answer is of no time at all
        # Steps go on from the rows of an earlier attempt on this node.
        measurement_count = len(read_rows(self.file))
        # cpu_percent is a mean since the call before; over no time it means nothing.
        self._end.wait(1.0)
        while True:
            measurement_count += 1
            with self.file.open("a") as metrics_file:
                metrics_file.write(
                    json.dumps({"step": measurement_count, "time": time.time(), **measure()}) + "\n"
                )
            if self._end.wait(_SECONDS):
                return


def measure() -> dict[str, float]:
    """Return the node's figures since the last call, by name."""
    values = (psutil.cpu_percent(), psutil.virtual_memory().percent, *_devices())
    return dict(zip(NAMES, values, strict=False))


def _devices() -> tuple[float, ...]:
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        utilisations = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles]
        memory_infos = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        total_watts = sum(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000 for handle in handles)
    except pynvml.NVMLError:
        return ()
    if not handles:
        return ()
    return (
        sum(utilisations) / len(utilisations),
        100 * sum(info.used for info in memory_infos) / sum(info.total for info in memory_infos),
        total_watts,
    )
