"""The command at the end of an installation leaves no kernel to be compiled in a run."""

from __future__ import annotations

import importlib
import pkgutil

from numba.core.dispatcher import Dispatcher

import openba
from openba.compile_kernels import compile_kernels


def kernels() -> dict[str, Dispatcher]:
    """All functions that numba compiles, by module and name."""
    found_kernels = {}
    # The paper's recipe does not use these.
    optional = tuple(f"openba.data.clean.{name}" for name in ("quality", "normalise", "private_numbers"))
    for module_info in pkgutil.walk_packages(openba.__path__, "openba."):
        if module_info.name.startswith(optional):
            continue
        if module_info.name.startswith(("openba.data", "openba.model.cpu")):
            module = importlib.import_module(module_info.name)
            for name, value in vars(module).items():
                if isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__:
                    found_kernels[f"{module.__name__}.{name}"] = value
    return found_kernels


def test_every_kernel_is_compiled() -> None:
    compile_kernels()
    every_kernel = kernels()
    # A kernel that others call is compiled into them.
    called = {name for kernel in every_kernel.values() for name in kernel.py_func.__code__.co_names}
    outermost = {name: kernel for name, kernel in every_kernel.items() if name.split(".")[-1] not in called}
    assert len(outermost) > 25
    assert [name for name, kernel in outermost.items() if not kernel.signatures] == []
