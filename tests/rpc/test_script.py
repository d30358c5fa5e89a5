"""TorchScript: as callees, and as callers with RRefs, once torch's rpc is replaced."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks

from tensorcall import rpc

one = torch.ones(2)


def prepare() -> None:
    """Runs on each rank before init_rpc."""
    rpc.replace_torch_rpc()
    sys.path.insert(0, str(Path(__file__).parent))


def scripts() -> Any:
    return importlib.import_module("script_functions")


def scenario_callees(rank: int) -> None:
    s, to = scripts(), f"worker{1 - rank}"
    assert rpc.rpc_sync(to, s.double, args=(one,)).tolist() == [2, 2]
    assert rpc.rpc_async(to, s.double, args=(one,), kwargs={"times": 5}).wait().tolist() == [5, 5]
    assert rpc.remote(to, s.double, args=(one, 6)).to_here().tolist() == [6, 6]
    assert rpc.rpc_sync(to, s.chained, args=(f"worker{rank}", one)).tolist() == [2, 2]
    assert rpc.rpc_sync(to, s.words, args=(one, ["a"]))["a"].tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="scripted and broken"):
        rpc.rpc_sync(to, s.fail, args=(one,))
    with pytest.raises(RuntimeError, match="expected at most 2 argument"):
        rpc.rpc_sync(to, s.double, args=(one, 2, 3))


def scenario_callers(rank: int) -> None:
    s, to = scripts(), f"worker{1 - rank}"
    now, later, kept, rref, named, is_owner, owner = s.call_all(to, one)
    assert [each.tolist() for each in (now, later, kept)] == [[2, 2], [3, 3], [4, 4]]
    assert isinstance(rref, rpc.RRef)
    assert rref.to_here().tolist() == [4, 4]
    assert (is_owner, owner, rref.owner_name()) == (False, to, to)
    assert {name: value.tolist() for name, value in named.items()} == {"x": [1, 1], "y": [1, 1]}
    assert s.call_later(to, one).wait().tolist() == [2, 2]
    assert s.call_in_loop(to, one, 5).tolist() == [32, 32]
    assert s.wait_for(rpc.rpc_async(to, torch.add, args=(one, 1))).tolist() == [3, 3]
    with pytest.raises(RuntimeError, match="scripted and broken"):
        s.call_failing(to, one)
    failing = rpc.rpc_async(to, s.fail, args=(one,))
    with pytest.raises(RuntimeError, match="scripted and broken"):
        s.wait_for(failing)
    with pytest.raises(RuntimeError, match="no such worker"):
        s.call_later("nobody", one).wait()


def scenario_rrefs(rank: int) -> None:
    s, to = scripts(), f"worker{1 - rank}"
    rref = rpc.remote(to, torch.add, args=(one, 1))
    assert s.use(rref, 2).tolist() == [4, 4]
    assert s.pass_on(to, rref).tolist() == [6, 6]
    assert s.pass_on(f"worker{rank}", rref).tolist() == [6, 6]
    assert rpc.rpc_sync(to, s.use_local, args=(rref,)).tolist() == [2, 2]
    with pytest.raises(RuntimeError, match=r"Can't call RRef\.local_value\(\) on a non-owner RRef"):
        s.use_local(rref)
    mine = rpc.RRef(one)
    back = s.give_back([rref, mine])
    assert back.is_owner()
    assert back.local_value() is one
    del mine
    assert back.local_value() is one
    assert s.pair(rpc.remote(to, dict, kwargs={"a": 3})) == 3
    holder = torch.jit.script(s.Holder([rref, rpc.remote(to, s.double, args=(one,))]))
    assert holder(to).tolist() == [12, 12]
    with pytest.raises(RuntimeError, match="RRef jit pickling is only allowed inside RPC calls"):
        s.save(rref, "/dev/null")
    for wrong in (3, None, one):
        with pytest.raises(RuntimeError):
            s.use(wrong, 2)


@pytest.mark.parametrize("scenario", ["scenario_callees", "scenario_callers", "scenario_rrefs"])
def test_worlds(scenario: str, tmp_path: Path) -> None:
    ranks.run(__file__, scenario, tmp_path)


if __name__ == "__main__":
    ranks.main(globals())
