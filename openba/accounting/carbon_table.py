"""The paper's Table 5, printed and computed again by its own method, to stand beside a run's own figures.

Owns the printed figures. The method is `energy.paper_energy`: GPU hours at 400 W, PUE 1.1, 0.385 t per MWh.
"""

from __future__ import annotations

from dataclasses import dataclass

from openba.accounting.energy import Carbon, paper_energy

WATTS = 400.0
"""Of an A100-80GB (paper section 4.2); the table takes it for all rows."""


@dataclass(frozen=True)
class Row:
    """One row of Table 5 as printed."""

    model: str
    gpu_hours: float
    mwh: float
    tco2eq: float
    misprint: bool = False
    """Its own hours do not give the printed MWh."""

    @property
    def computed(self) -> Carbon:
        """The same by the paper's method; kWh and t."""
        return paper_energy(self.gpu_hours, WATTS)


ROWS = (
    Row("OPT-175B", 809_472, 356, 137),
    Row("BLOOM-175B", 1_082_880, 475, 183, misprint=True),
    Row("LLaMA-7B", 82_432, 36, 14),
    Row("LLaMA-13B", 135_168, 59, 23),
    Row("OpenBA-15B", 38_214, 17, 6.5),
)
"""Hours and figures as printed."""


def difference(row: Row) -> float:
    """Distance of the computed figures from what rounds to the printed ones: 0 where they round to them.

    In the unit of the figure (MWh or t), the larger of the two.
    """
    computed = row.computed
    decimals = 1 if row.tco2eq % 1 else 0
    beyond = abs(round(computed.kwh / 1000) - row.mwh)
    return max(beyond, abs(round(computed.tco2eq, decimals) - row.tco2eq))
