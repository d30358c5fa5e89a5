"""How things are measured: interleaved rounds, medians, ratios within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    unit: str
    ours: float
    """Median over all rounds."""
    bare: float
    """Median over all rounds; 0 where there is nothing to compare with."""
    ratio: float
    """Median of the rounds' ratios, ours to bare."""
    spread: tuple[float, float]
    """The lowest and the highest ratio of a round."""
    target: str
    met: bool

    def json(self) -> dict[str, object]:
        """Returns it as plain data."""
        return asdict(self)


def seconds(call: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], times: int) -> float:
    """Returns the median of so many calls."""
    return statistics.median(seconds(call) for _ in range(times))


def rounds(measurements: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Takes all measurements in turn, so many times, so that what else the machine does falls on all of them alike."""
    results: dict[str, list[float]] = {name: [] for name in measurements}
    names = list(measurements)
    for i in range(count):
        # Each goes first as often as the others.
        for name in names[i % len(names) :] + names[: i % len(names)]:
            results[name].append(measurements[name]())
    return results


def compare(
    what: str, unit: str, ours: Sequence[float], bare: Sequence[float], *, at_most: float = 0, at_least: float = 0
) -> Figure:
    """Compares rounds of ours with those of bare grpcio; both in the unit."""
    ratios = [a / b for a, b in zip(ours, bare, strict=True)]
    ratio = statistics.median(ratios)
    met = ratio <= at_most if at_most else ratio >= at_least
    target = f"≤ {at_most:g} ×" if at_most else f"≥ {at_least:g} ×"
    median = statistics.median
    return Figure(what, unit, median(ours), median(bare), ratio, (min(ratios), max(ratios)), target, met)
