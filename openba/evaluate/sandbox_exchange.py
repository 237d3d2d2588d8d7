"""What passes between a checked program and its tests, which run in two sandboxes: calls and plain values.

Run inside the sandbox with the standard library only. The program serves calls of one function; the tests
call it through a stand-in. Values are sent as tagged JSON and rebuilt from built-in types, so that no
method of the program's objects (such as an `__eq__` that is always true) ever runs beside the tests.
"""

from __future__ import annotations

import builtins
import json
import os
import struct
import sys
from collections.abc import Callable
from itertools import islice
from typing import Any

MOST_BYTES = 16 * 2**20
"""Of one message; a longer one ends the exchange."""
_MOST_ITEMS = 100_000
"""Of an iterator that a function returns; the rest is left out."""
_LENGTH = struct.Struct(">I")


class EndedError(BaseException):
    """The program has ended or broken the exchange. No `except Exception` in the tests catches it."""


class Opaque:
    """Stands for a returned object that is no plain value; equal to nothing but itself."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} object>"


def encode(value: Any) -> Any:
    """Return a value as tagged JSON; subclasses become their built-in type, other objects are named only."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, bytes(value).hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(encode, kind.__iter__(value))]  # type: ignore[arg-type]
    if isinstance(value, dict):
        return ["dict", *([encode(key), encode(item)] for key, item in dict.items(value))]
    if hasattr(value, "__next__"):
        return ["iterator", *map(encode, islice(value, _MOST_ITEMS))]
    return ["object", type(value).__name__]


def decode(tree: Any) -> Any:
    """Rebuild a value from `encode`'s JSON.

    Raises:
        ValueError, TypeError: it is not of that form.
    """
    if not isinstance(tree, list):
        if isinstance(tree, dict):
            raise TypeError("an untagged object")
        return tree
    kind, *items = tree
    if kind in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, kind)(map(decode, items))
    if kind == "dict":
        return {decode(key): decode(item) for key, item in items}
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(items[0])
    if kind in ("complex", "range"):
        return getattr(builtins, kind)(*items)
    if kind == "iterator":
        return iter([decode(item) for item in items])
    if kind == "object":
        return Opaque(str(items[0]))
    raise ValueError(f"unknown kind {kind!r:.40}")


def send(descriptor: int, message: Any) -> None:
    """Write one message, its length first."""
    content = json.dumps(message).encode()
    if len(content) > MOST_BYTES:
        raise ValueError(f"a value of more than {MOST_BYTES} bytes")
    view = memoryview(_LENGTH.pack(len(content)) + content)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> Any:
    """Read one message.

    Raises:
        EOFError: the other side has closed the exchange, or what it wrote is no message.
    """
    (length,) = _LENGTH.unpack(_read(descriptor, _LENGTH.size))
    if length > MOST_BYTES:
        raise EOFError("a message that is too long")
    try:
        return json.loads(_read(descriptor, length))
    except (ValueError, RecursionError):
        raise EOFError("a message that is no JSON") from None


def _read(descriptor: int, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        part = os.read(descriptor, min(length - len(content), 2**20))
        if not part:
            raise EOFError("the exchange is closed")
        content += part
    return bytes(content)


def serve(program: str, function: str, requests: int, responses: int) -> None:
    """Run a program, then answer the calls of one of its functions until the requests end."""
    sys.set_int_max_str_digits(0)
    names: dict[str, Any] = {"__name__": "__main__"}

    def define() -> Any:
        exec(compile(program, "answer.py", "exec"), names)  # noqa: S102 - what the sandbox is for
        if function not in names:
            raise NameError(f"name {function!r} is not defined")

    send(responses, _outcome(define))
    while True:
        try:
            positional, named = map(decode, receive(requests))
        except EOFError:
            return
        send(responses, _outcome(lambda: names[function](*positional, **named)))  # noqa: B023 - called at once


def _outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call returns or raises, ready to be sent. An exit ends the process instead."""
    try:
        return {"value": encode(call())}
    except SystemExit:
        os._exit(0)
    except BaseException as error:
        try:
            message = " ".join(str(error).split())[:200]
        except Exception:
            message = ""
        return {"error": type(error).__name__, "message": message}


def check(tests: str, requests: int, responses: int) -> tuple[str, str]:
    """Run tests that call the program's function under the name `candidate`.

    Returns:
        The outcome, `passed`, `failed`, `memory` or `ended`, and a message.
    """
    sys.set_int_max_str_digits(0)
    stand_in = _StandIn(requests, responses)
    try:
        stand_in.result()  # of the definition
        exec(compile(tests, "tests.py", "exec"), {"__name__": "__main__", "candidate": stand_in})  # noqa: S102
    except EndedError:
        pass
    except MemoryError:
        return "memory", ""
    except BaseException as error:
        if not stand_in.ended:
            return "failed", " ".join(f"{type(error).__name__}: {error}".split())[:200]
    # Tests may have caught what was raised when the program ended, so the flag decides.
    return ("ended", "") if stand_in.ended else ("passed", "")


class _StandIn:
    """Calls the program's function in its own sandbox."""

    def __init__(self, requests: int, responses: int) -> None:
        self._requests, self._responses = requests, responses
        self.ended = False

    def __call__(self, *positional: Any, **named: Any) -> Any:
        try:
            send(self._requests, [encode(positional), encode(named)])
        except OSError:
            self._end()
        return self.result()

    def result(self) -> Any:
        """The next response's value; raises what the program raised, if that is a built-in exception."""
        try:
            response = receive(self._responses)
            if "error" in response:
                error, message = str(response["error"]), str(response["message"])
            else:
                return decode(response["value"])
        except (EOFError, OSError, ValueError, TypeError, KeyError, RecursionError, IndexError):
            self._end()
        if error == "MemoryError":
            raise MemoryError
        kind = getattr(builtins, error, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                raised = kind(message)
            except TypeError:  # such as UnicodeDecodeError, which takes five arguments
                raised = RuntimeError(f"{error}: {message}")
            raise raised
        raise RuntimeError(f"{error}: {message}")

    def _end(self) -> None:
        self.ended = True
        raise EndedError
