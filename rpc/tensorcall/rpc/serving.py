"""What a worker's server runs for the others: the functions that only its own registry knows."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tensorcall.rpc import callees, recording
from tensorcall.server.core import hide_frames
from tensorcall.server.expose import Exposed
from tensorcall.wire.rrefs import RRefId
from tensorcall.wire.waiting import waiting

if TYPE_CHECKING:
    from tensorcall.server.core import Core

_log = logging.getLogger(__name__)

RUN, RUN_LATER, PING = "rpc.run", "rpc.run_later", "rpc.ping"

OUR_FILES = (__file__, callees.__file__, recording.__file__)
hide_frames(*OUR_FILES)

# What a call may say of itself: that it is none of the user's, and what value it makes, and where that is asked for.
Note = tuple[bool, RRefId | None, str]
NOTHING: Note = (False, None, "")
INTERNAL: Note = (True, None, "")


class Serving:
    """Runs the calls of others on this worker, once it has joined its world."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.core: Core | None = None
        self._lock = threading.Lock()
        self._active = 0
        self._active_later = 0

    def exposed(self) -> list[Exposed]:
        """Returns the functions, for a registry."""
        return [Exposed(RUN, self.run), Exposed(RUN_LATER, self.run_later), Exposed(PING, self.ping)]

    @property
    def active(self) -> int:
        """How many calls of users run here, those that answer later included."""
        return self._active

    @property
    def active_later(self) -> int:
        """How many of them have returned a future that is not done."""
        return self._active_later

    def ping(self) -> bool:
        """Tells that this worker lives, and whether it has joined its world."""
        return self.ready.is_set()

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], note: Note) -> Any:
        """Runs a function and returns its result."""
        self._await_ready()
        self._take_note(func, note)
        with self._counted(note):
            try:
                return callees.run(func, args, kwargs)
            except Exception as error:
                tell(func, error)
                raise

    async def run_later(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], note: Note
    ) -> Any:
        """Runs a function that returns a future, and awaits that without a thread."""
        assert self.core is not None
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Any] = loop.create_future()

        def settle(set_it: Callable[[Any], None], what: Any) -> None:
            def now() -> None:
                if not outcome.done():
                    set_it(what)

            loop.call_soon_threadsafe(now)

        def begin() -> None:
            try:
                self._await_ready()
                self._take_note(func, note)
                self.begin_later(func, args, kwargs, lambda result: settle(outcome.set_result, result), fail)
            except BaseException as error:
                fail(error)

        def fail(error: BaseException) -> None:
            # A coroutine can't be given what would end its loop.
            if isinstance(error, (StopIteration, asyncio.CancelledError)):
                error = RuntimeError(f"{type(error).__name__}: {error}")
            settle(outcome.set_exception, error)

        with self._counted(note):
            self.core.pool.submit_always(begin)
            return await outcome

    def begin_later(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        succeed: Callable[[Any], object],
        fail: Callable[[BaseException], object],
    ) -> None:
        """Runs a function that returns a future, on this thread; tells what becomes of the future."""
        try:
            future = callees.run(func, args, kwargs)
        except BaseException as error:
            if isinstance(error, Exception):
                tell(func, error)
            fail(error)
            return
        if not hasattr(future, "add_done_callback"):
            # It was recorded, for which it had to be waited for.
            succeed(future)
            return
        with self._lock:
            self._active_later += 1

        def done(ended: Any) -> None:
            with self._lock:
                self._active_later -= 1
            try:
                result = ended.value()
            except BaseException as error:
                if isinstance(error, Exception):
                    tell(func, error)
                fail(error)
            else:
                succeed(result)

        future.add_done_callback(done)

    def _await_ready(self) -> None:
        if not self.ready.is_set():
            # A peer that has joined already may call before this one knows who is there.
            with waiting():
                self.ready.wait()

    def _take_note(self, func: Callable[..., Any], note: Note) -> None:
        _, rref_id, made_by = note
        if rref_id is not None and made_by and self.core is not None:
            self.core.rrefs.get(rref_id).made_by = made_by

    @contextmanager
    def _counted(self, note: Note) -> Iterator[None]:
        internal = note[0]
        if internal:
            yield
            return
        with self._lock:
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1


def tell(func: Callable[..., Any], error: BaseException) -> None:
    """Logs what a function raised for another worker; torch prints it."""
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    _log.warning("%s, called by another worker, raised %s: %s", name, type(error).__name__, error, exc_info=error)
