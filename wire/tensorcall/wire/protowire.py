"""The protobuf wire format, as much of it as tensorcall writes and reads by hand.

The generated classes copy every bytes field on the way in and out. What carries tensors is therefore written as a list
of parts (`bytes` and `memoryview`s over the tensors' own memory) that one `b"".join` puts together, and read by
positions within the received `bytes`. The .proto files stay the truth: property tests hold this module and those above
it to what the generated classes write and read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from tensorcall.wire.errors import BadPayload, Unencodable

# What `b"".join` takes: one message, in pieces.
Parts: TypeAlias = list["bytes | memoryview"]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_ONE_BYTE = [bytes([n]) for n in range(128)]
_MAX_U64 = (1 << 64) - 1
_DOUBLE = struct.Struct("<d")
_FIXED64 = struct.Struct("<Q")
pack_double = _DOUBLE.pack
pack_fixed64 = _FIXED64.pack


def varint(n: int) -> bytes:
    """Writes an unsigned integer below 2**64. Whether it is one is up to the caller."""
    if n < 128:
        return _ONE_BYTE[n]
    if n < 16384:
        return bytes((n & 127 | 128, n >> 7))
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def signed_varint(n: int) -> bytes:
    """Writes an int64 (not a sint64): negative numbers take ten bytes."""
    return varint(n & _MAX_U64)


def zigzag(n: int) -> bytes:
    """Writes a sint64."""
    return varint(n << 1 if n >= 0 else (-n << 1) - 1)


def tag(number: int, wire_type: int = LENGTH) -> bytes:
    """Writes the tag of a field."""
    return varint(number << 3 | wire_type)


def key(number: int, wire_type: int = LENGTH) -> int:
    """Returns what `fields` yields for that field."""
    return number << 3 | wire_type


def field(prefix: bytes, body: bytes) -> bytes:
    """Writes a length-delimited field, given its tag."""
    length = len(body)
    return prefix + (_ONE_BYTE[length] if length < 128 else varint(length)) + body


def utf8(text: str) -> bytes:
    """Writes the body of a string.

    Raises:
        Unencodable: it holds half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Unencodable(
            f"the str has a lone surrogate at {error.start}, which UTF-8 can't hold: send bytes instead"
        ) from None


def size(parts: Iterable[bytes | memoryview]) -> int:
    """Returns the number of bytes in all parts."""
    return sum(map(len, parts))


def nested(prefix: bytes, parts: Parts) -> Parts:
    """Writes a length-delimited field whose body comes in parts, given its tag."""
    return [prefix + varint(size(parts)), *parts]


def read_varint(buffer: bytes, position: int) -> tuple[int, int]:
    """Reads an unsigned integer below 2**64 and returns it with the position behind it."""
    result = shift = 0
    try:
        while True:
            byte = buffer[position]
            position += 1
            result |= (byte & 127) << shift
            if byte < 128:
                return result & _MAX_U64, position
            shift += 7
            if shift > 63:
                raise BadPayload(f"a number that ends by byte {position} has more than ten bytes")
    except IndexError:
        raise BadPayload(f"the message ends at byte {len(buffer)} in the middle of a number") from None


def unzigzag(n: int) -> int:
    """Turns the varint of a sint64 into the number."""
    return n >> 1 ^ -(n & 1)


def to_int64(n: int) -> int:
    """Turns the varint of an int64 into the number."""
    return n - (1 << 64) if n >> 63 else n


def read_packed(buffer: bytes, position: int, end: int) -> Iterator[int]:
    """Yields the varints of a packed repeated field between two positions."""
    while position < end:
        number, position = read_varint(buffer, position)
        if position > end:
            raise BadPayload(f"the message is truncated in the number before byte {position}")
        yield number


def read_double(buffer: bytes, position: int) -> float:
    """Reads the body of a double."""
    value: float = _DOUBLE.unpack_from(buffer, position)[0]
    return value


def read_fixed64(buffer: bytes, position: int) -> int:
    """Reads the body of a fixed64."""
    value: int = _FIXED64.unpack_from(buffer, position)[0]
    return value


def read_string(buffer: bytes, start: int, end: int) -> str:
    """Reads the body of a string."""
    try:
        return buffer[start:end].decode()
    except UnicodeDecodeError as error:
        raise BadPayload(f"the string at byte {start} is not UTF-8: {error.reason}") from None


def _impossible(field_key: int, position: int) -> BadPayload:
    return BadPayload(f"byte {position - 1} ends the tag of a field with the impossible number {field_key >> 3}")


def fields(buffer: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the fields of the message between two positions, as (key, a, b).

    The key is the field number << 3 | wire type. For a varint, a is its value; for everything else the body lies
    between the positions a and b.

    Raises:
        BadPayload: the message is truncated, or has what no protobuf runtime writes.
    """
    while position < end:
        field_key = buffer[position]
        position += 1
        if field_key > 127:
            field_key, position = read_varint(buffer, position - 1)
            if field_key < 8 or field_key >> 32:
                raise _impossible(field_key, position)
        elif field_key < 8:
            raise _impossible(field_key, position)
        wire_type = field_key & 7
        if wire_type == LENGTH:
            if position < end and (length := buffer[position]) < 128:
                start = position + 1
            else:
                length, start = read_varint(buffer, position)
            position = start + length
            if position > end:
                raise BadPayload(
                    f"the message is truncated: the field at byte {start} has {length} bytes, "
                    f"{max(end - start, 0)} are left"
                )
            yield field_key, start, position
        elif wire_type == VARINT:
            if position < end and (number := buffer[position]) < 128:
                position += 1
            else:
                number, position = read_varint(buffer, position)
                if position > end:
                    raise BadPayload(f"the message is truncated in the number before byte {position}")
            yield field_key, number, position
        elif wire_type in (FIXED64, FIXED32):
            start = position
            position += 8 if wire_type == FIXED64 else 4
            if position > end:
                raise BadPayload(f"the message is truncated in the number at byte {start}")
            yield field_key, start, position
        else:
            raise BadPayload(f"byte {position - 1} has the wire type {wire_type}, which tensorcall.v1 does not use")
