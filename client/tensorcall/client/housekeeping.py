"""Does what may not be done where it comes up: in `__del__`, under locks, on threads that must not wait."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from typing import Protocol, TypeVar

_log = logging.getLogger(__name__)

# What waits longer is sent at last.
_MAX_BATCH = 10_000

T_contra = TypeVar("T_contra", contravariant=True)


class Household(Protocol[T_contra]):
    """What has things to do."""

    def take(self, item: T_contra) -> None:
        """Takes one of them."""

    def flush(self) -> None:
        """Called after a batch of them."""


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
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=housekeeper.after_fork)
