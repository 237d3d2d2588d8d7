"""codecarbon's estimate of a node, offline: a third figure beside the paper's and the measured one.

Owns how codecarbon is asked. Where a machine has no counters it takes a share of the processor's nominal
watts and some for each memory module, and it has a figure for each country's grid; so its result is called
an estimate everywhere, and is never added to what `energy.py` measures.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_READS = 15


@contextmanager
def estimated(country: str, pue: float) -> Iterator[dict[str, float | None]]:
    """Figures of all of this node for the `with` block; one per node, never one per worker (1.4 s to start).

    Args:
        country: ISO 3166 code of three letters, whose grid is taken.
        pue: power usage effectiveness.

    Yields:
        A mapping that is filled when the block ends: `kwh` with PUE, `kgco2eq` of them.
    """
    from codecarbon import OfflineEmissionsTracker  # reads tables of grids and processors

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = OfflineEmissionsTracker(
        country_iso_code=country, pue=pue, measure_power_secs=_SECONDS_BETWEEN_READS,
        tracking_mode="machine", save_to_file=False, allow_multiple_runs=True, log_level="critical",
    )  # fmt: skip
    figures: dict[str, float | None] = {}
    tracker.start()
    try:
        yield figures
    finally:
        tracker.stop()
        # Read after the end: codecarbon's own thread updates it until then.
        emissions = tracker.final_emissions_data
        figures |= {"kwh": float(emissions.energy_consumed), "kgco2eq": float(emissions.emissions)}
