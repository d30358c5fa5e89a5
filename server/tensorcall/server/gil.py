"""How long threads wait for the GIL.

In torch the C++ agent measures each of its own waits (PROFILE_GIL_SCOPED_ACQUIRE in python_rpc_handler.cpp). Here all
code holds the GIL already when it runs, so a sampler stands in for a thread that comes back from a system call: it
sleeps, and what it wakes up late is its wait.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque

INTERVAL_SECONDS = 0.01
# The mean is over the latest samples, ten seconds' worth: a gauge of now, where torch averages over the agent's life.
WINDOW = 1000
# Even with nobody holding the GIL a sleep ends a little late: timers have slack, and waking takes time. The least
# lateness seen is taken for that, but no more than this many microseconds, lest constant contention hide itself.
MAX_BASELINE_US = 100.0


class GilSampler:
    """Measures the mean wait for the GIL on a thread of its own, from `start` to `stop`."""

    def __init__(self) -> None:
        self._waits: deque[float] = deque(maxlen=WINDOW)
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def running(self) -> bool:
        """Whether it measures."""
        return self._thread is not None

    def start(self) -> None:
        """Begins anew, with no samples. Does nothing if it measures already, or if this Python has no GIL."""
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            return
        with self._lock:
            if self._thread is None:
                self._waits.clear()
                self._stop = threading.Event()
                # A daemon: it holds nothing that the interpreter's exit would have to wait for.
                self._thread = threading.Thread(
                    target=self._sample, args=(self._stop,), name="tensorcall-gil-sampler", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Ends measuring. What was measured can still be read."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None or self._stop is None:
                return
            self._stop.set()
        thread.join()

    def average_us(self) -> float:
        """Returns the mean wait over the latest samples, in microseconds; 0.0 if there are none."""
        waits = list(self._waits)
        return sum(waits) / len(waits) if waits else 0.0

    def _sample(self, stop: threading.Event) -> None:
        baseline = MAX_BASELINE_US
        while not stop.is_set():
            begin = time.perf_counter()
            # Not stop.wait(): an Event is a lock and a condition, several waits for the GIL at once.
            time.sleep(INTERVAL_SECONDS)
            late = (time.perf_counter() - begin - INTERVAL_SECONDS) * 1e6
            baseline = min(baseline, max(late, 0.0))
            self._waits.append(max(late - baseline, 0.0))
