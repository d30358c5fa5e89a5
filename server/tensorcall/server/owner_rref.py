"""The owner's own handle of a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tensorcall.client.futures import CallFuture
from tensorcall.client.rref import RRef
from tensorcall.server.owned import Owned
from tensorcall.wire.rrefs import RRefId

if TYPE_CHECKING:
    from tensorcall.server.core import Core


class OwnerRRef(RRef):
    """A reference to a value of this process. Keeps it alive as any object is kept alive: no fork, no messages."""

    __slots__ = ("_core", "owned")

    def __init__(self, owned: Owned, core: Core) -> None:
        """Makes a handle; `Core.own` does, and `Core.open_rref`."""
        self.owned = owned
        self._core = core

    def rref_id(self) -> RRefId:
        """Returns the value's name, with this server's address."""
        return self.owned.rref_id

    def to_here(self, timeout: float | None = None) -> Any:
        """Returns the value itself, no copy; waits until there is one.

        Raises:
            DeadlineExceeded: there is none after `timeout` seconds.
            BaseException: what the function raised that was to make it.
        """
        return self.owned.wait(timeout)

    def local_value(self) -> Any:
        """Returns the value itself; waits until there is one."""
        return self.owned.wait()

    def is_owner(self) -> bool:
        """True."""
        return True

    def owner(self) -> Any:
        """Names this server's worker."""
        return self.owned.rref_id.owner

    def owner_name(self) -> str:
        """Names this server's worker."""
        return self.owned.rref_id.owner

    def confirmed_by_owner(self) -> bool:
        """True: this is the owner."""
        return True

    def wait_confirmed(self, timeout: float | None = None) -> None:
        """Returns at once."""

    def rpc_sync(self, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run here and now, on this thread."""
        return _Proxy(self, lambda run: run(timeout))

    def rpc_async(self, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on one of the server's threads and return futures."""

        def start(run: Callable[[float | None], Any]) -> CallFuture:
            future = CallFuture()
            self._core.pool.submit_always(_run_into, run, timeout, future.resolve, future.fail)
            return future

        return _Proxy(self, start)

    def remote(self, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on one of the server's threads and return references to the result."""

        def start(run: Callable[[float | None], Any], name: str) -> OwnerRRef:
            owned = self._core.rrefs.pending(f"{self.owned.type_name or self.owned.made_by}.{name}")
            self._core.pool.submit_always(_run_into, run, timeout, owned.set_value, owned.set_error)
            return OwnerRRef(owned, self._core)

        return _Proxy(self, start, named=True)

    def _get_type(self, timeout: float | None = None, blocking: bool = True) -> Any:
        """Tells the value's class, or a future of it; waits until there is a value."""
        if blocking:
            return type(self.owned.wait(timeout))
        future = CallFuture()

        def tell(owned: Owned) -> None:
            _run_into(lambda _: type(owned.wait(0)), None, future.resolve, future.fail)

        self.owned.on_done(tell)
        return future

    def __repr__(self) -> str:
        return f"OwnerRRef({self.owned.rref_id})"


class _Proxy:
    """Calls methods of a value of this process."""

    __slots__ = ("_named", "_rref", "_start")

    def __init__(self, rref: OwnerRRef, start: Callable[..., Any], named: bool = False) -> None:
        self._rref = rref
        self._start = start
        self._named = named

    def __getattr__(self, name: str) -> Callable[..., Any]:
        rref, start, named = self._rref, self._start, self._named

        def method(*args: Any, **kwargs: Any) -> Any:
            def run(timeout: float | None) -> Any:
                return getattr(rref.owned.wait(timeout), name)(*args, **kwargs)

            return start(run, name) if named else start(run)

        method.__name__ = name
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__getattr__("__call__")(*args, **kwargs)


def _run_into(
    run: Callable[[float | None], Any],
    timeout: float | None,
    succeed: Callable[[Any], object],
    fail: Callable[[BaseException], object],
) -> None:
    try:
        result = run(timeout)
    except BaseException as error:
        fail(error)
    else:
        succeed(result)
