"""The command line: chooses tests, shows how they go, keeps what came of them."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from .expectations import problem, read_differences, stale
from .pool import Job, Pool, ZygoteError
from .results import Result, read_baseline, write_baseline
from .suites import SUITES
from .table import write

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent.parent
BASELINE = _HERE / "torch_results.tsv"
DIFFERENCES = _HERE / "differences.tsv"
# Lines of each rank's log that are shown with -v.
_SHOWN = 120


def limit(test: str, baseline: dict[str, Result]) -> float:
    """Returns how many seconds a test may take: a minute, or more where torch itself needs long."""
    known = baseline.get(test)
    return max(60.0, 4 * known.seconds) if known is not None and known.result != "timeout" else 60.0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--against", choices=["ours", "torch"], default="ours")
    parser.add_argument("-k", metavar="PATTERN", default="", help="only tests whose name has this regular expression")
    names = [suite.name for suite in SUITES]
    parser.add_argument("--suite", action="append", choices=names, help="only these; all that are about RPC itself")
    parser.add_argument("--jobs", type=int, default=2, help="how many tests run at a time")
    parser.add_argument("--limit", type=float, help="seconds a test may take")
    parser.add_argument("--repeat", type=int, default=1, help="how often each test runs")
    parser.add_argument("-v", action="store_true", help="show what the ranks of tests that fail have written")
    parser.add_argument("--write-table", action="store_true", help="write docs/conformance.md, of all our results")
    parser.add_argument("--write-baseline", action="store_true", help="keep torch's own results for later runs")
    asked = parser.parse_args()
    if asked.write_table and (asked.against != "ours" or asked.k or asked.suite):
        parser.error("the table is written of all tests, run against ours")
    if asked.write_baseline and asked.against != "torch":
        parser.error("the baseline is torch's own")
    return asked


def _choose(pool: Pool, asked: argparse.Namespace, baseline: dict[str, Result]) -> list[Job]:
    chosen: list[Job] = []
    for suite in SUITES:
        if not (suite.name in asked.suite if asked.suite else suite.default):
            continue
        tests = pool.introduction(suite.kind)["tests"][suite.name]
        found = [test for test in tests if re.search(asked.k, test)]
        chosen += [Job(test, suite.kind, asked.limit or limit(test, baseline)) for test in found]
    return [job for job in chosen for _ in range(asked.repeat)]


def _keep_logs(folder: Path, result: Result) -> None:
    target = folder / result.test
    shutil.rmtree(target, ignore_errors=True)
    if result.logs and result.result != "skipped":
        target.mkdir(parents=True)
        for rank, log in enumerate(result.logs):
            (target / f"rank{rank}.log").write_text(log)


def _show_logs(result: Result) -> None:
    for rank, log in enumerate(result.logs):
        print(f"──── {result.test}, rank {rank}")
        print("\n".join(log.splitlines()[-_SHOWN:]))


def _tell_problems(results: list[Result], asked: argparse.Namespace, baseline: dict[str, Result]) -> int:
    """Prints what is not as expected; returns how much it is."""
    differences = read_differences(DIFFERENCES) if asked.against == "ours" else {}
    found = [(r, problem(r, baseline.get(r.test), differences.get(r.test))) for r in results]
    problems = [f"{result.test}: {text}" for result, text in found if text is not None]
    problems += [f"{test}: listed as different, but does not pass with torch" for test in stale(differences, baseline)]
    if not (asked.k or asked.suite):
        # A test that is not found must not pass for one that has nothing to tell.
        classes = {name for suite in SUITES if suite.default for _, name in suite.classes}
        known = {test for test in baseline if test.split(".")[0] in classes}
        problems += [f"{test}: was not run" for test in sorted(known - {result.test for result in results})]
    for text in problems:
        print(f"unexpected: {text}")
    return len(problems)


def _write(results: list[Result], asked: argparse.Namespace, about: dict[str, Any], seconds: float) -> None:
    """Writes the files that were asked for."""
    # The last result of each, should they have been repeated.
    by_test = {result.test: result for result in results}
    baseline = read_baseline(BASELINE) if BASELINE.exists() else {}
    if asked.write_baseline:
        merged = baseline | by_test
        # In the order of the suites, whichever ended first.
        write_baseline(BASELINE, sorted(merged.values(), key=lambda result: _order(result.test)))
    if asked.write_table:
        text = write(
            by_test,
            baseline,
            read_differences(DIFFERENCES),
            torch_version=about["torch"],
            cuda=about["cuda"],
            seconds=seconds,
        )
        (_ROOT / "docs" / "conformance.md").write_text(text)


def _order(test: str) -> tuple[int, str]:
    classes = [name for suite in SUITES for _, name in suite.classes]
    return classes.index(test.split(".")[0]), test


def main() -> int:
    """Runs what is asked for; returns the exit code: 0 if every result is as expected."""
    asked = _arguments()
    build = _ROOT / "build" / "conformance"
    baseline = read_baseline(BASELINE) if BASELINE.exists() else {}
    results: list[Result] = []
    start = time.monotonic()

    def tell(result: Result) -> None:
        results.append(result)
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        place = f"[{len(results):3}/{len(jobs)} {minutes}:{seconds:02}]"
        line = f"{place} {result.result:7} {result.test} {result.seconds:.1f} s"
        print(f"{line}: {result.note}" if result.note else line, flush=True)
        _keep_logs(build / asked.against, result)
        if asked.v and result.result in ("failed", "timeout"):
            _show_logs(result)

    try:
        with Pool(asked.against, asked.jobs) as pool:
            jobs = _choose(pool, asked, baseline)
            pool.run(jobs, tell)
            about = pool.introduction("plain") if asked.write_table else {}
    except ZygoteError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Whatever still runs ends with this process.
        return 130
    print(", ".join(f"{count} {result}" for result, count in Counter(r.result for r in results).most_common()))
    build.mkdir(parents=True, exist_ok=True)
    (build / f"{asked.against}.jsonl").write_text("".join(f"{replace(r, logs=()).to_json()}\n" for r in results))
    _write(results, asked, about, time.monotonic() - start)
    if asked.write_baseline:
        return 0
    return 1 if not jobs or _tell_problems(results, asked, baseline) else 0
