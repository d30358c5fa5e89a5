"""Callers that open and never send, send and never read, or leave at the worst moment: the others are served."""

from __future__ import annotations

import gc
import queue
import random
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import torch
from grpc_reflection.v1alpha import reflection_pb2_grpc
from support.servers import ServerProcess, eventually

from tensorcall.client import connect
from tensorcall.server import Server, ServerConfig
from tensorcall.server.core import Call, UdfRaised
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.v1 import tensor_pb2, value_pb2
from tensorcall.wire import errors

SERVICE = "/tensorcall.v1.HandlerService/"
HELLO = pb.SessionRequest(hello=pb.SessionHello(client_id="hostile")).SerializeToString()


def call(number: int, function: str, *args: value_pb2.Value, **fields: Any) -> pb.SessionCall:
    request = pb.CallRequest(function=function, args=args, tensors=fields.pop("tensors", ()))
    return pb.SessionCall(id=number, request=request, **fields)


def text(value: str) -> value_pb2.Value:
    return value_pb2.Value(string=value)


def number(value: int) -> value_pb2.Value:
    return value_pb2.Value(int=value)


class Held:
    """An RPC whose requests are sent one by one; of whose responses none is read unless asked for."""

    def __init__(self, address: str, method: str, *messages: bytes, small_window: bool = False) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        if small_window:
            options += [("grpc.http2.lookahead_bytes", 65_536), ("grpc.http2.bdp_probe", 0)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.responses = self.channel.stream_stream(method)(iter(self.requests.get, None), timeout=120)
        for message in messages:
            self.requests.put(message)

    def close(self) -> None:
        self.responses.cancel()
        self.requests.put(None)
        self.channel.close()


@pytest.fixture
def held() -> Iterator[list[Held]]:
    all_held: list[Held] = []
    yield all_held
    for each in all_held:
        each.close()


def test_calls_that_are_opened_and_never_sent(held: list[Held]) -> None:
    with ServerProcess(threads=4) as server, connect(server.address, timeout=30.0) as remote:
        held += [Held(server.address, SERVICE + "Call") for _ in range(20)]
        held += [Held(server.address, SERVICE + "CallStream") for _ in range(20)]
        with connect(server.address, carrier="call", timeout=30.0) as unary:
            assert remote.call("served.wait_if", "x", False) == "x"
            assert unary.call("served.add", 1) == 2.0
            assert list(unary.stream("served.count", 3)) == [0, 1, 2]


def test_those_who_only_ask_and_stay(held: list[Held]) -> None:
    with ServerProcess() as server:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        assert reflection_pb2_grpc.ServerReflectionStub is not None
        held += [Held(server.address, method) for _ in range(30)]
        with connect(server.address, timeout=30.0) as remote:
            assert remote.call("served.coroutine", 1) == 1
            assert remote.describe("served.add").kind == "function"


def test_streams_that_are_paused_hold_no_thread(carrier: Any) -> None:
    with ServerProcess(threads=3, max_threads=12) as server:
        with connect(server.address, carrier=carrier, timeout=60.0, prefetch=1) as remote:
            count = 100 if carrier == "session" else 8
            streams = [remote.stream("served.count", 50) for _ in range(count)]
            assert [next(stream) for stream in streams] == [0] * count
            with connect(server.address, timeout=30.0) as other:
                assert other.call("served.wait_if", "x", False) == "x"
            assert [list(stream) for stream in streams] == [list(range(1, 50))] * count


def test_answers_do_not_wait_for_a_slow_call_of_the_same_message(server: ServerProcess) -> None:
    with connect(server.address, carrier="session", timeout=30.0) as remote:
        for _ in range(100):
            remote.call("served.wait_if", "answers", False)
        speaker = Held(server.address, SERVICE + "Session", HELLO)
        next(speaker.responses)
        flags = [value_pb2.Value(bool=i == 1) for i in range(3)]
        calls = [call(i + 1, "served.wait_if", text("answers"), flag) for i, flag in enumerate(flags)]
        speaker.requests.put(pb.SessionRequest(calls=calls).SerializeToString())
        got: set[int] = set()
        while len(got) < 2:
            got |= {reply.id for reply in pb.SessionResponse.FromString(next(speaker.responses)).replies}
        assert got == {1, 3}
        remote.call("served.open_gate", "answers")
        assert pb.SessionResponse.FromString(next(speaker.responses)).replies[0].id == 2
        speaker.close()


@pytest.mark.parametrize("function", ["served.broken", "served.broken_later"])
def test_a_result_that_fails_while_it_is_encoded(function: str, carrier: Any) -> None:
    with ServerProcess() as server, connect(server.address, carrier=carrier, timeout=30.0) as remote:
        with pytest.raises(errors.TensorcallError):
            remote.call(function)
        assert remote.call("served.add", 1) == 2.0
        assert server.end()[0] == 0


def test_a_generator_that_exits(carrier: Any, server: ServerProcess) -> None:
    with connect(server.address, carrier=carrier) as remote:
        stream = remote.stream("served.exits_midway")
        assert next(stream) == 1
        with pytest.raises(errors.RemoteError, match="4"):
            next(stream)
        assert remote.call("served.add", 1) == 2.0


def test_callers_that_leave_while_their_message_is_taken() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    with ServerProcess(grace=20.0) as server:
        calls = [
            call(i + 1, "served.count", number(10**6), stream=True, credit=1)
            if i % 2
            else call(i + 1, "served.sleep_for_ever", text("leaves"))
            for i in range(60)
        ]
        calls += [
            call(
                100 + i,
                "served.echo",
                value_pb2.Value(tensor=0),
                tensors=[
                    tensor_pb2.TensorBlob(dtype=2, shape=[10], chunked=tensor_pb2.ChunkedStorage(size=10)),
                ],
            )
            for i in range(10)
        ]
        message = pb.SessionRequest(calls=calls).SerializeToString()
        for _ in range(40):
            held = Held(server.address, SERVICE + "Session", HELLO)
            next(held.responses)
            held.requests.put(message)
            cut = threading.Timer(rng.random() * 0.012, held.responses.cancel)
            cut.start()
            cut.join()
            held.close()
        with connect(server.address, timeout=30.0) as remote:
            runs = remote.call("served.happened", "leaves runs")
            eventually(lambda: remote.call("served.happened", "leaves cancelled") == runs)
            assert remote.call("served.add", 1) == 2.0
        # Had one call been forgotten, the drain would take its whole grace and warn.
        code, log = server.end()
        assert code == 0
        assert "calls are cancelled" not in log


def test_a_stream_that_nobody_reads_does_not_fill_the_memory(held: list[Held]) -> None:
    with ServerProcess() as server, connect(server.address, timeout=60.0) as remote:
        before = remote.call("served.resident")
        held.append(Held(server.address, SERVICE + "Session", HELLO, small_window=True))
        calls = [
            call(i, "served.tensors", number(5_000), number(200_000), stream=True, credit=2**31 - 1) for i in (1, 2)
        ]
        held[0].requests.put(pb.SessionRequest(calls=calls).SerializeToString())
        # Both would make a gigabyte. Others are served, and the memory stays.
        for _ in range(200):
            assert remote.call("served.wait_if", "x", False) == "x"
            assert remote.call("served.resident") < before + (200 << 20)


def test_what_is_only_announced_shuts_nobody_out(held: list[Held]) -> None:
    with ServerProcess(max_gathering_bytes=100 << 20) as server, connect(server.address, timeout=30.0) as remote:
        blob = tensor_pb2.TensorBlob(dtype=2, shape=[90 << 20], chunked=tensor_pb2.ChunkedStorage(size=90 << 20))
        announced = call(1, "served.echo", value_pb2.Value(tensor=0), tensors=[blob])
        held.append(Held(server.address, SERVICE + "Session", HELLO))
        held[0].requests.put(pb.SessionRequest(calls=[announced]).SerializeToString())
        next(held[0].responses)
        assert remote.call("served.ends", torch.ones(50 << 20, dtype=torch.uint8)) == (50 << 20, 1, 1)


def test_a_call_whose_tensors_do_not_come_ends_at_its_deadline(server: ServerProcess) -> None:
    speaker = Held(server.address, SERVICE + "Session", HELLO)
    next(speaker.responses)
    blob = tensor_pb2.TensorBlob(dtype=2, shape=[10], chunked=tensor_pb2.ChunkedStorage(size=10))
    late = call(1, "served.echo", value_pb2.Value(tensor=0), tensors=[blob], timeout={"nanos": 200_000_000})
    speaker.requests.put(pb.SessionRequest(calls=[late]).SerializeToString())
    reply = pb.SessionResponse.FromString(next(speaker.responses)).replies[0]
    assert reply.failure.reason == "DEADLINE_EXCEEDED"
    speaker.close()


def test_a_drain_waits_until_a_large_answer_is_out() -> None:
    with ServerProcess(grace=60.0) as server:
        held = Held(server.address, SERVICE + "Session", HELLO, small_window=True)
        next(held.responses)
        size = 60 << 20
        held.requests.put(pb.SessionRequest(calls=[call(1, "served.fill", number(size))]).SerializeToString())
        got = 0
        for response in held.responses:
            message = pb.SessionResponse.FromString(response)
            if got == 0:
                server.send(15)
            got += sum(len(chunk.data) for chunk in message.chunks)
            if got == size:
                break
        assert got == size
        held.requests.put(None)
        assert list(held.responses) == []
        assert server.process.wait(60) == 0
        held.close()


def test_a_program_that_forgets_to_stop_its_server_ends(carrier: Any) -> None:
    program = f"""
from tensorcall.client import connect
from tensorcall.server import Server, ServerConfig
server = Server([abs], config=ServerConfig(bind="127.0.0.1:0"))
server.start()
remote = connect(server.address, carrier={carrier!r})
print(remote.call("builtins.abs", -3))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "3\n"), ended.stderr


def test_bytes_that_are_no_http2(server: ServerProcess) -> None:
    host, _, port = server.address.rpartition(":")
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, random.randbytes(1000)):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(data)
    with connect(server.address) as remote:
        assert remote.call("served.add", 1) == 2.0


def test_a_failed_call_leaves_no_cycle_behind(carrier: Any) -> None:
    """Else each failure would hold its arguments until the garbage collector comes by."""

    def fails(tensor: torch.Tensor) -> None:
        gone.append(weakref.ref(tensor))
        raise ValueError("x")

    gone: list[weakref.ref[torch.Tensor]] = []
    gc.collect()
    gc.disable()
    try:
        with Server([fails], config=ServerConfig(bind="127.0.0.1:0")) as server:
            with connect(server.address, carrier=carrier) as remote:
                for _ in range(5):
                    with pytest.raises(ValueError, match="x"):
                        remote.call("test_hostile.fails", torch.ones(5))
                # A connection of its own: what is asked must not be what is kept.
                assert remote.functions()
            eventually(lambda: [ref for ref in gone if ref() is not None] == [])
            assert len(gone) == 5
            kept = [each for each in gc.get_objects() if type(each) in (Call, UdfRaised)]
            assert kept == []
    finally:
        gc.enable()
