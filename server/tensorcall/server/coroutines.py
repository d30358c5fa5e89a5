"""The loop that runs coroutine functions, on a thread of its own so that it holds up nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from tensorcall.server.context import CallContext
from tensorcall.wire.waiting import waiting

Done = Callable[[Any, "BaseException | None"], None]


class CoroutineRunner:
    """Runs coroutines; its thread starts with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.running = 0
        # The loop itself keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="tensorcall-asyncio", daemon=True)
                self._thread.start()
            return self._loop

    def start(self, coroutine: Coroutine[Any, Any, Any], context: CallContext | None, done: Done) -> None:
        """Runs a coroutine; cancelling the call, or its deadline, cancels it.

        Args:
            coroutine: runs in a copy of the caller's contextvars.
            context: its call; None for what must run to its end.
            done: called on the loop with the result and None, or None and whatever was raised.
        """
        loop = self._started()

        async def run() -> None:
            # Nothing may escape: SystemExit or KeyboardInterrupt out of a task would end the loop for everyone.
            result, error = None, None
            self.running += 1
            try:
                # Not through asyncio.wait_for: before 3.12 that runs it in a task of its own.
                result = await coroutine
            except BaseException as raised:
                error = raised
            finally:
                self.running -= 1
            done(result, error)

        def begin() -> None:
            task = loop.create_task(run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            if context is None:
                return
            context.on_cancel(lambda: loop.call_soon_threadsafe(task.cancel))
            remaining = context.time_remaining()
            if remaining is not None:
                timer = loop.call_later(remaining, task.cancel)
                task.add_done_callback(lambda _: timer.cancel())

        loop.call_soon_threadsafe(begin)

    def wait(self, coroutine: Coroutine[Any, Any, Any], context: CallContext | None) -> Any:
        """Runs a coroutine and waits for it; returns and raises what it does."""
        future: Future[Any] = Future()

        def done(result: Any, error: BaseException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.start(coroutine, context, done)
        with waiting():
            return future.result()

    def close(self) -> None:
        """Cancels what runs and ends the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return

        async def finish() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            loop.stop()

        asyncio.run_coroutine_threadsafe(finish(), loop)
        thread.join(timeout=5.0)
        if not thread.is_alive():
            loop.close()
