"""Untrusted Python programs, run apart from everything: one call, one program, one outcome.

Owns limits, the watch over time and output, and what an outcome is called. What happens inside the
kernel's namespaces is `sandbox_child.py`'s. Where the kernel grants no namespace, nothing is run.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from openba.errors import UserError

Outcome = Literal["passed", "failed", "timeout", "memory", "ended"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MOST_OUTPUT = 65_536
_READY = b"ready\n"


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    seconds: float = 5.0
    """Of wall time, after its namespace stands; processor seconds are limited to the same, rounded up."""
    memory: int = 512 * 2**20
    """Bytes of address space of each process."""
    processes: int = 8
    """Processes and threads together."""
    file: int = 4 * 2**20
    """Bytes of one file."""
    disk: int = 16 * 2**20
    """Bytes of all files together; they lie in memory and are gone afterwards."""


@dataclass(frozen=True)
class Verdict:
    """How a program ended. `ended`: it went without reaching its end, such as by `exit` or a signal."""

    outcome: Outcome
    message: str = ""


def run_program(program: str, limits: Limits | None = None) -> Verdict:
    """Run a program whose tests raise if they fail.

    It sees a read-only Python library and an empty working folder; no other file, no process, no network,
    no environment. A verdict is taken only with a word that is drawn for the run, so printing or
    leaving early is no pass.

    Raises:
        UserError: the machine grants no such namespace, so nothing was run.
    """
    chosen, word = limits or Limits(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="openba-sandbox-") as root:
        request = asdict(chosen) | {"program": program, "word": word, "root": root}
        output, in_time = _watched(json.dumps(request).encode(), chosen.seconds)
    if not output.startswith(_READY):
        why = output.decode("utf-8", "replace").strip()[:200] or "it died while it was set up"
        raise UserError(
            f"sandbox: {why}; programs are not run without it. Allow namespaces (`unshare -Urn true` must "
            "work), or leave pass_at_k out"
        )
    for line in output[len(_READY) :].decode("utf-8", "replace").splitlines():
        if line.startswith(word):
            outcome, _, message = line[len(word) + 1 :].partition(" ")
            if outcome in ("passed", "failed", "memory"):
                return Verdict(outcome, message[:200])  # type: ignore[arg-type]
    return Verdict("ended") if in_time else Verdict("timeout")


def _watched(request: bytes, seconds: float) -> tuple[bytes, bool]:
    """What the child reports, and whether it ended in time; afterwards nothing of it is left."""
    if sys.platform != "linux":
        return f"{sys.platform} has no namespaces".encode(), True
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    child = subprocess.Popen(
        [interpreter, "-I", "-S", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(request)
        child.stdin.close()
        return _read(child.stdout.fileno(), seconds)
    except BrokenPipeError:
        return b"", True
    finally:
        child.kill()  # the namespace's first process goes with it, and the kernel ends all others
        child.wait()
        child.stdout.close()


def _read(descriptor: int, seconds: float) -> tuple[bytes, bool]:
    output = b""
    end = time.monotonic() + seconds + 10  # to set up, on a machine that is busy
    started = False
    while len(output) < _MOST_OUTPUT:
        if output.startswith(_READY) and not started:
            started, end = True, time.monotonic() + seconds
        waiting, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        if not waiting:
            return output, False
        part = os.read(descriptor, 4096)
        if not part:
            return output, True
        output += part
    return output, True
