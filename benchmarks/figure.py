"""One measured figure, and the circumstances of its measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figure:
    """A measured value with its target and its comparison."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    peer: str | None = None
    """Description of the comparison."""
    ratio: float | None = None
    """Value relative to the comparison's."""

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def row(self) -> dict[str, object]:
        """Return the figure as a JSON object."""
        return asdict(self) | {"ok": self.ok}

    def line(self) -> str:
        """Return the figure as a line of text."""
        verdict = {True: "ok", False: "MISSED", None: ""}[self.ok]
        relation = "<=" if self.better == "lower" else ">="
        target_text = "" if self.target is None else f"  target {relation} {self.target:g}"
        return f"{self.name:<44} {self.value:>10.4g} {self.unit:<8}{target_text}  {verdict}"


def circumstances() -> dict[str, object]:
    """Return commit, hardware and load; printed after every group."""
    git_command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git_command, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit or None,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_1_5_15_minutes": os.getloadavg(),
    }
