"""The session carrier: many calls at once on one stream, batched, with tensors in chunks."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from tensorcall.client import processes
from tensorcall.client.callbacks import carrying, refuse_to_wait
from tensorcall.client.carrier import ItemSink, closed_error, deadline_error, from_rpc_error, no_answer, unreadable
from tensorcall.client.deadlines import deadlines
from tensorcall.client.futures import CallFuture
from tensorcall.client.letting_go import made_apart
from tensorcall.client.payloads import PayloadReader
from tensorcall.v1 import error_pb2, handler_service_pb2
from tensorcall.wire import calls, chunks, frames, statuses
from tensorcall.wire.calls import Encoded, Payload
from tensorcall.wire.errors import (
    ConnectionLost,
    InternalError,
    TensorcallError,
)
from tensorcall.wire.limits import CHUNK_BYTES, MIB
from tensorcall.wire.outbox import Outbox
from tensorcall.wire.rrefs import Handle, RRefId
from tensorcall.wire.waiting import waiting

_log = logging.getLogger(__name__)

METHOD = "/tensorcall.v1.HandlerService/Session"
USER_AGENT = "tensorcall-python"
# A message of more bytes than this is not kept while nothing else comes.
_LARGE_BYTES = 4 * MIB


class _Waiter:
    """Waits for one result: what a future does, for a call that just one thread waits for, at a quarter of the cost."""

    __slots__ = ("_lock", "_outcome", "done")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        # Whether it failed, and the result or the error.
        self._outcome: tuple[bool, Any] | None = None
        self.done = False

    def resolve(self, value: Any) -> None:
        self._end((False, value))

    def fail(self, error: BaseException) -> None:
        self._end((True, error))

    def _end(self, outcome: tuple[bool, Any]) -> None:
        if not self.done:
            self._outcome = outcome
            self.done = True
            with contextlib.suppress(RuntimeError):  # another thread did the same
                self._lock.release()

    def wait(self, timeout: float | None) -> Any:
        with waiting():
            # threading can't wait for longer than some centuries.
            if timeout is None or timeout > threading.TIMEOUT_MAX:
                self._lock.acquire()
            elif not self._lock.acquire(timeout=max(timeout, 0.0)):
                raise deadline_error(timeout)
        assert self._outcome is not None
        (failed, value), self._outcome = self._outcome, None
        if not failed:
            return value
        try:
            raise value
        finally:
            del value  # this frame is part of its traceback


class _Pending:
    """A call in flight."""

    __slots__ = ("future", "gathering", "handles", "number", "off", "payload", "pickle", "sink")

    def __init__(self, number: int, pickle: bool, future: CallFuture | _Waiter | None, sink: ItemSink | None) -> None:
        self.number = number
        self.pickle = pickle
        self.future = future
        self.sink = sink
        # The reply, or the latest item, whose chunks are still coming.
        self.gathering: chunks.Gathering | None = None
        self.payload: Payload | None = None
        # Calls off the deadline.
        self.off: Callable[[], None] | None = None
        # References among the arguments, which must live until the server has forks of its own.
        self.handles: list[Handle] | None = None

    def fail(self, error: BaseException) -> None:
        if self.off is not None:
            self.off()
        if self.future is not None:
            self.future.fail(error)
        elif self.sink is not None:
            self.sink.end(error)


class SessionCarrier:
    """One open session. When it breaks it fails what was in flight and is of no further use."""

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        timeout: float,
        reader: PayloadReader,
        metadata: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Opens a session and waits for the server's welcome.

        Args:
            channel: the way to the server.
            address: for messages.
            timeout: how many seconds to wait at most.
            reader: reads results; its link is told who the server is, and its client id names this process there.
            metadata: sent with the session's request.

        Raises:
            NotImplementedByPeer: the server has no sessions.
            Unreachable: nobody answers there.
        """
        self._generation = processes.generation
        self._channel = channel
        self._address = address
        self.chunk_above: int | None = CHUNK_BYTES
        self.max_message_bytes = 0
        self.client_id = ""  # the hello tells
        self._reader = reader
        self._outbox = Outbox()
        # Re-entrant, and so is the outbox's: a stream that is collected as garbage says so, from wherever that happens.
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._broken: TensorcallError | None = None
        self._closed = False
        # What the server said is wrong with the session as a whole.
        self._refused: TensorcallError | None = None
        self._welcome = threading.Event()
        hello = handler_service_pb2.SessionHello(client_id=reader.link.client_id, user_agent=USER_AGENT)
        self._outbox.put(frames.hello(hello))
        session: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(METHOD)
        self._call: Any = session(iter(self._outbox.take, None), metadata=metadata)
        threading.Thread(target=self._receive, name="tensorcall-session", daemon=True).start()
        if not self._welcome.wait(timeout):
            self._break(no_answer(address, timeout))
        if self._broken is not None:
            raise copy.copy(self._broken)

    @property
    def alive(self) -> bool:
        """Whether the session still carries calls."""
        return self._broken is None

    # --- calls ---

    def call(self, request: Encoded, timeout: float | None, *, pickle: bool) -> Any:
        """Makes a call and waits for its result."""
        refuse_to_wait(self._channel)
        waiter = _Waiter()
        pending = _Pending(next(self._numbers), pickle, waiter, None)
        try:
            self._begin(pending, request, timeout)
            return waiter.wait(timeout)
        finally:
            if not waiter.done:
                # Ctrl-C or the deadline: nobody will read the result.
                self._cancel(pending)

    def submit(self, request: Encoded, timeout: float | None, *, pickle: bool) -> CallFuture:
        """Makes a call."""
        future = CallFuture(self._channel)
        pending = _Pending(next(self._numbers), pickle, future, None)
        future.on_cancel(lambda: self._cancel(pending))
        self._begin(pending, request, timeout)
        self._watch(pending, timeout)
        return future

    def stream(
        self, request: Encoded, timeout: float | None, prefetch: int, sink: ItemSink, *, pickle: bool
    ) -> _SessionStream:
        """Calls a generator function."""
        pending = _Pending(next(self._numbers), pickle, None, sink)
        self._begin(pending, request, timeout, prefetch)
        self._watch(pending, timeout)
        return _SessionStream(self, pending, prefetch)

    def _begin(self, pending: _Pending, request: Encoded, timeout: float | None, prefetch: int = 0) -> None:
        number = pending.number
        if request.handles:
            pending.handles = request.handles
        frame = frames.call(number, request.parts, timeout, stream=prefetch > 0, credit=prefetch)
        following = None
        if request.chunked:
            following = self._chunks(number, request)
        with self._lock:
            broken = self._broken
            if broken is None:
                self._pending[number] = pending
        if broken is None:
            # Should it break just now, whoever forgets the call fails it.
            if self._outbox.put(frame, following) or not self._forget(pending):
                return
            broken = self._broken
        pending.fail(closed_error() if self._closed or broken is None else copy.copy(broken))

    def _watch(self, pending: _Pending, timeout: float | None) -> None:
        """Has a call end at its deadline. Not before it began: what has passed by then would be missed."""
        if timeout is not None:
            pending.off = deadlines.after(timeout, lambda: self._expire(pending, timeout))
            if pending.number not in self._pending:
                pending.off()

    def _chunks(self, number: int, request: Encoded) -> Iterator[list[bytes | memoryview]]:
        """Makes the chunks of a call, as long as somebody wants its result."""
        progress = request.progress
        sent, total = 0, sum(len(data) for _, data in request.chunked)
        for tensor, offset, data in chunks.split(request.chunked):
            if number not in self._pending:
                return
            yield frames.request_chunk(number, tensor, offset, data)
            # Whoever draws the next chunk has written this one.
            sent += len(data)
            if progress is not None:
                try:
                    with carrying(self._channel):
                        progress(sent, total)
                except Exception:
                    _log.exception("a progress callback failed; it is told no more of this call")
                    progress = None

    def _cancel(self, pending: _Pending) -> None:
        """Forgets a call and tells the server. Idempotent."""
        if self._generation != processes.generation:
            return  # the parent's
        if pending.off is not None:
            pending.off()
        if self._forget(pending):
            self._outbox.put(frames.cancels([pending.number]))

    def _expire(self, pending: _Pending, timeout: float) -> None:
        if self._forget(pending):
            self._outbox.put(frames.cancels([pending.number]))
            with carrying(self._channel):  # all deadlines would wait
                pending.fail(deadline_error(timeout))

    def _forget(self, pending: _Pending) -> bool:
        with self._lock:
            if self._pending.pop(pending.number, None) is None:
                return False
        pending.handles = None
        if pending.payload is not None:
            payload, pending.payload = pending.payload, None
            self._reader.discard(payload)
        return True

    def credit(self, number: int, items: int) -> None:
        """Lets a stream go on."""
        if number in self._pending and self._generation == processes.generation:
            self._outbox.put(frames.credit(number, items))

    # --- what arrives; on the reading thread ---

    def _receive(self) -> None:
        error: TensorcallError
        with carrying(self._channel):
            try:
                for message in self._call:
                    self._take(message)
                    # The next one may take long to come; so may gRPC's next event, which holds this one until then:
                    # an empty message makes one.
                    if len(message) > _LARGE_BYTES:
                        self._outbox.put([b""])
                    del message
                error = ConnectionLost(f"{self._address} ended the session")
            except grpc.RpcError as raised:
                raised.__traceback__ = None  # it leads back to the call, which is what was raised
                error = from_rpc_error(raised, self._address, connected=self._welcome.is_set())
            except TensorcallError as raised:
                error = raised.with_traceback(None)
            except BaseException as raised:  # callbacks may even exit
                _log.exception("a session failed by a defect of tensorcall, or of a callback")
                error = InternalError(f"a defect of tensorcall, or of a callback: {type(raised).__name__}: {raised}")
            if self._refused is not None:
                error = self._refusal(self._refused)
            self._break(error)

    def _refusal(self, refused: TensorcallError) -> TensorcallError:
        if not self._welcome.is_set():
            return refused  # nothing was in flight
        return ConnectionLost(
            f"the connection to {self._address} was lost, whether the call ran is unknown: "
            f"the server ended the session: {type(refused).__name__}: {refused}"
        )

    def _take(self, message: bytes) -> None:
        for frame in frames.read_response(message):
            if isinstance(frame, frames.Reply):
                self._take_reply(message, frame)
            elif isinstance(frame, frames.Chunk):
                self._take_chunk(frame)
            else:
                self.max_message_bytes = frame.max_message_size
                self._reader.link.met(frame.worker, frame.incarnation, frame.address)
                self._welcome.set()

    def _take_reply(self, message: bytes, reply: frames.Reply) -> None:
        pending = self._pending.get(reply.id)
        if pending is None:
            if reply.id == 0 and reply.event == frames.FAILURE:
                # The session itself failed. Calls in flight may still be answered before the server ends it.
                self._refused = statuses.from_failure(error_pb2.Failure.FromString(message[slice(*reply.body)]))
                _log.error("the server refused a message of this session: %s", self._refused)
            else:
                self._discard(message, reply)
            return
        try:
            if reply.event == frames.RESULT:
                self._take_payload(pending, calls.decode_result(message, *reply.body))
            elif reply.event == frames.ITEM:
                self._take_payload(pending, calls.decode_payload(message, *reply.body))
            elif self._forget(pending):
                error: BaseException | None = None
                if reply.event == frames.FAILURE:
                    failure = error_pb2.Failure.FromString(message[slice(*reply.body)])
                    error = made_apart(lambda: statuses.from_failure(failure))
                if error is None and pending.sink is not None:
                    if pending.off is not None:
                        pending.off()
                    pending.sink.end(None)
                else:
                    pending.fail(error or InternalError(f"the server sent an event {reply.event} that this side lacks"))
        except Exception as error:
            self._unreadable(pending, error)

    def _discard(self, message: bytes, reply: frames.Reply) -> None:
        """Lets go of what an answer holds whose call was cancelled in the meantime."""
        try:
            if reply.event == frames.RESULT:
                self._reader.discard(calls.decode_result(message, *reply.body))
            elif reply.event == frames.ITEM:
                self._reader.discard(calls.decode_payload(message, *reply.body))
        except TensorcallError as error:
            _log.debug("an answer that nobody waits for can't be read: %s", error)

    def _take_payload(self, pending: _Pending, payload: Payload | RRefId) -> None:
        if isinstance(payload, Payload):
            for blob in payload.blobs:
                if blob.chunked_size is not None:
                    gathering = chunks.Gathering(payload.blobs)
                    if not gathering.complete:
                        pending.gathering, pending.payload = gathering, payload
                        return
                    break
        self._deliver(pending, payload)

    def _take_chunk(self, chunk: frames.Chunk) -> None:
        pending = self._pending.get(chunk.id)
        if pending is None or pending.gathering is None or pending.payload is None:
            return  # cancelled in the meantime
        try:
            pending.gathering.add(chunk.tensor, chunk.offset, chunk.data)
            if pending.gathering.complete:
                payload, pending.payload, pending.gathering = pending.payload, None, None
                self._deliver(pending, payload)
        except Exception as error:
            self._unreadable(pending, error)

    def _deliver(self, pending: _Pending, payload: Payload | RRefId) -> None:
        value: Any = payload
        if isinstance(payload, Payload):
            value = self._reader.read(payload, pickle=pending.pickle)
        if pending.sink is not None:
            pending.sink.item(value)
        elif self._forget(pending):
            if pending.off is not None:
                pending.off()
            assert pending.future is not None
            pending.future.resolve(value)

    def _unreadable(self, pending: _Pending, error: Exception) -> None:
        """Fails a call whose reply makes no sense here, for example for want of a registered type."""
        self._cancel(pending)
        pending.fail(unreadable(error))

    # --- the end ---

    def _break(self, error: TensorcallError) -> None:
        with self._lock:
            if self._broken is None:
                self._broken = error
            pending = list(self._pending.values())
            self._pending.clear()
        # Lets gRPC's thread that takes from it end.
        self._outbox.close(discard=True)
        self._call.cancel()
        self._welcome.set()
        interrupted: BaseException | None = None
        for call in pending:
            call.handles = None
            if call.payload is not None:
                self._reader.discard(call.payload)
            try:
                # One each: what raises an exception writes its own traceback into it.
                call.fail(copy.copy(self._broken))
            except Exception:
                _log.exception("a callback failed")
            except BaseException as raised:
                interrupted = raised  # the others must not wait for ever
        if interrupted is not None:
            raise interrupted

    def close(self) -> None:
        """Cancels what is in flight and ends the session. Idempotent."""
        self._closed = True
        self._break(closed_error(in_flight=True))


class _SessionStream:
    """A stream on a session, as its consumer sees it."""

    def __init__(self, carrier: SessionCarrier, pending: _Pending, prefetch: int) -> None:
        self._carrier = carrier
        self._pending = pending
        self._consumed = 0
        # Credit goes back in halves: a message for every item would cost as much as the item.
        self._step = max(1, prefetch // 2)

    def consumed(self) -> None:
        """Tells that one item was taken."""
        self._consumed += 1
        if self._consumed >= self._step:
            self._carrier.credit(self._pending.number, self._consumed)
            self._consumed = 0

    def cancel(self) -> None:
        """Tells the server to stop."""
        self._carrier._cancel(self._pending)
