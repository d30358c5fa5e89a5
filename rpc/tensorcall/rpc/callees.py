"""What a call runs on the other worker: a Python function, a TorchScript function or one of torch's operators.

The caller makes a `Callee` of what the user gave, which is picklable wherever the function is known; the callee's
worker hands its parts to `run`.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from tensorcall.rpc import functions, recording

_builtins: Any = torch.jit._builtins
_jit_internal: Any = torch._jit_internal
_state: Any = torch.jit._state
_C: Any = torch._C


class Kind(enum.Enum):
    """What kind of function a call runs, as torch's messages tell them apart."""

    PYTHON = "python"
    SCRIPT = "script"
    """A TorchScript function or an operator: no Python runs there, and no GIL is held."""


class Callee(NamedTuple):
    """A function with its arguments, ready to be sent."""

    kind: Kind
    func: Callable[..., Any]
    """What is pickled and runs on the other worker."""
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str
    """What profiles call it."""
    given: object = None
    """What the user gave, where that has a signature that tells the result's type."""

    @property
    def answers_later(self) -> bool:
        """Whether it returns a future of its result."""
        return functions.is_async(self.func)


def callee(func: Any, args: tuple[Any, ...] | None, kwargs: Mapping[str, Any] | None) -> Callee:
    """Finds out what is to be run, and how.

    Raises:
        TypeError: it can't be called.
        RuntimeError: the arguments don't fit a TorchScript function's signature.
    """
    if not callable(func):
        raise TypeError("function should be callable.")
    args, kwargs = tuple(args or ()), kwargs or {}
    builtin = _builtins._find_builtin(func)
    # TorchScript has operators for some of Python's own functions, such as min and dict, that do less than those.
    if builtin is not None and getattr(func, "__module__", None) not in ("builtins", "math", "cmath"):
        return Callee(Kind.SCRIPT, run_builtin, (builtin, args, kwargs), {}, builtin, builtin)
    script = getattr(func, functions.WRAPPED, func)
    if isinstance(script, torch.jit.ScriptFunction):
        check_arguments(script, args, kwargs)
        name: str = _jit_internal._qualified_name(script)
        run_it = run_script if script is func else run_script_later
        return Callee(Kind.SCRIPT, run_it, (name, args, kwargs), {}, name, script)
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    return Callee(Kind.PYTHON, func, args, kwargs, name)


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs a callee's function on the worker that it was sent to.

    Returns:
        What the function returns; if `functions.is_async(func)`, that is a future of the result.

    Raises:
        BaseException: whatever the function raises.
        RuntimeError: it was to return a future and didn't.
    """
    if recording.server_wide():
        return recording.run_server_wide(func, args, kwargs)
    return run_unprofiled(func, args, kwargs)


def run_unprofiled(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """As `run`, without looking whether this worker is being profiled."""
    result = func(*args, **kwargs)
    if functions.is_async(func) and not isinstance(result, torch._C.Future):
        if func is run_script_later:
            raise RuntimeError(f"Async functions must return an IValue of Future type, but got {type(result).__name__}")
        raise RuntimeError(
            "Functions decorated with @rpc.async_function must return a torch.futures.Future object, "
            f"but got {type(result).__module__}.{type(result).__qualname__}"
        )
    return result


def run_builtin(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs one of torch's operators, by its name in TorchScript, such as "aten::add"."""
    return _operator(name)(*args, **kwargs)


@functools.cache
def _operator(name: str) -> Callable[..., Any]:
    operator, _ = _C._jit_get_operation(name)
    if operator is None:
        raise RuntimeError(f"there is no operator {name} on this worker")
    made: Callable[..., Any] = operator
    return made


def run_script(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs a TorchScript function, by its qualified name; torch holds no GIL meanwhile.

    Raises:
        RuntimeError: no function of this name was scripted in this process.
    """
    function = scripted(name)
    if function is None:
        raise RuntimeError(
            f"attempted to get undefined function {name.rpartition('.')[2]}: "
            f"{name} was not scripted in this process; do so on both workers"
        )
    return function(*args, **kwargs)


def scripted(name: str) -> Any:
    """Returns the TorchScript function of this name; None if none was scripted in this process."""
    return _state._python_cu.find_function(name)


@functions.async_execution
def run_script_later(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """As `run_script`, a function that returns a future of its result."""
    return run_script(name, args, kwargs)


def check_arguments(script: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Checks the arguments' names and number against a TorchScript function's signature, as torch does before it sends.

    Raises:
        RuntimeError: they don't fit; in torch's words (torch/csrc/jit/python/pybind_utils.h).
    """
    schema = script.schema
    known = [argument.name for argument in schema.arguments]
    if len(args) > len(known):
        raise RuntimeError(
            f"{schema.name}() expected at most {len(known)} argument(s) but received "
            f"{len(args) + len(kwargs)} argument(s). Declaration: {schema}"
        )
    for argument in schema.arguments[len(args) :]:
        if argument.name not in kwargs and not argument.has_default_value():
            raise RuntimeError(
                f"{schema.name}() is missing value for argument '{argument.name}'. Declaration: {schema}"
            )
    for name in kwargs:
        if name not in known:
            raise RuntimeError(f"Unknown keyword argument '{name}' for operator '{schema.name}'. Schema: {schema}")
        if name in known[: len(args)]:
            raise RuntimeError(f"Argument '{name}' specified both as positional and keyword argument. Schema: {schema}")
