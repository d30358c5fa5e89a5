"""What the server runs: `tensorcall serve mymodule`."""

from collections.abc import Iterator

import torch

from tensorcall.server import expose


@expose
def add(a: float, b: float) -> float:
    """Adds two numbers."""
    return a + b


@expose
def normalize(x: torch.Tensor) -> torch.Tensor:
    """Scales each row to the length 1."""
    return torch.nn.functional.normalize(x)


@expose
def countdown(start: int) -> Iterator[int]:
    """Counts down to 1. Callers get each number as it comes."""
    yield from range(start, 0, -1)
