"""Does what may not be done where it comes up: in `__del__`, under locks, on threads that must not wait."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import logging
import os
import queue
import threading
import time
import weakref
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

_log = logging.getLogger(__name__)

# What waits longer is sent at last.
_MAX_BATCH = 10_000
# How long the end of the process may be held up, in seconds.
_LEAVE_SECONDS = 0.9

T_contra = TypeVar("T_contra", contravariant=True)


class Household(Protocol[T_contra]):
    """What has things to do."""

    def take(self, item: T_contra) -> None:
        """Takes one of them."""

    def flush(self) -> None:
        """Called after a batch of them."""


class Leaver(Protocol):
    """What others should know of when this process ends."""

    def leave(self) -> Future[Any] | None:
        """Tells them, without waiting; returns the future of their answer, if there is one."""


class Housekeeper:
    """One thread for all references of this process; it starts with the first."""

    def __init__(self) -> None:
        # Re-entrant: what is collected as garbage may come here.
        self._lock = threading.RLock()
        self._begin()

    def _begin(self) -> None:
        # Unlike queue.Queue's, its put may be called from __del__, at any point of another put.
        self._queue: queue.SimpleQueue[tuple[Household[object], object]] = queue.SimpleQueue()
        self._started = False
        self._leavers: weakref.WeakSet[Leaver] = weakref.WeakSet()

    def after_fork(self) -> None:
        """Begins anew in a child process: the thread is not there, and what waits is the parent's business."""
        self._lock = threading.RLock()
        self._begin()

    def start(self) -> None:
        """Sees to it that the thread runs. Idempotent."""
        if self._started:
            return
        with self._lock:
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, args=(self._queue,), name="tensorcall-rrefs", daemon=True).start()

    def post(self, household: Household[object], item: object) -> None:
        """Has `household.take(item)` called, and `flush` soon after. From anywhere."""
        self._queue.put((household, item))

    def see_off(self, leaver: Leaver) -> None:
        """Has this leave when the process ends, if it is there then."""
        with self._lock:
            self._leavers.add(leaver)

    def leave(self) -> None:
        """Tells the others that this process ends, which takes next to no time, whatever happens."""
        end = time.monotonic() + _LEAVE_SECONDS
        with self._lock:
            leavers = list(self._leavers)
        asked = []
        for leaver in leavers:
            try:
                future = leaver.leave()
            except Exception as error:
                _log.debug("an owner was not told that this process ends: %s", error)
                continue
            if future is not None:
                asked.append(future)
            if time.monotonic() > end:
                return
        concurrent.futures.wait(asked, max(0.0, end - time.monotonic()))

    def _run(self, queued: queue.SimpleQueue[tuple[Household[object], object]]) -> None:
        while True:
            self._batch(queued)

    def _batch(self, queued: queue.SimpleQueue[tuple[Household[object], object]]) -> None:
        touched: dict[int, Household[object]] = {}
        household, item = queued.get()
        with contextlib.suppress(queue.Empty):
            for _ in range(_MAX_BATCH):
                touched[id(household)] = household
                try:
                    household.take(item)
                except Exception:
                    _log.exception("a reference's housekeeping failed")
                household, item = queued.get_nowait()
            else:
                queued.put((household, item))
        for household in touched.values():
            try:
                household.flush()
            except Exception:
                _log.exception("a reference's housekeeping failed")


housekeeper = Housekeeper()
# In a child process it has only the child's own.
atexit.register(housekeeper.leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=housekeeper.after_fork)
