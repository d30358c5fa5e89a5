"""Value → objects. See value.proto.

What comes from a peer may be anything: nothing but BadPayload, TooLarge among it, is ever raised for it.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from tensorcall.wire import registry, rrefs
from tensorcall.wire.errors import BadPayload, TooLarge
from tensorcall.wire.limits import MAX_BIG_INT_BYTES, MAX_DEPTH, MAX_VALUES
from tensorcall.wire.protowire import FIXED64, LENGTH, VARINT, fields, key, read_double, read_string, unzigzag
from tensorcall.wire.tensors import TensorReader

_K1, _K2, _K_REAL, _K_IMAGINARY = key(1), key(2), key(1, FIXED64), key(2, FIXED64)

# Python's hashes of numbers are no secret. Of this many keys and more, no more than a few may share one: a million
# that do would keep the interpreter busy for hours.
_MANY_KEYS, _MAX_SAME_HASH = 1000, 100


class _Reading:
    """What one run of the decoder carries along."""

    __slots__ = ("buffer", "left", "tensors")

    def __init__(self, buffer: bytes, tensors: TensorReader | None) -> None:
        self.buffer = buffer
        self.tensors = tensors
        self.left = MAX_VALUES


# Takes where the field lies (the number itself, if it is a varint), and how deep.
_Decoder: TypeAlias = Callable[[_Reading, int, int, int], Any]


def decode(buffer: bytes, tensors: TensorReader | None = None, start: int = 0, end: int | None = None) -> Any:
    """Reads an object from the Value message between two positions.

    Args:
        buffer: the message, or what it is part of.
        tensors: the table that the message names tensors of; without one they are refused.
        start: where it begins.
        end: where it ends; None: where the buffer does.

    Raises:
        BadPayload: malformed, or an impossible value: an unknown kind or type, a tensor that is not in the table, a
            list as a key.
        TooLarge: nested too deep, or too many values.
    """
    return _decode(_Reading(buffer, tensors), start, len(buffer) if end is None else end, 0)


def decode_many(buffer: bytes, spans: Iterable[tuple[int, int]], tensors: TensorReader | None) -> list[Any]:
    """Reads the Value messages between pairs of positions; the limits hold for all of them together."""
    state = _Reading(buffer, tensors)
    return [_decode(state, start, end, 0) for start, end in spans]


def read_entry(buffer: bytes, start: int, end: int) -> tuple[str, int, int]:
    """Reads one entry of a map<string, Value> field: its key, and between which positions its Value lies."""
    # As everybody writes a small one: the key, the value, a byte of length before each.
    if end - start >= 4 and buffer[start] == _K1 and (length := buffer[start + 1]) < 128:
        middle = start + 2 + length
        if middle + 2 <= end and buffer[middle] == _K2 and middle + 2 + buffer[middle + 1] == end < middle + 130:
            return read_string(buffer, start + 2, middle), middle + 2, end
    name, value_start, value_end = "", 0, 0
    for k, a, b in fields(buffer, start, end):
        if k == _K1:
            name = read_string(buffer, a, b)
        elif k == _K2:
            value_start, value_end = a, b
    return name, value_start, value_end


def _decode(state: _Reading, start: int, end: int, depth: int) -> Any:
    state.left -= 1
    if state.left < 0:
        raise TooLarge(f"the message holds more than {MAX_VALUES:,} values: send numbers as a tensor")
    buffer = state.buffer
    # Nearly every Value is one field, and has one byte of tag and one of length or number: no need for a generator.
    if end - start >= 2 and (decoder := _BY_FIRST_BYTE[buffer[start]]) is not None:
        wire_type, second = buffer[start] & 7, buffer[start + 1]
        if wire_type == LENGTH:
            if second < 128 and start + 2 + second == end:
                return decoder(state, start + 2, end, depth)
        elif wire_type == VARINT:
            if second < 128 and start + 2 == end:
                return decoder(state, second, end, depth)
        elif start + 9 == end:
            return decoder(state, start + 1, end, depth)
    decoder, a, b = None, 0, 0
    for k, a_, b_ in fields(buffer, start, end):
        known = _DECODERS.get(k)
        if known is not None:
            decoder, a, b = known, a_, b_
    if decoder is None:
        raise BadPayload(
            f'the Value at byte {start} has no kind that this side knows: set one ("null" for None), or update this '
            "side if the other is newer"
        )
    return decoder(state, a, b, depth)


def _descend(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise TooLarge(f"the value nests deeper than {MAX_DEPTH} levels")
    return depth + 1


def _list(state: _Reading, start: int, end: int, depth: int) -> list[Any]:
    depth = _descend(depth)
    return [_decode(state, a, b, depth) for k, a, b in fields(state.buffer, start, end) if k == _K1]


def _map(state: _Reading, start: int, end: int, depth: int, entries: int = _K1) -> dict[str, Any]:
    depth = _descend(depth)
    buffer = state.buffer
    result = {}
    for k, a, b in fields(buffer, start, end):
        if k == entries:
            name, a, b = read_entry(buffer, a, b)
            result[name] = _decode(state, a, b, depth)
    return result


def _pairs(state: _Reading, start: int, end: int, depth: int) -> dict[Any, Any]:
    depth = _descend(depth)
    keys, items = [], []
    for k, a, b in fields(state.buffer, start, end):
        if k == _K1:
            first, second = _two(state, a, b)
            keys.append(_decode(state, *first, depth))
            items.append(_decode(state, *second, depth))
    made: dict[Any, Any] = _hashed(lambda: dict(zip(keys, items, strict=True)), keys, "dict")
    return made


def _set(make: Callable[[list[Any]], Any]) -> _Decoder:
    def decode_set(state: _Reading, start: int, end: int, depth: int) -> Any:
        items = _list(state, start, end, depth)
        return _hashed(lambda: make(items), items, make.__name__)

    return decode_set


def _hashed(make: Callable[[], Any], keys: list[Any], kind: str) -> Any:
    """Makes what hashes its keys, which may be impossible or a trap."""
    try:
        if len(keys) >= _MANY_KEYS and max(Counter(map(hash, keys)).values()) > _MAX_SAME_HASH:
            raise BadPayload(f"more than {_MAX_SAME_HASH} keys of a {kind} have one hash: send a list")
        return make()
    except BadPayload:
        raise
    except Exception as error:
        # TypeError, unless the hash or comparison is that of a registered class.
        raise BadPayload(f"a key of a {kind} can't be hashed ({error!s:.200}): use a tuple, not a list") from None


def _two(state: _Reading, start: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns where the first two fields of a message lie; a field that is missing is empty."""
    first = second = (0, 0)
    for k, a, b in fields(state.buffer, start, end):
        if k == _K1:
            first = (a, b)
        elif k == _K2:
            second = (a, b)
    return first, second


def _string(state: _Reading, start: int, end: int, depth: int) -> str:
    return read_string(state.buffer, start, end)


def _big_int(state: _Reading, start: int, end: int, depth: int) -> int:
    if end - start > MAX_BIG_INT_BYTES:
        raise TooLarge(f"an int of {end - start} bytes is above the limit of {MAX_BIG_INT_BYTES}")
    return int.from_bytes(state.buffer[start:end], "big", signed=True)


def _tensor(state: _Reading, index: int, _: int, depth: int) -> Any:
    if state.tensors is None:
        raise BadPayload(f"tensor {index} is named, but the message has none")
    return state.tensors.get(index)


def _object(state: _Reading, start: int, end: int, depth: int) -> Any:
    (a, b), _ = _two(state, start, end)
    name = read_string(state.buffer, a, b)
    codec = registry.object_codec_named(name)
    if codec is None:
        raise BadPayload(
            f"no type is registered as {name!r:.200} on this side: import the module that registers it, or register "
            "it with tensorcall.wire.register"
        )
    values = _map(state, start, end, depth, entries=_K2)
    return _made(name, lambda: codec.from_fields(values))


def _enum(state: _Reading, start: int, end: int, depth: int) -> enum.Enum:
    (a, b), (c, d) = _two(state, start, end)
    name = read_string(state.buffer, a, b)
    cls = registry.enum_named(name)
    if cls is None:
        raise BadPayload(
            f"no enum is registered as {name!r:.200} on this side: register it with tensorcall.wire.register"
        )
    member = read_string(state.buffer, c, d)
    made: enum.Enum = _made(name, lambda: registry.enum_member(cls, member))
    return made


def _made(name: str, make: Callable[[], Any]) -> Any:
    """Makes an instance of a registered type, whose defaults and checks may raise whatever they like."""
    try:
        return make()
    except BadPayload:
        raise
    except Exception as error:
        raise BadPayload(f"no {name} can be made of these fields: {type(error).__name__}: {error!s:.500}") from error


def _rref(state: _Reading, start: int, end: int, depth: int) -> Any:
    rref = rrefs.decode(state.buffer, start, end)
    return rref if state.tensors is None else state.tensors.open_rref(rref)


def _complex(state: _Reading, start: int, end: int, depth: int) -> complex:
    real = imaginary = 0.0
    for k, a, _ in fields(state.buffer, start, end):
        if k == _K_REAL:
            real = read_double(state.buffer, a)
        elif k == _K_IMAGINARY:
            imaginary = read_double(state.buffer, a)
    return complex(real, imaginary)


_DECODERS: dict[int, _Decoder] = {
    key(1, VARINT): lambda state, a, b, depth: None,
    key(2, VARINT): lambda state, a, b, depth: a != 0,
    key(3, VARINT): lambda state, a, b, depth: unzigzag(a),
    key(4): _big_int,
    key(5, FIXED64): lambda state, a, b, depth: read_double(state.buffer, a),
    key(6): _string,
    key(7): lambda state, a, b, depth: state.buffer[a:b],
    key(8): _list,
    key(9): lambda state, a, b, depth: tuple(_list(state, a, b, depth)),
    key(10): _map,
    key(11): _pairs,
    key(12, VARINT): _tensor,
    key(13): _rref,
    key(14): _object,
    key(15): _enum,
    key(16): _complex,
    key(17): _set(set),
    key(18): _set(frozenset),
    key(19): lambda state, a, b, depth: bytearray(state.buffer[a:b]),
}
# From 128 on, the byte is only the first one of a tag.
_BY_FIRST_BYTE = [_DECODERS.get(byte) if byte < 128 else None for byte in range(256)]
