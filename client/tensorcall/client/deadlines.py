"""Calls something when its time has come: one thread for all deadlines of a process."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

# Fewer than this may lie there called off: not worth the work.
_COMPACT_ABOVE = 1000


class Deadlines:
    """Timers that are mostly cancelled before they fire."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """Begins anew in a child process: the thread is not there, and what waits is the parent's business."""
        # Its lock is re-entrant: a stream that is collected as garbage calls its deadline off, wherever that happens.
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, list[Callable[[], None]]]] = []
        self._called_off = 0
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back after so many seconds, on a thread of its own; returns what calls that off."""
        when = time.monotonic() + seconds
        entry = [callback]
        with self._condition:
            heapq.heappush(self._heap, (when, next(self._numbers), entry))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tensorcall-deadlines", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is entry:
                self._condition.notify()

        def call_off() -> None:
            with self._condition:
                if entry:
                    # The empty entry stays for a while; what the callback held does not.
                    entry.clear()
                    self._called_off += 1
                    if self._crowded():
                        self._condition.notify()

        return call_off

    def _crowded(self) -> bool:
        return len(self._heap) >= _COMPACT_ABOVE and 2 * self._called_off > len(self._heap)

    def _next(self) -> Callable[[], None]:
        """Waits until a time has come. Only here anything is taken from the heap."""
        with self._condition:
            while True:
                if self._crowded():
                    self._called_off = 0
                    self._heap = [timer for timer in self._heap if timer[2]]
                    heapq.heapify(self._heap)
                if not self._heap:
                    self._condition.wait()
                    continue
                when, _, entry = self._heap[0]
                remaining = when - time.monotonic()
                if entry and remaining > 0:
                    # threading can't wait for longer than some centuries.
                    self._condition.wait(min(remaining, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self._heap)
                if entry:
                    return entry.pop()
                self._called_off -= 1

    def _run(self) -> None:
        while True:
            callback = self._next()
            try:
                callback()
            except Exception:
                _log.exception("a deadline's callback failed")
            # Not kept until the next one.
            del callback


deadlines = Deadlines()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=deadlines.after_fork)
