"""A share of torch's own RPC tests, each as a test of its own; `make conformance` runs all.

With TENSORCALL_CONFORMANCE_AGAINST=torch they run against torch's own agent.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from conformance.commandline import BASELINE, DIFFERENCES, limit
from conformance.expectations import problem, read_differences, stale
from conformance.pool import Job, Pool
from conformance.results import Result, read_baseline
from conformance.suites import SUITES

AGAINST = os.environ.get("TENSORCALL_CONFORMANCE_AGAINST", "ours")
LINES = (Path(__file__).parent / "share.txt").read_text().splitlines()
SHARE = [line for line in LINES if line and not line.startswith("#")]
TORCH = read_baseline(BASELINE)
DIFFERENT = read_differences(DIFFERENCES)
KINDS = {name: suite.kind for suite in SUITES for _, name in suite.classes}


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Result]]]:
    """What comes of the tests that pytest has chosen: they run two at a time, while the first are looked at."""
    # As `-k` and the like have left them.
    named = {f"{request.node.nodeid}::{test_torchs_own.__name__}[{test}]": test for test in SHARE}
    chosen = [named[item.nodeid] for item in request.session.items if item.nodeid in named]
    futures: dict[str, Future[Result]] = {test: Future() for test in chosen}
    jobs = [Job(test, KINDS[test.split(".")[0]], limit(test, TORCH)) for test in chosen]
    with Pool(AGAINST) as pool:

        def work() -> None:
            try:
                pool.run(jobs, lambda result: futures[result.test].set_result(result))
            except BaseException as error:
                for future in futures.values():
                    if not future.done():
                        future.set_exception(error)

        thread = threading.Thread(target=work)
        thread.start()
        yield futures
        pool.stop()
        thread.join()


# Longer than the harness' own limit, which is to end it.
@pytest.mark.timeout(300)
@pytest.mark.parametrize("test", SHARE)
def test_torchs_own(test: str, results: dict[str, Future[Result]]) -> None:
    result = results[test].result()
    difference = DIFFERENT.get(test) if AGAINST == "ours" else None
    found = problem(result, TORCH.get(test), difference)
    if found is not None:
        for rank, log in enumerate(result.logs):
            print(f"──── rank {rank}\n{log}")
        pytest.fail(f"{found}: {result.note}", pytrace=False)


def test_what_is_listed_as_different_is() -> None:
    assert stale(DIFFERENT, TORCH) == []


def test_the_share_is_of_every_suite() -> None:
    assert {test for test in SHARE if test not in TORCH} == set()
    classes = {test.split(".")[0] for test in SHARE}
    assert classes == {name for suite in SUITES if suite.default for _, name in suite.classes}
