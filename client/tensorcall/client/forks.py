"""One hold of this process on a value of another: what a user's handle stands for."""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tensorcall.client.callbacks import refuse_to_wait
from tensorcall.wire.errors import DeadlineExceeded, TensorcallError
from tensorcall.wire.rrefs import RRefId
from tensorcall.wire.waiting import waiting

if TYPE_CHECKING:
    from tensorcall.client.link import Link

# One for all forks: it is held for next to no time. Re-entrant, since garbage may be collected under it.
_lock = threading.RLock()


def _begin() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # Another thread of the parent's may have held it.
    os.register_at_fork(after_in_child=_begin)


class Fork:
    """One hold on one value: pending until the owner confirms it, or it fails for good.

    Its handle's end is its end: `let_go`. Only the link makes forks.
    """

    __slots__ = ("_callbacks", "_confirmed", "_error", "dropped", "link", "number", "rref_id")

    def __init__(self, link: Link, number: int, rref_id: RRefId) -> None:
        self.link = link
        self.number = number
        """From the link's counter; no other fork of this link ever has it."""
        self.rref_id = rref_id
        self.dropped = False
        """Whether its handle is gone. The link's, under its lock."""
        self._confirmed = False
        self._error: TensorcallError | None = None
        self._callbacks: list[Callable[[], object]] | None = []

    @property
    def settled(self) -> bool:
        """Whether it is known what became of it."""
        return self._callbacks is None

    @property
    def confirmed(self) -> bool:
        """Whether the owner has confirmed it, and it was not lost since."""
        return self._confirmed and self._error is None

    @property
    def error(self) -> TensorcallError | None:
        """Why it is of no use (any more); None if it is, as far as is known here."""
        return self._error

    def settle(self, error: TensorcallError | None = None) -> None:
        """Confirms it, or fails it: a pending one, or one that was lost. What failed stays so."""
        with _lock:
            if self._error is None:
                self._error = error
            self._confirmed = True
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()

    def when_settled(self, callback: Callable[[], object]) -> None:
        """Has this called once it is known what became of it; at once if it is. It must be quick.

        Raises:
            RequestError: it is pending, and the parent process' to know.
        """
        if self._callbacks is not None:
            self.link.refuse_inherited()
        with _lock:
            if self._callbacks is not None:
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, timeout: float | None) -> None:
        """Waits until the owner has confirmed it.

        Raises:
            DeadlineExceeded: it has not within `timeout` seconds.
            TensorcallError: it never will.
        """
        if not self.settled:
            refuse_to_wait(self.link.way)
            settled = threading.Event()
            self.when_settled(settled.set)
            began = time.monotonic()
            with waiting():
                if not settled.wait(None if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX))):
                    waited = time.monotonic() - began
                    raise DeadlineExceeded(f"the owner of {self.rref_id} has not confirmed it within {waited:.1f} s")
        self.check()

    def check(self) -> None:
        """Returns if it is of use, as far as is known here.

        Raises:
            TensorcallError: it is not.
        """
        if self._error is not None:
            # One each: what raises an exception writes its own traceback into it.
            raise copy.copy(self._error).with_traceback(None)

    def let_go(self) -> None:
        """Tells that its handle is gone. Only queues that: may be called from `__del__`."""
        self.link.let_go(self)

    def __repr__(self) -> str:
        state = f"failed: {self._error}" if self._error else "confirmed" if self._confirmed else "pending"
        return f"<Fork {self.number} of {self.rref_id} {state}>"
