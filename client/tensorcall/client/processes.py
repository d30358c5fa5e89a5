"""Which process this is: what was made before os.fork() is the parent's, and neither works nor ends in the child."""

from __future__ import annotations

import os
import weakref
from typing import Any

from tensorcall.wire.errors import RequestError

generation = 0
"""Another one in each child process: what notes it when it is made can tell later whose it is."""

# What has threads and sockets of gRPC's; and of that what is the parent's, which is kept: its end would use them.
_made: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []


def keep_in_children(made: object) -> None:
    """Sees to it that a child process does not end this as garbage."""
    _made.add(made)


def refuse_inherited(made_in: int, what: str) -> None:
    """Call before waiting for something, or for a lock; `made_in` is the generation it was made in.

    Raises:
        RequestError: it is the parent's, and would never come.
    """
    if made_in != generation:
        raise RequestError(f"{what} was made before fork(), and works only in the parent: connect again in the child")


def _begin() -> None:
    global generation, _made
    generation += 1
    _inherited.extend(_made)
    _made = weakref.WeakSet()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin)
