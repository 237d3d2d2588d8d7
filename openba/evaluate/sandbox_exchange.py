"""Calls and values between a checked program and its tests, which run in two sandboxes.

Runs inside the sandboxes, with the standard library only. The program's process serves calls of one function;
the tests call it through a proxy. Values are sent as tagged JSON and rebuilt from built-in types, so that no
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
from typing import NoReturn

MAX_MESSAGE_BYTES = 16 * 2**20
"""Size limit of one message; a longer one ends the exchange."""
_MAX_ITERATOR_ITEMS = 100_000
"""Items sent of an iterator that a function returns; the rest is left out."""
_MAX_ERROR_CHARACTERS = 200
_LENGTH_PREFIX = struct.Struct(">I")


class ProgramEndedError(BaseException):
    """The program has ended or broken the exchange; no `except Exception` in the tests catches it."""


class Opaque:
    """Placeholder for a returned object that is no plain value; equal to nothing but itself."""

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} object>"


def encode(value: object) -> object:
    """Return a value as tagged JSON; subclasses become the built-in type, other objects a type name."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        # A subclass may override __str__ and return whatever it likes, so the base's is called.
        return str.__str__(value)
    if isinstance(value, bytes | bytearray):
        return [type(value).__name__, bytes(value).hex()]
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    for container_type in (list, tuple, set, frozenset):
        if isinstance(value, container_type):
            items = container_type.__iter__(value)  # type: ignore[arg-type]
            return [container_type.__name__, *map(encode, items)]
    if isinstance(value, dict):
        return ["dict", *([encode(key), encode(item)] for key, item in dict.items(value))]
    if hasattr(value, "__next__"):
        return ["iterator", *map(encode, islice(value, _MAX_ITERATOR_ITEMS))]  # type: ignore[call-overload]
    return ["object", type(value).__name__]


def decode(tree: object) -> object:
    """Rebuild a value from `encode`'s JSON.

    Raises:
        ValueError, TypeError: it is not of that form.
    """
    if not isinstance(tree, list):
        if isinstance(tree, dict):
            raise TypeError("an untagged object")
        return tree
    type_name, *items = tree
    if type_name in ("list", "tuple", "set", "frozenset"):
        return getattr(builtins, type_name)(map(decode, items))
    if type_name == "dict":
        return {decode(key): decode(item) for key, item in items}
    if type_name in ("bytes", "bytearray"):
        return getattr(builtins, type_name).fromhex(items[0])
    if type_name in ("complex", "range"):
        return getattr(builtins, type_name)(*items)
    if type_name == "iterator":
        return iter([decode(item) for item in items])
    if type_name == "object":
        return Opaque(str(items[0]))
    raise ValueError(f"unknown type {type_name!r:.40}")


def send(descriptor: int, message: object) -> None:
    """Write one message, prefixed by its length."""
    content = json.dumps(message).encode()
    if len(content) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a value of more than {MAX_MESSAGE_BYTES} bytes")
    unsent = memoryview(_LENGTH_PREFIX.pack(len(content)) + content)
    while unsent:
        unsent = unsent[os.write(descriptor, unsent) :]


def receive(descriptor: int) -> object:
    """Read one message.

    Raises:
        EOFError: the other process has closed the pipe, or what it wrote is no message.
    """
    (content_length,) = _LENGTH_PREFIX.unpack(_read_exactly(descriptor, _LENGTH_PREFIX.size))
    if content_length > MAX_MESSAGE_BYTES:
        raise EOFError("a message that is too long")
    try:
        return json.loads(_read_exactly(descriptor, content_length))
    except (ValueError, RecursionError):
        raise EOFError("a message that is no JSON") from None


def _read_exactly(descriptor: int, byte_count: int) -> bytes:
    content = bytearray()
    while len(content) < byte_count:
        chunk = os.read(descriptor, min(byte_count - len(content), 2**20))
        if not chunk:
            raise EOFError("the exchange is closed")
        content += chunk
    return bytes(content)


def serve_calls(program: str, function_name: str, call_pipe: int, result_pipe: int) -> None:
    """Run a program, then serve calls of one of its functions until the pipe is closed."""
    # Numbers of any length pass: the limit of 4,300 digits would fail right answers.
    sys.set_int_max_str_digits(0)
    program_globals: dict[str, object] = {"__name__": "__main__"}

    # The function has to be a global of the program.
    def define_function() -> None:
        exec(compile(program, "answer.py", "exec"), program_globals)  # noqa: S102 - what the sandbox is for
        if function_name not in program_globals:
            raise NameError(f"name {function_name!r} is not defined")

    send(result_pipe, _call_outcome(define_function))
    while True:
        try:
            arguments, keywords = map(decode, receive(call_pipe))  # type: ignore[call-overload]
        except EOFError:
            return
        # Looked up anew for each call: the program may rebind its name.
        outcome = _call_outcome(lambda: program_globals[function_name](*arguments, **keywords))  # type: ignore[operator]  # noqa: B023 - called at once
        send(result_pipe, outcome)


def _call_outcome(call: Callable[[], object]) -> dict[str, object]:
    """Return the message with a call's result or exception. `SystemExit` ends the process instead."""
    try:
        return {"value": encode(call())}
    except SystemExit:
        os._exit(0)
    except BaseException as error:
        try:
            message = " ".join(str(error).split())[:_MAX_ERROR_CHARACTERS]
        except Exception:  # the program's exceptions may fail to print
            message = ""
        return {"error": type(error).__name__, "message": message}


def run_tests(tests: str, call_pipe: int, result_pipe: int) -> tuple[str, str]:
    """Run tests that call the program's function under the name `candidate`.

    Returns:
        The outcome, `passed`, `failed`, `memory` or `ended`, and a message.
    """
    sys.set_int_max_str_digits(0)
    function_proxy = _FunctionProxy(call_pipe, result_pipe)
    try:
        function_proxy.read_result()  # of the definition
        test_globals = {"__name__": "__main__", "candidate": function_proxy}
        exec(compile(tests, "tests.py", "exec"), test_globals)  # noqa: S102
    except ProgramEndedError:
        pass
    except MemoryError:
        return "memory", ""
    except BaseException as error:
        if not function_proxy.has_ended:
            message = " ".join(f"{type(error).__name__}: {error}".split())
            return "failed", message[:_MAX_ERROR_CHARACTERS]
    # Tests may have caught the exception for the end of the program, so the flag decides.
    return ("ended", "") if function_proxy.has_ended else ("passed", "")


class _FunctionProxy:
    """Callable that forwards to the program's function in the other sandbox."""

    def __init__(self, call_pipe: int, result_pipe: int) -> None:
        self._call_pipe = call_pipe
        self._result_pipe = result_pipe
        self.has_ended = False

    def __call__(self, *arguments: object, **keywords: object) -> object:
        try:
            send(self._call_pipe, [encode(arguments), encode(keywords)])
        except OSError:
            self._raise_ended()
        return self.read_result()

    def read_result(self) -> object:
        """Return the next result; raises the program's exception, if that is a built-in one."""
        try:
            response = receive(self._result_pipe)
            if "error" not in response:  # type: ignore[operator]
                return decode(response["value"])  # type: ignore[index]
            error_name = str(response["error"])  # type: ignore[index]
            message = str(response["message"])  # type: ignore[index]
        except (EOFError, OSError, ValueError, TypeError, KeyError, RecursionError, IndexError):
            self._raise_ended()
        if error_name == "MemoryError":
            raise MemoryError
        error_type = getattr(builtins, error_name, None)
        if isinstance(error_type, type) and issubclass(error_type, Exception):
            try:
                error = error_type(message)
            except TypeError:  # such as UnicodeDecodeError, which takes five arguments
                error = RuntimeError(f"{error_name}: {message}")
            raise error
        raise RuntimeError(f"{error_name}: {message}")

    def _raise_ended(self) -> NoReturn:
        self.has_ended = True
        raise ProgramEndedError
