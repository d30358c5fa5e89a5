"""Functions that give their result later, and the methods of remote values."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks

from tensorcall import rpc
from tensorcall.rpc import functions

Later = torch.futures.Future


@functions.async_execution
def later(seconds: float, value: Any) -> Later[Any]:
    """Answers without a thread that waits."""
    future: Later[Any] = Later()
    threading.Timer(seconds, future.set_result, (value,)).start()
    return future


@functions.async_execution
def via(to: str, value: int) -> Any:
    """Has another worker answer."""
    return rpc.rpc_async(to, later, args=(0.01, value)).then(lambda future: future.wait() + 1)


@functions.async_execution
def broken() -> Any:
    """Raises before there is a future."""
    raise KeyError("broken")


@functions.async_execution
def wrong() -> Any:
    """Returns no future."""
    return 5


@functions.async_execution
def fails_later() -> Any:
    """Gives a future that fails."""
    future: Later[Any] = Later()
    threading.Timer(0.01, future.set_exception, (LookupError("later"),)).start()
    return future


class Counter:
    """A value with methods of all kinds."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, number: int) -> int:
        """Counts."""
        self.count += number
        return self.count

    @functions.async_execution
    def add_later(self, number: int) -> Later[int]:
        """Counts, and tells later."""
        future: Later[int] = Later()
        threading.Timer(0.01, lambda: future.set_result(self.add(number))).start()
        return future

    @staticmethod
    @functions.async_execution
    def static_later(number: int) -> Later[int]:
        """Tells later, without a value."""
        return later(0.01, number)

    @classmethod
    def named(cls) -> str:
        """Tells the class's name."""
        return cls.__name__


def scenario_later(rank: int) -> None:
    to = f"worker{1 - rank}"
    assert rpc.rpc_sync(to, later, args=(0.01, "x")) == "x"
    assert rpc.rpc_sync(to, via, args=(f"worker{rank}", 1)) == 2
    assert rpc.rpc_async(f"worker{rank}", via, args=(to, 2)).wait() == 3
    assert rpc.remote(to, via, args=(to, 3)).to_here() == 4
    # More than there are threads.
    waiting = [rpc.rpc_async(to, later, args=(0.5, number)) for number in range(100)]
    assert torch.futures.wait_all(waiting) == list(range(100))
    for failing, error, text in [
        (broken, KeyError, "broken"),
        (fails_later, LookupError, "later"),
        (wrong, RuntimeError, r"must return a torch\.futures\.Future object"),
    ]:
        with pytest.raises(error, match=text):
            rpc.rpc_sync(to, failing)
        with pytest.raises(error, match=text):
            rpc.remote(to, failing).to_here()


def scenario_methods(rank: int) -> None:
    for to in ("worker0", "worker1"):
        counter = rpc.remote(to, Counter)
        assert counter.rpc_sync().add(2) == 2
        assert counter.rpc_async().add_later(3).wait() == 5
        assert counter.remote().add(number=1).to_here() == 6
        assert counter.rpc_sync().static_later(7) == 7
        assert counter.rpc_sync().named() == "Counter"
        with pytest.raises(AttributeError, match="subtract"):
            counter.rpc_sync().subtract(1)
        with pytest.raises(AttributeError, match="subtract"):
            counter.rpc_async().subtract(1).wait()
        with pytest.raises(TypeError, match="unexpected keyword argument 'by'"):
            counter.rpc_sync().add(by=1)


@pytest.mark.parametrize("scenario", ["scenario_later", "scenario_methods"])
def test_worlds(scenario: str, tmp_path: Path) -> None:
    ranks.run(__file__, scenario, tmp_path)


if __name__ == "__main__":
    ranks.main(globals())
