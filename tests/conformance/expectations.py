"""Which tests may come out otherwise than with torch's own agent, and whether a result is as expected."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .results import Result

PRINCIPLE = "principle"
OPEN = "open"


@dataclass(frozen=True, slots=True)
class Difference:
    """A test that passes with torch and not with ours."""

    kind: str
    """PRINCIPLE: it can't pass, for what it checks is a property of TensorPipe. OPEN: it could."""
    reason: str


def read_differences(path: Path) -> dict[str, Difference]:
    """Reads the list of differences: test, kind and reason, divided by tabs; # begins a comment."""
    found = {}
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        test, kind, reason = line.split("\t")
        if kind not in (PRINCIPLE, OPEN) or not reason or test in found:
            raise ValueError(f"{path.name}: {line!r}")
        found[test] = Difference(kind, reason)
    return found


def problem(result: Result, torch: Result | None, difference: Difference | None) -> str | None:
    """Returns what is unexpected about one of our results, or None.

    A test that is listed as different and is not makes the list untrue, and is a problem like one that fails.
    """
    if torch is None:
        return "torch's own result is not known: run --against torch --write-baseline"
    if difference is not None:
        return "passes, though listed as different: take it off the list" if result.result == torch.result else None
    if result.result in (torch.result, "ok"):
        return None
    return f"{torch.result} with torch, {result.result} with ours"


def stale(differences: dict[str, Difference], torch: dict[str, Result]) -> list[str]:
    """Returns the tests that are listed as different and don't exist, or don't pass with torch either."""
    return [test for test in differences if test not in torch or torch[test].result != "ok"]
