"""Run by the sandbox as a program of its own, with the standard library only: isolates itself, then runs.

Owns the order of namespaces, mounts, limits, rights and system calls. It reads a request from standard
input and reports on standard output: `ready` before the program begins or why it cannot, and from the tests
their verdict.
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

from openba.evaluate import sandbox_exchange

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_NEWCGROUP, _NEWTIME = 0x2000000, 0x80
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _NOATIME, _NODIRATIME, _BIND, _REC, _PRIVATE, _RELATIME = (
    1, 2, 4, 8, 32, 1024, 2048, 4096, 16384, 1 << 18, 1 << 21,
)  # fmt: skip
_DETACH = 2
_PDEATHSIG, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVS = 1, 4, 22, 38
_CAPABILITIES_3 = 0x20080522

_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> its number for seccomp."""
_REFUSED = {
    # new namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # other processes' memory and descriptors
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272), "process_madvise": (440, 440),
    # kernel interfaces with a history of faults
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "acct": (163, 89),
    "swapon": (167, 224), "reboot": (169, 142), "syslog": (103, 116), "personality": (135, 92),
    "vmsplice": (278, 75), "fanotify_init": (300, 262), "inotify_init1": (294, 26),
    # sockets
    "socket": (41, 198),
    # memory that belongs to no process and no file, so that nothing counts it
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "msgsnd": (69, 189), "semget": (64, 190), "semtimedop": (220, 192),
    "mq_open": (240, 180),
}  # fmt: skip
"""System call that is refused -> its number on x86_64 and on aarch64."""
_CLONE, _CLONE3, _FCNTL = (56, 220), 435, (72, 25)
_SET_PIPE_SIZE = 1031
"""fcntl's command; pipes keep their 64 KiB."""
_PLACE = "/tmp"  # noqa: S108 - the program's working folder, of a file system that is its own
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_EPERM, _ENOSYS = 1, 38
_NOBODY = 65534


class RefusedError(Exception):
    """The kernel does not grant what the sandbox needs."""


def main() -> None:
    """Isolate this process, report `ready`, run the program or the tests, report the tests' verdict."""
    request = json.load(sys.stdin)
    report = os.dup(1)
    try:
        if platform.machine() not in _MACHINES:
            raise RefusedError(f"no list of system calls for {platform.machine()}")
        _prctl(_PDEATHSIG, signal.SIGKILL)
        _namespaces()
    except RefusedError as error:
        os.write(report, str(error).encode())
        os._exit(1)
    first = os.fork()
    if first:  # outside; the first process of the namespace dies with this one
        _close(report, *request["exchange"])
        os.waitpid(first, 0)
        os._exit(0)
    _first_process(request, report)


def _first_process(request: dict[str, Any], report: int) -> NoReturn:
    """Process 1 of the namespace: sets up its files; when it ends, with the program, all others end."""
    try:
        _prctl(_PDEATHSIG, signal.SIGKILL)
        empty = os.open("/dev/null", os.O_RDWR)
        _files(request["root"], request["disk"], request["inodes"])
        for descriptor in (0, 1, 2):
            os.dup2(empty, descriptor)
        os.close(empty)
        worker = os.fork()
        if not worker:
            _worker(request, report)
        _close(report, *request["exchange"])
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
    receiving, sending = request["exchange"]
    if request["tests"] is None:
        os.close(report)  # before the program begins: it has nothing to write a verdict to
        sandbox_exchange.serve(request["program"], request["function"], receiving, sending)
    else:
        outcome, message = sandbox_exchange.check(request["tests"], sending, receiving)
        os.write(report, json.dumps([outcome, message]).encode())
    os._exit(0)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _namespaces() -> None:
    """New mounts, processes, network, IPC and host name; and users, where root's rights are missing."""
    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    user, group = os.geteuid(), os.getegid()
    if user == 0 and _LIBC.unshare(flags) == 0:
        return
    _checked("unshare", _LIBC.unshare(flags | _NEWUSER))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{_NOBODY} {user} 1"),
        ("gid_map", f"{_NOBODY} {group} 1"),
    ):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise RefusedError(f"{name} of a new user namespace: {error.strerror}") from None


def _files(root: str, size: int, inodes: int) -> None:
    """Exchange the file system for an empty one in memory with the Python library, read-only, in it."""
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, f"size={size},nr_inodes={inodes},mode=755")
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
    _checked("pivot_root", _LIBC.syscall(_number("pivot_root"), b".", b"."))
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
        (resource.RLIMIT_SIGPENDING, 64),
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


def _number(call: str) -> int:
    return _REFUSED[call][list(_MACHINES).index(platform.machine())]


def _refuse_calls() -> None:
    """A seccomp filter: refused calls fail with EPERM, clone3 as if unknown, so that clone is used."""
    position = list(_MACHINES).index(platform.machine())
    machine = _MACHINES[platform.machine()]
    load, equal, bits, answer = 0x20, 0x15, 0x45, 0x06
    namespaces = _NEWNS | _NEWUTS | _NEWIPC | _NEWUSER | _NEWPID | _NEWNET | _NEWCGROUP | _NEWTIME
    deny, unknown, allow = ((answer, 0, 0, value) for value in (_ERRNO | _EPERM, _ERRNO | _ENOSYS, _ALLOW))
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), deny, (load, 0, 0, 0)]
    if platform.machine() == "x86_64":
        code += [(0x35, 0, 1, 0x40000000), deny]  # the x32 calls have other numbers
    code += [(equal, 0, 1, _CLONE3), unknown]
    for numbers in _REFUSED.values():
        code += [(equal, 0, 1, numbers[position]), deny]
    # fcntl(.., F_SETPIPE_SZ, ..): its second argument; then clone with a namespace: its first
    code += [(equal, 0, 4, _FCNTL[position]), (load, 0, 0, 24), (equal, 0, 1, _SET_PIPE_SIZE), deny, allow]
    code += [(equal, 1, 0, _CLONE[position]), allow, (load, 0, 0, 16), (bits, 0, 1, namespaces), deny, allow]
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


def _prctl(option: int, value: Any, pointer: bytes | None = None) -> None:
    _checked(f"prctl {option}", _LIBC.prctl(option, ctypes.c_ulong(int(value)), pointer, 0, 0))


def _checked(what: str, result: int) -> None:
    if result:
        raise RefusedError(f"{what}: {os.strerror(ctypes.get_errno())}")
