"""Writes docs/conformance.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .categories import CATEGORIES, PUBLIC, category
from .expectations import Difference
from .results import Result
from .suites import SUITES, Suite

_INTRODUCTION = """\
# Conformance

PyTorch's own RPC tests, as they lie in the torch wheel and unmodified, run against `tensorcall.rpc`: it takes the place
of `torch.distributed.rpc` and its submodules before the tests are imported. Each test runs in processes of its own, one
for each rank, under a time limit; the exit code of every rank counts, and no process may be left. This file is
generated.

```
make conformance                               # every test, {minutes} minutes on two cores; writes this file
python -m tests.conformance -k test_rref -v    # some, with what the ranks of those that fail have written
python -m tests.conformance --against torch    # torch's own agent, TensorPipe
```

`make test` runs a share of them, [tests/conformance/share.txt](../tests/conformance/share.txt). Results below are those
of torch {torch}, CPU only. {cuda} tests that need GPUs are left out. What a test needs is found out from its source by
the rules in [tests/conformance/categories.py](../tests/conformance/categories.py).
"""

_AUTOGRAD = """
Not among them are the {count} tests of distributed autograd and its optimizer (`--suite autograd`, `--suite
autograd-faulty`): that engine is C++ within torch, and speaks with C++ agents only.
"""


def modules() -> dict[str, str]:
    """Returns the module of each test class."""
    return {name: module for suite in SUITES for module, name in suite.classes}


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _counts(title: str, groups: Iterable[tuple[str, list[str]]], torch: dict[str, Result], passes: set[str]) -> str:
    lines = [_row(title, "tests", "pass with torch", "of these with ours", "share"), "|---|--:|--:|--:|--:|"]
    for name, tests in groups:
        theirs = [test for test in tests if torch[test].result == "ok"]
        ours = sum(test in passes for test in theirs)
        share = f"{ours / len(theirs):.0%}" if theirs else "–"
        lines.append(_row(name, len(tests), len(theirs), ours, share))
    return "\n".join(lines) + "\n"


def _by(tests: Iterable[str], key: Callable[[str], str], order: Iterable[str]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {name: [] for name in order}
    everything = list(tests)
    for test in everything:
        groups[key(test)].append(test)
    return [*((name, found) for name, found in groups.items() if found), ("all", everything)]


def _text(result: Result | None) -> str:
    return "not run" if result is None else result.result


def write(
    ours: dict[str, Result],
    torch: dict[str, Result],
    differences: dict[str, Difference],
    *,
    torch_version: str,
    cuda: int,
    seconds: float,
) -> str:
    """Returns the document."""
    of_class: dict[str, Suite] = {name: suite for suite in SUITES for _, name in suite.classes}
    where = modules()

    def suite_of(test: str) -> Suite:
        return of_class[test.split(".")[0]]

    tests = [test for test in torch if suite_of(test).default]
    needs = {test: category(where[test.split(".")[0]], *test.split(".")) for test in tests}
    passes = {test for test, result in ours.items() if result.result == "ok"}
    parts = [_INTRODUCTION.format(minutes=max(1, round(seconds / 60)), torch=torch_version, cuda=cuda)]
    parts.append(_AUTOGRAD.format(count=len(torch) - len(tests)))
    parts.append("\n## By what they need\n\n")
    parts.append(_counts("needs", _by(tests, needs.__getitem__, [PUBLIC, *CATEGORIES]), torch, passes))
    parts.append("\n## By suite\n\n")
    names = [suite.name for suite in SUITES]
    parts.append(_counts("suite", _by(tests, lambda test: suite_of(test).name, names), torch, passes))
    parts.append("\n## What differs\n\n")
    differing = [test for test in tests if _text(ours.get(test)) != torch[test].result]
    if differing:
        lines = [_row("test", "torch", "ours", "why"), "|---|---|---|---|"]
        for test in differing:
            listed, result = differences.get(test), ours.get(test)
            why = f"{listed.kind}: {listed.reason}" if listed else f"not explained: {result.note if result else '–'}"
            lines.append(_row(test, torch[test].result, _text(result), why))
        parts.append("\n".join(lines) + "\n")
    else:
        parts.append("Nothing.\n")
    parts.append("\n## Every test\n\n")
    lines = [_row("test", "needs", "torch", "ours"), "|---|---|---|---|"]
    lines += [_row(test, needs[test], torch[test].result, _text(ours.get(test))) for test in tests]
    return "".join([*parts, "\n".join(lines), "\n"])
