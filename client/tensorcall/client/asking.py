"""Asks an owner about references, again and again if the way there is at fault: all that is asked is idempotent."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Protocol

from tensorcall.client.deadlines import deadlines
from tensorcall.client.housekeeping import housekeeper
from tensorcall.wire.errors import Cancelled, DeadlineExceeded, InternalError, NetworkError, Overloaded, TensorcallError

# How long one attempt may take, and when the next one follows, in seconds.
ATTEMPT_SECONDS = 5.0
_FIRST_DELAY, _MAX_DELAY = 0.05, 1.0


class Ask(Protocol):
    """Calls a method of RRefService; returns at once."""

    def __call__(self, method: str, request: Any, timeout: float) -> Future[Any]:
        """Returns the future of the response. What it raises is a TensorcallError."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a link has of the process around it; tests bring their own."""

    clock: Callable[[], float] = time.monotonic
    after: Callable[[float, Callable[[], None]], Callable[[], None]] = deadlines.after
    """Calls back after so many seconds, on a thread that must not be held up; returns what calls that off."""
    post: Callable[[Any, Any], None] = housekeeper.post
    """Hands (household, item) to the housekeeper; from anywhere."""
    start: Callable[[], None] = housekeeper.start
    """Sees to it that there is one."""


Done = Callable[[Any, "TensorcallError | None", float], None]
"""Called once: with the response and None, or None and the error; and when it was asked last, by the clock."""


class Request:
    """One request, asked until it is answered, or nobody is patient any more."""

    def __init__(
        self,
        ask: Ask,
        method: str,
        request: Any,
        done: Done,
        *,
        surroundings: Surroundings,
        patience: float,
        wanted: Callable[[], bool],
    ) -> None:
        """Asks for the first time.

        Args:
            ask: what carries it.
            method: of RRefService.
            request: its request.
            done: called once, on whatever thread brings the answer.
            surroundings: the process around it.
            patience: for how many seconds it may be asked.
            wanted: asked before each repetition.
        """
        self._ask = ask
        self._method = method
        self._request = request
        self._done = done
        self._surroundings = surroundings
        self._until = surroundings.clock() + patience
        self._wanted = wanted
        self._delay = _FIRST_DELAY
        self._asked_at = 0.0
        self._attempt()

    def _attempt(self) -> None:
        now = self._asked_at = self._surroundings.clock()
        left = min(ATTEMPT_SECONDS, max(self._until - now, 0.1))
        try:
            future = self._ask(self._method, self._request, left)
        except TensorcallError as error:
            self._failed(error.with_traceback(None))
            return
        except Exception as error:
            # Somebody may wait for the end of this.
            self._failed(InternalError(f"a defect of tensorcall: {type(error).__name__}: {error}"))
            return
        future.add_done_callback(self._answered)

    def _answered(self, future: Future[Any]) -> None:
        try:
            error = future.exception()
        except CancelledError:
            error = Cancelled("the request was cancelled")
        if error is None:
            self._done(future.result(), None, self._asked_at)
        elif isinstance(error, TensorcallError):
            self._failed(error)
        else:
            self._failed(InternalError(f"a defect of tensorcall: {type(error).__name__}: {error}"))

    def _failed(self, error: TensorcallError) -> None:
        transient = isinstance(error, (NetworkError, DeadlineExceeded, Overloaded))
        patient = self._surroundings.clock() < self._until
        if not (transient and patient and self._wanted()):
            self._done(None, error, self._asked_at)
            return
        delay, self._delay = self._delay, min(2 * self._delay, _MAX_DELAY)
        self._surroundings.after(delay, self._attempt)
