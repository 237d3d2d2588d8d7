"""One measured figure and the circumstances it was measured under."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figure:
    """A value, what it is compared with, and whether the target is met."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["lower", "higher"] = "lower"
    peer: str | None = None
    ratio: float | None = None

    @property
    def ok(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        return self.value <= self.target if self.better == "lower" else self.value >= self.target

    def row(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self) | {"ok": self.ok}

    def line(self) -> str:
        """The form for people."""
        mark = {True: "ok", False: "MISSED", None: ""}[self.ok]
        sign = "<=" if self.better == "lower" else ">="
        target = "" if self.target is None else f"  target {sign} {self.target:g}"
        return f"{self.name:<44} {self.value:>10.4g} {self.unit:<8}{target}  {mark}"


def circumstances() -> dict[str, Any]:
    """Commit, hardware and load; printed under every group."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "commit": commit or None,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_1_5_15_minutes": os.getloadavg(),
    }
