"""A thread per worker that ends a group in which nothing moves, and says who is to blame.

Owns heartbeats (`heartbeat/rank-00000.json`: how far a worker is, and that it is alive) and the end of a
stalled worker: its stacks go to `debug/stalled/rank-00000.txt`, its neighbours are judged, it exits, and
whoever started the group starts it again. A collective never times out by itself while its peers are alive.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXIT_STALLED = 70
_UNKNOWN = 10
"""A phase that was not seen three times may take so many times the least."""


class Watchdog(threading.Thread):
    """Watches this worker and its neighbours; `beat` is called by the training thread."""

    def __init__(
        self, folder: Path, rank: int, world: int, meetings: Callable[[], int], least: float
    ) -> None:
        """Args: `meetings`: how often this worker came to a collective; `least`: seconds without blame."""
        super().__init__(name="watchdog", daemon=True)
        self.folder, self.rank, self.world, self.least = folder, rank, world, least
        self._meetings = meetings
        self._beats, self._phase, self._since = 0, "start", time.monotonic()
        self._seconds: dict[str, deque[float]] = {}
        self._seen: dict[int, tuple[Any, float]] = {}
        self._ended = threading.Event()
        self._tick = min(5.0, least / 10)
        (folder / "heartbeat").mkdir(parents=True, exist_ok=True)

    def beat(self, phase: str) -> None:
        """The training thread begins `phase`, as `data`, `step`, `save` or `evaluate`."""
        now = time.monotonic()
        self._seconds.setdefault(self._phase, deque(maxlen=100)).append(now - self._since)
        self._phase, self._since, self._beats = phase, now, self._beats + 1

    def end(self) -> None:
        """The stage is over on this worker."""
        self._ended.set()
        self.join()
        faulthandler.cancel_dump_traceback_later()

    def limit(self) -> float:
        """Seconds that the present phase may take: twice the 99th percentile of those before it."""
        before = sorted(self._seconds.get(self._phase, ()))
        if len(before) < 3:
            return self.least * _UNKNOWN
        return max(self.least, 2 * before[math.ceil(0.99 * len(before)) - 1])

    def run(self) -> None:
        """The thread's work: tell, look, and end a worker that stands still."""
        ticks = 0
        while not self._ended.wait(self._tick):
            ticks += 1
            limit = self.limit()
            self._tell(ticks)
            self._look()
            # Also for a training thread that keeps the interpreter's lock, which stops this thread.
            faulthandler.dump_traceback_later(2 * limit + 5, exit=True)
            if time.monotonic() - self._since > limit:
                self._give_up(limit)

    def _tell(self, ticks: int) -> None:
        file = self.folder / "heartbeat" / f"rank-{self.rank:05d}.json"
        partial = file.with_suffix(".part")
        try:
            beats = self._beats + self._meetings()
            partial.write_text(json.dumps({"beats": beats, "phase": self._phase, "ticks": ticks}))
            partial.replace(file)
        except OSError:
            pass  # a full disk stops no training

    def _look(self) -> None:
        for rank in range(self.world):
            try:
                told = json.loads((self.folder / "heartbeat" / f"rank-{rank:05d}.json").read_text())
            except (OSError, ValueError):
                continue
            if rank not in self._seen or self._seen[rank][0] != told:
                self._seen[rank] = told, time.monotonic()  # own clock: others may jump

    def blame(self) -> str:
        """Who holds up the group: workers that give no sign, else those that are behind."""
        now, silence = time.monotonic(), max(3 * self._tick, self.least / 2)
        silent = [r for r, (_, seen) in self._seen.items() if now - seen > silence]
        silent += [r for r in range(self.world) if r not in self._seen]
        if silent:
            return f"rank {_listed(silent)} gives no sign of life"
        beats = {rank: told["beats"] for rank, (told, _) in self._seen.items()}
        behind = [rank for rank, count in beats.items() if count < max(beats.values())]
        if behind:
            phase = self._seen[behind[0]][0]["phase"]
            return f"rank {_listed(behind)} is still at `{phase}`, the others wait for it"
        return f"all ranks wait at `{self._phase}`"

    def _give_up(self, limit: float) -> None:
        told = f"rank {self.rank}: stalled at `{self._phase}` for {limit:.0f} s; {self.blame()}"
        print(told, file=sys.stderr, flush=True)
        try:
            folder = self.folder / "debug" / "stalled"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"rank-{self.rank:05d}.txt").open("w") as file:
                print(told, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
            # When this worker ends the others lose their connection: first they, too, tell where they stand.
            time.sleep(3 * self._tick)
        finally:
            os._exit(EXIT_STALLED)


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
