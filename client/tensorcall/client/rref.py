"""The public face of a reference to a value, wherever that lives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

from tensorcall.wire.rrefs import Handle


class RRef(Handle):
    """A reference to a value that one process owns.

    Send it like any other argument or result, at any depth; whoever gets it has a reference of its own. Subclasses are
    the owner's handle (`tensorcall.server.owner_rref`) and a user's (`tensorcall.client.user_rref`).
    """

    __slots__ = ("__weakref__",)

    @abstractmethod
    def to_here(self, timeout: float | None = None) -> Any:
        """Returns a copy of the value; on its owner the value itself. Waits until there is one."""

    @abstractmethod
    def local_value(self) -> Any:
        """Returns the value itself. Only on its owner."""

    @abstractmethod
    def is_owner(self) -> bool:
        """Tells whether this process owns the value."""

    @abstractmethod
    def owner(self) -> Any:
        """Tells who owns the value."""

    @abstractmethod
    def owner_name(self) -> str:
        """Names the worker that owns the value."""

    @abstractmethod
    def confirmed_by_owner(self) -> bool:
        """Tells whether the owner knows of this reference."""

    @abstractmethod
    def wait_confirmed(self, timeout: float | None = None) -> None:
        """Waits until the owner knows of this reference.

        Raises:
            DeadlineExceeded: it takes longer than `timeout` seconds.
            TensorcallError: it will never be: the value is gone, or nobody answers.
        """

    def when_confirmed(self, callback: Callable[[], object]) -> None:
        """Has this called, once, when the owner knows of this reference, or never will. It must be quick."""
        callback()

    @abstractmethod
    def rpc_sync(self, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on the value and wait for the result."""

    @abstractmethod
    def rpc_async(self, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on the value and return futures."""

    @abstractmethod
    def remote(self, timeout: float | None = None) -> Any:
        """Gives a proxy whose methods run on the value and return references to the result."""

    @abstractmethod
    def _get_type(self, timeout: float | None = None, blocking: bool = True) -> Any:
        """Tells the type of the value, or a future of it."""

    def __reduce__(self) -> NoReturn:
        # A copy would let go of what the original still holds.
        raise RuntimeError("Can not pickle rref in python pickler, rref can only be pickled when using RPC")
