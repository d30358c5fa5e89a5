"""Profiles show calls, and what they did on the other worker."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from support import ranks
from torch.autograd.profiler_legacy import profile  # type: ignore[attr-defined]

from tensorcall import rpc
from tensorcall.rpc import functions, server_process_global_profiler


@torch.jit.script
def scripted(a: torch.Tensor) -> torch.Tensor:
    return a * 2


def ops() -> torch.Tensor:
    """Runs some operators below a name."""
    with torch.autograd.profiler.record_function("##ops##"):
        return torch.ones(3) + torch.ones(3)


@functions.async_execution
def nested(to: str) -> Any:
    """Calls on."""
    return rpc.rpc_async(to, torch.add, args=(torch.ones(1), 1))


def broken() -> None:
    """Raises."""
    raise ValueError("broken")


def recorded(make_calls: Any, **options: Any) -> list[Any]:
    with profile(**options) as profiled:
        make_calls()
    return list(profiled.function_events)


def remote_names(events: list[Any]) -> list[str]:
    return [event.name for event in events if event.is_remote]


def scenario_calls(rank: int) -> None:
    if rank != 0:
        return
    key = "rpc_sync#ops(worker0 -> worker1)"
    events = recorded(lambda: rpc.rpc_sync("worker1", ops), record_shapes=True)
    call = next(event for event in events if event.name == key)
    assert (call.node_id, call.is_remote) == (0, False)
    names = remote_names(events)
    assert {f"{key}#remote_op: {op}" for op in ("##ops##", "aten::ones", "aten::add")} <= set(names)
    block, add = (next(e for e in events if e.name == f"{key}#remote_op: {op}") for op in ("##ops##", "aten::add"))
    assert block.node_id == add.node_id == 1
    assert add in block.cpu_children
    assert add.input_shapes == [[3], [3], []]
    assert call.time_range.start <= block.time_range.start
    assert block.time_range.end <= call.time_range.end

    script_key = f"rpc_async#{torch._jit_internal._qualified_name(scripted)}(worker0 -> worker1)"  # type: ignore[attr-defined]
    names = remote_names(recorded(lambda: rpc.rpc_async("worker1", scripted, args=(torch.ones(1),)).wait()))
    assert f"{script_key}#remote_op: aten::mul" in names

    def create() -> None:
        rref = rpc.remote("worker1", torch.mul, args=(torch.ones(2), 2))
        rref.to_here()
        rref._get_profiling_future().wait()

    assert "rpc_remote#aten::mul(worker0 -> worker1)#remote_op: aten::mul" in remote_names(recorded(create))

    key = "rpc_sync#nested(worker0 -> worker1)#remote_op: rpc_async#aten::add(worker1 -> worker0)"
    names = remote_names(recorded(lambda: rpc.rpc_sync("worker1", nested, args=("worker0",))))
    assert key in names
    assert f"{key}#remote_op: aten::add" in names

    def fail() -> None:
        with contextlib.suppress(ValueError):
            rpc.rpc_sync("worker1", broken)

    assert [e.name for e in recorded(fail) if e.name.startswith("rpc")] == ["rpc_sync#broken(worker0 -> worker1)"]
    memory = recorded(lambda: rpc.rpc_sync("worker1", ops), profile_memory=True)
    assert any(event.cpu_memory_usage > 0 for event in memory if event.is_remote)

    # As in torch, Kineto records no calls, and they work.
    with torch.profiler.profile() as kineto:
        rpc.rpc_sync("worker1", ops)
    assert not [event for event in kineto.events() if "rpc_sync" in event.name]


def events_of(rref: rpc.RRef[Any]) -> list[list[str]]:
    """Tells what a server-wide profile has recorded, by call."""
    calls = rref.local_value().process_global_function_events
    return [[event.name for event in call] for call in calls if call]


def scenario_server_wide(rank: int) -> None:
    if rank != 0:
        return
    one = torch.tensor(1)
    make = server_process_global_profiler._server_process_global_profile
    outer, inner = rpc.remote("worker1", make), rpc.remote("worker1", make)
    outer.rpc_sync().__enter__()
    rpc.rpc_sync("worker1", torch.add, args=(one, one))
    inner.rpc_sync().__enter__()
    rpc.rpc_sync("worker1", torch.sub, args=(one, one))
    inner.rpc_sync().__exit__(None, None, None)
    outer.rpc_sync().__exit__(None, None, None)
    rpc.rpc_sync("worker1", torch.mul, args=(one, one))
    assert rpc.rpc_sync("worker1", events_of, args=(outer,)) == [["aten::add"], ["aten::sub"]]
    assert rpc.rpc_sync("worker1", events_of, args=(inner,)) == [["aten::sub"]]
    assert [average.key for average in inner.rpc_sync().key_averages()] == ["aten::sub"]


def test_calls_and_what_they_did_elsewhere(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_calls", tmp_path)


def test_everything_that_others_call(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_server_wide", tmp_path)


if __name__ == "__main__":
    ranks.main(globals())
