"""A generator function's call on a session: runs while items may be sent, and holds no thread while they may not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Protocol

from tensorcall.client.deadlines import deadlines
from tensorcall.server.core import Call, Core
from tensorcall.wire.calls import Encoded
from tensorcall.wire.limits import CHUNK_BYTES

# More than anybody grants in earnest.
_MAX_CREDIT = 1 << 31


class ItemSender(Protocol):
    """Where items go: the session."""

    def send_item(self, number: int, item: Encoded, sent: Callable[[], None]) -> bool:
        """Sends an item. False: the next one has to wait until `sent` is called."""

    def stream_ended(self, number: int, error: Exception | None) -> None:
        """Takes the end; called once, last."""


class ItemStream:
    """One call of a generator function."""

    def __init__(self, core: Core, call: Call, number: int, credit: int, sender: ItemSender) -> None:
        """Begins a stream; `run` is to be called on a thread of the pool.

        Args:
            core: runs the function.
            call: the call, as it was let in.
            number: its id on the session.
            credit: how many items may be sent before further credit.
            sender: takes the items.
        """
        self._core = core
        self._call = call
        self._number = number
        self._sender = sender
        self._items: Generator[Encoded, None, None] = core.stream(call, CHUNK_BYTES)
        self._lock = threading.Lock()
        self._credit = min(credit, _MAX_CREDIT)
        # Waits for credit; no thread runs it.
        self._paused = False
        call.context.on_cancel(self._wake)
        remaining = call.context.time_remaining()
        self._call_off = None if remaining is None else deadlines.after(remaining, self._wake)

    def run(self) -> None:
        """Runs the function until it ends or must wait. One thread at a time: who ends the wait starts the next."""
        try:
            while True:
                with self._lock:
                    if self._credit <= 0 and not self._call.context.over:
                        self._paused = True
                        return
                    self._credit -= 1
                item = next(self._items, None)
                if item is None:
                    break
                if not self._sender.send_item(self._number, item, self._go_on):
                    return
        except Exception as error:
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._call_off is not None:
            self._call_off()
        self._sender.stream_ended(self._number, error)

    def add_credit(self, items: int) -> None:
        """Lets so many more items be sent."""
        with self._lock:
            self._credit = min(self._credit + items, _MAX_CREDIT)
            paused, self._paused = self._paused and self._credit > 0, self._paused and self._credit <= 0
        if paused:
            self._go_on()

    def _wake(self) -> None:
        """The call is over: has the function closed, if nobody runs it."""
        with self._lock:
            paused, self._paused = self._paused, False
        if paused:
            self._go_on()

    def _go_on(self) -> None:
        self._core.pool.submit_always(self.run)
