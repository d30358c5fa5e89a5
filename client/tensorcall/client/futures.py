"""The future of a call."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

from tensorcall.client import processes
from tensorcall.client.callbacks import refuse_to_wait
from tensorcall.wire.waiting import waiting


class CallFuture(concurrent.futures.Future[Any]):
    """A `concurrent.futures.Future` whose `cancel` reaches the server.

    Waiting for it within an exposed function lets the server start another thread in the meantime.
    """

    def __init__(self, channel: object = None) -> None:
        """Makes a future; the channel is what brings its result."""
        super().__init__()
        self._channel = channel
        self._generation = processes.generation
        self._cancel_call: Callable[[], object] | None = None
        # Acquired once, by whoever ends the future: set_running_or_notify_cancel may be called only once.
        self._settled = threading.Lock()

    def on_cancel(self, cancel_call: Callable[[], object]) -> None:
        """Has this called when the future is cancelled."""
        self._cancel_call = cancel_call

    def cancel(self) -> bool:
        """Cancels the call: the server stops a coroutine or a generator at once, and a thread at its next check.

        Returns:
            False if the call has ended already.
        """
        cancelled = super().cancel()
        if cancelled:
            cancel_call, self._cancel_call = self._cancel_call, None
            # Tells concurrent.futures.wait and as_completed.
            self._claim()
            if cancel_call is not None and self._generation == processes.generation:
                cancel_call()
        return cancelled

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the result, at most `timeout` seconds, and returns it or raises what the call raised."""
        try:
            if self.done():
                return super().result()
            self._refuse_to_wait()
            with waiting():
                return super().result(timeout)
        finally:
            # This frame is part of the traceback of the error that the future holds.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits for the end of the call and returns what it raised; None if it returned."""
        if self.done():
            return super().exception()
        self._refuse_to_wait()
        with waiting():
            return super().exception(timeout)

    def _refuse_to_wait(self) -> None:
        refuse_to_wait(self._channel)
        processes.refuse_inherited(self._generation, "this call")

    def resolve(self, result: Any) -> None:
        """Gives the future its result, unless it has ended."""
        if self._claim():
            self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Gives the future its error, unless it has ended."""
        if self._claim():
            self.set_exception(error)

    def _claim(self) -> bool:
        """Returns whether the caller has to end the future; passes on that it was cancelled."""
        if not self._settled.acquire(blocking=False) or not self.set_running_or_notify_cancel():
            return False
        # It leads back here: the result would stay until the garbage collector runs.
        self._cancel_call = None
        return True
