"""Run by the sandbox as a program of its own, with the standard library only: closes itself in, then runs.

Owns the order of namespaces, mounts, limits, rights and system calls. It reads a request from standard
input and reports on standard output: `ready` before the program begins, a verdict after it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
from typing import Any, NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _NOATIME, _NODIRATIME, _BIND, _REC, _PRIVATE, _RELATIME = (
    1, 2, 4, 8, 32, 1024, 2048, 4096, 16384, 1 << 18, 1 << 21,
)  # fmt: skip
_DETACH = 2
_PDEATHSIG, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVS = 1, 4, 22, 38
_CAPABILITIES_3 = 0x20080522

# Machine -> (its number for seccomp, numbers of the system calls that are refused, that of clone).
# Refused: new namespaces and mounts, other processes' memory, kernel interfaces with a history of
# faults, sockets, and memory that no limit counts (memfd_create, shmget).
_CALLS = {
    "x86_64": (
        0xC000003E,
        (272, 308, 165, 166, 155, 101, 321, 250, 248, 249, 323, 298, 425, 319, 29, 41, 310, 311, 428, 429,
         430, 432, 442, 175, 313, 246),
        56,
    ),
    "aarch64": (
        0xC00000B7,
        (97, 268, 40, 39, 41, 117, 280, 219, 217, 218, 282, 241, 425, 279, 194, 198, 270, 271, 428, 429,
         430, 432, 442, 105, 273, 104),
        220,
    ),
}  # fmt: skip
_CLONE3 = 435
_PLACE = "/tmp"  # noqa: S108 - the program's working folder, of a file system that is its own
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_EPERM, _ENOSYS = 1, 38


class RefusedError(Exception):
    """The kernel does not grant what the sandbox needs."""


def main() -> None:
    """Close in, report `ready`, run, report the verdict."""
    request = json.load(sys.stdin)
    report = os.dup(1)
    try:
        if platform.machine() not in _CALLS:
            raise RefusedError(f"no list of system calls for {platform.machine()}")
        _prctl(_PDEATHSIG, signal.SIGKILL)
        _namespaces()
    except RefusedError as error:
        os.write(report, str(error).encode())
        os._exit(1)
    first = os.fork()
    if first:  # outside; the first process of the namespace dies with this one
        os.close(report)
        os.waitpid(first, 0)
        os._exit(0)
    _first_process(request, report)


def _first_process(request: dict[str, Any], report: int) -> NoReturn:
    """Process 1 of the namespace: sets up its files, and ends, and so all ends, when the program does."""
    try:
        _prctl(_PDEATHSIG, signal.SIGKILL)
        empty = os.open("/dev/null", os.O_RDWR)
        _files(request["root"], request["disk"])
        for descriptor in (0, 1, 2):
            os.dup2(empty, descriptor)
        os.close(empty)
        worker = os.fork()
        if not worker:
            _worker(request, report)
        os.close(report)
        while os.wait()[0] != worker:
            pass
    except (RefusedError, OSError) as error:
        os.write(report, str(error).encode())
    os._exit(0)


def _worker(request: dict[str, Any], report: int) -> NoReturn:
    try:
        _limits(request)
        _drop_rights()
        _refuse_calls()
    except (RefusedError, OSError, ValueError) as error:
        os.write(report, str(error).encode())
        os._exit(1)
    os.write(report, b"ready\n")
    program, word = request.pop("program"), request.pop("word")
    outcome = _run(program)
    os.write(report, f"{word} {outcome}\n".encode())
    os._exit(0)


def _run(program: str) -> str:
    try:
        exec(compile(program, "answer.py", "exec"), {"__name__": "__main__"})  # noqa: S102 - what it is for
    except MemoryError:
        return "memory"
    except SystemExit:  # ended by itself before the tests were through
        os._exit(0)
    except BaseException as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return f"failed {told[:200]}"
    return "passed"


def _namespaces() -> None:
    """New mounts, processes, network, IPC and host name; a user namespace too, unless started by root."""
    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    user, group = os.geteuid(), os.getegid()
    _checked("unshare", _LIBC.unshare(flags if user == 0 else flags | _NEWUSER))
    if user:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            try:
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            except OSError as error:
                raise RefusedError(f"{name} of a new user namespace: {error.strerror}") from None


def _files(root: str, size: int) -> None:
    """Exchange the file system for an empty one in memory with the Python library, read-only, in it."""
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={size},mode=755")
    paths = sysconfig.get_paths()
    libraries = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", sys.base_prefix + "/lib")
    for path in dict.fromkeys((*libraries, paths["stdlib"], paths["platstdlib"])):
        place = root + path
        if os.path.lexists(place) or not os.path.lexists(path):
            continue
        if os.path.islink(path):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.symlink(os.readlink(path), place)
            continue
        os.makedirs(place)
        _mount(path, place, None, _BIND | _REC)
        # A namespace may not take back what the outer mount forbids, so that is asked for as well.
        _mount(None, place, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _kept(path))
    os.mkdir(root + _PLACE)
    os.chmod(root + _PLACE, 0o1777)  # noqa: S103 - there is one user
    os.chdir(root)
    _checked("pivot_root", _LIBC.syscall(_pivot_root(), b".", b"."))
    _checked("umount2", _LIBC.umount2(b".", _DETACH))
    os.chdir(_PLACE)


def _kept(path: str) -> int:
    flags = os.statvfs(path).f_flag
    pairs = ((os.ST_NOEXEC, _NOEXEC), (os.ST_NOATIME, _NOATIME), (os.ST_NODIRATIME, _NODIRATIME),
             (os.ST_RELATIME, _RELATIME))  # fmt: skip
    return sum(wanted for flag, wanted in pairs if flags & flag)


def _limits(request: dict[str, Any]) -> None:
    seconds = int(request["seconds"]) + 1
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, request["memory"]),
        (resource.RLIMIT_FSIZE, request["file"]),
        (resource.RLIMIT_NPROC, request["processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _drop_rights() -> None:
    """No root, no capability, and no way to get one."""
    if os.geteuid() == 0:
        # A user of its own for each run, so that the limit of processes counts this run's only.
        own = 2_000_000_000 + int.from_bytes(os.urandom(3), "big")
        os.setgroups([])
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
    header = struct.pack("Ii", _CAPABILITIES_3, 0)
    _checked("capset", _LIBC.capset(header, bytes(24)))
    _prctl(_DUMPABLE, 0)
    _prctl(_NO_NEW_PRIVS, 1)


def _refuse_calls() -> None:
    """A seccomp filter: refused calls fail with EPERM, clone3 as if unknown, so that clone is used."""
    machine, refused, clone = _CALLS[platform.machine()]
    load, equal, bits, answer = 0x20, 0x15, 0x45, 0x06
    namespaces = _NEWNS | _NEWUTS | _NEWIPC | _NEWUSER | _NEWPID | _NEWNET | 0x2000000 | 0x80
    deny, unknown, allow = ((answer, 0, 0, value) for value in (_ERRNO | _EPERM, _ERRNO | _ENOSYS, _ALLOW))
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), deny, (load, 0, 0, 0)]
    if machine == 0xC000003E:
        code += [(0x35, 0, 1, 0x40000000), deny]  # the x32 calls have other numbers
    code += [(equal, 0, 1, _CLONE3), unknown]
    for call in refused:
        code += [(equal, 0, 1, call), deny]
    code += [(equal, 1, 0, clone), allow, (load, 0, 0, 16), (bits, 0, 1, namespaces), deny, allow]
    filters = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer))
    _prctl(_SECCOMP, 2, program)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    source_, target_, kind_, data_ = (
        text.encode() if text is not None else None for text in (source, target, kind, data)
    )
    done = _LIBC.mount(source_, target_, kind_, ctypes.c_ulong(flags), data_)
    _checked(f"mount {target}", done)


def _pivot_root() -> int:
    return {"x86_64": 155, "aarch64": 41}[platform.machine()]


def _prctl(option: int, value: Any, pointer: bytes | None = None) -> None:
    _checked(f"prctl {option}", _LIBC.prctl(option, ctypes.c_ulong(int(value)), pointer, 0, 0))


def _checked(what: str, result: int) -> None:
    if result:
        raise RefusedError(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
