"""The futures of calls: torch's, but they announce their waiting, and it can be interrupted."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.futures import Future

from tensorcall.wire.waiting import waiting

_log = logging.getLogger(__name__)


class RpcFuture(Future[Any]):
    """A `torch.futures.Future` of a call.

    `wait` lets another thread serve calls in the meantime, and Ctrl-C ends it, which it doesn't with torch's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._done_lock = lock = threading.Lock()
        lock.acquire()
        # The first of the callbacks: who waits does not wait for the others to end. It does not hold this future.
        super().add_done_callback(lambda _: lock.release())
        # Guards against two ends of one call; torch would raise.
        self._settled = threading.Lock()
        self._error: BaseException | None = None

    def wait(self) -> Any:
        """Waits for the call to end and returns its result, or raises what it raised."""
        if not super().done():
            with waiting():
                self._done_lock.acquire()
            self._done_lock.release()
        return super().wait()

    def value(self) -> Any:
        """Returns the result of a call that has ended, or raises what it raised."""
        return self.wait() if super().done() else super().value()

    def then(self, callback: Callable[[Any], Any]) -> RpcFuture:
        """Has a function called with this future when it is done; returns the future of what the function returns.

        Raises:
            TypeError: the function is none.
        """
        if not callable(callback):
            super().then(callback)  # raises, in its own words
        following = RpcFuture()

        def done(future: Any) -> None:
            try:
                result = callback(future)
            except BaseException as error:
                following.fail(_callback_failed(error))
                return
            following.resolve(result)

        self.add_done_callback(done)
        return following

    def set_result(self, result: Any) -> None:
        """Gives the future its result; once."""
        if not self._settled.acquire(blocking=False):
            raise RuntimeError("Future can only be marked completed once: it is done already")
        self._end(result)

    def set_exception(self, result: Any) -> None:
        """Gives the future an exception to raise; once."""
        if not self._settled.acquire(blocking=False):
            raise RuntimeError("Future can only be marked completed once: it is done already")
        self._end_with(result)

    def resolve(self, result: Any) -> bool:
        """Gives the future its result unless it is done."""
        if not self._settled.acquire(blocking=False):
            return False
        self._end(result)
        return True

    def fail(self, error: BaseException) -> bool:
        """Gives the future its error unless it is done."""
        if not self._settled.acquire(blocking=False):
            return False
        self._end_with(error)
        return True

    def _end(self, result: Any) -> None:
        super().set_result(result)

    def _end_with(self, error: BaseException) -> None:
        self._error = error

        def raised(_: object) -> None:
            # Not the frames of those who waited before.
            raise error.with_traceback(None)

        self._set_unwrap_func(raised)
        # As torch's own set_exception: TorchScript sees the value alone, and raises it.
        self._end(error)

    @property
    def error(self) -> BaseException | None:
        """What the call raised; None as long as it hasn't."""
        return self._error


def _callback_failed(error: BaseException) -> RuntimeError:
    failed = RuntimeError(f"Got the following error when running the callback: {type(error).__name__}: {error}")
    failed.__cause__ = error
    return failed


def completed(value: Any) -> RpcFuture:
    """Returns a future that has this result."""
    future = RpcFuture()
    future.set_result(value)
    return future


def failed(error: BaseException) -> RpcFuture:
    """Returns a future that has this error."""
    future = RpcFuture()
    future.fail(error)
    return future


_torch_collect_all = torch.futures.collect_all


def collect_all(futures: Sequence[Any]) -> Any:
    """Does what `torch.futures.collect_all` does, and is done as soon as one of the futures has failed.

    torch's own ends early only for errors that C++ code put into a future.
    """
    futures = list(futures)
    if not any(isinstance(future, RpcFuture) for future in futures):
        return _torch_collect_all(futures)
    collected = RpcFuture()
    left = len(futures)
    lock = threading.Lock()

    def done(future: Any) -> None:
        nonlocal left
        try:
            future.value()
        except BaseException as error:
            collected.fail(error)
            return
        with lock:
            left -= 1
            last = not left
        if last:
            collected.resolve(futures)

    for future in futures:
        future.add_done_callback(done)
    return collected


def wait_all(futures: Sequence[Any]) -> list[Any]:
    """Waits for futures and returns their results in order; raises what the first one to fail raised, at once."""
    futures = list(futures)
    if not futures:
        return []
    return [future.wait() for future in collect_all(futures).wait()]


def install() -> None:
    """Puts these `collect_all` and `wait_all` in the place of torch's own, which take any future, too."""
    torch.futures.collect_all = collect_all
    torch.futures.wait_all = wait_all
