"""Messages that get lost or come late, by the backend that does it on purpose."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from support import ranks
from support.servers import eventually

from tensorcall import rpc

BACKEND = "FAULTY_TENSORPIPE"
_NONE = {"num_worker_threads": 4, "messages_to_fail": [], "messages_to_delay": {}, "num_fail_sends": 0}
OPTIONS = {
    "scenario_lost": {**_NONE, "messages_to_fail": ["PYTHON_REMOTE_CALL", "SCRIPT_CALL"], "num_fail_sends": 3},
    "scenario_repeated": {**_NONE, "messages_to_fail": ["RREF_FORK_REQUEST", "RREF_USER_DELETE"], "num_fail_sends": 3},
    "scenario_late": {**_NONE, "messages_to_delay": {"PYTHON_CALL": 0.4, "SCRIPT_RREF_FETCH_CALL": 0.4}},
}

one = torch.ones(2)


def prepare() -> None:
    """Runs on each rank before init_rpc."""
    import tensorcall.rpc._testing  # noqa: F401 registers the backend


def add(rref: rpc.RRef[torch.Tensor]) -> torch.Tensor:
    """Uses a reference."""
    return rref.to_here() + 1


def scenario_lost(rank: int) -> None:
    if rank != 0:
        return
    with pytest.raises(RuntimeError, match="failed intentionally for SCRIPT_CALL"):
        rpc.rpc_sync("worker1", torch.add, args=(one, 1))
    for to in ("worker0", "worker1"):
        rref = rpc.remote(to, abs, args=(-1,))
        eventually(rref._get_future().done, "the creation to have failed")
        with pytest.raises(RuntimeError, match="RRef creation"):
            rref.to_here()
        with pytest.raises(RuntimeError, match="RRef creation"):
            rpc.rpc_sync("worker1", add, args=(rref,))
    assert rpc.rpc_sync("worker1", abs, args=(-1,)) == 1


def scenario_repeated(rank: int) -> None:
    if rank != 0:
        return
    rref = rpc.remote("worker1", torch.add, args=(one, 1))
    assert rpc.rpc_sync("worker2", add, args=(rref,)).tolist() == [3, 3]
    assert rpc.remote("worker2", add, args=(rref,)).to_here().tolist() == [3, 3]


def scenario_late(rank: int) -> None:
    if rank != 0:
        return
    began = time.monotonic()
    assert rpc.rpc_sync("worker1", abs, args=(-1,)) == 1
    assert time.monotonic() - began >= 0.4
    with pytest.raises(RuntimeError, match="RPC ran for more than set timeout"):
        rpc.rpc_sync("worker1", abs, args=(-1,), timeout=0.1)
    assert rpc.rpc_sync("worker1", torch.add, args=(one, 1), timeout=0.3).tolist() == [2, 2]
    rref = rpc.remote("worker1", torch.add, args=(one, 1))
    with pytest.raises(RuntimeError, match="RPC ran for more than set timeout"):
        rref.to_here(0.1)
    assert rref.to_here().tolist() == [2, 2]


@pytest.mark.parametrize("scenario", list(OPTIONS))
def test_worlds(scenario: str, tmp_path: Path) -> None:
    ranks.run(__file__, scenario, tmp_path, size=3 if scenario == "scenario_repeated" else 2)


if __name__ == "__main__":
    ranks.main(globals())
