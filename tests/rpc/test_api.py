"""Calls between real workers: functions, futures, timeouts, errors, collectives."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks

from tensorcall import rpc
from tensorcall.rpc import api, constants, errors, futures, internal
from tensorcall.rpc.futures import RpcFuture
from tensorcall.rpc.worker_info import WorkerInfo
from tensorcall.wire.errors import DeadlineExceeded, RemoteError, Unreachable


class Account:
    """A value with methods."""

    def __init__(self, balance: int) -> None:
        self.balance = balance

    def add(self, amount: int, *, times: int = 1) -> int:
        self.balance += amount * times
        return self.balance


class Odd(Exception):
    """An exception that can't be made of a text."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(code, text)


def fail(kind: str) -> None:
    if kind == "key":
        raise KeyError("a", 1)
    if kind == "odd":
        raise Odd(3, "odd it is")
    try:
        raise OSError(5, "inner")
    except OSError as inner:
        error = ValueError("outer \\n it is")
        if hasattr(error, "add_note"):
            error.add_note("a note")
        raise error from inner


def unpicklable() -> Any:
    return threading.Lock()


def nested(to: str, depth: int) -> int:
    if not depth:
        return 0
    return 1 + int(rpc.rpc_sync(to, nested, args=(rpc.get_worker_info().name, depth - 1)))


def strides(tensor: torch.Tensor) -> tuple[int, ...]:
    return tensor.stride()


def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@rpc.functions.async_execution
def answers_later(to: str, number: int) -> Any:
    return rpc.rpc_async(to, min, args=(number, 5)).then(lambda future: future.wait() + 1)


def scenario_calls(rank: int) -> None:
    me, other = f"worker{rank}", f"worker{1 - rank}"
    for to in (other, 1 - rank, rpc.get_worker_info(other), me):
        assert rpc.rpc_sync(to, torch.add, args=(torch.ones(2), 1)).tolist() == [2, 2]
        assert rpc.rpc_sync(to, Account(3).add, (4,), {"times": 2}) == 11
        assert rpc.rpc_async(to, Account, args=(3,)).wait().balance == 3
        assert rpc.rpc_sync(to, answers_later, args=(me, 3)) == 4
    large = torch.arange(3_000_000)
    for to in (me, other):
        echoed = rpc.rpc_sync(to, torch.Tensor.clone, args=(large,))
        assert torch.equal(echoed, large)
        assert echoed.data_ptr() != large.data_ptr()
        assert rpc.rpc_sync(to, strides, args=(torch.ones(3, 5).t(),)) == (1, 5)
    assert rpc.rpc_sync(other, nested, args=(me, 50)) == 50
    with pytest.raises(RuntimeError, match=r"could not find destination 'nobody'.*worker0.*worker1"):
        rpc.rpc_sync("nobody", min, args=(1, 2))
    with pytest.raises(ValueError, match="Cannot get WorkerInfo"):
        rpc.rpc_sync(0.5, min)
    with pytest.raises(TypeError, match="callable"):
        rpc.rpc_sync(other, 3)


def test_calls(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_calls", tmp_path)


def scenario_futures(rank: int) -> None:
    other = f"worker{1 - rank}"
    future = rpc.rpc_async(other, min, args=(1, 2))
    assert isinstance(future, torch.futures.Future)
    # In a callback a call may be made, and waited for.
    chained = future.then(lambda done: rpc.rpc_sync(other, max, args=(done.value(), 7)))
    assert chained.wait() == 7
    assert future.wait() == 1
    assert torch.futures.wait_all([future, chained]) == [1, 7]
    # Who waits does not wait for the callbacks: they may wait for who waits.
    go_on = threading.Event()
    waited = rpc.rpc_async(other, slow, args=(0.1,))
    waited.add_done_callback(lambda _: print(go_on.wait(10)))
    began = time.monotonic()
    waited.wait()
    assert time.monotonic() - began < 5
    go_on.set()
    broken = rpc.rpc_async(other, fail, args=("key",))
    following = broken.then(lambda done: done.wait())
    with pytest.raises(RuntimeError, match="Got the following error when running the callback: KeyError"):
        following.wait()
    hanging = rpc.rpc_async(other, slow, args=(1.5,))
    began = time.monotonic()
    with pytest.raises(KeyError):
        futures.wait_all([hanging, broken])
    assert time.monotonic() - began < 1
    with api._wait_all():
        waited_for = rpc.rpc_async(other, slow, args=(0.01,))
    assert waited_for.done()


def scenario_not_sent(rank: int) -> None:
    if rank:
        return
    agent = rpc._get_current_rpc_agent()
    connection = agent.outgoing.connection(agent.member("worker1"))
    carrier = connection.carrier

    def broken(timeout: float) -> None:
        raise ValueError("broken")

    connection.carrier = broken
    future = rpc.rpc_async("worker1", min, args=(1, 2))
    connection.carrier = carrier
    with pytest.raises(ValueError, match="broken"):
        future.wait()
    agent.wait_idle(10)


def test_a_call_that_was_not_sent_ends(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_not_sent", tmp_path)


def test_futures(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_futures", tmp_path)


def scenario_timeouts(rank: int) -> None:
    if rank:
        return
    words = r"RPC ran for more than set timeout \(50 ms\) and will now be marked with an error"
    for to in ("worker1", "worker0"):
        with pytest.raises(RuntimeError, match=words):
            rpc.rpc_sync(to, slow, args=(0.3,), timeout=0.05)
        late = rpc.rpc_async(to, slow, args=(0.3,), timeout=0.05)
        with pytest.raises(TimeoutError, match=words):
            late.wait()
        assert rpc.rpc_sync(to, slow, args=(0.1,), timeout=0) == "slept"
        rpc._set_rpc_timeout(0.05)
        assert rpc.get_rpc_timeout() == 0.05
        with pytest.raises(RuntimeError, match=words):
            rpc.rpc_sync(to, slow, args=(0.3,))
        assert rpc.rpc_sync(to, slow, args=(0.1,), timeout=5) == "slept"
        rpc._set_rpc_timeout(0)
        assert rpc.rpc_sync(to, slow, args=(0.1,)) == "slept"
        rpc._set_rpc_timeout(60)
    with pytest.raises(RuntimeError, match="number of seconds"):
        rpc.rpc_sync("worker1", min, args=(1, 2), timeout=-3)


def test_timeouts(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_timeouts", tmp_path)


def scenario_collectives(rank: int) -> None:
    assert api._all_gather(rank * 2) == {"worker0": 0, "worker1": 2, "worker2": 4}
    if rank != 1:
        assert api._all_gather(rank, {"worker0", "worker2"}) == {"worker0": 0, "worker2": 2}
        api._barrier(["worker0", "worker2"])
    api._wait_all_workers()
    info = rpc._get_debug_info()
    assert {"num_owner_rrefs", "num_forks", "agent.thread_pool_size", "agent.client_active_calls"} <= info.keys()


def test_collectives(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_collectives", tmp_path, size=3)


class OwnPickler(internal._InternalRPCPickler):
    """A pickler as RemoteModule's users write them."""

    used = 0

    def serialize(self, obj: object) -> Any:
        self.used += 1
        return super().serialize(obj)


def fetch(rref: Any) -> Any:
    return rref.to_here()


def scenario_picklers(rank: int) -> None:
    pickler = OwnPickler()
    with api._use_rpc_pickler(pickler):
        assert rpc.rpc_sync("worker1", fetch, args=(rpc.RRef(torch.ones(2)),)).sum() == 2
        assert rpc.rpc_sync("worker1", answers_later, args=("worker0", 9)) == 6
        assert rpc.remote("worker1", torch.Tensor.sum, args=(torch.ones(3),)).to_here() == 3
    assert pickler.used
    assert api._default_pickler is internal._internal_rpc_pickler
    data, tensors = internal.serialize({"a": torch.ones(2), "b": [torch.zeros(1)]})
    assert [tensor.numel() for tensor in tensors] == [2, 1]
    assert internal.deserialize(data, tensors)["a"] is tensors[0]


def test_picklers(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_picklers", tmp_path)


class Weight:
    """A value that is pickled by a reducer of its own."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _remade(*rebuild: Any) -> Weight:
    receive, args = rebuild
    return Weight(receive(*args))


def test_reducers_of_others_use_the_table() -> None:
    pickler = internal._internal_rpc_pickler
    pickler._register_reducer(Weight, lambda weight: (_remade, pickler._tensor_reducer(weight.tensor)))
    weight = Weight(torch.ones(3))
    data, tensors = internal.serialize([torch.zeros(2), weight, torch.zeros(1)])
    assert [tensor.numel() for tensor in tensors] == [2, 3, 1]
    assert tensors[1] is weight.tensor
    assert internal.deserialize(data, tensors)[1].tensor is weight.tensor
    assert not vars(internal._thread_local_tensor_tables)


@torch.jit.script
def doubled(a: torch.Tensor, times: int = 2) -> torch.Tensor:
    return a * times


def scenario_as_torchs_own_code_calls(rank: int) -> None:
    one, to = torch.ones(2), rpc.get_worker_info(f"worker{1 - rank}")
    for func, later, expected in ((min, False, 2), (answers_later, True, 4)):
        args = (f"worker{rank}", 3) if later else (2, 3)
        data, tensors = internal.serialize(internal.PythonUDF(func, args, {}))
        assert api._invoke_rpc_python_udf(to, data, tensors, -1.0, later).wait() == expected
        assert api._invoke_remote_python_udf(to, data, tensors, -1.0, later).to_here() == expected
    assert api._invoke_rpc_builtin(to, "aten::add", -1.0, one, 1, alpha=3).wait().sum() == 8
    assert api._invoke_remote_builtin(to, "aten::add", -1.0, one, 1).to_here().sum() == 4
    name = torch._jit_internal._qualified_name(doubled)
    assert api._invoke_rpc_torchscript(to.name, name, (one,), {"times": 3}, -1.0, False).wait().sum() == 6
    assert api._invoke_remote_torchscript(to.name, name, -1.0, False, one, times=3).to_here().sum() == 6
    # How torch's handler runs what arrived.
    assert internal._run_function(internal.PythonUDF(min, (2, 1), {})) == 1
    internal._handle_exception(1)
    failed = internal._run_function(internal.PythonUDF(int, ("x",), {}))
    assert failed.exception_type is ValueError
    with pytest.raises(ValueError, match=rf"On WorkerInfo\(id={rank}, name=worker{rank}\):\nValueError"):
        internal._handle_exception(failed)
    failed = internal._run_function(internal.deserialize(b"cnowhere_at_all\nf\n.", []))
    assert isinstance(failed, internal.RemoteException)
    with pytest.raises(RuntimeError, match=r"Failed to create original exception type.*was out"):
        internal._handle_exception(internal.RemoteException("out", Odd))


def test_as_torchs_own_code_calls(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_as_torchs_own_code_calls", tmp_path)


def test_names_that_others_import() -> None:
    theirs: Any = pytest.importorskip("torch.distributed.rpc")
    for ours, module in ((constants, theirs.constants), (internal, theirs.internal)):
        missing = {name for name in vars(module) if not name.startswith("__")} - set(vars(ours))
        assert missing <= {"annotations", "collections", "copyreg", "dist", "Enum", "_get_current_rpc_agent"}
    for name in ("DEFAULT_INIT_METHOD", "DEFAULT_NUM_WORKER_THREADS", "DEFAULT_RPC_TIMEOUT_SEC", "UNSET_RPC_TIMEOUT"):
        assert getattr(constants, f"_{name}") == getattr(theirs.constants, f"_{name}")


def test_names_of_workers() -> None:
    info = WorkerInfo("a:b-1_C", 3)
    assert str(info) == "WorkerInfo(id=3, name=a:b-1_C)"
    assert (info, hash(info)) == (WorkerInfo(name="a:b-1_C", id=3), hash(WorkerInfo("a:b-1_C", 3)))
    assert info != ("a:b-1_C", 3)
    assert info != WorkerInfo("a:b-1_C", 4)
    for name, words in [("", "non-empty"), ("a b", "must match"), ("a" * 128, "shorter than 128")]:
        with pytest.raises(RuntimeError, match=words):
            WorkerInfo(name, 0)


def test_errors_are_torchs_and_ours() -> None:
    to = WorkerInfo("w", 1)
    late = errors.told(DeadlineExceeded("x"), to, 1.5)
    assert isinstance(late, RuntimeError)
    assert "(1500 ms)" in str(late)
    gone = errors.told(Unreachable("nobody"), to, None)
    assert isinstance(gone, RuntimeError)
    assert isinstance(gone, ConnectionError)
    assert "Connection closed by peer WorkerInfo(id=1, name=w): nobody" in str(gone)
    other = LookupError("mine")
    assert errors.told(other, to, None) is other
    plain = errors.told(RemoteError("text"), to, None)
    assert isinstance(plain, RuntimeError)
    assert str(plain).startswith("On WorkerInfo(id=1, name=w):\n")


def test_a_future_ends_once() -> None:
    future = RpcFuture()
    seen: list[Any] = []
    future.add_done_callback(lambda done: seen.append(done.value()))
    assert future.resolve(3)
    assert not future.resolve(4)
    assert not future.fail(ValueError())
    assert (future.wait(), seen, future.done()) == (3, [3], True)
    with pytest.raises(RuntimeError, match="Future can only be marked completed once"):
        future.set_result(5)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        future.then(None)  # type: ignore[arg-type]
    assert futures.wait_all([]) == []


def test_without_a_world_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="RPC has not been initialized"):
        rpc.rpc_sync("worker1", min)
    with pytest.raises(RuntimeError, match="Current RPC agent is not set! Did you initialize the RPC framework"):
        rpc.RRef(3)
    with pytest.raises(RuntimeError, match="RPC has not been initialized"):
        rpc.shutdown()


if __name__ == "__main__":
    ranks.main(globals())
