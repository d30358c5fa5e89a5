"""Objects → Value. See value.proto."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from typing import Any, NoReturn, TypeAlias

from tensorcall.wire import registry, rrefs
from tensorcall.wire.errors import TooLarge, Unencodable
from tensorcall.wire.limits import MAX_BIG_INT_BYTES, MAX_DEPTH, MAX_VALUES
from tensorcall.wire.protowire import FIXED64, VARINT, field, pack_double, tag, utf8, varint, zigzag
from tensorcall.wire.tensors import TensorWriter, is_tensor

# Tags of Value's fields.
_NULL = tag(1, VARINT) + b"\0"
_FALSE, _TRUE = tag(2, VARINT) + b"\0", tag(2, VARINT) + b"\1"
_INT, _BIG_INT, _DOUBLE = tag(3, VARINT), tag(4), tag(5, FIXED64)
_STRING, _BYTES, _LIST, _TUPLE, _MAP, _PAIRS = tag(6), tag(7), tag(8), tag(9), tag(10), tag(11)
_TENSOR, _RREF, _OBJECT, _ENUM, _COMPLEX = tag(12, VARINT), tag(13), tag(14), tag(15), tag(16)
_SET, _FROZENSET, _BYTEARRAY = tag(17), tag(18), tag(19)
# Tags within the messages that it contains.
_FIRST, _SECOND = tag(1), tag(2)
_REAL, _IMAGINARY = tag(1, FIXED64), tag(2, FIXED64)
# Tag and length of an item, by its length.
_SHORT_ITEM = [_FIRST + varint(length) for length in range(128)]

_MAX_INT64, _MIN_INT64 = (1 << 63) - 1, -(1 << 63)
_MAX_PLACE_CHARACTERS = 200


class _Writing:
    """What one run of the encoder carries along."""

    __slots__ = ("left", "path", "tensors")

    def __init__(self, tensors: TensorWriter | None, values: int) -> None:
        self.tensors = tensors
        self.left = MAX_VALUES
        # Where in the object an error came up, innermost first; filled on its way out.
        self.path: list[str] = []
        self.count(values)

    def count(self, values: int) -> None:
        self.left -= values
        if self.left < 0:
            raise TooLarge(f"holds more than {MAX_VALUES:,} values: send numbers as a tensor, or several calls")

    def descend(self, depth: int, values: int) -> int:
        """Enters a container of so many values; returns their depth."""
        if depth >= MAX_DEPTH:
            raise TooLarge(
                f"nests deeper than {MAX_DEPTH} levels (does it contain itself?): flatten it or send a tensor"
            )
        self.count(values)
        return depth + 1

    def fail(self, error: Unencodable | TooLarge, argument: object = None) -> NoReturn:
        """Raises the error anew, saying where in the object (of which argument) it came up."""
        place = "" if argument is None else f"argument {argument!r:.60}"
        place += "".join(reversed(self.path))
        if not place:
            raise error
        if len(place) > _MAX_PLACE_CHARACTERS:
            half = _MAX_PLACE_CHARACTERS // 2
            place = f"{place[:half]}…{place[-half:]}"
        raise type(error)(f"{place}: {error}", metadata=error.metadata) from None


_Encoder: TypeAlias = Callable[[Any, _Writing, int], bytes]


def encode(obj: object, tensors: TensorWriter | None = None) -> bytes:
    """Writes an object as a Value message.

    Args:
        obj: any nesting of None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset,
            tensors, arrays and instances of registered types. Subclasses count only where they are registered, since
            their type would be lost.
        tensors: the table that tensors go to; without one they are refused.

    Raises:
        Unencodable: something in it has no form as a Value; the message says where and what to do.
        TooLarge: it nests deeper than MAX_DEPTH (or contains itself), or has more than MAX_VALUES values.
    """
    state = _Writing(tensors, 1)
    try:
        return _ENCODERS.get(type(obj), _other)(obj, state, 0)
    except (Unencodable, TooLarge) as error:
        state.fail(error)


def encode_arguments(
    arg: bytes, args: tuple[object, ...], kwarg: bytes, kwargs: dict[str, object], tensors: TensorWriter
) -> list[bytes]:
    """Writes the arguments of a call; the limits hold for all of them together.

    Args:
        arg: the tag of the field that each positional argument goes to, a Value.
        args: positional arguments.
        kwarg: the tag of the field that keyword arguments go to, a map<string, Value>.
        kwargs: keyword arguments.
        tensors: the table that tensors go to.

    Returns:
        The fields, in pieces.

    Raises:
        Unencodable, TooLarge: as `encode`.
    """
    state = _Writing(tensors, len(args) + len(kwargs))
    pieces = []
    try:
        for value in args:
            pieces.append(field(arg, _ENCODERS.get(type(value), _other)(value, state, 0)))
        for name, value in kwargs.items():
            pieces.append(_entry(kwarg, name, _ENCODERS.get(type(value), _other)(value, state, 0)))
    except (Unencodable, TooLarge) as error:
        state.fail(error, (*range(len(args)), *kwargs)[len(pieces)])
    return pieces


def _other(obj: object, state: _Writing, depth: int) -> bytes:
    """Writes what the table of exact types doesn't know: tensors, and instances of registered types."""
    if is_tensor(obj):
        if state.tensors is None:
            raise Unencodable(f"a {type(obj).__name__} can't stand here: there is no table of tensors")
        return _TENSOR + varint(state.tensors.add(obj))
    if isinstance(obj, rrefs.Handle):
        if state.tensors is None:
            raise Unencodable("a reference can't stand here: nobody would keep the value until it has arrived")
        state.tensors.handles.append(obj)
        return field(_RREF, rrefs.encode(obj.rref_id()))
    cls = type(obj)
    codec = registry.object_codec_for(cls)
    if codec is not None:
        return field(
            _OBJECT, field(_FIRST, utf8(codec.name)) + _entries(_SECOND, codec.to_fields(obj), state, depth, ".{}")
        )
    name = registry.enum_name(cls)
    if name is not None and isinstance(obj, enum.Enum):
        return field(_ENUM, field(_FIRST, utf8(name)) + field(_SECOND, utf8(registry.member_name(obj))))
    raise Unencodable(_advice(cls))


def _advice(cls: type) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    for base in cls.__mro__[1:-1]:
        if base in _ENCODERS:
            return (
                f"{name} is a subclass of {base.__name__} and would arrive as a plain {base.__name__}: convert it with "
                f"{base.__name__}(…), or register its class with tensorcall.wire.register"
            )
    if hasattr(cls, "__dataclass_fields__") or issubclass(cls, enum.Enum):
        return f"{name} is not registered: decorate the class with @tensorcall.wire.register on both sides"
    return (
        f"{name} has no form on the wire: send the data it consists of (numbers, strings, lists, dicts, tensors, "
        f"registered dataclasses and enums), or pickle it where the server allows pickle"
    )


def _int(obj: int, state: _Writing, depth: int) -> bytes:
    if _MIN_INT64 <= obj <= _MAX_INT64:
        return _INT + zigzag(obj)
    # One bit for the sign, rounded up to bytes; ~ since -128 fits one byte where 128 takes two.
    length = ((obj if obj > 0 else ~obj).bit_length() + 8) // 8
    if length > MAX_BIG_INT_BYTES:
        raise TooLarge(f"an int of {length} bytes is above the limit of {MAX_BIG_INT_BYTES}")
    return field(_BIG_INT, obj.to_bytes(length, "big", signed=True))


def _complex(obj: complex, state: _Writing, depth: int) -> bytes:
    body = b""
    # proto3 leaves out zeros, but not the negative one.
    if obj.real or str(obj.real) == "-0.0":
        body += _REAL + pack_double(obj.real)
    if obj.imag or str(obj.imag) == "-0.0":
        body += _IMAGINARY + pack_double(obj.imag)
    return field(_COMPLEX, body)


def _container(prefix: bytes) -> _Encoder:
    def encode_items(obj: Collection[object], state: _Writing, depth: int) -> bytes:
        depth = state.descend(depth, len(obj))
        # Two for each item.
        pieces = []
        try:
            for item in obj:
                body = _ENCODERS.get(type(item), _other)(item, state, depth)
                length = len(body)
                pieces.append(_SHORT_ITEM[length] if length < 128 else _FIRST + varint(length))
                pieces.append(body)
        except (Unencodable, TooLarge):
            state.path.append(f"[{len(pieces) // 2}]")
            raise
        return field(prefix, b"".join(pieces))

    return encode_items


def _entries(prefix: bytes, obj: dict[str, Any], state: _Writing, depth: int, place: str = "[{!r:.60}]") -> bytes:
    """Writes a map<string, Value> field, in the order of the dict."""
    depth = state.descend(depth, len(obj))
    pieces = []
    name = None
    try:
        for name, item in obj.items():
            pieces.append(_entry(prefix, name, _ENCODERS.get(type(item), _other)(item, state, depth)))
    except (Unencodable, TooLarge):
        state.path.append(place.format(name))
        raise
    return b"".join(pieces)


def _entry(prefix: bytes, name: str, body: bytes) -> bytes:
    """Writes one entry of a map<string, Value> field, given the field's tag and the Value."""
    return field(prefix, field(_FIRST, utf8(name)) + field(_SECOND, body))


def _dict(obj: dict[Any, object], state: _Writing, depth: int) -> bytes:
    if set(map(type, obj)) <= {str}:
        return field(_MAP, _entries(_FIRST, obj, state, depth))
    depth = state.descend(depth, 2 * len(obj))
    pieces = []
    name = None
    try:
        for name, item in obj.items():
            first = _ENCODERS.get(type(name), _other)(name, state, depth)
            second = _ENCODERS.get(type(item), _other)(item, state, depth)
            pieces.append(field(_FIRST, field(_FIRST, first) + field(_SECOND, second)))
    except (Unencodable, TooLarge):
        state.path.append(_shown(name))
        raise
    return field(_PAIRS, b"".join(pieces))


def _shown(name: object) -> str:
    try:
        return f"[{name!r:.60}]"
    except Exception:  # an int of more digits than Python prints, or a repr of the caller's own
        return f"[a {type(name).__name__}]"


_ENCODERS: dict[type, _Encoder] = {
    type(None): lambda obj, state, depth: _NULL,
    bool: lambda obj, state, depth: _TRUE if obj else _FALSE,
    int: _int,
    float: lambda obj, state, depth: _DOUBLE + pack_double(obj),
    complex: _complex,
    str: lambda obj, state, depth: field(_STRING, utf8(obj)),
    bytes: lambda obj, state, depth: field(_BYTES, obj),
    bytearray: lambda obj, state, depth: field(_BYTEARRAY, bytes(obj)),
    list: _container(_LIST),
    tuple: _container(_TUPLE),
    set: _container(_SET),
    frozenset: _container(_FROZENSET),
    dict: _dict,
    rrefs.RRefId: lambda obj, state, depth: field(_RREF, rrefs.encode(obj)),
}
