from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from support.messages import LENGTH, VARINT, damaged, field, integers, messages, rewritten, varint

from tensorcall.v1.handler_service_pb2 import (
    CallRequest,
    Chunk,
    SessionCall,
    SessionHello,
    SessionReply,
    SessionRequest,
    SessionResponse,
    SessionWelcome,
    StreamCredit,
)
from tensorcall.wire import calls, frames
from tensorcall.wire.errors import BadPayload

quick = settings(deadline=None, max_examples=60)

IDS = integers(0, 2**64 - 1)
UINT32 = integers(0, 2**32 - 1)
DATA = st.binary(max_size=200).map(memoryview)
# Short, what they hold is read elsewhere.
WITHOUT = {"tensorcall.v1.CallRequest.tensors", "tensorcall.v1.Payload.tensors", "tensorcall.v1.Failure.exception"}


def of(kind: type, found: list[Any]) -> list[Any]:
    matching = [frame for frame in found if isinstance(frame, kind)]
    for frame in matching:
        if isinstance(frame, SessionHello | SessionWelcome):
            frame.DiscardUnknownFields()
    return matching


def chunks_of(message: SessionRequest | SessionResponse) -> list[frames.Chunk]:
    return [frames.Chunk(chunk.id, chunk.tensor, chunk.offset, memoryview(chunk.data)) for chunk in message.chunks]


# --- SessionRequest --------------------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_a_request_is_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(messages(SessionRequest, depth=1, without=WITHOUT))
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    if any(call.id == 0 for call in message.calls):
        with pytest.raises(BadPayload, match="a call has no id"):
            list(frames.read_request(written))
        return
    found = list(frames.read_request(written))
    assert of(SessionHello, found) == [message.hello] * message.HasField("hello")
    assert of(frames.Chunk, found) == chunks_of(message)
    assert [cancel.id for cancel in of(frames.Cancel, found)] == list(message.cancels)
    assert [(credit.id, credit.items) for credit in of(frames.Credit, found)] == [
        (credit.id, credit.items) for credit in message.credits
    ]
    found_calls = of(frames.Call, found)
    assert len(found_calls) == len(message.calls)
    for found_call, call in zip(found_calls, message.calls, strict=True):
        assert found_call.id == call.id
        request = CallRequest.FromString(written[slice(*found_call.request)])
        request.DiscardUnknownFields()
        assert request.SerializeToString(deterministic=True) == call.request.SerializeToString(deterministic=True)
        timeout = call.timeout.seconds + call.timeout.nanos / 1e9 if call.HasField("timeout") else None
        assert found_call.timeout == timeout
        assert (found_call.stream, found_call.credit) == (call.stream, call.credit or 16)


@quick
@given(
    IDS, messages(CallRequest, depth=1, without=WITHOUT), st.none() | integers(0, 10**15), st.booleans(), UINT32, DATA
)
def test_a_call_is_written_as_by_the_generated_class(
    number: int, request: CallRequest, nanos: int | None, stream: bool, credit: int, data: memoryview
) -> None:
    body = request.SerializeToString(deterministic=True)
    call = SessionCall(id=number, request=CallRequest(), stream=stream, credit=credit if stream else 0)
    call.request.MergeFromString(body)
    if nanos is not None:
        call.timeout.FromNanoseconds(nanos)
    timeout = None if nanos is None else nanos / 1e9
    parts: list[Any] = [body[:1], memoryview(body[1:])]
    written = frames.call(number, parts, timeout, stream=stream, credit=credit)
    assert b"".join(written) == SessionRequest(calls=[call]).SerializeToString(deterministic=True)
    assert parts[1] in written


@quick
@given(IDS, UINT32, IDS, DATA, st.lists(IDS), UINT32)
def test_the_rest_is_written_as_by_the_generated_class(
    number: int, tensor: int, offset: int, data: memoryview, cancels: list[int], items: int
) -> None:
    chunk = Chunk(id=number, tensor=tensor, offset=offset, data=bytes(data))
    hello = SessionHello(client_id="c", user_agent="u")
    welcome = SessionWelcome(worker="w", incarnation=1, chunk_size=2, max_message_size=3)
    expected: list[tuple[Any, Any]] = [
        (frames.request_chunk(number, tensor, offset, data), SessionRequest(chunks=[chunk])),
        (frames.response_chunk(number, tensor, offset, data), SessionResponse(chunks=[chunk])),
        (frames.cancels(cancels), SessionRequest(cancels=cancels)),
        (frames.credit(number, items), SessionRequest(credits=[StreamCredit(id=number, items=items)])),
        (frames.hello(hello), SessionRequest(hello=hello)),
        (frames.welcome(welcome), SessionResponse(welcome=welcome)),
    ]
    for parts, message in expected:
        assert b"".join(parts) == message.SerializeToString()
    if data:
        assert any(part is data for part in frames.request_chunk(number, tensor, offset, data))


def test_frames_of_several_calls_are_one_message() -> None:
    request = calls.encode_request(calls.Target("f"), (), {}).parts
    data = b"".join(
        [
            *frames.hello(SessionHello(client_id="c")),
            *frames.call(1, request, None),
            *frames.request_chunk(1, 0, 0, memoryview(b"abc")),
            *frames.call(2, request, 1.5, stream=True, credit=3),
            *frames.cancels([1, 300]),
            *frames.credit(2, 4),
        ]
    )
    hello, first, chunk, second, cancel, other_cancel, credit = frames.read_request(data)
    assert hello == SessionHello(client_id="c")
    assert (first.id, first.timeout, first.stream, first.credit) == (1, None, False, 16)  # type: ignore[union-attr]
    assert (second.id, second.timeout, second.stream, second.credit) == (2, 1.5, True, 3)  # type: ignore[union-attr]
    assert calls.decode_request(data, *second.request).target == calls.Target("f")  # type: ignore[union-attr]
    assert chunk == frames.Chunk(1, 0, 0, memoryview(b"abc"))
    assert chunk.data.obj is data  # type: ignore[union-attr]
    assert [cancel, other_cancel, credit] == [frames.Cancel(1), frames.Cancel(300), frames.Credit(2, 4)]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, Duration()),
        (-0.0, Duration()),
        (1.5, Duration(seconds=1, nanos=500_000_000)),
        (0.1, Duration(nanos=100_000_000)),
        (1e-9, Duration(nanos=1)),
        (1e-10, Duration()),
        (0.9999999999, Duration(seconds=1)),
        (86400.25, Duration(seconds=86400, nanos=250_000_000)),
        (-5.0, Duration()),
        (math.nan, Duration()),
        (math.inf, Duration(seconds=315_576_000_000)),
        (1e300, Duration(seconds=315_576_000_000)),
    ],
)
def test_durations(seconds: float, expected: Duration) -> None:
    assert frames.duration(seconds) == expected.SerializeToString()
    (call,) = frames.read_request(b"".join(frames.call(1, [], seconds)))
    assert call.timeout == expected.seconds + expected.nanos / 1e9  # type: ignore[union-attr]


def test_a_negative_timeout_has_passed() -> None:
    message = SessionRequest(calls=[SessionCall(id=1, timeout=Duration(seconds=-1, nanos=-500_000_000))])
    (call,) = frames.read_request(message.SerializeToString())
    assert call.timeout == -1.5  # type: ignore[union-attr]


def test_a_call_without_a_request_has_no_target() -> None:
    data = b"".join(frames.cancels([5])) + SessionRequest(calls=[SessionCall(id=1)]).SerializeToString()
    _, call = frames.read_request(data)
    with pytest.raises(BadPayload, match="no target"):
        calls.decode_request(data, *call.request)  # type: ignore[union-attr]


# --- SessionResponse -------------------------------------------------------------------------------------------------


@quick
@given(st.data())
def test_a_response_is_read_however_it_is_written(data: st.DataObject) -> None:
    message = data.draw(messages(SessionResponse, depth=1, without=WITHOUT))
    written = data.draw(rewritten(message.DESCRIPTOR, message.SerializeToString()))
    found = list(frames.read_response(written))
    assert of(SessionWelcome, found) == [message.welcome] * message.HasField("welcome")
    assert of(frames.Chunk, found) == chunks_of(message)
    replies = of(frames.Reply, found)
    assert [reply.id for reply in replies] == [reply.id for reply in message.replies]
    for found_reply, reply in zip(replies, message.replies, strict=True):
        event = reply.WhichOneof("event")
        if event is None:
            assert found_reply.event == 0
            continue
        assert found_reply.event == SessionReply.DESCRIPTOR.fields_by_name[event].number
        body = getattr(reply, event)
        again = type(body).FromString(written[slice(*found_reply.body)])
        again.DiscardUnknownFields()
        assert again.SerializeToString(deterministic=True) == body.SerializeToString(deterministic=True)


@quick
@given(messages(SessionReply, depth=1, without=WITHOUT))
def test_a_reply_is_written_as_by_the_generated_class(message: SessionReply) -> None:
    event = message.WhichOneof("event")
    if event is None:
        return
    body = getattr(message, event).SerializeToString(deterministic=True)
    parts = {
        "result": lambda: frames.result(message.id, [body]),
        "item": lambda: frames.item(message.id, [body[:1], body[1:]]),
        "end": lambda: frames.end(message.id),
        "failure": lambda: frames.failure(message.id, body),
    }[event]()
    assert b"".join(parts) == SessionResponse(replies=[message]).SerializeToString(deterministic=True)


def test_frames_of_several_replies_are_one_message() -> None:
    data = b"".join(
        [
            *frames.result(1, calls.wrap_result(calls.encode_payload([1, 2])).parts),
            *frames.item(2, calls.encode_payload("x").parts),
            *frames.response_chunk(2, 3, 4, memoryview(b"abc")),
            *frames.end(2),
            *frames.failure(0, b"body"),
        ]
    )
    result, item, chunk, end, failure = frames.read_response(data)
    assert isinstance(result, frames.Reply)
    assert isinstance(item, frames.Reply)
    outcome = calls.decode_result(data, *result.body)
    assert isinstance(outcome, calls.Payload)
    assert outcome.object() == [1, 2]
    assert calls.decode_payload(data, *item.body).object() == "x"
    assert chunk == frames.Chunk(2, 3, 4, memoryview(b"abc"))
    assert (end.id, end.event) == (2, frames.END)  # type: ignore[union-attr]
    assert (failure.id, failure.event) == (0, frames.FAILURE)  # type: ignore[union-attr]
    assert data[slice(*failure.body)] == b"body"  # type: ignore[union-attr]


def test_an_event_that_is_not_known_is_none() -> None:
    data = field(2, LENGTH, field(1, VARINT, b"\5") + field(9, LENGTH, b"new") + field(3, VARINT, b"\1"))
    assert list(frames.read_response(data)) == [frames.Reply(5, 0, (2, 2))]
    # It does not hide one that is.
    data = field(2, LENGTH, field(5, LENGTH, b"failure") + field(9, LENGTH, b"new"))
    assert list(frames.read_response(data)) == [frames.Reply(0, frames.FAILURE, (4, 11))]


# --- refused ---------------------------------------------------------------------------------------------------------


def test_a_call_without_an_id_is_refused() -> None:
    with pytest.raises(BadPayload, match="a call has no id: number the calls of a session from 1"):
        list(frames.read_request(b"".join(frames.call(0, [], None))))


@pytest.mark.parametrize("garbage", [b"\x0a\x05a", b"\x0a\x01\xff", b"\xff", b"\x0c", b"\x0b"])
def test_a_garbled_greeting_is_refused(garbage: bytes) -> None:
    with pytest.raises(BadPayload, match="SessionHello is malformed"):
        list(frames.read_request(field(1, LENGTH, garbage)))
    with pytest.raises(BadPayload, match="SessionWelcome is malformed"):
        list(frames.read_response(field(1, LENGTH, garbage)))


def test_cancels_end_where_their_field_ends() -> None:
    data = field(4, LENGTH, b"\x01\x80") + field(4, VARINT, b"\1")
    reader = frames.read_request(data)
    assert next(reader) == frames.Cancel(1)
    with pytest.raises(BadPayload, match="truncated"):
        next(reader)


def test_what_precedes_garbage_is_read() -> None:
    data = b"".join(frames.cancels([1])) + b"\xff"
    reader: Iterator[Any] = frames.read_request(data)
    assert next(reader) == frames.Cancel(1)
    with pytest.raises(BadPayload):
        next(reader)


REQUEST = b"".join(
    [
        *frames.hello(SessionHello(client_id="client", user_agent="agent")),
        *frames.call(300, calls.encode_request(calls.Target("f"), (1, "x"), {}).parts, 2.5, stream=True, credit=3),
        *frames.request_chunk(300, 1, 2, memoryview(b"abc")),
        *frames.cancels([1, 300]),
        *frames.credit(300, 5),
    ]
)
RESPONSE = b"".join(
    [
        *frames.welcome(SessionWelcome(worker="w", incarnation=1, chunk_size=2, max_message_size=3)),
        *frames.result(300, calls.wrap_result(calls.encode_payload([1, {"k": 2.5}])).parts),
        *frames.item(2, calls.encode_payload(("x", None)).parts),
        *frames.end(2),
        *frames.failure(2, b""),
        *frames.response_chunk(300, 1, 2, memoryview(b"abc")),
    ]
)


def read_all(data: bytes) -> None:
    try:
        for frame in frames.read_request(data):
            if isinstance(frame, frames.Call):
                request = calls.decode_request(data, *frame.request)
                if not request.pickled:
                    request.arguments()
    except BadPayload:
        pass
    try:
        for reply in frames.read_response(data):
            if isinstance(reply, frames.Reply):
                read = calls.decode_result if reply.event == frames.RESULT else calls.decode_payload
                payload: Any = read(data, *reply.body)
                if isinstance(payload, calls.Payload):
                    payload.object()
    except BadPayload:
        pass


@pytest.mark.parametrize("data", [REQUEST, RESPONSE], ids=["request", "response"])
def test_one_that_ends_too_early_is_no_surprise(data: bytes) -> None:
    for end in range(len(data)):
        read_all(data[:end])


@settings(deadline=None, max_examples=400)
@given(st.sampled_from([REQUEST, RESPONSE]).flatmap(damaged) | st.binary(max_size=60))
def test_of_garbage_come_frames_or_a_bad_payload(data: bytes) -> None:
    read_all(data)


# --- where it differs from the generated classes ---------------------------------------------------------------------


def test_of_repeated_fields_the_last_one_counts_where_protobuf_merges_messages() -> None:
    one = field(3, LENGTH, Duration(seconds=1).SerializeToString())
    two = field(3, LENGTH, Duration(nanos=500_000_000).SerializeToString())
    data = field(2, LENGTH, field(1, VARINT, b"\1") + one + two)
    merged = SessionRequest.FromString(data).calls[0].timeout
    assert (merged.seconds, merged.nanos) == (1, 500_000_000)
    (call,) = frames.read_request(data)
    assert call.timeout == 0.5  # type: ignore[union-attr]


def test_of_numbers_named_twice_the_last_one_counts() -> None:
    twice = Duration(seconds=1).SerializeToString() + Duration(seconds=2).SerializeToString()
    data = field(2, LENGTH, field(1, VARINT, b"\1") + field(1, VARINT, b"\2") + field(3, LENGTH, twice))
    (call,) = frames.read_request(data)
    assert (call.id, call.timeout) == (2, 2.0)  # type: ignore[union-attr]
    message = SessionRequest.FromString(data).calls[0]
    assert (message.id, message.timeout.seconds) == (2, 2)


def test_hellos_are_told_one_by_one_where_protobuf_merges_them() -> None:
    data = b"".join(frames.hello(SessionHello(client_id=name))[0] for name in "ab")
    assert [hello.client_id for hello in frames.read_request(data)] == ["a", "b"]  # type: ignore[union-attr]


def test_numbers_beyond_32_bits_are_kept_where_protobuf_cuts_them() -> None:
    body = field(1, VARINT, b"\1") + field(2, VARINT, varint(2**32 + 1))
    (chunk,) = frames.read_request(field(3, LENGTH, body))
    assert chunk == frames.Chunk(1, 2**32 + 1, 0, memoryview(b""))
    assert Chunk.FromString(body).tensor == 1
