"""What a session's messages hold ↔ SessionRequest and SessionResponse. See handler_service.proto.

The writers here return parts, so that frames of several calls can be joined into one message. The readers yield what a
message holds, one by one, in order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from google.protobuf.message import DecodeError

from tensorcall.v1 import handler_service_pb2
from tensorcall.wire.errors import BadPayload
from tensorcall.wire.protowire import VARINT, Parts, fields, key, nested, read_packed, size, tag, to_int64, varint
from tensorcall.wire.protowire import field as write_field

DEFAULT_CREDIT = 16

# SessionRequest
_HELLO, _CALL, _REQUEST_CHUNK, _CANCEL, _CREDIT = tag(1), tag(2), tag(3), tag(4), tag(5)
# SessionCall
_ID, _CALL_REQUEST, _TIMEOUT, _STREAM, _CALL_CREDIT = tag(1, VARINT), tag(2), tag(3), tag(4, VARINT), tag(5, VARINT)
# Duration
_SECONDS, _NANOS = tag(1, VARINT), tag(2, VARINT)
# Chunk
_CHUNK_TENSOR, _CHUNK_OFFSET, _CHUNK_DATA = tag(2, VARINT), tag(3, VARINT), tag(4)
# StreamCredit
_ITEMS = tag(2, VARINT)
# SessionResponse
_WELCOME, _REPLY, _RESPONSE_CHUNK = tag(1), tag(2), tag(3)
# SessionReply
RESULT, ITEM, END, FAILURE = 2, 3, 4, 5
_RESULT, _ITEM, _END, _FAILURE = tag(RESULT), tag(ITEM), tag(END), tag(FAILURE)

# The same for reading. Fields 1 and 2 of most of these messages are alike.
_K_HELLO, _K_CALL, _K_REQUEST_CHUNK, _K_CREDIT = key(1), key(2), key(3), key(5)
# Cancels are packed, or not.
_K_CANCELS, _K_CANCEL = key(4), key(4, VARINT)
_K_ID, _K_CALL_REQUEST, _K_TIMEOUT = key(1, VARINT), key(2), key(3)
_K_STREAM, _K_CALL_CREDIT = key(4, VARINT), key(5, VARINT)
_K_SECONDS, _K_NANOS, _K_CHUNK_DATA, _K_ITEMS = key(1, VARINT), key(2, VARINT), key(4), key(2, VARINT)
_K_WELCOME, _K_REPLY, _K_RESPONSE_CHUNK = key(1), key(2), key(3)
_EVENTS = {key(event): event for event in (RESULT, ITEM, END, FAILURE)}

# What google.protobuf.Duration allows: some 10,000 years.
_MAX_SECONDS = 315_576_000_000

_Message = TypeVar("_Message", handler_service_pb2.SessionHello, handler_service_pb2.SessionWelcome)


@dataclass(slots=True)
class Call:
    """A SessionCall as it arrived; `request` is where its CallRequest lies in the message."""

    id: int
    request: tuple[int, int]
    timeout: float | None
    stream: bool
    credit: int


@dataclass(slots=True)
class Chunk:
    """A part of a tensor."""

    id: int
    tensor: int
    offset: int
    data: memoryview


@dataclass(slots=True)
class Cancel:
    """The caller no longer wants a result."""

    id: int


@dataclass(slots=True)
class Credit:
    """A stream may go on."""

    id: int
    items: int


@dataclass(slots=True)
class Reply:
    """A SessionReply as it arrived; `body` is where the event lies in the message."""

    id: int
    # RESULT, ITEM, END or FAILURE; 0 if it is none of these.
    event: int
    body: tuple[int, int]


RequestFrame: TypeAlias = "handler_service_pb2.SessionHello | Call | Chunk | Cancel | Credit"
ResponseFrame: TypeAlias = "handler_service_pb2.SessionWelcome | Reply | Chunk"


def _id(number: int) -> bytes:
    return _ID + varint(number) if number else b""


@functools.lru_cache  # most calls of a process have one of a few timeouts
def duration(seconds: float) -> bytes:
    """Writes a google.protobuf.Duration. What is negative becomes zero, what is infinite the longest that there is."""
    whole, nanos = divmod(round(min(max(0.0, seconds), _MAX_SECONDS) * 1e9), 1_000_000_000)
    return (_SECONDS + varint(whole) if whole else b"") + (_NANOS + varint(nanos) if nanos else b"")


def _read_duration(buffer: bytes, start: int, end: int) -> float:
    # Negative ones are deadlines that have already passed.
    seconds = nanos = 0
    for k, a, _ in fields(buffer, start, end):
        if k == _K_SECONDS:
            seconds = to_int64(a)
        elif k == _K_NANOS:
            nanos = to_int64(a)
    return seconds + nanos / 1e9


# --- SessionRequest --------------------------------------------------------------------------------------------------


def hello(message: handler_service_pb2.SessionHello) -> Parts:
    """Writes the frame that opens a session."""
    return [write_field(_HELLO, message.SerializeToString())]


def call(number: int, request: Parts, timeout: float | None, *, stream: bool = False, credit: int = 0) -> Parts:
    """Writes a call.

    Args:
        number: its id on the session.
        request: the CallRequest.
        timeout: seconds from now; None: for ever.
        stream: True for the items of a generator function.
        credit: how many items may come before further credit; 0: DEFAULT_CREDIT.
    """
    length = size(request)
    head = _id(number) + _CALL_REQUEST + varint(length)
    tail = b"" if timeout is None else write_field(_TIMEOUT, duration(timeout))
    if stream:
        tail += _STREAM + b"\1"
        if credit:
            tail += _CALL_CREDIT + varint(credit)
    head = _CALL + varint(len(head) + length + len(tail)) + head
    return [head, *request, tail] if tail else [head, *request]


def _chunk(prefix: bytes, number: int, tensor: int, offset: int, data: memoryview) -> Parts:
    head = _id(number)
    if tensor:
        head += _CHUNK_TENSOR + varint(tensor)
    if offset:
        head += _CHUNK_OFFSET + varint(offset)
    return nested(prefix, [head + _CHUNK_DATA + varint(len(data)), data] if data else [head])


def request_chunk(number: int, tensor: int, offset: int, data: memoryview) -> Parts:
    """Writes a part of a tensor of a call's arguments."""
    return _chunk(_REQUEST_CHUNK, number, tensor, offset, data)


def cancels(numbers: list[int]) -> Parts:
    """Writes that the results of these calls are no longer wanted."""
    return [write_field(_CANCEL, b"".join(map(varint, numbers)))] if numbers else []


def credit(number: int, items: int) -> Parts:
    """Writes that a stream may go on."""
    return [write_field(_CREDIT, _id(number) + (_ITEMS + varint(items) if items else b""))]


def read_request(buffer: bytes) -> Iterator[RequestFrame]:
    """Yields what a SessionRequest holds.

    Raises:
        BadPayload: malformed.
    """
    view: memoryview | None = None
    for k, a, b in fields(buffer, 0, len(buffer)):
        if k == _K_CALL:
            yield _read_call(buffer, a, b)
        elif k == _K_REQUEST_CHUNK:
            view = view or memoryview(buffer)
            yield _read_chunk(buffer, view, a, b)
        elif k == _K_CANCELS:
            yield from map(Cancel, read_packed(buffer, a, b))
        elif k == _K_CANCEL:
            yield Cancel(a)
        elif k == _K_CREDIT:
            number = items = 0
            for inner, value, _ in fields(buffer, a, b):
                if inner == _K_ID:
                    number = value
                elif inner == _K_ITEMS:
                    items = value
            yield Credit(number, items)
        elif k == _K_HELLO:
            yield _parse(handler_service_pb2.SessionHello(), buffer[a:b])


def _parse(message: _Message, data: bytes) -> _Message:
    """Fills a generated message."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise BadPayload(f"the {type(message).__name__} is malformed: {error}") from None
    return message


def _read_call(buffer: bytes, start: int, end: int) -> Call:
    number, request, timeout, stream, credit_ = 0, None, None, False, 0
    for k, a, b in fields(buffer, start, end):
        if k == _K_ID:
            number = a
        elif k == _K_CALL_REQUEST:
            request = (a, b)
        elif k == _K_TIMEOUT:
            timeout = _read_duration(buffer, a, b)
        elif k == _K_STREAM:
            stream = a != 0
        elif k == _K_CALL_CREDIT:
            credit_ = a
    if number == 0:
        raise BadPayload("a call has no id: number the calls of a session from 1")
    # An empty CallRequest is refused where it is read; its absence comes to the same.
    return Call(number, request or (0, 0), timeout, stream, credit_ or DEFAULT_CREDIT)


def _read_chunk(buffer: bytes, view: memoryview, start: int, end: int) -> Chunk:
    numbers = [0, 0, 0, 0]
    data = view[0:0]
    for k, a, b in fields(buffer, start, end):
        if k == _K_CHUNK_DATA:
            data = view[a:b]
        elif k & 7 == VARINT and k >> 3 <= 3:
            numbers[k >> 3] = a
    return Chunk(numbers[1], numbers[2], numbers[3], data)


# --- SessionResponse -------------------------------------------------------------------------------------------------


def welcome(message: handler_service_pb2.SessionWelcome) -> Parts:
    """Writes the frame that answers a hello."""
    return [write_field(_WELCOME, message.SerializeToString())]


def _reply(number: int, event: bytes, body: Parts) -> Parts:
    length = size(body)
    head = _id(number) + event + varint(length)
    return [_REPLY + varint(len(head) + length) + head, *body]


def result(number: int, response: Parts) -> Parts:
    """Writes that a function returned this CallResponse."""
    return _reply(number, _RESULT, response)


def item(number: int, payload: Parts) -> Parts:
    """Writes that a generator gave this Payload."""
    return _reply(number, _ITEM, payload)


def end(number: int) -> Parts:
    """Writes that a generator ended."""
    return _reply(number, _END, [])


def failure(number: int, body: bytes) -> Parts:
    """Writes that a call failed, with a serialised Failure; number 0: that the session failed."""
    return _reply(number, _FAILURE, [body])


def response_chunk(number: int, tensor: int, offset: int, data: memoryview) -> Parts:
    """Writes a part of a tensor of a call's reply."""
    return _chunk(_RESPONSE_CHUNK, number, tensor, offset, data)


def read_response(buffer: bytes) -> Iterator[ResponseFrame]:
    """Yields what a SessionResponse holds.

    Raises:
        BadPayload: malformed.
    """
    view: memoryview | None = None
    for k, a, b in fields(buffer, 0, len(buffer)):
        if k == _K_REPLY:
            number = event = 0
            body = (a, a)
            for inner, c, d in fields(buffer, a, b):
                if inner == _K_ID:
                    number = c
                elif inner in _EVENTS:
                    event, body = _EVENTS[inner], (c, d)
            yield Reply(number, event, body)
        elif k == _K_RESPONSE_CHUNK:
            view = view or memoryview(buffer)
            yield _read_chunk(buffer, view, a, b)
        elif k == _K_WELCOME:
            yield _parse(handler_service_pb2.SessionWelcome(), buffer[a:b])
