"""What one test came to, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_HEADER = "test\tresult\tseconds\tnote\n"


@dataclass(frozen=True, slots=True)
class Result:
    """What one test came to."""

    test: str
    """Class.test_name."""
    result: str
    """ok, skipped, failed or timeout."""
    seconds: float
    note: str = ""
    """Why, in one line: the reason of a skip; the rank that failed and the last line of what it raised."""
    logs: tuple[str, ...] = ()
    """What each rank wrote, for all that are not ok."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Result:
        fields: dict[str, Any] = json.loads(line)
        return cls(**{**fields, "logs": tuple(fields.get("logs", ()))})


def read_baseline(path: Path) -> dict[str, Result]:
    """Reads a table of results by test."""
    found = {}
    for line in path.read_text().splitlines()[1:]:
        test, result, seconds, note = line.split("\t")
        found[test] = Result(test, result, float(seconds), note)
    return found


def write_baseline(path: Path, results: Iterable[Result]) -> None:
    """Writes a table of results, whole seconds only, so that little changes from run to run."""
    lines = [f"{r.test}\t{r.result}\t{max(1, round(r.seconds))}\t{r.note}\n" for r in results]
    path.write_text(_HEADER + "".join(lines))
