"""Strategies that make protobuf messages of any type, and their bytes as other runtimes or attackers write them.

Knows the wire format a second time, and plainly, so that nothing of the code under test is used to test it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)

_EDGES = [0, 1, 127, 128, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1]


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Integers of a range, with its ends and the ends of the varints' lengths more often."""
    edges = [n for edge in _EDGES for n in (edge, -edge, -edge - 1) if low <= n <= high]
    return st.sampled_from(edges) | st.integers(low, high)


_T = FieldDescriptor
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    _T.TYPE_DOUBLE: st.floats(),
    _T.TYPE_INT32: integers(-(2**31), 2**31 - 1),
    _T.TYPE_INT64: integers(-(2**63), 2**63 - 1),
    _T.TYPE_UINT32: integers(0, 2**32 - 1),
    _T.TYPE_UINT64: integers(0, 2**64 - 1),
    _T.TYPE_SINT64: integers(-(2**63), 2**63 - 1),
    _T.TYPE_FIXED64: integers(0, 2**64 - 1),
    _T.TYPE_BOOL: st.booleans(),
    _T.TYPE_STRING: st.text(max_size=10) | st.text("ab", min_size=120, max_size=140),
    _T.TYPE_BYTES: st.binary(max_size=10) | st.binary(min_size=120, max_size=140),
}

WIRE_TYPES = {_T.TYPE_DOUBLE: FIXED64, _T.TYPE_FIXED64: FIXED64} | dict.fromkeys(
    [_T.TYPE_STRING, _T.TYPE_BYTES, _T.TYPE_MESSAGE], LENGTH
)


@st.composite
def messages(
    draw: st.DrawFn,
    cls: Callable[[], Any],
    depth: int = 4,
    without: frozenset[str] | set[str] = frozenset(),
    depth_of: str = "tensorcall.v1.Value",
) -> Any:
    """Messages of any content: each field set or not, at most one of each oneof.

    Args:
        draw: hypothesis'.
        cls: the generated class.
        depth: how many messages of the recursive type may contain each other.
        without: full names of fields that stay unset.
        depth_of: the recursive type.
    """
    message = cls()
    _fill(draw, message, depth, frozenset(without), depth_of)
    return message


def _fill(draw: st.DrawFn, message: Message, depth: int, without: frozenset[str], depth_of: str) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    if descriptor.full_name == depth_of:
        depth -= 1
    chosen: dict[str, FieldDescriptor | None] = {}
    for oneof in descriptor.oneofs:
        allowed = [f for f in oneof.fields if f.full_name not in without and (depth > 0 or not f.message_type)]
        chosen[oneof.full_name] = draw(st.sampled_from([*allowed, None]))
    for field in descriptor.fields:
        if field.full_name in without:
            continue
        oneof = field.containing_oneof
        if oneof is not None:
            if chosen[oneof.full_name] is not field:
                continue
        elif field.is_repeated:
            if depth <= 0 and field.message_type:
                continue
            for _ in range(draw(st.sampled_from([0, 0, 1, 2, 3]))):
                _add(draw, message, field, depth, without, depth_of)
            continue
        elif not draw(st.booleans()):
            continue
        if field.message_type is not None:
            nested = getattr(message, field.name)
            nested.SetInParent()
            _fill(draw, nested, depth, without, depth_of)
        else:
            setattr(message, field.name, draw(_scalar(field)))


def _add(
    draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int, without: frozenset[str], depth_of: str
) -> None:
    values = getattr(message, field.name)
    if field.message_type is None:
        values.append(draw(_scalar(field)))
    elif field.message_type.GetOptions().map_entry:
        name = draw(_SCALARS[_T.TYPE_STRING])
        target = field.message_type.fields_by_name["value"]
        if target.message_type is None:
            values[name] = draw(_scalar(target))
        else:
            _fill(draw, values[name], depth, without, depth_of)
    else:
        _fill(draw, values.add(), depth, without, depth_of)


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return _SCALARS[field.type]


# --- the same message, written otherwise -----------------------------------------------------------------------------


def varint(n: int, extra: int = 0) -> bytes:
    """An unsigned integer, in more bytes than it needs."""
    groups = []
    while n or not groups:
        groups.append(n & 127)
        n >>= 7
    groups += [0] * extra
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def field(number: int, wire_type: int, body: bytes, extra: int = 0) -> bytes:
    """A field: of a varint or fixed number its bytes, of anything else the body behind its length."""
    length = varint(len(body), extra) if wire_type == LENGTH else b""
    return varint(number << 3 | wire_type, extra) + length + body


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The inverse of `varint`, for what is known to be well-formed."""
    n = shift = 0
    while True:
        byte = data[position]
        n |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return n, position


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    """The fields of a well-formed message, as (number, wire type, body)."""
    result = []
    position = 0
    while position < len(data):
        key, position = read_varint(data, position)
        start = position
        wire_type = key & 7
        if wire_type == VARINT:
            _, position = read_varint(data, position)
        elif wire_type == LENGTH:
            length, start = read_varint(data, position)
            position = start + length
        else:
            position += 8 if wire_type == FIXED64 else 4
        result.append((key >> 3, wire_type, data[start:position]))
    return result


_UNKNOWN = st.one_of(
    st.tuples(st.just(VARINT), st.integers(0, 2**64 - 1).map(varint)),
    st.tuples(st.just(FIXED64), st.binary(min_size=8, max_size=8)),
    st.tuples(st.just(FIXED32), st.binary(min_size=4, max_size=4)),
    st.tuples(st.just(LENGTH), st.binary(max_size=20)),
)


@st.composite
def rewritten(draw: st.DrawFn, descriptor: Descriptor, data: bytes) -> bytes:
    """The bytes of a message as another runtime might write them, meaning the same.

    Fields come in another order, those of one number keeping theirs; numbers take more bytes than they need; unknown
    fields stand in between; packed numbers come unpacked or in several packs, and the other way round.
    """
    pieces: list[list[bytes]] = []
    by_number: dict[int, list[bytes]] = {}
    for number, wire_type, body in split(data):
        known = descriptor.fields_by_number[number]
        if known.message_type is not None:
            body = draw(rewritten(known.message_type, body))
        elif known.is_repeated and wire_type == LENGTH and known.type not in (_T.TYPE_STRING, _T.TYPE_BYTES):
            for wire_type, body in draw(_repacked(body)):  # noqa: B020
                by_number.setdefault(number, []).append(field(number, wire_type, body))
            continue
        elif wire_type == VARINT:
            value, _ = read_varint(body, 0)
            body = varint(value, draw(st.integers(0, 10 - len(body))))
        by_number.setdefault(number, []).append(field(number, wire_type, body, draw(st.integers(0, 2))))
    pieces = list(by_number.values())
    # The generated classes drop an entry of a map that has unknown fields; nobody writes such.
    unknown = [] if descriptor.GetOptions().map_entry else draw(st.lists(_UNKNOWN, max_size=2))
    for wire_type, body in unknown:
        pieces.append([field(draw(st.sampled_from([100, 1000, 2**29 - 1])), wire_type, body)])
    # Which piece comes next, as often as it has fields.
    order = draw(st.permutations([index for index, piece in enumerate(pieces) for _ in piece]))
    return b"".join(pieces[index].pop(0) for index in order)


@st.composite
def _repacked(draw: st.DrawFn, body: bytes) -> list[tuple[int, bytes]]:
    numbers = []
    position = 0
    while position < len(body):
        number, position = read_varint(body, position)
        numbers.append(varint(number))
    if draw(st.booleans()):
        return [(VARINT, number) for number in numbers]
    cut = draw(st.integers(0, len(numbers)))
    return [(LENGTH, b"".join(numbers[:cut])), (LENGTH, b"".join(numbers[cut:]))]


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that were a message before something happened to them."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, len(result)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "delete", "repeat", "grow"]))
        if kind == "set" and position < len(result):
            result[position] = draw(st.integers(0, 255))
        elif kind == "grow" and position < len(result):
            result[position] = (result[position] + draw(st.integers(1, 8))) % 256
        elif kind == "cut":
            del result[position:]
        elif kind == "insert":
            result[position:position] = draw(st.binary(min_size=1, max_size=12))
        elif kind == "delete":
            del result[position : position + draw(st.integers(1, 12))]
        elif kind == "repeat":
            result[position:position] = result[position : position + draw(st.integers(1, 30))]
    return bytes(result)
