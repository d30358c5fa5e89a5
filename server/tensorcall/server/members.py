"""What a directory keeps and tells: workers, and what becomes of them. See directory_service.proto."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tensorcall.wire.errors import BadPayload

_MAX_NAME_BYTES, _MAX_ADDRESS_BYTES = 128, 256

Kind = Literal["joined", "left", "lapsed", "moved"]
Version = tuple[int, int]
"""Which start of the directory, and the number of the latest change."""


@dataclass(frozen=True, slots=True)
class Member:
    """One worker."""

    name: str
    """Unique among the live workers of its world."""

    worker_id: int
    """Unique likewise."""

    address: str
    """Where others reach it."""

    incarnation: int
    """Tells one start of its process from the next."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a worker."""

    kind: Kind
    """What happened."""

    member: Member
    """To whom."""


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher has not heard of yet."""

    version: Version
    """What it has when it has heard this."""

    changes: tuple[Change, ...] = ()
    """What has changed since."""

    everyone: tuple[Member, ...] | None = None
    """Instead, if that is not known any more: the whole list."""


def check_join(world: str, name: str, address: str, incarnation: int, worker_id: int | None) -> None:
    """Returns if a worker can join so.

    Raises:
        BadPayload: it can't.
    """
    check_world(world)
    _check_text("name", name, _MAX_NAME_BYTES)
    _check_text("address", address, _MAX_ADDRESS_BYTES)
    if not name:
        raise BadPayload("the worker has no name")
    if not address:
        raise BadPayload(f"the worker {name!r} does not say at which address others reach it")
    if not incarnation:
        raise BadPayload(f"the worker {name!r} has no incarnation: make up a random number at the start of its process")
    if worker_id is not None and worker_id < 0:
        raise BadPayload(f"{worker_id} can't be the id of a worker: it is negative")


def check_world(world: str) -> None:
    """Returns if there may be a world of that name.

    Raises:
        BadPayload: it is too long.
    """
    _check_text("world", world, _MAX_NAME_BYTES)


def _check_text(what: str, text: str, limit: int) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > limit:
        raise BadPayload(f"the {what} has more than {limit} bytes")
