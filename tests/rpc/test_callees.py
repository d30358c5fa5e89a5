"""What a call runs: Python functions, TorchScript functions, torch's operators, functions that answer later."""

from __future__ import annotations

import operator
import threading
import time
from typing import Any

import pytest
import torch

from tensorcall.rpc import callees, functions
from tensorcall.rpc.callees import Kind


@torch.jit.script
def scripted(a: torch.Tensor, b: int = 2):
    return a * b


@torch.jit.script
def count(times: int) -> int:
    total = 0
    for i in range(times):
        total += i % 3
    return total


@functions.async_execution
@torch.jit.script
def scripted_later(a: torch.Tensor):
    return a


@functions.async_execution
def later(value: int) -> torch.futures.Future[int]:
    future: torch.futures.Future[int] = torch.futures.Future()
    future.set_result(value)
    return future


@functions.async_execution
def not_later() -> int:
    return 5


def run(func: Any, *args: Any, **kwargs: Any) -> Any:
    callee = callees.callee(func, args, kwargs)
    return callees.run(callee.func, callee.args, callee.kwargs)


def test_kinds_and_names() -> None:
    ones = torch.ones(2)
    for func, args, kind, name in [
        (torch.add, (ones, 1), Kind.SCRIPT, "aten::add"),
        (scripted, (ones,), Kind.SCRIPT, torch._jit_internal._qualified_name(scripted)),  # type: ignore[attr-defined]
        (Kind, ("script",), Kind.PYTHON, "Kind"),
        (min, (1, 2), Kind.PYTHON, "min"),
        (torch.nn.Linear.forward, (), Kind.PYTHON, "Linear.forward"),
        (operator.itemgetter(1), (), Kind.PYTHON, "itemgetter"),
    ]:
        callee = callees.callee(func, args, None)
        assert (callee.kind, callee.name, callee.answers_later) == (kind, name, False)
    assert callees.callee(later, (1,), {}).answers_later
    with pytest.raises(TypeError, match=r"^function should be callable\.$"):
        callees.callee(3, (), {})


def test_they_run() -> None:
    assert run(torch.add, torch.ones(2), 1).tolist() == [2, 2]
    assert run(torch.add, torch.ones(2), torch.ones(2), alpha=3).tolist() == [4, 4]
    assert run(scripted, torch.ones(2)).tolist() == [2, 2]
    assert run(scripted, torch.ones(2), b=5).tolist() == [5, 5]
    assert run(divmod, 7, 2) == (3, 1)
    assert run(min, {3: 4, 1: 2}) == 1
    assert run(dict, a=3) == {"a": 3}
    assert run(later, 3).wait() == 3


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 2, 3), {}, r"scripted\(\) expected at most 2 argument\(s\) but received 3 argument\(s\)"),
        ((), {"b": 1}, r"scripted\(\) is missing value for argument 'a'"),
        ((torch.ones(1),), {"c": 1}, "Unknown keyword argument 'c'"),
        ((torch.ones(1),), {"a": 1}, "Argument 'a' specified both as positional and keyword argument"),
    ],
)
def test_a_scripted_functions_arguments_are_checked_before_they_travel(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        callees.callee(scripted, args, kwargs)


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"undefined function g: __torch__\.f\.g was not scripted"):
        callees.run_script("__torch__.f.g", (), {})


def test_who_says_later_returns_a_future() -> None:
    with pytest.raises(
        RuntimeError, match=r"@rpc\.async_function must return a torch\.futures\.Future object, but got"
    ):
        run(not_later)
    with pytest.raises(RuntimeError, match="must return an IValue of Future type, but got Tensor"):
        run(scripted_later, torch.ones(1))


def test_a_scripted_function_runs_without_the_gil() -> None:
    run(count, 10)
    done = threading.Event()

    def work() -> None:
        run(count, 20_000_000)
        done.set()

    began = last = time.perf_counter()
    longest = 0.0
    thread = threading.Thread(target=work)
    thread.start()
    while not done.is_set():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    took = time.perf_counter() - began
    thread.join()
    # Python ran on all the while.
    assert took > 0.2
    assert longest < took / 2
