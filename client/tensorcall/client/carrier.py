"""What carries calls to a server: a session, or plain unary and streaming calls."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Protocol

import grpc

from tensorcall.client import processes
from tensorcall.client.callbacks import refuse_to_wait
from tensorcall.client.futures import CallFuture
from tensorcall.client.letting_go import made_apart
from tensorcall.wire import statuses
from tensorcall.wire.calls import Encoded
from tensorcall.wire.errors import BadPayload, Cancelled, DeadlineExceeded, TensorcallError, Unreachable
from tensorcall.wire.waiting import waiting


class ItemSink(Protocol):
    """Where the items of a stream go, from the thread that receives them. None of these blocks."""

    def item(self, item: Any) -> None:
        """Takes an item."""

    def end(self, error: BaseException | None) -> None:
        """Takes the end; called once, last."""


class StreamHandle(Protocol):
    """A stream in progress, as its consumer sees it."""

    def consumed(self) -> None:
        """Tells that one item was taken, so that another may come."""

    def cancel(self) -> None:
        """Tells the server to stop. Idempotent."""


class Carrier(Protocol):
    """A way to a server. Safe from any thread."""

    chunk_above: int | None
    """Tensors of more bytes than this go in chunks; None: this carrier has none."""

    max_message_bytes: int
    """What the server takes in one message."""

    client_id: str
    """What calls that make values tell of who they are for; empty where the carrier itself tells."""

    @property
    def alive(self) -> bool:
        """Whether it still carries calls."""

    def call(self, request: Encoded, timeout: float | None, *, pickle: bool) -> Any:
        """Makes a call and waits for its result."""

    def submit(self, request: Encoded, timeout: float | None, *, pickle: bool) -> CallFuture:
        """Makes a call."""

    def stream(
        self, request: Encoded, timeout: float | None, prefetch: int, sink: ItemSink, *, pickle: bool
    ) -> StreamHandle:
        """Calls a generator function."""

    def close(self) -> None:
        """Cancels what is in flight and ends it. Idempotent."""


def deadline_error(timeout: float) -> DeadlineExceeded:
    """Returns what a call raises whose time ran out here."""
    # What opening the connection took was taken off; nobody asked for 0.4953 s.
    shown = f"{timeout:.1f}" if timeout >= 0.1 else f"{timeout:.1g}"
    return DeadlineExceeded(f"no answer within {shown} s; the server was told to stop")


def no_answer(address: str, patience: float) -> Unreachable:
    """Returns what is raised where nobody answers."""
    return Unreachable(f"{address} did not answer within {round(patience, 3) or patience:g} s")


class ItemQueue:
    """An ItemSink that a thread takes the items from."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._generation = processes.generation

    def item(self, item: Any) -> None:
        """Takes an item."""
        self._queue.put((True, item))

    def end(self, error: BaseException | None) -> None:
        """Takes the end."""
        self._queue.put((False, error))

    def get(self, deadline: float | None, timeout: float, channel: object) -> Any:
        """Waits for an item, which comes over this channel.

        Raises:
            StopIteration: the stream has ended.
            TensorcallError: it failed, or its time ran out.
        """
        try:
            remaining = threading.TIMEOUT_MAX if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                is_item, value = self._queue.get_nowait()
            except queue.Empty:
                refuse_to_wait(channel)
                processes.refuse_inherited(self._generation, "this stream")
                with waiting():
                    is_item, value = self._queue.get(timeout=min(remaining, threading.TIMEOUT_MAX))
        except queue.Empty:
            raise deadline_error(timeout) from None
        if is_item:
            return value
        # For other threads that wait. Not with the error, whose traceback leads here.
        self._queue.put((False, None))
        if value is None:
            raise StopIteration
        try:
            raise value
        finally:
            del value  # this frame is part of its traceback


def closed_error(*, in_flight: bool = False) -> Cancelled:
    """Returns what calls raise whose connection was closed here, before them or while they were in flight."""
    return Cancelled("the connection was closed by this program" + " while the call was in flight" * in_flight)


def unreadable(error: Exception) -> TensorcallError:
    """Returns what a call raises whose result arrived but can't be read here."""
    if isinstance(error, TensorcallError):
        # The traceback holds the message; and what waits for the error, which would then hold itself.
        return error.with_traceback(None)
    # Reading a pickle runs code that may raise anything.
    return BadPayload(f"the function ran, but its result can't be read here: {type(error).__name__}: {error}")


def from_rpc_error(raised: grpc.RpcError, address: str, *, connected: bool = True) -> TensorcallError:
    """Returns what is raised for a failed gRPC call."""
    call: Any = raised
    metadata = dict(call.trailing_metadata() or ())
    details = metadata.get(statuses.DETAILS_KEY)
    code, words = call.code().value[0], call.details() or ""
    return made_apart(lambda: statuses.from_grpc(code, words, details, connected=connected, address=address))
