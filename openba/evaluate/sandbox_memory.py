"""Memory of a sandbox as a whole: limited by a cgroup where there is one, always counted by the parent.

The kernel limits one process's address space; several processes share no such limit. A cgroup (version 2,
with the memory controller, in a folder this user may write to) is one. Without it the parent sums the
resident, shared and swapped pages of all processes of the sandbox again and again and ends it when they
exceed the limit: between two looks, 20 ms apart, a sandbox can exceed it by what its processes can touch in
that time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
LOOK_EVERY = 0.02
"""Seconds between two counts."""


def used(root: int) -> int:
    """Return the bytes of anonymous, shared and swapped memory of all descendants of a process.

    The process itself and its first child, which set the sandbox up, do not count. A page that several
    processes share counts for each of them.
    """
    total = 0
    pending = [child for first in _children(root) for child in _children(first)]
    while pending:
        process = pending.pop()
        pending += _children(process)
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")):
                    total += int(line.split()[1]) * 1024
    return total


def _children(process: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError):
                children += map(int, Path(f"/proc/{process}/task/{thread}/children").read_text().split())
    return children


@contextmanager
def cgroup(limit: int) -> Iterator[Path | None]:
    """Make a cgroup that holds at most `limit` bytes; None where this user cannot.

    Add processes by writing their ids to `cgroup.procs` in the folder.
    """
    folder = None
    for parent in _writable_cgroups():
        candidate = parent / f"openba-sandbox-{secrets.token_hex(8)}"
        try:
            candidate.mkdir()
        except OSError:
            continue
        try:
            (candidate / "memory.max").write_text(str(limit))
            with suppress(OSError):  # a kernel without swap accounting
                (candidate / "memory.swap.max").write_text("0")
        except OSError:
            candidate.rmdir()
            continue
        folder = candidate
        break
    try:
        yield folder
    finally:
        if folder is not None:
            with suppress(OSError):  # its processes have been killed and waited for
                folder.rmdir()


def ran_out(folder: Path | None) -> bool:
    """Whether the kernel ended a process of the cgroup for its memory."""
    if folder is None:
        return False
    with suppress(OSError):
        events = dict(line.split() for line in (folder / "memory.events").read_text().splitlines())
        return int(events.get("oom_kill", 0)) > 0
    return False


def _writable_cgroups() -> Iterator[Path]:
    """Folders in which a cgroup with a memory limit can be made: this process's own and the one above."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = _CGROUPS / line[3:].lstrip("/")
                for folder in (own, own.parent):
                    with suppress(OSError):
                        controllers = (folder / "cgroup.subtree_control").read_text().split()
                        if "memory" in controllers and os.access(folder, os.W_OK):
                            yield folder
