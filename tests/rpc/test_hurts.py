"""What used to hurt with torch.distributed.rpc, and must be gone. What happens at shutdown: see test_shutdown.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from support import ranks

from tensorcall import rpc
from tensorcall.client import connect
from tensorcall.client.connection import Connection
from tensorcall.wire import calls
from tensorcall.wire.calls import Target
from tensorcall.wire.errors import RemoteError, Unauthenticated

OPTIONS = {"scenario_nested_calls_on_one_thread": {"num_worker_threads": 1}}


class Odd(Exception):
    """An exception that can't be made of a text."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(code, text)


def raise_odd() -> None:
    raise Odd(3, "odd it is")


def raise_with_cause() -> None:
    try:
        raise OSError(5, "inner")
    except OSError as inner:
        error = ValueError("outer", 7)
        if hasattr(error, "add_note"):
            error.add_note("a note")
        raise error from inner


def scenario_exceptions_stay_whole(rank: int) -> None:
    for to in ("worker0", "worker1"):
        with pytest.raises(ValueError, match=rf"On WorkerInfo\(id={to[-1]}, name={to}\)") as caught:
            rpc.rpc_sync(to, raise_with_cause)
        error: Any = caught.value
        assert not isinstance(error, RuntimeError)
        assert error.args == ("outer", 7)
        assert isinstance(error.__cause__, OSError)
        assert (error.__cause__.errno, error.__cause__.strerror) == (5, "inner")
        assert not hasattr(error, "add_note") or error.__notes__ == ["a note"]
        assert 'raise OSError(5, "inner")' in error.remote_traceback
        # And all of it is in what is printed, without a frame of ours.
        assert 'raise OSError(5, "inner")' in str(error)
        assert "serving.py" not in str(error)
        with pytest.raises(Odd) as odd:
            rpc.rpc_async(to, raise_odd).wait()
        assert (odd.value.code, odd.value.args) == (3, (3, "odd it is"))
        assert isinstance(odd.value, RemoteError)
        # Where torch can't rebuild it, it says this, as a RuntimeError.
        assert isinstance(odd.value, RuntimeError)
        assert "Original exception on remote side was On WorkerInfo" in str(odd.value)


def scenario_a_missing_function_is_named(rank: int) -> None:
    module = types.ModuleType("only_here")
    exec("def missing(): pass", vars(module))
    sys.modules["only_here"] = module
    rpc.api._wait_all_workers()
    if rank == 0:
        with pytest.raises(AttributeError, match="RPC pickler does not serialize function code") as caught:
            rpc.rpc_sync("worker1", module.missing)
        assert isinstance(caught.value, RuntimeError)
        assert "missing" in str(caught.value)
    elif rank == 1:
        del module.missing
    rpc.api._wait_all_workers()


def nested(to: str, depth: int) -> int:
    if not depth:
        return 0
    # Neither of these tells the pool that it waits.
    done = threading.Event()
    result: list[int] = []
    rpc.rpc_async(to, nested, args=(rpc.get_worker_info().name, depth - 1)).add_done_callback(
        lambda future: (result.append(future.value()), done.set())
    )
    assert done.wait(30)
    return 1 + result[0]


def nested_politely(to: str, depth: int) -> int:
    if not depth:
        return 0
    return 1 + int(rpc.remote(to, nested_politely, args=(rpc.get_worker_info().name, depth - 1)).to_here())


def scenario_nested_calls_on_one_thread(rank: int) -> None:
    me, other = f"worker{rank}", f"worker{1 - rank}"
    assert rpc.rpc_sync(other, nested_politely, args=(me, 60)) == 60
    assert rpc.rpc_sync(other, nested, args=(me, 8)) == 8


def hang() -> None:
    time.sleep(3)


def interrupted_after(seconds: float, wait: Any) -> None:
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wait()
    assert time.monotonic() - began < 2


def scenario_ctrl_c(rank: int) -> None:
    if rank:
        return
    for to in ("worker1", "worker0"):
        future = rpc.rpc_async(to, hang)
        interrupted_after(0.2, future.wait)
        interrupted_after(0.2, future.then(lambda done: done.wait()).wait)
        interrupted_after(0.2, lambda to=to: rpc.rpc_sync(to, hang))
        rref = rpc.remote(to, hang)
        interrupted_after(0.2, rref.to_here)
        interrupted_after(0.2, rref._get_type)
        interrupted_after(0.2, lambda rref=rref: rref.rpc_async().__bool__().wait())
    # What went on meanwhile is not hurt.
    assert rpc.rpc_sync("worker1", min, args=(2, 1)) == 1


def scenario_strangers(rank: int) -> None:
    if rank == 0:
        address = rpc._get_current_rpc_agent().me.address
        for token in (None, "guessed"):
            with connect(address, token=token) as stranger, pytest.raises(Unauthenticated):
                stranger.options(pickle=True).call("rpc.run", print, (), {}, (False, None, ""))
        # Even with the secret a name is no pickle.
        connection = Connection(address, "call", 5.0, known=False)
        request = calls.encode_request(Target(pickle=b"cos\nsystem\n."), (), {})
        with pytest.raises(Unauthenticated):
            connection.carrier().call(request, 5.0, pickle=False)
        connection.close()
    rpc.api._wait_all_workers()


@pytest.mark.parametrize(
    "scenario",
    [
        "scenario_exceptions_stay_whole",
        "scenario_a_missing_function_is_named",
        "scenario_nested_calls_on_one_thread",
        "scenario_ctrl_c",
        "scenario_strangers",
    ],
)
def test_what_used_to_hurt(scenario: str, tmp_path: Path) -> None:
    ranks.run(__file__, scenario, tmp_path)


_ALONE = """
import os, signal, threading
from tensorcall import rpc
# Whoever started the tests may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
options = rpc.TensorPipeRpcBackendOptions(init_method={place!r}, rpc_timeout=60)
threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
rpc.init_rpc("worker0", rank=0, world_size=2, rpc_backend_options=options)
"""


@pytest.mark.parametrize("place", ["file", "tcp"])
def test_ctrl_c_while_others_do_not_come(place: str, tmp_path: Path) -> None:
    where = f"file://{tmp_path}/store" if place == "file" else "tcp://127.0.0.1:0"
    if place == "tcp":
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    ended = subprocess.run([sys.executable, "-c", _ALONE.format(place=where)], timeout=60, capture_output=True)
    assert b"KeyboardInterrupt" in ended.stderr
    assert ended.returncode == -signal.SIGINT


def test_an_address_of_ones_choice_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another address of this machine than what the rendezvous would lead to.
    monkeypatch.setenv("TENSORCALL_RPC_BIND", "0.0.0.0")
    monkeypatch.setenv("TENSORCALL_RPC_ADVERTISE", "127.0.0.9")
    ranks.run(__file__, "scenario_addresses", tmp_path)


def scenario_addresses(rank: int) -> None:
    members = rpc._get_current_rpc_agent().world.members()
    assert all(member.address.startswith("127.0.0.9:") for member in members)
    assert rpc.rpc_sync(f"worker{1 - rank}", min, args=(1, 2)) == 1


if __name__ == "__main__":
    ranks.main(globals())
