"""One worker group per stage folder.

Owns the lock that rank 0 holds while it lives. A group whose driver was killed may go on for a while; the
kernel ends its lease with it, so a second group neither writes beside it nor waits for ever.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

LEASE = "lease"


class Lease:
    """The right to write into a stage's folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / LEASE
        self._held: TextIO | None = None

    def take(self, seconds: float) -> str:
        """Wait so long for it; returns who holds it instead, or nothing."""
        file = self.file.open("a+")
        end = time.monotonic() + seconds
        while True:
            try:
                # The kernel releases it with the process, however that ends: no lease is ever stale.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    file.seek(0)
                    return file.read().strip() or "another process"
            time.sleep(0.1)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        self._held = file
        return ""

    def give_back(self) -> None:
        """Give the lease back at the end of the stage."""
        if self._held is not None:
            self.file.unlink(missing_ok=True)
            self._held.close()
            self._held = None
