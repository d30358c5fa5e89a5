"""What a running function can know about its call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from tensorcall.client.rref import RRef
from tensorcall.wire.errors import Cancelled, DeadlineExceeded


class Owner(Protocol):
    """Who owns values: the core."""

    def own(self, value: object, made_by: str = "") -> RRef:
        """Makes a reference to a value."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is calling."""

    address: str
    """As gRPC writes it, for example "ipv4:127.0.0.1:41952"."""

    trusted: bool = False
    """Whether the caller has shown the server's secret."""

    @property
    def loopback(self) -> bool:
        """Whether the caller is on this machine."""
        return self.address.startswith(("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D", "unix:"))


# One for all calls: it is held for next to no time, and most calls never need it.
_lock = threading.Lock()


class CallContext:
    """One call in progress: who made it, until when, and whether it is still wanted."""

    __slots__ = ("_callbacks", "_owner", "call_id", "cancelled", "deadline", "function", "peer", "started")

    def __init__(
        self,
        function: str,
        peer: Peer,
        timeout: float | None = None,
        call_id: str = "",
        owner: Owner | None = None,
    ) -> None:
        """Begins a call.

        Args:
            function: the name that was called.
            peer: who called.
            timeout: seconds until the deadline; None: there is none.
            call_id: the caller's idempotency key, if any.
            owner: makes references to values of this process.
        """
        self._owner = owner
        self.function = function
        self.peer = peer
        self.call_id = call_id
        self.started = time.monotonic()
        self.deadline = None if timeout is None else self.started + timeout
        self.cancelled = False
        self._callbacks: list[Callable[[], object]] | None = None

    def time_remaining(self) -> float | None:
        """Returns the seconds until the deadline, never below 0; None if there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def over(self) -> bool:
        """Whether the caller no longer waits: it cancelled the call, or the deadline has passed."""
        return self.cancelled or self.expired

    def check(self) -> None:
        """Returns if the call is still wanted. Call it now and then in a long computation on a thread.

        Raises:
            Cancelled: the caller cancelled the call or went away.
            DeadlineExceeded: its time ran out.
        """
        if self.cancelled:
            raise Cancelled(f"the call of {self.function} was cancelled by its caller")
        if self.expired:
            raise DeadlineExceeded(f"the time of the call of {self.function} ran out")

    def own(self, value: object) -> RRef:
        """Makes a reference to a value, which stays in this process: for a result that is not to be copied.

        It lives as long as somebody holds the reference, here or elsewhere.

        Raises:
            LookupError: no server runs this call.
        """
        if self._owner is None:
            raise LookupError("no server runs this call: there is nobody to own the value")
        return self._owner.own(value, self.function)

    def cancel(self) -> None:
        """Marks the call as no longer wanted and tells whoever waits within it. Idempotent."""
        with _lock:
            if self.cancelled:
                return
            self.cancelled = True
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()

    def forget_callbacks(self) -> None:
        """Drops what would be called: it may hold the call, which holds this."""
        with _lock:
            self._callbacks = None

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Has the callback called when the call is cancelled, from any thread; at once if it already is."""
        with _lock:
            if not self.cancelled:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(callback)
                return
        callback()


_current: ContextVar[CallContext] = ContextVar("tensorcall_call")
enter = _current.set
leave = _current.reset


def current_call() -> CallContext:
    """Returns the call that the current function was started by.

    Raises:
        LookupError: this is not running on behalf of a call.
    """
    try:
        return _current.get()
    except LookupError:
        raise LookupError("no call is in progress here: current_call() is for exposed functions") from None
