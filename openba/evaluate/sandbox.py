"""Untrusted Python programs, run apart from everything: one call, one program, one verdict.

A program and the tests that check it run in two sandboxes. The tests call the program's function over a
pipe and compare plain values; only they can report to the parent, which gives the verdict. The program
holds neither the tests nor the right answers nor anything that a verdict is read from. Owns limits, the
watch over time and memory, and what an outcome is called. What happens inside the kernel's namespaces is in
`sandbox_child.py`; where the kernel grants no namespace, nothing is run.
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
from typing import Any, Literal

from openba.errors import UserError
from openba.evaluate import sandbox_memory

Outcome = Literal["passed", "failed", "timeout", "memory", "ended"]

_PACKAGES = Path(__file__).parents[2]
_START = "import sys; sys.path.insert(0, sys.argv[1]); from openba.evaluate.sandbox_child import main; main()"
_READY = b"ready\n"
_SECONDS_TO_START = 20.0
_MOST_REPORT = 65_536


@dataclass(frozen=True)
class Limits:
    """What a program may use; its tests, in their own sandbox, as much again."""

    seconds: float = 5.0
    """Of wall time, after both namespaces stand; processor seconds are limited to the same, rounded up."""
    memory: int = 512 * 2**20
    """Bytes of address space of each process, and of memory of all together."""
    processes: int = 8
    """Processes and threads together."""
    file: int = 4 * 2**20
    """Bytes of one file."""
    disk: int = 16 * 2**20
    """Bytes of all files together; they lie in memory and are gone afterwards."""
    inodes: int = 1024
    """Files and folders together, those of the sandbox itself included."""


@dataclass(frozen=True)
class Verdict:
    """How a check ended. `ended`: the program went away, such as by `exit` or a signal."""

    outcome: Outcome
    message: str = ""


@dataclass(frozen=True)
class Check:
    """A program and what checks it."""

    program: str
    """Defines the function."""
    function: str
    tests: str
    """Calls the function under the name `candidate` and raises if a result is wrong."""


def run_check(check: Check, limits: Limits | None = None) -> Verdict:
    """Run a program and its tests, each in a sandbox of its own.

    The sandbox holds a read-only Python library and an empty working folder; no other file, no process, no
    network, no environment. Arguments and results pass by value: an object of a class of the program is
    equal to nothing.

    Raises:
        UserError: the machine grants no such namespace, so nothing was run.
    """
    chosen = limits or Limits()
    with ExitStack() as stack:
        (receive_calls, send_calls), (receive_results, send_results) = os.pipe(), os.pipe()
        ends = {receive_calls, send_calls, receive_results, send_results}
        try:
            program = stack.enter_context(
                _Sandbox.started(chosen, check, None, (receive_calls, send_results))
            )
            tests = stack.enter_context(
                _Sandbox.started(chosen, check, check.tests, (receive_results, send_calls))
            )
        finally:
            for end in ends:
                os.close(end)
        for sandbox in (program, tests):
            sandbox.await_start()
        return _watched(program, tests, time.monotonic() + chosen.seconds)


def _watched(program: _Sandbox, tests: _Sandbox, end: float) -> Verdict:
    """Wait for the tests' report; end early when time or memory runs out."""
    while True:
        if program.is_over_memory() or tests.is_over_memory():
            return Verdict("memory")
        if (remaining := end - time.monotonic()) <= 0:
            return Verdict("timeout")
        if tests.has_reported(min(remaining, sandbox_memory.LOOK_EVERY)):
            # The program may have gone for its memory just before the tests missed it.
            return Verdict("memory") if program.is_over_memory() else tests.verdict()


class _Sandbox:
    """One sandboxed process group and what it reports."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits, folder: Path | None) -> None:
        self._process, self._limits, self._cgroup = process, limits, folder
        self._report = b""
        assert process.stdout is not None
        self._descriptor = process.stdout.fileno()

    @classmethod
    @contextmanager
    def started(
        cls, limits: Limits, check: Check, tests: str | None, exchange: tuple[int, int]
    ) -> Iterator[_Sandbox]:
        """Start the process; afterwards nothing of it remains.

        Args:
            limits: what it may use.
            check: the program.
            tests: the tests; none for the sandbox of the program.
            exchange: descriptors to receive from and to send to.
        """
        if sys.platform != "linux":
            raise _refusal(f"{sys.platform} has no namespaces")
        with (
            tempfile.TemporaryDirectory(prefix="openba-sandbox-") as root,
            sandbox_memory.cgroup(limits.memory + limits.disk) as folder,
        ):
            sent = {"program": check.program, "function": check.function} if tests is None else {}
            request: dict[str, Any] = (
                asdict(limits) | sent | {"tests": tests, "root": root, "exchange": exchange}
            )
            process = _spawned(exchange)
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                if folder is not None:
                    with suppress(OSError):  # it is counted all the same
                        (folder / "cgroup.procs").write_text(str(process.pid))
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(request).encode())
                    process.stdin.close()
                yield cls(process, limits, folder)
            finally:
                process.kill()  # the namespace's first process goes with it, and the kernel ends all others
                process.wait()
                process.stdout.close()

    def await_start(self) -> None:
        """Wait until its program begins.

        Raises:
            UserError: it cannot begin on this machine.
        """
        end = time.monotonic() + _SECONDS_TO_START
        while not self._report.startswith(_READY):
            if not self._waits_for_report(end - time.monotonic()) or not self._read():
                why = self._report.decode("utf-8", "replace").strip()[:200]
                raise _refusal(why or "it died while it was set up")
        self._report = self._report.removeprefix(_READY)

    def is_over_memory(self) -> bool:
        """Whether all its processes together use more than the limit, or the kernel ended one for it."""
        return sandbox_memory.used(self._process.pid) > self._limits.memory or sandbox_memory.ran_out(
            self._cgroup
        )

    def has_reported(self, seconds: float) -> bool:
        """Read for at most so long; whether it has closed its report."""
        return self._waits_for_report(seconds) and not self._read()

    def verdict(self) -> Verdict:
        """What the tests reported; `ended` if they went away without a word."""
        with suppress(ValueError):
            outcome, message = json.loads(self._report)
            return Verdict(outcome, message)
        return Verdict("ended")

    def _waits_for_report(self, seconds: float) -> bool:
        return bool(select.select([self._descriptor], [], [], max(0.0, seconds))[0])

    def _read(self) -> bool:
        part = os.read(self._descriptor, 4096)
        self._report += part
        return bool(part) and len(self._report) < _MOST_REPORT


def _spawned(exchange: tuple[int, int]) -> subprocess.Popen[bytes]:
    """Start an interpreter that has the standard library, this package and the two descriptors."""
    interpreter = getattr(sys, "_base_executable", None) or sys.executable
    try:
        return subprocess.Popen(
            [interpreter, "-I", "-S", "-B", "-c", _START, str(_PACKAGES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            pass_fds=exchange,
            start_new_session=True,
        )
    except OSError as error:
        raise _refusal(f"{interpreter}: {error.strerror}") from None


def _refusal(why: str) -> UserError:
    return UserError(
        f"sandbox: {why}; programs are not run without it. Allow namespaces (`unshare -Urn true` must "
        "work), or leave pass_at_k out"
    )
