"""A table of hostile programs: none forges a verdict, reaches anything or uses more than its limits."""

from __future__ import annotations

import subprocess

import pytest

from openba.errors import UserError
from openba.evaluate.sandbox import Check, CheckResult, SandboxLimits, run_check

SECONDS = 20.0
"""On a busy machine, too."""


def run(program: str, tests: str, limits: SandboxLimits) -> CheckResult:
    try:
        return run_check(Check(program, "solve", tests), limits)
    except UserError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


# Programs that do not know the right answer, 4 for 2, and try to pass all the same.
FORGERIES = {
    "os.write is patched": """
import os
real = os.write
os.write = lambda d, b: real(d, bytes(b).replace(b'failed', b'passed').replace(b'null', b'4'))
def solve(x): return None""",
    "print is patched": "import builtins\nbuiltins.print = lambda *a: None\ndef solve(x): return None",
    "assert's exception is patched": """
import builtins
builtins.AssertionError = ValueError
def solve(x): return 3""",
    "an object equal to everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def solve(x): return Any()""",
    "an int equal to everything": """
class Any(int):
    def __eq__(self, other): return True
    def __hash__(self): return 4
def solve(x): return Any(5)""",
    "a str equal to everything": """
class Any(str):
    def __eq__(self, other): return True
    def __hash__(self): return 4
def solve(x): return Any('5')""",
    "a list equal to everything": """
class Any(list):
    def __eq__(self, other): return True
def solve(x): return Any([5])""",
    "a float equal to everything": """
class Any(float):
    def __eq__(self, other): return True
    def __hash__(self): return 4
def solve(x): return Any(5)""",
    "a dict equal to everything": """
class Any(dict):
    def __eq__(self, other): return True
    def items(self): return [(4, 4)]
def solve(x): return Any(a=5)""",
    "a class that says it is an int": """
class Any:
    __class__ = int
    def __int__(self): return 5
    def __eq__(self, other): return True
def solve(x): return Any()""",
    "not a number": "def solve(x): return float('nan')",
    "the caller's frames are searched": """
import sys
def solve(x):
    frame = sys._getframe()
    while frame:
        for name, value in list(frame.f_locals.items()):
            if 'tests' in name: frame.f_locals[name] = ''
        frame = frame.f_back""",
    "all objects are searched": """
import gc
def solve(x):
    for thing in gc.get_objects():
        if isinstance(thing, dict) and 'tests' in thing: return thing['tests']""",
    "a verdict on every descriptor": """
import os
def solve(x):
    for d in range(256):
        try: os.write(d, b'["passed", ""]')
        except OSError: pass""",
    "a verdict on every descriptor at once": """
import os
for d in range(256):
    try: os.write(d, b'ready\\n["passed", ""]')
    except OSError: pass
def solve(x): return 3""",
    "responses before the calls": """
import json, os, struct
for d in range(3, 1024):
    for value in range(99, 0, -1):
        m = json.dumps({'value': value}).encode()
        try: os.write(d, struct.pack('>I', len(m)) + m)
        except OSError: break
def solve(x): return 3""",
    "a message of endless length": """
import os
for d in range(3, 1024):
    try: os.write(d, b'\\xff' * 9)
    except OSError: pass
def solve(x): return 4""",
    "a message that is no JSON": """
import os
for d in range(3, 1024):
    try: os.write(d, b'\\0\\0\\0\\4@@@@')
    except OSError: pass
def solve(x): return 4""",
    "a message nested beyond the stack": """
import os
for d in range(3, 1024):
    try: os.write(d, b'\\0\\0\\x4e\\x20' + b'[' * 20000)
    except OSError: pass
def solve(x): return 4""",
    "an exit before the tests": "raise SystemExit(0)",
    "an exit in the function": "def solve(x): raise SystemExit(0)",
    "an exit past the interpreter": "import os\ndef solve(x): os._exit(0)",
    "a signal to itself": "import os\ndef solve(x): os.kill(os.getpid(), 9)",
    "an exit handler": """
import atexit, os
atexit.register(lambda: os.write(1, b'["passed", ""]'))
def solve(x): raise SystemExit""",
    "an exception hook": "import sys\nsys.excepthook = lambda *a: None\ndef solve(x): raise ValueError",
    "an exception that cannot be printed": """
class Odd(Exception):
    def __str__(self): raise Odd
def solve(x): raise Odd""",
    "an exception named like an exit": """
class EndedError(BaseException): pass
def solve(x): raise EndedError""",
    "all descriptors closed": "import os\nos.closerange(0, 256)\ndef solve(x): return 4",
    "the encoder is patched": """
import sys
exchange = sys.modules['openba.evaluate.sandbox_exchange']
exchange.encode = lambda value: ['object', 'x']
exchange.check = lambda *a: ('passed', '')
def solve(x): return 3""",
    "the next program is imported": """
import sys
class Finder:
    def find_spec(self, *a): raise SystemExit(0)
sys.meta_path.insert(0, Finder())
def solve(x): return 3""",
    "the parent's number is guessed": "import os\ndef solve(x): os.kill(os.getppid(), 9); return 3",
}


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_no_verdict_is_forged(program: str) -> None:
    verdict = run(program, "assert candidate(2) == 4", SandboxLimits(seconds=SECONDS))
    assert verdict.outcome in ("failed", "ended")


# Each is true or None where the program got what it must not have; else it is false or raises an OSError.
REACHES = {
    "files of the machine": "open('/etc/passwd').read()",
    "the process table": "os.listdir('/proc/1')",
    "its own memory map": "open('/proc/self/mem', 'rb')",
    "kernel settings": "os.listdir('/sys/kernel')",
    "the environment": "[n for n in os.environ if n != 'LC_CTYPE']",  # which the interpreter sets itself
    "the home folder": "[n for n in os.listdir('/root') if f'/root/{n}' not in sys.base_prefix]",
    "devices": "open('/dev/mem', 'rb')",
    "the terminal": "open('/dev/tty')",
    "the library, to write": "open(os.__file__, 'a')",
    "the library, to remove": "os.remove(json.__file__)",
    "the root folder, to write": "open('/x', 'w')",
    "a link out of the folder": "os.symlink('/etc/passwd', 'l') or open('l').read()",
    "a hard link to the library": "os.link(os.__file__, 'l')",
    "a device of its own": "os.mknod('d', 0o20600, 259)",
    "a socket to the network": "socket.create_connection(('127.0.0.1', 80), 1)",
    "a raw socket": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "a packet socket": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "a netlink socket": "socket.socket(socket.AF_NETLINK)",
    "a name server": "socket.getaddrinfo('localhost', 80, type=1) and socket.socket()",
    "a shell": "subprocess.run(['/bin/sh', '-c', 'true'])",
    "a set-user-id program": "subprocess.run(['/bin/su'])",
    "the super user": "os.setuid(0)",
    "another group": "os.setgid(0)",
    "other groups": "os.setgroups([0])",
    "a bit that would give rights": "os.chmod(__import__('sys').executable, 0o4755)",
    "a debugger on its parent": "libc.ptrace(16, os.getppid(), 0, 0) == 0",
    "to be traced": "libc.ptrace(0, 0, 0, 0) == 0",
    "memory of another process": "libc.process_vm_readv(1, None, 0, None, 0, 0) == 0",
    "a file system": "libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
    "no file system": "libc.umount2(b'/lib', 2) == 0",
    "another root": "os.chroot('/tmp')",
    "a user namespace": "libc.unshare(0x10000000) == 0",
    "a network namespace": "libc.unshare(0x40000000) == 0",
    "a clone in a namespace": "libc.syscall(56 if x86 else 220, 0x10000011, 0, 0, 0, 0) >= 0",
    "clone3": "libc.syscall(435, None, 0) == 0 or ctypes.get_errno() != 38",
    "the calls of x32": "x86 and libc.syscall(0x40000000 + 39) > 0",
    "another namespace": "libc.setns(0, 0) == 0",
    "a kernel program": "libc.syscall(321 if x86 else 280, 0, 0, 0) == 0 or ctypes.get_errno() != 1",
    "performance counters": "libc.syscall(298 if x86 else 241, 0, 0, 0, 0) >= 0 or ctypes.get_errno() != 1",
    "kernel keys": "libc.syscall(250 if x86 else 219, 0, 0, 0, 0, 0) >= 0",
    "io_uring": "libc.syscall(425, 1, 0) >= 0 or ctypes.get_errno() != 1",
    "page faults": "libc.syscall(323 if x86 else 282, 0) >= 0",
    "a kernel module": "libc.syscall(313 if x86 else 273, 0, 0, 0) >= 0 or ctypes.get_errno() != 1",
    "a file by its handle": "libc.syscall(304 if x86 else 265, 0, 0, 0) >= 0 or ctypes.get_errno() != 1",
    "the kernel's log": "libc.klogctl(10, 0, 0) >= 0",
    "another host name": "socket.sethostname('x')",
    "more than its limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "more processes": "resource.setrlimit(resource.RLIMIT_NPROC, (99, 99))",
    "a better priority": "os.nice(-5)",
    "the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "memory without a file": "os.memfd_create('x')",
    "secret memory": "libc.syscall(447, 0) >= 0 or ctypes.get_errno() != 1",
    "shared memory segments": "libc.shmget(0, 4096, 0o1600) >= 0",
    "message queues": "libc.msgget(0, 0o1600) >= 0",
    "semaphores": "libc.semget(0, 1, 0o1600) >= 0",
    "named queues": "libc.syscall(240 if x86 else 180, b'x', 0o102, 0o600, 0) >= 0",
    "named shared memory": "open('/dev/shm/x', 'wb')",
    "larger pipes": "fcntl.fcntl(os.pipe()[0], 1031, 2**20)",
    "locked memory": "libc.mlock(ctypes.create_string_buffer(65536), 65536) == 0",
    "other personalities": "libc.personality(0x0040000) >= 0",
    "signals to others": "os.kill(1, 9) or os.path.exists('/x')",
    "the parent's processes": "[n for n in range(2, 400) if n != os.getpid() and not os.kill(n, 0)]",
    "a word for the tests": "[d for d in range(3, 1024) if not os.fstat(d).st_mode & 0o010000]",
}

_PROBES = """
import ctypes, fcntl, json, os, platform, resource, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == 'x86_64'
def solve(probe):
    try:
        result = eval(probe)
    except BaseException as error:
        return [kind.__name__ for kind in type(error).__mro__]
    return ['reached'] if result or result is None else ['refused']
"""


@pytest.mark.parametrize("probe", REACHES.values(), ids=REACHES)
def test_nothing_outside_is_reached(probe: str) -> None:
    tests = (
        f"kinds = candidate({probe!r})\n"
        "assert kinds == ['refused'] or {'OSError', 'ValueError'} & set(kinds), kinds"
    )
    verdict = run(_PROBES, tests, SandboxLimits(seconds=SECONDS))
    assert verdict == CheckResult("passed")


# Programs that want more than their limits, and how they may end. They are given 3 seconds.
FLOODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "memory of one process": (
        "def solve(x):\n  a = []\n  while True: a.append(bytearray(10**7))",
        ("memory",),
    ),
    "memory of seven processes": (
        "import os, time\ndef solve(x):\n  for i in range(7):\n    if os.fork() == 0:\n"
        "      a = bytearray(b'x') * (400 * 2**20)\n      time.sleep(9)\n  time.sleep(9)",
        ("memory", "failed"),  # failed: a normal user has fewer processes left
    ),
    "memory that processes share": (
        "import mmap, os, time\ndef solve(x):\n  for i in range(3):\n    if os.fork() == 0:\n"
        "      m = mmap.mmap(-1, 400 * 2**20)\n      m.write(b'x' * (300 * 2**20))\n      time.sleep(9)\n"
        "  time.sleep(9)",
        ("memory",),
    ),
    "processes": (
        "import os\ndef solve(x):\n  while True:\n    try: os.fork()\n    except OSError: pass",
        ("timeout", "ended"),
    ),
    "threads": (
        "import threading, time\ndef solve(x):\n  for i in range(99): threading.Thread(target=time.sleep, "
        "args=(9,), daemon=True).start()",
        ("failed",),
    ),
    "one large file": ("def solve(x): open('x', 'wb').write(bytes(10**7))", ("failed", "ended")),
    "many files": (
        "def solve(x):\n  for i in range(99): open(str(i), 'wb').write(bytes(3 * 10**6))",
        ("failed",),
    ),
    "many empty files": (
        "def solve(x):\n  for i in range(10**5): open(str(i), 'wb').close()",
        ("failed",),
    ),
    "many descriptors": (
        "import os\npipes = []\ndef solve(x):\n  while True: pipes.append(os.pipe())",
        ("failed",),
    ),
    "processor time": ("def solve(x):\n  while True: pass", ("timeout",)),
    "processor time before the tests": ("while True: pass", ("timeout",)),
    "sleep": ("import time\ndef solve(x): time.sleep(99)", ("timeout",)),
    "a stop of itself": (
        "import os, signal\ndef solve(x): os.kill(os.getpid(), signal.SIGSTOP)",
        ("timeout",),
    ),
    "no signal heard": (
        "import signal\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\ndef solve(x):\n  while True: pass",
        ("timeout",),
    ),
    "output": (
        "import os\ndef solve(x):\n  while True:\n    for d in range(64):\n"
        "      try: os.write(d, b'x' * 65536)\n      except OSError: pass",
        ("ended", "timeout"),
    ),
    "a value too large": ("def solve(x): return 'x' * (40 * 2**20)", ("failed", "ended", "memory")),
    "a number too large": ("def solve(x): return 7 ** (10**8)", ("timeout", "memory", "ended", "failed")),
    "an iterator without end": ("import itertools\ndef solve(x): return itertools.count()", ("failed",)),
    "recursion": ("def solve(x): return solve(x)", ("failed",)),
    "a value that holds itself": ("def solve(x):\n  a = []\n  a.append(a)\n  return a", ("failed",)),
    "a child that stays": (
        "import os, time\ndef solve(x):\n  if os.fork() == 0:\n    os.setsid()\n"
        "    if os.fork() == 0: time.sleep(99)\n    os._exit(0)\n  return 3",
        ("failed",),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("program", "outcomes"), FLOODS.values(), ids=FLOODS)
def test_limits_hold(program: str, outcomes: tuple[str, ...]) -> None:
    seconds = 3.0 if "timeout" in outcomes else SECONDS
    assert run(program, "assert candidate(2) == 4", SandboxLimits(seconds=seconds)).outcome in outcomes
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert "sandbox_child" not in listed
