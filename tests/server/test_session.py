"""The session's protocol, spoken by hand with the generated classes, as a client in another language would."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator

import grpc
import pytest
from support.servers import ServerProcess, eventually

from tensorcall.client import connect
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.v1 import handler_service_pb2_grpc, tensor_pb2, value_pb2


class Speaker:
    """One session of a caller that writes its messages itself."""

    def __init__(self, address: str, *, hello: bool = True) -> None:
        self.channel = grpc.insecure_channel(address)
        self.requests: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        stub = handler_service_pb2_grpc.HandlerServiceStub(self.channel)
        self.responses = stub.Session(iter(self.requests.get, None), timeout=60)
        self.replies: list[pb.SessionReply] = []
        self.chunks: list[pb.Chunk] = []
        if hello:
            self.send(hello=pb.SessionHello(client_id="speaker"))
            self.welcome = next(self.responses).welcome

    def send(self, **fields: object) -> None:
        self.requests.put(pb.SessionRequest(**fields))  # type: ignore[arg-type]

    def call(self, number: int, function: str, *args: value_pb2.Value, **fields: object) -> None:
        tensors = fields.pop("tensors", [])
        request = pb.CallRequest(function=function, args=args, tensors=tensors)  # type: ignore[arg-type]
        self.send(calls=[pb.SessionCall(id=number, request=request, **fields)])  # type: ignore[arg-type]

    def reply(self) -> pb.SessionReply:
        while not self.replies:
            response = next(self.responses)
            self.replies += response.replies
            self.chunks += response.chunks
        return self.replies.pop(0)

    def chunk(self) -> pb.Chunk:
        while not self.chunks:
            response = next(self.responses)
            self.replies += response.replies
            self.chunks += response.chunks
        return self.chunks.pop(0)

    def end(self) -> None:
        self.requests.put(None)


@pytest.fixture
def speaker(server: ServerProcess) -> Iterator[Speaker]:
    speaker = Speaker(server.address)
    yield speaker
    # Whatever a test did to its session, the next caller is served.
    with connect(server.address) as remote:
        assert remote.call("served.add", 1) == 2.0
    speaker.end()
    speaker.channel.close()


def number(value: int) -> value_pb2.Value:
    return value_pb2.Value(int=value)


def text(value: str) -> value_pb2.Value:
    return value_pb2.Value(string=value)


def chunked(size: int, shape: int | None = None) -> tensor_pb2.TensorBlob:
    return tensor_pb2.TensorBlob(
        dtype=tensor_pb2.DTYPE_UINT8,
        shape=[size if shape is None else shape],
        chunked=tensor_pb2.ChunkedStorage(size=size),
    )


TENSOR = value_pb2.Value(tensor=0)


def test_a_call_and_its_reply(speaker: Speaker) -> None:
    assert speaker.welcome.chunk_size > 0
    assert speaker.welcome.incarnation
    speaker.call(7, "served.add", number(1), number(2))
    reply = speaker.reply()
    assert reply.id == 7
    assert reply.result.result.value.double == 3.0


def test_many_calls_in_one_message(speaker: Speaker) -> None:
    request = pb.CallRequest(function="served.add", args=[number(1)])
    speaker.send(calls=[pb.SessionCall(id=i, request=request) for i in range(1, 501)])
    assert {speaker.reply().id for _ in range(500)} == set(range(1, 501))


def test_a_tensor_in_chunks_of_any_size_both_ways(speaker: Speaker) -> None:
    size = 3_000_000
    data = bytes(range(250)) * (size // 250)
    speaker.call(1, "served.echo", TENSOR, tensors=[chunked(size)])
    cuts = [0, 1, 2, 500_000, 500_001, size - 1, size]
    for start, end in itertools.pairwise(cuts):
        speaker.send(chunks=[pb.Chunk(id=1, offset=start, data=data[start:end])])
    blob = speaker.reply().result.result.tensors[0]
    assert blob.chunked.size == size
    got = b""
    while len(got) < size:
        chunk = speaker.chunk()
        assert (chunk.id, chunk.tensor, chunk.offset) == (1, 0, len(got))
        got += chunk.data
    assert got == data


@pytest.mark.parametrize(
    ("blob", "chunks", "what"),
    [
        (chunked(10, shape=11), [], "chunks of 10 bytes"),
        (chunked(10), [(0, 0, 11)], "beyond"),
        (chunked(10), [(0, 5, 5)], "byte 5"),
        (chunked(10), [(0, 0, 5), (0, 0, 5)], "byte 0"),
        (chunked(10), [(3, 0, 5)], "tensor 3"),
        (chunked(1 << 62), [], "bytes"),
    ],
)
def test_wrong_chunks(
    speaker: Speaker, blob: tensor_pb2.TensorBlob, chunks: list[tuple[int, int, int]], what: str
) -> None:
    speaker.call(1, "served.echo", TENSOR, tensors=[blob])
    for tensor, offset, size in chunks:
        speaker.send(chunks=[pb.Chunk(id=1, tensor=tensor, offset=offset, data=b"x" * size)])
    failure = speaker.reply().failure
    assert failure.reason in ("BAD_PAYLOAD", "TOO_LARGE")
    assert what in failure.message
    # What was still under way is passed over, and the session goes on.
    speaker.send(chunks=[pb.Chunk(id=1, offset=0, data=b"late")])
    speaker.call(2, "served.add", number(1))
    assert speaker.reply().result.result.value.double == 2.0


def test_a_duplicate_id_is_refused_and_the_first_call_goes_on(speaker: Speaker) -> None:
    speaker.call(1, "served.wait_for_gate", text("duplicate"))
    speaker.call(1, "served.add", number(1))
    assert speaker.reply().failure.reason == "DUPLICATE_CALL"
    speaker.call(2, "served.open_gate", text("duplicate"))
    replies = {reply.id: reply for reply in (speaker.reply(), speaker.reply())}
    assert replies[1].result.result.value.string == "duplicate"
    # An id may come again once its call has ended.
    speaker.call(1, "served.add", number(1))
    assert speaker.reply().result.result.value.double == 2.0


def test_requests_that_end_in_the_middle_of_a_tensor(speaker: Speaker) -> None:
    speaker.call(1, "served.echo", TENSOR, tensors=[chunked(10)])
    speaker.call(2, "served.wait_for_gate", text("half way"))
    speaker.send(chunks=[pb.Chunk(id=1, data=b"12345")])
    speaker.end()
    failure = speaker.reply().failure
    assert (failure.reason, "middle" in failure.message) == ("BAD_PAYLOAD", True)
    other = Speaker(speaker.channel._channel.target().decode())
    other.call(1, "served.open_gate", text("half way"))
    other.reply()
    # Calls that are whole are answered before the session ends, which it does in order.
    assert speaker.reply().result.result.value.string == "half way"
    assert list(speaker.responses) == []
    assert speaker.responses.code() is grpc.StatusCode.OK
    other.end()
    other.channel.close()


def test_a_stream_waits_for_credit(speaker: Speaker) -> None:
    speaker.call(1, "served.count", number(5), text("credit"), stream=True, credit=2)
    assert [speaker.reply().item.value.int for _ in range(2)] == [0, 1]
    # Nothing comes before there is credit: the next replies are those of other calls.
    speaker.call(2, "served.happened", text("credit made"))
    assert speaker.reply().result.result.value.int == 2
    speaker.send(credits=[pb.StreamCredit(id=1, items=10), pb.StreamCredit(id=99, items=1)])
    assert [speaker.reply().item.value.int for _ in range(3)] == [2, 3, 4]
    assert speaker.reply().WhichOneof("event") == "end"


def test_cancels(speaker: Speaker) -> None:
    speaker.call(1, "served.sleep_for_ever", text("by hand"))
    speaker.call(2, "served.count", number(100), stream=True, credit=1)
    assert speaker.reply().item.value.int == 0
    speaker.call(3, "served.echo", TENSOR, tensors=[chunked(10)])
    speaker.send(cancels=[1, 2, 3, 77])
    replies = [speaker.reply() for _ in range(3)]
    assert {reply.id for reply in replies} == {1, 2, 3}
    assert {reply.failure.reason for reply in replies} == {"CANCELLED"}


def test_a_deadline_that_passed_before(speaker: Speaker) -> None:
    speaker.call(1, "served.add", number(1), timeout={"seconds": 0})
    assert speaker.reply().failure.reason == "DEADLINE_EXCEEDED"
    speaker.call(2, "served.add", number(1), timeout={"seconds": -5})
    assert speaker.reply().failure.reason == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("hello", [True, False])
def test_a_session_without_a_hello_or_with_two(server: ServerProcess, hello: bool) -> None:
    speaker = Speaker(server.address, hello=hello)
    if hello:
        speaker.send(hello=pb.SessionHello())
    else:
        speaker.call(1, "served.noop")
    reply = speaker.reply()
    assert reply.id == 0
    assert reply.failure.reason == "BAD_PAYLOAD"
    assert "hello" in reply.failure.message
    assert list(speaker.responses) == []
    speaker.end()
    speaker.channel.close()


def test_garbage_ends_the_session_but_not_the_calls_in_flight(server: ServerProcess) -> None:
    channel = grpc.insecure_channel(server.address)
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    responses = channel.stream_stream("/tensorcall.v1.HandlerService/Session")(iter(requests.get, None), timeout=60)
    hello = pb.SessionRequest(hello=pb.SessionHello(client_id="x"))
    call = pb.SessionRequest(
        calls=[pb.SessionCall(id=1, request=pb.CallRequest(function="served.wait_for_gate", args=[text("garbage")]))]
    )
    requests.put(hello.SerializeToString())
    assert pb.SessionResponse.FromString(next(responses)).HasField("welcome")
    requests.put(call.SerializeToString())
    with connect(server.address) as remote:
        eventually(lambda: remote.call("served.happened", "garbage waits"))
        requests.put(b"\x12\xff\xff\xff\x7f")
        first = pb.SessionResponse.FromString(next(responses)).replies[0]
        assert (first.id, first.failure.reason) == (0, "BAD_PAYLOAD")
        remote.call("served.open_gate", "garbage")
    second = pb.SessionResponse.FromString(next(responses)).replies[0]
    assert (second.id, second.result.result.value.string) == (1, "garbage")
    assert list(responses) == []
    requests.put(None)
    channel.close()
