"""A reference to a value in another process."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tensorcall.client import calling
from tensorcall.client.connection import Connection
from tensorcall.client.forks import Fork
from tensorcall.client.futures import CallFuture
from tensorcall.client.link import message
from tensorcall.client.options import CallOptions, seconds
from tensorcall.client.rref import RRef
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire.calls import Target
from tensorcall.wire.errors import DeadlineExceeded, OwnerRestarted, RRefError
from tensorcall.wire.rrefs import RRefId

DEFAULT = CallOptions()


@dataclass(frozen=True, slots=True)
class RemoteClass:
    """A class that the owner of a value knows, and this process does not."""

    module: str
    """Its module."""

    name: str
    """Its qualified name."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class UserRRef(RRef):
    """A reference to a value in another process, which lives as long as somebody has one.

    Each is one fork; its end releases that. Timeouts are in seconds; without one the settings count that it was made
    with.
    """

    __slots__ = ("_connection", "_fork", "_options", "_type")

    def __init__(self, connection: Connection, fork: Fork, options: CallOptions = DEFAULT) -> None:
        """Makes the one handle of a fork.

        Args:
            connection: the way to the owner.
            fork: of its link.
            options: settings for what is called through it.
        """
        self._connection = connection
        self._fork = fork
        # A call id is for one call only.
        plain = not options.call_id and options.progress is None
        self._options = options if plain else dataclasses.replace(options, call_id="", progress=None)
        self._type: type | RemoteClass | None = None

    def __del__(self) -> None:
        # Only queues it: this may run anywhere, in the midst of a send as well. Without a fork it was never made.
        fork = getattr(self, "_fork", None)
        if fork is not None:
            fork.let_go()

    def rref_id(self) -> RRefId:
        """Returns the value's name, with the owner's address."""
        return self._fork.rref_id

    def is_owner(self) -> bool:
        """False."""
        return False

    def owner(self) -> Any:
        """Names the worker that owns the value."""
        return self._fork.rref_id.owner

    def owner_name(self) -> str:
        """Names the worker that owns the value."""
        return self._fork.rref_id.owner

    def confirmed_by_owner(self) -> bool:
        """Tells whether the owner knows of this reference: of a new value, as soon as it is made."""
        return self._fork.confirmed

    def wait_confirmed(self, timeout: float | None = None) -> None:
        """Waits until the owner knows of this reference; see `RRef.wait_confirmed`."""
        self._fork.wait(timeout)

    def when_confirmed(self, callback: Callable[[], object]) -> None:
        """Has this called when the owner knows of this reference, or never will."""
        self._fork.when_settled(callback)

    def local_value(self) -> Any:
        """Raises: the value is not here.

        Raises:
            RuntimeError: always; `to_here` fetches a copy.
        """
        raise RuntimeError(
            f"For {self}, can't call localValue() on a user. Call it on owner {self.owner_name()}, or to_here() for a "
            "copy"
        )

    def to_here(self, timeout: float | None = None) -> Any:
        """Returns a copy of the value; waits until there is one.

        Raises:
            RemoteError: what the function raised that was to make it.
            RRefUnknown, RRefExpired, OwnerRestarted: it is gone.
            NetworkError, DeadlineExceeded: it could not be fetched.
        """
        return self._waited(self.fetch(timeout))

    def fetch(self, timeout: float | None = None) -> CallFuture:
        """Returns the future of what `to_here` returns."""
        self._fork.check()
        return self._submit(Target(fetch=self._fork.rref_id), (), {}, timeout)

    @property
    def at_once(self) -> bool:
        """Whether calls through it can be made without waiting for a connection, or for a lease."""
        return self._connection.ready and self._connection.link.has_lease

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> CallFuture:
        """Calls a method of the value; `rpc_async` in a form for programs."""
        self._fork.check()
        return self._submit(Target(method=(self._fork.rref_id, method)), args, kwargs, timeout)

    def create(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> RRef:
        """Calls a method of the value, whose result stays there; `remote` in a form for programs."""
        self._fork.check()
        target = Target(method=(self._fork.rref_id, method))
        options = self._with(timeout)
        return self._made(calling.create(self._connection, options, target, args, kwargs, keep=self))

    def _made(self, fork: Fork) -> RRef:
        return type(self)(self._connection, fork, self._options)

    def _submit(
        self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> CallFuture:
        return calling.submit(self._connection, self._with(timeout), target, args, kwargs, keep=self)

    def _with(self, timeout: float | None) -> CallOptions:
        return self._options if timeout is None else dataclasses.replace(self._options, timeout=timeout)

    def _waited(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except (RRefError, OwnerRestarted):
            # Why the owner does not have it may be known better here; or it is news.
            self._fork.link.doubt()
            self._fork.check()
            raise
        except BaseException:
            future.cancel()  # Ctrl-C: nobody will read it
            raise
        finally:
            del future  # this frame is part of the traceback of what it holds

    def rpc_sync(self, timeout: float | None = None) -> Any:
        """Gives a proxy: `rref.rpc_sync().method(…)` calls a method of the value and waits for the result."""
        return Proxy(lambda name, args, kwargs: self._waited(self.call(name, args, kwargs, timeout)))

    def rpc_async(self, timeout: float | None = None) -> Any:
        """Gives a proxy: `rref.rpc_async().method(…)` calls a method of the value and returns the future."""
        return Proxy(lambda name, args, kwargs: self.call(name, args, kwargs, timeout))

    def remote(self, timeout: float | None = None) -> Any:
        """Gives a proxy: `rref.remote().method(…)` calls a method of the value; the result stays there."""
        return Proxy(lambda name, args, kwargs: self.create(name, args, kwargs, timeout))

    def _get_type(self, timeout: float | None = None, blocking: bool = True) -> Any:
        """Tells the class of the value, or a future of it. Asks the owner once; the value does not move.

        Returns:
            The class, where this process has imported it; else a RemoteClass.
        """
        future = CallFuture(self._connection.way)
        if self._type is not None:
            future.resolve(self._type)
        else:
            self._ask_type(future, timeout)
        return self._waited(future) if blocking else future

    def _ask_type(self, future: CallFuture, timeout: float | None) -> None:
        self._fork.check()
        limit = self._options.timeout if timeout is None else seconds("timeout", timeout)
        if limit is not None and limit <= 0:
            raise DeadlineExceeded(f"the timeout of {limit:g} s had passed before the owner was asked")
        asked = self._connection.ask_rrefs("GetType", pb.GetTypeRequest(rref=message(self._fork.rref_id)), limit)
        future.on_cancel(asked.cancel)

        def told(asked: Future[Any]) -> None:
            if asked.cancelled():
                return
            error = asked.exception()
            if error is not None:
                future.fail(error)
                return
            response = asked.result()
            self._type = self.find_class(response.module, response.name)
            future.resolve(self._type)

        asked.add_done_callback(told)

    def find_class(self, module: str, name: str) -> type | RemoteClass:
        """Returns the class that a name means here. Imports nothing: it is the owner who names it."""
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = _named_in(found, part)
        return found if issubclass(type(found), type) else RemoteClass(module, name)

    def __repr__(self) -> str:
        return f"UserRRef({self._fork.rref_id})"


def _named_in(place: object, name: str) -> Any:
    """Returns what a module or class has of that name. Runs nothing of theirs: modules may import what is asked for."""
    if not issubclass(type(place), (types.ModuleType, type)):
        return None
    return object.__getattribute__(place, "__dict__").get(name)


class Proxy:
    """Calls methods of a value in another process."""

    __slots__ = ("_start",)

    def __init__(self, start: Callable[[str, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        """Makes a proxy; `start` makes a call of (name, args, kwargs)."""
        self._start = start

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            # copy, pickle and the like ask; no owner would let them.
            raise AttributeError(name)
        start = self._start

        def method(*args: Any, **kwargs: Any) -> Any:
            return start(name, args, kwargs)

        method.__name__ = method.__qualname__ = name
        return method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the value itself."""
        return self._start("__call__", args, kwargs)
