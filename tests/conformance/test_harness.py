"""The harness hides no failure, and leaves nothing behind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from conformance.categories import RULES, category
from conformance.expectations import OPEN, Difference, problem, read_differences, stale
from conformance.pool import Job, Pool, Zygote, ZygoteError
from conformance.results import Result, read_baseline, write_baseline
from conformance.suites import SUITES
from conformance.table import write
from conformance.verdicts import FAILED, PASSED, Ended, Told, judge

RPC_TEST = "torch.testing._internal.distributed.rpc.rpc_test"


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    started = Zygote("probes", "torch")
    yield started
    started.close()


def run(zygote: Zygote, name: str, limit: float = 30) -> Result:
    result = zygote.run(Job(f"Probes.{name}", "probes", limit))
    assert children_of(zygote.pid) == []
    return result


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# Each probe, the result it must have, and a pattern for the note.
OUTCOMES = [
    ("test_passes", "ok", ""),
    ("test_last_rank_fails", "failed", "rank 1: ValueError: only here"),
    ("test_first_failure_is_told", "failed", "rank 1: ValueError: rank 1"),
    ("test_failure_while_other_hangs", "failed", "rank 1: ValueError: the other waits for me"),
    ("test_is_skipped", "skipped", "for a reason"),
    ("test_is_skipped_by_exit_code", "skipped", "Need at least 1 .*device"),
    ("test_is_skipped_by_one_rank", "failed", "1 of 2 ranks skipped it"),
    ("test_exits", "failed", "rank 1: SystemExit: 1"),
    ("test_exits_silently", "failed", "rank 0: exited with 0"),
    ("test_dies", "failed", "rank 1: died of SIGSEGV"),
    ("test_dies_at_the_very_end", "failed", "rank 1: exited with 7 after the test had passed"),
    ("test_leaves_a_process", "failed", "left processes behind"),
    ("test_leaves_a_process_in_a_session_of_its_own", "failed", "left processes behind"),
]


@pytest.mark.parametrize(("name", "result", "note"), OUTCOMES, ids=[name for name, *_ in OUTCOMES])
def test_outcomes(zygote: Zygote, name: str, result: str, note: str) -> None:
    found = run(zygote, name)
    assert (found.result, bool(re.fullmatch(note, found.note))) == (result, True), found


def test_a_hang_is_a_timeout_and_shows_where(zygote: Zygote) -> None:
    found = run(zygote, "test_hangs", limit=5)
    assert (found.result, found.note) == ("timeout", "still running: rank 1 in the test")
    assert "in hang_here" in found.logs[1]
    assert found.seconds < 30


def test_a_hang_after_the_test_is_a_timeout(zygote: Zygote) -> None:
    found = run(zygote, "test_hangs_after_the_test", limit=3)
    assert (found.result, found.note) == ("timeout", "still running: rank 0 after the test")


def test_what_ranks_write_is_kept(zygote: Zygote) -> None:
    found = run(zygote, "test_writes")
    for rank, log in enumerate(found.logs):
        assert f"out of rank {rank}\n" in log
        assert "straight to stderr\n" in log
        assert "ValueError: to be shown" in log


def test_a_zygote_that_dies_takes_its_ranks_with_it() -> None:
    started = Zygote("probes", "torch")
    started.send(Job("Probes.test_hangs", "probes", 60))
    while not (ranks := children_of(started.pid)):
        pass
    os.kill(started.pid, 9)
    with pytest.raises(ZygoteError, match="exited with -9"):
        started.receive()
    started.close()
    for rank in ranks:
        while Path(f"/proc/{rank}/status").exists() and "zombie" not in Path(f"/proc/{rank}/status").read_text():
            pass


def test_a_zygote_that_does_not_start_says_why() -> None:
    # A module that is not there, as long as nobody knows such a kind.
    with pytest.raises(ZygoteError, match="KeyError: 'unheard-of'"):
        Zygote("unheard-of", "torch")


def test_every_job_is_run_and_told() -> None:
    told: list[Result] = []
    with Pool("torch", jobs=2) as pool:
        names = ["test_passes", "test_last_rank_fails", "test_is_skipped"]
        pool.run([Job(f"Probes.{name}", "probes", 30) for name in names], told.append)
    assert {result.test.split(".")[1]: result.result for result in told} == {
        "test_passes": "ok",
        "test_last_rank_fails": "failed",
        "test_is_skipped": "skipped",
    }


def test_a_rank_that_failed_and_then_hangs_has_failed() -> None:
    ranks = [Ended(Told(FAILED, "ValueError", 1.0), None), Ended(Told(PASSED, "", 2.0), 0)]
    assert judge(ranks, timed_out=True, left_behind=False) == ("failed", "rank 0: ValueError")


def of(result: str) -> Result:
    return Result("RpcTest.test_add", result, 1.0)


# Ours, torch's, whether it is listed as different, whether that is a problem.
EXPECTED = [
    ("ok", "ok", False, False),
    ("failed", "ok", False, True),
    ("timeout", "ok", False, True),
    ("skipped", "ok", False, True),
    ("failed", "ok", True, False),
    ("timeout", "ok", True, False),
    ("ok", "ok", True, True),
    ("ok", "failed", False, False),
    ("failed", "failed", False, False),
    ("skipped", "skipped", False, False),
    ("ok", None, False, True),
]


@pytest.mark.parametrize(("ours", "torch", "listed", "bad"), EXPECTED)
def test_what_is_expected(ours: str, torch: str | None, listed: bool, bad: bool) -> None:
    difference = Difference(OPEN, "to be done") if listed else None
    found = problem(of(ours), None if torch is None else of(torch), difference)
    assert (found is not None) == bad


def test_lists_that_are_not_true_any_more_are_found(tmp_path: Path) -> None:
    path = tmp_path / "differences.tsv"
    path.write_text("# comment\nRpcTest.test_add\topen\ta reason\nRpcTest.test_gone\tprinciple\tanother\n")
    listed = read_differences(path)
    assert stale(listed, {"RpcTest.test_add": of("ok")}) == ["RpcTest.test_gone"]
    assert stale(listed, {"RpcTest.test_add": of("failed")}) == ["RpcTest.test_add", "RpcTest.test_gone"]
    path.write_text("RpcTest.test_add\topen\t\n")
    with pytest.raises(ValueError, match="differences"):
        read_differences(path)


def test_results_survive_their_file(tmp_path: Path) -> None:
    results = [of("ok"), Result("RpcTest.test_sub", "failed", 3.0, "rank 1: ValueError: x")]
    write_baseline(tmp_path / "results.tsv", results)
    assert list(read_baseline(tmp_path / "results.tsv").values()) == results


CATEGORISED = [
    ("RpcTest", "test_add", "public API only"),
    # Uses one function of a class whose others profile.
    ("RpcTest", "test_wait_all_exit_early_python", "public API only"),
    ("RpcTest", "test_wait_all", "private helpers"),
    ("RpcTest", "test_profiler_with_sync_rpc_udf", "profiler"),
    ("RpcTest", "test_use_rpc_pickler", "pickler"),
    ("RpcTest", "test_stress_heavy_rpc_torchscript", "TorchScript"),
    ("TensorPipeAgentRpcTest", "test_tensorpipe_set_default_timeout", "TensorPipe's own options"),
    ("TensorPipeAgentRpcTest", "test_multi_rpc_sparse", "public API only"),
]


@pytest.mark.parametrize(("class_name", "test", "expected"), CATEGORISED)
def test_categories(class_name: str, test: str, expected: str) -> None:
    assert category(RPC_TEST, class_name, test) == expected


def test_the_table_says_what_differs_and_why() -> None:
    torch = {f"RpcTest.{name}": Result(f"RpcTest.{name}", "ok", 1) for name in ("test_add", "test_nonzero")}
    ours = torch | {"RpcTest.test_add": Result("RpcTest.test_add", "failed", 1, "rank 1: ValueError: a|b")}
    text = write(ours, torch, {}, torch_version="2", cuda=3, seconds=100)
    assert "| RpcTest.test_add | ok | failed | not explained: rank 1: ValueError: a\\|b |" in text
    assert "| public API only | 2 | 2 | 1 | 50% |" in text
    listed = {"RpcTest.test_add": Difference(OPEN, "to be done")}
    assert "| open: to be done |" in write(ours, torch, listed, torch_version="2", cuda=3, seconds=100)


def test_every_category_has_a_rule() -> None:
    assert len({name for name, _ in RULES}) == len(RULES) == 6
    assert len({suite.name for suite in SUITES}) == len(SUITES)
