"""The name of a value in another process."""

from __future__ import annotations

from typing import NamedTuple

from tensorcall.wire.errors import Unencodable
from tensorcall.wire.protowire import (
    FIXED64,
    VARINT,
    field,
    fields,
    key,
    pack_fixed64,
    read_fixed64,
    read_string,
    tag,
    utf8,
    varint,
)

_OWNER, _INCARNATION, _SEQUENCE = tag(1), tag(2, FIXED64), tag(3, VARINT)
_K_OWNER, _K_INCARNATION, _K_SEQUENCE = key(1), key(2, FIXED64), key(3, VARINT)


class RRefId(NamedTuple):
    """Names one value that one process owns. See rref.proto."""

    owner: str
    incarnation: int
    sequence: int


def encode(rref: RRefId) -> bytes:
    """Writes an RRefId message.

    Raises:
        Unencodable: it is made up of what no RRefId has.
    """
    if rref.incarnation >> 64 or rref.sequence >> 64:
        raise Unencodable(f"{rref!r:.200} names nothing: its numbers are unsigned, of 64 bits")
    return (
        (field(_OWNER, utf8(rref.owner)) if rref.owner else b"")
        + (_INCARNATION + pack_fixed64(rref.incarnation) if rref.incarnation else b"")
        + (_SEQUENCE + varint(rref.sequence) if rref.sequence else b"")
    )


def decode(buffer: bytes, start: int, end: int) -> RRefId:
    """Reads the RRefId message between two positions.

    Raises:
        BadPayload: malformed.
    """
    owner, incarnation, sequence = "", 0, 0
    for k, a, b in fields(buffer, start, end):
        if k == _K_OWNER:
            owner = read_string(buffer, a, b)
        elif k == _K_INCARNATION:
            incarnation = read_fixed64(buffer, a)
        elif k == _K_SEQUENCE:
            sequence = a
    return RRefId(owner, incarnation, sequence)
