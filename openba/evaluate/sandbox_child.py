"""Entry point of a sandboxed process, with the standard library only: isolates itself, then runs the code.

Owns the order of namespaces, mounts, limits, privileges and the system call filter. Reads a request as JSON
from standard input. Reports on standard output: `ready` before the code begins, or why it cannot; and from
the tests their outcome.
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
from typing import NoReturn, NotRequired, TypedDict

from openba.evaluate import sandbox_exchange

_LIBC = ctypes.CDLL(None, use_errno=True)
# Numbers of the kernel's headers: linux/sched.h, sys/mount.h, linux/prctl.h, linux/capability.h.
_NEWTIME = 0x80
_NEWNS = 0x20000
_NEWCGROUP = 0x2000000
_NEWUTS = 0x4000000
_NEWIPC = 0x8000000
_NEWUSER = 0x10000000
_NEWPID = 0x20000000
_NEWNET = 0x40000000
_RDONLY = 1
_NOSUID = 2
_NODEV = 4
_NOEXEC = 8
_REMOUNT = 32
_NOATIME = 1024
_NODIRATIME = 2048
_BIND = 4096
_REC = 16384
_PRIVATE = 1 << 18
_RELATIME = 1 << 21
_DETACH = 2
_PDEATHSIG = 1
_DUMPABLE = 4
_SECCOMP = 22
_NO_NEW_PRIVS = 38
_CAPABILITIES_3 = 0x20080522

_AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> its `AUDIT_ARCH` number, by which a seccomp filter recognises it."""
_DENIED_CALLS = {
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
"""Denied system call -> its number on x86_64 and on aarch64."""
_CLONE = (56, 220)
_CLONE3 = 435
_FCNTL = (72, 25)
_SET_PIPE_SIZE = 1031
"""fcntl's command; pipes keep their 64 KiB."""
_WORKING_FOLDER = "/tmp"  # noqa: S108 - of the sandbox's own file system
# Return values of a seccomp filter.
_DENY_WITH_ERRNO = 0x00050000
_ALLOW = 0x7FFF0000
_EPERM = 1
_ENOSYS = 38
_NOBODY = 65534


class SandboxRequest(TypedDict):
    """Request of the parent: `SandboxLimits` and the code to run."""

    seconds: float
    memory_bytes: int
    max_processes: int
    max_file_bytes: int
    disk_bytes: int
    max_inodes: int
    tests: str | None
    """None: run `program` and serve calls of its `function`."""
    program: NotRequired[str]
    function: NotRequired[str]
    root: str
    """Empty folder that becomes the root of the file system."""
    exchange: tuple[int, int]
    """Descriptors to receive from and to send to."""


class SetupError(Exception):
    """The kernel does not grant an operation that the sandbox needs."""


def main() -> None:
    """Isolate this process, report `ready`, run the program or the tests, report the tests' outcome."""
    request: SandboxRequest = json.load(sys.stdin)
    report_pipe = os.dup(1)
    try:
        if platform.machine() not in _AUDIT_ARCHITECTURES:
            raise SetupError(f"no list of system calls for {platform.machine()}")
        _prctl(_PDEATHSIG, signal.SIGKILL)
        _enter_namespaces()
    except SetupError as error:
        os.write(report_pipe, str(error).encode())
        os._exit(1)
    # The new process namespace holds children only. Its first process dies with this one (PDEATHSIG), and
    # with it the kernel ends all others.
    init_pid = os.fork()
    if init_pid:
        _close(report_pipe, *request["exchange"])
        os.waitpid(init_pid, 0)
        os._exit(0)
    _run_init(request, report_pipe)


def _run_init(request: SandboxRequest, report_pipe: int) -> NoReturn:
    """Be process 1 of the namespace: set up its files, start the code's process and wait for it."""
    try:
        _prctl(_PDEATHSIG, signal.SIGKILL)
        # Opened before the root changes: the sandbox has no /dev.
        null_device = os.open("/dev/null", os.O_RDWR)
        _enter_root(request["root"], request["disk_bytes"], request["max_inodes"])
        for standard_stream in (0, 1, 2):
            os.dup2(null_device, standard_stream)
        os.close(null_device)
        worker_pid = os.fork()
        if not worker_pid:
            _run_worker(request, report_pipe)
        _close(report_pipe, *request["exchange"])
        # Also reaps orphans, which the kernel hands to process 1.
        while os.wait()[0] != worker_pid:
            pass
    except (SetupError, OSError) as error:
        os.write(report_pipe, str(error).encode())
    os._exit(0)


def _run_worker(request: SandboxRequest, report_pipe: int) -> NoReturn:
    try:
        _set_resource_limits(request)
        _drop_privileges()
        _deny_system_calls()
    except (SetupError, OSError, ValueError) as error:
        os.write(report_pipe, str(error).encode())
        os._exit(1)
    os.write(report_pipe, b"ready\n")
    receive_pipe, send_pipe = request["exchange"]
    if request["tests"] is None:
        # Closed before the program begins, so that it cannot write an outcome.
        os.close(report_pipe)
        sandbox_exchange.serve_calls(request["program"], request["function"], receive_pipe, send_pipe)
    else:
        outcome, message = sandbox_exchange.run_tests(request["tests"], send_pipe, receive_pipe)
        os.write(report_pipe, json.dumps([outcome, message]).encode())
    os._exit(0)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _enter_namespaces() -> None:
    """Enter new mount, process, network, IPC and host name namespaces; and a user one without root rights."""
    namespaces = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    user_id = os.geteuid()
    group_id = os.getegid()
    if user_id == 0 and _LIBC.unshare(namespaces) == 0:
        return
    _check_errno("unshare", _LIBC.unshare(namespaces | _NEWUSER))
    for file_name, content in (
        ("setgroups", "deny"),  # the kernel demands it before gid_map
        ("uid_map", f"{_NOBODY} {user_id} 1"),
        ("gid_map", f"{_NOBODY} {group_id} 1"),
    ):
        try:
            with open(f"/proc/self/{file_name}", "w") as file:
                file.write(content)
        except OSError as error:
            raise SetupError(f"{file_name} of a new user namespace: {error.strerror}") from None


def _enter_root(root: str, disk_bytes: int, max_inodes: int) -> None:
    """Replace the file system by an empty one in memory, with the Python library mounted read-only."""
    _mount(None, "/", None, _REC | _PRIVATE)
    tmpfs_options = f"size={disk_bytes},nr_inodes={max_inodes},mode=755"
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, tmpfs_options)
    python_paths = sysconfig.get_paths()
    library_paths = (
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", sys.base_prefix + "/lib"),
        *(python_paths["stdlib"], python_paths["platstdlib"]),
    )
    for path in dict.fromkeys(library_paths):
        mount_point = root + path
        if os.path.lexists(mount_point) or not os.path.lexists(path):
            continue
        if os.path.islink(path):
            os.makedirs(os.path.dirname(mount_point), exist_ok=True)
            os.symlink(os.readlink(path), mount_point)
            continue
        os.makedirs(mount_point)
        _mount(path, mount_point, None, _BIND | _REC)
        # A user namespace may not lift a restriction of the outer mount, so those are repeated.
        read_only = _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _outer_mount_flags(path)
        _mount(None, mount_point, None, read_only)
    working_folder = root + _WORKING_FOLDER
    os.mkdir(working_folder)
    os.chmod(working_folder, 0o1777)  # noqa: S103 - there is one user
    os.chdir(root)
    # pivot_root(".", ".") stacks the old root on the new one, from where it is unmounted (man 2 pivot_root).
    _check_errno("pivot_root", _LIBC.syscall(_call_number("pivot_root"), b".", b"."))
    _check_errno("umount2", _LIBC.umount2(b".", _DETACH))
    os.chdir(_WORKING_FOLDER)


def _outer_mount_flags(path: str) -> int:
    """Return the restrictions of the mount that a path lies on, as flags of `mount`."""
    statvfs_flags = os.statvfs(path).f_flag
    flag_pairs = (
        (os.ST_NOEXEC, _NOEXEC),
        (os.ST_NOATIME, _NOATIME),
        (os.ST_NODIRATIME, _NODIRATIME),
        (os.ST_RELATIME, _RELATIME),
    )
    return sum(mount_flag for statvfs_flag, mount_flag in flag_pairs if statvfs_flags & statvfs_flag)


def _set_resource_limits(request: SandboxRequest) -> None:
    cpu_seconds = int(request["seconds"]) + 1
    for resource_kind, limit in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, request["memory_bytes"]),
        (resource.RLIMIT_FSIZE, request["max_file_bytes"]),
        (resource.RLIMIT_NPROC, request["max_processes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_SIGPENDING, 64),
    ):
        resource.setrlimit(resource_kind, (limit, limit))


def _drop_privileges() -> None:
    """Give up root and all capabilities, without a way to regain them."""
    if os.geteuid() == 0:
        # RLIMIT_NPROC counts all processes of a user id, so each run gets an id of its own.
        user_id = 2_000_000_000 + int.from_bytes(os.urandom(3), "big")
        os.setgroups([])
        os.setresgid(user_id, user_id, user_id)
        os.setresuid(user_id, user_id, user_id)
    header = struct.pack("Ii", _CAPABILITIES_3, 0)
    _check_errno("capset", _LIBC.capset(header, bytes(24)))
    _prctl(_DUMPABLE, 0)
    _prctl(_NO_NEW_PRIVS, 1)


def _architecture_index() -> int:
    """Return which of the numbers in `_DENIED_CALLS` are this machine's."""
    return list(_AUDIT_ARCHITECTURES).index(platform.machine())


def _call_number(call_name: str) -> int:
    return _DENIED_CALLS[call_name][_architecture_index()]


def _deny_system_calls() -> None:
    """Install a seccomp filter. Denied calls fail with EPERM; clone3 with ENOSYS, so that libc uses clone."""
    index = _architecture_index()
    # Operations of classic BPF (linux/bpf_common.h); an instruction is (operation, jump if true, jump if
    # false, operand). The filter reads `struct seccomp_data`: call number at 0, machine at 4, arguments
    # from 16 on, 8 bytes each.
    load = 0x20
    jump_if_equal = 0x15
    jump_if_at_least = 0x35
    jump_if_bits = 0x45
    give = 0x06
    deny = (give, 0, 0, _DENY_WITH_ERRNO | _EPERM)
    pretend_unknown = (give, 0, 0, _DENY_WITH_ERRNO | _ENOSYS)
    allow = (give, 0, 0, _ALLOW)
    machine = _AUDIT_ARCHITECTURES[platform.machine()]
    code = [(load, 0, 0, 4), (jump_if_equal, 1, 0, machine), deny, (load, 0, 0, 0)]
    if platform.machine() == "x86_64":
        # The x32 calls have this bit set, and would pass by their other numbers.
        code += [(jump_if_at_least, 0, 1, 0x40000000), deny]
    code += [(jump_if_equal, 0, 1, _CLONE3), pretend_unknown]
    for call_numbers in _DENIED_CALLS.values():
        code += [(jump_if_equal, 0, 1, call_numbers[index]), deny]
    # fcntl is denied with F_SETPIPE_SZ as its second argument.
    code += [
        *((jump_if_equal, 0, 4, _FCNTL[index]), (load, 0, 0, 24)),
        *((jump_if_equal, 0, 1, _SET_PIPE_SIZE), deny, allow),
    ]
    # clone is denied with a new namespace among the flags of its first argument.
    namespaces = _NEWNS | _NEWUTS | _NEWIPC | _NEWUSER | _NEWPID | _NEWNET | _NEWCGROUP | _NEWTIME
    code += [
        *((jump_if_equal, 1, 0, _CLONE[index]), allow, (load, 0, 0, 16)),
        *((jump_if_bits, 0, 1, namespaces), deny, allow),
    ]
    instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    filter_program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer))
    _prctl(_SECCOMP, 2, filter_program)


def _mount(
    source: str | None, target: str, file_system: str | None, flags: int, options: str | None = None
) -> None:
    encoded_texts = [text.encode() if text is not None else None for text in (source, target, file_system)]
    encoded_options = options.encode() if options is not None else None
    result = _LIBC.mount(*encoded_texts, ctypes.c_ulong(flags), encoded_options)
    _check_errno(f"mount {target}", result)


def _prctl(option: int, value: int, pointer: bytes | None = None) -> None:
    result = _LIBC.prctl(option, ctypes.c_ulong(int(value)), pointer, 0, 0)
    _check_errno(f"prctl {option}", result)


def _check_errno(call: str, result: int) -> None:
    if result:
        raise SetupError(f"{call}: {os.strerror(ctypes.get_errno())}")
