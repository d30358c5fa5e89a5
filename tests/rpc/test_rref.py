"""References between real workers: made, passed on, fetched, let go of, leaked."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks
from support.servers import eventually

from tensorcall import rpc
from tensorcall.rpc import api, internal


class Counter:
    """A value with methods."""

    def __init__(self, start: int = 0) -> None:
        self.count = start

    def up(self, by: int = 1) -> int:
        self.count += by
        return self.count


kept: list[Any] = []


def keep(rref: Any) -> bool:
    kept.append(rref)
    return bool(rref.confirmed_by_owner())


def drop() -> None:
    kept.clear()


def use_kept(by: int) -> int:
    return int(kept[0].rpc_sync().up(by))


def counts() -> tuple[int, int]:
    info = api._rref_context_get_debug_info()
    return int(info["num_owner_rrefs"]), int(info["num_forks"])


def raises() -> None:
    raise KeyError("never made")


def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "made"


def both(rrefs: dict[str, Any]) -> Any:
    return sum(rref.to_here() for rref in rrefs.values())


def make_own() -> list[Any]:
    return [rpc.RRef(Counter(5)), rpc.RRef(torch.ones(2))]


def scenario_values(rank: int) -> None:
    if rank:
        return
    rref = rpc.remote("worker1", Counter, args=(3,))
    assert str(rref) == (
        "UserRRef(RRefId = GloballyUniqueId(created_on=0, local_id=0), "
        "ForkId = GloballyUniqueId(created_on=0, local_id=1))"
    )
    assert (rref.is_owner(), rref.owner(), rref.owner_name()) == (False, rpc.get_worker_info("worker1"), "worker1")
    assert rref.to_here().count == 3
    eventually(rref.confirmed_by_owner)
    assert rref._get_type() is Counter
    assert rref._get_type(blocking=False) is rref._get_type(blocking=False)
    assert rref.rpc_sync().up() == 4
    assert rref.rpc_async().up(by=2).wait() == 6
    assert rref.remote().up(4).to_here() == 10
    with pytest.raises(RuntimeError, match=r"can't call localValue\(\) on user WorkerInfo\(id=0, name=worker0\)"):
        rref.local_value()
    with pytest.raises(RuntimeError, match="Can not pickle rref in python pickler"):
        torch.save(rref, "/dev/null")
    # Its own, and calls to itself.
    own = rpc.RRef(Counter(1))
    assert str(own).startswith("OwnerRRef(GloballyUniqueId(created_on=0, local_id=")
    assert own.local_value() is own.to_here()
    assert own.rpc_sync().up() == 2
    mine = rpc.remote("worker0", Counter, args=(7,))
    assert mine.is_owner()
    assert mine.rpc_async().up().wait() == mine.local_value().count == 8
    assert rpc.rpc_sync("worker1", both, args=({"a": rpc.RRef(2), "b": rpc.remote("worker2", int, args=("3",))},)) == 5
    first, second = rpc.rpc_sync("worker2", make_own)
    assert (first.owner_name(), first.rpc_sync().up(), second.to_here().tolist()) == ("worker2", 6, [1, 1])


def test_values(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_values", tmp_path, size=3)


def scenario_lifetime(rank: int) -> None:
    if rank:
        return
    assert rpc.rpc_sync("worker1", counts) == (0, 0)
    rref = rpc.remote("worker1", Counter)
    # Passed on at once, before its owner can have answered.
    assert rpc.rpc_sync("worker2", keep, args=(rref,))
    assert rpc.rpc_sync("worker1", counts) == (1, 2)
    del rref
    eventually(lambda: rpc.rpc_sync("worker1", counts) == (1, 1))
    assert rpc.rpc_sync("worker2", use_kept, args=(4,)) == 4
    rpc.rpc_sync("worker2", drop)
    eventually(lambda: rpc.rpc_sync("worker1", counts) == (0, 0))
    own = rpc.RRef(3)
    assert counts() == (0, 0)
    rpc.rpc_sync("worker1", keep, args=(own,))
    assert counts() == (1, 1)
    rpc.rpc_sync("worker1", drop)
    eventually(lambda: counts() == (0, 0))
    assert own.local_value() == 3


def test_lifetime(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_lifetime", tmp_path, size=3)


def scenario_failures(rank: int) -> None:
    if rank:
        return
    for to in ("worker1", "worker0"):
        rref = rpc.remote(to, raises)
        rref._get_future().wait()
        for ask in (rref.to_here, rref._get_type, rref.rpc_sync().anything):
            with pytest.raises(KeyError, match="never made") as caught:
                ask()
            assert isinstance(caught.value, RuntimeError)
        late = rpc.remote(to, slow, args=(0.5,), timeout=0.05)
        with pytest.raises(RuntimeError, match="RPC ran for more than"):
            late._get_future().wait()
        for use in (late.to_here, lambda late=late: rpc.rpc_sync("worker1", keep, args=(late,)), late._serialize):
            with pytest.raises(RuntimeError, match=rf"RRef creation via rpc.remote\(\) to {to} timed out"):
                use()
    waiting = rpc.remote("worker1", slow, args=(0.4,))
    with pytest.raises(RuntimeError, match=r"RPC ran for more than set timeout \(100 ms\)"):
        waiting.to_here(0.1)
    assert waiting.to_here() == "made"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        waiting.rpc_sync().nothing()


def test_failures(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_failures", tmp_path)


def scenario_by_hand(rank: int) -> None:
    if rank:
        return
    rref = rpc.remote("worker1", int, args=("4",))
    again = rpc.PyRRef._deserialize(rref._serialize())
    assert again.to_here() == 4
    assert str(again).split("ForkId")[0] == str(rref).split("ForkId")[0]
    data, tensors = internal.serialize([rref])
    (third,) = internal.deserialize(data, tensors)
    assert third.to_here() == 4


def test_written_down_by_hand(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_by_hand", tmp_path)


def scenario_after_shutdown(rank: int) -> None:
    rref = rpc.remote(f"worker{1 - rank}", Counter)
    cycle = Counter()
    cycle.itself, cycle.rref = cycle, rref  # type: ignore[attr-defined]
    api._ignore_rref_leak = False
    rpc.shutdown()
    with pytest.raises(RuntimeError, match=r"has been deleted\. Cannot call to_here\(\) on it after deletion\."):
        rref.to_here()
    with pytest.raises(RuntimeError, match=r"Cannot call fork an UserRRef after deletion\."):
        internal.serialize(rref)
    del rref, cycle
    gc.collect()


def scenario_leaks(rank: int) -> None:
    rref = rpc.remote(f"worker{1 - rank}", Counter)
    rref.to_here()
    api._wait_all_workers()
    with pytest.raises(RuntimeError) as caught:
        api._destroy_rref_context(False)
    said = str(caught.value)
    # What it is, where it was made, and by whom, and who holds it.
    assert "Leaking RRef worker" in said
    assert "Counter, made by remote(Counter) at " in said
    assert f"test_rref.py:{scenario_leaks.__code__.co_firstlineno + 1} on worker{1 - rank}; held by" in said
    assert f"held by worker{1 - rank} (1)" in said
    api._destroy_rref_context(True)
    api._wait_all_workers()


@pytest.mark.parametrize("scenario", ["scenario_after_shutdown", "scenario_leaks"])
def test_the_end(tmp_path: Path, scenario: str) -> None:
    ranks.run(__file__, scenario, tmp_path)


if __name__ == "__main__":
    ranks.main(globals())
