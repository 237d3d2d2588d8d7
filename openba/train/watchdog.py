"""Watchdog thread of each worker: it ends a group in which nothing moves, and names the ranks at fault.

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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

EXIT_STALLED = 70
_UNKNOWN = 10
"""Times the least seconds that a phase may take which was not seen three times."""


class Watchdog(threading.Thread):
    """Watches this worker and its neighbours; `beat` is called by the training thread."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        count_meetings: Callable[[], int],
        least_seconds: float,
        slow_phases: Mapping[str, float] | None = None,
    ) -> None:
        """Take what decides when a worker stands still.

        Args:
            folder: The training's.
            rank: This worker's.
            world_size: Workers of the group.
            count_meetings: Collectives of this worker so far.
            least_seconds: A phase that takes less is no stall.
            slow_phases: Seconds that a phase may take in any case, because so many bytes are read or written
                in it: how long the earlier ones took says nothing of a longer one.
        """
        super().__init__(name="watchdog", daemon=True)
        self.folder = folder
        self.rank = rank
        self.world = world_size
        self.least = least_seconds
        self.slow_phases = dict(slow_phases or {})
        self._meetings = count_meetings
        self._beats = 0
        self._phase = "start"
        self._since = time.monotonic()
        self._seconds: dict[str, deque[float]] = {}
        self._seen: dict[int, tuple[Any, float]] = {}
        self._ended = threading.Event()
        self._tick = min(5.0, least_seconds / 10)
        (folder / "heartbeat").mkdir(parents=True, exist_ok=True)

    def beat(self, phase: str) -> None:
        """Note that the training thread begins `phase`, as `data`, `step`, `save` or `evaluate`."""
        now = time.monotonic()
        self._seconds.setdefault(self._phase, deque(maxlen=100)).append(now - self._since)
        self._phase = phase
        self._since = now
        self._beats += 1

    def end(self) -> None:
        """Stop watching: the training has ended on this worker."""
        self._ended.set()
        self.join()
        faulthandler.cancel_dump_traceback_later()

    def limit(self) -> float:
        """Seconds that the current phase may take: twice the 99th percentile of those before it, or more."""
        slow_seconds = self.slow_phases.get(self._phase, 0.0)
        earlier_seconds = sorted(self._seconds.get(self._phase, ()))
        # A phase's first calls compile, allocate and fill caches: they say little of the later ones.
        if len(earlier_seconds) < 3:
            return max(self.least * _UNKNOWN, slow_seconds)
        return max(self.least, slow_seconds, 2 * earlier_seconds[math.ceil(0.99 * len(earlier_seconds)) - 1])

    def run(self) -> None:
        """Write and read heartbeats, and end a worker that stands still."""
        ticks = 0
        while not self._ended.wait(self._tick):
            ticks += 1
            phase_limit = self.limit()
            # Ticks rise even if the training thread stands still: they show that the process lives.
            self._write_heartbeat(ticks)
            self._read_heartbeats()
            # Also for a training thread that keeps the interpreter's lock, which stops this thread.
            faulthandler.dump_traceback_later(2 * phase_limit + 5, exit=True)
            if time.monotonic() - self._since > phase_limit:
                self._give_up(phase_limit)

    def _write_heartbeat(self, ticks: int) -> None:
        heartbeat_file = self.folder / "heartbeat" / f"rank-{self.rank:05d}.json"
        partial_file = heartbeat_file.with_suffix(".part")
        try:
            beat_count = self._beats + self._meetings()
            partial_file.write_text(json.dumps({"beats": beat_count, "phase": self._phase, "ticks": ticks}))
            partial_file.replace(heartbeat_file)
        except OSError:
            pass  # a full disk stops no training

    def _read_heartbeats(self) -> None:
        for rank in range(self.world):
            try:
                heartbeat = json.loads((self.folder / "heartbeat" / f"rank-{rank:05d}.json").read_text())
            except (OSError, ValueError):
                continue
            if rank not in self._seen or self._seen[rank][0] != heartbeat:
                self._seen[rank] = heartbeat, time.monotonic()  # own clock: others may jump

    def blame(self) -> str:
        """Name the ranks that hold up the group: those that give no sign, else those that are behind."""
        now = time.monotonic()
        silence_seconds = max(3 * self._tick, self.least / 2)
        silent_ranks = [r for r, (_, seen) in self._seen.items() if now - seen > silence_seconds]
        silent_ranks += [r for r in range(self.world) if r not in self._seen]
        if silent_ranks:
            return f"rank {_listed(silent_ranks)} gives no sign of life"
        # All give signs: then the ones with fewer beats hold up the others, which wait in a collective.
        beats_by_rank = {rank: heartbeat["beats"] for rank, (heartbeat, _) in self._seen.items()}
        late_ranks = [rank for rank, count in beats_by_rank.items() if count < max(beats_by_rank.values())]
        if late_ranks:
            phase = self._seen[late_ranks[0]][0]["phase"]
            return f"rank {_listed(late_ranks)} is still at `{phase}`, the others wait for it"
        return f"all ranks wait at `{self._phase}`"

    def _give_up(self, phase_limit: float) -> None:
        line = f"rank {self.rank}: stalled at `{self._phase}` for {phase_limit:.0f} s; {self.blame()}"
        print(line, file=sys.stderr, flush=True)
        try:
            folder = self.folder / "debug" / "stalled"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"rank-{self.rank:05d}.txt").open("w") as file:
                print(line, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
            # When this worker ends the others lose their connection: first they, too, write their stacks.
            time.sleep(3 * self._tick)
        finally:
            # Not `sys.exit`: the training thread may hold locks that a regular end would wait for.
            os._exit(EXIT_STALLED)


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
