"""Notices when a thread that reads a session is held up by what it does between two messages.

A quick function runs on the reading thread itself: handing it to another one would cost more than the function. Should
it turn out slow, or wait for a call of its own, or should the peer be slow to take an answer, then another thread reads
on and the held up one leaves when it is done.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

# How long a thread may be held up before another one takes over. As often is looked, while there is something to see.
HELD_UP_SECONDS = 0.005
# After this long without a call the watch sleeps.
_QUIET_SECONDS = 0.5


class Watched(Protocol):
    """A reading thread's turn at a message."""

    def busy_since(self) -> float | None:
        """When it began with what it is at, as time.monotonic() tells; None if it waits for a message."""

    def hand_over(self) -> None:
        """Has another thread read on. Idempotent within a turn."""


class Watch:
    """Looks after all sessions of a server, on one thread that sleeps while nothing happens."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._last = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, watched: Watched) -> None:
        """Looks after this one, too."""
        with self._lock:
            self._watched.add(watched)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tensorcall-watch", daemon=True)
                self._thread.start()

    def discard(self, watched: Watched) -> None:
        """Looks after this one no longer."""
        with self._lock:
            self._watched.discard(watched)

    def tick(self, now: float) -> None:
        """Tells that something happens. Costs next to nothing while the watch is awake."""
        self._last = now
        if not self._awake.is_set():
            self._awake.set()

    def _run(self) -> None:
        while not self._closed:
            now = time.monotonic()
            busy = False
            with self._lock:
                watched = list(self._watched)
            for each in watched:
                since = each.busy_since()
                if since is not None:
                    busy = True
                    if now - since >= HELD_UP_SECONDS:
                        each.hand_over()
            if busy or now - self._last < _QUIET_SECONDS:
                time.sleep(HELD_UP_SECONDS)
            else:
                self._awake.clear()
                if time.monotonic() - self._last >= _QUIET_SECONDS:
                    self._awake.wait()

    def close(self) -> None:
        """Ends the thread."""
        self._closed = True
        self._awake.set()
