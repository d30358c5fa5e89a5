"""A value that this process owns for others."""

from __future__ import annotations

import copy
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tensorcall.server.raised import UdfRaised
from tensorcall.server.sizes import size_of
from tensorcall.wire.errors import DeadlineExceeded, TensorcallError
from tensorcall.wire.rrefs import RRefId
from tensorcall.wire.waiting import waiting

if TYPE_CHECKING:
    from tensorcall.server.leases import Lease
    from tensorcall.server.rrefs import RRefTable

# One for all values: it is held for next to no time. Re-entrant, since garbage may be collected under it.
_lock = threading.RLock()
_PENDING, _VALUE, _ERROR = range(3)


class Owned:
    """A value, or what is to become one: pending first, then a value or an error, once and for good."""

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_outcome",
        "_state",
        "_table",
        "_traceback",
        "_udf",
        "created",
        "creator",
        "holders",
        "made_by",
        "nbytes",
        "sequence",
    )

    def __init__(self, table: RRefTable, sequence: int, made_by: str, created: float) -> None:
        """Is called by the table only: see `RRefTable.own`, `pending` and `promise`."""
        self._table = table
        self.sequence = sequence
        self.made_by = made_by
        """What makes it, for example "digits.Model"; empty as long as nobody does."""
        self.created = created
        """When, by the table's clock."""
        self.nbytes = 0
        """What its tensors take in memory; 0 while it is pending."""
        # Who holds it, and how often; and who pays for it. The table's.
        self.holders: dict[Lease, int] = {}
        self.creator: Lease | None = None
        self._state = _PENDING
        self._outcome: Any = None
        self._udf = False
        self._traceback: TracebackType | None = None
        self._callbacks: list[Callable[[Owned], object]] | None = []

    @property
    def rref_id(self) -> RRefId:
        """Its name, with this process' address."""
        table = self._table
        return RRefId(table.worker, table.incarnation, self.sequence, table.address)

    @property
    def done(self) -> bool:
        """Whether it is a value or an error by now."""
        return self._state != _PENDING

    @property
    def failed(self) -> bool:
        """Whether it is an error."""
        return self._state == _ERROR

    @property
    def type_name(self) -> str:
        """Its type as "module.name"; empty while it is pending, and for errors."""
        if self._state != _VALUE:
            return ""
        cls = type(self._outcome)
        return f"{cls.__module__}.{cls.__qualname__}"

    def set_value(self, value: object) -> None:
        """Makes it this value, unless it is done already.

        Raises:
            TooLarge: the client that has it made holds as much as it may; that is what it becomes then.
        """
        nbytes = size_of(value)
        try:
            self._table.filled(self, nbytes)
        except TensorcallError as error:
            self.set_error(error)
            raise
        self._finish(_VALUE, value, False)

    def set_error(self, error: BaseException) -> None:
        """Makes it an error, unless it is done already.

        Args:
            error: what the function raised (as it is, or as UdfRaised), or an error of ours.
        """
        udf = not isinstance(error, TensorcallError)
        if isinstance(error, UdfRaised):
            error = error.exception
        # The frames' variables would be kept as long as the error: the arguments, and all that the function made.
        traceback.clear_frames(error.__traceback__)
        self._finish(_ERROR, error, udf)

    def _finish(self, state: int, outcome: Any, udf: bool) -> None:
        with _lock:
            if self._state != _PENDING:
                return
            self._outcome, self._udf = outcome, udf
            self._traceback = outcome.__traceback__ if state == _ERROR else None
            self._state = state
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback(self)

    def on_done(self, callback: Callable[[Owned], object]) -> Callable[[], None]:
        """Has the callback called with this once it is done, on whatever thread; at once if it is. It must be quick.

        Returns:
            What calls that off, if it has not been called.
        """
        with _lock:
            if self._callbacks is not None:
                self._callbacks.append(callback)
                return lambda: self._forget(callback)
        callback(self)
        return lambda: None

    def _forget(self, callback: Callable[[Owned], object]) -> None:
        with _lock:
            if self._callbacks is not None and callback in self._callbacks:
                self._callbacks.remove(callback)

    def wait_done(self, timeout: float | None = None) -> bool:
        """Waits until it is done; False if that takes longer than `timeout` seconds."""
        if self._state != _PENDING:
            return True
        event = threading.Event()
        call_off = self.on_done(lambda _: event.set())
        try:
            with waiting():
                return event.wait(None if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX)))
        finally:
            call_off()

    def wait(self, timeout: float | None = None) -> Any:
        """Waits for the value and returns it: itself, no copy.

        Raises:
            DeadlineExceeded: there is none after `timeout` seconds.
            BaseException: what the function raised that was to make it, or why it did not run.
        """
        began = time.monotonic()
        if not self.wait_done(timeout):
            raise DeadlineExceeded(f"{self.rref_id} is not there after {time.monotonic() - began:.1f} s")
        if self._state == _ERROR:
            raise _apart(self._outcome, self._traceback)
        return self._outcome

    def failure(self) -> UdfRaised | TensorcallError | None:
        """Returns what a call ends with that needs the value; None if there is one."""
        if self._state != _ERROR:
            return None
        if self._udf:
            return UdfRaised(self._outcome)
        error = _apart(self._outcome, None)
        assert isinstance(error, TensorcallError)
        return error

    def __repr__(self) -> str:
        state = ("pending", self.type_name, f"failed: {type(self._outcome).__name__}")[self._state]
        return f"<Owned {self.rref_id} {state}>"


def _apart(error: BaseException, traceback: TracebackType | None) -> BaseException:
    """Returns a copy to be raised: what is raised holds the frames that it passes, and they may hold the value."""
    try:
        made = copy.copy(error)
    except Exception:
        made = error
    if type(made) is not type(error):
        made = error
    made.__cause__, made.__context__ = error.__cause__, error.__context__
    made.__suppress_context__ = error.__suppress_context__
    return made.with_traceback(traceback)
