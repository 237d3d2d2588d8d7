"""A node that Ray is asked to drain: the training saves first, then goes on elsewhere.

Owns the watch in a job's own process. Ray's `get_preemption_info` is a meeting of all workers with the
controller; here the stage is asked to stop by its usual file, once, and no step pays for it.
"""

from __future__ import annotations

import threading
from pathlib import Path

from openba.train.stopping import REQUEST

SECONDS = 2.0
"""Between two looks. Clouds tell of a spot machine's end 30 seconds ahead and more."""
_NODE = ".node"


def stand_on(job_folder: Path, rank: int) -> None:
    """Note which node a worker is on; called by the worker."""
    import ray

    (job_folder / f"rank-{rank}{_NODE}").write_text(ray.get_runtime_context().get_node_id())


class DrainWatch(threading.Thread):
    """Asks the stage in `out` to stop as soon as a node of its workers is to be drained."""

    def __init__(self, job_folder: Path, stage_folder: Path) -> None:
        super().__init__(name="drain", daemon=True)
        self.folder = job_folder
        self.request = stage_folder / REQUEST
        self.noticed = False
        """A node was to be drained: the group that stopped then is to start again."""
        self._ended = threading.Event()
        for stale_file in job_folder.glob(f"rank-*{_NODE}"):  # of the group before
            stale_file.unlink()
        self.start()

    def run(self) -> None:
        """Poll the nodes until the group ends; body of the thread."""
        while not self._ended.wait(SECONDS):
            worker_nodes = {file.read_text() for file in self.folder.glob(f"rank-*{_NODE}")}
            if worker_nodes & _draining():
                self.noticed = True
                # The file by which Ctrl-C asks a training as well: it finishes its step, saves and stops.
                self.request.touch()
                return

    def end(self) -> None:
        """Stop watching: the group has ended."""
        self._ended.set()
        self.join()


def _draining() -> set[str]:
    """Ids of nodes that Ray was asked to drain; the list is not public in Ray 2.60, the feature is."""
    import ray

    return set(ray._private.state.state.get_draining_nodes())
