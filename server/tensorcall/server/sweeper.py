"""Ends leases in time: one timer for all of them, and none while there are none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from tensorcall.client.deadlines import deadlines
from tensorcall.server.pool import Pool

_log = logging.getLogger(__name__)


class Sweeper:
    """Calls what ends lapsed leases whenever the next one may have lapsed."""

    def __init__(self, expire: Callable[[], float | None], pool: Pool, lease_seconds: float) -> None:
        """Begins without a timer.

        Args:
            expire: ends what has lapsed; returns when the next may, as time.monotonic() tells, or None.
            pool: runs that: what goes with a lease may do anything when it ends.
            lease_seconds: nothing lapses sooner after `arm`.
        """
        self._expire = expire
        self._pool = pool
        self._seconds = lease_seconds
        self._lock = threading.RLock()
        self._call_off: Callable[[], None] | None = None
        self._closed = False

    def arm(self) -> None:
        """Tells that there is something that will lapse."""
        self._after(self._seconds)

    def _after(self, seconds: float) -> None:
        with self._lock:
            if self._call_off is None and not self._closed:
                self._call_off = deadlines.after(seconds, lambda: self._pool.submit_always(self._sweep))

    def _sweep(self) -> None:
        with self._lock:
            self._call_off = None
        following: float | None
        try:
            following = self._expire()
        except Exception:
            _log.exception("what has lapsed could not be ended")
            # Nobody else would call this again, and nothing lapse any more.
            following = time.monotonic()
        if following is not None:
            # Leases are renewed all the time: a little late, and many at once, will do.
            self._after(max(following - time.monotonic(), self._seconds / 20))

    def close(self) -> None:
        """Ends the timer."""
        with self._lock:
            self._closed = True
            if self._call_off is not None:
                self._call_off()
                self._call_off = None
