"""Who a worker is."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["WorkerInfo"]

# torch's limit and alphabet (torch/csrc/distributed/rpc/rpc_agent.h), since names may be shared with it.
_MAX_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9_:\-]*\Z")


class _Fields(NamedTuple):
    name: str
    id: int


class WorkerInfo(_Fields):
    """A worker's name and id, both unique in its world.

    Args:
        name: letters, digits, "_", ":" and "-", fewer than 128 of them.
        id: its rank, or the number that a world without ranks gave it.

    Raises:
        RuntimeError: the name is none; in torch's words.
    """

    __slots__ = ()

    def __new__(cls, name: str, id: int) -> WorkerInfo:
        """Makes one of what was checked."""
        if not isinstance(name, str):
            raise TypeError(f"a worker's name is a str, not {name!r}")
        if not name:
            raise RuntimeError("Worker name must be non-empty string.")
        if len(name) >= _MAX_NAME:
            raise RuntimeError(
                f"Worker name must be shorter than {_MAX_NAME}. Got {len(name)} characters for {name[:20]}…"
            )
        if not _NAME.match(name):
            raise RuntimeError(f"Worker name must match ^[A-Za-z0-9-_:]*$. Got {name}")
        return super().__new__(cls, name, id)

    def __eq__(self, other: object) -> bool:
        # A plain tuple is no worker; nor is anything else, such as a number.
        return isinstance(other, WorkerInfo) and self.name == other.name and self.id == other.id

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.name, self.id))

    def __repr__(self) -> str:
        return f"WorkerInfo(id={self.id}, name={self.name})"

    __str__ = __repr__
