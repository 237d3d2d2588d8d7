"""Sandbox for untrusted Python programs: runs a program and its tests and returns the outcome.

A program and the tests that check it run in two sandboxes. The tests call the program's function over a
pipe and compare plain values; only they report to the parent, which returns the outcome. The program's
sandbox holds neither the tests nor the right answers nor a descriptor that an outcome is read from. Owns
limits, the watch over time and memory, and the names of outcomes. What happens inside the kernel's namespaces
is in `sandbox_child.py`; where the kernel grants no namespace, nothing is run.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from openba.errors import UserError
from openba.evaluate import sandbox_memory

Outcome = Literal["passed", "failed", "timeout", "memory", "ended"]

_PACKAGE_ROOT = Path(__file__).parents[2]
_CHILD_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from openba.evaluate.sandbox_child import main; main()"
)
_READY = b"ready\n"
_START_TIMEOUT_SECONDS = 20.0
_MAX_REPORT_BYTES = 65_536


@dataclass(frozen=True)
class SandboxLimits:
    """Resource limits of a program; its tests, in their own sandbox, get the same."""

    seconds: float = 5.0
    """Wall time from when both sandboxes are ready; also the limit of processor time, rounded up."""
    memory_bytes: int = 512 * 2**20
    """Address space of each process, and memory of all together."""
    max_processes: int = 8
    """Processes and threads together."""
    max_file_bytes: int = 4 * 2**20
    """Size of one file."""
    disk_bytes: int = 16 * 2**20
    """Size of all files together; they lie in memory and are gone afterwards."""
    max_inodes: int = 1024
    """Files and folders together, those of the sandbox itself included."""


@dataclass(frozen=True)
class CheckResult:
    """Outcome of a check. `ended`: the program's process went away, such as by `exit` or a signal."""

    outcome: Outcome
    message: str = ""


@dataclass(frozen=True)
class Check:
    """A program and the tests that check it."""

    program: str
    """Source code that defines the function."""
    function: str
    tests: str
    """Source code that calls the function under the name `candidate` and raises if a result is wrong."""


def run_check(check: Check, limits: SandboxLimits | None = None) -> CheckResult:
    """Run a program and its tests, each in a sandbox of its own.

    The sandbox holds a read-only Python library and an empty working folder; no other file, no process, no
    network, no environment. Arguments and results pass by value: an object of a class of the program is
    equal to nothing.

    Raises:
        UserError: the machine grants no such namespace, so nothing was run.
    """
    limits = limits or SandboxLimits()
    with ExitStack() as stack:
        call_reader, call_writer = os.pipe()
        result_reader, result_writer = os.pipe()
        try:
            program = stack.enter_context(
                _Sandbox.start(limits, check, tests=None, exchange=(call_reader, result_writer))
            )
            tests = stack.enter_context(
                _Sandbox.start(limits, check, tests=check.tests, exchange=(result_reader, call_writer))
            )
        finally:
            # Only the children keep the pipes: when one ends, the other reads the end of the file.
            for descriptor in (call_reader, call_writer, result_reader, result_writer):
                os.close(descriptor)
        for sandbox in (program, tests):
            sandbox.wait_until_ready()
        return _wait_for_result(program, tests, time.monotonic() + limits.seconds)


def _wait_for_result(program: _Sandbox, tests: _Sandbox, deadline: float) -> CheckResult:
    """Wait for the tests' report; stop early when time or memory runs out."""
    while True:
        if program.is_over_memory() or tests.is_over_memory():
            return CheckResult("memory")
        remaining_seconds = deadline - time.monotonic()
        if remaining_seconds <= 0:
            return CheckResult("timeout")
        if tests.has_reported(min(remaining_seconds, sandbox_memory.POLL_SECONDS)):
            # The program may have been killed for its memory just before the tests missed it.
            return CheckResult("memory") if program.is_over_memory() else tests.result()


class _Sandbox:
    """One sandboxed process group and its report."""

    def __init__(
        self, process: subprocess.Popen[bytes], limits: SandboxLimits, cgroup_folder: Path | None
    ) -> None:
        self._process = process
        self._limits = limits
        self._cgroup_folder = cgroup_folder
        self._report = b""
        assert process.stdout is not None
        self._report_descriptor = process.stdout.fileno()

    @classmethod
    @contextmanager
    def start(
        cls, limits: SandboxLimits, check: Check, *, tests: str | None, exchange: tuple[int, int]
    ) -> Iterator[_Sandbox]:
        """Start the process; on exit all its processes, files and its cgroup are removed.

        Args:
            limits: resource limits.
            check: the program.
            tests: source code of the tests; None for the sandbox of the program.
            exchange: descriptors to receive from and to send to.
        """
        if sys.platform != "linux":
            raise _unavailable(f"{sys.platform} has no namespaces")
        with (
            tempfile.TemporaryDirectory(prefix="openba-sandbox-") as root,
            # Files lie in memory too (tmpfs), so the cgroup's limit includes the disk's.
            sandbox_memory.memory_cgroup(limits.memory_bytes + limits.disk_bytes) as cgroup_folder,
        ):
            request: dict[str, object] = {
                **asdict(limits),
                "tests": tests,
                "root": root,
                "exchange": exchange,
            }
            if tests is None:
                # The tests' sandbox does not get the program's text, nor the program's the tests.
                request |= {"program": check.program, "function": check.function}
            process = _start_interpreter(exchange)
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                if cgroup_folder is not None:
                    # Without the cgroup the parent's measurement still enforces the limit.
                    with suppress(OSError):
                        (cgroup_folder / "cgroup.procs").write_text(str(process.pid))
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(request).encode())
                    process.stdin.close()
                yield cls(process, limits, cgroup_folder)
            finally:
                # Kills the namespace's first process too, with which the kernel ends all others of it.
                process.kill()
                process.wait()
                process.stdout.close()

    def wait_until_ready(self) -> None:
        """Wait until its program begins.

        Raises:
            UserError: the sandbox cannot be set up on this machine.
        """
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not self._report.startswith(_READY):
            if not self._is_readable(deadline - time.monotonic()) or not self._read_report():
                reason = self._report.decode("utf-8", "replace").strip()[:200]
                raise _unavailable(reason or "it died while it was set up")
        self._report = self._report.removeprefix(_READY)

    def is_over_memory(self) -> bool:
        """Return whether all its processes together exceed the limit, or the kernel killed one for memory."""
        used_bytes = sandbox_memory.descendant_bytes(self._process.pid)
        return used_bytes > self._limits.memory_bytes or sandbox_memory.was_killed_for_memory(
            self._cgroup_folder
        )

    def has_reported(self, timeout_seconds: float) -> bool:
        """Read the report for at most this time; returns whether it is complete."""
        return self._is_readable(timeout_seconds) and not self._read_report()

    def result(self) -> CheckResult:
        """Return the tests' report; `ended` if their process ended without one."""
        with suppress(ValueError):
            outcome, message = json.loads(self._report)
            return CheckResult(outcome, message)
        return CheckResult("ended")

    def _is_readable(self, timeout_seconds: float) -> bool:
        readable, _, _ = select.select([self._report_descriptor], [], [], max(0.0, timeout_seconds))
        return bool(readable)

    def _read_report(self) -> bool:
        """Read a chunk of the report; returns False at its end or its size limit."""
        # A report is one short line; the size limit stops a process that floods the pipe.
        chunk = os.read(self._report_descriptor, 4096)
        self._report += chunk
        return bool(chunk) and len(self._report) < _MAX_REPORT_BYTES


def _start_interpreter(exchange: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Start an interpreter that has the standard library, this package and the two descriptors."""
    # The base interpreter: a virtual environment's lies outside the folders that the sandbox mounts.
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    try:
        return subprocess.Popen(
            [interpreter, "-I", "-S", "-B", "-c", _CHILD_CODE, str(_PACKAGE_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            pass_fds=exchange,
            start_new_session=True,
        )
    except OSError as error:
        raise _unavailable(f"{interpreter}: {error.strerror}") from None


def _unavailable(reason: str) -> UserError:
    return UserError(
        f"sandbox: {reason}; programs are not run without it. Allow namespaces (`unshare -Urn true` must "
        "work), or leave pass_at_k out"
    )
