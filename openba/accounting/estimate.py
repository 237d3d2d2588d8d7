"""codecarbon's estimate of a node, offline: a third figure beside the paper's and the measured one.

Owns how codecarbon is asked. Where a machine has no counters it takes a share of the processor's nominal
watts and some for each memory module, and it knows each country's grid; so what it says is called an estimate
everywhere, and is never added to what `energy.py` measures.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

_SECONDS_BETWEEN_READS = 15


class Estimate:
    """Of all of this node inside the `with` block; one per node, never one per worker (1.4 s to start)."""

    def __init__(self, country: str, pue: float) -> None:
        """Args: ISO 3166 code of three letters, whose grid is taken; power usage effectiveness."""
        from codecarbon import OfflineEmissionsTracker  # reads tables of grids and processors

        logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
        self._tracker: Any = OfflineEmissionsTracker(
            country_iso_code=country, pue=pue, measure_power_secs=_SECONDS_BETWEEN_READS,
            tracking_mode="machine", save_to_file=False, allow_multiple_runs=True, log_level="critical",
        )  # fmt: skip

    def __enter__(self) -> Estimate:
        self._tracker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracker.stop()

    def figures(self) -> dict[str, float | None]:
        """`kwh` with PUE, and `kgco2eq` of them by the country's grid; final when the block has ended."""
        found = self._tracker.final_emissions_data
        return {"kwh": float(found.energy_consumed), "kgco2eq": float(found.emissions)}
