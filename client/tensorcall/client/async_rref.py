"""References for asyncio: a layer over the others."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn

from tensorcall.client.rref import RRef
from tensorcall.client.user_rref import Proxy, UserRRef
from tensorcall.wire.rrefs import Handle, RRefId


def awaitable(call: Future[Any]) -> asyncio.Future[Any]:
    """Returns a future of the running loop for one of threads.

    What `asyncio.wrap_future` makes of the two refers to itself: results would stay until the garbage collector runs.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def copy(call: Future[Any]) -> None:
        if future.done():
            return
        if call.cancelled():
            future.cancel()
            return
        error = call.exception()
        if error is None:
            future.set_result(call.result())
        elif isinstance(error, StopIteration):
            # asyncio's futures refuse it.
            future.set_exception(RuntimeError(f"the call raised {error!r}"))
        else:
            future.set_exception(error)

    def ended(call: Future[Any]) -> None:
        # Should the loop be closed, nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(copy, call)

    def cancelled(future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            call.cancel()

    # The one way that leads from here to the call; asyncio forgets it when the future is done.
    future.add_done_callback(cancelled)
    call.add_done_callback(ended)
    return future


class Making(Future[RRef]):
    """A reference that a thread makes, since that may have to wait for a connection, and for a lease."""

    def __init__(self, make: Callable[[], RRef]) -> None:
        """Begins to make it."""
        super().__init__()

        def run() -> None:
            try:
                made = make()
            except BaseException as error:
                self.set_exception(error)
            else:
                self.set_result(made)

        threading.Thread(target=run, name="tensorcall-remote", daemon=True).start()


class AsyncRRef(Handle):
    """A reference to a value in another process, for asyncio: methods are those of `RRef`, with `await`.

    It may be passed on as any other. Its methods need a running loop.
    """

    __slots__ = ("__weakref__", "_made")

    def __init__(self, made: RRef | Making) -> None:
        """Makes one of a reference, or of one that is being made."""
        self._made = made

    def _rref(self) -> RRef:
        """Returns the reference; waits until it is made, which needs no loop."""
        made = self._made
        if isinstance(made, Making):
            made = self._made = made.result()
        return made

    async def _ready(self) -> UserRRef:
        made = self._made
        if isinstance(made, Making):
            # Another task may wait for it, too, when this one is cancelled.
            made = self._made = await asyncio.shield(awaitable(made))
        assert isinstance(made, UserRRef)
        return made

    def rref_id(self) -> RRefId:
        """Returns the value's name. Waits if it has none yet: the first reference to a server needs a lease."""
        return self._rref().rref_id()

    def is_owner(self) -> bool:
        """False."""
        return False

    def owner_name(self) -> str:
        """Names the worker that owns the value; waits as `rref_id`."""
        return self._rref().owner_name()

    def confirmed_by_owner(self) -> bool:
        """Tells whether the owner knows of this reference."""
        made = self._made
        if isinstance(made, Making):
            return made.done() and made.exception() is None and made.result().confirmed_by_owner()
        return made.confirmed_by_owner()

    def when_confirmed(self, callback: Callable[[], object]) -> None:
        """See `RRef.when_confirmed`."""
        self._rref().when_confirmed(callback)

    async def wait_confirmed(self, timeout: float | None = None) -> None:
        """Waits until the owner knows of this reference; see `RRef.wait_confirmed`."""
        rref = await self._ready()
        settled: Future[None] = Future()
        rref.when_confirmed(lambda: _end(settled))
        with contextlib.suppress(asyncio.TimeoutError):  # the next line tells
            await asyncio.wait_for(awaitable(settled), timeout)
        rref.wait_confirmed(0)

    def local_value(self) -> Any:
        """Raises RuntimeError: the value is not here."""
        return self._rref().local_value()

    async def to_here(self, timeout: float | None = None) -> Any:
        """Returns a copy of the value; see `UserRRef.to_here`. Cancelling the task cancels that."""
        rref = await self._ready()
        return await awaitable(rref.fetch(timeout))

    def rpc_sync(self, timeout: float | None = None) -> Any:
        """As `rpc_async`: nothing in asyncio is synchronous."""
        return self.rpc_async(timeout)

    def rpc_async(self, timeout: float | None = None) -> Any:
        """Gives a proxy: `await rref.rpc_async().method(…)` calls a method of the value."""

        async def call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            rref = await self._ready()
            return await awaitable(rref.call(name, args, kwargs, timeout))

        def start(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            made = self._made
            if isinstance(made, UserRRef):
                # Begins at once, as `submit` does.
                return awaitable(made.call(name, args, kwargs, timeout))
            return asyncio.ensure_future(call(name, args, kwargs))

        return Proxy(start)

    def remote(self, timeout: float | None = None) -> Any:
        """Gives a proxy: `rref.remote().method(…)` calls a method of the value; the result stays there."""

        def start(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncRRef:
            def make() -> RRef:
                made = self._rref()
                assert isinstance(made, UserRRef)
                return made.create(name, args, kwargs, timeout)

            made = self._made
            return AsyncRRef(make() if isinstance(made, UserRRef) and made.at_once else Making(make))

        return Proxy(start)

    async def get_type(self, timeout: float | None = None) -> Any:
        """Tells the class of the value; see `RRef._get_type`."""
        rref = await self._ready()
        return await awaitable(rref._get_type(timeout, blocking=False))

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("Can not pickle rref in python pickler, rref can only be pickled when using RPC")

    def __repr__(self) -> str:
        return f"AsyncRRef({self._made!r})"


def _end(settled: Future[None]) -> None:
    if settled.set_running_or_notify_cancel():
        settled.set_result(None)
