"""Memory limit of a whole sandbox: enforced by a cgroup where possible, always measured by the parent.

The kernel limits the address space of one process; several processes share no such limit. A cgroup
(version 2, with the memory controller, in a folder this user may write to) is one. Without it the parent sums
the resident, shared and swapped pages of all processes of the sandbox periodically and kills it when they
exceed the limit: between two measurements, 20 ms apart, a sandbox can exceed it by what its processes can
touch in that time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
POLL_SECONDS = 0.02
"""Interval between two measurements."""


def descendant_bytes(root_pid: int) -> int:
    """Return the bytes of anonymous, shared and swapped memory of all descendants of a process.

    The process itself and its first child, which set the sandbox up, do not count. A page that several
    processes share counts for each of them.
    """
    total_bytes = 0
    pending_pids = [pid for first_child in _child_pids(root_pid) for pid in _child_pids(first_child)]
    while pending_pids:
        pid = pending_pids.pop()
        pending_pids += _child_pids(pid)
        # A process may end between being listed and being read; its memory is free then.
        with suppress(OSError, ValueError, IndexError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")):
                    total_bytes += int(line.split()[1]) * 1024
    return total_bytes


def _child_pids(pid: int) -> list[int]:
    child_pids: list[int] = []
    with suppress(OSError):
        # The kernel lists children by the thread that forked them.
        for thread_id in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                children_file = Path(f"/proc/{pid}/task/{thread_id}/children")
                child_pids += map(int, children_file.read_text().split())
    return child_pids


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path | None]:
    """Create a cgroup that holds at most `limit_bytes`; yields None where this user cannot.

    Processes are added by writing their ids to `cgroup.procs` in the folder.
    """
    cgroup_folder = None
    for parent in _writable_cgroups():
        new_folder = parent / f"openba-sandbox-{secrets.token_hex(8)}"
        try:
            new_folder.mkdir()
        except OSError:
            continue
        try:
            (new_folder / "memory.max").write_text(str(limit_bytes))
            with suppress(OSError):  # a kernel without swap accounting
                (new_folder / "memory.swap.max").write_text("0")
        except OSError:
            new_folder.rmdir()
            continue
        cgroup_folder = new_folder
        break
    try:
        yield cgroup_folder
    finally:
        if cgroup_folder is not None:
            # Empty by now: the caller has killed its processes and waited for them.
            with suppress(OSError):
                cgroup_folder.rmdir()


def was_killed_for_memory(cgroup_folder: Path | None) -> bool:
    """Return whether the kernel's OOM killer ended a process of the cgroup."""
    if cgroup_folder is None:
        return False
    with suppress(OSError):
        event_lines = (cgroup_folder / "memory.events").read_text().splitlines()
        event_counts = dict(line.split() for line in event_lines)
        return int(event_counts.get("oom_kill", 0)) > 0
    return False


def _writable_cgroups() -> Iterator[Path]:
    """Yield folders where a cgroup with a memory limit can be created: the current cgroup and its parent."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            # "0::" is the line of version 2; the others are version 1's hierarchies.
            if line.startswith("0::"):
                current_cgroup = _CGROUP_ROOT / line[3:].lstrip("/")
                for folder in (current_cgroup, current_cgroup.parent):
                    with suppress(OSError):
                        controllers = (folder / "cgroup.subtree_control").read_text().split()
                        if "memory" in controllers and os.access(folder, os.W_OK):
                            yield folder
