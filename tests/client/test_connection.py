"""What happens when the server is not there, goes away, comes back, or is of another kind."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
import torch
from support.servers import ServerProcess, eventually

from tensorcall.client import connect, connect_async
from tensorcall.wire import errors


@pytest.mark.parametrize("address", ["localhost", "host:", ":5", "host:port", "host:70000", ""])
def test_a_wrong_address_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        connect(address)


def test_nobody_there(carrier: str) -> None:
    with connect("127.0.0.1:1", carrier=carrier) as remote:  # type: ignore[arg-type]
        with pytest.raises(errors.Unreachable, match=r"127\.0\.0\.1:1") as caught:
            remote.call("x")
        assert isinstance(caught.value, ConnectionError)
        with pytest.raises(errors.Unreachable):
            remote.submit("x").result(30)
        with pytest.raises(errors.Unreachable):
            list(remote.stream("x"))
        with pytest.raises(errors.Unreachable):
            remote.functions()


def test_somebody_there_who_does_not_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with connect(address, connect_timeout=0.5) as remote, pytest.raises(errors.Unreachable, match=r"0\.5 s"):
            remote.call("x")


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who takes connections, and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_call_waits_for_a_connection_no_longer_than_for_its_result(silent: str) -> None:
    with connect(silent, connect_timeout=25) as remote:
        hurried, start = remote.options(timeout=0.2), time.monotonic()
        with pytest.raises(errors.DeadlineExceeded, match=r"0\.2 s"):
            hurried.call("x")
        with pytest.raises(errors.DeadlineExceeded):
            hurried.submit("x")
        with pytest.raises(errors.DeadlineExceeded):
            hurried.stream("x")
        with futures.ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(hurried.call, "x") for _ in range(4)]
            assert all(isinstance(call.exception(), errors.DeadlineExceeded) for call in calls)
        assert time.monotonic() - start < 20


async def test_the_same_for_asyncio(silent: str) -> None:
    async with connect_async(silent, connect_timeout=25, timeout=0.2) as remote:
        start = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            await remote.call("x")
        with pytest.raises(errors.DeadlineExceeded):
            await anext(remote.stream("x"))
        assert time.monotonic() - start < 20


def test_closing_does_not_wait_for_who_opens(silent: str) -> None:
    remote = connect(silent, connect_timeout=25)
    start = time.monotonic()
    with futures.ThreadPoolExecutor(2) as pool:
        opening = [pool.submit(remote.call, "x") for _ in range(2)]
        eventually(lambda: remote._connection._opening.locked())
        remote.close()
        for call in opening:
            with pytest.raises(errors.Cancelled, match="closed"):
                call.result(20)
    assert time.monotonic() - start < 20


def test_asking_a_live_server_in_vain_is_a_deadline() -> None:
    ends = threading.Event()
    name = "tensorcall.v1.HandlerService"
    handlers = {"ListFunctions": grpc.unary_unary_rpc_method_handler(lambda *_: bytes(ends.wait(30)))}
    slow = grpc.server(futures.ThreadPoolExecutor(1))
    slow.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(name, handlers)])  # type: ignore[arg-type]
    port = slow.add_insecure_port("127.0.0.1:0")
    slow.start()
    try:
        with connect(f"127.0.0.1:{port}", timeout=0.2) as remote:
            for _ in range(3):
                with pytest.raises(errors.DeadlineExceeded, match=r"0\.2 s"):
                    remote.functions()
    finally:
        ends.set()
        slow.stop(None)


def test_the_server_dies_in_mid_call_and_comes_back(carrier: str) -> None:
    with ServerProcess() as server, connect(server.address, carrier=carrier) as remote:  # type: ignore[arg-type]
        calls = [remote.submit("served.wait_for_gate", "never") for _ in range(3)]
        stream = remote.stream("served.stall_async", "never")
        assert next(stream) == 1
        eventually(lambda: remote.call("served.happened", "never waits") == 3)
        server.kill()
        for call in calls:
            with pytest.raises(errors.ConnectionLost, match=r"127\.0\.0\.1"):
                call.result(30)
        with pytest.raises(errors.ConnectionLost):
            next(stream)
        assert list(stream) == list(stream) == []
        with pytest.raises(errors.Unreachable):
            remote.call("served.noop")
        with ServerProcess(bind=server.address) as again:

            def answers() -> bool:
                try:
                    return remote.call("served.add", 1) == 2.0
                except errors.Unreachable:
                    return False  # gRPC waits a little before it tries again

            eventually(answers)
            again.end()


def test_closing_cancels_what_is_in_flight(server: ServerProcess, carrier: str) -> None:
    name = f"closing {carrier}"
    remote = connect(server.address, carrier=carrier)  # type: ignore[arg-type]
    waiting = remote.submit("served.sleep_for_ever", name)
    with connect(server.address) as other:
        eventually(lambda: other.call("served.happened", f"{name} runs"))
        remote.close()
        remote.close()
        with pytest.raises((errors.Cancelled, futures.CancelledError)):
            waiting.result(30)
        eventually(lambda: other.call("served.happened", f"{name} cancelled"))
    with pytest.raises(errors.Cancelled, match="closed"):
        remote.call("served.noop")


def test_a_client_that_vanishes_has_its_calls_cancelled(server: ServerProcess, carrier: str) -> None:
    name = f"vanishes {carrier}"
    program = f"""
from tensorcall.client import connect
remote = connect({server.address!r}, carrier={carrier!r})
for function in ("served.sleep_for_ever", "served.until_cancelled"):
    remote.submit(function, {name!r})
stream = remote.options(prefetch=1).stream("served.count", 10**9, {name!r})
print(next(stream), flush=True)
input()
"""
    with connect(server.address) as other:
        client = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with client:
            assert client.stdout is not None
            assert client.stdout.readline() == "0\n"
            eventually(lambda: other.call("served.happened", f"{name} runs") == 2)
            client.kill()
        eventually(lambda: other.call("served.happened", f"{name} cancelled") == 2)
        eventually(lambda: other.call("served.happened", f"{name} closed") == 1)


def test_a_program_that_forgets_to_close_ends(server: ServerProcess) -> None:
    program = f"""
from tensorcall.client import connect
print(connect({server.address!r}).call("served.add", 1))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "2.0\n"), ended.stderr


def test_a_server_without_sessions_is_served_over_call(server: ServerProcess) -> None:
    """A proxy that only knows Call stands for servers of other makes."""
    upstream = grpc.insecure_channel(server.address)
    call = upstream.unary_unary("/tensorcall.v1.HandlerService/Call")
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(lambda request, _: call(request))}
    proxy = grpc.server(futures.ThreadPoolExecutor(2))
    proxy.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorcall.v1.HandlerService", handlers)]  # type: ignore[arg-type]
    )
    port = proxy.add_insecure_port("127.0.0.1:0")
    proxy.start()
    try:
        with connect(f"127.0.0.1:{port}") as remote:
            assert remote.call("served.add", 1) == 2.0
            assert remote.submit("served.echo", torch.ones(3)).result(30).sum() == 3
        with connect(f"127.0.0.1:{port}", carrier="session") as remote, pytest.raises(errors.NotImplementedByPeer):
            remote.call("served.add", 1)
    finally:
        proxy.stop(None)
        upstream.close()


def test_something_that_is_no_tensorcall_server() -> None:
    other = grpc.server(futures.ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with connect(f"127.0.0.1:{port}") as remote, pytest.raises(errors.NotImplementedByPeer):
            remote.call("served.add", 1)
    finally:
        other.stop(None)


def test_without_torch_tensors_are_arrays(server: ServerProcess) -> None:
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from tensorcall.client import connect
for carrier in ("session", "call"):
    with connect({server.address!r}, carrier=carrier) as remote:
        filled = remote.call("served.fill", 5)
        assert type(filled) is np.ndarray, type(filled)
        assert filled.tolist() == [0, 1, 2, 3, 4]
        filled += 1
        kind, doubled = remote.call("served.array", filled)
        assert doubled.tolist() == [2, 4, 6, 8, 10]
print("fine")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "fine\n", ended.stderr


def test_the_client_imports_without_torch_and_without_the_server() -> None:
    program = "import sys, tensorcall.client; print([m for m in ('torch', 'tensorcall.server') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "[]\n", ended.stderr


def test_one_connection_opened_by_many_threads_at_once(server: ServerProcess) -> None:
    with connect(server.address) as remote:
        barrier = threading.Barrier(16)

        def work(i: int) -> float:
            barrier.wait(30)
            return float(remote.call("served.add", i))

        with futures.ThreadPoolExecutor(16) as pool:
            assert list(pool.map(work, range(16))) == [i + 1.0 for i in range(16)]
