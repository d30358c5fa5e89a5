"""The name of a value in another process, and what stands for it in this one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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

_OWNER, _INCARNATION, _SEQUENCE, _ADDRESS = tag(1), tag(2, FIXED64), tag(3, VARINT), tag(4)
_K_OWNER, _K_INCARNATION, _K_SEQUENCE, _K_ADDRESS = key(1), key(2, FIXED64), key(3, VARINT), key(4)

# A lease's number stands above so many bits of a sequence.
LEASE_SHIFT = 40


class RRefId(NamedTuple):
    """Names one value that one process owns. See rref.proto."""

    owner: str
    incarnation: int
    sequence: int
    address: str = ""
    """Where the owner can be reached, as far as the sender knows; not part of the name."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RRefId) and self[:3] == other[:3]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:3])

    def __str__(self) -> str:
        return f"{self.owner}/{self.incarnation:x}/{self.sequence:x}"


class Handle(ABC):
    """What stands for a value in a process: a user's handle, or the owner's own.

    Payloads take it as an RRefId, pickled or not. Whoever sends it must keep it alive until the receiver has a fork of
    its own: see `Encoded.handles`.
    """

    __slots__ = ()

    @abstractmethod
    def rref_id(self) -> RRefId:
        """Returns the value's name, with the owner's address as far as it is known here."""


Opener: TypeAlias = Callable[[RRefId], Any]
"""What makes a handle of a name that arrived."""


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
        + (field(_ADDRESS, utf8(rref.address)) if rref.address else b"")
    )


def decode(buffer: bytes, start: int, end: int) -> RRefId:
    """Reads the RRefId message between two positions.

    Raises:
        BadPayload: malformed.
    """
    owner, incarnation, sequence, address = "", 0, 0, ""
    for k, a, b in fields(buffer, start, end):
        if k == _K_OWNER:
            owner = read_string(buffer, a, b)
        elif k == _K_INCARNATION:
            incarnation = read_fixed64(buffer, a)
        elif k == _K_SEQUENCE:
            sequence = a
        elif k == _K_ADDRESS:
            address = read_string(buffer, a, b)
    return RRefId(owner, incarnation, sequence, address)
