"""The threads that run functions."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from tensorcall.client.deadlines import deadlines
from tensorcall.wire import waiting
from tensorcall.wire.errors import Overloaded

_log = logging.getLogger(__name__)
_numbers = itertools.count()

# How long a caller that was turned away should wait: about the time in which a busy queue moves on.
RETRY_AFTER_SECONDS = 0.1

# If tasks wait, and for so long none has ended, the threads may all wait for something that only one of those would
# bring about. Where the processor is busy, they rather compute.
_STUCK_SECONDS = 0.05
# A thread that has had nothing to do for so long ends. A server that was stopped thus leaves none behind.
_IDLE_SECONDS = 10.0
_BUSY_STUCK_SECONDS = 1.0
_BUSY_SHARE = 0.5


class Pool:
    """Runs tasks on at most `size` threads, not counting those that wait for calls of their own.

    A fixed pool deadlocks when functions call functions: all threads wait, and none is left to run what they wait for.
    Here a thread that waits (see tensorcall.wire.waiting) lets another one start, up to `limit` threads in all. Not
    everything that waits says so, for example a function that waits for a future of torch's: where all threads seem to
    be stuck, one more is started at a time.
    """

    def __init__(self, size: int, limit: int, max_queue: int) -> None:
        """Makes a pool without threads; they start when there is something to do.

        Args:
            size: how many threads may run at once.
            limit: how many there may be, the waiting ones included.
            max_queue: how many tasks may wait for a thread.
        """
        self._size = size
        self._limit = max(size, limit)
        self._max_queue = max_queue
        self._tasks: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._waiting = 0
        # Threads that nothing was put aside for. Every task in the queue belongs either to a thread that was idle when
        # it came, or to a thread started for it, or to the backlog.
        self._idle = 0
        self._backlog = 0
        # For the look-out, which is on while there is a backlog.
        self._ended = 0
        self._looking = False
        self._seen: tuple[int, float, float] = (0, 0.0, 0.0)

    @property
    def full(self) -> bool:
        """Whether the next task would be turned away."""
        with self._lock:
            can_start = self._threads - self._waiting < self._size and self._threads < self._limit
            return self._backlog >= self._max_queue and not self._idle and not can_start

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return self._threads

    @property
    def backlog(self) -> int:
        """How many tasks wait for a thread."""
        return self._backlog

    def submit(self, task: Callable[..., object], /, *args: Any) -> None:
        """Has a thread run the task, which must not raise.

        Raises:
            Overloaded: too many are waiting; the task will not be run.
        """
        self._submit(self._max_queue, task, args)

    def submit_always(self, task: Callable[..., object], /, *args: Any) -> None:
        """Has a thread run the task, however many are waiting: for what must not be turned away any more."""
        self._submit(None, task, args)

    def _submit(self, max_queue: int | None, task: Callable[..., object], args: tuple[Any, ...]) -> None:
        start = look = False
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads - self._waiting < self._size and self._threads < self._limit:
                self._threads += 1
                start = True
            elif max_queue is None or self._backlog < max_queue:
                self._backlog += 1
                look = not self._looking
            else:
                raise Overloaded(
                    f"{self._backlog:,} calls are waiting already; nothing was run", retry_after=RETRY_AFTER_SECONDS
                )
        self._tasks.put((task, args))
        if start:
            self._start()
        elif look:
            self._look_out()

    def _look_out(self) -> None:
        with self._lock:
            if self._looking:
                return
            self._looking = True
            self._seen = (self._ended, time.monotonic(), time.process_time())
        deadlines.after(_STUCK_SECONDS, self._look)

    def _look(self) -> None:
        """Starts a thread if all others are stuck."""
        start = False
        now, computed = time.monotonic(), time.process_time()
        with self._lock:
            ended, since, computed_then = self._seen
            if not self._backlog:
                self._looking = False
                return
            stuck = now - since if ended == self._ended else 0.0
            busy = computed - computed_then > _BUSY_SHARE * (now - since)
            if not stuck or stuck >= (_BUSY_STUCK_SECONDS if busy else _STUCK_SECONDS):
                self._seen = (self._ended, now, computed)
                if stuck and self._threads < self._limit:
                    start = True
                    self._backlog -= 1
                    self._threads += 1
        if start:
            self._start()
        deadlines.after(_STUCK_SECONDS, self._look)

    def _start(self) -> None:
        threading.Thread(target=self._work, name=f"tensorcall-{next(_numbers)}", daemon=True).start()

    def _work(self) -> None:
        waiting.install(_Waiting(self))
        while True:
            try:
                task, args = self._tasks.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    # Unless somebody counts on it, and its task is about to come.
                    if self._idle:
                        self._idle -= 1
                        self._threads -= 1
                        return
                continue
            try:
                task(*args)
            except BaseException:
                _log.exception("a task of the pool raised; this is a defect of tensorcall")
            # What the task held must not live on until the next one comes.
            del task, args
            with self._lock:
                self._ended += 1
                if self._threads - self._waiting > self._size:
                    # Started while others waited; they are back. What is queued is left to them.
                    self._threads -= 1
                    return
                if self._backlog:
                    self._backlog -= 1
                else:
                    self._idle += 1

    def _begin_waiting(self) -> None:
        with self._lock:
            self._waiting += 1
            start = self._backlog > 0 and self._threads < self._limit
            if start:
                self._backlog -= 1
                self._threads += 1
        if start:
            self._start()

    def _end_waiting(self) -> None:
        with self._lock:
            self._waiting -= 1


class _Waiting:
    """What a thread of a pool enters while it waits."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __enter__(self) -> None:
        self._pool._begin_waiting()

    def __exit__(self, *_: object) -> None:
        self._pool._end_waiting()
