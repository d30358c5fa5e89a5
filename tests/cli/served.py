"""What the command line's tests serve. torch is imported only where it is used: servers start faster without."""

from __future__ import annotations

import datetime
import decimal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorcall.server import current_call, expose

if TYPE_CHECKING:
    import torch


@expose
def add(a: float, b: float = 1.0, *, scale: float = 1.0) -> float:
    """Adds two numbers.

    And scales them.
    """
    return (a + b) * scale


@expose
def echo(*args: Any, **kwargs: Any) -> Any:
    """Returns what it is given: one argument alone, or all of them."""
    if len(args) == 1 and not kwargs:
        return args[0]
    return [list(args), kwargs]


@expose
def kinds(*args: Any, **kwargs: Any) -> list[str]:
    return [type(value).__name__ for value in (*args, *kwargs.values())]


@expose
def predict(images: torch.Tensor, /, labels: np.ndarray, *, k: int = 1) -> list[int]:
    """Predicts [bold]nothing[/bold]."""
    return [len(images), len(labels), k]


@expose
def tensor(size: int) -> torch.Tensor:
    import torch

    return torch.arange(size, dtype=torch.float32) / 2


@expose
def odd_values() -> dict[str, Any]:
    return {
        "nan": float("nan"),
        "infinities": (float("inf"), float("-inf")),
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "set": {1},
        "keys": {1: "one", (2, 3): "two"},
        "big": 1 << 70,
        "text": "日本",
        "array": np.array([[1.5, float("nan")], [float("inf"), 2]], dtype=np.float32),
        "scalar": np.int64(7),
        "date": datetime.date(2024, 1, 2),
        "decimal": decimal.Decimal("1.10"),
    }


@expose
def chatter() -> str:
    """Prints on the server."""
    print("from the function", flush=True)
    return "done"


@expose
def count(stop: int, wait_for: str = "") -> Iterator[int]:
    """Counts; waits for a file before the last number."""
    for i in range(stop):
        if wait_for and i == stop - 1:
            _await(Path(wait_for))
        yield i


@expose
def tensors(count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        yield {"step": i, "loss": np.full((2, 8), i / 4, dtype=np.float32)}


@expose
def fail_after(items: int) -> Iterator[int]:
    yield from range(items)
    raise LookupError("no more")


@expose
def fail(message: str) -> None:
    raise ValueError(message) from KeyError("why")


@expose
def fail_like_click() -> None:
    """Raises what the command line itself raises to end."""
    import click

    raise click.exceptions.Exit(0)


@expose
def hold(started: str, release: str) -> str:
    """Tells that it runs, and waits until it may end."""
    Path(started).touch()
    _await(Path(release))
    return "held"


@expose
def until_cancelled(started: str, cancelled: str) -> None:
    """Tells that it runs, and that it was cancelled."""
    call = current_call()
    call.on_cancel(Path(cancelled).touch)
    Path(started).touch()
    while True:
        call.check()
        time.sleep(0.002)


@expose
class Counter:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def increase(self, by: int = 1) -> int:
        """Counts on."""
        self.value += by
        return self.value


def _await(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"nobody made {path}"
        time.sleep(0.002)
