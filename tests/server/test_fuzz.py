"""Random and mutilated bytes on every method of a real server: one error each, and the server lives on."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.servers import ServerProcess

from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.v1 import tensor_pb2, value_pb2
from tensorcall.v1.handler_service_pb2_grpc import HandlerServiceStub

SERVICE = "/tensorcall.v1.HandlerService/"
# What a caller may be told; INTERNAL and UNKNOWN would be a defect of ours.
CALLERS_FAULT = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
}
VALID = [
    pb.CallRequest(
        function="served.echo",
        args=[value_pb2.Value(int=3), value_pb2.Value(list=value_pb2.ListValue(items=[value_pb2.Value(string="x")]))],
        kwargs={"key": value_pb2.Value(tensor=0)},
        tensors=[tensor_pb2.TensorBlob(dtype=tensor_pb2.DTYPE_FLOAT32, shape=[2, 1], data=b"12345678")],
    ).SerializeToString(),
    pb.SessionRequest(
        hello=pb.SessionHello(client_id="fuzz"),
        calls=[pb.SessionCall(id=1, request=pb.CallRequest(function="served.noop"))],
        chunks=[pb.Chunk(id=1, data=b"x")],
        cancels=[5],
        credits=[pb.StreamCredit(id=1, items=3)],
    ).SerializeToString(),
    pb.ResolveTypeRequest(type="List[int]").SerializeToString(),
]


@st.composite
def mutilated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        at = draw(st.integers(0, len(data) - 1))
        change = draw(st.integers(0, 3))
        if change == 0:
            del data[at:]
        elif change == 1:
            data[at] = draw(st.integers(0, 255))
        elif change == 2:
            data[at:at] = draw(st.binary(max_size=5))
        else:
            del data[at : at + draw(st.integers(1, 4))]
    return bytes(data)


messages = st.one_of(st.binary(max_size=200), mutilated())
fuzzing = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel
        assert HandlerServiceStub(channel).Call(pb.CallRequest(function="served.noop")).HasField("result")


@pytest.mark.parametrize("method", ["Call", "ListFunctions", "ResolveType", "GetError"])
@fuzzing
@given(message=messages)
def test_unary_methods(channel: grpc.Channel, method: str, message: bytes) -> None:
    try:
        channel.unary_unary(SERVICE + method)(message, timeout=30)
    except grpc.RpcError as error:
        assert error.code() in CALLERS_FAULT, error


@fuzzing
@given(message=messages)
def test_call_stream(channel: grpc.Channel, message: bytes) -> None:
    try:
        for _ in channel.unary_stream(SERVICE + "CallStream")(message, timeout=30):
            pass
    except grpc.RpcError as error:
        assert error.code() in CALLERS_FAULT, error


@fuzzing
@given(sent=st.lists(messages, min_size=1, max_size=4), hello=st.booleans())
def test_session(channel: grpc.Channel, sent: list[bytes], hello: bool) -> None:
    if hello:
        sent = [pb.SessionRequest(hello=pb.SessionHello(client_id="fuzz")).SerializeToString(), *sent]
    responses = channel.stream_stream(SERVICE + "Session")(iter(sent), timeout=30)
    for response in responses:
        for reply in pb.SessionResponse.FromString(response).replies:
            if reply.HasField("failure"):
                assert reply.failure.reason not in ("INTERNAL", ""), reply
                assert reply.failure.message
    assert responses.code() is grpc.StatusCode.OK


def test_a_stream_that_is_cut_off_anywhere(server: ServerProcess) -> None:
    """Callers that go away after a random number of random messages, many at once."""
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    hello = pb.SessionRequest(hello=pb.SessionHello(client_id="cut")).SerializeToString()
    calls = [
        pb.SessionRequest(
            calls=[
                pb.SessionCall(
                    id=i + 1,
                    stream=i % 2 == 0,
                    request=pb.CallRequest(
                        function=("served.count", "served.sleep_for_ever", "served.echo")[i % 3],
                        args=[value_pb2.Value(int=50) if i % 3 == 0 else value_pb2.Value(string="cut")],
                        tensors=[tensor_pb2.TensorBlob(dtype=2, shape=[9], chunked=tensor_pb2.ChunkedStorage(size=9))]
                        if i % 5 == 0
                        else [],
                    ),
                )
            ]
        ).SerializeToString()
        for i in range(12)
    ]
    for _ in range(100):
        with grpc.insecure_channel(server.address) as channel:
            requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            responses = channel.stream_stream(SERVICE + "Session")(iter(requests.get, None), timeout=30)
            requests.put(hello)
            for call in rng.sample(calls, rng.randrange(len(calls))):
                requests.put(call)
            if rng.random() < 0.5:
                next(responses)
            if rng.random() < 0.5:
                responses.cancel()
            requests.put(None)
    with grpc.insecure_channel(server.address) as channel:
        stub = HandlerServiceStub(channel)
        assert stub.Call(pb.CallRequest(function="served.noop"), timeout=30).HasField("result")
