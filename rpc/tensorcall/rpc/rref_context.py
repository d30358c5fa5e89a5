"""All references of one worker: their ids, who still holds what, and letting go of all of it at the end."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
import weakref
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorcall.client.user_rref import UserRRef

if TYPE_CHECKING:
    from tensorcall.client.forks import Fork
    from tensorcall.rpc.rref import PyRRef
    from tensorcall.server.core import Core

_log = logging.getLogger(__name__)

# For how long a reference is kept that was written down by hand, in seconds.
_WRITTEN_DOWN = 60.0
# How long the end waits for others to let go; torch's default.
FLUSH = timedelta(seconds=100)


class GloballyUniqueId(NamedTuple):
    """Torch's name for a value or a fork, as it prints it."""

    created_on: int
    local_id: int

    def __str__(self) -> str:
        return f"GloballyUniqueId(created_on={self.created_on}, local_id={self.local_id})"


class Handle(UserRRef):
    """This worker's handle of a value of another."""

    __slots__ = ()

    @property
    def fork(self) -> Fork:
        """Its hold."""
        return self._fork

    def drop(self) -> None:
        """Lets go of the value ahead of time."""
        self._fork.let_go()


class RRefContext:
    """The references of one worker."""

    def __init__(self, rank: int, core: Core) -> None:
        self._rank = rank
        self._core = core
        self._local_ids = itertools.count()
        self._lock = threading.Lock()
        # Of others' values.
        self._users: weakref.WeakSet[PyRRef] = weakref.WeakSet()
        self._written_down: list[tuple[float, Any]] = []

    def new_id(self) -> GloballyUniqueId:
        """Makes an id that no other worker makes."""
        return GloballyUniqueId(self._rank, next(self._local_ids))

    def add_user(self, rref: PyRRef) -> None:
        """Takes note of a reference to another worker's value."""
        with self._lock:
            self._users.add(rref)

    def users(self) -> list[PyRRef]:
        """Returns the references to others' values that are in use."""
        with self._lock:
            return list(self._users)

    def keep_for_a_while(self, handle: Any) -> None:
        """Keeps a handle that was written down by hand, so that whoever reads it finds the value."""
        now = time.monotonic()
        with self._lock:
            self._written_down = [(end, kept) for end, kept in self._written_down if end > now]
            self._written_down.append((now + _WRITTEN_DOWN, handle))

    def debug_info(self) -> dict[str, str]:
        """Returns what there is to know, under torch's names."""
        counts = self._core.rrefs.counts()
        users = self.users()
        return {
            "num_owner_rrefs": str(counts["held"]),
            "num_forks": str(counts["forks"]),
            "num_pending_futures": str(sum(1 for rref in users if rref._creating)),
            "num_pending_users": str(sum(1 for rref in users if rref._unconfirmed)),
        }

    def delete_all(self, limit: timedelta = FLUSH) -> None:
        """Lets go of all values of others, then waits until the others have let go of this worker's."""
        end = time.monotonic() + limit.total_seconds()
        self.delete_users(limit)
        self._wait(end, lambda: not self._core.rrefs.counts()["held"], "others to let go of values of this worker")

    def delete_users(self, limit: timedelta = FLUSH) -> None:
        """Lets go of all values of others, as soon as their owners have confirmed the references to them."""
        end = time.monotonic() + limit.total_seconds()
        self._wait(end, lambda: not any(rref._unconfirmed for rref in self.users()), "references to be confirmed")
        with self._lock:
            self._written_down.clear()
        for rref in self.users():
            rref._delete()

    def _wait(self, end: float, condition: Any, what: str) -> None:
        pause = 0.0005
        while not condition():
            if time.monotonic() >= end:
                _log.error("waited in vain for %s: %s", what, self.leaks() or "…")
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def leaks(self) -> str:
        """Tells which values of this worker are still held: which, where they were made, and by whom they are held."""
        infos, total = self._core.rrefs.infos(limit=50)
        lines = []
        for info in infos:
            holders = ", ".join(
                f"{holder.client_id.rpartition('-')[0] or 'an answer'} ({holder.forks})" for holder in info.holders
            )
            kind = f" of type {info.type}" if info.type else ""
            lines.append(f"Leaking RRef {info.rref_id}{kind}, made by {info.made_by or '?'}; held by {holders}")
        if total > len(infos):
            lines.append(f"Leaking RRef: and {total - len(infos)} more")
        return "\n".join(lines)

    def check_leaks(self, ignore: bool) -> None:
        """Logs the values of this worker that are still held.

        Raises:
            RuntimeError: there are some, and they are not to be ignored.
        """
        leaks = self.leaks()
        if not leaks:
            return
        _log.warning(
            "Detected RRef leaks during shutdown: other workers still hold references to values of this one. It is "
            "fine if the program ends now; else let go of them before shutdown():\n%s",
            leaks,
        )
        if not ignore:
            raise RuntimeError(leaks)


_HERE = os.path.dirname(__file__)


def call_site() -> str:
    """Returns the place in the user's program that called, as file:line."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
