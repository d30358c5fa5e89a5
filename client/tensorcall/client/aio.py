"""The same client for asyncio: a thin layer over the other one, whose threads do the work."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any

from tensorcall.client.async_rref import AsyncRRef, Making, awaitable
from tensorcall.client.carrier import StreamHandle
from tensorcall.client.connection import CarrierName, Connection
from tensorcall.client.options import CallOptions
from tensorcall.client.references import references
from tensorcall.client.remote import Function, Remote, check_name, start_stream, with_token
from tensorcall.wire.rrefs import RRefId


class AsyncResultStream(AsyncIterator[Any]):
    """The items of a generator function, as they come. Closing it stops the function."""

    def __init__(self, connection: Connection, options: CallOptions, name: str, args: Any, kwargs: Any) -> None:
        self._call = (connection, options, name, args, kwargs)
        self._items: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: StreamHandle | None = None
        self._ended = False
        self._lock = threading.Lock()

    def _open(self) -> None:
        """Starts it, on a thread that goes on where the task that awaits it was cancelled."""
        handle = start_stream(*self._call, self)
        with self._lock:
            self._handle = handle
            wanted = not self._ended
        if not wanted:
            handle.cancel()

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                # May wait for a connection.
                await asyncio.to_thread(self._open)
            is_item, value = await self._items.get()
        except BaseException:
            await self.aclose()
            raise
        if is_item:
            if self._handle is not None:
                self._handle.consumed()
            return value
        self._ended = True
        # For other tasks that wait.
        self._items.put_nowait((False, None))
        if value is None:
            raise StopAsyncIteration
        try:
            raise value
        finally:
            del value  # this frame is part of its traceback

    def item(self, item: Any) -> None:
        """Takes an item, from the thread that receives it."""
        self._put(True, item)

    def end(self, error: BaseException | None) -> None:
        """Takes the end, from the thread that receives it."""
        self._put(False, error)

    def _put(self, is_item: bool, value: Any) -> None:
        assert self._loop is not None
        # Should the loop be closed, nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._items.put_nowait, (is_item, value))

    async def aclose(self) -> None:
        """Stops the function. Idempotent; does nothing once the stream has ended."""
        with self._lock:
            ended, self._ended = self._ended, True
            handle = self._handle
        if not ended:
            if handle is not None:
                handle.cancel()
            # Another task may wait for an item.
            self._items.put_nowait((False, None))

    async def __aenter__(self) -> AsyncResultStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._handle is not None and not self._ended:
            self._handle.cancel()


class AsyncRemote:
    """A server, for asyncio; see `connect_async`. Methods are those of `Remote`, with `await` and `async for`."""

    def __init__(self, connection: Connection, options: CallOptions) -> None:
        self._connection = connection
        self._options = options
        self._remote = Remote(connection, options)

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._connection.address

    def options(self, **settings: Any) -> AsyncRemote:
        """Returns the same connection with other settings for calls; see `Remote.options`."""
        return AsyncRemote(self._connection, dataclasses.replace(self._options, **settings))

    async def call(self, function: str, /, *args: Any, **kwargs: Any) -> Any:
        """Calls an exposed function; see `Remote.call`. Cancelling the task cancels the call."""
        return await self.submit(function, *args, **kwargs)

    def submit(self, function: str, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Calls an exposed function and returns its future at once; see `Remote.submit`. Needs a running loop."""
        check_name(function)
        if self._connection.ready:
            return awaitable(self._remote.submit(function, *args, **kwargs))
        return asyncio.ensure_future(self._submit_when_ready(function, args, kwargs))

    async def _submit_when_ready(self, function: str, args: Any, kwargs: Any) -> Any:
        start = time.monotonic()
        timeout = self._options.timeout
        if timeout is not None and timeout > 0:  # another one is refused by submit
            await asyncio.to_thread(self._connection.carrier, timeout)
            timeout = max(timeout - (time.monotonic() - start), 1e-9)
            return await awaitable(self._remote.options(timeout=timeout).submit(function, *args, **kwargs))
        await asyncio.to_thread(self._connection.carrier)
        return await awaitable(self._remote.submit(function, *args, **kwargs))

    def remote(self, function: str, /, *args: Any, **kwargs: Any) -> AsyncRRef:
        """Calls an exposed function, and leaves the result on the server; see `Remote.remote`. Returns at once.

        What keeps the call from being made (an argument that can't be sent, a server that does not answer) is raised
        by the reference's methods.
        """
        check_name(function)

        def make() -> Any:
            return self._remote.remote(function, *args, **kwargs)

        if self._connection.ready and self._connection.link.has_lease:
            return AsyncRRef(make())
        return AsyncRRef(Making(make))

    def open_rref(self, rref_id: RRefId) -> AsyncRRef:
        """Makes a reference of a name that came some other way; see `Remote.open_rref`."""
        made: AsyncRRef = self._remote.open_rref(rref_id)
        return made

    def stream(self, function: str, /, *args: Any, **kwargs: Any) -> AsyncResultStream:
        """Calls an exposed generator function at the first `async for`; see `Remote.stream`."""
        return AsyncResultStream(self._connection, self._options, function, args, kwargs)

    async def functions(self, prefix: str = "") -> list[Function]:
        """Returns what is exposed; see `Remote.functions`."""
        return await asyncio.to_thread(self._remote.functions, prefix)

    async def describe(self, function: str) -> Function:
        """Returns what is known of one exposed function; see `Remote.describe`."""
        return await asyncio.to_thread(self._remote.describe, function)

    async def close(self) -> None:
        """Cancels what is in flight and ends the connection. Idempotent."""
        await asyncio.to_thread(self._connection.close)

    async def __aenter__(self) -> AsyncRemote:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncRemote {self.address}>"


def connect_async(
    address: str,
    *,
    carrier: CarrierName = "auto",
    connect_timeout: float = 10.0,
    token: str | None = None,
    metadata: Iterable[tuple[str, str]] = (),
    **settings: Any,
) -> AsyncRemote:
    """Connects to a server, for asyncio; arguments as of `connect`. References in results are `AsyncRRef`."""
    connection = Connection(address, carrier, connect_timeout, metadata=with_token(metadata, token))
    connection.open_rref = lambda rref_id: AsyncRRef(references().open(rref_id, connection))
    return AsyncRemote(connection, CallOptions(**settings))
