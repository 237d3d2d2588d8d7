"""The speedrun's code on two CPU cores: from nothing to the leaderboard in five CPU minutes of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

OPENBA = str(Path(sys.executable).with_name("openba"))
MOST_CPU_SECONDS = 300


def test_a_speedrun_of_five_cpu_minutes_learns_and_is_ranked(tmp_path: Path) -> None:
    environment = {**os.environ, "OPENBA_HOME": str(tmp_path / "home")}
    subprocess.run([OPENBA, "run", "speedrun-cpu"], env=environment, check=True, capture_output=True)
    ranked = subprocess.run(
        [OPENBA, "leaderboard", str(tmp_path / "home"), "--json"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    [entry] = json.loads(ranked.stdout)
    assert entry["score"] > 20 + 3 * entry["stderr"]  # chance is 20 %
    assert 0 < entry["device_hours"] < MOST_CPU_SECONDS / 3600
    assert entry["planned_device_hours"] > 0
